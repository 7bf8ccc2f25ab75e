"""What SQLite reports, as errors of this library."""

from __future__ import annotations

import sqlite3

from pharmabackup.errors import SourceFailed

ERRORS = {
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
KINDS = {
    sqlite3.SQLITE_BUSY: "locked",
    sqlite3.SQLITE_LOCKED: "locked",
    sqlite3.SQLITE_PROTOCOL: "locked",
    sqlite3.SQLITE_NOTADB: "not-a-database",
    sqlite3.SQLITE_CORRUPT: "damaged",
    sqlite3.SQLITE_CANTOPEN: "permission",
    sqlite3.SQLITE_READONLY: "permission",
}


def source_error(kind: str, dataset: str, detail: str) -> SourceFailed:
    what, remedy = ERRORS[kind]
    message = f"The database of {dataset!r} {what} ({detail})."
    return SourceFailed(message, kind=kind, remedy=remedy, dataset=dataset)


def scratch_error(dataset: str, detail: str) -> SourceFailed:
    message = f"The database of {dataset!r} {_SCRATCH[0]} ({detail})."
    return SourceFailed(message, kind="tool-failed", remedy=_SCRATCH[1], dataset=dataset)


def failed(error: sqlite3.Error, dataset: str) -> SourceFailed:
    """What SQLite reported, by its code only: its own texts may quote what is in the database."""
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_TRUNCATE")):
        return scratch_error(dataset, name)
    return source_error(KINDS.get(code(error), "tool-failed"), dataset, name)


def code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF
