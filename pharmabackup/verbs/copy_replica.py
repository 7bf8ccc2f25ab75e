"""Copy to a replica: same id, same keys, other storage. Sealed packs move as they are; no reading key is needed."""

from __future__ import annotations

from dataclasses import dataclass, field

from pharmabackup import ids
from pharmabackup.engine.carrying import Carrier, StoredRecords, copy_keys
from pharmabackup.engine.grants import COLLECTORS, WRITERS
from pharmabackup.engine.history import Committed, History, Said
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.index import Index
from pharmabackup.engine.reading import BlockReader, SnapshotReader
from pharmabackup.engine.transaction import Overtaken
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Conflict, Damaged, NotFound
from pharmabackup.events import Finding
from pharmabackup.format.transaction import Carried
from pharmabackup.results import sized
from pharmabackup.verbs.copy_plan import Outcome, Plan, plan_copy
from pharmabackup.verbs.findings import history_findings, keyring_finding
from pharmabackup.verbs.reporter import Reporter

GROUP_BYTES = 256 << 20  # of packs: so much is sent at most before it is made to count
GROUP_RECORDS = 1000
GROUP_RECORD_BYTES = 8 << 20
ATTEMPTS = 3  # when collections here or there are faster
TAKEN_REMEDY = (
    "Find out who put it there: one of the two keys was stolen. Revoke that slot, or delete that one object there by "
    "hand, and copy again."
)
TORN = Damaged(
    "What lies there under its name is damaged, and a device brings nothing in its place.",
    kind="snapshot",
    remedy="Copy as a maintainer or owner.",
)


