"""Trees of files, as they come out of a dump: names, kinds, metadata, content; what is left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pharmabackup.errors import InvalidInput, Unsupported
from pharmabackup.format.manifest import NAME_MAX, PATH_MAX, SIZE_MAX, EntryKind, Extra
from pharmabackup.sources import base, pending, reading, tree, walk
from pharmabackup.sources.files import Files
from tests.sources.recording import Recorder, check_same, dump
from tests.sources.trees import MIB, make, posix, punched
from tests.storage.mounts import tmpfs


@posix
def test_everything_comes_out_as_it_is(tmp_path: Path, way: str) -> None:
    root = make(tmp_path)
    recorder = dump(Files(root))
    check_same(recorder, root)
    assert recorder.findings == []
    assert recorder.tree()[b"fifo"].kind == EntryKind.FIFO
    assert [recorder.tree()[name].same_file for name in (b"one", b"!/three", b"scans/two")] == [None, b"one", b"one"]
    assert list(recorder.folders)[:2] == [b"", b"!"]
    assert list(recorder.folders).index(b"a") < list(recorder.folders).index(b"a.b")


@posix
def test_extended_attributes(tmp_path: Path, way: str) -> None:
    (tmp_path / "folder/sub").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    (tmp_path / "large").write_bytes(bytes(100_000))
    (tmp_path / "link").symlink_to("file")
    try:
        for name in ("file", "large", "folder/sub", "."):
            os.setxattr(tmp_path / name, "user.z", b"\0\xff" * 20)
            os.setxattr(tmp_path / name, "user.a", b"")
        if os.geteuid() == 0:
            os.setxattr(tmp_path / "link", "trusted.t", b"of the link", follow_symlinks=False)
    except OSError:
        pytest.skip("no extended attributes here")
    recorder = dump(Files(tmp_path))
    check_same(recorder, tmp_path)
    for name in (b"file", b"large", b"folder/sub", b""):
        assert recorder.tree()[name].attributes == [(b"user.a", b""), (b"user.z", b"\0\xff" * 20)]
    if os.geteuid() == 0:
        assert recorder.tree()[b"link"].attributes == [(b"trusted.t", b"of the link")]


@posix
def test_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "OWN_PROC", "")
    (tmp_path / "folder").mkdir()
    try:
        os.setxattr(tmp_path / "folder", "user.a", b"1")
    except OSError:
        pytest.skip("no extended attributes here")
    check_same(dump(Files(tmp_path)), tmp_path)


def test_constants_are_those_of_the_format() -> None:
    names = [kind.name for kind in EntryKind] + [extra.name for extra in Extra]
    assert [getattr(base, name) for name in names] == [*EntryKind, *Extra]
    assert (base.PATH_MAX, base.NAME_MAX, base.SIZE_MAX) == (PATH_MAX, NAME_MAX, SIZE_MAX)


# ---------------------------------------------------------------- holes and sizes


@posix
def test_holes_are_not_read(tmp_path: Path) -> None:
    punched(tmp_path / "middle", 8 * MIB, (0, b"a" * 5000), (4 * MIB, b"b" * 5000))
    punched(tmp_path / "start", 8 * MIB, (8 * MIB - 10, b"end"))
    punched(tmp_path / "all", 5 * MIB + 1)
    punched(tmp_path / "small", 40_000)
    punched(tmp_path / "none", 200_000, (0, os.urandom(200_000)))
    punched(tmp_path / "huge", 3 << 40, (2 << 40, b"far"))
    recorder = dump(Files(tmp_path))
    entries = recorder.tree()
    assert recorder.findings == []
    for name in ("middle", "start", "all", "small", "none"):
        assert recorder.content(name.encode()) == (tmp_path / name).read_bytes()
    assert entries[b"huge"].size == 3 << 40
    if entries[b"all"].extents is None:
        pytest.skip("no holes here")
    assert entries[b"all"].extents == []
    assert entries[b"small"].extents is entries[b"none"].extents is None
    assert entries[b"middle"].stored <= 64 << 10
    assert entries[b"huge"].stored <= 64 << 10


@posix
def test_more_holes_than_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "EXTENTS_MAX", 3)
    punched(tmp_path / "file", 2 * MIB, *((n << 18, b"data") for n in range(7)))
    recorder = dump(Files(tmp_path))
    assert recorder.content(b"file") == (tmp_path / "file").read_bytes()
    found = recorder.tree()[b"file"].extents
    assert found is None or (len(found) == 3 and sum(found[-1]) == 2 * MIB)


@posix
@pytest.mark.slow
def test_file_of_three_gib_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "HAS_HOLES", False)
    punched(tmp_path / "file", 3 << 30)
    recorder = dump(Files(tmp_path))
    assert recorder.tree()[b"file"].stored == recorder.counted == 3 << 30


@posix
def test_single_file(tmp_path: Path, later: None) -> None:
    (tmp_path / "till.csv").write_text("1;2;3")
    (tmp_path / "other").touch()
    (tmp_path / "link").symlink_to("till.csv")
    source = Files(tmp_path / "till.csv", exclude=["*"])
    assert source.name == "till.csv"
    recorder = dump(source)
    assert list(recorder.tree()) == [b"till.csv"]
    assert recorder.content(b"till.csv") == b"1;2;3"
    assert dump(source, recorder).kept_folders == 1
    assert dump(Files(tmp_path / "link")).content(b"till.csv") == b"1;2;3"


@posix
def test_deeper_than_the_system_names_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders above are closed and found again; neither descriptors nor the system's limit on paths end the walk."""
    depth, name = 80, "d" * 200
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=folder)
        os.mkdir("z", dir_fd=folder)
        deeper = os.open(name, os.O_RDONLY, dir_fd=folder)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
        os.close(folder)
        folder = deeper
    os.close(folder)
    before = len(os.listdir("/proc/self/fd"))
    most = before + walk.FOLDERS_OPEN + 10
    open_now: list[int] = []
    recorder = dump(Files(tmp_path), hook=lambda what, path: open_now.append(len(os.listdir("/proc/self/fd"))))
    assert recorder.findings == []
    assert len(recorder.tree()) == 3 * depth + 1
    assert max(open_now) <= most + tree.FILES_AHEAD
    assert len(os.listdir("/proc/self/fd")) == before
    monkeypatch.setattr(walk, "DEEPEST", 2000)
    shallow = dump(Files(tmp_path))
    assert [code for code, _ in shallow.codes()] == ["folder-unreadable"]
    assert 0 < len(shallow.folders) < len(recorder.folders)
    os.system(f"rm -rf '{tmp_path}'")


