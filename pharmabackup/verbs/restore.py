"""Restore: the newest of each dataset, or what was chosen, tier by tier, each block fetched and verified once."""

from __future__ import annotations

import errno
import os
import threading
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from pharmabackup.engine.history import Committed, History
from pharmabackup.engine.reading import BlockReader, SnapshotReader, run_range
from pharmabackup.engine.target import Target
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import (
    Conflict,
    Damaged,
    Incomplete,
    InvalidInput,
    NotFound,
    SourceFailed,
    StorageFailed,
    Unsupported,
)
from pharmabackup.events import Finding, Progress
from pharmabackup.format import block as layout
from pharmabackup.format.manifest import Entry, EntryKind
from pharmabackup.patterns import compile_patterns
from pharmabackup.results import DatasetResult, Report
from pharmabackup.sources.base import Source
from pharmabackup.sources.files import Files
from pharmabackup.sources.sqlite import SQLite
from pharmabackup.verbs.backup import history_findings
from pharmabackup.verbs.reporter import Reporter

WORKERS = 2
WINDOW_FILES = 1 << 16  # files whose content is restored in pack order together; bounds memory
MARKER = ".restoring"  # beside a dataset's folder while its restore is under way
LOOK_EVERY_S = 0.1


def restore(
    unlocked: Unlocked,
    blocks: BlockReader,
    history: History,
    *,
    show: Callable[[Committed, History], object],
    target: Path | None,
    before: int | None,
    only: Sequence[str],
    chosen: Sequence[Committed],
    into: Mapping[str, Source],
    overwrite: bool,
    progress: Progress | None,
    cancel: threading.Event | None,
) -> Report:
    """Incomplete when not all came back; Conflict, NotFound, Damaged, NotPermitted, InvalidInput."""
    if not unlocked.keyring.readers:
        raise unlocked.not_permitted("read")
    selection = Selection(only)
    snapshots = choose(history, before, chosen, selection)
    places = _places(snapshots, target, into, overwrite)
    if history.vanished and not chosen:
        finding = history_findings(history, unlocked.storage.location)[-1]
        raise Damaged(
            finding.message,
            kind="history-forked",
            remedy="If you know why, name the snapshots to restore; otherwise restore from another location.",
            findings=(finding,),
        )
    reporter = Reporter("restore", progress, cancel)
    for finding in history_findings(history, unlocked.storage.location):
        reporter.find(finding)
    reporter.total = sum(item.snapshot.size for item in snapshots) if selection.everything else None
    results: dict[str, DatasetResult] = {}
    tiers = sorted({item.snapshot.tier for item in snapshots})
    for tier in tiers:
        for item in [item for item in snapshots if item.snapshot.tier == tier]:
            reporter.tier, reporter.dataset = tier, item.snapshot.dataset
            place = places[item.snapshot.dataset]
            outcome = _dataset(blocks, item, place, selection, reporter, overwrite)
            results[item.snapshot.dataset] = outcome.result(show(item, history), reporter)
            if outcome.whole:
                reporter.tell("usable", f"{item.snapshot.dataset} is restored and verified.")
        reporter.tell("tier", f"Tier {tier} is done.")
    report = reporter.report(results)
    broken = [name for name, result in results.items() if not result.complete]
    if broken:
        raise Incomplete(
            f"Not everything came back: {', '.join(broken)}.",
            kind="restore",
            remedy="Look at the findings; restore what is missing from an earlier snapshot or another location.",
            findings=report.findings,
            result=report,
        )
    return report


class Selection:
    """Which datasets, and which paths in them, `only` names."""

    def __init__(self, only: Sequence[str]) -> None:
        self.everything = not only
        self._whole = {text for text in only if "/" not in text}
        self._globs: dict[str, list[str]] = {}
        for text in only:
            dataset, slash, pattern = text.partition("/")
            if slash:
                self._globs.setdefault(dataset, []).append(pattern or "**")
        self.named = self._whole | set(self._globs)

    def wants(self, dataset: str) -> bool:
        return self.everything or dataset in self.named

    def filter(self, dataset: str) -> Callable[[bytes], bool] | None:
        """Which paths; None: all."""
        if self.everything or dataset in self._whole:
            return None
        return compile_patterns(["/" + pattern for pattern in self._globs[dataset]])


