"""SQL over a database that lies in a backup."""

from __future__ import annotations

import gc
import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pharmabackup as pb

apsw = pytest.importorskip("apsw")


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[pb.Repository]:
    pb.KeyFile.create(tmp_path / "key")
    with pb.Repository.create(
        tmp_path / "repository", pb.KeyFile(tmp_path / "key"), state_dir=tmp_path / "state"
    ) as made:
        yield made


@pytest.fixture
def pmr(tmp_path: Path) -> Path:
    path = tmp_path / "pmr.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE entry (id integer PRIMARY KEY, drug text)")
    connection.execute("CREATE INDEX by_drug ON entry (drug)")
    rows = ((number, f"{number * 7919 % 20_000:05} " + os.urandom(40).hex()) for number in range(20_000))
    connection.executemany("INSERT INTO entry VALUES (?, ?)", rows)
    connection.commit()
    connection.close()
    return path


def test_a_question_is_answered_and_little_is_read_for_it(repo, pmr, monkeypatch):
    repo.backup([pb.SQLite(pmr)])
    from pharmabackup.engine.reading import BlockReader

    fetched = []
    real = BlockReader.fetch
    monkeypatch.setattr(
        BlockReader, "fetch", lambda self, *given, **more: fetched.append(given) or real(self, *given, **more)
    )
    database = repo.snapshot("pmr").connect()
    [(drug,)] = database.execute("SELECT drug FROM entry WHERE id = ?", (777,))
    own = sqlite3.connect(pmr)
    assert own.execute("SELECT drug FROM entry WHERE id = 777").fetchone() == (drug,)
    few = len(fetched)
    # All of it, with a sort that needs room of its own.
    query = "SELECT id FROM entry ORDER BY substr(drug, 10)"
    assert database.execute(query).fetchall() == own.execute(query).fetchall()
    assert few < len(fetched)
    own.close()
    database.close()


def test_it_goes_on_when_others_are_closed_and_the_collector_has_been(repo, pmr):
    repo.backup([pb.SQLite(pmr)])
    first, second = (repo.snapshot("pmr").connect() for _ in range(2))
    first.close()
    del first
    gc.collect()
    assert list(second.execute("SELECT count(*) FROM entry")) == [(20_000,)]
    second.close()


def test_nothing_can_be_written_and_no_file_is_made(repo, pmr, tmp_path, monkeypatch):
    repo.backup([pb.SQLite(pmr)])
    monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path / "none"))
    database = repo.snapshot("pmr").connect()
    database.pragma("cache_size", 10)  # pages: a sort needs more than that
    assert len(database.execute("SELECT drug || drug FROM entry ORDER BY substr(drug, 10)").fetchall()) == 20_000
    for statement in ("DELETE FROM entry", "CREATE TABLE x (a)", "VACUUM"):
        with pytest.raises(apsw.Error):
            database.execute(statement)
    database.close()


def test_a_database_in_a_folder_and_one_that_is_none(repo, pmr, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    pmr.rename(folder / "till.db")
    (folder / "text").write_bytes(b"no database" * 1000)
    repo.backup([pb.Files(folder, name="all")])
    snapshot = repo.snapshot("all")
    database = snapshot.connect("till.db")
    assert list(database.execute("SELECT count(*) FROM entry")) == [(20_000,)]
    database.close()
    with pytest.raises(pb.InvalidInput, match="is no SQLite database"):
        snapshot.connect()
    with pytest.raises(pb.NotFound):
        snapshot.connect("none.db")
    with pytest.raises(apsw.NotADBError):
        snapshot.connect("text").execute("SELECT 1 FROM sqlite_master")


def test_what_is_damaged_is_told_as_that(repo, pmr, tmp_path):
    repo.backup([pb.SQLite(pmr)])
    for path in (tmp_path / "repository" / "packs").rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            data = bytearray(path.read_bytes())
            for at in range(0, len(data) // 3, 97):  # the directory, at its end, stays
                data[at] ^= 0xFF
            path.write_bytes(data)
    database = None
    with pytest.raises(pb.Damaged):
        database = repo.snapshot("pmr").connect()
        database.execute("SELECT * FROM entry").fetchall()
    if database is not None:
        database.close(True)


def test_without_its_library_it_is_said_what_to_install(repo, pmr, monkeypatch):
    repo.backup([pb.SQLite(pmr)])
    monkeypatch.setitem(sys.modules, "apsw", None)
    with pytest.raises(pb.Unsupported, match=r"pharmabackup\[sqlite\]"):
        repo.snapshot("pmr").connect()
