"""PostgreSQL's write-ahead log (WAL), archived file by file while the server runs.

The server keeps every file until its `archive_command` has ended well. Ours waits for a mark that is written once the
snapshot with the file is committed, and compares the file with what was stored by its hash: nothing is acknowledged
that is not safe. docs/minute.md tells how it is set up.

A snapshot holds what is new, and again, without reading or storing it anew, all that was archived in the two hours
before. So the last snapshot of each hour holds all that those before it in that hour do, and `Keep(hourly=…)` thins
them out without a gap.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from pharmabackup.errors import InvalidInput, SourceFailed
from pharmabackup.sources import wal_command, wal_names
from pharmabackup.sources.base import FILE, FolderColumns, Kept, Sink, Source, StrPath, View
from pharmabackup.sources.parts import part_end
from pharmabackup.sources.rows import ROW
from pharmabackup.sources.trouble import reason
from pharmabackup.sources.wal_settings import archive_command

AGAIN_S = 2 * 3600  # how long what was archived is part of each snapshot
MODE = 0o100600
READY = ".ready"
AT_ONCE = 16  # new files in a snapshot: the server hears of the first while the next are archived


@dataclass(frozen=True, slots=True)
class _Taken:
    """A file that is part of the snapshot that is being made."""

    name: str
    size: int
    mtime_ns: int
    chunks: int
    mark: str | None  # what is noted of it; None: it was archived before


class PostgreSQLWAL(Source):
    """What a PostgreSQL server on this machine has written since it was last archived (docs/minute.md).

    `data`: the server's data folder, of which `pg_wal` has to be readable. `spool`: a folder of this source's own,
    in which it notes what is safe, and which the server's account can read and nobody else write to. Set the server's
    `archive_mode = on`, its `archive_command` to this source's, and `archive_timeout = 60` for a minute at most
    between what happens and its archiving. Then have `Repository.follow` call for it every second or so.

    A gap, as when archiving was switched off for a while, is the finding `wal-gap`: no restore can go past it.
    """

    kind = "postgresql-wal"

    def __init__(self, data: StrPath, *, spool: StrPath, name: str, tier: int = 1) -> None:
        super().__init__(name, tier)
        folders = os.fspath(data), os.fspath(spool)
        if not all(folders) or any("\0" in folder for folder in folders):
            raise InvalidInput("A folder's name is empty, or holds a zero byte.", remedy="Name the server's folder.")
        self._data, self._spool = map(os.path.abspath, folders)
        self._log = os.path.join(self._data, "pg_wal")

    @property
    def archive_command(self) -> str:
        """What the server's setting of that name has to be."""
        return archive_command(self._spool)

    def location(self) -> Path:
        return Path(self._log)

    def changed(self) -> bool:
        with self._told():
            return any(self._waiting(self._marks()))

    def view(self, *, scratch: Path) -> AbstractContextManager[View]:  # noqa: ARG002
        return self._view()

    @contextmanager
    def _view(self) -> Iterator[View]:
        with self._told():
            os.scandir(os.path.join(self._log, "archive_status")).close()
            Path(self._marked()).mkdir(mode=0o755, parents=True, exist_ok=True)
        yield _Files(self)

    # ------------------------------------------------------------ what is there

    def _marked(self) -> str:
        """Where the marks are; of another cluster, they would be others'."""
        return os.path.join(self._spool, wal_command.system(self._data))

    def _marks(self) -> dict[str, float]:
        """What is archived, as far as it is remembered here, and since when."""
        try:
            with os.scandir(self._marked()) as entries:
                return {
                    entry.name: entry.stat().st_mtime for entry in entries if wal_names.FILE.fullmatch(entry.name)
                }
        except FileNotFoundError:
            return {}

    def _waiting(self, marks: Mapping[str, float]) -> Iterator[str]:
        """What the server wants to have archived, and is not."""
        for entry in os.listdir(os.path.join(self._log, "archive_status")):
            name = entry.removesuffix(READY)
            if name != entry and name not in marks and wal_names.FILE.fullmatch(name):
                yield name

    def _is_ready(self, name: str) -> bool:
        return os.path.exists(os.path.join(self._log, "archive_status", name + READY))

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> SourceFailed:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            what, kind, remedy = "is not there", "missing", "Check that it is the data folder of a PostgreSQL server."
        elif isinstance(error, PermissionError):
            what, kind = "may not be read or written", "permission"
            remedy = "Run this as the server's account, which also has to own the spool."
        else:
            what, kind, remedy = f"cannot be used ({reason(error)})", "tool-failed", "Check the disk that it is on."
        where = error.filename or self._spool
        return SourceFailed(f"{where} {what}.", kind=kind, remedy=remedy, dataset=self.name)


