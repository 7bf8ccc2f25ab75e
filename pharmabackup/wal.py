"""Archived PostgreSQL WAL: what there is of it, and what a server that recovers is given (docs/minute.md).

A server that is told that a file does not exist ends its recovery and opens. So that is said only of what was never
archived, as far as all that was committed can be read; anything else is an error, at which the server stops.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from pharmabackup.clock import iso
from pharmabackup.engine.historyreader import load_history
from pharmabackup.errors import Conflict, Damaged, Error, InvalidInput, NotFound, SourceFailed
from pharmabackup.repository import Repository
from pharmabackup.snapshot import Snapshot
from pharmabackup.sources import wal_names
from pharmabackup.sources.base import StrPath
from pharmabackup.sources.postgresql_wal import PostgreSQLWAL
from pharmabackup.sources.wal_command import system
from pharmabackup.sources.wal_settings import AHEAD, Recovery, restore_command

__all__ = ["AHEAD", "Range", "Recovery", "fetch", "gaps", "ranges", "recovery", "system"]

FETCH_AHEAD = 512 << 20  # bytes, about
PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Segments of one server and timeline, none of which is missing. `until`: when the last one was safe.

    `fork`: the segment in which the timeline left another, by number, as far as its history is archived.
    """

    system: str
    timeline: int
    first: str
    last: str
    segments: int
    segment_size: int  # bytes
    until: datetime
    fork: int | None

    def to_dict(self) -> dict[str, object]:
        facts: dict[str, object] = {name: getattr(self, name) for name in self.__slots__}
        return facts | {"until": iso(self.until)}


def ranges(repository: Repository, dataset: str) -> list[Range]:
    """What was archived, by server and in the order of the log. Any role may ask: it is in the snapshots' records.

    NotFound where there is no such dataset; Damaged, StorageFailed.
    """
    _refuse_damage(repository)
    snapshots = _snapshots(repository, dataset)
    found: list[Range] = []
    for server in dict.fromkeys(str(one.facts["system"]) for one in reversed(snapshots)):
        own = [one for one in snapshots if one.facts["system"] == server]
        size, histories = _size(own), _histories(own)
        for first, last in wal_names.joined((run for one in own for run in _runs(one)), size):
            line = wal_names.timeline(last)
            safe = [one.time for one in own if wal_names.covers(_runs(one), [(last, last)], size)]
            found.append(
                Range(
                    system=server,
                    timeline=line,
                    first=first,
                    last=last,
                    segments=wal_names.length((first, last), size),
                    segment_size=size,
                    until=min(safe),
                    fork=wal_names.forked(histories.get(f"{line:08X}.history", ""), size),
                )
            )
    return found


def gaps(found: Sequence[Range]) -> list[tuple[Range, Range]]:
    """Of one server's ranges those between which something is missing."""
    missing: list[tuple[Range, Range]] = []
    for before, after in pairwise(found):
        if before.system != after.system:
            continue
        expected = wal_names.number(before.last, before.segment_size) + 1
        if before.timeline != after.timeline and after.fork is not None:
            expected = min(expected, after.fork)
        if wal_names.number(after.first, after.segment_size) > expected:
            missing.append((before, after))
    return missing


def recovery(
    repository: Repository,
    dataset: str,
    fetching: Sequence[str],
    *,
    until: datetime | None = None,
    timeline: int | None = None,
) -> Recovery:
    """What a `PostgreSQLCluster` is restored with, so that it goes on with this log until a moment or to its end.

    `fetching`: the words of a command that calls `fetch`, such as `pharmabackup wal-get` (docs/minute.md).
    `timeline`: by default that on which the server was at that moment, or the newest. A server that was restored once
    goes on with another timeline: without that, a second restore would follow it.
    InvalidInput, NotFound, Damaged, StorageFailed.
    """
    if until is not None and until.tzinfo is None:
        raise InvalidInput(f"The time {until} has no time zone.", kind="time-naive", remedy="Give an aware datetime.")
    snapshots = _snapshots(repository, dataset)
    timelines: dict[str, int | None] = {}
    for server in {str(one.facts["system"]) for one in snapshots}:
        timelines[server] = timeline
        if timeline is None and until is not None:
            later = [one for one in snapshots if one.facts["system"] == server and one.time >= until and _runs(one)]
            lines = (wal_names.timeline(last) for one in later[-1:] for _, last in _runs(one))
            timelines[server] = max(lines, default=None)
    return Recovery(restore_command=restore_command(fetching), timelines=timelines, until=until)