# ---------------------------------------------------------------- what is left out


@posix
def test_exclude(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path)
    recorder = dump(Files(root, exclude=["*.tif", "scans/2025", "latin-?", "/a"]))
    names = set(recorder.tree())
    assert {b"scans/2024", b"a.b", b"a.b/x", b"new\nline"} <= names
    assert not any(b".tif" in name or b"2025" in name or b"latin" in name for name in names)
    assert b"a" not in names
    assert b"a/x" not in names
    assert b"scans/2025" not in dict(recorder.asked)


@posix
def test_include(tmp_path: Path) -> None:
    root = make(tmp_path)
    recorder = dump(Files(root, include=["scans/2024/1?.tif", "/a.b"], exclude=["15.tif"]))
    wanted = {f"scans/2024/1{n}.tif".encode() for n in range(10) if n != 5}
    assert set(recorder.tree()) == {b"", b"scans", b"scans/2024", b"a.b", b"a.b/x"} | wanted
    anywhere = set(dump(Files(root, include=["x"])).tree())
    assert anywhere == {b"", b"a", b"a/x", b"a.b", b"a.b/x", b"!"} | {
        b"scans" + rest for rest in (b"", b"/2024", b"/2024/empty", b"/2025")
    }


@posix
def test_excluding_more_leaves_it_out_next_time(tmp_path: Path, later: None) -> None:
    root = make(tmp_path)
    first = dump(Files(root))
    assert b"a/x" not in dump(Files(root, exclude=["x"]), first).tree()


@posix
def test_file_systems_within(tmp_path: Path) -> None:
    with tmpfs("2m") as mounted:
        (mounted / "scan").write_text("on the other disk")
        outer = mounted.parent
        inside = dump(Files(outer, include=[f"/{mounted.name}"]))
        assert inside.content(os.fsencode(mounted.name) + b"/scan") == b"on the other disk"
        assert inside.findings == []
        staying = dump(Files(outer, include=[f"/{mounted.name}"], one_file_system=True))
        assert staying.findings == [("mount-not-entered", os.fsencode(mounted.name), "info")]
        assert os.fsencode(mounted.name) in staying.tree()
        assert os.fsencode(mounted.name) + b"/scan" not in staying.tree()


# ---------------------------------------------------------------- what it is made with


def test_names_and_what_is_refused(tmp_path: Path) -> None:
    assert Files(tmp_path / "Documents").name == "Documents"
    assert Files(f"{tmp_path}/Documents/").name == "Documents"
    assert Files(tmp_path, name="scans", tier=5).name == "scans"
    assert Files(tmp_path).tier == 3
    assert Files(tmp_path).location() == tmp_path
    for bad in (lambda: Files(""), lambda: Files("a\0b"), lambda: Files("/"), lambda: Files(tmp_path, tier=6)):
        with pytest.raises(InvalidInput) as caught:
            bad()
        assert caught.value.remedy
    with pytest.raises(InvalidInput):
        Files(tmp_path / "latin-\udce9")
    with pytest.raises(InvalidInput):
        Files(tmp_path, exclude="*.tmp")
    with pytest.raises(Unsupported) as unsupported:
        Files(tmp_path, shadow=True)
    assert unsupported.value.kind == "operation"


@posix
def test_root_that_is_the_top_or_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/x").write_text("x")
    (tmp_path / "link").symlink_to("real")
    assert dump(Files(tmp_path / "link")).content(b"x") == b"x"
    top = dump(Files("/", name="all", include=["/etc/hostname"]))
    assert set(top.tree()) <= {b"", b"etc", b"etc/hostname"}
    assert isinstance(top, Recorder)
