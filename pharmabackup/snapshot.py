"""Snapshot: one dataset at one moment, and what can be looked at in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, BinaryIO

from pharmabackup import clock
from pharmabackup.errors import InvalidInput, Unsupported
from pharmabackup.events import Finding
from pharmabackup.results import Entry, sized

if TYPE_CHECKING:
    import apsw
    import fsspec

    from pharmabackup.engine.history import Committed
    from pharmabackup.engine.reading import SnapshotReader
    from pharmabackup.verbs.standing import Standing

    Reader = Callable[[Committed, str], SnapshotReader]  # and what is looked at, for the audit record

KINDS_WITH_TABLES = ("sqlite",)


class Snapshot:
    """One dataset at one moment, as its device signed it. Sizes in bytes, times in UTC.

    `time` is when it was committed, by the first storage's clock; `data_until` is how recent its data is.
    `forget_at`: somebody said to forget it, and until then it can be called back.
    """

    def __init__(self, committed: Committed, said: Standing, reader: Reader | None) -> None:
        from pharmabackup.verbs.standing import counted_findings

        record = committed.snapshot
        self.id = committed.transaction.hex()
        self.dataset = record.dataset
        self.tier = record.tier
        self.kind = record.source
        self.run = record.run.hex()
        self.device = committed.slot.name
        self.reason = record.reason
        self.time = clock.from_ns(record.time)
        self.data_until = clock.from_ns(record.time - record.age)
        self.device_time = clock.from_ns(record.device_time)
        self.files = record.files
        self.size = record.size
        self.added = record.added
        self.facts: Mapping[str, object] = record.facts
        self.complete = record.complete
        self.held = said.held
        self.forgotten = said.forgotten
        self.forget_at = None if said.forget_at is None else clock.from_ns(said.forget_at)
        self.verified = None if said.verified is None else clock.from_ns(said.verified)
        self.findings: tuple[Finding, ...] = counted_findings(record)
        self._committed = committed
        self._open_reader = reader

    def __str__(self) -> str:
        whole = "" if self.complete else ", not complete"
        return (
            f"{self.id[:8]}  {clock.iso(self.time)}  {self.dataset}  "
            f"{self.files:,} files, {sized(self.size)}, {sized(self.added)} added{whole}"
        )

    def __repr__(self) -> str:
        return f"<Snapshot {self.id[:8]} of {self.dataset!r}, {clock.iso(self.time)}>"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open_reader": None}

    def to_dict(self) -> dict[str, object]:
        """JSON-ready facts."""
        return {
            "id": self.id,
            "dataset": self.dataset,
            "tier": self.tier,
            "kind": self.kind,
            "run": self.run,
            "device": self.device,
            "reason": self.reason,
            "time": clock.iso(self.time),
            "data_until": clock.iso(self.data_until),
            "device_time": clock.iso(self.device_time),
            "files": self.files,
            "size": self.size,
            "added": self.added,
            "facts": dict(self.facts),
            "complete": self.complete,
            "held": self.held,
            "forgotten": self.forgotten,
            "forget_at": clock.iso(self.forget_at) if self.forget_at else None,
            "verified": clock.iso(self.verified) if self.verified else None,
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def _reader(self, what: str = "content") -> SnapshotReader:
        if self._open_reader is None:
            raise Unsupported(
                "This snapshot was carried over from another process and lost its repository.",
                remedy="Ask the repository for it again: repo.snapshot(id=…).",
            )
        return self._open_reader(self._committed, what)

    def glob(self, pattern: str = "**") -> Iterator[Entry]:
        """What the snapshot holds, in path order. NotPermitted, Damaged, StorageFailed."""
        from pharmabackup.verbs import browse

        return browse.glob(self._reader("names"), pattern)

    def open(self, path: str) -> BinaryIO:
        """One file, seekable; fetches and verifies what is read. NotFound, NotPermitted, Damaged."""
        from pharmabackup.verbs import browse

        return browse.open_file(self._reader("files"), path)

    def table(self, name: str) -> Iterator[dict[str, object]]:
        """The rows of a database's table. NotFound, Unsupported, Damaged."""
        if self.kind not in KINDS_WITH_TABLES:
            raise Unsupported(
                f"{self.dataset} is no database whose tables can be read ({self.kind}).",
                remedy="Use open() or restore().",
            )
        from pharmabackup.verbs import browse

        return browse.table(self._reader("tables"), name)

    def connect(self, path: str | None = None) -> apsw.Connection:
        """SQL over an SQLite database in it (apsw): read-only, and only pages that are needed are fetched.

        `path`: in a folder's snapshot; a database's has one. For one thread. NotFound, Unsupported, Damaged.
        """
        if path is None and self.kind not in KINDS_WITH_TABLES:
            raise InvalidInput(
                f"{self.dataset} is no SQLite database ({self.kind}).", remedy="Give the path of one that is in it."
            )
        from pharmabackup.verbs import browse, browse_sql

        reader = self._reader("tables")
        return browse_sql.connect(browse.open_database(reader) if path is None else browse.open_file(reader, path))

    def filesystem(self) -> fsspec.AbstractFileSystem:
        """A read-only fsspec file system over the snapshot, for pandas and friends."""
        from pharmabackup.verbs.filesystem import SnapshotFileSystem

        return SnapshotFileSystem(self._reader("filesystems"))
