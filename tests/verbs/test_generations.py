"""Where a database's pages lie after many days: with others that change when they do, and in blocks that are used."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.compression import CHANGED_PAGES_LEVEL, PAGES_LEVEL
from pharmabackup.engine import blocks, content_pages, index
from pharmabackup.engine.blocks import BlockWriter, Buffer
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.index import Index
from pharmabackup.engine.reading import BlockReader, SnapshotReader
from pharmabackup.format.wire import Kind

MakeRepo = Callable[[], pb.Repository]
ROWS = 600  # a page each, and so three blocks


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "pmr.db"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE patient (id INTEGER PRIMARY KEY, content BLOB)")
    _change(path, range(ROWS))
    return path


def _change(path: Path, rows: Iterable[int]) -> None:
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


AGES = (1, 2, 6, 7, 24, 25)  # backups: on both sides of where each generation ends


def _rows(age: int) -> list[int]:
    """Of pages of each age there are some in the first half of the database and some in the second."""
    first = 50 * AGES.index(age)
    return [*range(first, first + 20), *range(first + 300, first + 320)]


@pytest.fixture
def aged(database: Path, make_repo: MakeRepo) -> pb.Repository:
    """A repository for whose next backup pages lie in blocks of these ages, and one row of each has changed."""
    repo = make_repo()
    for age in range(max(AGES), 0, -1):
        if age in AGES:
            _change(database, _rows(age))
        repo.backup([pb.SQLite(database)])
    _change(database, [row for age in AGES for row in _rows(age)[::20]])
    return repo


def _page(database: Path, row: int) -> int:
    with closing(sqlite3.connect(database)) as db:
        (content,) = db.execute("SELECT content FROM patient WHERE id = ?", (row,)).fetchone()
    return database.read_bytes().index(content) // 4096


def test_generations_end_at_one_six_and_twenty_four_backups(database: Path, aged: pb.Repository) -> None:
    aged.backup([pb.SQLite(database)])
    blocks = _pages(aged)[0]
    together: dict[bytes, set[int]] = {}
    for age in AGES:
        for row in _rows(age)[::20]:
            together.setdefault(blocks[_page(database, row)], set()).add(age)
    assert sorted(map(sorted, together.values())) == [[1], [2, 6], [7, 24], [25]]


def test_no_more_blocks_of_pages_are_open_than_there_are_generations(
    database: Path, aged: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the level changes on the way, in all of them. Others would be missing to be filled and sealed."""
    open_now, closed, levels, most = set[int](), list[int](), set[int](), [0]
    begin, finish = BlockWriter.begin, BlockWriter.finish_block

    def begun(self: BlockWriter, kind: Kind, level: int) -> Buffer:
        buffer = begin(self, kind, level)
        if kind == Kind.DATA_BLOCK:
            open_now.add(buffer.number)
            levels.add(level)
            most[0] = max(most[0], len(open_now))
        return buffer

    def finished(self: BlockWriter, buffer: Buffer) -> None:
        open_now.discard(buffer.number)
        closed.append(buffer.number)
        finish(self, buffer)

    monkeypatch.setattr(BlockWriter, "begin", begun)
    monkeypatch.setattr(BlockWriter, "finish_block", finished)
    monkeypatch.setattr(content_pages, "FEW_BYTES", 7 * 4096)
    _backup(aged, database)
    assert levels == {PAGES_LEVEL, CHANGED_PAGES_LEVEL}
    assert most == [len(content_pages.GENERATIONS) + 1]
    assert not open_now
    assert len(closed) == len(set(closed))


@pytest.mark.parametrize(("age", "fewest"), [(0, 100), (6, 100), (7, 400), (99, 400)])
def test_a_block_is_hardly_used_below_a_tenth_and_when_it_is_old_below_two_fifths(age: int, fewest: int) -> None:
    assert content_pages.hardly_used(fewest - 1, 1000, age)
    assert not content_pages.hardly_used(fewest, 1000, age)


def test_what_is_left_in_blocks_that_are_hardly_used_is_written_again(database: Path, make_repo: MakeRepo) -> None:
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
        assert found.take(list(moved), 99, 0, renew=set(), prefer=set()) == list(moved.values())
    assert [found.find(name) for name in names[:7]] == [(turn, turn) for turn in range(7)]
    found.close()


def test_of_several_places_one_that_is_in_use_is_taken(make_repo: MakeRepo) -> None:
    """A collection gives what it moves new numbers, so that old blocks look like the newest."""
    found = Index(make_repo()._unlocked)
    numbers = [found.blocks.reserve() for _ in range(6)]
    names = [os.urandom(32) for _ in range(50)]
    for number in numbers:
        for ordinal, name in enumerate(names):
            found.put(name, number, ordinal)
        if number % 2:
            found._write_run()
    for used in numbers:
        taken = found.take(names, 99, 0, renew=set(numbers) - {used}, prefer={used})
        assert taken == [(used, ordinal) for ordinal in range(50)]
    taken = found.take(names, 99, 0, renew=set(), prefer={77})  # of another dataset, or of a database of long ago
    assert taken == [(numbers[-1], ordinal) for ordinal in range(50)]
    found.close()


def test_a_page_is_not_found_in_the_block_that_it_left(database: Path, make_repo: MakeRepo) -> None:
    """Though a collection has moved that block since, or published again what it holds, and it is the newest now."""
    repo = make_repo()
    _backup(repo, database)
    index_folder = Path(repo.url) / "index"
    left, segments = _pages(repo)[0][30], [*index_folder.iterdir()]
    _change(database, range(60, 240))
    for _ in range(content_pages.YOUNG + 2):
        _backup(repo, database)
    assert left not in _pages(repo)[0]
    for segment in segments:
        os.utime(segment, ns=(2 * (now := segment.stat().st_mtime_ns), 2 * now))
    _change(database, range(30, 31))  # whose neighbours are looked up
    _backup(repo, database)
    assert left not in _pages(repo)[0]


def test_as_many_blocks_as_may_be_open_leave_some_to_fill() -> None:
    """Of files, of the manifest, of the recipe and of each generation of pages."""
    assert 3 + len(content_pages.GENERATIONS) + 1 < blocks.BUFFERS
