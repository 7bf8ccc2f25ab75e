"""SQLite: a database in use, as one consistent file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from pharmabackup.clock import now_ns
from pharmabackup.errors import InvalidInput, SourceFailed
from pharmabackup.sources.base import FILE, FolderColumns, Sink, Source, StrPath, View
from pharmabackup.sources.sqlite_view import SQLiteView, restore_checks
from pharmabackup.sources.sqlite_view import view as sqlite_view

Stamp = tuple[tuple[int, int, int] | None, ...]
"""Size, time of change (ns) and inode of a database's files, as far as they are there."""
TOO_NEW_NS = 2 * 10**9  # within the coarsest file system's tick, another write leaves the time as it is


class SQLite(Source):
    """One committed state of a live database. Writers go on; they wait for milliseconds at most.

    Restored, it is a folder with the database file in it, under its own name and without journals. `count` names
    tables whose rows are counted now and again after a restore.
    """

    kind = "sqlite"

    def __init__(self, path: StrPath, *, name: str | None = None, tier: int = 3, count: Sequence[str] = ()) -> None:
        text = os.fspath(path)
        if not text or "\0" in text:
            raise InvalidInput("A path is empty or holds a zero byte.", remedy="Name the database file.")
        if isinstance(count, str):
            raise InvalidInput("The tables to count are a list, not one text.", remedy=f"Write [{count!r}].")
        self._path = os.path.abspath(text)
        super().__init__(Path(self._path).stem if name is None else name, tier)
        self._count = tuple(count)
        self._saved: tuple[Stamp, int] | None = None

    def changed(self) -> bool:
        """By the files' sizes and times; of what was written just before it was looked at, those prove nothing."""
        if self._saved is None:
            return True
        stamp, looked = self._saved
        times = (file[1] for file in stamp if file is not None)
        too_new = any(looked - TOO_NEW_NS < time < looked + TOO_NEW_NS for time in times)
        return too_new or _stamp(self._path) != stamp

    def covers(self, path: Path) -> bool:
        return os.path.realpath(path) == os.path.realpath(self._path)

    def location(self) -> Path:
        return Path(self._path)

    def view(self, *, scratch: Path) -> AbstractContextManager[View]:
        return self._view(scratch)

    @contextmanager
    def _view(self, scratch: Path) -> Iterator[View]:
        before = _stamp(self._path), now_ns()
        with sqlite_view(self._path, dataset=self.name, count=self._count, scratch=scratch) as open_view:
            yield _DatabaseView(self, open_view, before)

    def note(self, saved: tuple[Stamp, int]) -> None:
        """What is safe: files that looked so, and when they did (ns)."""
        self._saved = saved

    def verify(self, restored: Path, entries: Sequence[bytes]) -> Mapping[str, object]:
        """Whether it opens, and the rows of the counted tables. SourceFailed.

        Not `PRAGMA integrity_check`, which takes as long as the restore itself: every byte was verified on its way,
        and what was backed up was one committed state. Drills ask it.
        """
        if len(entries) != 1:
            raise SourceFailed(
                f"{self.name!r} is not one database file, as it should be.",
                kind="damaged",
                remedy="Restore an earlier snapshot.",
                dataset=self.name,
            )
        file = restored / os.fsdecode(entries[0])
        return dict(restore_checks(file, self._count, dataset=self.name, integrity=False))


class _DatabaseView(View):
    def __init__(self, source: SQLite, view: SQLiteView, before: tuple[Stamp, int]) -> None:
        path = source.location()
        self._view = view
        self._source = source
        self._before = before
        self._name = os.fsencode(os.path.basename(path))
        self._status = os.stat(path)

    def dump(self, sink: Sink) -> Mapping[str, object]:
        view, status = self._view, self._status
        chunks, stored = sink.pages(view.read_into, size=view.size, page_size=view.page_size)
        columns = FolderColumns(
            names=[self._name],
            kinds=bytearray([FILE]),
            modes=[status.st_mode & 0o7777],
            uids=[status.st_uid],
            gids=[status.st_gid],
            mtimes=[status.st_mtime_ns],
            sizes=[stored],
            chunks=[chunks],
            stored=[stored],
        )
        sink.folder(b"", columns, b"")
        view.check()
        return dict(view.facts)

    def committed(self) -> None:
        self._source.note(self._before)


def _stamp(path: str) -> Stamp:
    """What shows whether somebody has written: of the database, its WAL and its journal."""
    found: list[tuple[int, int, int] | None] = []
    for name in (path, f"{path}-wal", f"{path}-journal"):
        try:
            status = os.stat(name)
        except OSError:
            found.append(None)
        else:
            found.append((status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(found)
