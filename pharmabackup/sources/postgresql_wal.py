"""PostgreSQL's write-ahead log (WAL), archived file by file while the server runs.

The server keeps every file until its `archive_command` has ended well. Ours waits for a mark that is written once the
snapshot with the file is committed, and sees by it that this is the very file that was read, or has its SHA-256:
nothing is acknowledged that is not safe. docs/minute.md tells how it is set up.

A snapshot holds what is new, and again, without reading or storing it anew, all that was archived in the two hours
before. So the last snapshot of each hour holds all that those before it in that hour do, and one an hour is enough.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from pharmabackup.errors import InvalidInput, SourceFailed
from pharmabackup.sources import wal_command, wal_names
from pharmabackup.sources.base import FILE, FolderColumns, Kept, Sink, Source, StrPath, View
from pharmabackup.sources.parts import part_end
from pharmabackup.sources.rows import ROW
from pharmabackup.sources.wal_settings import archive_command, lines
from pharmabackup.sources.wal_spool import Marks, Spool

AGAIN_S = 2 * 3600  # how long what was archived is part of each snapshot
AT_ONCE = 16  # new files in a snapshot: the server hears of the first while the next are archived
ARCHIVE_TIMEOUT_S = 60
MODE = 0o100600
HEAD = 8192  # bytes of a file's beginning that are looked at: a segment's header, a whole history file
READY = ".ready"


@dataclass(frozen=True, slots=True)
class _Taken:
    """A file that is part of the snapshot that is being made."""

    name: str
    size: int
    mtime_ns: int
    chunks: int
    mark: str | None  # what is noted of it; None: it was archived before
    history: str  # its text, if it is a history file


class PostgreSQLWAL(Source):
    """What a PostgreSQL server on this machine has written since it was last archived (docs/minute.md).

    `data`: the server's data folder, of which `pg_wal` has to be readable. `spool`: a folder of this source's own,
    in which it notes what is safe, and which the server's account can read and nobody else write to. `settings` are
    the lines that the server's configuration needs. Then have `Repository.follow` call for it every second or so.

    A gap, as when archiving was switched off for a while, is the finding `wal-gap`: no restore can go past it.
    """

    kind = "postgresql-wal"

    def __init__(self, data: StrPath, *, spool: StrPath, name: str, tier: int = 1) -> None:
        super().__init__(name, tier)
        folders = os.fspath(data), os.fspath(spool)
        if not all(folders) or any("\0" in folder for folder in folders):
            raise InvalidInput("A folder's name is empty, or holds a zero byte.", remedy="Name the server's folder.")
        self._data = os.path.abspath(folders[0])
        self._log = os.path.join(self._data, "pg_wal")
        self._spool = Spool(os.path.abspath(folders[1]), self._data, name)

    @property
    def archive_command(self) -> str:
        """What the server's setting of that name has to be."""
        return archive_command(self._spool.folder)

    @property
    def settings(self) -> list[str]:
        """Lines for the server's configuration."""
        wanted = {"archive_mode": "on", "archive_timeout": str(ARCHIVE_TIMEOUT_S)}
        return lines(wanted | {"archive_command": self.archive_command})

    def location(self) -> Path:
        return Path(self._log)

    def changed(self) -> bool:
        with self._spool.told():
            return any(self._waiting(self._spool.marks()))

    def view(self, *, scratch: Path) -> AbstractContextManager[View]:  # noqa: ARG002
        return self._view()

    @contextmanager
    def _view(self) -> Iterator[View]:
        with self._spool.told():
            os.scandir(os.path.join(self._log, "archive_status")).close()
            self._spool.make()
            marks = self._spool.marks()
        yield _Files(self, marks)

    def _waiting(self, marks: Marks) -> Iterator[str]:
        """What the server wants to have archived, and is not, as far as its mark shows."""
        for entry in os.listdir(os.path.join(self._log, "archive_status")):
            name = entry.removesuffix(READY)
            if name != entry and wal_names.FILE.fullmatch(name) and not self._is_safe(name, marks):
                yield name

    def _is_safe(self, name: str, marks: Marks) -> bool:
        with suppress(FileNotFoundError):  # the server has let go of it meanwhile
            return marks.fits(name, os.stat(os.path.join(self._log, name)))
        return True

    def _is_ready(self, name: str) -> bool:
        return os.path.exists(os.path.join(self._log, "archive_status", name + READY))


