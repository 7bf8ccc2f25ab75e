"""SQLite against the promises of all sources, in both journal modes."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.testing.source import SourceConformance


@pytest.mark.parametrize("journal", ["wal", "delete"])
class TestSQLite(SourceConformance):
    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path, journal: str) -> Iterator[None]:
        self.path = tmp_path / "pmr.db"
        with closing(sqlite3.connect(self.path)) as database:
            database.execute(f"PRAGMA journal_mode = {journal}")
            database.executescript(
                "CREATE TABLE item (number INTEGER PRIMARY KEY, filler TEXT NOT NULL);"
                "CREATE TABLE balance (amount INTEGER NOT NULL);"
                "INSERT INTO balance VALUES (0);"
            )
        yield

    def source(self) -> pb.Source:
        return pb.SQLite(self.path, name="pmr")

    def target(self) -> pb.Source:
        return pb.SQLite(self.path.with_name("restored.db"), name="pmr")

    def write(self, number: int) -> None:
        with closing(sqlite3.connect(self.path, timeout=60)) as database, database:
            database.execute("INSERT INTO item VALUES (?, ?)", (number, os.urandom(50).hex()))
            database.execute("UPDATE balance SET amount = amount + ?", (number,))

    def read(self, source: pb.Source) -> list[int]:
        location = source.location()
        assert location is not None
        with closing(sqlite3.connect(f"{location.as_uri()}?mode=ro", uri=True)) as database:
            numbers = [row[0] for row in database.execute("SELECT number FROM item ORDER BY 1")]
            assert database.execute("SELECT amount FROM balance").fetchall() == [(sum(numbers),)]
        return numbers
