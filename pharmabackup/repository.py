"""Repository and Snapshot: open, authorise, run a verb."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from pharmabackup import clock
from pharmabackup.credentials import Credential, Passphrase
from pharmabackup.errors import InvalidInput, NotFound, Unsupported
from pharmabackup.events import Finding, Progress
from pharmabackup.results import Entry, Report, sized

# The engine and the verbs are imported when they are called for: whoever imports the library, or lists snapshots,
# does not wait for what backs up.
if TYPE_CHECKING:
    import fsspec

    from pharmabackup.engine.history import Committed, History
    from pharmabackup.engine.reading import BlockReader, SnapshotReader
    from pharmabackup.engine.unlocked import Unlocked
    from pharmabackup.format.keys import Role
    from pharmabackup.sources.base import Source, StrPath

KINDS_WITH_TABLES = ("sqlite",)


class Snapshot:
    """One dataset at one moment, as its device signed it. Sizes in bytes, times in UTC.

    `time` is when it was committed, by the first storage's clock; `data_until` is how recent its data is.
    """

    def __init__(self, committed: Committed, history: History, repository: Repository | None) -> None:
        from pharmabackup.verbs import standing

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
        state = standing.standing(history, committed)
        self.held = state.held
        self.forgotten = state.forgotten
        self.verified = None if state.verified is None else clock.from_ns(state.verified)
        self.findings: tuple[Finding, ...] = standing.counted_findings(record)
        self._committed = committed
        self._repository = repository

    def __str__(self) -> str:
        whole = "" if self.complete else ", not complete"
        return (
            f"{self.id[:8]}  {clock.iso(self.time)}  {self.dataset}  "
            f"{self.files:,} files, {sized(self.size)}, {sized(self.added)} added{whole}"
        )

    def __repr__(self) -> str:
        return f"<Snapshot {self.id[:8]} of {self.dataset!r}, {clock.iso(self.time)}>"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_repository": None}

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
            "verified": clock.iso(self.verified) if self.verified else None,
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def _reader(self) -> SnapshotReader:
        if self._repository is None:
            raise Unsupported(
                "This snapshot was carried over from another process and lost its repository.",
                remedy="Ask the repository for it again: repo.snapshot(id=…).",
            )
        return self._repository._snapshot_reader(self._committed)

    def glob(self, pattern: str = "**") -> Iterator[Entry]:
        """What the snapshot holds, in path order. NotPermitted, Damaged, StorageFailed."""
        from pharmabackup.verbs import browse

        return browse.glob(self._reader(), pattern)

    def open(self, path: str) -> BinaryIO:
        """One file, seekable; fetches and verifies what is read. NotFound, NotPermitted, Damaged."""
        from pharmabackup.verbs import browse

        return browse.open_file(self._reader(), path)

    def table(self, name: str) -> Iterator[dict[str, object]]:
        """The rows of a database's table. NotFound, Unsupported, Damaged."""
        if self.kind not in KINDS_WITH_TABLES:
            raise Unsupported(
                f"{self.dataset} is no database whose tables can be read ({self.kind}).",
                remedy="Use open() or restore().",
            )
        from pharmabackup.verbs import browse

        return browse.table(self._reader(), name)

    def filesystem(self) -> fsspec.AbstractFileSystem:
        """A read-only fsspec file system over the snapshot, for pandas and friends."""
        from pharmabackup.verbs.filesystem import SnapshotFileSystem

        return SnapshotFileSystem(self._reader())


