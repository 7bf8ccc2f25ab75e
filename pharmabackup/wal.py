"""Archived PostgreSQL WAL: what there is of it, and what a server that recovers is given (docs/minute.md).

A server that is told that a file does not exist ends its recovery and opens. So that is said only of what was never
archived, as far as all that was committed can be read; anything else is an error, at which the server stops.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from pharmabackup.clock import iso, to_ns
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

    Of a gap: those that are missing, and `until` is None.
    """

    system: str
    timeline: int
    first: str
    last: str
    segments: int
    segment_size: int  # bytes
    until: datetime | None

    def to_dict(self) -> dict[str, object]:
        facts: dict[str, object] = {name: getattr(self, name) for name in self.__slots__}
        return facts | {"until": None if self.until is None else iso(self.until)}


def ranges(repository: Repository, dataset: str) -> list[Range]:
    """What was archived, by server and in the order of the log. Any role may ask: it is in the snapshots' records.

    NotFound where there is no such dataset; Damaged, StorageFailed.
    """
    found: list[Range] = []
    for log in _logs(repository, dataset):
        for run in wal_names.joined(log.runs(), log.size):
            last = [(run[1], run[1])]
            safe = min(one.time for one in log.snapshots if wal_names.covers(_runs(one), last, log.size))
            found.append(log.range(run, safe))
    return found


def gaps(repository: Repository, dataset: str) -> list[Range]:
    """What is missing in the log, as far as what is there shows it. As `ranges`."""
    return [
        log.range(run, None)
        for log in _logs(repository, dataset)
        for run in wal_names.gaps(log.runs(), log.histories(), log.size)
    ]


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
    InvalidInput, NotFound, StorageFailed.
    """
    if until is not None and until.tzinfo is None:
        raise InvalidInput(f"The time {until} has no time zone.", kind="time-naive", remedy="Give an aware datetime.")
    timelines = {
        log.system: log.timeline(until) if timeline is None else timeline
        for log in _by_server(_snapshots(repository, dataset))
    }
    return Recovery(restore_command=restore_command(fetching), timelines=timelines, until=until)


def fetch(
    repository: Repository,
    dataset: str,
    name: str,
    target: StrPath,
    *,
    of: str,
    ahead: StrPath | None = None,
    despite_damage: bool = False,
) -> bool:
    """Put one file of a server's log where that wants it; False where it was never archived, nor any after it.

    `of`: the server's identifier, as `system` reads it off its data folder. `ahead`: a folder, into which those are
    put that it will ask for next. `despite_damage`: what cannot be read of the repository is not of this log, and
    histories that are missing never were archived, by the caller's word.
    InvalidInput, NotFound where there is no such dataset, Conflict where it is of another server, Damaged also for a
    gap, SourceFailed where it cannot be written; StorageFailed.
    """
    if not wal_names.FILE.fullmatch(name):
        raise InvalidInput(f"{name!r} is no file of a server's log.", remedy="Give what PostgreSQL put for %f.")
    log = next((log for log in _by_server(_snapshots(repository, dataset)) if log.system == of), None)
    if log is None:
        raise Conflict(
            f"{dataset} is the log of another server.",
            kind="other-server",
            remedy="Name the dataset that this server's log was archived in.",
        )
    damaged: Damaged | None = None
    for snapshot in filter(partial(log.has, name), log.snapshots):
        try:
            _put(snapshot, name, Path(target))
        except Damaged as error:  # an older one may hold it elsewhere
            damaged = damaged or error
            continue
        if ahead is not None and wal_names.is_segment(name):
            _fetch_ahead(snapshot, name, Path(ahead), log)
        return True
    if damaged is not None:
        raise damaged
    if not despite_damage:
        _refuse_damage(repository)
    given = despite_damage and wal_names.is_history(name)
    if not given and log.goes_on_without(name) and not _was_brought(Path(target).parent / name, log.size):
        raise Damaged(
            f"{name} was never archived, or is lost, and later files of the log are here.",
            kind="wal-gap",
            remedy="Restore to a moment before it, or a backup of the server's files from after it, or another "
            "timeline; if it is a history that never was archived, say so with --despite-damage.",
        )
    return False


def _was_brought(path: Path, size: int) -> bool:
    """Whether the backup of the server's files has it: they end with what was written while they were copied."""
    try:
        with open(path, "rb") as file:
            head = file.read(wal_names.HEADER.size)
            length = os.fstat(file.fileno()).st_size
    except OSError:
        return False
    if wal_names.is_segment(path.name):
        return length == size and wal_names.is_what_it_says(path.name, head, size)
    return length > 0


