"""Copy to a replica: same id, same keys, other storage. Sealed packs move as they are; no reading key is needed."""

from __future__ import annotations

from dataclasses import dataclass, field

from pharmabackup import ids
from pharmabackup.engine.carrying import Carrier, copy_objects, stored_record
from pharmabackup.engine.history import Committed, History, load_history
from pharmabackup.engine.index import Index
from pharmabackup.engine.reading import BlockReader, SnapshotReader
from pharmabackup.engine.transaction import Overtaken
from pharmabackup.engine.unlocked import COLLECTORS, Unlocked
from pharmabackup.errors import Conflict, Damaged, NotFound
from pharmabackup.events import Finding
from pharmabackup.format.transaction import Carried
from pharmabackup.results import sized
from pharmabackup.verbs.copy_plan import Outcome, Plan, plan_copy
from pharmabackup.verbs.findings import history_findings
from pharmabackup.verbs.reporter import Reporter

GROUP_BYTES = 256 << 20  # of packs: so much is sent at most before it is made to count
GROUP_RECORDS = 1000
GROUP_RECORD_BYTES = 8 << 20
ATTEMPTS = 3  # when collections here or there are faster


class ReplicaCopy:
    """`chosen`: the only snapshots whose content is wanted; None: all. `anew`: what is there is read again."""

    def __init__(
        self,
        source: Unlocked,
        blocks: BlockReader,
        target: Unlocked,
        reporter: Reporter,
        chosen: set[bytes] | None,
        *,
        anew: bool = False,
    ) -> None:
        self._source = source
        self._blocks = blocks
        self._target = target
        self._reporter = reporter
        self._chosen = chosen
        self._anew = anew
        self._outcome = Outcome()

    def run(self) -> Outcome:
        """Conflict, NotPermitted, Damaged, StorageFailed, Cancelled."""
        if self._target.keyring.role not in COLLECTORS:
            raise self._target.not_permitted("copy to a replica")
        self._keys()
        index = Index(self._target, chunks=False)
        try:
            for left in reversed(range(ATTEMPTS)):
                try:
                    self._attempt(index, first=left == ATTEMPTS - 1)
                    break
                except NotFound:  # a collection has deleted what was being read
                    if not left:
                        raise
                    self._reporter.tell("retrying", "A collection went on meanwhile; what is there is read again.")
        finally:
            index.close()
        return self._outcome

    def _keys(self) -> None:
        """First keyrings, then rosters: nobody may write for a key that no keyring there holds. Conflict."""
        source, target = self._source, self._target
        source.renew()
        for name in copy_objects(source.storage, target.storage, "keys"):
            self._reporter.find(
                Finding(
                    code="keyring-differs",
                    severity="warning",
                    subject=name,
                    message="A passphrase was changed both here and there; each location opens with its own.",
                    remedy="Change it once more here, and copy again.",
                    location=target.storage.location,
                )
            )
        if copy_objects(source.storage, target.storage, "roster"):
            raise Conflict(
                "The two locations do not have the same list of who may do what.",
                kind="history-forked",
                remedy="Find out who changed it where; nothing was copied.",
            )
        target.renew()

    def _attempt(self, index: Index, *, first: bool) -> None:
        here, there = load_history(self._source), load_history(self._target, anew=self._anew)
        if first:
            for finding in history_findings(here, self._source.storage.location):
                self._reporter.find(finding)
        self._forgotten_there(here, there)
        self._blocks.refresh()
        plan = plan_copy(here, there, self._chosen)
        self._outcome.failed = []
        while plan.records or plan.marks:
            plan = self._group(index, here, there, plan)

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

    def _group(self, index: Index, here: History, there: History, plan: Plan) -> Plan:
        """Bring some, make them count, and say what is left. Conflict, NotFound, StorageFailed."""
        for left in reversed(range(ATTEMPTS)):
            carrier = Carrier(self._source, self._blocks, self._target, index, self._step)
            group = _Group()
            records = list(plan.records)
            for name in plan.marks:
                group.add(name, stored_record(self._source, here, name), gone=False)
            while records and carrier.bytes_sent < GROUP_BYTES and not group.is_full():
                self._record(carrier, here, there, *records.pop(0), group)
            self._reporter.check_cancelled()
            try:
                if group.items:
                    carrier.decide(group.items)
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
        return Plan(records, [])

    def _step(self, size: int) -> None:
        self._reporter.step(size, 0)

    def _record(
        self, carrier: Carrier, here: History, there: History, item: Committed, content: bool, group: _Group
    ) -> None:
        """One snapshot's record, and what it relies on if its content is wanted. NotFound, StorageFailed."""
        before = carrier.bytes_sent
        if content:
            try:
                carrier.bring(SnapshotReader(self._blocks, item.snapshot).relied(), item.snapshot.domain)
            except Damaged as error:
                group.outcome.failed.append((item, error))
                content = False
            else:
                group.outcome.done.append((item, carrier.bytes_sent - before))
        if content or item.transaction not in there.committed:
            name = ids.fate_name(item.transaction)
            group.add(name, stored_record(self._source, here, name), gone=not content)


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
