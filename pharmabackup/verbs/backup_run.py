"""The snapshots of one backup: dataset after dataset is read, and committed by itself.

Where requests take a while, a dataset is committed beside the reading of those after it. Commits keep their order,
and nothing of a dataset is committed when one before it was not: what it found stored may be of that one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from threading import get_ident
from typing import Any

from pharmabackup import ids
from pharmabackup.clock import now_ns, steady_ns
from pharmabackup.engine import historycache
from pharmabackup.engine.dataset import DatasetSink, Dumped, open_cache
from pharmabackup.engine.filecache import Remembered
from pharmabackup.engine.history import Committed
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.index import Index
from pharmabackup.engine.listing import one_listing
from pharmabackup.engine.packs import Sending
from pharmabackup.engine.transaction import Overtaken, Transaction, survey
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Error, NotFound, SourceFailed, StorageFailed
from pharmabackup.events import Finding
from pharmabackup.format.transaction import HEADS_MAX, Head, Snapshot
from pharmabackup.results import DatasetResult, Report, sized
from pharmabackup.sources.base import Source, View
from pharmabackup.verbs.findings import clock_findings, history_findings, index_findings, same_device_findings
from pharmabackup.verbs.locks import lock_findings
from pharmabackup.verbs.reporter import Reporter

ATTEMPTS = 3  # when collections overtake a transaction
AHEAD = 2  # datasets that were read and wait for their commit, at most, while the next is read


@dataclass(slots=True)
class Cut:
    """A source whose view was taken, and when."""

    source: Source
    view: View | None
    failed: SourceFailed | None
    steady: int
    stack: ExitStack


@dataclass(frozen=True, slots=True)
class _Read:
    """A dataset that was read, and is not committed yet."""

    cut: Cut
    transaction: Transaction
    sink: DatasetSink
    facts: dict[str, Any]
    dumped: Dumped


class Run:
    """The snapshots of one `backup` call."""

    def __init__(
        self,
        unlocked: Unlocked,
        index: Index,
        reporter: Reporter,
        run: bytes,
        reason: str | None,
        show: Callable[[Committed], object],
        sending: Sending,
    ) -> None:
        self._sending = sending
        self._unlocked = unlocked
        self._index = index
        self._reporter = reporter
        self._run = run
        self._reason = reason
        self._show = show
        self._written: dict[str, historycache.Remembered] = {}  # fates
        self._roster = b""  # the hash of the one under which they were written
        self._results: dict[str, DatasetResult] = {}
        self._now: int | None = None  # by the storage's clock, when something was last committed
        self._under_way: deque[tuple[_Read, Future[Committed]]] = deque()
        self._broken: BaseException | None = None  # why one was not committed, and those after it are not
        self._trouble: BaseException | None = None  # what came of those under way, until it is dealt with
        self._thread = get_ident()
        self._safe: list[Cut] = []

    def prepare(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        listing = one_listing(self._unlocked.storage, self._unlocked.state)
        self._history = load_history(self._unlocked, listing=listing)
        self._heads = self._history.heads(self._unlocked.slot.id)[:HEADS_MAX]
        self._sequence = self._history.next_sequence(self._unlocked.slot.id)
        self._ground = survey(self._unlocked, self._index, listing=listing)
        for finding in (
            *history_findings(self._history, self._unlocked.storage.location),
            *lock_findings(self._unlocked, lambda: self._history),  # before anything relies on it
            *same_device_findings(self._unlocked, sources),
        ):
            self._reporter.find(finding)

    # ------------------------------------------------------------ datasets, and their order

    def datasets(self, cuts: Sequence[Cut]) -> None:
        """Back them up; what goes wrong with one does not stop the others."""
        if self._unlocked.storage.lanes > 1:
            cuts = self._side_by_side(cuts)
        for cut in cuts:
            self._alone(cut)

    def _side_by_side(self, cuts: Sequence[Cut]) -> Sequence[Cut]:
        """Commit each beside the reading of those after it. What is left when a collection was faster than one."""
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="pharmabackup-dataset") as committer:
                for cut in cuts:
                    self._begin(cut)
                    try:
                        read = self._read(cut)
                    except SourceFailed as error:
                        self._take_committed(left=AHEAD)  # it may have swallowed why another was not committed
                        self._fail(cut, error)
                    else:
                        self._hand_over(read, committer)
                        del read
                        self._take_committed(left=AHEAD)
                self._take_committed(left=0)
        except (Overtaken, NotFound):  # what was written is condemned, or deleted already
            pass
        finally:
            self._remember_rest()
        left = [cut for cut in cuts if cut.source.name not in self._results]
        if left:
            self._survey_again(left[0])
        return left

    def _hand_over(self, read: _Read, committer: ThreadPoolExecutor) -> None:
        try:
            self._under_way.append((read, committer.submit(self._commit, read)))
        except BaseException:
            read.sink.cache.discard()
            read.transaction.abandon()
            raise

    def _take_committed(self, *, left: int) -> None:
        """What is to be done of those that are committed; wait until no more than so many are `left`.

        Raises what went wrong with them, and raises it again: a source may swallow it.
        """
        if self._trouble is not None:
            raise self._trouble
        try:
            while self._under_way and (len(self._under_way) > left or self._under_way[0][1].done()):
                read, commit = self._under_way[0]
                committed = commit.result()
                self._under_way.popleft()
                self._committed(read, committed)
        except BaseException as error:
            self._trouble = error
            raise

    def _remember_rest(self) -> None:
        """Whatever went wrong, what was committed is remembered. All are done."""
        while self._under_way:
            read, commit = self._under_way.popleft()
            with suppress(Exception):  # they failed for what is on its way up, or are read again
                self._committed(read, commit.result())
        self._trouble = self._broken = None

    def _step(self, size: int, files: int) -> None:
        self._reporter.step(size, files)
        if get_ident() == self._thread:  # a source may have threads, and views are let go by this one
            try:
                self._take_committed(left=AHEAD)
            except (Error, Overtaken):
                raise
            except Exception:  # noqa: BLE001, S110  (a source would take an OSError for its own: it is raised later)
                pass

    def _alone(self, cut: Cut) -> None:
        """Back up one source, and again where collections are faster."""
        self._begin(cut)
        try:
            read, committed = self._tried(cut)
        except SourceFailed as error:
            self._fail(cut, error)
        else:
            self._committed(read, committed)

    def _tried(self, cut: Cut) -> tuple[_Read, Committed]:
        for left in reversed(range(ATTEMPTS)):
            try:
                read = self._read(cut)
                return read, self._commit(read)
            except (Overtaken, NotFound) as error:  # what was written is condemned, or deleted already
                self._broken = None
                if not left:
                    self._ground = survey(self._unlocked, self._index)  # for those after it
                    raise _overtaken(cut.source, error, self._unlocked.storage.location) from error
                self._survey_again(cut)
        raise AssertionError

    def _begin(self, cut: Cut) -> None:
        self._reporter.dataset, self._reporter.tier = cut.source.name, cut.source.tier
        self._reporter.tell("dataset", f"Backing up {cut.source.name}.")

    def _survey_again(self, cut: Cut) -> None:
        self._reporter.dataset, self._reporter.tier = cut.source.name, cut.source.tier
        self._reporter.tell("retrying", f"A collection was faster; {cut.source.name} is read again.")
        self._ground = survey(self._unlocked, self._index)

    def _fail(self, cut: Cut, error: SourceFailed) -> None:
        with suppress(SourceFailed):  # it has failed already
            cut.stack.__exit__(type(error), error, error.__traceback__)
        source = cut.source
        self._reporter.find(_told("dataset-failed", source, "was not backed up", error))
        self._results[source.name] = DatasetResult(
            name=source.name, tier=source.tier, snapshot=None, complete=False, bytes=0, files=0, facts={}
        )

    # ------------------------------------------------------------ one dataset

    def _read(self, cut: Cut) -> _Read:
        """Into a transaction of its own. SourceFailed, and what the storage raises."""
        if cut.failed is not None:
            raise cut.failed
        assert cut.view is not None
        unlocked, name = self._unlocked, cut.source.name
        transaction = Transaction(unlocked, self._ground, self._sending)
        sink: DatasetSink | None = None
        remembered: Remembered | None = None
        try:
            remembered = self._remembered(name)
            sink = DatasetSink(unlocked, transaction, name, remembered, self._step)
            facts = dict(cut.view.dump(sink))
            dumped = sink.finish()
            transaction.blocks.end()
            return _Read(cut, transaction, sink, facts, dumped)
        except BaseException:
            if sink is not None:
                sink.cache.discard()
            transaction.abandon()
            raise
        finally:
            if remembered is not None:
                remembered.close()

    def _commit(self, read: _Read) -> Committed:
        """On one thread for all of a backup, in their order. Overtaken; what the storage raises."""
        unlocked, transaction, source, dumped = self._unlocked, read.transaction, read.cut.source, read.dumped
        try:
            if self._broken is not None:
                raise self._broken
            self._reporter.check_cancelled()
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
                age=max(0, steady_ns() - read.cut.steady),
                device_time=now_ns(),
                sequence=self._sequence,
                heads=self._heads,
                files=dumped.files,
                size=dumped.size,
                added=transaction.bytes_written,
                facts=read.facts,
                complete=read.sink.complete,
                findings=dumped.findings,
                chunks=dumped.chunks,
                table=dumped.table,
                recipe=dumped.recipe,
                manifest=dumped.manifest,
            )
            self._reporter.check_cancelled()
            stored, self._roster = transaction.commit(intent, snapshot), unlocked.roster_hash
        except BaseException as error:
            read.sink.cache.discard()
            if self._broken is not None and isinstance(error, StorageFailed):
                transaction.drop()  # the storage failed already, patiently
            else:
                transaction.abandon()
            self._broken = error
            raise
        transaction.close()
        self._written[ids.fate_name(transaction.id)] = stored
        self._heads = (Head(unlocked.slot.id, transaction.id, stored.hash),)
        self._sequence += 1
        self._now = info.modified
        committed = Committed(transaction.id, stored.hash, unlocked.slot, snapshot)
        self._history.committed[transaction.id] = committed
        return committed

    def _committed(self, read: _Read, committed: Committed) -> None:
        """What comes of it here, and is told to whoever listens. The thread that took the views."""
        reporter, source, snapshot = self._reporter, read.cut.source, committed.snapshot
        self._results[source.name] = DatasetResult(
            name=source.name,
            tier=source.tier,
            snapshot=self._show(committed),  # type: ignore[arg-type]
            complete=read.sink.complete,
            bytes=snapshot.size,
            files=snapshot.files,
            added=snapshot.added,
            facts=snapshot.facts,
        )
        now = reporter.dataset, reporter.tier
        reporter.dataset, reporter.tier = source.name, source.tier
        try:
            if self._unlocked.storage.lanes == 1:
                self.look_for_revocation()
            read.sink.remember()
            for finding in read.sink.told:
                reporter.find(finding)
            reporter.tell("committed", f"{source.name} is safe: {sized(snapshot.added)} added.")
            try:
                read.cut.stack.close()
            except SourceFailed as error:
                self._fail(read.cut, error)
            else:
                self._safe.append(read.cut)
                if read.cut.view is not None and read.cut.view.holds_back:
                    if self._unlocked.storage.lanes > 1:
                        self.look_for_revocation()
                    self.tell_sources()
        finally:
            reporter.dataset, reporter.tier = now

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

    # ------------------------------------------------------------ the end

    def look_for_revocation(self) -> None:
        """Whoever was revoked before his last snapshot is told: it does not count. WrongCredential."""
        if self._written:
            self._unlocked.renewed()

    def tell_sources(self) -> None:
        """What was committed counts: sources may let go of it."""
        told, self._safe = self._safe, []
        for cut in told:
            assert cut.view is not None
            try:
                cut.view.committed()
            except SourceFailed as error:
                what = "is safe, and its program could not be told so"
                self._reporter.find(_told("not-acknowledged", cut.source, what, error))

    def remember(self) -> None:
        """What was committed, for the next run of this machine, which reads it where that costs nothing."""
        historycache.remember_own(self._unlocked, self._written, self._roster)

    def result(self) -> Report:
        """The report, also when a dataset is missing or not whole."""
        location = self._unlocked.storage.location
        clocks = [] if self._now is None else clock_findings(self._history, self._now, location)
        for finding in (*clocks, *index_findings(self._index, location)):
            self._reporter.find(finding)
        return self._reporter.report({source.name: self._results[source.name] for source in self._sources})


def _told(code: str, source: Source, what: str, error: SourceFailed) -> Finding:
    message = f"{source.name} {what}: {error.message}"
    return Finding(code=code, severity="critical", subject=source.name, message=message, remedy=error.remedy)


def _overtaken(source: Source, error: Overtaken | NotFound, location: str) -> Error:
    """Why it was not backed up, though it was tried several times."""
    if isinstance(error, NotFound):
        return StorageFailed(
            f"The storage did not keep what was written of {source.name}. {error.message}",
            kind="lost-write",
            retryable=True,
            location=location,
            remedy="Run it again; if it happens again, check that disk or ask the storage's provider.",
        )
    return SourceFailed(
        f"Collections kept overtaking the backup of {source.name}.",
        kind="overtaken",
        remedy="Run it again when the collection has ended.",
        dataset=source.name,
    )
