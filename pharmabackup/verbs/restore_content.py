"""Bringing one snapshot's content to a target: block after block in the order of packs.

The calling thread reads names and makes folders; workers fetch, open and write blocks. They go on with one window of
files while the next is made ready. Within a window each block is fetched once.
"""

from __future__ import annotations

import queue
import threading
from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

from pharmabackup.engine.ahead import Range
from pharmabackup.engine.reading import SnapshotReader, range_of, run_damaged, run_range
from pharmabackup.engine.target import Target
from pharmabackup.errors import Damaged
from pharmabackup.format import block as layout
from pharmabackup.format.manifest import Entry, EntryKind
from pharmabackup.verbs.findings import Ranges
from pharmabackup.verbs.reporter import Reporter
from pharmabackup.verbs.restore_choice import Wanted
from pharmabackup.verbs.restore_names import Names
from pharmabackup.verbs.restore_salvage import Salvager

WORKERS = 2
WINDOW_FILES = 1 << 15  # whose content is restored in pack order together
WINDOWS_AHEAD = 2  # that are under way while the next is made ready; bounds memory
LOOK_EVERY_S = 0.1


class ContentRestorer:
    """Brings one snapshot's content to a target, window after window."""

    def __init__(self, reader: SnapshotReader, target: Target, reporter: Reporter, salvager: Salvager) -> None:
        self._reader = reader
        self._target = target
        self._reporter = reporter
        self._salvager = salvager
        self.files = 0
        self.bytes = 0
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._workers: list[threading.Thread] = []
        self._changed = threading.Condition()  # guards all that follows, and a window's counters
        self._failed: BaseException | None = None
        self._stopped = False
        self._under_way = 0  # windows
        self._done_bytes = self._done_files = 0  # since somebody looked
        self._lost: list[tuple[Entry, Ranges]] = []
        self._listed = Names(reader)
        self._ahead = reader.blocks.ahead()

    def run(self, wanted: Wanted | None) -> None:
        """Folders and empty files first, content as it is found, then links and further names.

        Damaged when not even the first names can be read; what is lost further on is told.
        """
        try:
            later = self._names(None if wanted is None else wanted.matches)
            self._wait(windows=0)
        except BaseException:
            self._stopped = True
            raise
        finally:
            for _ in self._workers:
                self._jobs.put(None)
            for worker in self._workers:
                worker.join()
            if self._ahead is not None:
                self._ahead.close()
            self._look()
        for entry in later:
            self._target.special(entry)
        for entry, holes in sorted(self._lost, key=lambda lost: lost[0].path):  # last: no name is taken from others
            self._salvager.lost(entry, holes)
        self._salvager.tell_earlier()
        if (finding := self._listed.finding(wanted)) is not None:
            self._reporter.find(finding)

    def _names(self, wanted: Callable[[bytes], bool] | None) -> list[Entry]:
        """Go through the manifest; what is to be made when all content is there.

        A further name needs the file that it names. And as long as anything is still written there are no links that
        it could be led through, though nothing follows any. All else is made at once: there may be a million.
        """
        later: list[Entry] = []
        window: list[Entry] = []
        for folder in self._listed.folders():
            if self._salvager.made:
                for entry in folder:
                    self._salvager.meet(entry, wanted=wanted is None or wanted(entry.path))
            for entry in folder:
                if entry.kind == EntryKind.FOLDER:
                    if wanted is None or wanted(entry.path) or not entry.path:
                        self._target.folder(entry)
                elif wanted is not None and not wanted(entry.path):
                    continue
                else:
                    if wanted is not None:
                        self._target.parents(entry)
                    if entry.stored:
                        window.append(entry)
                    elif entry.kind == EntryKind.LINK or entry.same_file is not None:
                        later.append(entry)
                    else:
                        self._target.special(entry)
                self.files += entry.kind == EntryKind.FILE
            if len(window) >= WINDOW_FILES:
                self._begin(window)
                window = []
            self._look()
            self._reporter.look()
        self._begin(window)
        return later

    # ------------------------------------------------------------ windows

    def _begin(self, entries: list[Entry]) -> None:
        if not entries:
            return
        window = _Window(entries)
        jobs = self._jobs_of(window)
        assert jobs, "content that lies in no block would be waited for for ever"
        self._wait(windows=WINDOWS_AHEAD - 1)
        while len(self._workers) < WORKERS:
            worker = threading.Thread(target=self._work, name="pharmabackup-restore", daemon=True)
            worker.start()
            self._workers.append(worker)
        window.jobs = len(jobs)
        with self._changed:
            self._under_way += 1
        if self._ahead is not None:
            self._ahead.plan([job.place for job in jobs if job.place is not None])
        for job in jobs:
            self._jobs.put(job)

    def _wait(self, *, windows: int) -> None:
        """Until at most so many windows are under way. Raises what a worker raised, and Cancelled."""
        while True:
            with self._changed:
                if self._under_way > windows and self._failed is None:
                    self._changed.wait(LOOK_EVERY_S)
                if self._failed is not None:
                    raise self._failed
                ready = self._under_way <= windows
            self._look()
            if ready:
                return
            self._reporter.look()

    def _look(self) -> None:
        """Tell what has been done since the last look."""
        with self._changed:
            size, files = self._done_bytes, self._done_files
            self._done_bytes = self._done_files = 0
        self.bytes += size
        if size or files:
            self._reporter.bytes += size
            self._reporter.files += files

    def _work(self) -> None:
        """What each worker does until there is nothing more to do."""
        while (job := self._jobs.get()) is not None:
            if self._stopped:
                continue
            size = files = 0
            lost: dict[int, Ranges] = {}
            try:
                size, files = self._restore(job, lost)
            except BaseException as error:  # noqa: BLE001  (carried over to the thread that waits)
                self._stopped = True
                with self._changed:
                    self._failed = self._failed or error
            window = job.window
            with self._changed:
                self._done_bytes += size
                self._done_files += files
                for number, holes in lost.items():
                    window.lost.setdefault(number, []).extend(holes)
                window.jobs -= 1
                window.missing -= size + sum([end - begin for holes in lost.values() for begin, end in holes])
                if not window.jobs:
                    if (wrong := window.missing) and self._failed is None:
                        self._failed = Damaged(
                            f"{wrong:,} bytes did not come, or came twice, so that nothing may be taken for whole.",
                            kind="format",
                            remedy="Restore again to another place; if it says so again, report it.",
                        )
                    self._under_way -= 1
                    self._lost += [(window.entries[number], holes) for number, holes in window.lost.items()]
                if not window.jobs or self._failed is not None:
                    self._changed.notify()

    def _jobs_of(self, window: _Window) -> list[_Job]:
        """One job a block, with all its runs that the window needs."""
        runs, table = self._reader.recipe()
        starts = self._reader.run_starts
        by_block: defaultdict[int, list[int]] = defaultdict(list)
        cut: defaultdict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for begin, end in _stretches(window.entries):
            if end > starts[-1]:
                raise Damaged(
                    "A snapshot's recipe is shorter than its manifest says.",
                    kind="format",
                    remedy="Restore from another location, then run check.",
                )
            first, beyond = bisect_right(starts, begin) - 1, bisect_left(starts, end)
            if starts[first] < begin or starts[first + 1] > end:
                cut[runs.block[first]].append((first, begin, min(end, starts[first + 1])))
                first += 1
            if first < beyond and starts[beyond] > end:
                beyond -= 1
                cut[runs.block[beyond]].append((beyond, starts[beyond], end))
            for i, block in enumerate(runs.block[first:beyond], first):  # of a database there may be one a page
                by_block[block].append(i)
        index = self._reader.blocks.index.blocks
        jobs = []
        for slot in by_block.keys() | cut.keys():
            number = index.find(table[slot], self._reader.snapshot.domain)
            order = (index.pack[number], index.offset[number]) if number is not None else (0, 0)
            place = None if self._ahead is None or number is None else range_of(index, number)
            jobs.append(_Job(window, order, table[slot], by_block[slot], cut[slot], place))
        jobs.sort(key=lambda job: job.order)
        return jobs

    # ------------------------------------------------------------ one block

    def _restore(self, job: _Job, lost: dict[int, Ranges]) -> tuple[int, int]:
        """Fetch a block and give each file its parts of it; bytes, and files that are whole now."""
        window, starts = job.window, job.window.starts
        try:
            content = self._fetch(job)
            pieces = self._pieces(job, memoryview(content), layout.chunk_ends(content))
        except Damaged:
            for begin, end in job.spans(self._reader.run_starts):
                for number in range(max(0, bisect_right(starts, begin) - 1), bisect_left(starts, end)):
                    entry = window.entries[number]
                    hole = max(begin, entry.start) - entry.start, min(end, entry.start + entry.stored) - entry.start
                    lost.setdefault(number, []).append(hole)
            return 0, 0
        size = sum([len(data) for _, data in pieces])
        return size, self._write(window, pieces)

    def _fetch(self, job: _Job) -> bytes:
        try:
            return self._reader.blocks.fetch(job.block, self._reader.snapshot.domain, ahead=self._ahead)
        finally:
            if self._ahead is not None and job.place is not None:
                self._ahead.done(job.place)

    def _write(self, window: _Window, pieces: list[tuple[int, memoryview]]) -> int:
        """Give each file what it has of these pieces of the content stream; how many are whole now."""
        target, starts, files = self._target, window.starts, 0
        begin, end = pieces[0][0], pieces[-1][0] + len(pieces[-1][1])
        i = bisect_right(starts, begin) - 1
        entry = window.entries[i]
        beyond = entry.start + entry.stored  # where the content of the file that was written to last ends
        if end <= beyond and end - begin < entry.stored:  # a large file's alone, of which there may be many pieces
            start = entry.start
            return self._parts(window, i, [(position - start, data) for position, data in pieces])
        parts: dict[int, list[tuple[int, memoryview]]] = {}
        for position, data in pieces:
            while True:
                if not entry.start <= position < beyond:
                    i = bisect_right(starts, position) - 1
                    entry = window.entries[i]
                    beyond = entry.start + entry.stored
                part = data if position + len(data) <= beyond else data[: beyond - position]
                if len(part) == entry.stored:
                    target.whole(entry, part)
                    files += 1
                else:
                    parts.setdefault(i, []).append((position - entry.start, part))
                if len(part) == len(data):
                    break
                assert part, "a piece that belongs to no file would be cut for ever"
                position, data = position + len(part), data[len(part) :]
        return files + sum([self._parts(window, i, written) for i, written in parts.items()])

    def _parts(self, window: _Window, i: int, written: list[tuple[int, memoryview]]) -> int:
        """Some of a file's content, each part at its offset there; 1 if it is whole now."""
        entry = window.entries[i]
        self._target.parts(entry, written)
        with self._changed:
            window.left[i] -= sum([len(part) for _, part in written])
            if window.left[i]:
                return 0
        self._target.finish(entry)
        return 1

    def _pieces(self, job: _Job, view: memoryview, ends: list[int]) -> list[tuple[int, memoryview]]:
        """Where in the content stream each of the block's pieces belongs, and its bytes. Damaged."""
        runs, _ = self._reader.recipe()
        first, count, sizes, starts = runs.first, runs.count, runs.sizes, self._reader.run_starts
        found, beyond = [], len(ends)
        for i in job.runs:  # what happens here happens for every page of a database that lies alone
            ordinal = first[i]
            stop = ordinal + count[i]
            if stop >= beyond or ends[stop] - (at := ends[ordinal]) != sizes[i]:
                raise run_damaged()
            found.append((starts[i], view[at : ends[stop]]))
        for i, begin, end in job.cut:
            at, _ = run_range(ends, first[i], count[i], sizes[i])
            at += begin - starts[i]
            found.append((begin, view[at : at + end - begin]))
        if job.cut:
            found.sort(key=itemgetter(0))
        return found


class _Window:
    """Files whose content is restored together."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries
        self.starts = array("Q", [entry.start for entry in entries])
        self.left = [entry.stored for entry in entries]
        self.lost: dict[int, Ranges] = {}  # by entry: what of its stored content
        self.jobs = 0  # that are not done
        self.missing = sum(self.left)  # bytes that have neither come nor are known to be lost


@dataclass(frozen=True, slots=True)
class _Job:
    window: _Window
    order: tuple[int, int]
    block: bytes
    runs: list[int]  # that are wanted whole
    cut: list[tuple[int, int, int]]  # others: run, begin and end in the content stream
    place: Range | None  # that is fetched ahead for it

    def spans(self, starts: Sequence[int]) -> list[tuple[int, int]]:
        """Where in the content stream it belongs."""
        return [(starts[i], starts[i + 1]) for i in self.runs] + [(begin, end) for _, begin, end in self.cut]


def _stretches(window: list[Entry]) -> Iterator[tuple[int, int]]:
    """Where the window's content lies in the stream: joined where it goes on."""
    begin = end = window[0].start
    for entry in window:
        if entry.start != end:
            yield begin, end
            begin = entry.start
        end = entry.start + entry.stored
    yield begin, end