class Repository:
    """Everything under one storage URL. Any method from any thread at once, `close` excepted."""

    def __init__(self, unlocked: Unlocked, url: str) -> None:
        self._unlocked = unlocked
        self._read_lock = threading.Lock()
        self._blocks: BlockReader | None = None
        self.url = url
        self.id = unlocked.repository.hex()
        self.role: Role = unlocked.keyring.role
        self.slot = unlocked.slot.name
        self.capabilities: Mapping[str, bool] = dict(unlocked.record.capabilities)

    @classmethod
    def create(
        cls,
        url: StrPath,
        credential: Credential,
        *,
        storage_options: Mapping[str, object] | None = None,
        state_dir: StrPath | None = None,
    ) -> Repository:
        """Make a repository whose owner holds `credential`, and open it. Conflict, Unsupported, InvalidInput."""
        if not isinstance(credential, Passphrase):
            raise Unsupported("A repository's first credential is a passphrase.", remedy="Give a pb.Passphrase.")
        from pharmabackup.engine import opening

        unlocked = opening.create(url, credential, storage_options=storage_options, state_dir=state_dir)
        return cls(unlocked, os.fspath(url))

    @classmethod
    def open(
        cls,
        url: StrPath,
        credential: Credential,
        *,
        storage_options: Mapping[str, object] | None = None,
        state_dir: StrPath | None = None,
    ) -> Repository:
        """Open a repository. NotFound, WrongCredential, Unsupported, Damaged."""
        from pharmabackup.engine import opening

        unlocked = opening.open_repository(
            url, credential, storage_options=storage_options, state_dir=state_dir, meanwhile=_import_verbs
        )
        return cls(unlocked, os.fspath(url))

    def close(self) -> None:
        """Let go of files and connections."""
        if self._blocks is not None:
            self._blocks.index.close()
            self._blocks = None
        self._unlocked.storage.close()

    def __enter__(self) -> Repository:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Repository {self.id[:8]}, opened as {self.role}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("A repository is not pickled: it holds keys. Open it where it is needed.")

    # ------------------------------------------------------------ verbs

    def backup(
        self,
        sources: Sequence[Source],
        *,
        reason: str | None = None,
        freeze: AbstractContextManager[object] | None = None,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> Report:
        """One snapshot of each source, tier by tier. Incomplete, InvalidInput, StorageFailed, Cancelled."""
        from pharmabackup.engine.history import History
        from pharmabackup.verbs.backup import backup

        history = History()
        return backup(
            self._unlocked,
            sources,
            show=lambda committed: Snapshot(committed, history, self),
            reason=reason,
            freeze=freeze,
            progress=progress,
            cancel=cancel,
        )

    def snapshots(self, dataset: str | None = None, *, before: datetime | None = None) -> list[Snapshot]:
        """All snapshots, newest first. Damaged, StorageFailed."""
        from pharmabackup.engine.history import load_history

        history = load_history(self._unlocked)
        limit = None if before is None else _nanoseconds(before)
        return [
            Snapshot(committed, history, self)
            for committed in history.newest()
            if dataset in (None, committed.snapshot.dataset) and (limit is None or committed.snapshot.time < limit)
        ]

    def snapshot(
        self, dataset: str | None = None, *, id: str | None = None, before: datetime | None = None
    ) -> Snapshot:
        """The newest; of a dataset, before a moment, or the one whose id begins so. NotFound, InvalidInput."""
        found = self.snapshots(dataset, before=before)
        if id is not None:
            found = [snapshot for snapshot in found if snapshot.id.startswith(id.lower())]
            if len(found) > 1:
                raise InvalidInput(
                    f"{len(found)} snapshots have an id that begins with {id}.", remedy="Give more of it."
                )
        found = [snapshot for snapshot in found if id is not None or not snapshot.forgotten]
        if not found:
            what = f"a snapshot {id}" if id else f"a snapshot of {dataset}" if dataset else "a snapshot"
            raise NotFound(
                f"There is no such thing here as {what}{' from before that time' if before else ''}.",
                kind="snapshot",
                remedy="List what there is with snapshots().",
            )
        return found[0]

    def restore(
        self,
        target: StrPath | None = None,
        *,
        before: datetime | None = None,
        only: Sequence[str] = (),
        snapshots: Sequence[Snapshot] = (),
        into: Mapping[str, Source] | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> Report:
        """The newest of each dataset, or those named, into `target/<dataset>`. Incomplete, Conflict, NotFound."""
        from pharmabackup.engine.history import load_history
        from pharmabackup.verbs.restore import restore

        return restore(
            self._unlocked,
            self._block_reader(),
            load_history(self._unlocked),
            show=lambda committed, history: Snapshot(committed, history, self),
            target=None if target is None else Path(target),
            before=None if before is None else _nanoseconds(before),
            only=only,
            chosen=[snapshot._committed for snapshot in snapshots],
            into=into or {},
            overwrite=overwrite,
            progress=progress,
            cancel=cancel,
        )

    def check(
        self,
        *,
        read_data: float = 0.0,
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> Report:
        """Structure, references and signatures; and a share (0-1) of the data. Findings, not exceptions, judge."""
        if not 0.0 <= read_data <= 1.0:
            raise InvalidInput(f"read_data is {read_data}.", remedy="Give a fraction from 0 to 1.")
        from pharmabackup.verbs.check import check

        return check(self._unlocked, read_data=read_data, progress=progress, cancel=cancel)

    # ------------------------------------------------------------ inside

    def _block_reader(self) -> BlockReader:
        from pharmabackup.engine.index import Index
        from pharmabackup.engine.reading import BlockReader

        with self._read_lock:
            if self._blocks is None:
                reader = BlockReader(self._unlocked, Index(self._unlocked, chunks=False))
                reader.refresh()
                self._blocks = reader
            return self._blocks

    def _snapshot_reader(self, committed: Committed) -> SnapshotReader:
        if not self._unlocked.keyring.readers:
            raise self._unlocked.not_permitted("read")
        from pharmabackup.engine.reading import SnapshotReader

        return SnapshotReader(self._block_reader(), committed.snapshot)


def _import_verbs() -> None:
    """While the passphrase is stretched, which takes a while and one core: what will be called next."""
    for name in ("sources", "verbs.backup"):
        import_module(f"pharmabackup.{name}")


def _nanoseconds(moment: datetime) -> int:
    try:
        return clock.to_ns(moment)
    except ValueError:
        raise InvalidInput(
            f"The time {moment} has no time zone.", kind="time-naive", remedy="Give an aware datetime."
        ) from None


__all__ = ["Repository", "Snapshot"]
