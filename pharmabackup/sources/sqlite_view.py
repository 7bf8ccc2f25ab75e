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
uses (https://sqlite.org/howtocorrupt.html, 2.2.1). `SourceFailed.kind` is a key of `_ERRORS`.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, TypedDict
from urllib.parse import quote_from_bytes

from pharmabackup.errors import SourceFailed

StrPath = str | os.PathLike[str]

LOCK_BYTE = 1 << 30  # the page here is never used: https://sqlite.org/fileformat2.html, 1.3
STEP_BYTES = 4 << 20  # what one backup step copies while it holds the source's read lock
WHOLE_BYTES = 16 << 20  # a database up to this size is copied in a single step
RESTARTS = 3  # a stepwise copy that writers threw back this often is done in a single step
SPARE_BYTES = 16 << 20  # what must stay free on the scratch disk: others work there too

_ERRORS = {
    "missing": ("does not exist", "Check its path, and whether its disk is connected."),
    "not-a-file": ("is not a file", "Name the database file."),
    "not-a-database": ("is encrypted or not an SQLite database", "Let its application export it."),
    "permission": ("cannot be opened", "Run this as a user who may write to the database and its folder."),
    "locked": ("is locked by another program", "Let that program finish, or close it."),
    "damaged": ("is damaged", "Repair it or restore an earlier backup."),
    "changed": ("was replaced or written past SQLite while it was read", "Take the backup again."),
    "table-missing": ("lacks a table that is to be counted", "Check whether it is the right database."),
    "tool-failed": ("could not be read", "Check the database and its disk."),
}
_SCRATCH = ("cannot be copied to the scratch disk", "Free space on the scratch disk, or name another one.")
_KINDS = {
    sqlite3.SQLITE_BUSY: "locked",
    sqlite3.SQLITE_LOCKED: "locked",
    sqlite3.SQLITE_PROTOCOL: "locked",
    sqlite3.SQLITE_NOTADB: "not-a-database",
    sqlite3.SQLITE_CORRUPT: "damaged",
    sqlite3.SQLITE_CANTOPEN: "permission",
    sqlite3.SQLITE_READONLY: "permission",
}


class Facts(TypedDict):
    """What the snapshot says about itself; `rows` counts the tables asked for."""

    sqlite_version: str
    journal_mode: str
    page_size: int
    pages: int
    user_version: int
    rows: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SQLiteView:
    """The bytes of one committed state. Several threads may read while the view is open."""

    size: int
    page_size: int
    mode: Literal["frozen", "copied"]
    facts: Facts
    dataset: str
    _fd: int = field(repr=False)

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

    def _fill(self, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            try:
                got = _pread_into(self._fd, buffer[done:], offset + done)
            except OSError as error:
                raise _error("tool-failed", self.dataset, type(error).__name__) from error
            if got == 0:
                raise _error("changed", self.dataset, "file too short")
            done += got


_mutex = threading.Lock()  # guards _descriptors, and file positions where there is no preadv


def _pread_into(fd: int, buffer: memoryview, offset: int) -> int:
    if sys.platform != "win32":
        return os.preadv(fd, [buffer], offset)
    else:
        with _mutex:
            os.lseek(fd, offset, os.SEEK_SET)
            data = os.read(fd, len(buffer))
        buffer[: len(data)] = data
        return len(data)


@dataclass(slots=True)
class _Descriptor:
    fd: int
    users: int = 0


_descriptors: dict[tuple[int, int], _Descriptor] = {}


@contextmanager
def _descriptor(path: str) -> Iterator[int]:
    """A descriptor to read the database file with, beside the ones SQLite has.

    POSIX drops all locks a process has on a file when the process closes any descriptor of it: closing ours
    would silently unlock connections of this process (https://sqlite.org/howtocorrupt.html, 2.2). So it
    is kept for the next view: one per database, until the file has been deleted and nobody can open
    it any more. On Windows locks belong to handles, and it can be closed.
    """
    with _mutex:
        for key, entry in list(_descriptors.items()):
            if not entry.users and not os.fstat(entry.fd).st_nlink:
                os.close(_descriptors.pop(key).fd)
        known = _descriptors.get(_identity(os.stat(path)))
        if known is None:
            fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
            known = _descriptors.setdefault(_identity(os.fstat(fd)), _Descriptor(fd))
        known.users += 1
    try:
        yield known.fd
    finally:
        with _mutex:
            known.users -= 1
            if sys.platform == "win32" and not known.users:
                os.close(_descriptors.pop(_identity(os.fstat(known.fd))).fd)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _error(kind: str, dataset: str, detail: str) -> SourceFailed:
    what, remedy = _ERRORS[kind]
    message = f"The database of {dataset!r} {what} ({detail})."
    return SourceFailed(message, kind=kind, remedy=remedy, dataset=dataset)


def _scratch_error(dataset: str, detail: str) -> SourceFailed:
    message = f"The database of {dataset!r} {_SCRATCH[0]} ({detail})."
    return SourceFailed(message, kind="tool-failed", remedy=_SCRATCH[1], dataset=dataset)


def _failed(error: sqlite3.Error, dataset: str) -> SourceFailed:
    """What SQLite reported, by its code only: its own texts may quote what is in the database."""
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_TRUNCATE")):
        return _scratch_error(dataset, name)
    return _error(_KINDS.get(_code(error), "tool-failed"), dataset, name)


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


def _find(path: str, dataset: str) -> os.stat_result:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        gone = isinstance(error, FileNotFoundError | NotADirectoryError | ValueError)
        raise _error("missing" if gone else "permission", dataset, type(error).__name__) from error
    if not stat.S_ISREG(status.st_mode):
        raise _error("not-a-file", dataset, stat.filemode(status.st_mode)[0])
    return status


def _connect(path: str, options: str, timeout: float) -> sqlite3.Connection:
    """A connection by URI, every byte of the path that means something there being escaped."""
    raw = os.fsencode(os.path.abspath(path))
    if sys.platform == "win32":
        raw = b"/" * (raw[:1] != b"\\") + raw.replace(b"\\", b"/")
    uri = f"file://{quote_from_bytes(raw)}?{options}"
    return sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False)


def _value(connection: sqlite3.Connection, statement: str) -> int:
    return int(connection.execute(statement).fetchone()[0])


def _begin_read(connection: sqlite3.Connection) -> None:
    """Begin a read transaction. BEGIN alone takes no lock (https://sqlite.org/lang_transaction.html)."""
    connection.execute("BEGIN")
    _value(connection, "SELECT count(*) FROM sqlite_master")


def _journal(connection: sqlite3.Connection) -> str:
    return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


def _facts(connection: sqlite3.Connection, journal: str, count: Sequence[str], dataset: str) -> Facts:
    rows: dict[str, int] = {}
    known = {str(name).lower() for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    for table in count:
        if table.lower() not in known:
            raise _error("table-missing", dataset, repr(table))
        quoted = table.replace('"', '""')
        rows[table] = _value(connection, f'SELECT count(*) FROM "{quoted}"')  # noqa: S608
    return {
        "sqlite_version": sqlite3.sqlite_version,
        "journal_mode": journal,
        "page_size": _value(connection, "PRAGMA page_size"),
        "pages": _value(connection, "PRAGMA page_count"),
        "user_version": _value(connection, "PRAGMA user_version"),
        "rows": rows,
    }


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
    before = _find(target, dataset)
    with ExitStack() as stack:
        try:
            deadline = time.monotonic() + timeout.total_seconds()
            source, immutable = _open(stack, target, dataset, timeout.total_seconds())
            journal = "wal" if immutable else _journal(source)
            frozen = immutable or (journal == "wal" and _freeze(source, target, timeout.total_seconds() / 2))
            if frozen:
                fd, facts = stack.enter_context(_descriptor(target)), _facts(source, journal, count, dataset)
            else:
                fd, facts = _copy(stack, source, journal, count, scratch, dataset, deadline)
        except sqlite3.Error as error:
            raise _failed(error, dataset) from error
        except OSError as error:
            raise _error("permission", dataset, type(error).__name__) from error
        size = facts["page_size"] * facts["pages"]
        if frozen:
            start = os.fstat(fd)
            if _identity(start) != _identity(before):
                raise _error("changed", dataset, "file replaced")
            if start.st_size < size:
                raise _error("damaged", dataset, "file shorter than its header says")
        mode: Literal["frozen", "copied"] = "frozen" if frozen else "copied"
        yield SQLiteView(size=size, page_size=facts["page_size"], mode=mode, facts=facts, dataset=dataset, _fd=fd)
        # Defence in depth against programs that ignore SQLite's locks. Windows sets times late.
        if frozen and sys.platform != "win32" and os.fstat(fd).st_mtime_ns != start.st_mtime_ns:
            raise _error("changed", dataset, "file written")


def _open(stack: ExitStack, path: str, dataset: str, timeout: float) -> tuple[sqlite3.Connection, bool]:
    """A connection that has proved it can read, and whether it is an immutable one.

    It is opened for writing, which recovery after a crash and checkpoints need, but refuses statements that
    write. Without a -shm file and without the right to create one, a WAL database can only be read as
    immutable (https://sqlite.org/wal.html, "Read-Only Databases"), which ignores locks and the WAL: so
    only on a medium that cannot be written to, and when nothing is in the WAL.
    """
    source = stack.enter_context(closing(_connect(path, "mode=rw", timeout)))
    try:
        source.execute("PRAGMA query_only = 1")
        with _rolled_back(source):
            _begin_read(source)
            if _value(source, "PRAGMA page_count") == 0 and os.stat(path).st_size:
                raise _error("not-a-database", dataset, "file too short")  # SQLite takes it for a new one
        return source, False
    except sqlite3.Error as error:
        if _code(error) not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise
        if not _medium_is_read_only(path) or _has_journal(path):
            raise
    source = stack.enter_context(closing(_connect(path, "mode=ro&immutable=1", 0)))
    _begin_read(source)
    return source, True


def _freeze(source: sqlite3.Connection, path: str, timeout: float) -> bool:
    """Whether the main file is now the whole database, and stays it until `source` ends its transaction."""
    give_up = time.monotonic() + timeout
    pause = 0.01
    with closing(_connect(path, "mode=rw", timeout)) as writer:
        while True:
            try:
                if _freeze_once(source, writer, give_up, hold=2 * pause):
                    return True
            except sqlite3.OperationalError as error:
                if _code(error) == sqlite3.SQLITE_READONLY:
                    return False
                if _KINDS.get(_code(error)) != "locked":
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
    with _rolled_back(writer):
        _begin_read(writer)
        _checkpoint(source)
    with _rolled_back(writer):
        writer.execute(f"PRAGMA busy_timeout = {max(1, round(1000 * (give_up - time.monotonic())))}")
        writer.execute("BEGIN IMMEDIATE")
        until = time.monotonic() + hold
        while not _checkpoint(source):  # readers of older states hold it up: they get a moment to end
            if time.monotonic() >= until:
                return False
            time.sleep(0.002)
        try:
            _begin_read(source)
        except sqlite3.Error:
            source.rollback()
            raise
        return True


@contextmanager
def _rolled_back(connection: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    finally:
        connection.rollback()


def _checkpoint(connection: sqlite3.Connection) -> bool:
    """Whether all of the WAL is in the main file now (https://sqlite.org/pragma.html#pragma_wal_checkpoint)."""
    busy, frames, done = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return bool(not busy and frames == done >= 0)


def _medium_is_read_only(path: str) -> bool:
    return sys.platform != "win32" and bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _has_journal(path: str) -> bool:
    """Whether a WAL or rollback journal with something in it belongs to the database."""
    for suffix in ("-wal", "-journal"):
        with suppress(FileNotFoundError):
            if os.stat(os.path.realpath(path) + suffix).st_size:
                return True
    return False


class _Restarted(Exception):
    """Writers changed the source too often for a stepwise copy."""


def _copy(
    stack: ExitStack,
    source: sqlite3.Connection,
    journal: str,
    count: Sequence[str],
    scratch: StrPath | None,
    dataset: str,
    deadline: float,
) -> tuple[int, Facts]:
    """A copy by the backup API: in steps, so that writers get in between, or in one when they need not wait
    for readers anyway (WAL), the database is small, or they throw the steps back too often."""
    _begin_read(source)
    size = _value(source, "PRAGMA page_count") * _value(source, "PRAGMA page_size")
    if size == 0:  # the backup API would make a page of it
        facts = _facts(source, journal, count, dataset)
        source.close()
        return -1, facts
    if journal != "wal":
        source.rollback()
    stepwise = journal != "wal" and size > WHOLE_BYTES
    while True:
        with ExitStack() as attempt:
            fd, copy = _scratch_database(attempt, scratch, size, dataset)
            try:
                _backup(source, copy, stepwise, deadline)
            except _Restarted:
                stepwise = False
                continue
            # A copy whose header says WAL cannot be queried: its WAL would need a name.
            facts = _facts(source if journal == "wal" else copy, journal, count, dataset)
            copy.close()
            source.close()
            stack.push(attempt.pop_all())
            return fd, facts


def _backup(source: sqlite3.Connection, copy: sqlite3.Connection, stepwise: bool, deadline: float) -> None:
    least, restarts = sys.maxsize, 0
    start = time.monotonic()

    def progress(status: int, remaining: int, _total: int) -> None:
        nonlocal least, restarts
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            if time.monotonic() >= deadline:
                error = sqlite3.OperationalError()
                error.sqlite_errorcode, error.sqlite_errorname = status, "SQLITE_BUSY"
                raise error
        elif stepwise and status == sqlite3.SQLITE_OK:
            restarts += remaining >= least  # a step that went on leaves less
            least = remaining
            if restarts > RESTARTS or time.monotonic() >= (start + deadline) / 2:
                raise _Restarted
            time.sleep(0.001)

    pages = STEP_BYTES // _value(source, "PRAGMA page_size") if stepwise else -1
    source.execute(f"PRAGMA busy_timeout = {max(1, round(1000 * (deadline - start)))}")
    source.backup(copy, pages=pages, progress=progress, sleep=0.005)


def _scratch_database(
    stack: ExitStack, scratch: StrPath | None, size: int, dataset: str
) -> tuple[int, sqlite3.Connection]:
    """An empty database that nobody else can open, and a descriptor to read it with afterwards."""
    named = stack.enter_context(ExitStack())
    try:
        folder = tempfile.mkdtemp(prefix="pharmabackup-", dir=scratch)
        named.callback(shutil.rmtree, folder, ignore_errors=True)
        if shutil.disk_usage(folder).free < size + SPARE_BYTES:
            raise _scratch_error(dataset, "not enough free space")
        file = os.path.join(folder, "copy.db")
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    except OSError as error:
        raise _scratch_error(dataset, type(error).__name__) from error
    stack.callback(os.close, fd)
    copy = stack.enter_context(closing(_connect(file, "mode=rw", 0)))
    for setting in ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE"):
        copy.execute(f"PRAGMA {setting}").fetchone()
    if sys.platform != "win32":
        named.close()
    return fd, copy


def restore_checks(path: StrPath, count: Sequence[str] = (), *, dataset: str = "") -> Facts:
    """Checks a restored database: its structure (`PRAGMA integrity_check`) and its row counts.

    Nothing is written, nor created beside it: nobody uses it yet, so it may be opened as immutable,
    unless a journal with something in it came with it.
    """
    target = os.fspath(path)
    _find(target, dataset)
    options = "mode=ro" if _has_journal(target) else "mode=ro&immutable=1"
    try:
        with closing(_connect(target, options, 5)) as connection:
            _begin_read(connection)
            problems = "\n".join(str(row[0]) for row in connection.execute("PRAGMA integrity_check(10)"))
            if problems != "ok":
                # Row numbers may be identities of persons; names of tables and indexes are not.
                problems = re.sub(r"(?i)\b(row(?:id)?) -?\d+", r"\1 …", problems)
                raise _error("damaged", dataset, "; ".join(problems.splitlines()[:10]))
            return _facts(connection, _journal(connection), count, dataset)
    except sqlite3.Error as error:
        raise _failed(error, dataset) from error
