"""Entries that are listed and cannot be looked at, the root itself among them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup.errors import SourceFailed
from pharmabackup.sources import parts, walk
from pharmabackup.sources.files import Files
from tests.sources.recording import Recorder, dump
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
