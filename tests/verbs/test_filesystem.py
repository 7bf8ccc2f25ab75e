"""pharmabackup:// in the hands of what uses fsspec: pandas, DuckDB, sqlite3."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest

import pharmabackup as pb


@pytest.fixture
def repo(tmp_path: Path, cheap_kdf: None) -> Iterator[pb.Repository]:
    """Two datasets in two states."""
    exports = tmp_path / "exports"
    (exports / "2026").mkdir(parents=True)
    (exports / "2026" / "claims.csv").write_text("id,amount\n1,10\n2,32\n")
    (exports / "note.txt").write_text("a note")
    with closing(sqlite3.connect(tmp_path / "pmr.db")) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE patient (id INTEGER PRIMARY KEY, name TEXT)")
        database.executemany("INSERT INTO patient (name) VALUES (?)", [(f"P {n}" * 50,) for n in range(500)])
        database.commit()
    sources = [pb.Files(exports), pb.SQLite(tmp_path / "pmr.db")]
    with pb.Repository.create(tmp_path / "repository", pb.Passphrase("a passphrase of tests")) as made:
        made.backup(sources)
        (exports / "2026" / "claims.csv").write_text("id,amount\n1,10\n2,32\n3,100\n")
        made.backup(sources[:1])
        yield made


def test_datasets_are_folders(repo: pb.Repository) -> None:
    fs = fsspec.filesystem("pharmabackup", repository=repo)
    assert fs.ls("", detail=False) == ["exports", "pmr"]
    assert fs.ls("pharmabackup://exports", detail=False) == ["exports/2026", "exports/note.txt"]
    assert sorted(fs.find("exports")) == ["exports/2026/claims.csv", "exports/note.txt"]
    assert fs.glob("exports/**/*.csv") == ["exports/2026/claims.csv"]
    assert fs.isdir("exports/2026")
    assert fs.info("exports/note.txt")["size"] == 6
    assert fs.cat_file("exports/note.txt", start=2) == b"note"
    assert not fs.exists("exports/none")
    assert not fs.exists("none/x")
    with pytest.raises(FileNotFoundError, match="none"):
        fs.open("exports/none")


def test_it_is_what_was_there_before_a_time_and_stays_that(repo: pb.Repository, tmp_path: Path) -> None:
    newest = fsspec.filesystem("pharmabackup", repository=repo)
    second = repo.snapshot("exports")
    earlier = fsspec.filesystem("pharmabackup", repository=repo, before=second.time)
    assert len(newest.cat_file("exports/2026/claims.csv")) == 26
    assert len(earlier.cat_file("exports/2026/claims.csv")) == 20
    (tmp_path / "exports" / "note.txt").write_text("another note")
    repo.backup([pb.Files(tmp_path / "exports")])
    assert newest.cat_file("exports/note.txt") == b"a note"
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    assert fsspec.filesystem("pharmabackup", repository=repo, before=long_ago).ls("") == []


def test_nothing_is_written(repo: pb.Repository) -> None:
    fs = fsspec.filesystem("pharmabackup", repository=repo)
    with pytest.raises(pb.Unsupported):
        fs.open("exports/new.txt", "wb")
    with pytest.raises(pb.InvalidInput, match="open repository"):
        fsspec.open("pharmabackup://exports/note.txt", repository=None).open()


def test_pandas_reads_out_of_a_backup(repo: pb.Repository) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv("pharmabackup://exports/2026/claims.csv", storage_options={"repository": repo})
    assert frame["amount"].sum() == 142


def test_duckdb_reads_out_of_a_backup(repo: pb.Repository) -> None:
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect() as connection:
        connection.register_filesystem(fsspec.filesystem("pharmabackup", repository=repo))
        found = connection.sql("SELECT sum(amount) FROM 'pharmabackup://exports/**/*.csv'").fetchall()
    assert found == [(142,)]


def test_sqlite3_reads_out_of_a_backup(repo: pb.Repository) -> None:
    """In memory; the two bytes say that there is no write-ahead log beside it."""
    fs = fsspec.filesystem("pharmabackup", repository=repo)
    data = bytearray(fs.cat_file("pmr/pmr.db"))
    data[18:20] = b"\1\1"
    with closing(sqlite3.connect(":memory:")) as database:
        database.deserialize(bytes(data))
        assert database.execute("SELECT count(*), max(id) FROM patient").fetchone() == (500, 500)
