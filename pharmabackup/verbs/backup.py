"""Back up: one stable view of all sources, then dataset after dataset, each committed by itself, tier by tier."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

from pharmabackup import ids
from pharmabackup.clock import now_ns, steady_ns
from pharmabackup.engine import historycache
from pharmabackup.engine.dataset import DatasetSink, open_cache
from pharmabackup.engine.filecache import Remembered
from pharmabackup.engine.grants import WRITERS
from pharmabackup.engine.history import Committed
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.index import Index
from pharmabackup.engine.listing import one_listing
from pharmabackup.engine.packs import Sent
from pharmabackup.engine.transaction import Overtaken, Transaction, survey
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Error, Incomplete, InvalidInput, NotFound, SourceFailed, StorageFailed
from pharmabackup.events import Finding, Progress
from pharmabackup.format.transaction import HEADS_MAX, Head, Snapshot
from pharmabackup.format.wire import TEXT_MAX
from pharmabackup.results import DatasetResult, Report, sized
from pharmabackup.sources.base import Source, View
from pharmabackup.storage.disks import on_one_disk
from pharmabackup.verbs.findings import clock_findings, history_findings
from pharmabackup.verbs.locks import lock_findings
from pharmabackup.verbs.reporter import Reporter

ATTEMPTS = 3  # when collections overtake a transaction


@dataclass(slots=True)
class _Cut:
    """A source whose view was taken, and when."""

    source: Source
    view: View | None
    failed: SourceFailed | None
    steady: int
    stack: ExitStack


def backup(
    unlocked: Unlocked,
    sources: Sequence[Source],
    *,
    show: Callable[[Committed], object],
    reason: str | None,
    freeze: AbstractContextManager[object] | None,
    progress: Progress | None,
    cancel: threading.Event | None,
    sent: Sent | None = None,
) -> Report:
    """One snapshot of each source; `sent` hears of each pack. Incomplete, InvalidInput, StorageFailed, Cancelled."""
    _check_sources(unlocked, sources)
    if reason is not None and len(reason) > TEXT_MAX:
        raise InvalidInput(
            f"The reason is longer than {TEXT_MAX:,} characters.", remedy="Say it in a sentence or two."
        )
    reporter = Reporter("backup", progress, cancel)
    ordered = sorted(sources, key=lambda source: source.tier)
    index = Index(unlocked)
    try:
        with ExitStack() as everything:
            scratch = _scratch(everything)
            cuts = _take_views(ordered, everything, scratch, freeze)
            run = _Run(unlocked, index, reporter, ids.new_id(), reason, show, sent)
            run.prepare(ordered)
            try:
                for cut in cuts:
                    run.dataset(cut)
            finally:
                run.remember()
            if unlocked.storage.lanes > 1:  # elsewhere it was looked for after each
                run.look_for_revocation()
            index.save()
    finally:
        index.close()
    return run.result()


def _scratch(everything: ExitStack) -> Path:
    """A private folder for what sources cannot avoid to have on disk. Without one, those that need it say so."""
    try:
        return Path(everything.enter_context(tempfile.TemporaryDirectory(prefix="pharmabackup-")))
    except OSError:
        return Path(tempfile.gettempdir())


def _check_sources(unlocked: Unlocked, sources: Sequence[Source]) -> None:
    """What cannot be is refused before anything is written."""
    if unlocked.keyring.role not in WRITERS:
        raise unlocked.not_permitted("back up", who=WRITERS)
    if not sources:
        raise InvalidInput("There is nothing to back up.", remedy="Give at least one source.")
    names: set[str] = set()
    root = unlocked.storage.local_root()
    for source in sources:
        if not isinstance(source, Source):
            raise InvalidInput(f"{source!r} is no source.", remedy="Give pb.Files(...), pb.SQLite(...) or another.")
        if source.name.casefold() in names:
            raise InvalidInput(
                f"Two sources have the name {source.name!r}.", kind="name", remedy="Give one of them another name=."
            )
        names.add(source.name.casefold())
        location = source.location()
        if root is None or location is None:
            continue
        inside = os.path.realpath(root)
        outside = os.path.realpath(location)
        if os.path.commonpath([inside, outside]) in (inside, outside) and _same_drive(inside, outside):
            raise InvalidInput(
                f"The repository and the source {source.name!r} lie inside one another.",
                remedy="Choose a repository folder that is on another disk, outside of what is backed up.",
            )


def _same_drive(one: str, other: str) -> bool:
    return os.path.splitdrive(one)[0].casefold() == os.path.splitdrive(other)[0].casefold()


def _take_views(
    sources: Sequence[Source], everything: ExitStack, scratch: Path, freeze: AbstractContextManager[object] | None
) -> list[_Cut]:
    """All views within the caller's pause, so that they are of one instant."""
    cuts = []
    with freeze or nullcontext():
        for source in sources:
            stack = everything.enter_context(ExitStack())
            steady = steady_ns()
            try:
                view = stack.enter_context(source.view(scratch=scratch))
                cuts.append(_Cut(source, view, None, steady, stack))
            except SourceFailed as error:
                cuts.append(_Cut(source, None, error, steady, stack))
    return cuts


