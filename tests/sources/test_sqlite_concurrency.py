"""Views of SQLite databases that others use: stable, and harmless to them."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pharmabackup.errors import SourceFailed
from pharmabackup.sources import descriptors, sqlite_copy
from pharmabackup.sources.sqlite_view import view
from tests.sources.databases import (
    chain_length,
    check_state,
    kind_of,
    make,
    other_process,
    posix,
    read_all,
    writers,
)


@pytest.mark.slow
@pytest.mark.parametrize("page_size", [1024, 4096, 65536])
def test_frozen_view_does_not_change_whatever_writers_do(tmp_path: Path, page_size: int) -> None:
    path = make(tmp_path / "db", rows=500, page_size=page_size)
    frozen, patience = 0, timedelta(seconds=6)
    with writers(path, "brutal", 2):
        for _ in range(6):
            with view(path, dataset="till", count=["chain", "junk"], scratch=tmp_path, timeout=patience) as v:
                before = chain_length(path)
                first = read_all(v, step=64 << 10, pause=0.005)
                while chain_length(path) < before + 20:
                    time.sleep(0.02)
                assert read_all(v, step=100_000, pause=0.005) == first
                frozen += v.mode == "frozen"
                rows = v.facts["rows"]
            assert check_state(first, tmp_path) == (rows["chain"], rows["junk"])
            if frozen == 2:
                break
    assert frozen >= 2


@pytest.mark.slow
def test_writers_hardly_wait_for_a_frozen_view(tmp_path: Path) -> None:
    path = make(tmp_path / "db", rows=2000)
    with writers(path, "calm") as (process,):
        for _ in range(5):
            with view(path, dataset="till") as v:
                assert v.mode == "frozen"
                read_all(v, step=256 << 10, pause=0.01)
        process.kill()
        assert process.stdout
        slowest = max(float(line) for line in process.stdout.read().splitlines()[:-1])
        assert slowest < 1
        process.poll = lambda: None  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["calm", "none"])
def test_large_rollback_database_is_copied_in_steps(tmp_path: Path, mode: str) -> None:
    path = make(tmp_path / "db", "delete", rows=20_000)
    with writers(path, "calm") if mode == "calm" else contextlib.nullcontext():
        for _ in range(3):
            with view(path, dataset="till", count=["chain", "junk"]) as v:
                assert v.size > sqlite_copy.WHOLE_BYTES
                data = read_all(v)
                rows = v.facts["rows"]
            assert check_state(data, tmp_path) == (rows["chain"], rows["junk"])


@posix
def test_locks_of_this_process_survive_a_view(tmp_path: Path) -> None:
    probe = """
        import sqlite3, sys
        db = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
        try:
            db.execute(sys.argv[2])
            print("free")
        except sqlite3.OperationalError as error:
            print(error)
    """
    for journal in ("wal", "delete"):
        path = make(tmp_path / journal, journal)
        with closing(sqlite3.connect(path, isolation_level=None)) as ours:
            ours.execute("BEGIN IMMEDIATE")
            ours.execute("UPDATE state SET a = 400, b = 600")
            assert other_process(probe, path, "BEGIN IMMEDIATE") == "database is locked"
            for _ in range(2):
                with view(path, dataset="till", timeout=timedelta(seconds=0.4)) as v:
                    read_all(v)
            assert other_process(probe, path, "BEGIN IMMEDIATE") == "database is locked"
            ours.execute("COMMIT")
            ours.execute("BEGIN")
            ours.execute("SELECT * FROM state").fetchone()
            with view(path, dataset="till") as v:
                assert v.mode == ("frozen" if journal == "wal" else "copied")
                read_all(v)
            # Leaving the journal mode needs the exclusive lock that our shared lock on the file denies.
            other = "PRAGMA journal_mode = DELETE" if journal == "wal" else "BEGIN EXCLUSIVE"
            assert other_process(probe, path, other) == "database is locked"
            ours.execute("COMMIT")
        assert other_process(probe, path, "BEGIN IMMEDIATE") == "free"


@posix
def test_descriptors_are_reused_and_dropped_with_the_file(tmp_path: Path) -> None:
    path = make(tmp_path / "db")
    with view(path, dataset="till") as a, view(path, dataset="till") as b:
        assert a._fd == b._fd
    with view(path, dataset="till") as c:
        assert c._fd == a._fd
        key = os.stat(path).st_dev, os.stat(path).st_ino
    assert key in descriptors._known
    path.unlink()
    with view(make(tmp_path / "other"), dataset="till"):
        assert all(os.fstat(entry.fd).st_nlink for entry in descriptors._known.values())


def test_locked_longer_than_the_timeout(tmp_path: Path) -> None:
    for journal in ("wal", "delete"):
        path = make(tmp_path / journal, journal)
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA locking_mode = EXCLUSIVE").fetchone()
            db.execute("BEGIN EXCLUSIVE")
            db.execute("UPDATE state SET a = 1, b = 999")
            started = time.monotonic()
            assert kind_of(path, timeout=timedelta(seconds=0.3)) == "locked"
            assert time.monotonic() - started < 2


def test_lock_taken_while_copying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "db", "delete", rows=100)
    real = sqlite_copy._scratch_database
    with closing(sqlite3.connect(path, isolation_level=None)) as db:

        def lock_first(*arguments: Any) -> Any:
            db.execute("BEGIN EXCLUSIVE")
            return real(*arguments)

        monkeypatch.setattr(sqlite_copy, "_scratch_database", lock_first)
        assert kind_of(path, timeout=timedelta(seconds=0.3), scratch=tmp_path) == "locked"
    assert os.listdir(tmp_path) == ["db"]


@posix
def test_write_past_sqlite_is_noticed(tmp_path: Path) -> None:
    path = make(tmp_path / "db")
    fd = os.open(path, os.O_RDWR)
    try:
        with view(path, dataset="till") as v:
            v.check()
            time.sleep(0.02)
            os.pwrite(fd, b"x", 3000)
            with pytest.raises(SourceFailed) as caught:
                v.check()
    finally:
        os.close(fd)
    assert caught.value.kind == "changed"
