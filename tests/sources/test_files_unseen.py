"""Entries that are listed and cannot be looked at, the root itself among them."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup.errors import SourceFailed
from pharmabackup.format.manifest import EntryKind
from pharmabackup.sources import listing, parts, walk
from pharmabackup.sources.files import Files
from tests.conftest import PASSPHRASE
from tests.reader.reader import Reader
from tests.sources.recording import Recorder, check_same, dump
from tests.sources.trees import count_descriptors, fill, posix
from tests.trees import describe

pytestmark = posix

MakeRepo = Callable[[], pb.Repository]


# ---------------------------------------------------------------- the root itself


def root_fails(monkeypatch: pytest.MonkeyPatch, root: Path, error: int) -> None:
    """Looking at the root fails, once it has been opened and listed."""
    real, real_list, own = os.stat, walk.list_names, root.stat()
    listed: list[bool] = []

    def fail(path: int | str, *arguments: Any, **options: Any) -> os.stat_result:
        status = real(path, *arguments, **options)
        if listed and os.path.samestat(status, own):
            raise OSError(error, os.strerror(error))
        return status

    def list_names(*arguments: Any) -> list[bytes]:
        names = real_list(*arguments)
        listed.append(True)
        return names

    monkeypatch.setattr(walk, "list_names", list_names)
    monkeypatch.setattr(os, "stat", fail)


@pytest.mark.parametrize("part", ["first", "later"])
@pytest.mark.parametrize("error", [errno.ESTALE, errno.EIO, errno.ENOENT, errno.EACCES])
def test_root_that_cannot_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, error: int, part: str
) -> None:
    """A snapshot without its root could not be restored."""
    if part == "later":
        monkeypatch.setattr(parts, "PART_MIN", 1)
        monkeypatch.setattr(parts, "PART_MAX", 2)
    fill(tmp_path, "!a !b !c d e")
    before = count_descriptors()
    with Files(tmp_path, name="papers").view(scratch=tmp_path) as view, monkeypatch.context() as patch:
        root_fails(patch, tmp_path, error)
        with pytest.raises(SourceFailed) as caught:
            view.dump(Recorder())
    kinds = {errno.ENOENT: "missing", errno.EACCES: "permission"}
    assert (caught.value.kind, caught.value.dataset) == (kinds.get(error, "tool-failed"), "papers")
    assert count_descriptors() == before


def test_root_that_becomes_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "BY_DESCRIPTOR", False)
    root = tmp_path / "root"
    root.mkdir()
    real = walk.list_names

    def replace(*arguments: Any) -> list[bytes]:
        names = real(*arguments)
        root.rmdir()
        root.write_text("a file now")
        return names

    monkeypatch.setattr(walk, "list_names", replace)
    with pytest.raises(SourceFailed):
        dump(Files(root))


def test_no_snapshot_is_made_of_a_root_that_cannot_be_looked_at(
    tmp_path: Path, make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    repo, root = make_repo(), tmp_path / "site"
    root.mkdir()
    fill(root)
    with monkeypatch.context() as patch:
        root_fails(patch, root, errno.ESTALE)
        with pytest.raises(pb.Incomplete) as caught:
            repo.backup([pb.Files(root)])
    assert "dataset-failed" in {finding.code for finding in caught.value.findings}
    assert list(repo.snapshots()) == []
    repo.backup([pb.Files(root)])
    repo.restore(tmp_path / "out")
    assert describe(tmp_path / "out/site") == describe(root)


# ---------------------------------------------------------------- other entries


def fill_one(folder: Path, name: str) -> Path:
    """A folder with one entry of that name: a file, or a folder with a file; where the file is."""
    inside = folder / name if name == "x" else folder / name / "y"
    inside.parent.mkdir(parents=True)
    inside.write_text("yesterday's")
    return inside


def unseen(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Entries of these names cannot be looked at."""
    real = os.lstat

    def fail(path: str | bytes, **options: Any) -> os.stat_result:
        if os.path.basename(os.fsdecode(path)) in names:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, **options)

    monkeypatch.setattr(os, "lstat", fail)


@pytest.mark.parametrize("name", ["x", "sub"])
def test_what_just_changed_is_not_taken_for_what_cannot_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, name: str
) -> None:
    """Neither row is proof of anything, so the one must not prove the other."""
    inside = fill_one(tmp_path / "d", name)
    first = dump(Files(tmp_path))  # everything has just changed
    inside.write_text("other")
    monkeypatch.setattr(listing, "time_ns", lambda: time.time_ns() + 10**10)
    with monkeypatch.context() as patch:
        unseen(patch, name)
        second = dump(Files(tmp_path), first)
    path = b"d/" + name.encode()
    assert second.codes() == [("file-unreadable", path)]
    assert {path: entry.kind for path, entry in second.tree().items()} == {
        b"": EntryKind.FOLDER,
        b"d": EntryKind.FOLDER,
        path: EntryKind.UNREAD,
    }
    check_same(dump(Files(tmp_path), second), tmp_path)


def test_what_could_not_be_looked_at_twice_is_told_twice(
    tmp_path: Path, later: None, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    fill(tmp_path, "a x")
    with monkeypatch.context() as patch:
        unseen(patch, "x")
        first = dump(Files(tmp_path))
        second = dump(Files(tmp_path), first)
    assert first.codes() == second.codes() == [("file-unreadable", b"x")]
    assert second.kept_folders == 0


@pytest.mark.parametrize("name", ["x", "sub"])
def test_what_cannot_be_looked_at_is_missing_from_the_snapshot(
    tmp_path: Path, make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The file's content of yesterday is not there, nor a folder that nothing is known of."""
    repo, root = make_repo(), tmp_path / "site"
    root.mkdir()
    inside = fill_one(root / "d", name)
    repo.backup([pb.Files(root)])
    inside.write_text("other")
    monkeypatch.setattr(listing, "time_ns", lambda: time.time_ns() + 10**10)
    with monkeypatch.context() as patch:
        unseen(patch, name)
        with pytest.raises(pb.Incomplete):
            repo.backup([pb.Files(root)])
    found = Reader(tmp_path / "repository-0", PASSPHRASE).restore(repo.snapshot("site").id)
    path = b"d/" + name.encode()
    assert set(found) == {b".", b"d", path}
    assert found[path].kind == EntryKind.UNREAD
    repo.restore(tmp_path / "out")
    assert os.listdir(tmp_path / "out/site/d") == []
    repo.backup([pb.Files(root)])
    repo.restore(tmp_path / "whole")
    assert describe(tmp_path / "whole/site") == describe(root)
