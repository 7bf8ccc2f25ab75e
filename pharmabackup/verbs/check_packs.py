"""Reading packs whole: their bytes against their names, every block as far as this credential may open it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from pharmabackup import ids
from pharmabackup.engine.index import Index
from pharmabackup.engine.packs import read_directory, read_names
from pharmabackup.engine.reading import BlockReader
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged, NotFound
from pharmabackup.verbs.reporter import Reporter

WORKERS = 2
COPY_SIZE = 4 << 20


class PackReading:
    """Several packs at once, each read from beginning to end."""

    def __init__(self, unlocked: Unlocked, index: Index, reporter: Reporter) -> None:
        self._unlocked = unlocked
        self._index = index
        self._reporter = reporter
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def read(self, packs: Sequence[int]) -> dict[int, str | None]:
        """What is wrong with each of these packs of the index; None: nothing is. StorageFailed, Cancelled."""
        self._stop.clear()
        blocks_of: dict[int, list[int]] = {number: [] for number in packs}
        for number, pack in enumerate(self._index.blocks.pack):
            if pack in blocks_of:
                blocks_of[pack].append(number)
        reader = BlockReader(self._unlocked, self._index)
        problems: dict[int, str | None] = {}
        steps: list[int] = []
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="pharmabackup-check") as pool:
            queue = iter(packs)

            def work() -> None:
                while not self._stop.is_set():
                    with self._lock:
                        pack = next(queue, None)
                    if pack is None:
                        return
                    problem = self._read_pack(reader, pack, blocks_of[pack], steps)
                    with self._lock:
                        problems[pack] = problem

            futures = {pool.submit(work) for _ in range(WORKERS)}
            try:
                while futures:
                    finished, futures = wait(futures, timeout=0.1, return_when=FIRST_EXCEPTION)
                    for future in finished:
                        future.result()
                    self._take(steps)
                    self._reporter.look()
            finally:
                self._stop.set()
        self._take(steps)
        return problems

    def _take(self, steps: list[int]) -> None:
        while steps:
            self._reporter.step(steps.pop(), 0)

    def _read_pack(self, reader: BlockReader, pack: int, numbers: list[int], steps: list[int]) -> str | None:
        """What is wrong with a pack, read from beginning to end; None when nothing is."""
        table, storage = self._index.blocks, self._unlocked.storage
        digest, size = table.packs[pack], table.pack_sizes[pack]
        name = ids.pack_name(digest)
        hasher = hashlib.sha256()
        may_open = bool(self._unlocked.keyring.readers)
        position, problem = 0, None

        def skip(end: int) -> None:
            """Hash what lies between blocks."""
            nonlocal position
            while position < end and not self._stop.is_set():
                piece = storage.get_range(name, position, min(COPY_SIZE, end - position))
                hasher.update(piece)
                position += len(piece)
                steps.append(len(piece))

        try:
            for number in sorted(numbers, key=lambda number: table.offset[number]):
                skip(table.offset[number])
                if self._stop.is_set():
                    return "It was not read to its end."
                sealed = storage.get_range(name, table.offset[number], table.length[number])
                position = table.offset[number] + table.length[number]
                hasher.update(sealed)
                if may_open and problem is None:
                    try:
                        reader.open(table, number, sealed, self._unlocked.domain, names=True)
                    except Damaged as error:
                        problem = f"In the pack {name}: {error.message}"
                steps.append(len(sealed))
            skip(size)
            if hasher.digest() != digest:
                return f"The pack {name} is not what was written: its bytes have changed."
            read_names(self._unlocked, digest, read_directory(self._unlocked, digest, size)[1])
        except (Damaged, NotFound) as error:
            return f"The pack {name} cannot be read: {error.message}"
        return problem
