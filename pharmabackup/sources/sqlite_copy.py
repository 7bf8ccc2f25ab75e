"""Copying a live SQLite database by its backup API, to where nobody else sees it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing

from pharmabackup.sources.base import StrPath
from pharmabackup.sources.sqlite_access import Facts, begin_read, connect, read_facts, value
from pharmabackup.sources.sqlite_errors import scratch_error

STEP_BYTES = 4 << 20  # what one backup step copies while it holds the source's read lock
WHOLE_BYTES = 16 << 20  # a database up to this size is copied in a single step
RESTARTS = 3  # a stepwise copy that writers threw back this often is done in a single step
SPARE_BYTES = 16 << 20  # what must stay free on the scratch disk: others work there too


class _Restarted(Exception):
    """Writers changed the source too often for a stepwise copy."""


def copy_database(
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
    begin_read(source)
    size = value(source, "PRAGMA page_count") * value(source, "PRAGMA page_size")
    if size == 0:  # the backup API would make a page of it
        facts = read_facts(source, journal, count, dataset)
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
            facts = read_facts(source if journal == "wal" else copy, journal, count, dataset)
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

    pages = STEP_BYTES // value(source, "PRAGMA page_size") if stepwise else -1
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
            raise scratch_error(dataset, "not enough free space")
        file = os.path.join(folder, "copy.db")
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    except OSError as error:
        raise scratch_error(dataset, type(error).__name__) from error
    stack.callback(os.close, fd)
    copy = stack.enter_context(closing(connect(file, "mode=rw", 0)))
    for setting in ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE"):
        copy.execute(f"PRAGMA {setting}").fetchone()
    if sys.platform != "win32":
        named.close()
    return fd, copy
