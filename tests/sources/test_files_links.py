"""Files with several names: what is remembered of them while a tree is dumped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pharmabackup.sources import tree
from pharmabackup.sources.files import Files
from tests.sources.recording import Recorder, check_same, dump
from tests.sources.trees import once, posix

pytestmark = posix


@pytest.fixture
def dumps(monkeypatch: pytest.MonkeyPatch) -> list[tree.TreeDump]:
    """Those that were begun."""
    begun: list[tree.TreeDump] = []
    real = tree.TreeDump.__init__

    def begin(self: tree.TreeDump, sink: Recorder) -> None:
        real(self, sink)
        begun.append(self)

    monkeypatch.setattr(tree.TreeDump, "__init__", begin)
    return begun


def make(root: Path, count: int = 200) -> Path:
    (root / "a").mkdir(parents=True)
    (root / "b").mkdir()
    for number in range(count):
        (root / f"a/{number:03}").write_text(f"{number}")
        os.link(root / f"a/{number:03}", root / f"a/{number:03} again")
        if number % 3 == 0:
            os.link(root / f"a/{number:03}", root / f"b/{number:03}")
    return root


def test_file_is_forgotten_after_its_last_name(
    tmp_path: Path, later: None, dumps: list[tree.TreeDump], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else memory would grow with the number of such files."""
    monkeypatch.setattr(tree, "QUEUED", 10)
    root = make(tmp_path / "root")
    most: list[int] = []
    recorder = Recorder(hook=lambda what, path: most.append(len(dumps[0]._links)))
    with Files(root).view(scratch=tmp_path) as view:
        view.dump(recorder)
    check_same(recorder, root)
    assert max(most) <= 200 / 3 + 12, "those that have another name in b, and those that wait"
    assert dumps[0]._links == {}
    again = dump(Files(root), recorder)
    check_same(again, root)
    assert again.read_files == 0
    assert dumps[1]._links == {}


def test_file_with_a_name_elsewhere_is_remembered(tmp_path: Path, dumps: list[tree.TreeDump]) -> None:
    recorder = dump(Files(make(tmp_path / "root") / "a"))
    assert recorder.tree()[b"000 again"].same_file == b"000"
    assert len(dumps[0]._links) == 67


def test_names_that_come_and_go_meanwhile(tmp_path: Path, dumps: list[tree.TreeDump]) -> None:
    """A name that is gone is not counted, so that the others still belong together."""
    for folder in ("a", "b", "c", "d"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a/1").write_text("x")
    for name in ("a/2", "b/3", "c/4"):
        os.link(tmp_path / "a/1", tmp_path / name)

    def act() -> None:
        (tmp_path / "b/3").rename(tmp_path / "d/3")
        os.link(tmp_path / "a/1", tmp_path / "d/5")

    recorder = dump(Files(tmp_path), hook=once(b"", act, "check"))
    entries = recorder.tree()
    names = [path for path in entries if path[-1:].isdigit()]
    assert all(recorder.content(path) == b"x" for path in names)
    assert b"d/3" in names
    assert entries[b"a/2"].same_file == entries[b"c/4"].same_file == b"a/1"
