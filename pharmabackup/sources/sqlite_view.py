"""A stable, consistent view of a live SQLite database, to be read like a file.

Copying the file of a database in use gives a torn mixture (https://sqlite.org/howtocorrupt.html, 1.2).
`view` takes the better of two ways around it that can be had:

frozen  For WAL databases: the main file itself is read; nothing is copied, no data lands in temporary files.
        One connection takes the write lock for milliseconds so that nobody appends to the WAL, another
        checkpoints all of it into the main file and opens a read transaction. Until that ends the main
        file is the whole database and does not change: the transaction holds read lock 0, which
        a checkpoint must own exclusively to write, or a read mark at the end of the checkpointed frames,
        beyond which no checkpoint goes (https://sqlite.org/walformat.html, 2.3.1; walTryBeginRead and
        walCheckpoint in wal.c). Leaving WAL mode, clean-up by the last connection and exclusive locking
        mode need an exclusive lock, which the transaction's shared lock forbids. Writers go on in the
        WAL, which grows until the view ends.
copied  For rollback-journal databases, whose readers block writers, and WAL databases that cannot be frozen:
        SQLite's backup API (https://sqlite.org/backup.html) into a private file, without a name on
        POSIX, so that not even a killed process leaves it behind. Pages are copied verbatim, except for
        counters in the header on page 1 (offsets 24, 40, 92, 96).

An application that has the database open in this process must use the SQLite library that Python's `sqlite3`
uses (https://sqlite.org/howtocorrupt.html, 2.2.1). `SourceFailed.kind` is a key of `sqlite_errors.ERRORS`.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from pharmabackup.sources import descriptors
from pharmabackup.sources.base import StrPath
from pharmabackup.sources.descriptors import identity, pread_into
from pharmabackup.sources.sqlite_access import (
    Facts,
    begin_read,
    connect,
    find,
    has_journal,
    journal_mode,
    read_facts,
    restore_checks,
    rolled_back,
    value,
)
from pharmabackup.sources.sqlite_copy import copy_database
from pharmabackup.sources.sqlite_errors import KINDS, code, failed, source_error

__all__ = ["LOCK_BYTE", "Facts", "SQLiteView", "restore_checks", "view"]

LOCK_BYTE = 1 << 30  # the page here is never used: https://sqlite.org/fileformat2.html, 1.3


@dataclass(frozen=True, slots=True, kw_only=True)
class SQLiteView:
    """The bytes of one committed state. Several threads may read while the view is open."""

    size: int
    page_size: int
    mode: Literal["frozen", "copied"]
    facts: Facts
    dataset: str
    _fd: int = field(repr=False)
    # When the file that is read was last written to, where that must not change.
    _written: int | None = field(repr=False)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` from `offset`. Returns the number of bytes, less than asked only at the end.

        The page with SQLite's lock bytes is given as zeros: it holds nothing, and on Windows other
        processes' locks would make reading it fail.
        """
        end = max(offset, min(offset + len(buffer), self.size))
        if offset < LOCK_BYTE + self.page_size and end > LOCK_BYTE:
            gap, after = max(offset, LOCK_BYTE), min(end, LOCK_BYTE + self.page_size)
            self._fill(offset, buffer[: gap - offset])
            buffer[gap - offset : after - offset] = bytes(after - gap)
            self._fill(after, buffer[after - offset : end - offset])
        else:
            self._fill(offset, buffer[: end - offset])
        return end - offset

    def check(self) -> None:
        """All was read: that nobody wrote meanwhile who ignores SQLite's locks. SourceFailed."""
        if self._written is None:
            return
        try:
            now = os.fstat(self._fd).st_mtime_ns
        except OSError as error:
            raise source_error("tool-failed", self.dataset, type(error).__name__) from error
        if now != self._written:
            raise source_error("changed", self.dataset, "file written")

    def _fill(self, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            try:
                got = pread_into(self._fd, buffer[done:], offset + done)
            except OSError as error:
                raise source_error("tool-failed", self.dataset, type(error).__name__) from error
            if got == 0:
                raise source_error("changed", self.dataset, "file too short")
            done += got


@contextmanager
def view(
    path: StrPath,
    *,
    dataset: str,
    count: Sequence[str] = (),
    scratch: StrPath | None = None,
    timeout: timedelta = timedelta(seconds=30),
) -> Iterator[SQLiteView]:
    """One committed state of the database at `path`, unchanging while the context is open.

    `timeout` bounds the waiting for locks; half of it goes to freezing, before a WAL database is copied.
    """
    target = os.fspath(path)
    before = find(target, dataset)
    with ExitStack() as stack:
        try:
            deadline = time.monotonic() + timeout.total_seconds()
            source, immutable = _open(stack, target, dataset, timeout.total_seconds())
            journal = "wal" if immutable else journal_mode(source)
            frozen = immutable or (journal == "wal" and _freeze(source, target, timeout.total_seconds() / 2))
            if frozen:
                fd = _share(stack, target)
                facts = read_facts(source, journal, count, dataset)
            else:
                fd, facts = copy_database(stack, source, journal, count, scratch, dataset, deadline)
        except sqlite3.Error as error:
            raise failed(error, dataset) from error
        except OSError as error:
            raise source_error("permission", dataset, type(error).__name__) from error
        size = facts["page_size"] * facts["pages"]
        if frozen:
            start = os.fstat(fd)
            if identity(start) != identity(before):
                raise source_error("changed", dataset, "file replaced")
            if start.st_size < size:
                raise source_error("damaged", dataset, "file shorter than its header says")
        mode: Literal["frozen", "copied"] = "frozen" if frozen else "copied"
        # Windows sets times late.
        written = start.st_mtime_ns if frozen and sys.platform != "win32" else None
        page_size = facts["page_size"]
        yield SQLiteView(
            size=size, page_size=page_size, mode=mode, facts=facts, dataset=dataset, _fd=fd, _written=written
        )


def _open(stack: ExitStack, path: str, dataset: str, timeout: float) -> tuple[sqlite3.Connection, bool]:
    """A connection that has proved it can read, and whether it is an immutable one.

    It is opened for writing, which recovery after a crash and checkpoints need, but refuses statements that
    write. Without a -shm file and without the right to create one, a WAL database can only be read as
    immutable (https://sqlite.org/wal.html, "Read-Only Databases"), which ignores locks and the WAL: so
    only on a medium that cannot be written to, and when nothing is in the WAL.
    """
    source = stack.enter_context(closing(connect(path, "mode=rw", timeout)))
    try:
        source.execute("PRAGMA query_only = 1")
        with rolled_back(source):
            begin_read(source)
            if value(source, "PRAGMA page_count") == 0 and os.stat(path).st_size:
                raise source_error("not-a-database", dataset, "file too short")  # SQLite takes it for a new one
        return source, False
    except sqlite3.Error as error:
        if code(error) not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise
        if not _medium_is_read_only(path) or has_journal(path):
            raise
    source = stack.enter_context(closing(connect(path, "mode=ro&immutable=1", 0)))
    begin_read(source)
    return source, True


def _share(stack: ExitStack, path: str) -> int:
    """A descriptor of the main file; from now on nobody here closes one of it, or of the file with WAL's locks."""
    if sys.platform != "win32":
        with suppress(FileNotFoundError):
            stack.enter_context(descriptors.shared(os.path.realpath(path) + "-shm"))
    return stack.enter_context(descriptors.shared(path))


def _freeze(source: sqlite3.Connection, path: str, timeout: float) -> bool:
    """Whether the main file is now the whole database, and stays it until `source` ends its transaction."""
    give_up = time.monotonic() + timeout
    pause = 0.01
    with closing(connect(path, "mode=rw", timeout)) as writer:
        while True:
            try:
                if _freeze_once(source, writer, give_up, hold=2 * pause):
                    return True
            except sqlite3.OperationalError as error:
                if code(error) == sqlite3.SQLITE_READONLY:
                    return False
                if KINDS.get(code(error)) != "locked":
                    raise
            if time.monotonic() >= give_up:
                return False
            time.sleep(pause)
            pause = min(2 * pause, 0.125)


def _freeze_once(source: sqlite3.Connection, writer: sqlite3.Connection, give_up: float, hold: float) -> bool:
    """One try. Most is checkpointed before the write lock is taken, so that writers hardly wait.

    A reader is open meanwhile, so that no writer can restart the WAL under this checkpoint: SQLite before
    3.51.3 could corrupt the database by that (https://sqlite.org/wal.html#walresetbug).
    """
    with rolled_back(writer):
        begin_read(writer)
        _checkpoint(source)
    with rolled_back(writer):
        writer.execute(f"PRAGMA busy_timeout = {max(1, round(1000 * (give_up - time.monotonic())))}")
        writer.execute("BEGIN IMMEDIATE")
        until = time.monotonic() + hold
        while not _checkpoint(source):  # readers of older states hold it up: they get a moment to end
            if time.monotonic() >= until:
                return False
            time.sleep(0.002)
        try:
            begin_read(source)
        except sqlite3.Error:
            source.rollback()
            raise
        return True


def _checkpoint(connection: sqlite3.Connection) -> bool:
    """Whether all of the WAL is in the main file now (https://sqlite.org/pragma.html#pragma_wal_checkpoint)."""
    busy, frames, done = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return bool(not busy and frames == done >= 0)


def _medium_is_read_only(path: str) -> bool:
    return sys.platform != "win32" and bool(os.statvfs(path).f_flag & os.ST_RDONLY)