# ------------------------------------------------------------ one server's log


@dataclass(frozen=True, slots=True)
class _Log:
    system: str
    snapshots: Sequence[Snapshot]  # newest first
    size: int  # of segments; a server's are all as large

    def runs(self) -> list[wal_names.Run]:
        return [run for one in self.snapshots for run in _runs(one)]

    def has(self, name: str, snapshot: Snapshot) -> bool:
        if wal_names.is_segment(name):
            return wal_names.covers(_runs(snapshot), [(name, name)], self.size)
        others = snapshot.facts["others"]
        return isinstance(others, list | tuple) and name in others

    def histories(self) -> dict[int, str]:
        """By timeline."""
        return {line: text for line, (text, _) in self._histories().items()}

    def _histories(self) -> dict[int, tuple[str, int]]:
        """Each timeline's history, and when it began (ns)."""
        found: dict[int, tuple[str, int]] = {}
        for one in self.snapshots:
            histories = one.facts["histories"]
            if isinstance(histories, Mapping):
                found |= {
                    wal_names.timeline(name): (str(text), int(began)) for name, (text, began) in histories.items()
                }
        return found

    def timeline(self, until: datetime | None) -> int | None:
        """That on which the server was then; or the newest. None where there is none."""
        began: dict[int, int] = {}
        for one in self.snapshots:  # the oldest last: where there is no history, when it was first seen
            began |= {wal_names.timeline(first): to_ns(one.time) for first, _ in _runs(one)}
        if began:
            began[min(began)] = 0
        began |= {line: at for line, (_, at) in self._histories().items()}
        if until is None:
            return max(began, default=None)
        running = [line for line, at in began.items() if at <= to_ns(until)]
        return max(running, default=min(began, default=None))

    def goes_on_without(self, name: str) -> bool:
        """Whether what is there of the log comes after that file, which is not there."""
        line, lines = wal_names.timeline(name), {wal_names.timeline(last) for _, last in self.runs()}
        if wal_names.is_history(name):
            return line > 1 and any(later >= line for later in {*lines, *self._histories()})  # the first left none
        if not wal_names.is_segment(name):
            return False
        own, which = self.histories().get(line), wal_names.number(name, self.size)
        fork = wal_names.forks(own or "", self.size)[-1:]
        if fork and which < fork[0][1]:
            return False  # of before the timeline began
        if fork and which == fork[0][1] and line not in lines:
            return True  # a life of which nothing but its beginning was archived: the one before would go on in it
        if any(wal_names.timeline(last) == line and last > name for _, last in self.runs()):
            return True
        return any(
            parent == line and which < fork
            for child, text in self.histories().items()
            if child in lines
            for parent, fork in wal_names.forks(text, self.size)
        )

    def range(self, run: wal_names.Run, until: datetime | None) -> Range:
        return Range(
            system=self.system,
            timeline=wal_names.timeline(run[0]),
            first=run[0],
            last=run[1],
            segments=wal_names.length(run, self.size),
            segment_size=self.size,
            until=until,
        )


def _logs(repository: Repository, dataset: str) -> list[_Log]:
    """By server, the oldest first. NotFound, Damaged."""
    _refuse_damage(repository)
    return _by_server(_snapshots(repository, dataset))


def _by_server(snapshots: Sequence[Snapshot]) -> list[_Log]:
    servers: dict[str, list[Snapshot]] = {}
    for one in reversed(snapshots):
        servers.setdefault(str(one.facts["system"]), []).insert(0, one)
    sizes = {
        system: max(int(str(one.facts["segment_size"])) for one in own) or wal_names.USUAL_SIZE
        for system, own in servers.items()
    }
    return [_Log(system, own, sizes[system]) for system, own in servers.items()]


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
            remedy="Run check, and restore that object from another location; or say, with --despite-damage, that it "
            "is none of the log.",
        )


def _runs(snapshot: Snapshot) -> list[wal_names.Run]:
    runs = snapshot.facts["runs"]
    return [(str(first), str(last)) for first, last in runs] if isinstance(runs, list | tuple) else []


def _fetch_ahead(snapshot: Snapshot, name: str, ahead: Path, log: _Log) -> None:
    """Those after it, as far as this snapshot has them. What goes wrong is told when it is asked for."""
    with suppress(Error, OSError):
        ahead.mkdir(mode=0o700, exist_ok=True)
        for _ in range(max(1, FETCH_AHEAD // log.size)):
            name = wal_names.after(name, log.size)
            if not log.has(name, snapshot):
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
