"""The SQLite source: one file of one committed state, restored and checked."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pharmabackup.errors import InvalidInput, SourceFailed
from pharmabackup.sources import Files, Sink, Source, SQLite, View
from pharmabackup.sources.sqlite_view import restore_checks
from tests.sources.databases import make
from tests.sources.recording import Recorder


def restored(recorder: Recorder, folder: Path) -> list[bytes]:
    folder.mkdir()
    names = list(recorder.tree())
    for name in names:
        (folder / os.fsdecode(name)).write_bytes(recorder.content(name))
    return names


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_dump_and_verify(tmp_path: Path, journal: str) -> None:
    path = make(tmp_path / "till.db", journal, rows=300)
    path.chmod(0o640)
    status = path.stat()
    source = SQLite(path, count=["junk"])
    recorder = Recorder()
    with source.view(scratch=tmp_path) as view, closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DELETE FROM junk")
        facts = view.dump(recorder)
    assert facts["rows"] == {"junk": 300}
    assert facts["journal_mode"] == journal
    (entry,) = recorder.tree().values()
    assert (entry.path, entry.kind, entry.mode) == (b"till.db", 0, 0o640)
    assert (entry.uid, entry.gid, entry.mtime) == (status.st_uid, status.st_gid, status.st_mtime_ns)
    assert recorder.folders[b""].rows == b""
    names = restored(recorder, tmp_path / "out")
    assert source.verify(tmp_path / "out", names)["rows"] == {"junk": 300}
    assert restore_checks(tmp_path / "out/till.db", integrity=True)["user_version"] == 7
    assert os.listdir(tmp_path / "out") == ["till.db"]


def test_verify_finds_damage(tmp_path: Path) -> None:
    path = make(tmp_path / "till.db", rows=300)
    recorder = Recorder()
    with SQLite(path).view(scratch=tmp_path) as view:
        view.dump(recorder)
    names = restored(recorder, tmp_path / "out")
    with (tmp_path / "out/till.db").open("r+b") as file:
        file.truncate(2 * 4096)
    for entries in (names, [], [b"a", b"b"]):
        with pytest.raises(SourceFailed) as caught:
            SQLite(path).verify(tmp_path / "out", entries)
        assert (caught.value.kind, caught.value.dataset) == ("damaged", "till")


def test_empty_database(tmp_path: Path) -> None:
    (tmp_path / "new.db").touch()
    recorder = Recorder()
    with SQLite(tmp_path / "new.db").view(scratch=tmp_path) as view:
        view.dump(recorder)
    assert recorder.content(b"new.db") == b""


def test_names_and_what_is_refused(tmp_path: Path) -> None:
    assert SQLite(tmp_path / "pmr.db").name == "pmr"
    assert SQLite(tmp_path / "pmr.db", name="records", tier=0).tier == 0
    assert SQLite(tmp_path / "pmr").name == "pmr"
    assert SQLite(tmp_path / "pmr.db").location() == tmp_path / "pmr.db"
    assert (SQLite.kind, Files.kind) == ("sqlite", "files")
    for bad in (lambda: SQLite(""), lambda: SQLite("a\0b"), lambda: SQLite("x.db", count="junk")):
        with pytest.raises(InvalidInput) as caught:
            bad()
        assert caught.value.remedy
    with pytest.raises(SourceFailed) as failed, SQLite(tmp_path / "pmr.db").view(scratch=tmp_path):
        pass
    assert (failed.value.kind, failed.value.dataset) == ("missing", "pmr")


def test_sources_of_ones_own_have_what_they_need() -> None:
    assert issubclass(Files, Source)
    assert {name for name in vars(Sink) if not name.startswith("_")} >= {"file", "stream", "pages", "folder"}
    assert View.__abstractmethods__ == {"dump"}
