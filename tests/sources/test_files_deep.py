"""Folders that lie too deep, and folders that are given up while they are entered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup.errors import Cancelled
from pharmabackup.sources import walk
from pharmabackup.sources.files import Files
from tests.conftest import PASSPHRASE
from tests.reader.reader import Reader
from tests.sources.recording import dump
from tests.sources.trees import count_descriptors, fill, posix

pytestmark = posix


@pytest.fixture
def deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root in which `deep/inner` and a folder of a long name lie too deep."""
    root = tmp_path / "site"
    for path in ("deep/inner/within", "long name", "deep/z", "z/y"):
        (root / path).mkdir(parents=True)
        (root / path / "file").write_text("x")
    monkeypatch.setattr(walk, "DEEPEST", 6)
    return root


def test_folder_that_lies_too_deep_has_an_empty_record(deep: Path, later: None, way: str) -> None:
    recorder = dump(Files(deep))
    paths = [b"", b"deep", b"deep/inner", b"deep/z", b"long name", b"z", b"z/y"]
    assert recorder.codes() == [("folder-unreadable", b"deep/inner"), ("folder-unreadable", b"long name")]
    assert [part.path for part in recorder.parts] == paths
    for path in (b"deep/inner", b"long name"):
        assert (recorder.folders[path].decoded, recorder.folders[path].rows) == ([], b"")
    again = dump(Files(deep), recorder)
    assert again.codes() == recorder.codes(), "it is told each time"
    assert [part.path for part in again.parts] == paths


def test_every_reader_takes_a_snapshot_without_what_lies_too_deep(
    deep: Path, tmp_path: Path, make_repo: Callable[[], pb.Repository]
) -> None:
    repo = make_repo()
    with pytest.raises(pb.Incomplete):
        repo.backup([pb.Files(deep)])
    found = Reader(tmp_path / "repository-0", PASSPHRASE).restore(repo.snapshot("site").id)
    assert {b"deep/inner", b"deep/z/file", b"long name", b"z/y/file"} <= set(found)
    assert not any(path.startswith((b"deep/inner/", b"long name/")) for path in found)
    repo.restore(tmp_path / "out")
    assert list((tmp_path / "out/site/deep/inner").iterdir()) == []
    assert repo.check(read_data=1.0).state == "ok"


@pytest.mark.parametrize("number", [1, 2])
def test_folder_that_is_entered_when_the_dump_ends_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The error of another than the system, the first time for the root; the traceback holds what it saw."""
    fill(tmp_path, "a b/c")
    calls = 0

    def look(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            raise Cancelled("The backup was cancelled.")
        real(*_)

    real = walk.look
    monkeypatch.setattr(walk, "look", look)
    before = count_descriptors()
    with pytest.raises(Cancelled) as caught:
        dump(Files(tmp_path))
    assert count_descriptors() == before
    assert caught.tb is not None