def fetch(
    repository: Repository, dataset: str, name: str, target: StrPath, *, of: str, ahead: StrPath | None = None
) -> bool:
    """Put one file of a server's log where that wants it; False where it was never archived, nor any after it.

    `of`: the server's identifier, as `system` reads it off its data folder. `ahead`: a folder, into which those are
    put that it will ask for next. InvalidInput, NotFound where there is no such dataset, Conflict where it is of
    another server, Damaged also for a gap, SourceFailed where it cannot be written; StorageFailed.
    """
    if not wal_names.FILE.fullmatch(name):
        raise InvalidInput(f"{name!r} is no file of a server's log.", remedy="Give what PostgreSQL put for %f.")
    own = [one for one in _snapshots(repository, dataset) if one.facts["system"] == of]
    if not own:
        raise Conflict(
            f"{dataset} is the log of another server.",
            kind="other-server",
            remedy="Name the dataset that this server's log was archived in.",
        )
    size = _size(own)
    for snapshot in own:
        others = snapshot.facts["others"]
        there = wal_names.covers(_runs(snapshot), [(name, name)], size) if wal_names.is_segment(name) else (
            isinstance(others, list | tuple) and name in others
        )  # fmt: skip
        if there:
            _put(snapshot, name, Path(target))
            if ahead is not None and wal_names.is_segment(name):
                _fetch_ahead(snapshot, name, Path(ahead), size)
            return True
    _refuse_damage(repository)
    if wal_names.is_segment(name) and not (Path(target).parent / name).exists():  # a backup may have brought it
        _refuse_a_gap(own, name, size)
    return False


def _refuse_a_gap(snapshots: Sequence[Snapshot], name: str, size: int) -> None:
    """Damaged where later segments of the timeline are there, and this one belongs to it."""
    line = wal_names.timeline(name)
    fork = wal_names.forked(_histories(snapshots).get(f"{line:08X}.history", ""), size)
    if fork is not None and wal_names.number(name, size) < fork:
        return
    later = [last for one in snapshots for _, last in _runs(one) if wal_names.timeline(last) == line and last > name]
    if later:
        raise Damaged(
            f"{name} was never archived, or is lost, and later files of the log are here.",
            kind="wal-gap",
            remedy="Restore to a moment before it, or a backup of the server's files from after it.",
        )


def _snapshots(repository: Repository, dataset: str) -> list[Snapshot]:
    """Newest first. NotFound."""
    found = [one for one in repository.snapshots(dataset) if one.kind == PostgreSQLWAL.kind and not one.forgotten]
    if not found:
        raise NotFound(
            f"There is no archived WAL here called {dataset}.", kind="dataset", remedy="List what there is."
        )
    return found


def _refuse_damage(repository: Repository) -> None:
    """Damaged where not all that was committed can be read: it might be of the log."""
    history = load_history(repository._unlocked)
    for what in (*history.damaged, *history.vanished):
        raise Damaged(
            f"Not all that was committed can be read ({what}), so nobody can say what was archived.",
            kind="snapshot",
            remedy="Run check, and restore that object from another location.",
        )


def _runs(snapshot: Snapshot) -> list[wal_names.Run]:
    runs = snapshot.facts["runs"]
    return [(str(first), str(last)) for first, last in runs] if isinstance(runs, list | tuple) else []


def _size(snapshots: Iterable[Snapshot]) -> int:
    """Of the segments; a server's are all as large."""
    return max((int(str(one.facts["segment_size"])) for one in snapshots), default=0) or 16 << 20


def _histories(snapshots: Iterable[Snapshot]) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in snapshots:
        histories = one.facts["histories"]
        if isinstance(histories, Mapping):
            found |= {str(name): str(text) for name, text in histories.items()}
    return found


def _fetch_ahead(snapshot: Snapshot, name: str, ahead: Path, size: int) -> None:
    """Those after it, as far as this snapshot has them. What goes wrong is told when it is asked for."""
    with suppress(Error, OSError):
        ahead.mkdir(mode=0o700, exist_ok=True)
        for _ in range(max(1, FETCH_AHEAD // size)):
            name = wal_names.after(name, size)
            if not wal_names.covers(_runs(snapshot), [(name, name)], size):
                break
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
