"""Files that were stored, and of which the system then does not say what they are like."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.engine.dataset import DatasetSink
from pharmabackup.format.manifest import EntryKind
from pharmabackup.sources.files import Files
from tests.sources.recording import check_same, dump
from tests.sources.trees import fill, once, posix, punched
from tests.trees import describe

pytestmark = posix


def stale(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """That open file does not say any more what it is like."""
    real, own = os.fstat, path.stat()

    def fail(fd: int) -> os.stat_result:
        status = real(fd)
        if os.path.samestat(status, own):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return status

    monkeypatch.setattr(os, "fstat", fail)


@pytest.mark.parametrize("size", [100, 100_000])
def test_what_was_stored_counts(tmp_path: Path, later: None, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    fill(tmp_path, size=size)
    with monkeypatch.context() as patch:
        act = once(b"", lambda: stale(patch, tmp_path / "a"), "file" if size == 100 else "stream")
        recorder = dump(Files(tmp_path), hook=act)
    assert recorder.codes() == [("file-unreadable", b"a")]
    assert recorder.content(b"a") == b"a" * size
    again = dump(Files(tmp_path), recorder)
    check_same(again, tmp_path)
    assert (again.read_files, again.kept_files) == (1, 3), "nobody knows whether it changed meanwhile"


def test_what_was_stored_of_a_file_that_shrank_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a", 3)
    punched(tmp_path / "holes", 2 << 20, (0, b"a" * 8192), (1 << 20, b"b" * 8192))

    def act() -> None:
        os.truncate(tmp_path / "holes", 5000)
        stale(monkeypatch, tmp_path / "holes")

    recorder = dump(Files(tmp_path), hook=once(b"", act, "stream"))
    assert recorder.codes() == [("file-unreadable", b"holes")]
    assert recorder.content(b"holes")[:5000] == b"a" * 5000
    assert recorder.tree()[b"holes"].stored == 5000


def test_a_file_of_which_nothing_was_stored_is_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").touch()
    recorder = dump(Files(tmp_path), hook=once(b"", lambda: stale(monkeypatch, tmp_path / "a")))
    assert recorder.codes() == [("file-unreadable", b"a")]
    assert recorder.tree()[b"a"].kind == EntryKind.UNREAD


@pytest.mark.parametrize("size", [100, 100_000])
def test_one_such_file_does_not_cost_the_dataset(
    tmp_path: Path, make_repo: Callable[[], pb.Repository], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    repo, root = make_repo(), tmp_path / "site"
    root.mkdir()
    fill(root, size=size)
    with monkeypatch.context() as patch:
        name = "file" if size == 100 else "stream"
        real, stored = getattr(DatasetSink, name), []

        def store(*arguments: object) -> tuple[int, int]:
            if not stored:
                stale(patch, root / "a")
            stored.append(real(*arguments))
            found: tuple[int, int] = stored[-1]
            return found

        patch.setattr(DatasetSink, name, store)
        with pytest.raises(pb.Incomplete) as caught:
            repo.backup([pb.Files(root)])
    found = [finding for finding in caught.value.findings if finding.code == "file-unreadable"]
    assert [finding.subject for finding in found] == ["a"]
    assert f"after {size} bytes" in found[0].message
    repo.restore(tmp_path / "out")
    assert describe(tmp_path / "out/site") == describe(root)
