"""What is opened is closed again, except where closing would do harm."""

from __future__ import annotations

import errno
import os
import resource
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from pharmabackup.errors import Cancelled
from pharmabackup.sources import descriptors, reading, tree
from pharmabackup.sources.files import Files
from pharmabackup.sources.sqlite import SQLite
from tests.sources.databases import make as make_database
from tests.sources.databases import other_process
from tests.sources.recording import Recorder, check_same, dump
from tests.sources.trees import count_descriptors, fill, once

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")


def test_few_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, " ".join(f"{n % 7}/{n}" for n in range(300)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count_descriptors() + 20, hard))
    try:
        recorder = dump(Files(tmp_path))
        monkeypatch.setattr(tree, "_files_ahead", lambda: 1000)  # as if other threads had opened the rest
        greedy = dump(Files(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    check_same(recorder, tmp_path)
    assert all(code in ("folder-unreadable", "attributes-unreadable") for code, _ in greedy.codes())


def test_cancelled_dump_leaves_nothing_open(tmp_path: Path) -> None:
    fill(tmp_path, " ".join(f"{n % 7}/{n}" for n in range(300)))
    before = count_descriptors()

    def cancel() -> None:
        raise Cancelled("The backup was cancelled.")

    for number in ("/0/0", "/40", "/299"):
        with pytest.raises(Cancelled):
            dump(Files(tmp_path), hook=once(number.encode(), cancel))
        assert count_descriptors() == before


def test_it_can_be_cancelled_in_one_large_folder(tmp_path: Path) -> None:
    fill(tmp_path, " ".join(str(n) for n in range(300)))
    assert dump(Files(tmp_path)).checks >= 300 // tree.CHECK_FILES


def test_databases_of_this_process_keep_their_locks(tmp_path: Path) -> None:
    """Files that SQLite sources know are read through descriptors that are never closed: the main file's, whose lock
    forbids another journal mode, and that of the -shm file, whose lock forbids checkpoints into the main file."""
    path = make_database(tmp_path / "db", rows=100)
    probe = """
        import sqlite3, sys
        db = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
        try:
            print(db.execute(sys.argv[2]).fetchone()[0])
        except sqlite3.OperationalError as error:
            print(error)
    """
    with SQLite(path).view(scratch=tmp_path) as view:
        recorder = dump(Files(tmp_path))
        assert {b"db", b"db-shm"} <= recorder.tree().keys()
        assert other_process(probe, path, "PRAGMA journal_mode = DELETE") == "database is locked"
        other_process(probe, path, "DELETE FROM junk RETURNING 1")
        other_process(probe, path, "PRAGMA wal_checkpoint(PASSIVE)")
        database = Recorder()
        view.dump(database)
        before = count_descriptors()
        dump(Files(tmp_path))
        assert count_descriptors() == before
    assert recorder.content(b"db") == database.content(b"db")


def test_database_that_is_opened_while_its_file_is_read(tmp_path: Path) -> None:
    path = make_database(tmp_path / "db", "wal", rows=3)
    fd = os.open(path, os.O_RDONLY)
    with SQLite(path).view(scratch=tmp_path):
        descriptors.close(fd)
        os.fstat(fd)
    os.close(fd)
    fd = os.open(tmp_path, os.O_RDONLY)
    descriptors.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_two_dumps_at_once(tmp_path: Path) -> None:
    fill(tmp_path, " ".join(f"{n % 7}/{n}" for n in range(300)))
    make_database(tmp_path / "db", "wal", rows=3)
    recorders = [Recorder() for _ in range(3)]
    with SQLite(tmp_path / "db").view(scratch=tmp_path):
        threads = [threading.Thread(target=lambda r=r: dump_into(Files(tmp_path), r)) for r in recorders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert recorders[0].tree().keys() == recorders[1].tree().keys() == recorders[2].tree().keys()
    assert len({recorder.content(b"db") for recorder in recorders}) == 1


def dump_into(source: Files, recorder: Recorder) -> None:
    with source.view(scratch=Path("/nonexistent")) as view:
        view.dump(recorder)


def test_reader_without_an_error_has_none(tmp_path: Path) -> None:
    with (tmp_path / "x").open("w+b") as file:
        file.write(b"abc")
        file.flush()
        reader = reading.Reader(file.fileno())
        buffer = memoryview(bytearray(2))
        assert [reader.read_into(buffer) for _ in range(3)] == [2, 1, 0]
        assert reader.error is None


def test_database_that_is_opened_when_the_dump_ends(tmp_path: Path) -> None:
    """Its file waits to be read, and must not be closed either: that would drop the locks of the view."""
    fill(tmp_path, "a")
    path = make_database(tmp_path / "db", rows=100)
    probe = """
        import sqlite3, sys
        try:
            sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None).execute("PRAGMA journal_mode = DELETE")
            print("it has no lock")
        except sqlite3.OperationalError as error:
            print(error)
    """
    with ExitStack() as views:

        def cancel() -> None:
            views.enter_context(SQLite(path).view(scratch=tmp_path))
            raise Cancelled("The backup was cancelled.")

        with pytest.raises(Cancelled):
            dump(Files(tmp_path), hook=once(b"/a", cancel))
        assert other_process(probe, path) == "database is locked"


def test_file_of_which_nothing_can_be_told_is_not_closed_beside_a_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be the database's own: closing it could drop SQLite's locks."""
    fill(tmp_path, "a b")
    path = make_database(tmp_path / "db", rows=3)
    real, own = os.fstat, (tmp_path / "a").stat()
    opened: list[int] = []

    def fail(fd: int) -> os.stat_result:
        status = real(fd)
        if os.path.samestat(status, own):
            opened.append(fd)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return status

    with SQLite(path).view(scratch=tmp_path), monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fail)
        recorder = dump(Files(tmp_path, exclude=["db*"]))
    assert recorder.codes() == [("file-unreadable", b"a")]
    assert recorder.content(b"b") == b"b" * 100
    os.close(opened[0])
