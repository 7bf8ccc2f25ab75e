"""Views of what is no SQLite database, is locked, crashed or may not be read."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from pharmabackup.sources import sqlite_copy
from pharmabackup.sources.sqlite_view import view
from tests.sources.databases import (
    check_state,
    kind_of,
    make,
    other_process,
    posix,
    read_all,
)


def test_what_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"dispensed: metformin 850 mg " * 400)
    (tmp_path / "short").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    assert kind_of(tmp_path / "text") == "not-a-database"
    assert kind_of(tmp_path / "short") == "not-a-database"
    assert kind_of(tmp_path / "folder") == "not-a-file"
    assert kind_of(tmp_path / "nothing") == "missing"
    assert kind_of(tmp_path / "text" / "below") == "missing"
    assert kind_of("a\0b") == "missing"
    assert kind_of(make(tmp_path / "db"), count=["nothing"]) == "table-missing"
    assert not (tmp_path / "nothing").exists()


def test_full_scratch_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "db", "delete", rows=100)
    folder = tmp_path / "scratch"
    assert kind_of(path, scratch=folder) == "tool-failed"
    folder.mkdir()
    monkeypatch.setattr(sqlite_copy, "SPARE_BYTES", 1 << 60)
    assert kind_of(path, scratch=folder) == "tool-failed"
    assert os.listdir(folder) == []


@posix
def test_scratch_disk_that_fills_up(tmp_path: Path) -> None:
    path = make(tmp_path / "db", "delete", rows=300)
    (tmp_path / "scratch").mkdir()
    code = """
        import resource, sys
        from pharmabackup.sources.sqlite_view import view
        from pharmabackup.errors import SourceFailed
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            with view(sys.argv[1], dataset="till", scratch=sys.argv[2]):
                print("copied")
        except SourceFailed as error:
            print(error.kind, "scratch disk" in error.remedy)
    """
    assert other_process(code, path, tmp_path / "scratch") == "tool-failed True"
    assert os.listdir(tmp_path / "scratch") == []


@posix
def test_killed_process_leaves_nothing(tmp_path: Path) -> None:
    path = make(tmp_path / "db", "delete", rows=300)
    (tmp_path / "scratch").mkdir()
    code = """
        import os, signal, sys
        from pharmabackup.sources.sqlite_view import view
        with view(sys.argv[1], dataset="till", scratch=sys.argv[2]) as v:
            os.kill(os.getpid(), signal.SIGKILL)
    """
    with pytest.raises(subprocess.CalledProcessError):
        other_process(code, path, tmp_path / "scratch")
    assert os.listdir(tmp_path / "scratch") == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs to become another user")
@pytest.mark.parametrize("journal", ["wal", "delete"])
@pytest.mark.parametrize("medium", [False, True], ids=["folder", "medium"])
def test_without_the_right_to_write(tmp_path: Path, journal: str, medium: bool) -> None:
    path = make(tmp_path / "db", journal, rows=20)
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 1:
            folder.chmod(0o755)
    code = """
        import os, sys
        from pharmabackup.errors import SourceFailed
        from pharmabackup.sources import sqlite_view
        os.setgid(65534)
        os.setuid(65534)
        if sys.argv[2] == "True":
            sqlite_view._medium_is_read_only = lambda path: True
        try:
            with sqlite_view.view(sys.argv[1], dataset="till", count=["junk"]) as v:
                print(v.mode, v.facts["rows"]["junk"], v.facts["journal_mode"])
        except SourceFailed as error:
            print(error.kind)
    """
    expected = "copied 20 delete" if journal == "delete" else "frozen 20 wal" if medium else "permission"
    assert other_process(code, path, medium) == expected
    assert os.listdir(tmp_path) == ["db"]
    with closing(sqlite3.connect(path)) as db:  # in use: SQLite's own files are there to be read
        db.execute("UPDATE state SET a = 400, b = 600")
        db.commit()
        assert other_process(code, path, medium) == f"copied 20 {journal}"


def test_crashed_application(tmp_path: Path) -> None:
    code = """
        import os, sqlite3, sys
        db = sqlite3.connect(sys.argv[1], isolation_level=None)
        db.execute("PRAGMA cache_size = 1")
        db.execute("UPDATE state SET a = 400, b = 600")
        db.execute("BEGIN")
        db.executemany("INSERT INTO junk VALUES (randomblob(2000))", [()] * 500)
        os._exit(0)
    """
    for journal in ("wal", "delete"):
        path = make(tmp_path / journal, journal, rows=20)
        other_process(code, path)
        with view(path, dataset="till", count=["junk"]) as v:
            assert v.facts["rows"] == {"junk": 20}
            assert check_state(read_all(v), tmp_path) == (0, 20)
