"""Reading packs whole: their bytes against their names, every block as far as this credential may open it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field

from pharmabackup import ids
from pharmabackup.engine.index import Index
from pharmabackup.engine.packs import read_directory, read_names
from pharmabackup.engine.reading import BlockReader
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged, NotFound
from pharmabackup.storage.base import Storage
from pharmabackup.verbs.reporter import Reporter

WORKERS = 2
WORKERS_MAX = 8  # in lanes: each holds a piece of a pack
COPY_SIZE = 4 << 20


@dataclass(slots=True)
class PackFound:
    """What reading a pack whole showed."""

    problem: str | None = None  # in a sentence
    bad: set[int] = field(default_factory=set)  # blocks that cannot be read, or not be proved with these keys
    changed: bool = False  # its bytes are not those of its name


class _Stream:
    """A pack's bytes from its beginning on, in larger pieces than are asked for where each request takes a while."""

    def __init__(self, storage: Storage, name: str, size: int) -> None:
        self._storage = storage
        self._name = name
        self._size = size
        self._piece, self._at = b"", 0

    def read(self, begin: int, end: int) -> bytes:
        """Damaged, NotFound, StorageFailed."""
        if self._storage.lanes > 1 and not self._has(begin, end):
            with suppress(Damaged):  # perhaps only what comes after it is
                whole = min(max(end, begin + COPY_SIZE), self._size)
                self._piece, self._at = self._storage.get_range(self._name, begin, whole - begin), begin
        if self._has(begin, end):
            return self._piece[begin - self._at : end - self._at]
        return self._storage.get_range(self._name, begin, end - begin)

    def _has(self, begin: int, end: int) -> bool:
        return self._at <= begin < end <= self._at + len(self._piece)


class PackReading:
    """Several packs at once, each read from beginning to end."""

    def __init__(self, unlocked: Unlocked, index: Index, reporter: Reporter) -> None:
        self._unlocked = unlocked
        self._index = index
        self._reporter = reporter
        self.found: dict[int, PackFound] = {}  # those that were read to their end, however it ended
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def read(self, packs: Sequence[int], look: Callable[[], None] = lambda: None) -> dict[int, PackFound]:
        """What is wrong with each of these packs of the index. `look` is called often. StorageFailed, Cancelled."""
        self._stop.clear()
        blocks_of: dict[int, list[int]] = {number: [] for number in packs}
        for number, pack in enumerate(self._index.blocks.pack):
            if pack in blocks_of:
                blocks_of[pack].append(number)
        reader = BlockReader(self._unlocked, self._index)
        steps: list[int] = []
        workers = max(WORKERS, min(self._unlocked.storage.lanes, WORKERS_MAX))
        with ThreadPoolExecutor(workers, thread_name_prefix="pharmabackup-check") as pool:
            queue = iter(packs)

            def work() -> None:
                while not self._stop.is_set():
                    with self._lock:
                        pack = next(queue, None)
                    if pack is None:
                        return
                    result = self._read_pack(reader, pack, blocks_of[pack], steps)
                    if not self._stop.is_set():  # or it may not have been read to its end
                        self.found[pack] = result

            futures = {pool.submit(work) for _ in range(workers)}
            try:
                while futures:
                    finished, futures = wait(futures, timeout=0.1, return_when=FIRST_EXCEPTION)
                    for future in finished:
                        future.result()
                    self._take(steps)
                    look()
                    self._reporter.look()
            finally:
                self._stop.set()
        self._take(steps)
        return self.found

    def _take(self, steps: list[int]) -> None:
        while steps:
            self._reporter.step(steps.pop(), 0)

    def _read_pack(self, reader: BlockReader, pack: int, numbers: list[int], steps: list[int]) -> PackFound:
        """Read a pack from beginning to end."""
        table = self._index.blocks
        digest, size = table.packs[pack], table.pack_sizes[pack]
        name = ids.pack_name(digest)
        stream = _Stream(self._unlocked.storage, name, size)
        hasher = hashlib.sha256()
        may_open = bool(self._unlocked.keyring.readers and self._unlocked.keyring.naming)  # and prove what is in it
        found, position = PackFound(), 0

        def take(end: int) -> bytes:
            """The bytes from where the last ones ended."""
            nonlocal position
            begin, position = position, end
            try:
                piece = stream.read(begin, end)
            except (Damaged, NotFound) as error:
                found.changed = True
                found.problem = found.problem or f"The pack {name} cannot be read: {error.message}"
                raise
            hasher.update(piece)
            steps.append(len(piece))
            return piece

        def skip(end: int) -> None:
            """Hash what lies between blocks."""
            while position < end and not self._stop.is_set():
                take(min(position + COPY_SIZE, end))

        for number in sorted(numbers, key=lambda number: table.offset[number]):
            if self._stop.is_set():
                return PackFound("It was not read to its end.")
            try:
                skip(table.offset[number])
                sealed = take(table.offset[number] + table.length[number])
                if may_open:
                    reader.open(table, number, sealed, self._unlocked.domain, names=True)
            except (Damaged, NotFound) as error:
                found.bad.add(number)
                found.problem = found.problem or f"In the pack {name}: {error.message}"
        try:
            skip(size)
            if hasher.digest() != digest:
                found.changed = True
                found.problem = f"The pack {name} is not what was written: its bytes have changed."
            else:
                read_names(self._unlocked, digest, read_directory(self._unlocked, digest, size)[1])
        except (Damaged, NotFound) as error:
            found.problem = f"The pack {name} cannot be read: {error.message}"
        return found