class _Files(View):
    def __init__(self, source: PostgreSQLWAL) -> None:
        self._source = source
        self._taken: list[_Taken] = []

    def dump(self, sink: Sink) -> Mapping[str, object]:
        source, self._taken = self._source, []
        with source._told():
            marks = source._marks()
            waiting = set(sorted(source._waiting(marks))[:AT_ONCE])
        since = time.time() - AGAIN_S
        names = sorted({*waiting, *(name for name, archived in marks.items() if archived > since)})
        start = 0
        while start < len(names) or not start:
            end = part_end([name.encode() for name in names], start)
            self._part(sink, names[start:end], waiting)
            if end == len(names):
                break
            start = end
        self._look_for_gaps(sink, marks, waiting)
        return self._facts()

    def _part(self, sink: Sink, names: Sequence[str], waiting: set[str]) -> None:
        previous = sink.previous(b"", [name.encode() for name in names])
        known = {} if previous is None else previous.entries()
        taken = [found for name in names if (found := self._file(sink, name, waiting, known.get(name.encode())))]
        self._taken += taken
        n = len(taken)
        columns = FolderColumns(
            names=[one.name.encode() for one in taken],
            kinds=bytearray([FILE] * n),
            modes=[MODE & 0o7777] * n,
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
        if name in waiting:
            with self._source._told(), open(os.path.join(self._source._log, name), "rb", buffering=0) as file:
                return self._read(sink, name, file)
        if kept is None:
            return None  # an earlier snapshot has it, and this machine does not know where
        sink.keep_file(kept)
        return _Taken(name, kept.size, ROW.unpack(kept.row)[4], kept.chunks, None)

    def _read(self, sink: Sink, name: str, file: FileIO) -> _Taken:
        status, found, head = os.fstat(file.fileno()), hashlib.sha256(), bytearray()

        def read_into(view: memoryview) -> int:
            got = file.readinto(view) or 0
            found.update(view[:got])
            if len(head) < wal_names.HEADER.size:
                head.extend(view[: min(got, wal_names.HEADER.size)])
            return got

        chunks, stored = sink.stream(read_into)
        whole = stored == status.st_size and self._source._is_ready(name)
        if wal_names.is_segment(name):
            whole = whole and wal_names.is_what_it_says(name, bytes(head), stored)
        if not whole:
            raise SourceFailed(
                f"{name} changed while it was read, or is not what its name says.",
                kind="changed",
                remedy="It is tried again; if that fails too, check the disk and make a new backup of the server.",
                dataset=self._source.name,
            )
        return _Taken(name, stored, status.st_mtime_ns, chunks, wal_command.mark(found.hexdigest(), status))

    def _look_for_gaps(self, sink: Sink, marks: Mapping[str, float], waiting: set[str]) -> None:
        size = max((one.size for one in self._taken if wal_names.is_segment(one.name)), default=0)
        fresh = sorted(filter(wal_names.is_segment, waiting))
        before = max(filter(wal_names.is_segment, marks), default=None)
        for name in fresh:
            if before is not None and (missing := wal_names.misses(before, name, size)):
                sink.finding(
                    "wal-gap",
                    name.encode(),
                    f"{missing} segments before {name} were never given to archive: no restore goes past them.",
                    "Back up the whole server now; a restore to a time after that needs none of them.",
                    severity="critical",
                )
            before = max(name, before or name)

    def _facts(self) -> Mapping[str, object]:
        segments = [one for one in self._taken if wal_names.is_segment(one.name)]
        return {
            "system": os.path.basename(self._source._marked()),
            "segments": len(segments),
            "first": min((one.name for one in segments), default=""),
            "last": max((one.name for one in segments), default=""),
            "segment_size": max((one.size for one in segments), default=0),
            "others": [one.name for one in self._taken if not wal_names.is_segment(one.name)],
        }

    def committed(self) -> None:
        """The server may let go of what was read; what it has let go of longer ago is forgotten here."""
        source, old = self._source, time.time() - AGAIN_S
        with source._told():
            folder = source._marked()
            for one in self._taken:
                if one.mark is not None:
                    _write(os.path.join(folder, one.name), one.mark)
            marks = source._marks()
            newest = max(filter(wal_names.is_segment, marks), default=None)
            for name, archived in marks.items():
                if archived < old and name != newest and not source._is_ready(name):
                    os.unlink(os.path.join(folder, name))


def _write(path: str, text: str) -> None:
    fresh = f"{path}.{os.urandom(4).hex()}"
    with open(fresh, "x", encoding="ascii") as file:
        file.write(text)
    os.chmod(fresh, 0o644)
    os.replace(fresh, path)
