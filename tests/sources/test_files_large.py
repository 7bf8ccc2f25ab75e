"""Folders so large that they are dumped part by part."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pharmabackup.errors import Cancelled
from pharmabackup.format.manifest import EntryKind
from pharmabackup.sources import listing, parts, tree, walk
from pharmabackup.sources.files import Files
from tests.sources.recording import Recorder, check_same, dump
from tests.sources.trees import count_descriptors, make, once, opened, posix

pytestmark = posix


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_MIN", 4)
    monkeypatch.setattr(parts, "PART_MAX", 24)
    monkeypatch.setattr(parts, "PART_CUT", 8)


def fill(root: Path, count: int = 200) -> Path:
    root.mkdir(exist_ok=True)
    for number in range(count):
        (root / f"{number:04}").write_bytes(b"%d" % number)
    return root


def lasts(recorder: Recorder, path: bytes = b"") -> list[bytes]:
    """The last name of each part of a folder."""
    return [part.columns.names[-1] for part in recorder.parts if part.path == path]


def test_everything_comes_out_part_by_part(tmp_path: Path, way: str) -> None:
    root = make(tmp_path)
    recorder = dump(Files(root))
    check_same(recorder, root)
    assert recorder.findings == []
    for folder in (b"", b"scans/2024"):
        assert len(lasts(recorder, folder)) > 1, "it is in parts"
        sizes = [len(part.columns.names) for part in recorder.parts if part.path == folder]
        assert all(4 <= size <= 24 for size in sizes[:-1])
    assert [recorder.tree()[name].same_file for name in (b"one", b"!/three", b"scans/two")] == [None, b"one", b"one"]


def test_folders_within_come_after_all_parts(tmp_path: Path, way: str) -> None:
    for number in range(100):
        (tmp_path / f"{number:04}").mkdir()
        (tmp_path / f"{number:04}" / "x").write_text("x")
    recorder = dump(Files(tmp_path))
    check_same(recorder, tmp_path)
    paths = [part.path for part in recorder.parts]
    own = paths.count(b"")
    assert own > 4
    assert paths == [b""] * own + [b"%04d" % number for number in range(100)]


def test_what_is_excluded_is_in_no_part(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "0007.d").mkdir()
    (tmp_path / "0007.d/0010").touch()
    tree = dump(Files(tmp_path, exclude=["*5"])).tree()
    assert set(tree) == {b"", b"0007.d", b"0007.d/0010"} | {b"%04d" % n for n in range(200) if n % 10 != 5}
    tree = dump(Files(tmp_path, include=["0007.d/0010", "00?1"])).tree()
    assert set(tree) == {b"", b"0007.d", b"0007.d/0010"} | {b"00%d1" % n for n in range(10)}


def test_unchanged_parts_are_kept(tmp_path: Path, later: None, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = dump(Files(fill(tmp_path)))
    names = opened(monkeypatch)
    second = dump(Files(tmp_path), first)
    assert second.kept_folders == len(first.parts) > 4
    assert (names, second.read_files) == ([], 0)
    assert second.parts == first.parts


@pytest.mark.parametrize("change", ["changed", "added", "removed", "last removed", "last changed", "first removed"])
def test_a_change_is_read_and_other_parts_are_kept(tmp_path: Path, later: None, change: str, way: str) -> None:
    first = dump(Files(fill(tmp_path)))
    name = os.fsdecode(lasts(first)[2]) if "last" in change else "0000" if "first" in change else "0100"
    if "removed" in change:
        (tmp_path / name).unlink()
    else:
        (tmp_path / (name + "a" if change == "added" else name)).write_text("other")
    second = dump(Files(tmp_path), first)
    check_same(second, tmp_path)
    assert second.read_files == (0 if "removed" in change else 1)
    # The first part always differs: the folder's own time is in it, unless a file was written in place.
    assert second.kept_folders >= len(first.parts) - (1 if "changed" in change else 4)
    assert second.kept_files <= 4 * 24


def test_hard_links_lead_from_part_to_part(tmp_path: Path, later: None) -> None:
    fill(tmp_path)
    for number in (50, 150, 199):
        (tmp_path / f"{number:04}").unlink()
        os.link(tmp_path / "0003", tmp_path / f"{number:04}")
    first = dump(Files(tmp_path))
    check_same(first, tmp_path)
    check_same(dump(Files(tmp_path), first), tmp_path)
    (tmp_path / "0003").unlink()
    check_same(dump(Files(tmp_path), first), tmp_path)


def test_a_file_that_vanishes_costs_nothing_else(
    tmp_path: Path, later: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "FILES_AHEAD", 1)
    monkeypatch.setattr(tree, "ENTRIES_AHEAD", 1)  # so that it is handed over before the next part is looked at
    recorder = dump(Files(fill(tmp_path)), hook=once(b"/0002", (tmp_path / "0003").unlink))
    assert recorder.findings == [("file-vanished", b"0003", "warning")]
    names = opened(monkeypatch)
    again = dump(Files(tmp_path), recorder)
    check_same(again, tmp_path)
    assert names == []
    assert again.kept_folders >= len(recorder.parts) - 3


def test_files_that_vanish_before_their_part_is_looked_at(
    tmp_path: Path, later: None, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder was listed long before: whole parts may be gone."""
    fill(tmp_path)

    def remove() -> None:
        for number in range(100, 200):
            (tmp_path / f"{number:04}").unlink()

    monkeypatch.setattr(tree, "FILES_AHEAD", 1)
    recorder = dump(Files(tmp_path), hook=once(b"/0000", remove))
    assert set(recorder.codes()) == {("file-vanished", b"%04d" % number) for number in range(100, 200)}
    assert set(recorder.tree()) == {b""} | {b"%04d" % number for number in range(100)}
    assert all(part.decoded for part in recorder.parts)
    check_same(dump(Files(tmp_path), recorder), tmp_path)


