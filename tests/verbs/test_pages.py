"""Databases of every page size, over several backups: what is kept, what is named anew, and what comes back."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup import compression

MakeRepo = Callable[[], pb.Repository]
PAGE_SIZES = [1 << bits for bits in range(9, 17)]


def _database(path: Path, page_size: int) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA page_size = {page_size}")
        with db:
            db.execute("CREATE TABLE patient (id INTEGER PRIMARY KEY, name TEXT)")
            db.executemany(
                "INSERT INTO patient (name) VALUES (?)", [(f"{i} Test {i * 7919 % 1009} " * 60,) for i in range(4000)]
            )
        assert db.execute("PRAGMA page_size").fetchone()[0] == page_size


def _change(path: Path, number: int) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE patient SET name = ? WHERE id IN (3, 1700, 3990)", (f"changed {number}" * 40,))
        db.execute("INSERT INTO patient (name) VALUES (?)", ("new" * 400,))


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_changed_pages_are_added_and_all_come_back(tmp_path: Path, make_repo: MakeRepo, page_size: int) -> None:
    path = tmp_path / "pmr.db"
    _database(path, page_size)
    repo = make_repo()
    first = repo.backup([pb.SQLite(path)]).datasets["pmr"]
    for number in range(3):
        _change(path, number)
        later = repo.backup([pb.SQLite(path)]).datasets["pmr"]
        assert 0 < later.added < first.added / 3 + 30 * page_size
        out = tmp_path / f"out-{number}"
        repo.restore(out)
        with closing(sqlite3.connect(out / "pmr" / "pmr.db")) as db:
            assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            found = db.execute("SELECT id, name FROM patient").fetchall()
        with closing(sqlite3.connect(path)) as db:
            assert found == db.execute("SELECT id, name FROM patient").fetchall()
    added = [repo.backup([pb.SQLite(path)]).datasets["pmr"].added for _ in range(3)]
    assert added[-1] == 0, added  # the first may still write pages anew that lie in hardly used blocks
    assert {finding.code for finding in repo.check(read_data=1.0).findings} <= {"same-device"}


def test_few_changed_pages_are_compressed_better(
    tmp_path: Path, make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And many are not: that would cost time for little."""
    real, levels = compression.compress, list[int]()

    def compress(data: compression.Buffer, level: int, *, checksum: bool = False) -> bytes:
        if checksum and level in (compression.PAGES_LEVEL, compression.CHANGED_PAGES_LEVEL):  # a block of pages
            levels.append(level)
        return real(data, level, checksum=checksum)

    monkeypatch.setattr(compression, "compress", compress)
    path = tmp_path / "pmr.db"
    _database(path, 4096)
    repo = make_repo()
    repo.backup([pb.SQLite(path)])
    assert set(levels) == {compression.PAGES_LEVEL}
    levels.clear()
    _change(path, 1)
    repo.backup([pb.SQLite(path)])
    assert set(levels) == {compression.CHANGED_PAGES_LEVEL}
    levels.clear()
    monkeypatch.setattr("pharmabackup.engine.content_pages.FEW_BYTES", 1 << 20)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE patient SET name = name || ' seen'")
    repo.backup([pb.SQLite(path)])
    assert set(levels) == {compression.CHANGED_PAGES_LEVEL, compression.PAGES_LEVEL}
    repo.restore(tmp_path / "out")
    with closing(sqlite3.connect(tmp_path / "out" / "pmr" / "pmr.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert db.execute("SELECT count(*) FROM patient WHERE name LIKE '% seen'").fetchone()[0] == 4001
