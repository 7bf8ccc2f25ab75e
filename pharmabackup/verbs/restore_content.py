"""Bringing one snapshot's content to a target: block after block in the order of packs, each fetched once."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass

from pharmabackup.engine.reading import SnapshotReader, run_range
from pharmabackup.engine.target import Target
from pharmabackup.errors import Damaged, NotFound
from pharmabackup.events import Finding
from pharmabackup.format import block as layout
from pharmabackup.format.manifest import Entry, EntryKind
from pharmabackup.verbs.reporter import Reporter

WORKERS = 2
WINDOW_FILES = 1 << 16  # files whose content is restored in pack order together; bounds memory
LOOK_EVERY_S = 0.1


class ContentRestorer:
    """Brings one snapshot's content to a target, window after window."""

    def __init__(self, reader: SnapshotReader, target: Target, reporter: Reporter) -> None:
        self._reader = reader
        self._target = target
        self._reporter = reporter
        self.files = 0
        self.bytes = 0
        self._lock = threading.Lock()
        self._lost: set[int] = set()

    def run(self, wanted: Callable[[bytes], bool] | None) -> None:
        later: list[Entry] = []
        window: list[Entry] = []
        for folder in self._reader.entries():
            for entry in folder:
                if entry.kind == EntryKind.FOLDER:
                    if wanted is None or wanted(entry.path) or not entry.path:
                        self._target.folder(entry)
                elif wanted is not None and not wanted(entry.path):
                    continue
                elif entry.stored:
                    if wanted is not None:
                        self._target.parents(entry)
                    window.append(entry)
                else:
                    if wanted is not None:
                        self._target.parents(entry)
                    later.append(entry)
                self.files += entry.kind == EntryKind.FILE
            if len(window) >= WINDOW_FILES:
                self._content(window)
                window = []
            self._reporter.look()
        self._content(window)
        for entry in later:
            self._target.special(entry)

    # ------------------------------------------------------------ content, in the order of packs

    def _content(self, window: list[Entry]) -> None:
        if not window:
            return
        jobs = self._jobs(window)
        starts = array("Q", [entry.start for entry in window])
        left = [entry.stored for entry in window]
        self._lost.clear()
        done = _Done()
        queue = iter(jobs)
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                with self._lock:
                    job = next(queue, None)
                if job is None:
                    return
                self._job(job, window, starts, left, done)

        with ThreadPoolExecutor(WORKERS, thread_name_prefix="pharmabackup-restore") as pool:
            futures = [pool.submit(work) for _ in range(WORKERS)]
            try:
                pending = set(futures)
                while pending:
                    finished, pending = wait(pending, timeout=LOOK_EVERY_S, return_when=FIRST_EXCEPTION)
                    for future in finished:
                        future.result()
                    size, files = done.take()
                    self._reporter.step(size, files)
                    self._reporter.look()
            finally:
                stop.set()
        size, files = done.take()
        self.bytes += done.total
        self._reporter.step(size, files)
        for number in sorted(self._lost):
            self._reporter.find(_lost_file(window[number]))

    def _jobs(self, window: list[Entry]) -> list[_Job]:
        """One job a block, with all its runs that the window needs."""
        runs, table = self._reader.recipe()
        starts = self._reader.run_starts
        by_block: dict[int, list[tuple[int, int, int]]] = {}
        for begin, end in _stretches(window):
            if end > starts[-1]:
                raise Damaged(
                    "A snapshot's recipe is shorter than its manifest says.",
                    kind="format",
                    remedy="Restore from another location, then run check.",
                )
            for i in range(bisect_right(starts, begin) - 1, bisect_left(starts, end)):
                by_block.setdefault(runs.block[i], []).append((i, max(begin, starts[i]), min(end, starts[i + 1])))
        index = self._reader.blocks.index.blocks
        jobs = []
        for slot, pieces in by_block.items():
            number = index.find(table[slot], self._reader.snapshot.domain)
            order = (index.pack[number], index.offset[number]) if number is not None else (0, 0)
            jobs.append(_Job(order, number, table[slot], pieces))
        jobs.sort(key=lambda job: job.order)
        return jobs

    def _job(self, job: _Job, window: list[Entry], starts: array[int], left: list[int], done: _Done) -> None:
        runs, _ = self._reader.recipe()
        run_starts = self._reader.run_starts
        try:
            content, ends = self._fetch(job)
            view = memoryview(content)
            for i, begin, end in job.pieces:
                at, _ = run_range(ends, runs.first[i], runs.count[i], runs.sizes[i])
                at += begin - run_starts[i]
                self._write(view[at : at + end - begin], begin, window, starts, left, done)
        except Damaged:
            with self._lock:
                for _, begin, end in job.pieces:
                    first = max(0, bisect_right(starts, begin) - 1)
                    self._lost.update(range(first, bisect_left(starts, end)))

    def _fetch(self, job: _Job) -> tuple[bytes, list[int]]:
        domain = self._reader.snapshot.domain
        if job.number is not None:
            try:
                blocks = self._reader.blocks
                content = blocks.open(job.number, blocks.sealed(job.number), domain)
                return content, layout.chunk_ends(content)
            except (Damaged, NotFound):
                pass  # another pack may hold a whole one
        return self._reader.blocks.block(job.block, domain)

    def _write(
        self, data: memoryview, position: int, window: list[Entry], starts: array[int], left: list[int], done: _Done
    ) -> None:
        """Give each file its part of a stretch of the content stream."""
        target = self._target
        i = bisect_right(starts, position) - 1
        offset, files = 0, 0
        while offset < len(data):
            entry = window[i]
            begin = position + offset - entry.start
            part = min(entry.stored - begin, len(data) - offset)
            if part == entry.stored:
                target.whole(entry, data[offset : offset + part])
                files += 1
            else:
                target.part(entry, begin, data[offset : offset + part])
                with self._lock:
                    left[i] -= part
                    last = left[i] == 0
                if last:
                    target.finish(entry)
                    files += 1
            offset += part
            i += 1
        done.add(offset, files)


@dataclass(frozen=True, slots=True)
class _Job:
    order: tuple[int, int]
    number: int | None
    block: bytes
    pieces: list[tuple[int, int, int]]  # run, begin and end in the content stream


class _Done:
    """What workers have done since somebody looked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes = self._files = 0
        self.total = 0

    def add(self, size: int, files: int) -> None:
        with self._lock:
            self._bytes += size
            self._files += files
            self.total += size

    def take(self) -> tuple[int, int]:
        with self._lock:
            taken = self._bytes, self._files
            self._bytes = self._files = 0
            return taken


def _stretches(window: list[Entry]) -> Iterator[tuple[int, int]]:
    """Where the window's content lies in the stream: joined where it goes on."""
    begin = end = window[0].start
    for entry in window:
        if entry.start != end:
            yield begin, end
            begin = entry.start
        end = entry.start + entry.stored
    yield begin, end


def _lost_file(entry: Entry) -> Finding:
    path = entry.path.decode("utf-8", "backslashreplace")
    return Finding(
        code="file-lost",
        severity="critical",
        subject=path,
        message=f"{path} did not come back: a stored block that it needs is damaged or missing.",
        remedy="Restore it from an earlier snapshot or another location.",
    )