def test_a_folder_that_is_moved_meanwhile_is_dumped_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "ENTRIES_AHEAD", 1)
    root = fill(tmp_path / "here")
    recorder = dump(Files(root), hook=once(b"/0000", lambda: root.rename(tmp_path / "there")))
    assert recorder.findings == []
    check_same(recorder, tmp_path / "there")


def test_a_listing_that_breaks_off_proves_no_part(
    tmp_path: Path, later: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", Listing(os.scandir, fail_after=100))
        recorder = dump(Files(tmp_path))
    assert recorder.codes() == [("folder-unreadable", b"")]
    assert len(recorder.parts) > 2
    assert all(part.rows == b"" for part in recorder.parts)
    check_same(dump(Files(tmp_path), recorder), tmp_path)


def test_a_name_that_is_listed_twice_is_dumped_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", Listing(os.scandir, twice=True))
        recorder = dump(Files(tmp_path))
    check_same(recorder, tmp_path)


class Listing:
    """os.scandir with what file systems do now and then."""

    def __init__(self, real: object, fail_after: int = 1 << 30, twice: bool = False) -> None:
        self._real, self._fail_after, self._twice = real, fail_after, twice

    def __call__(self, place: object) -> Listing:
        self._entries = list(self._real(place))  # type: ignore[operator]
        return self

    def __enter__(self) -> object:
        if self._twice:
            return iter(self._entries + self._entries[::3])
        return self._some()

    def _some(self) -> object:
        for number, entry in enumerate(self._entries):
            if number == self._fail_after:
                raise OSError(5, "Input/output error")
            yield entry

    def close(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("what", ["kept", "links"])
def test_few_entries_wait(tmp_path: Path, later: None, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Parts that need not be read must not pile up behind one file that does."""
    monkeypatch.setattr(tree, "ENTRIES_AHEAD", 100)
    fill(tmp_path, 1 if what == "links" else 600)
    if what == "links":
        for number in range(1, 600):
            (tmp_path / f"{number:04}").symlink_to("0000")
    first = dump(Files(tmp_path)) if what == "kept" else None
    (tmp_path / "0000").write_text("other")
    waiting: list[int] = []

    def hook(event: str, path: bytes) -> None:
        if event in ("file", "folder"):
            waiting.append(
                sum(len(names) for _, names in recorder.asked) - sum(len(p.decoded) for p in recorder.parts)
            )

    recorder = Recorder(first, hook)
    source = Files(tmp_path)
    with source.view(scratch=tmp_path) as view:
        view.dump(recorder)
    check_same(recorder, tmp_path)
    assert 0 < max(waiting) <= 100 + 24


def test_a_cancelled_dump_leaves_nothing_open(tmp_path: Path) -> None:
    fill(tmp_path)
    before = count_descriptors()

    def cancel() -> None:
        raise Cancelled("The backup was cancelled.")

    with pytest.raises(Cancelled):
        dump(Files(tmp_path), hook=once(b"/0150", cancel))
    assert count_descriptors() == before


def test_it_can_be_cancelled_between_parts(tmp_path: Path, later: None) -> None:
    first = dump(Files(fill(tmp_path)))
    assert dump(Files(tmp_path), first).checks >= len(first.parts) - 1


def test_systems_without_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked on Windows, here: it has other fields, and whole paths."""
    monkeypatch.setattr(walk, "BY_DESCRIPTOR", False)
    monkeypatch.setattr(listing, "WINDOWS", True)
    root = make(tmp_path)
    recorder = dump(Files(root))
    check_same(recorder, root)
    assert recorder.tree()[b""].kind == EntryKind.FOLDER
