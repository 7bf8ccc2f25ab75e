"""What this machine remembers of a dataset: whatever is wrong with it costs reading, nothing else."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup.engine.filecache import FileCache, FolderRecord, RememberedFolder
from pharmabackup.format.manifest import Folder, FrameType, frame
from pharmabackup.sources import listing
from pharmabackup.sources.pending import Pending
from pharmabackup.sources.rows import ROW_SIZE
from tests.sources.trees import opened, posix
from tests.trees import describe

MakeRepo = Callable[[], pb.Repository]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backups happen ten seconds later, when nothing has just changed."""
    monkeypatch.setattr(listing, "time_ns", lambda: time.time_ns() + 10**10)


def make(root: Path) -> Path:
    for folder in ("a", "b"):
        (root / folder).mkdir(parents=True)
        for name in ("x", "y"):
            (root / folder / name).write_text(f"{folder}/{name}")
    return root


def undecodable() -> dict[str, bytes]:
    column = bytes(8)
    names = Folder(b"", b"a\0a", bytes(2), column, column, column, column * 2, column * 2, column, ())
    no_folder = Folder(b"", b".", b"\7", bytes(4), bytes(4), bytes(4), column, column, bytes(4), ())
    whole = frame(FrameType.FOLDER, names)
    return {
        "a root that is no folder": frame(FrameType.FOLDER, no_folder),
        "a name twice": whole,
        "cut off": whole[:-1],
        "no record": whole[:21] + b"\xc1" * (len(whole) - 21),
        "zeros": bytes(100),
    }


@pytest.mark.parametrize("what", undecodable())
def test_record_that_cannot_be_decoded_holds_nothing(what: str) -> None:
    record = FolderRecord(b"", b"a", b"\1a\0a" + b"r" * 2 * ROW_SIZE, undecodable()[what], 0, 0, 0, 0)
    assert RememberedFolder(record, 0, 0, ROW_SIZE).entries() == {}


@posix
def test_folder_whose_record_cannot_be_decoded_is_read_anew(
    tmp_path: Path, make_repo: MakeRepo, later: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, root = make_repo(), make(tmp_path / "site")
    real = FileCache.add

    def spoil(self: FileCache, record: FolderRecord) -> None:
        if record.path == b"a":
            record.frames = record.frames[:-1]
        real(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(FileCache, "add", spoil)
        repo.backup([pb.Files(root)])
    (root / "a/x").write_text("changed")
    (root / "b/x").write_text("changed")
    names = opened(monkeypatch)
    repo.backup([pb.Files(root)])
    assert sorted(name for name in names if name in "xy") == ["x", "x", "y"], "y of the other folder is known"
    repo.restore(tmp_path / "out")
    assert describe(tmp_path / "out/site") == describe(root)


@posix
def test_one_vanished_file_does_not_cost_the_others_of_its_folder(
    tmp_path: Path, make_repo: MakeRepo, later: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, root = make_repo(), tmp_path / "site"
    root.mkdir()
    for number in range(100):
        (root / f"{number:02}").write_text(f"{number}")
    (root / "link").symlink_to("00")
    real = Pending.describe

    def describe_late(self: Pending) -> None:
        (root / "50").unlink(missing_ok=True)
        real(self)

    with monkeypatch.context() as patch, pytest.raises(pb.Incomplete):
        patch.setattr(Pending, "describe", describe_late)
        repo.backup([pb.Files(root)])
    names = opened(monkeypatch)
    (root / "50").write_text("back")
    (root / "99").write_text("changed")
    repo.backup([pb.Files(root)])
    assert [name for name in names if name.isdigit()] == ["50", "99"]
    repo.restore(tmp_path / "out")
    assert describe(tmp_path / "out/site") == describe(root)
    names.clear()
    repo.backup([pb.Files(root)])
    assert not [name for name in names if name.isdigit()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
def test_nothing_of_it_is_open_when_the_next_one_is_saved(
    tmp_path: Path, make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows removes no open file."""
    repo, root = make_repo(), make(tmp_path / "site")
    real, found = FileCache.save, []

    def save(self: FileCache, **what: Any) -> None:
        for fd in os.listdir("/proc/self/fd"):
            place = Path("/proc/self/fd", fd)
            found.extend([os.readlink(place)] if place.exists() else [])
        real(self, **what)

    monkeypatch.setattr(FileCache, "save", save)
    repo.backup([pb.Files(root)])
    (root / "a/x").unlink()
    repo.backup([pb.Files(root)])
    assert found
    assert not [path for path in found if path.startswith(os.environ["PHARMABACKUP_STATE"]) and "datasets" in path]


def test_one_file_that_cannot_be_removed_does_not_keep_the_others(
    tmp_path: Path, make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, root = make_repo(), make(tmp_path / "site")
    repo.backup([pb.Files(root)])
    folder = next(Path(os.environ["PHARMABACKUP_STATE"]).rglob("*.folders")).parent
    for number in range(5):
        (folder / f"{number}.folders").touch()
    real, refused = Path.unlink, []

    def unlink(self: Path, missing_ok: bool = False) -> None:
        if self.parent == folder and not refused:
            refused.append(self.name)
            raise PermissionError(13, "Another process has it open")
        real(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    repo.backup([pb.Files(root)])
    left = {path.name for path in folder.iterdir()} - {"state", *refused}
    assert len(refused) == len(left) == 1
