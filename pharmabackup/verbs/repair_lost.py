"""What stays lost: which bytes of which files of which snapshots, as far as this credential may read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field

from pharmabackup.engine.garbage import named
from pharmabackup.engine.history import Committed
from pharmabackup.engine.reading import BlockReader, SnapshotReader
from pharmabackup.errors import Damaged
from pharmabackup.events import Finding, Severity
from pharmabackup.format.manifest import Entry, EntryKind
from pharmabackup.verbs.findings import Ranges, in_file, told_ranges

FILES_TOLD = 2000  # of all snapshots; more are counted
REMEDY = "Take it from another snapshot, give repair a replica or the source that has it, or forget this snapshot."


@dataclass(slots=True)
class Losses:
    """Findings of a repair, snapshot after snapshot."""

    reader: BlockReader
    location: str
    may_read: bool
    look: Callable[[], None]
    forgotten: Set[bytes]  # snapshots that can still be called back: less is said of them
    findings: list[Finding] = field(default_factory=list)
    _told: int = 0

    def list_lost(self, item: Committed) -> None:
        """A snapshot whose list of blocks cannot be read."""
        what = "the list of its blocks is lost, and with it every file"
        self._lost(item, what)

    def some_lost(self, item: Committed, relied: set[bytes], lost: set[bytes]) -> None:
        """A snapshot that needs these blocks, which are nowhere whole. StorageFailed, Cancelled."""
        who = item.transaction.hex()
        if named(item.snapshot) & lost:
            self._lost(item, "the list of its files is lost")
            return
        gone = relied & lost
        self._find(
            "snapshot-damaged",
            who,
            f"{self._named(item)} cannot be restored whole: {len(gone):,} of the {len(relied):,} blocks that it "
            "needs are lost.",
            self._severity(item),
        )
        if self.may_read and item.transaction not in self.forgotten:
            try:
                self._files(item, gone)
            except Damaged as error:
                self._lost(item, error.message.rstrip("."))

    def _lost(self, item: Committed, what: str) -> None:
        text = f"{self._named(item)} cannot be restored: {what}."
        self._find("snapshot-lost", item.transaction.hex(), text, self._severity(item))

    def _severity(self, item: Committed) -> Severity:
        return "warning" if item.transaction in self.forgotten else "critical"

    def _named(self, item: Committed) -> str:
        forgotten = " (forgotten; it could be called back)" if item.transaction in self.forgotten else ""
        return f"{_described(item)}{forgotten}"

    def _files(self, item: Committed, gone: set[bytes]) -> None:
        reader = SnapshotReader(self.reader, item.snapshot)
        untold = 0
        for entry, ranges in lost_files(reader, gone, self.look):
            if self._told >= FILES_TOLD:
                untold += 1
                continue
            self._told += 1
            path = entry.path.decode("utf-8", "backslashreplace")
            where = told_ranges(ranges) if ranges else "the content that it shares with another name"
            message = f"{path} in {_described(item)[4:]} has lost {where} of {entry.size:,} bytes."
            self._find("file-lost", path, message)
        if untold:
            message = f"{untold:,} more files of {_described(item)[4:]} have lost content."
            self._find("files-lost", item.transaction.hex(), message)

    def _find(self, code: str, subject: str, message: str, severity: Severity = "critical") -> None:
        self.findings.append(
            Finding(
                code=code, severity=severity, subject=subject, message=message, remedy=REMEDY, location=self.location
            )
        )


def lost_files(reader: SnapshotReader, gone: set[bytes], look: Callable[[], None]) -> Iterator[tuple[Entry, Ranges]]:
    """The files that need these blocks, and which bytes of each; then their further names, without. Damaged."""
    holes = _holes(reader, gone)
    at = 0
    lost: set[bytes] = set()
    further: list[Entry] = []
    for folder in reader.entries():
        look()
        for entry in folder:
            if entry.same_file is not None:
                further.append(entry)
                continue
            if entry.kind != EntryKind.FILE or not entry.stored:
                continue
            end = entry.start + entry.stored
            while at < len(holes) and holes[at][1] <= entry.start:
                at += 1
            mine = [
                (max(begin, entry.start) - entry.start, min(stop, end) - entry.start)
                for begin, stop in _until(holes, at, end)
            ]
            if mine:
                lost.add(entry.path)
                yield entry, in_file(entry, mine)
    for entry in further:
        if entry.same_file in lost:
            yield entry, []


def _holes(reader: SnapshotReader, gone: set[bytes]) -> Ranges:
    """Where in the content stream these blocks are, in order, joined."""
    runs, table = reader.recipe()
    slots = {slot for slot, block in enumerate(table) if block in gone}
    holes: Ranges = []
    starts = reader.run_starts
    for i, slot in enumerate(runs.block):
        if slot in slots:
            if holes and holes[-1][1] == starts[i]:
                holes[-1] = holes[-1][0], starts[i + 1]
            else:
                holes.append((starts[i], starts[i + 1]))
    return holes


def _until(holes: Ranges, at: int, end: int) -> Iterator[tuple[int, int]]:
    while at < len(holes) and holes[at][0] < end:
        yield holes[at]
        at += 1


def _described(item: Committed) -> str:
    return f"The snapshot {item.transaction.hex()[:8]} of {item.snapshot.dataset}"