class ReplicaCopy:
    """`chosen`: the only snapshots whose content is wanted; None: all. `anew`: what is there is read again.

    `only_marks`: names of the only marks that come, and no keys come then; None: all, and keys.
    """

    def __init__(
        self,
        source: Unlocked,
        blocks: BlockReader,
        target: Unlocked,
        reporter: Reporter,
        chosen: set[bytes] | None,
        *,
        only_marks: frozenset[str] | None = None,
        anew: bool = False,
    ) -> None:
        self._source = source
        self._blocks = blocks
        self._target = target
        self._reporter = reporter
        self._chosen = chosen
        self._only_marks = only_marks
        self._anew = anew
        self._source_anew = False
        self._after = 0  # the storage's time there of the last record that was brought
        self._outcome = Outcome()
        # a device may copy what it backed up itself, and the lists of keys that it needs for that
        self._own = None if target.keyring.role in COLLECTORS else target.keyring.slot

    def run(self) -> Outcome:
        """Conflict, NotPermitted, Damaged, StorageFailed, Cancelled."""
        if self._target.keyring.role not in COLLECTORS | WRITERS:
            raise self._target.not_permitted("copy to a replica", who=COLLECTORS | WRITERS)
        if self._only_marks is None:
            self._keys()
        index = Index(self._target, chunks=False)
        try:
            for left in reversed(range(ATTEMPTS)):
                try:
                    self._attempt(index)
                    break
                except NotFound:  # a collection has deleted what was being read
                    if not left:
                        raise
                    index.forget()  # it has packs that no segment names yet
                    self._reporter.tell("retrying", "A collection went on meanwhile; what is there is read again.")
                except _Spoilt as spoilt:
                    if self._source_anew:
                        raise spoilt.error from None
                    index.forget()
                    self._source_anew = True
        finally:
            index.close()
        return self._outcome

    def _keys(self) -> None:
        """Conflict when somebody changed who may do what in both places."""
        source, target = self._source, self._target
        source.renew()
        for name in copy_keys(source, target.storage):
            self._reporter.find(keyring_finding(name, target.storage.location))
        target.renewed()  # what counts there is judged by what has just come

    def _attempt(self, index: Index) -> None:
        here = load_history(self._source, anew=self._source_anew)
        there = load_history(self._target, anew=self._anew)
        for finding in history_findings(here, self._source.storage.location):
            if finding not in self._reporter.findings:
                self._reporter.find(finding)
        self._records = StoredRecords(self._source, here)
        if self._only_marks is None and self._own is None:
            self._forgotten_there(here, there)
        self._blocks.refresh()
        plan = plan_copy(here, there, self._chosen, self._only_marks, own=self._own)
        self._outcome.failed = [(item, _refused(other)) for item, other in plan.refused]
        self._outcome.failed += [(item, TORN) for item in plan.damaged]
        for said, other in plan.contested:
            self._contested(said, other)
        while plan.records or plan.marks:
            plan = self._group(index, there, plan)

    def _forgotten_there(self, here: History, there: History) -> None:
        """A forget's delay runs in each place by itself, so that an undoing here may come too late there."""
        known, gone = {item.transaction for item in there.committed.values()} - there.absent, there.forgotten()
        count = len((known & gone & set(here.committed)) - here.forgotten())
        if count and not any(finding.code == "snapshot-forgotten-there" for finding in self._reporter.findings):
            self._reporter.find(
                Finding(
                    code="snapshot-forgotten-there",
                    severity="warning",
                    subject="snapshots",
                    message=f"{count} snapshots that are kept here are forgotten there.",
                    remedy="They stay here. Call snapshots back in both places.",
                    location=self._target.storage.location,
                )
            )

    def _contested(self, said: Said, other: Said) -> None:
        if not any(finding.subject == ids.mark_name(said.id) for finding in self._reporter.findings):
            self._reporter.find(
                Finding(
                    code="mark-not-copied",
                    severity="critical",
                    subject=ids.mark_name(said.id),
                    message=f"What {said.slot.name!r} said here ({said.mark.kind}) was not copied: there another "
                    f"record has its name, which {other.slot.name!r} signed. No forgets and releases were copied.",
                    remedy=TAKEN_REMEDY,
                    location=self._target.storage.location,
                )
            )

    def _group(self, index: Index, there: History, plan: Plan) -> Plan:
        """Bring some, make them count, and say what is left. Conflict, NotFound, StorageFailed."""
        for left in reversed(range(ATTEMPTS)):
            carrier = Carrier(self._source, self._blocks, self._target, index, self._step)
            group = _Group()
            records = list(plan.records)
            marks = list(plan.marks)
            while marks and not group.is_full():
                group.add(marks[0], self._stored(marks.pop(0)), gone=False)
            while records and carrier.bytes_sent < GROUP_BYTES and not group.is_full():
                self._record(carrier, there, *records.pop(0), group)
            self._reporter.check_cancelled()
            try:
                if group.items:
                    more = bool(records or marks)
                    self._after = carrier.decide(group.items, after=self._after, more=more)
                break
            except Overtaken:
                if not left:
                    raise Conflict(
                        "Collections kept overtaking the copy.",
                        kind="already-running",
                        remedy="Copy again when they have ended; what was sent is used.",
                    ) from None
                self._reporter.tell("retrying", "A collection was faster; the copy goes on from what is there.")
        self._outcome.done += group.outcome.done
        self._outcome.failed += group.outcome.failed
        if group.outcome.done:
            self._reporter.files += sum(item.snapshot.files for item, _ in group.outcome.done)
            sent = f"{len(group.outcome.done)} snapshots are safe: {sized(carrier.bytes_sent)} sent."
            self._reporter.tell("committed", sent)
        return Plan(records, marks)

    def _stored(self, name: str) -> bytes:
        try:
            return self._records.get(name)
        except Damaged as error:
            raise _Spoilt(error) from None

    def _step(self, size: int) -> None:
        self._reporter.step(size, 0)

    def _record(self, carrier: Carrier, there: History, item: Committed, content: bool, group: _Group) -> None:
        """One snapshot's record, and what it relies on if its content is wanted. NotFound, StorageFailed."""
        before = carrier.bytes_sent
        if content:
            try:
                carrier.bring(SnapshotReader(self._blocks, item.snapshot).relied(), item.snapshot.domain)
            except Damaged as error:
                group.outcome.failed.append((item, error))
                content = False
                if ids.fate_name(item.transaction) in there.vanished:
                    return  # its content may be there, and a record without content would give it up
            else:
                group.outcome.done.append((item, carrier.bytes_sent - before))
        known = there.committed.get(item.transaction)
        if content or known is None or known.hash != item.hash:
            name = ids.fate_name(item.transaction)
            group.add(name, self._stored(name), gone=not content)


class _Spoilt(Exception):
    """A record that this machine has verified is damaged now: all are read anew."""

    def __init__(self, error: Damaged) -> None:
        super().__init__(error)
        self.error = error


def _refused(other: Committed | None) -> Damaged:
    """Why a snapshot cannot count there. `other`: what has its name there; None: an abort."""
    if other is not None:
        return Damaged(
            f"There another record has its name, which {other.slot.name!r} signed.",
            kind="record-contested",
            remedy=TAKEN_REMEDY,
        )
    return Damaged(
        "There its transaction was given up, as happens where a folder was copied while a backup ran.",
        kind="history-forked",
        remedy="Make a new replica with replica_of and copy to that.",
    )


@dataclass(slots=True)
class _Group:
    """What one transaction brings."""

    items: list[Carried] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)
    _bytes: int = 0

    def add(self, name: str, stored: bytes, *, gone: bool) -> None:
        self.items.append(Carried(name, stored, gone))
        self._bytes += len(stored)

    def is_full(self) -> bool:
        return len(self.items) >= GROUP_RECORDS or self._bytes >= GROUP_RECORD_BYTES
