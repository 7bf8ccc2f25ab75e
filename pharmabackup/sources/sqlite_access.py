"""Connections to SQLite databases, and what they say about them."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import TypedDict
from urllib.parse import quote_from_bytes

from pharmabackup.sources.base import StrPath
from pharmabackup.sources.sqlite_errors import failed, source_error


class Facts(TypedDict):
    """What the snapshot says about itself; `rows` counts the tables asked for."""

    sqlite_version: str
    journal_mode: str
    page_size: int
    pages: int
    user_version: int
    rows: dict[str, int]


def find(path: str, dataset: str) -> os.stat_result:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        gone = isinstance(error, FileNotFoundError | NotADirectoryError | ValueError)
        raise source_error("missing" if gone else "permission", dataset, type(error).__name__) from error
    if not stat.S_ISREG(status.st_mode):
        raise source_error("not-a-file", dataset, stat.filemode(status.st_mode)[0])
    return status


def connect(path: str, options: str, timeout: float) -> sqlite3.Connection:
    """A connection by URI, every byte of the path that means something there being escaped."""
    raw = os.fsencode(os.path.abspath(path))
    if sys.platform == "win32":
        raw = b"/" * (raw[:1] != b"\\") + raw.replace(b"\\", b"/")
    uri = f"file://{quote_from_bytes(raw)}?{options}"
    return sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False)


def value(connection: sqlite3.Connection, statement: str) -> int:
    return int(connection.execute(statement).fetchone()[0])


def begin_read(connection: sqlite3.Connection) -> None:
    """Begin a read transaction. BEGIN alone takes no lock (https://sqlite.org/lang_transaction.html)."""
    connection.execute("BEGIN")
    value(connection, "SELECT count(*) FROM sqlite_master")


def journal_mode(connection: sqlite3.Connection) -> str:
    return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


def read_facts(connection: sqlite3.Connection, journal: str, count: Sequence[str], dataset: str) -> Facts:
    rows: dict[str, int] = {}
    known = {str(name).lower() for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    for table in count:
        if table.lower() not in known:
            raise source_error("table-missing", dataset, repr(table))
        quoted = table.replace('"', '""')
        rows[table] = value(connection, f'SELECT count(*) FROM "{quoted}"')  # noqa: S608
    return {
        "sqlite_version": sqlite3.sqlite_version,
        "journal_mode": journal,
        "page_size": value(connection, "PRAGMA page_size"),
        "pages": value(connection, "PRAGMA page_count"),
        "user_version": value(connection, "PRAGMA user_version"),
        "rows": rows,
    }


@contextmanager
def rolled_back(connection: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    finally:
        connection.rollback()


def has_journal(path: str) -> bool:
    """Whether a WAL or rollback journal with something in it belongs to the database."""
    for suffix in ("-wal", "-journal"):
        with suppress(FileNotFoundError):
            if os.stat(os.path.realpath(path) + suffix).st_size:
                return True
    return False


def restore_checks(path: StrPath, count: Sequence[str] = (), *, dataset: str = "", integrity: bool = True) -> Facts:
    """Checks a restored database: its structure (`PRAGMA integrity_check`, if asked for) and its row counts.

    Nothing is written, nor created beside it: nobody uses it yet, so it may be opened as immutable,
    unless a journal with something in it came with it.
    """
    target = os.fspath(path)
    find(target, dataset)
    options = "mode=ro" if has_journal(target) else "mode=ro&immutable=1"
    try:
        with closing(connect(target, options, 5)) as connection:
            begin_read(connection)
            check = "integrity_check(10)" if integrity else "schema_version"
            problems = "\n".join(str(row[0]) for row in connection.execute(f"PRAGMA {check}"))
            if integrity and problems != "ok":
                # Row numbers may be identities of persons; names of tables and indexes are not.
                problems = re.sub(r"(?i)\b(row(?:id)?) -?\d+", r"\1 …", problems)
                raise source_error("damaged", dataset, "; ".join(problems.splitlines()[:10]))
            return read_facts(connection, journal_mode(connection), count, dataset)
    except sqlite3.Error as error:
        raise failed(error, dataset) from error