class _Files(View):
    holds_back = True

    def __init__(self, source: PostgreSQLWAL, marks: Marks) -> None:
        self._source = source
        self._spool = source._spool
        self._marks = marks
        self._taken: list[_Taken] = []
        self._ever: Sequence[wal_names.Run] = ()
        self._repository = ""

    def dump(self, sink: Sink) -> Mapping[str, object]:
        self._taken, self._repository = [], sink.repository
        with self._spool.told():
            self._spool.check(sink.repository)
            marks = self._marks.names()
            ready = sorted(
                self._source._waiting(self._marks), key=lambda name: (not wal_names.is_history(name), name)
            )
            waiting = set(ready[:AT_ONCE])  # histories first, as the server asks for them
        since = time.time() - AGAIN_S
        again = (name for name, archived in marks.items() if archived > since or wal_names.is_history(name))
        names, start = sorted({*waiting, *again}), 0
        encoded = [name.encode() for name in names]
        while True:
            end = part_end(encoded, start)
            self._part(sink, names[start:end], waiting)
            if end >= len(names):
                break
            start = end
        size = max((one.size for one in self._taken if wal_names.is_segment(one.name)), default=0)
        runs = self._look_for_gaps(sink, size)
        return self._facts(size, runs)

    def _part(self, sink: Sink, names: Sequence[str], waiting: set[str]) -> None:
        previous = sink.previous(b"", [name.encode() for name in names])
        known = {} if previous is None else previous.entries()
        taken = [found for name in names if (found := self._file(sink, name, waiting, known.get(name.encode())))]
        self._taken += taken
        n = len(taken)
        columns = FolderColumns(
            names=[one.name.encode() for one in taken],
            kinds=bytearray([FILE] * n),
            modes=[stat.S_IMODE(MODE)] * n,
            uids=[0] * n,
            gids=[0] * n,
            mtimes=[one.mtime_ns for one in taken],
            sizes=[one.size for one in taken],
            chunks=[one.chunks for one in taken],
            stored=[one.size for one in taken],
        )
        rows = b"".join(ROW.pack(MODE, 0, 0, one.size, one.mtime_ns, 0, 0, 1) for one in taken)
        sink.folder(b"", columns, rows)

    def _file(self, sink: Sink, name: str, waiting: set[str], kept: Kept | None) -> _Taken | None:
        path = os.path.join(self._source._log, name)
        if name in waiting:
            with self._spool.told(), open(path, "rb", buffering=0) as file:
                return self._read(sink, name, file, asked_for=True)
        if kept is not None:
            sink.keep_file(kept)
            text = self._marks.history(name) if wal_names.is_history(name) else ""
            return _Taken(name, kept.size, ROW.unpack(kept.row)[4], kept.chunks, None, text)
        with suppress(OSError), open(path, "rb", buffering=0) as file:  # this machine has forgotten where it is
            if self._marks.fits(name, os.fstat(file.fileno())):
                return self._read(sink, name, file, asked_for=False)
        return None  # an earlier snapshot has it; `forget` lets that go for none that lacks it

    def _read(self, sink: Sink, name: str, file: FileIO, *, asked_for: bool) -> _Taken:
        status, found, head = os.fstat(file.fileno()), hashlib.sha256(), bytearray()

        def read_into(view: memoryview) -> int:
            got = file.readinto(view) or 0
            found.update(view[:got])
            if len(head) < HEAD:
                head.extend(view[: min(got, HEAD)])
            return got

        chunks, stored = sink.stream(read_into)
        whole = stored == status.st_size and (not asked_for or self._source._is_ready(name))
        if wal_names.is_segment(name):
            whole = whole and wal_names.is_what_it_says(name, bytes(head), stored)
        if not whole:
            raise self._failed(
                f"{name} changed while it was read, or is not what its name says.",
                "It is tried again; if that fails too, check the disk and make a new backup of the server.",
            )
        if self._marks.digest(name) not in (None, found.hexdigest()):
            raise self._another(name)
        text = bytes(head[:stored]).decode("utf-8", "replace") if wal_names.is_history(name) else ""
        noted = wal_command.mark(found.hexdigest(), status)
        return _Taken(name, stored, status.st_mtime_ns, chunks, noted, text)

    def _another(self, name: str) -> SourceFailed:
        return self._failed(
            f"{name} is another than the file that was archived under that name: this server was restored without "
            "its archived log, or is a copy that runs beside the other.",
            "Give this server's log a dataset and a spool of its own, and back up its files.",
        )

    def _failed(self, what: str, remedy: str) -> SourceFailed:
        return SourceFailed(what, kind="changed", remedy=remedy, dataset=self._source.name)

    def _look_for_gaps(self, sink: Sink, size: int) -> list[wal_names.Run]:
        """All segments that are safe when this is; what is missing now in the log, and was not before, is told."""
        if not size:
            return []
        before = self._marks.runs()
        own = wal_names.runs((one.name for one in self._taken if wal_names.is_segment(one.name)), size)
        there = wal_names.joined([*before, *own], size)
        histories = {wal_names.timeline(one.name): one.history for one in self._taken if one.history}
        known = wal_names.gaps(before, histories, size)
        for first, last in wal_names.gaps(there, histories, size):
            if not wal_names.covers(known, [(first, last)], size):
                count = wal_names.length((first, last), size)
                sink.finding(
                    "wal-gap",
                    first.encode(),
                    f"{count} files of the log from {first} on are not archived: no restore goes past them.",
                    "Back up the whole server now, unless they come yet; a restore to a time after that needs none.",
                    severity="critical",
                    harms=False,
                )
        return there

    def _facts(self, size: int, ever: Sequence[wal_names.Run]) -> Mapping[str, object]:
        segments = [one.name for one in self._taken if wal_names.is_segment(one.name)]
        self._ever = ever
        return {
            "system": self._marks.system,
            "segment_size": size,
            "segments": len(segments),
            "runs": [list(run) for run in wal_names.runs(segments, size)] if segments else [],
            "others": [one.name for one in self._taken if not wal_names.is_segment(one.name)],
            "histories": {one.name: [one.history, one.mtime_ns] for one in self._taken if one.history},
        }

    def committed(self) -> None:
        """The server may let go of what was read; what it has let go of longer ago is forgotten here."""
        marks, old = self._marks, time.time() - AGAIN_S
        with self._spool.told():
            self._spool.own(self._repository)
            if self._ever:
                marks.note_runs(self._ever)
            for one in self._taken:
                if one.mark is not None:
                    marks.note(one.name, one.mark, one.history)
            marks.forget(
                name
                for name, archived in marks.names().items()
                if archived < old and not wal_names.is_history(name) and not self._source._is_ready(name)
            )
