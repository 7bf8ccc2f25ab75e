"""The view of a live SQLite database: consistent, stable, and of the right state."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import threading
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pharmabackup.errors import SourceFailed
from pharmabackup.sources import sqlite_view
from pharmabackup.sources.sqlite_view import SQLiteView, restore_checks, view
from tests.sources.databases import (
    COUNTER_BYTES,
    check_state,
    kind_of,
    make,
    pin,
    read_all,
)


def test_frozen_view_is_the_main_file(tmp_path: Path) -> None:
    path = make(tmp_path / "db", rows=300)
    with view(path, dataset="till", count=["junk", "STATE"]) as v:
        assert v.mode == "frozen"
        assert v.facts["rows"] == {"junk": 300, "STATE": 1}
        assert (v.facts["journal_mode"], v.facts["user_version"]) == ("wal", 7)
        assert v.size == v.facts["pages"] * v.page_size
        data = read_all(v)
        assert v.read_into(v.size - 3, memoryview(bytearray(10))) == 3
        assert v.read_into(v.size + 5, memoryview(bytearray(10))) == 0
        assert read_all(v, step=1237) == data
    assert data == path.read_bytes()
    assert os.listdir(tmp_path) == ["db"]


def test_what_only_the_wal_holds_is_in_the_view(tmp_path: Path) -> None:
    path = make(tmp_path / "db")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("UPDATE state SET a = 1, b = 999")
        with view(path, dataset="till") as v:
            db.execute("UPDATE state SET a = 2, b = 998")
            data = read_all(v)
    (tmp_path / "copy").write_bytes(data)
    with closing(sqlite3.connect(tmp_path / "copy")) as copy:
        assert copy.execute("SELECT a, b FROM state").fetchone() == (1, 999)


def test_frozen_view_takes_turns_with_short_readers(tmp_path: Path) -> None:
    path = make(tmp_path / "db", rows=100)
    stop = threading.Event()

    def use() -> None:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as db:
            while not stop.is_set():
                db.execute("BEGIN")
                db.execute("SELECT count(*) FROM junk").fetchone()
                time.sleep(0.01)
                db.execute("COMMIT")
                db.execute("UPDATE state SET a = a + 1, b = b - 1")

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            with view(path, dataset="till") as v:
                first = read_all(v)
                time.sleep(0.05)
                assert read_all(v) == first
                assert v.mode == "frozen"
            check_state(first, tmp_path)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_old_reader_makes_it_a_copy_that_differs_only_in_header_counters(tmp_path: Path) -> None:
    path = make(tmp_path / "db", rows=300)
    with closing(pin(path)), view(path, dataset="till", count=["junk"], timeout=timedelta(seconds=1)) as v:
        assert v.mode == "copied"
        assert v.facts["rows"] == {"junk": 300}
        copied = read_all(v)
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("UPDATE state SET a = a + 1, b = b - 1")
        assert read_all(v) == copied
    check_state(copied, tmp_path)
    with view(path, dataset="till") as v:
        frozen = read_all(v)
        assert v.mode == "frozen"
    changed = {i for i, (x, y) in enumerate(zip(copied, frozen, strict=True)) if x != y}
    pages = {i // 4096 for i in changed}
    assert {i for i in changed if i < 4096} <= COUNTER_BYTES
    assert len(pages) <= 2, "the header's page and the updated one"


@pytest.mark.parametrize("journal", ["delete", "truncate", "persist", "memory"])
def test_copied_view_of_rollback_databases(tmp_path: Path, journal: str) -> None:
    path = make(tmp_path / "db", journal, rows=300, page_size=1024)
    folder = tmp_path / "scratch"
    folder.mkdir()
    beside = set(os.listdir(tmp_path))
    before = path.read_bytes()
    with view(path, dataset="till", count=["junk"], scratch=folder) as v:
        assert (v.mode, v.page_size) == ("copied", 1024)
        assert v.facts["rows"] == {"junk": 300}
        if sys.platform != "win32":
            assert os.listdir(folder) == []
        data = read_all(v)
        with closing(sqlite3.connect(path)) as db:
            db.execute("INSERT INTO junk VALUES (1)")
            db.commit()
        assert read_all(v) == data
    assert os.listdir(folder) == []
    assert {i for i, (x, y) in enumerate(zip(data, before, strict=True)) if x != y} <= COUNTER_BYTES
    assert set(os.listdir(tmp_path)) <= beside, "the writer may have removed an old journal"


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.touch()
    with view(path, dataset="till") as v:
        assert (v.size, read_all(v), v.facts["pages"]) == (0, b"", 0)
        with closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE t (x)")
        assert read_all(v) == b""


def test_file_longer_than_the_database_and_header_with_wrong_size(tmp_path: Path) -> None:
    path = make(tmp_path / "db", rows=20)
    size = path.stat().st_size
    with path.open("r+b") as f:
        f.truncate(size + 3 * 4096 + 5)
    with view(path, dataset="till") as v:
        assert (v.mode, v.size) == ("frozen", size)
    for journal in ("wal", "delete"):
        path = make(tmp_path / f"short-{journal}", journal, rows=20)
        with path.open("r+b") as f:
            f.truncate(path.stat().st_size - 4096)
        assert kind_of(path) == "damaged"


@pytest.mark.parametrize("name", ["a b?c#d%41é&mode=memory.db", b"latin-\xe9.db", "file::memory:", "x'\"y"])
def test_odd_names(tmp_path: Path, name: str | bytes) -> None:
    if sys.platform in ("win32", "darwin") and not (isinstance(name, str) and name.startswith("a b")):
        pytest.skip("not a file name here")
    good = make(tmp_path / "good", rows=5)
    for journal in ("wal", "delete"):
        folder = tmp_path / journal
        folder.mkdir()
        path = folder / os.fsdecode(name)
        shutil.copyfile(good, path)
        if journal == "delete":
            data = bytearray(path.read_bytes())
            data[18:20] = b"\1\1"
            path.write_bytes(data)
        with view(path, dataset="till", count=["junk"], scratch=folder) as v:
            assert v.facts["rows"] == {"junk": 5}
        assert restore_checks(path, ["junk"])["rows"] == {"junk": 5}
        assert os.listdir(folder) == [os.fsdecode(name)]


def test_path_relative_and_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "db")
    link = tmp_path / "link"
    try:
        link.symlink_to(path)
    except OSError:
        pytest.skip("no links here")
    monkeypatch.chdir(tmp_path)
    with view("link", dataset="till") as v:
        assert v.mode == "frozen"
        assert read_all(v) == path.read_bytes()


def test_lock_byte_page_is_zeros(tmp_path: Path) -> None:
    start = sqlite_view.LOCK_BYTE
    with (tmp_path / "big").open("w+b") as f:
        f.seek(start - 4096)
        f.write(b"\1" * 3 * 4096)
        facts: Any = {}
        v = SQLiteView(
            size=start + 8192,
            page_size=4096,
            mode="frozen",
            facts=facts,
            dataset="till",
            _fd=f.fileno(),
            _written=None,
        )
        expected = b"\1" * 4096 + bytes(4096) + b"\1" * 4096
        for first, last in [(0, 12288), (100, 12288), (4096, 8192), (5000, 5100), (5000, 9000), (0, 4097)]:
            buffer = bytearray(b"\7" * (last - first))
            assert v.read_into(start - 4096 + first, memoryview(buffer)) == last - first
            assert buffer == expected[first:last]


def test_restore_checks(tmp_path: Path) -> None:
    path = make(tmp_path / "db", rows=50)
    before = path.read_bytes()
    facts = restore_checks(path, ["junk"], dataset="till")
    assert (facts["rows"], facts["user_version"]) == ({"junk": 50}, 7)
    assert os.listdir(tmp_path) == ["db"]
    assert path.read_bytes() == before
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("CREATE INDEX by_a ON state (a)")
        root = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'by_a'").fetchone()[0]
    damaged = bytearray(path.read_bytes())
    damaged[(root - 1) * 4096 : root * 4096] = b"\x0a\0\0\0\0\x10\0\0" + bytes(4088)
    path.write_bytes(damaged)
    with pytest.raises(SourceFailed, match="row … missing from index by_a") as caught:
        restore_checks(path, ["junk"], dataset="till")
    assert caught.value.kind == "damaged"
    for bad, kind in [(before[:8000], "damaged"), (b"no database" * 100, "not-a-database")]:
        path.write_bytes(bad)
        with pytest.raises(SourceFailed) as caught:
            restore_checks(path)
        assert caught.value.kind == kind
    path.write_bytes(before)
    with pytest.raises(SourceFailed) as caught:
        restore_checks(path, ["nothing"])
    assert caught.value.kind == "table-missing"
