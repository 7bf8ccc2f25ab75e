"""Dumps of trees that were dumped before: what was not changed is not read, and every change is seen."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pharmabackup.sources import listing
from pharmabackup.sources.files import Files
from tests.sources.recording import check_same, dump
from tests.sources.trees import make, opened, posix


@posix
def test_unchanged_tree_is_kept_without_opening_a_file(
    tmp_path: Path, later: None, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path)
    first = dump(Files(root))
    names = opened(monkeypatch)
    second = dump(Files(root), first)
    check_same(second, root)
    assert names == []
    assert second.read_files == 0
    assert second.kept_folders == len(first.folders) - 3  # three hold a file with several names
    third = dump(Files(root), second)
    assert third.folders == second.folders


@posix
def test_changed_file_alone_is_read(tmp_path: Path, later: None, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path)
    first = dump(Files(root))
    (root / "scans/2024/7.tif").write_bytes(b"new")
    (root / "scans/2024/more").write_bytes(b"more")
    (root / "scans/2024/9.tif").unlink()
    names = opened(monkeypatch)
    second = dump(Files(root), first)
    assert sorted(names) == ["7.tif", "more"]
    check_same(second, root)


@posix
@pytest.mark.parametrize("change", ["content", "mode", "owner", "attribute", "replaced", "link", "folder"])
def test_every_change_is_seen(tmp_path: Path, later: None, change: str) -> None:
    root = make(tmp_path)
    first = dump(Files(root))
    status = (root / "a/x").stat()
    time.sleep(0.02)
    if change == "content":
        (root / "a/x").write_text("z")
        os.utime(root / "a/x", ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "mode":
        (root / "a/x").chmod(0o600)
    elif change == "owner":
        os.chown(root / "a/x", os.geteuid(), 1 if os.geteuid() == 0 else os.getegid())
    elif change == "attribute":
        os.setxattr(root / "a/x", "user.new", b"1")
    elif change == "replaced":
        (root / "a/y").write_text("z")
        os.utime(root / "a/y", ns=(status.st_atime_ns, status.st_mtime_ns))
        os.replace(root / "a/y", root / "a/x")
    elif change == "link":
        (root / "link").unlink()
        (root / "link").symlink_to("scans/2025")
    else:
        (root / "scans/2024/empty").chmod(0o700)
    check_same(dump(Files(root), first), root)


@posix
def test_names_of_one_file_that_come_and_go(tmp_path: Path, later: None) -> None:
    root = tmp_path
    for name in ("a", "b", "c"):
        (root / name).mkdir()
    (root / "b/one").write_text("first")
    recorder = dump(Files(root))
    steps = [
        lambda: os.link(root / "b/one", root / "a/zero"),
        lambda: os.link(root / "b/one", root / "c/two"),
        lambda: os.rename(root / "a/zero", root / "c/zero"),
        lambda: (root / "b/one").unlink(),
        lambda: (root / "c/two").write_text("changed"),
        lambda: (root / "c/zero").unlink(),
    ]
    for step in steps:
        step()
        recorder = dump(Files(root), recorder)
        check_same(recorder, root)
        assert recorder.findings == []


@posix
def test_second_name_becomes_the_first(tmp_path: Path, later: None) -> None:
    (tmp_path / "a").write_text("content")
    os.link(tmp_path / "a", tmp_path / "b")
    both = dump(Files(tmp_path))
    assert both.tree()[b"b"].same_file == b"a"
    assert dump(Files(tmp_path, exclude=["a"]), both).content(b"b") == b"content"


@posix
def test_just_changed_files_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").write_text("old")
    (tmp_path / "new").write_text("new")
    old = (tmp_path / "old").stat().st_ctime_ns
    (tmp_path / "new").chmod(0o640)
    ctime = (tmp_path / "new").stat().st_ctime_ns
    monkeypatch.setattr(listing, "RACY", 10**9)
    monkeypatch.setattr(listing, "time_ns", lambda: max(old + 1, ctime) + 10**9)
    first = dump(Files(tmp_path))
    names = opened(monkeypatch)
    dump(Files(tmp_path), first)
    assert names == ["new"]
    monkeypatch.setattr(listing, "time_ns", lambda: ctime + 10**10)
    second = dump(Files(tmp_path), first)
    names.clear()
    assert dump(Files(tmp_path), second).kept_folders == 1
    assert names == []
