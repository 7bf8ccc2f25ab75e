"""One file as a dataset."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from pharmabackup.errors import SourceFailed
from pharmabackup.sources import listing
from pharmabackup.sources.files import Files
from pharmabackup.sources.rows import NEVER, ROW
from tests.sources.recording import Recorder, dump
from tests.sources.trees import posix

pytestmark = posix


def test_inode_of_128_bits(tmp_path: Path, later: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ReFS has them: a row holds the lower half, of one file as of those in a folder."""
    (tmp_path / "till.csv").write_text("1;2;3")
    inode = (tmp_path / "till.csv").stat().st_ino

    def wide(real: Any) -> Any:
        def look(*arguments: Any, **options: Any) -> os.stat_result:
            status = real(*arguments, **options)
            times = {"st_mtime_ns": status.st_mtime_ns, "st_ctime_ns": status.st_ctime_ns}
            return os.stat_result((status.st_mode, status.st_ino + (7 << 64), *status[2:]), times)

        return look

    monkeypatch.setattr(listing, "WINDOWS", True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", wide(os.stat))
        patch.setattr(os, "lstat", wide(os.lstat))
        recorder = dump(Files(tmp_path / "till.csv"))
    assert recorder.content(b"till.csv") == b"1;2;3"
    assert ROW.unpack(recorder.folders[b""].rows[-ROW.size :])[6] == inode


def test_just_changed_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "till.csv"
    path.write_text("1;2;3")
    first = dump(Files(path))
    assert first.folders[b""].rows.endswith(NEVER)
    assert dump(Files(path), first).read_files == 1
    monkeypatch.setattr(listing, "time_ns", lambda: time.time_ns() + 10**10)
    second = dump(Files(path), first)
    assert second.read_files == 1
    assert dump(Files(path), second).read_files == 0


@pytest.mark.parametrize("then", ["folder", "fifo", "link", "gone"])
def test_file_that_is_replaced_after_the_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    """A folder's entry, for one, would have no record."""
    path = tmp_path / "till.csv"
    path.write_text("1;2;3")
    real = os.path.realpath

    def replace(place: str) -> str:
        found = real(place)
        path.unlink()
        if then == "folder":
            path.mkdir()
        elif then == "fifo":
            os.mkfifo(path)
        elif then == "link":
            path.symlink_to("nowhere")
        return str(found)

    with Files(path).view(scratch=tmp_path) as view:
        monkeypatch.setattr(os.path, "realpath", replace)
        with pytest.raises(SourceFailed) as caught:
            view.dump(Recorder())
    assert caught.value.kind == "missing"
