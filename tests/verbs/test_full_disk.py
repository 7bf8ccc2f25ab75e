"""Disks that fill up: the repository's, the target's, the state folder's, the scratch folder's."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import pharmabackup as pb
from tests.storage.mounts import tmpfs
from tests.trees import describe

SECRET = "correct horse battery staple"


@pytest.fixture
def disk() -> Iterator[Path]:
    with tmpfs("6m") as where:
        yield where


def _remount(where: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(where)], check=True)


def _fill_up(where: Path) -> Path:
    """Take all that is free there."""
    hog = where / "hog"
    with open(hog, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    assert os.statvfs(where).f_bavail == 0
    return hog


def _tree(folder: Path, seed: int, size: int) -> Path:
    chance = random.Random(seed)
    folder.mkdir()
    (folder / "large").write_bytes(chance.randbytes(size // 2))
    for number in range(50):
        (folder / f"{number}").write_bytes(chance.randbytes(size // 100))
    return folder


def _create(where: Path) -> pb.Repository:
    return pb.Repository.create(where, pb.Passphrase(SECRET))


def test_a_repository_that_fills_up_keeps_what_it_has(tmp_path: Path, disk: Path, cheap_kdf: None) -> None:
    first = _tree(tmp_path / "first", 1, 2_000_000)
    second = _tree(tmp_path / "second", 2, 8_000_000)
    with _create(disk / "repository") as repo:
        kept = repo.backup([pb.Files(first)]).datasets["first"].snapshot
        assert kept is not None
        for _ in range(3):  # again and again: what it leaves must not pile up
            with pytest.raises(pb.StorageFailed) as caught:
                repo.backup([pb.Files(second)])
            assert caught.value.kind == "full"
            assert "space" in caught.value.remedy
            assert caught.value.location
        assert [snapshot.id for snapshot in repo.snapshots()] == [kept.id]
        assert repo.check().state == "ok"
        repo.restore(tmp_path / "out")
        assert describe(tmp_path / "out" / "first") == describe(first)
    with pb.Repository.open(disk / "repository", pb.Passphrase(SECRET)) as repo:  # a full disk can be opened
        assert len(repo.snapshots()) == 1
        assert repo.check(read_data=1.0).state == "ok"
        _remount(disk, "size=40m")
        assert repo.backup([pb.Files(second)]).datasets["second"].complete
        assert repo.check(read_data=1.0).state == "ok"
        repo.restore(tmp_path / "again")
        assert describe(tmp_path / "again" / "second") == describe(second)
        assert describe(tmp_path / "again" / "first") == describe(first)


def test_no_repository_is_begun_on_a_full_disk(disk: Path, cheap_kdf: None) -> None:
    hog = _fill_up(disk)
    with pytest.raises(pb.StorageFailed) as caught:
        _create(disk / "repository")
    assert caught.value.kind == "full"
    hog.unlink()
    with pytest.raises(pb.NotFound):
        pb.Repository.open(disk / "repository", pb.Passphrase(SECRET))


TROUBLES = ["full", "read-only", "missing", "a file"]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_backup_does_without_its_state_folder(tmp_path: Path, disk: Path, cheap_kdf: None, trouble: str) -> None:
    _backs_up(tmp_path, disk, trouble)


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_backup_of_many_chunks_does_without_its_state_folder(
    tmp_path: Path, disk: Path, cheap_kdf: None, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setattr("pharmabackup.engine.index.SPILL_ROWS", 16)  # as if more than memory holds
    _backs_up(tmp_path, disk, trouble)


def _backs_up(tmp_path: Path, disk: Path, trouble: str) -> None:
    source = _tree(tmp_path / "documents", 1, 3_000_000)
    state = disk / "state"
    if trouble == "a file":
        state.write_text("in the way")
    with pb.Repository.create(tmp_path / "repository", pb.Passphrase(SECRET), state_dir=state) as repo:
        if trouble == "full":
            _fill_up(disk)
        elif trouble == "read-only":
            _remount(disk, "ro")
        for turn in range(2):
            (source / "turn").write_text(str(turn))
            assert repo.backup([pb.Files(source)]).datasets["documents"].complete
        assert repo.check(read_data=1.0).state == "ok"
        repo.restore(tmp_path / "out")
        assert describe(tmp_path / "out" / "documents") == describe(source)


def test_a_full_target_is_said_and_the_same_call_goes_on(tmp_path: Path, disk: Path, cheap_kdf: None) -> None:
    source = _tree(tmp_path / "documents", 3, 10_000_000)
    with _create(tmp_path / "repository") as repo:
        repo.backup([pb.Files(source)])
        for _ in range(2):
            with pytest.raises(pb.StorageFailed) as caught:
                repo.restore(disk / "out")
            assert caught.value.kind == "full"
            assert "space" in caught.value.remedy
            assert str(disk) in str(caught.value)
            assert (disk / "out" / "documents.restoring").stat().st_size
            for path in (disk / "out" / "documents").iterdir():
                if (source / path.name).exists():
                    assert path.read_bytes() == (source / path.name).read_bytes()
        _remount(disk, "size=40m")
        repo.restore(disk / "out")
        assert describe(disk / "out" / "documents") == describe(source)
        assert not (disk / "out" / "documents.restoring").exists()


@pytest.mark.parametrize("prepared", [False, True], ids=["no folder yet", "a folder"])
def test_a_target_that_is_full_from_the_start(tmp_path: Path, disk: Path, cheap_kdf: None, prepared: bool) -> None:
    source = _tree(tmp_path / "documents", 3, 1_000_000)
    with _create(tmp_path / "repository") as repo:
        repo.backup([pb.Files(source)])
        if prepared:
            (disk / "out" / "documents").mkdir(parents=True)
        hog = _fill_up(disk)
        with pytest.raises(pb.StorageFailed) as caught:
            repo.restore(disk / "out")
        assert caught.value.kind == "full"
        hog.unlink()
        repo.restore(disk / "out")
        assert describe(disk / "out" / "documents") == describe(source)


def _database(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE patient (id INTEGER PRIMARY KEY, name TEXT)")
        db.executemany("INSERT INTO patient (name) VALUES (?)", [(f"Test {i}" * 20,) for i in range(5000)])
    return path


def test_a_full_scratch_folder_fails_the_database_alone(
    tmp_path: Path, disk: Path, cheap_kdf: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    path, source = _database(tmp_path / "pmr.db"), _tree(tmp_path / "documents", 1, 500_000)
    _fill_up(disk)
    with _create(tmp_path / "repository") as repo:
        with pytest.raises(pb.Incomplete) as caught:
            repo.backup([pb.SQLite(path, tier=1), pb.Files(source)])
        report = caught.value.result
        assert not report.datasets["pmr"].complete
        assert report.datasets["documents"].complete
        (failed,) = [finding for finding in report.findings if finding.code == "dataset-failed"]
        assert failed.subject == "pmr"
        assert "scratch" in failed.message
        assert "space" in failed.remedy
        assert [snapshot.dataset for snapshot in repo.snapshots()] == ["documents"]
        assert repo.check(read_data=1.0).state == "ok"
        (disk / "hog").unlink()
        _remount(disk, "size=64m")
        repo.backup([pb.SQLite(path, tier=1), pb.Files(source)])
        assert list(disk.iterdir()) == []


def test_a_scratch_folder_that_cannot_be_written_spares_the_files(
    tmp_path: Path, disk: Path, cheap_kdf: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    path, source = _database(tmp_path / "pmr.db"), _tree(tmp_path / "documents", 1, 500_000)
    _remount(disk, "ro")
    with _create(tmp_path / "repository") as repo:
        with pytest.raises(pb.Incomplete) as caught:
            repo.backup([pb.SQLite(path, tier=1), pb.Files(source)])
        assert not caught.value.result.datasets["pmr"].complete
        assert caught.value.result.datasets["documents"].complete
