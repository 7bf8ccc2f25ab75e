"""Where a database's pages lie after many days: with others that change when they do, and in blocks that are used."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.engine import content_pages, index
from pharmabackup.engine.history import load_history
from pharmabackup.engine.index import Index
from pharmabackup.engine.reading import BlockReader, SnapshotReader

MakeRepo = Callable[[], pb.Repository]
ROWS = 600  # a page each, and so three blocks


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "pmr.db"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE patient (id INTEGER PRIMARY KEY, content BLOB)")
    _change(path, range(ROWS))
    return path


def _change(path: Path, rows: range) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.executemany("REPLACE INTO patient VALUES (?, ?)", [(row, os.urandom(3000)) for row in rows])


def _backup(repo: pb.Repository, path: Path) -> None:
    repo.backup([pb.SQLite(path)])
    repo.restore(out := path.parent / f"out-{len(repo.snapshots())}")
    with closing(sqlite3.connect(path)) as one, closing(sqlite3.connect(out / "pmr" / "pmr.db")) as other:
        query = "SELECT * FROM patient ORDER BY id"
        assert one.execute(query).fetchall() == other.execute(query).fetchall()


def _pages(repo: pb.Repository) -> tuple[list[bytes], Counter[bytes], dict[bytes, int]]:
    """The block of each page of the newest snapshot; how many each gives; how many it has."""
    unlocked = repo._unlocked
    table = Index(unlocked, chunks=False)
    table.load()
    snapshot = load_history(unlocked).newest()[0].snapshot
    runs, blocks = SnapshotReader(BlockReader(unlocked, table), snapshot).recipe()
    found = [blocks[slot] for slot, count in zip(runs.block, runs.count, strict=True) for _ in range(count)]
    numbers = {block: table.blocks.find(block, snapshot.domain) for block in found}
    return found, Counter(found), {block: table.blocks.count[number or 0] for block, number in numbers.items()}


def test_pages_lie_with_others_that_stayed_as_they_were_as_long(database: Path, make_repo: MakeRepo) -> None:
    repo = make_repo()
    for _ in range(9):
        _backup(repo, database)
        _change(database, range(20))
    _change(database, range(300, 320))
    before = set(_pages(repo)[0])
    _backup(repo, database)
    new: dict[bytes, list[int]] = {}
    for page, block in enumerate(_pages(repo)[0]):
        if block not in before:
            new.setdefault(block, []).append(page)
    assert len(new) == 2  # what changes daily, and what had never changed
    first, second = new.values()
    assert max(first) < 100 < min(second)


def test_what_is_left_in_blocks_that_are_hardly_used_is_written_again(
    database: Path, make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at once: most of a block that loses pages loses them in its first days."""

    def worst() -> float:
        _, used, have = _pages(repo)
        return min(pages / have[block] for block, pages in used.items() if have[block] > 50)

    repo = make_repo()
    _backup(repo, database)
    _change(database, range(60, 240))  # of the first block a quarter is left
    for _ in range(content_pages.YOUNG):
        _backup(repo, database)
        assert worst() < 0.3
    _backup(repo, database)
    assert worst() > 0.4


def test_a_page_is_found_where_it_was_written_last(make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often rows were written out and merged: where it lay before is a block that is hardly used."""
    monkeypatch.setattr(index, "RUNS_MAX", 2)
    found = Index(make_repo()._unlocked)
    names = [os.urandom(32) for _ in range(40)]
    for turn in range(7):
        number = found.blocks.reserve()
        found.put(names[turn], number, turn)
        for ordinal, name in enumerate(names[7:]):
            found.put(name, number, ordinal)
        if turn % 3 != 2:
            found._write_run()
        moved = {name: (number, ordinal) for ordinal, name in enumerate(names[7:])}
        assert {name: found.find(name) for name in moved} == moved
        assert found.take(list(moved), 99, 0, set()) == list(moved.values())
    assert [found.find(name) for name in names[:7]] == [(turn, turn) for turn in range(7)]
    found.close()
