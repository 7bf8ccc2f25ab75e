"""Check: is everything there that snapshots rely on, is it by whom it says, and, for a share, can it be read?

It judges and does not raise for what it finds: every damage is a finding that says what is affected.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from operator import add, gt

from pharmabackup import ids
from pharmabackup.clock import now_ns
from pharmabackup.engine.condemned import Condemned, read_condemned
from pharmabackup.engine.history import Committed
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.index import Index
from pharmabackup.engine.packs import read_directory
from pharmabackup.engine.reading import BlockReader, SnapshotReader
from pharmabackup.engine.segments import CHANGED, read_segments
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged, Error, NotFound
from pharmabackup.events import Finding, Progress, Severity
from pharmabackup.format.pack import BLOCK_CHUNKS_MAX
from pharmabackup.format.transaction import Mark
from pharmabackup.format.wire import Kind
from pharmabackup.results import Report, sized
from pharmabackup.storage.base import UNREADABLE
from pharmabackup.verbs.check_collections import wrong_collections
from pharmabackup.verbs.check_names import NamesCheck
from pharmabackup.verbs.check_packs import PackReading
from pharmabackup.verbs.check_records import check_records
from pharmabackup.verbs.check_schedule import Readings, verified
from pharmabackup.verbs.check_state import ABSENT, Numbers, State
from pharmabackup.verbs.findings import clock_findings, history_findings
from pharmabackup.verbs.locks import short_locks
from pharmabackup.verbs.reporter import Reporter

REPAIR = "Restore from another location, then run check and propose_repair."
LOOKS = 5  # while collections move what is looked at
SEGMENT_REMEDIES = {
    CHANGED: "Run propose_repair: the index can be rebuilt from the packs.",
    UNREADABLE: "Check the disk and its cable, and run check again.",
}
SEGMENT_VOID = "That does not count. Find out who uses that credential, and revoke it."
SEGMENT_UNJUDGED = "All goes on without it. If all else is sound, find out who wrote it, and delete it."


def check(
    unlocked: Unlocked, *, read_data: float, progress: Progress | None, cancel: threading.Event | None
) -> Report:
    """A report whose findings say what is wrong and what it affects. StorageFailed, Cancelled."""
    reporter = Reporter("check", progress, cancel)
    checker = _Checker(unlocked, reporter)
    try:
        checker.structure(read_data)
        if read_data:
            checker.data(read_data)
        checker.conclude()
    finally:
        checker.index.close()
    return reporter.report({})


class _Checker:
    def __init__(self, unlocked: Unlocked, reporter: Reporter) -> None:
        self.index = Index(unlocked, chunks=False)
        self._unlocked = unlocked
        self._reporter = reporter
        self._state = State()
        self._location = unlocked.storage.location
        self._since = 0  # the first collection that may have gone on meanwhile
        self._readings = Readings(unlocked)
        self._began = now_ns()

    def _find(self, code: str, severity: Severity, subject: str, message: str, remedy: str = REPAIR) -> None:
        self._state.findings.append(
            Finding(
                code=code,
                severity=severity,
                subject=subject,
                message=message,
                remedy=remedy,
                location=self._location,
            )
        )

    def _tell(self) -> None:
        for finding in self._state.findings:
            self._reporter.find(finding)
        self._state.findings = []

    # ------------------------------------------------------------ structure

    def structure(self, share: float) -> None:
        """Look at everything, and again when something seems lost that a collection may only have moved."""
        before, looked = self._condemned(), False
        for left in reversed(range(LOOKS)):
            self._look(before)
            after = self._condemned()
            still = before == after and not self._state.replaced and (looked or not after.unfinished)
            if still or all(finding.severity == "info" for finding in self._state.findings):
                break
            before, looked = after, True
            if not left:
                self._state.findings = []
                self._find(
                    "collection-under-way",
                    "warning",
                    "collections",
                    "Collections went on all the time, so that it cannot be told whether something is missing.",
                    "Run check again when they have ended.",
                )
        for finding in history_findings(self._history, self._location):
            self._reporter.find(finding)
        for finding in clock_findings(self._history, now_ns(), self._location):
            self._reporter.find(finding)
        for finding in wrong_collections(self._unlocked, self._history, self._state.gone, self._state.since):
            self._reporter.find(finding)
        for finding in short_locks(self._unlocked, self._history, self._reporter.look):
            self._reporter.find(finding)
        check_records(self._unlocked, self._find, self._reporter.look, share)
        self._tell()

    def _look(self, before: Condemned) -> None:
        """Fates, then the index, then packs: in this order nothing seems lost that is not."""
        self.index.close()
        self.index, self._state, self._since = Index(self._unlocked, chunks=False), State(), before.first
        self._history = load_history(self._unlocked, anew=True)
        self._segments()
        listed = self._packs()
        blocks = BlockReader(self._unlocked, self.index)
        self._names = NamesCheck(blocks, self._reporter.look)
        self.index.blocks.restrict(listed, frozenset())
        for committed in self._snapshots():
            self._reporter.look()
            self._snapshot(blocks, committed)
        self._needed_but_unindexed()
        self._strangers()
        self._missing(self._condemned(self._since).packs)

    def _condemned(self, since: int | None = None) -> Condemned:
        """What collections condemn, as far as it can be read: `check_records` has told what cannot."""
        try:
            return read_condemned(self._unlocked, since)
        except Damaged:
            return Condemned(frozenset(), frozenset(), 1, unfinished=True, highest=0)

    def _snapshots(self) -> Iterator[Committed]:
        forgotten = self._history.forgotten()
        for committed in self._history.newest():
            if committed.transaction not in forgotten:
                yield committed

    def _segments(self) -> None:
        sizes: dict[bytes, int] = {}
        for info in sorted(self._unlocked.storage.list("index"), key=lambda info: info.name):
            digest = ids.hex_tail(info.name)
            if digest is None or ids.index_name(digest) != info.name or len(digest) != 32:
                self._unknown(info.name)
            else:
                sizes[digest] = info.size
        with read_segments(self._unlocked, sizes) as segments:
            for digest, get in segments:
                name = ids.index_name(digest)
                try:
                    segment = get()
                    if not self.index.add_segment(digest, segment):
                        message = f"{name}: {segment.slot.name!r} wrote it, about packs of another domain."
                        self._find("index-void", "warning", name, message, SEGMENT_VOID)
                except NotFound:
                    self._state.replaced = True
                except Damaged as error:
                    self._find(
                        "index-damaged",
                        "critical",
                        name,
                        error.message,
                        SEGMENT_REMEDIES.get(error.kind, SEGMENT_UNJUDGED),
                    )

    def _packs(self) -> dict[bytes, int]:
        """Compare what storage lists with what the index says; the packs that are there with the right size."""
        table = self.index.blocks
        sizes: dict[bytes, set[int]] = {}  # segments may differ: one that is right is enough
        for pack, size in zip(table.packs, table.pack_sizes, strict=True):
            sizes.setdefault(pack, set()).add(size)
        listed: dict[bytes, int] = {}
        for info in self._unlocked.storage.list("packs"):
            digest = ids.hex_tail(info.name)
            if digest is None or ids.pack_name(digest) != info.name:
                self._unknown(info.name)
                continue
            listed[digest] = info.size
        for digest, size in sorted(listed.items()):
            if digest not in sizes:
                self._unindexed(digest, size)
        for digest, said in sorted(sizes.items()):
            name = ids.pack_name(digest)
            if digest not in listed:
                self._state.missing_packs.append(digest)
            elif listed[digest] not in said:
                self._damaged(digest, f"The pack {name} has {listed[digest]:,} bytes instead of {min(said):,}.")
                del listed[digest]
        return listed

    def _unindexed(self, digest: bytes, size: int) -> None:
        """A pack that no segment names: under way, or orphaned, or its segment is damaged. Its directory tells."""
        name = ids.pack_name(digest)
        try:
            entry, _ = read_directory(self._unlocked, digest, size)
            self.index.add_entry(entry)
        except NotFound:
            return
        except Damaged as error:
            self._damaged(digest, error.message)
            return
        self._state.unindexed.append(digest)
        self._find(
            "pack-unindexed",
            "info",
            name,
            f"The pack {name} is in no index: a backup is under way or was interrupted.",
            "Nothing to do; the next backup uses it.",
        )

    def _needed_but_unindexed(self) -> None:
        """Packs that snapshots need and no segment names: a segment is lost."""
        table = self.index.blocks
        needed = {table.packs[pack] for packs in self._state.packs_of.values() for pack in packs}
        lost = needed.intersection(self._state.unindexed)
        if lost:
            self._find(
                "index-missing",
                "warning",
                "index",
                f"{len(lost)} packs that snapshots need are in no index segment: one was lost.",
                "Back up once more: the next backup writes their index again.",
            )

    def _missing(self, condemned: frozenset[bytes]) -> None:
        """Packs that segments name and storage does not list: bad where something needs them."""
        table, state = self.index.blocks, self._state
        missing = set(state.missing_packs)
        needed = {
            table.packs[pack]
            for block, pack in zip(table.ids, table.pack, strict=True)
            if block in state.missing_blocks and table.packs[pack] in missing
        }
        state.gone = needed
        for pack in state.missing_packs:
            name = ids.pack_name(pack)
            if pack in needed:
                self._find("pack-missing", "critical", name, f"The pack {name} is missing.")
            elif pack in condemned:
                message = f"The pack {name} is gone: a collection that deletes it was interrupted."
                self._find("collection-unfinished", "info", name, message, "The next prune finishes it.")
            else:
                message = f"The pack {name} is gone, and nothing needs it; an index names it still."
                self._find("index-stale", "info", name, message, "Nothing to do; a prune tidies it up.")

    def _strangers(self) -> None:
        """Files that lie where records of transactions do, and are none."""
        for folder in ("intents", "snapshots", "marks"):
            for info in self._unlocked.storage.list(folder):
                if ids.id_of(info.name) is None:
                    self._unknown(info.name)

    def _unknown(self, name: str) -> None:
        message = f"{name} is not part of a repository."
        self._find("object-unknown", "info", name, message, "Find out who put it there.")

    def _damaged(self, digest: bytes, message: str) -> None:
        self._find("pack-damaged", "critical", ids.pack_name(digest), message)

    def _snapshot(self, blocks: BlockReader, committed: Committed) -> None:
        """Everything that one snapshot relies on is there, and fits together."""
        record, table = committed.snapshot, self.index.blocks
        lists = record.domain, record.table, record.recipe, record.manifest, record.chunks, record.files, record.size
        if lists in self._state.fitting:  # another has the very same: nothing had changed between the two
            self._state.packs_of[committed.transaction] = self._state.fitting[lists]
            return
        reader = SnapshotReader(blocks, record)
        numbers = self._state.numbers.setdefault(record.domain, Numbers(table, record.domain))
        needed = {ref.block for refs in (record.table, record.recipe, record.manifest) for ref in refs}
        problems: list[str] = []
        try:
            needed = reader.relied()
            runs, ids_by_slot = reader.recipe()
            counts = [
                BLOCK_CHUNKS_MAX if number == ABSENT else table.count[number]
                for number in map(numbers.__getitem__, ids_by_slot)
            ]
            if any(map(gt, map(add, runs.first, runs.count), map(counts.__getitem__, runs.block))):
                problems.append("its recipe names chunks that a block does not have")
            if self._unlocked.keyring.readers:
                stored, files, size = self._names.totals(reader)
                if stored != sum(runs.sizes):
                    problems.append("its names and its content do not have the same size")
                if (files, size) != (record.files, record.size):
                    problems.append("its names are not as many or as large as it says")
        except Damaged as error:
            problems.append(error.message.rstrip("."))
        missing = {block_id for block_id in needed if numbers[block_id] == ABSENT}
        self._state.missing_blocks |= missing
        if any(not table.instances(block_id) for block_id in missing):
            self._state.since = min(record.time, self._state.since or record.time)
        packs = {table.pack[number] for number in map(numbers.__getitem__, needed) if number != ABSENT}
        self._state.packs_of[committed.transaction] = packs
        if missing:
            problems.append(f"{len(missing)} of the {len(needed)} blocks that it needs are not there")
        if problems:
            self._state.hurt.add(committed.transaction)
            self._find(
                "snapshot-damaged",
                "critical",
                committed.transaction.hex(),
                f"{_described(committed)} cannot be restored whole: {'; '.join(problems)}.",
            )
        else:
            self._state.fitting[lists] = packs

    # ------------------------------------------------------------ data

    def data(self, share: float) -> None:
        """Read packs, those that were read longest ago first: hashes with any key, every block with a reader's."""
        table = self.index.blocks
        there = [number for number in range(len(table.packs)) if table.usable[number]]
        chosen = self._readings.in_turn(there, table, share)
        self._reporter.total = sum(table.pack_sizes[number] for number in chosen)
        reading = PackReading(self._unlocked, self.index, self._reporter)
        try:
            results = reading.read(chosen, lambda: self._readings.take(reading.found, table.packs, now=False))
        finally:
            self._readings.take(reading.found, table.packs, now=True)  # also of a check that is stopped
        moved = self._condemned(self._since).packs  # by collections that went on meanwhile
        for pack, found in sorted(results.items()):
            if found.problem is not None and table.packs[pack] not in moved:
                self._damaged(table.packs[pack], f"{found.problem} {self._affected(pack)}")
        self._tell()

    def _affected(self, pack: int) -> str:
        """Which snapshots a damaged pack hurts, in words; they are noted as hurt."""
        hurt = [item for item in self._snapshots() if pack in self._state.packs_of.get(item.transaction, ())]
        self._state.hurt.update(item.transaction for item in hurt)
        if not hurt:
            return "No snapshot needs it."
        datasets = sorted({item.snapshot.dataset for item in hurt})
        return f"{len(hurt)} snapshots of {', '.join(datasets)} need it."

    # ------------------------------------------------------------ the end

    def conclude(self) -> None:
        """Say what was checked; mark as verified what was read whole and found sound, now or in turns."""
        table = self.index.blocks
        total = sum(size for number, size in enumerate(table.pack_sizes) if table.usable[number])
        checked = list(self._snapshots())
        self._reporter.tell(
            "progress", f"{len(checked)} snapshots and {sized(total)} in {len(table.packs)} packs were checked."
        )
        self._readings.conclude(self._state.hurt)
        if self._unlocked.keyring.signing is None:
            return
        times, oldest = self._readings.times(table.packs), dict[bytes, int]()
        for item in checked if any(times) else ():
            time = min(map(times.__getitem__, self._state.packs_of.get(item.transaction, ())), default=0)
            whole = time >= min(item.snapshot.time, self._began)  # all was read since it was there
            if time and whole and item.transaction not in self._state.hurt:
                oldest[item.transaction] = time
        sound = verified(self._history, self._unlocked.slot.id, oldest)
        if sound:
            mark = Mark("verified", b"".join(sound), now_ns(), None, None, None)
            try:
                self._unlocked.put(Kind.MARK, ids.mark_name(ids.new_id()), mark)
            except Error as error:
                self._find(
                    "mark-not-written",
                    "info",
                    "marks",
                    f"It could not be noted that all is verified: {error.message}",
                    error.remedy,
                )
                self._tell()


def _described(committed: Committed) -> str:
    return f"The snapshot {committed.transaction.hex()[:8]} of {committed.snapshot.dataset}"