def choose(
    history: History, before: int | None, chosen: Sequence[Committed], selection: Selection
) -> list[Committed]:
    """The snapshots to restore, by tier and name. NotFound, InvalidInput."""
    found: dict[str, Committed] = {}
    if chosen:
        for item in chosen:
            if item.snapshot.dataset in found:
                raise InvalidInput(
                    f"Two snapshots of {item.snapshot.dataset} were given.", remedy="Restore one after the other."
                )
            found[item.snapshot.dataset] = item
    else:
        forgotten = history.forgotten()
        for item in history.newest():
            late = before is not None and item.snapshot.time >= before
            if not late and item.transaction not in forgotten:
                found.setdefault(item.snapshot.dataset, item)
    missing = selection.named - set(found)
    if missing:
        raise NotFound(
            f"There is no dataset {', '.join(sorted(missing))} in this repository.",
            kind="dataset",
            remedy=f"It has {', '.join(sorted(found)) or 'none'}.",
        )
    if not found:
        raise NotFound("There is no snapshot to restore.", kind="snapshot", remedy="List what there is.")
    wanted = [item for name, item in found.items() if selection.wants(name)]
    return sorted(wanted, key=lambda item: (item.snapshot.tier, item.snapshot.dataset))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a dataset goes: a folder, and for a database loaded into a path of its own, that path."""

    folder: Path
    database: Path | None
    merge: bool


def _places(
    snapshots: Sequence[Committed], target: Path | None, into: Mapping[str, Source], overwrite: bool
) -> dict[str, Place]:
    """Every place is looked at before the first byte is written. Conflict, InvalidInput, Unsupported."""
    unknown = set(into) - {item.snapshot.dataset for item in snapshots}
    if unknown:
        raise NotFound(
            f"`into` names {', '.join(sorted(unknown))}, which is not restored.",
            kind="dataset",
            remedy="Leave it out, or restore that dataset too.",
        )
    places = {}
    for item in snapshots:
        name = item.snapshot.dataset
        source = into.get(name)
        if source is None and target is None:
            raise InvalidInput(f"There is no place to restore {name} to.", remedy="Give a target folder.")
        if source is None:
            assert target is not None
            places[name] = _folder(target / name, item, overwrite)
        elif source.kind != item.snapshot.source:
            raise Unsupported(
                f"{name} is a backup of kind {item.snapshot.source} and cannot be loaded into {source.kind}.",
                remedy="Give a source of the same kind, or restore to a folder.",
            )
        elif isinstance(source, SQLite):
            path = source.location()
            if path.exists() and not overwrite:
                raise _not_empty(path)
            places[name] = Place(path.with_name(f"{path.name}{MARKER}"), path, False)
        elif isinstance(source, Files):
            places[name] = _folder(source.location(), item, overwrite)
        else:
            raise Unsupported(f"Nothing can be restored into a {source.kind}.", remedy="Restore to a folder.")
    return places


def _folder(folder: Path, item: Committed, overwrite: bool) -> Place:
    marker = _marker(folder)
    if os.path.lexists(folder) and not folder.is_dir():
        raise Conflict(
            f"{folder} is a file, and a folder has to be there.",
            remedy="Move it away, or choose another target folder.",
        )
    for parent in folder.parents:
        if os.path.lexists(parent):
            if not parent.is_dir():
                raise Conflict(f"{parent} is a file, not a folder.", remedy="Choose another target folder.")
            break
    occupied = folder.is_dir() and bool(os.listdir(folder))
    resumed = occupied and marker.is_file() and marker.read_text("ascii", "replace") == item.transaction.hex()
    if occupied and not resumed and not overwrite:
        raise _not_empty(folder)
    return Place(folder, None, occupied)


def _not_empty(path: Path) -> Conflict:
    return Conflict(
        f"{path} is there already and was not touched.",
        kind="target-not-empty",
        remedy="Choose an empty folder, or pass overwrite=True.",
    )


def _mark(folder: Path, item: Committed) -> Path:
    """Say beside the folder that a restore is under way, and of what. StorageFailed."""
    marker = _marker(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(item.transaction.hex(), "ascii")
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StorageFailed(
            f"{folder.parent} cannot be written to: {os.strerror(error.errno or errno.EIO)}.",
            kind="full" if full else "storage-denied",
            remedy="Free some space there, or choose another target folder.",
            location=str(folder.parent),
        ) from error
    return marker


def _marker(folder: Path) -> Path:
    return folder.with_name(folder.name + MARKER)


@dataclass(slots=True)
class _Outcome:
    committed: Committed
    place: Place
    whole: bool = True
    bytes: int = 0
    files: int = 0
    facts: Mapping[str, object] | None = None

    def result(self, snapshot: object, reporter: Reporter) -> DatasetResult:
        record = self.committed.snapshot
        return DatasetResult(
            name=record.dataset,
            tier=record.tier,
            snapshot=snapshot,  # type: ignore[arg-type]
            complete=self.whole,
            bytes=self.bytes,
            files=self.files,
            usable_after=reporter.elapsed if self.whole else None,
            path=self.place.database or self.place.folder,
            facts=self.facts or {},
        )


def _dataset(
    blocks: BlockReader, item: Committed, place: Place, selection: Selection, reporter: Reporter, overwrite: bool
) -> _Outcome:
    """Restore one dataset. What is lost is a finding; what stops everything is raised."""
    reporter.tell("dataset", f"Restoring {item.snapshot.dataset}.")
    outcome = _Outcome(item, place)
    found_before = len(reporter.findings)
    marker = _mark(place.folder, item)
    target = Target(place.folder, merge=place.merge, sync=place.database is not None)
    restorer = _Restorer(SnapshotReader(blocks, item.snapshot), target, reporter, outcome)
    try:
        restorer.run(selection.filter(item.snapshot.dataset))
        target.close()
    except BaseException:
        target.abandon()
        raise
    for finding in target.findings:
        reporter.find(finding)
    if not item.snapshot.complete:
        reporter.find(
            Finding(
                code="snapshot-incomplete",
                severity="warning",
                subject=item.snapshot.dataset,
                message=f"Some files of {item.snapshot.dataset} could not be read when it was backed up.",
                remedy="Take them from an earlier snapshot.",
            )
        )
    outcome.whole = all(finding.severity != "critical" for finding in reporter.findings[found_before:])
    if outcome.whole:
        _verify(item, place, outcome, reporter)
    if outcome.whole and place.database is not None:
        _move_database(place, overwrite)
    if outcome.whole:
        marker.unlink(missing_ok=True)
    return outcome


def _verify(item: Committed, place: Place, outcome: _Outcome, reporter: Reporter) -> None:
    """Ask the restored dataset itself whether it is whole."""
    if item.snapshot.source != SQLite.kind:
        return
    try:
        rows = item.snapshot.facts.get("rows")
        count = list(rows) if isinstance(rows, dict) else []
        names = [os.fsencode(path.name) for path in place.folder.iterdir()]
        source = SQLite(place.folder / "database", name=item.snapshot.dataset, count=count)
        outcome.facts = source.verify(place.folder, names)
    except SourceFailed as error:
        outcome.whole = False
        reporter.find(
            Finding(
                code="check-failed",
                severity="critical",
                subject=item.snapshot.dataset,
                message=error.message,
                remedy="Restore an earlier snapshot of it, and keep this one to look at.",
            )
        )


def _move_database(place: Place, overwrite: bool) -> None:
    """The verified copy takes its place in one step; what a replaced database left beside itself goes first."""
    assert place.database is not None
    (restored,) = [path for path in place.folder.iterdir() if path.is_file()]
    if overwrite:
        for tail in ("-wal", "-shm", "-journal"):
            place.database.with_name(place.database.name + tail).unlink(missing_ok=True)
    os.replace(restored, place.database)
    place.folder.rmdir()


class _Restorer:
    """Brings one snapshot's content to a target, window after window."""

    def __init__(self, reader: SnapshotReader, target: Target, reporter: Reporter, outcome: _Outcome) -> None:
        self._reader = reader
        self._target = target
        self._reporter = reporter
        self._outcome = outcome
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
                self._outcome.files += entry.kind == EntryKind.FILE
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
        self._outcome.bytes += done.total
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
