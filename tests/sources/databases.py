"""Databases to look at, writers that keep them busy, and checks of what was seen."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pharmabackup.errors import SourceFailed
from pharmabackup.sources.sqlite_view import SQLiteView, restore_checks, view

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")
COUNTER_BYTES = {*range(24, 28), *range(40, 44), *range(92, 100)}

# A chain of rows, each hashing the one before, and two counters whose sum stays: any torn or mixed state
# shows. Its argument is a mode: calm (transactions only) or brutal (everything else as well).
WRITER = """
import hashlib, random, sqlite3, sys, time
path, mode, seed = sys.argv[1:]
rnd = random.Random(int(seed))
db = sqlite3.connect(path, isolation_level=None, timeout=30)
db.execute("PRAGMA wal_autocheckpoint = 20")
db.execute("PRAGMA synchronous = OFF")

def write(rows):
    db.execute("BEGIN IMMEDIATE")
    n, head = db.execute("SELECT n, head FROM state").fetchone()
    for n in range(n + 1, n + rows + 1):
        text = rnd.randbytes(300)
        head = hashlib.sha256(head + text).digest()
        db.execute("INSERT INTO chain VALUES (?, ?, ?)", (n, text, head))
    moved = rnd.randrange(100)
    db.execute("UPDATE state SET n = ?, head = ?, a = a + ?, b = b - ?", (n, head, moved, moved))
    db.execute("DELETE FROM junk WHERE rowid % 3 = ?", (rnd.randrange(3),))
    db.executemany("INSERT INTO junk VALUES (?)", [(rnd.randbytes(2000),) for _ in range(rows % 50)])
    db.execute("COMMIT")

print("ready", flush=True)
slowest = 0
while True:
    started = time.monotonic()
    kind = rnd.randrange(30) if mode == "brutal" else 29
    try:
        if kind < 8:
            how = rnd.choice(["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
            db.execute("PRAGMA busy_timeout = 20")
            db.execute(f"PRAGMA wal_checkpoint({how})").fetchone()
            db.execute("PRAGMA busy_timeout = 30000")
        elif kind == 8:
            db.execute("VACUUM")
        elif kind == 9:
            db.execute("PRAGMA journal_mode = DELETE").fetchone()
            db.execute("PRAGMA journal_mode = WAL").fetchone()
        elif kind == 10:
            write(800)
        elif kind == 11:
            db.close()
            db = sqlite3.connect(path, isolation_level=None, timeout=30)
        else:
            write(1 + rnd.randrange(3))
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        db.rollback() if db.in_transaction else None
    slowest = max(slowest, time.monotonic() - started)
    if mode == "calm":
        time.sleep(0.002)
        print(slowest, flush=True)
"""


def make(path: Path, journal: str = "wal", rows: int = 0, page_size: int = 4096) -> Path:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA page_size = {page_size}")
        db.execute(f"PRAGMA journal_mode = {journal}").fetchone()
        db.execute("CREATE TABLE chain (n INTEGER PRIMARY KEY, text BLOB, head BLOB)")
        db.execute("CREATE TABLE junk (x BLOB)")
        db.execute("CREATE TABLE state (n INTEGER, head BLOB, a INTEGER, b INTEGER)")
        db.execute("INSERT INTO state VALUES (0, x'', 500, 500)")
        db.execute("BEGIN")
        db.executemany("INSERT INTO junk VALUES (randomblob(2000))", [()] * rows)
        db.execute("COMMIT")
        db.execute("PRAGMA user_version = 7")
    return path


def read_all(v: SQLiteView, step: int = 1 << 20, pause: float = 0) -> bytes:
    out, offset, buffer = bytearray(), 0, memoryview(bytearray(step))
    while got := v.read_into(offset, buffer):
        out += buffer[:got]
        offset += got
        time.sleep(pause)
    return bytes(out)


def check_state(data: bytes, folder: Path) -> tuple[int, int]:
    """That `data` is one committed state. Returns its numbers of chain and junk rows."""
    file = folder / "restored.db"
    file.write_bytes(data)
    rows = restore_checks(file, ["chain", "junk"])["rows"]
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro&immutable=1", uri=True)) as db:
        n, head, a, b = db.execute("SELECT * FROM state").fetchone()
        assert a + b == 1000
        assert rows["chain"] == n
        link = b""
        for index, (number, text, stored) in enumerate(db.execute("SELECT * FROM chain ORDER BY n"), 1):
            link = hashlib.sha256(link + text).digest()
            assert (number, stored) == (index, link)
        assert link == head
    return rows["chain"], rows["junk"]


@contextlib.contextmanager
def writers(path: Path, mode: str, number: int = 1) -> Iterator[list[subprocess.Popen[str]]]:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), mode, str(seed)], stdout=subprocess.PIPE, text=True
        )
        for seed in range(number)
    ]
    try:
        for process in running:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        yield running
        assert [process.poll() for process in running] == [None] * number, "a writer died"
    finally:
        for process in running:
            process.kill()
            process.communicate()


def chain_length(path: Path) -> int:
    with closing(sqlite3.connect(path, timeout=30)) as db:
        return int(db.execute("SELECT n FROM state").fetchone()[0])


def kind_of(path: Path | str, **options: Any) -> str:
    with pytest.raises(SourceFailed) as caught, view(path, dataset="till", **options):
        pass
    assert "till" in str(caught.value)
    assert caught.value.remedy
    assert caught.value.dataset == "till"
    return caught.value.kind


def other_process(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def pin(path: Path) -> sqlite3.Connection:
    """A reader of a state that only the WAL holds, while later ones follow."""
    old = sqlite3.connect(path, isolation_level=None)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE state SET a = a + 1, b = b - 1")
        old.execute("BEGIN")
        old.execute("SELECT * FROM state").fetchone()
        db.execute("UPDATE state SET a = a + 1, b = b - 1")
    return old
