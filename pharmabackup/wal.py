"""Archived PostgreSQL WAL: which of it there is, and one file of it for a server that recovers (docs/sources.md)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pharmabackup.clock import iso
from pharmabackup.errors import InvalidInput, NotFound, SourceFailed
from pharmabackup.repository import Repository
from pharmabackup.snapshot import Snapshot
from pharmabackup.sources import wal_names
from pharmabackup.sources.base import StrPath
from pharmabackup.sources.wal_command import system
from pharmabackup.sources.wal_settings import AHEAD, restore_command

__all__ = ["AHEAD", "Range", "fetch", "ranges", "restore_command", "system"]

KIND = "postgresql-wal"
FETCH_AHEAD = 32  # segments
PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Segments of one server and timeline, none of which is missing. `until`: when the last one was safe."""

    system: str
    timeline: int
    first: str
    last: str
    segments: int
    segment_size: int  # bytes
    until: datetime

    def leads_to(self, other: Range) -> bool:
        """Whether nothing is missing between them: a new timeline goes on in the segment where it left another."""
        return self.system == other.system and not wal_names.misses(self.last, other.first, self.segment_size)

    def to_dict(self) -> dict[str, object]:
        facts: dict[str, object] = {name: getattr(self, name) for name in self.__slots__}
        return facts | {"until": iso(self.until)}


def ranges(repository: Repository, dataset: str) -> list[Range]:
    """What was archived, in the order of the log; between two of one server's ranges something is missing.

    NotFound where there is no such dataset; StorageFailed.
    """
    found: dict[tuple[str, int], dict[str, Snapshot]] = {}
    sizes: dict[str, int] = {}
    for snapshot in reversed(_snapshots(repository, dataset)):
        system = str(snapshot.facts["system"])
        sizes[system] = int(str(snapshot.facts["segment_size"])) or sizes.get(system, 0)
        for entry in snapshot.glob():
            if wal_names.is_segment(entry.path):
                line = wal_names.timeline(entry.path)
                found.setdefault((system, line), {}).setdefault(entry.path, snapshot)
    return [
        Range(
            system=system,
            timeline=line,
            first=run[0],
            last=run[-1],
            segments=len(run),
            segment_size=sizes[system],
            until=names[run[-1]].time,
        )
        for (system, line), names in sorted(found.items())
        for run in _runs(sorted(names), sizes[system])
    ]


def _runs(names: Sequence[str], size: int) -> Iterator[list[str]]:
    run = [names[0]]
    for name in names[1:]:
        if wal_names.misses(run[-1], name, size):
            yield run
            run = []
        run.append(name)
    yield run


def fetch(
    repository: Repository, dataset: str, name: str, target: StrPath, *, of: str, ahead: StrPath | None = None
) -> bool:
    """Put one file of a server's log where that wants it; whether there is such a file.

    `of`: the server's identifier, as `system` reads it off its data folder. `ahead`: a folder, into which those are
    put that it will ask for next.
    InvalidInput, NotFound where there is no such dataset, Damaged, SourceFailed where it cannot be written.
    """
    if not wal_names.FILE.fullmatch(name):
        raise InvalidInput(f"{name!r} is no file of a server's log.", remedy="Give what PostgreSQL put for %f.")
    for snapshot in _snapshots(repository, dataset):
        if not _may_have(snapshot, name, of):
            continue
        try:
            _put(snapshot, name, Path(target))
        except NotFound:
            continue
        if ahead is not None and wal_names.is_segment(name):
            _fetch_ahead(snapshot, name, Path(ahead))
        return True
    return False


def _snapshots(repository: Repository, dataset: str) -> list[Snapshot]:
    """Newest first. NotFound."""
    found = [one for one in repository.snapshots(dataset) if one.kind == KIND and not one.forgotten]
    if not found:
        raise NotFound(
            f"There is no archived WAL here called {dataset}.", kind="dataset", remedy="List what there is."
        )
    return found


def _may_have(snapshot: Snapshot, name: str, system: str) -> bool:
    facts = snapshot.facts
    if facts["system"] != system:
        return False
    if wal_names.is_segment(name):
        return str(facts["first"]) <= name <= str(facts["last"])
    others = facts["others"]
    return isinstance(others, list | tuple) and name in others


def _fetch_ahead(snapshot: Snapshot, name: str, ahead: Path) -> None:
    """Those after it, as far as this snapshot has them. What goes wrong is told when it is asked for."""
    size = int(str(snapshot.facts["segment_size"]))
    with suppress(NotFound, SourceFailed):
        ahead.mkdir(mode=0o700, exist_ok=True)
        for _ in range(FETCH_AHEAD):
            name = wal_names.after(name, size)
            if not (ahead / name).exists():
                _put(snapshot, name, ahead / name)


def _put(snapshot: Snapshot, name: str, target: Path) -> None:
    """Whole or not at all, and safe from a power cut. NotFound, Damaged, SourceFailed."""
    with snapshot.open(name) as source:
        fresh = target.with_name(f"{target.name}.{os.urandom(4).hex()}")
        try:
            with open(fresh, "xb", opener=_private) as file:
                shutil.copyfileobj(source, file, PIECE)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, target)
        except OSError as error:
            raise SourceFailed(
                f"{target} cannot be written: {error.strerror}.", kind="output", remedy="Check its folder and disk."
            ) from None
        finally:
            fresh.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