class _Run:
    """The snapshots of one `backup` call."""

    def __init__(
        self,
        unlocked: Unlocked,
        index: Index,
        reporter: Reporter,
        run: bytes,
        reason: str | None,
        show: Callable[[Committed], object],
        sent: Sent | None,
    ) -> None:
        self._sent = sent
        self._unlocked = unlocked
        self._index = index
        self._reporter = reporter
        self._run = run
        self._reason = reason
        self._show = show
        self._written: dict[str, historycache.Remembered] = {}  # fates
        self._roster = b""  # the hash of the one under which they were written
        self._results: dict[str, DatasetResult] = {}
        self._failed: list[str] = []
        self._now: int | None = None  # by the storage's clock, when something was last committed

    def prepare(self, sources: Sequence[Source]) -> None:
        listing = one_listing(self._unlocked.storage, self._unlocked.state)
        self._history = load_history(self._unlocked, listing=listing)
        self._heads = self._history.heads(self._unlocked.slot.id)[:HEADS_MAX]
        self._sequence = self._history.next_sequence(self._unlocked.slot.id)
        self._ground = survey(self._unlocked, self._index, listing=listing)
        told = history_findings(self._history, self._unlocked.storage.location)
        for finding in (*told, *lock_findings(self._unlocked, lambda: self._history)):  # before anything relies on it
            self._reporter.find(finding)
        for source in sources:
            if on_same_device(self._unlocked, source):
                self._reporter.find(
                    Finding(
                        code="same-device",
                        severity="critical",
                        subject=source.name,
                        message=f"The backup of {source.name} lies on the disk that holds the data itself.",
                        remedy="Back up to another disk too: if this one breaks, both are lost.",
                        location=self._unlocked.storage.location,
                    )
                )

    def dataset(self, cut: _Cut) -> None:
        """Back up one source; what goes wrong with it does not stop the others."""
        reporter, source = self._reporter, cut.source
        reporter.dataset, reporter.tier = source.name, source.tier
        reporter.tell("dataset", f"Backing up {source.name}.")
        try:
            with cut.stack:
                if cut.failed is not None:
                    raise cut.failed
                for left in reversed(range(ATTEMPTS)):
                    try:
                        self._attempt(cut)
                        break
                    except (Overtaken, NotFound) as error:  # what was written is condemned, or deleted already
                        if not left:
                            raise self._overtaken(source, error) from error
                        reporter.tell("retrying", f"A collection was faster; {source.name} is read again.")
                        self._ground = survey(self._unlocked, self._index)
        except SourceFailed as error:
            self._fail(source, error)

    def _overtaken(self, source: Source, error: Overtaken | NotFound) -> Error:
        """Why it was not backed up, though it was tried several times."""
        if isinstance(error, NotFound):
            return StorageFailed(
                f"The storage did not keep what was written of {source.name}. {error.message}",
                kind="lost-write",
                retryable=True,
                location=self._unlocked.storage.location,
                remedy="Run it again; if it happens again, check that disk or ask the storage's provider.",
            )
        return SourceFailed(
            f"Collections kept overtaking the backup of {source.name}.",
            kind="overtaken",
            remedy="Run it again when the collection has ended.",
            dataset=source.name,
        )

    def _fail(self, source: Source, error: SourceFailed) -> None:
        self._failed.append(source.name)
        self._reporter.find(
            Finding(
                code="dataset-failed",
                severity="critical",
                subject=source.name,
                message=f"{source.name} was not backed up: {error.message}",
                remedy=error.remedy,
            )
        )
        self._results[source.name] = DatasetResult(
            name=source.name, tier=source.tier, snapshot=None, complete=False, bytes=0, files=0, facts={}
        )

    def _attempt(self, cut: _Cut) -> None:
        unlocked, reporter, source = self._unlocked, self._reporter, cut.source
        transaction = Transaction(unlocked, self._ground, self._sent)
        sink: DatasetSink | None = None
        remembered: Remembered | None = None
        try:
            remembered = self._remembered(source.name)
            sink = DatasetSink(unlocked, transaction, source.name, remembered, reporter.step)
            assert cut.view is not None
            facts = cut.view.dump(sink)
            dumped = sink.finish()
            transaction.publish()
            info, intent = transaction.pin(dumped.relied)
            snapshot = Snapshot(
                run=self._run,
                dataset=source.name,
                tier=source.tier,
                source=source.kind,
                domain=unlocked.domain,
                reason=self._reason,
                time=self._time(info.modified),
                age=max(0, steady_ns() - cut.steady),
                device_time=now_ns(),
                sequence=self._sequence,
                heads=self._heads,
                files=dumped.files,
                size=dumped.size,
                added=transaction.bytes_written,
                facts=dict(facts),
                complete=sink.complete,
                findings=dumped.findings,
                chunks=dumped.chunks,
                table=dumped.table,
                recipe=dumped.recipe,
                manifest=dumped.manifest,
            )
            reporter.check_cancelled()
            stored, self._roster = transaction.commit(intent, snapshot), unlocked.roster_hash
        except BaseException:
            if sink is not None:
                sink.cache.discard()
            transaction.abandon()
            raise
        finally:
            if remembered is not None:
                remembered.close()
        transaction.close()
        self._written[ids.fate_name(transaction.id)] = stored
        if unlocked.storage.lanes == 1:
            self.look_for_revocation()
        sink.remember()
        self._heads = (Head(unlocked.slot.id, transaction.id, stored.hash),)
        self._sequence += 1
        self._now = info.modified
        committed = Committed(transaction.id, stored.hash, unlocked.slot, snapshot)
        self._history.committed[transaction.id] = committed
        for finding in sink.told:
            reporter.find(finding)
        shown = self._show(committed)
        self._results[source.name] = DatasetResult(
            name=source.name,
            tier=source.tier,
            snapshot=shown,  # type: ignore[arg-type]
            complete=sink.complete,
            bytes=snapshot.size,
            files=snapshot.files,
            added=snapshot.added,
            facts=snapshot.facts,
        )
        reporter.tell("committed", f"{source.name} is safe: {sized(snapshot.added)} added.")

    def look_for_revocation(self) -> None:
        """Whoever was revoked before his last snapshot is told: it does not count. WrongCredential."""
        if self._written:
            self._unlocked.renewed()

    def remember(self) -> None:
        """What was committed, for the next run of this machine, which reads it where that costs nothing."""
        historycache.remember_own(self._unlocked, self._written, self._roster)

    def _time(self, modified: int) -> int:
        """The storage's time, and never one before that of the last snapshot, though clocks are set back."""
        before = (self._history.committed[head.transaction].snapshot.time for head in self._heads)
        return max([modified, *before])

    def _remembered(self, dataset: str) -> Remembered | None:
        """What this machine remembers, if that snapshot is still there and still counts."""
        found = open_cache(self._unlocked, dataset).load()
        if found is None or found.transaction not in self._history.committed:
            return None
        return None if found.transaction in self._history.forgotten() else found

    def result(self) -> Report:
        """The report. Incomplete when a dataset is missing or not whole."""
        if self._now is not None:
            for finding in clock_findings(self._history, self._now, self._unlocked.storage.location):
                self._reporter.find(finding)
        for pack, error in sorted(self._index.damaged.items()):
            self._reporter.find(
                Finding(
                    code="pack-damaged",
                    severity="warning",
                    subject=ids.pack_name(pack),
                    message=f"{error.message} What it holds was not looked for; snapshots that need it may be hurt.",
                    remedy="Run check to see what is affected.",
                    location=self._unlocked.storage.location,
                )
            )
        for segment, error in sorted(self._index.changed.items()):
            self._reporter.find(
                Finding(
                    code="index-damaged",
                    severity="warning",
                    subject=ids.index_name(segment),
                    message=f"{error.message} It was passed over; what it said stands in the packs.",
                    remedy=error.remedy,
                    location=self._unlocked.storage.location,
                )
            )
        report = self._reporter.report(self._results)
        partial = [name for name, result in self._results.items() if not result.complete and name not in self._failed]
        if not self._failed and not partial:
            return report
        total = len(self._results)
        parts = []
        if self._failed:
            parts.append(f"{len(self._failed)} of {total} datasets not backed up: {', '.join(self._failed)}.")
        if partial:
            parts.append(f"Parts of {', '.join(partial)} could not be read and are not in the backup.")
        safe = total - len(self._failed) - len(partial)
        if safe:
            parts.append(f"The other {safe} are safe." if safe > 1 else "The other one is safe.")
        raise Incomplete(
            " ".join(parts),
            kind="backup",
            remedy="Look at the findings, mend what they name, and back up again.",
            findings=report.findings,
            result=report,
        )


def on_same_device(unlocked: Unlocked, source: Source) -> bool:
    """Whether the repository lies on the disk that holds the source, or on another part of it."""
    root, location = unlocked.storage.local_root(), source.location()
    if root is None or location is None:
        return False
    try:
        return on_one_disk(root, location)
    except OSError:
        return False
