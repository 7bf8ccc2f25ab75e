"""Nothing outside the folder is touched, whatever the manifest says and whatever was planted in the folder."""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pharmabackup.engine.target import Target
from pharmabackup.errors import Conflict, Damaged, Error
from pharmabackup.format.manifest import Entry, EntryKind, Extra
from tests.engine.entries import TIME, codes, entry, folder, link, name_of, put, put_parts, sparse, tree

SECRET = b"precious"


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A place that must be as it was, to the bit, when the test is over."""
    place = tmp_path / "outside"
    (place / "sub").mkdir(parents=True)
    (place / "secret").write_bytes(SECRET)
    (place / "secret").chmod(0o640)
    for path in (place / "secret", place / "sub", place):
        os.utime(path, ns=(1, 1))
    before = tree(place), os.stat(place).st_mtime_ns, os.stat(place).st_mode, os.stat(place / "secret").st_nlink
    yield place
    assert (
        tree(place),
        os.stat(place).st_mtime_ns,
        os.stat(place).st_mode,
        os.stat(place / "secret").st_nlink,
    ) == before


@pytest.fixture(params=[False, True], ids=["descriptors", "paths"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Target]:
    return lambda: Target(tmp_path / "root", merge=True, by_path=request.param)


PATHS = [
    b"/etc/passwd", b"/x", b"../x", b"a/../../x", b"..", b".", b"/", b"a//x", b"a/.", b"a/..", b"./x", b"nowhere/x",
    b"a/x\0y", b"a/\0", b"a/file/x", b"link/secret", b"link/sub/x", b"link/../secret", b"\0",
]  # fmt: skip
CALLS: dict[str, Callable[[Target, bytes], None]] = {
    "whole": lambda target, path: put(target, path, b"evil"),
    "empty": lambda target, path: target.special(entry(path)),
    "begin": lambda target, path: target.begin(entry(path, size=4)),
    "part": lambda target, path: target.parts(entry(path, size=4), [(0, memoryview(b"evil"))]),
    "finish": lambda target, path: target.finish(entry(path)),
    "folder": lambda target, path: target.folder(folder(path, 0o777)),
    "link": lambda target, path: target.special(link(path, b"/")),
    "name": lambda target, path: target.special(name_of(path, b"a/file", 1)),
    "fifo": lambda target, path: target.special(entry(path, EntryKind.FIFO)),
    "unread": lambda target, path: target.special(entry(path, EntryKind.UNREAD)),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("path", PATHS)
def test_paths_that_lead_out(
    make: Callable[[], Target], outside: Path, tmp_path: Path, path: bytes, call: str
) -> None:
    target = make()
    target.folder(folder(b"a"))
    put(target, b"a/file", b"x")
    target.special(link(b"link", os.fsencode(outside)))
    with pytest.raises(Damaged) as caught:
        CALLS[call](target, path)
    assert caught.value.kind == "format" and caught.value.remedy
    target.close()
    assert set(tree(tmp_path / "root")) == {b"a", b"a/file", b"link"}


@pytest.mark.parametrize("first", [b"../outside/secret", b"link/secret", b"/etc/passwd", b"a/..", b"a", b"", b"a//x"])
def test_further_names_of_files_outside(
    make: Callable[[], Target], outside: Path, tmp_path: Path, first: bytes
) -> None:
    target = make()
    target.folder(folder(b"a"))
    target.special(link(b"link", os.fsencode(outside)))
    with pytest.raises(Damaged):
        target.special(name_of(b"mine", first, len(SECRET)))
    target.close()
    assert not (tmp_path / "root/mine").exists()


def test_further_names_of_what_is_no_restored_file(make: Callable[[], Target], outside: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "other").write_bytes(b"another program's")
    time.sleep(0.05)  # disks tell times by a clock that ticks only so often
    target = make()
    target.special(link(b"link", os.fsencode(outside / "secret")))
    target.special(name_of(b"of-link", b"link", len(SECRET)))
    target.special(name_of(b"of-other", b"other", 7))
    target.special(name_of(b"of-nothing", b"nothing", 7))
    target.special(name_of(b"of-itself", b"of-itself", 7))
    target.close()
    assert set(tree(root)) == {b"link", b"other"}
    assert codes(target) == ["not-restored"] * 4 and target.missing == 4


def test_one_name_twice(make: Callable[[], Target], outside: Path, tmp_path: Path) -> None:
    """A link and then a folder or file, or the other way round: the last one counts, or it is refused."""
    target = make()
    away = os.fsencode(outside)
    target.special(link(b"a", away))
    target.folder(folder(b"a"))
    put(target, b"a/secret", b"evil")
    with pytest.raises(Damaged):
        target.special(link(b"a", away))
    target.special(link(b"b", away + b"/secret"))
    put(target, b"b", b"evil")
    target.special(link(b"c", away + b"/secret"))
    put_parts(target, entry(b"c", size=4), b"evil", 2)
    put(target, b"b", b"good")
    target.close()
    have = tree(tmp_path / "root")
    assert {name: found[3] for name, found in have.items()} == {
        b"a": None,
        b"a/secret": b"evil",
        b"b": b"good",
        b"c": b"evil",
    }


def test_planted_links_where_folders_should_be(make: Callable[[], Target], outside: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/c").symlink_to(outside)
    (root / "d").symlink_to(outside / "sub")
    target = make()
    for path in (b"a", b"a/b", b"a/b/c", b"d", b"a/b/c/sub"):
        target.folder(folder(path, 0o777))
    put(target, b"a/b/c/secret", b"evil")
    put_parts(target, entry(b"a/b/c/sub/x", size=4), b"evil", 2)
    target.special(entry(b"d/empty"))
    target.close()
    assert not (root / "a/b/c").is_symlink() and not (root / "d").is_symlink()
    assert (root / "a/b/c/secret").read_bytes() == b"evil"
    assert codes(target) == []


def test_folders_on_the_way_are_no_links(make: Callable[[], Target], outside: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "planted").symlink_to(outside)
    target = make()
    target.special(link(b"link", os.fsencode(outside)))
    for path in (b"planted/secret", b"link/sub/x"):
        target.parents(entry(path))
        put(target, path, b"evil")
    for path in (b"/etc/x", b"../x/y", b"a//x/y", b"a/../x/y", b"\0/x"):
        with pytest.raises(Damaged):
            target.parents(entry(path))
    target.close()
    assert (root / "planted/secret").read_bytes() == b"evil" == (root / "link/sub/x").read_bytes()


def test_planted_links_where_files_should_be(make: Callable[[], Target], outside: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for name in ("whole", "parts", "empty", "link", "second", "dangling", "size"):
        (root / name).symlink_to(outside / ("new" if name == "dangling" else "secret"))
    target = make()
    put(target, b"first", SECRET)
    put(target, b"whole", SECRET, mode=0o777)
    put_parts(target, entry(b"parts", size=8, mode=0o777), SECRET, 3)
    put(target, b"dangling", b"evil")
    target.special(entry(b"empty", mode=0o777))
    target.special(link(b"link", b"elsewhere"))
    target.special(name_of(b"second", b"first", 8))
    target.whole(sparse(b"size", 1 << 20, [(0, 4)]), memoryview(b"evil"))
    target.close()
    have = tree(root)
    assert [have[name][3] for name in (b"whole", b"parts", b"dangling", b"empty", b"link", b"second")] == [
        SECRET, SECRET, b"evil", b"", b"elsewhere", SECRET,
    ]  # fmt: skip
    assert stat.S_IMODE((root / "whole").lstat().st_mode) == 0o777


def test_planted_further_names_of_files_outside(make: Callable[[], Target], outside: Path, tmp_path: Path) -> None:
    """A hard link to a file outside is not written to, and its mode and times stay, though the content is right."""
    root = tmp_path / "root"
    root.mkdir()
    os.link(outside / "secret", root / "whole")
    os.link(outside / "secret", root / "parts")
    target = make()
    put(target, b"whole", SECRET, mode=0o777)
    put_parts(target, entry(b"parts", size=8, mode=0o777), SECRET, 3)
    target.close()
    assert [stat.S_IMODE((root / name).stat().st_mode) for name in ("whole", "parts")] == [0o777] * 2
    assert (root / "whole").stat().st_nlink == 1


def test_planted_pipes_do_not_block(make: Callable[[], Target], tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    os.mkfifo(root / "whole")
    os.mkfifo(root / "folder")
    os.mkfifo(root / "empty")
    target = make()
    put(target, b"whole", b"x")
    target.folder(folder(b"folder"))
    target.special(entry(b"empty"))
    target.close()
    assert {stat.S_IFMT(found[0]) for found in tree(root).values()} == {stat.S_IFREG, stat.S_IFDIR}  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["link", "dangling", "file"])
def test_the_folder_itself_is_a_link_or_a_file(
    make: Callable[[], Target], outside: Path, tmp_path: Path, what: str
) -> None:
    root = tmp_path / "root"
    if what == "file":
        root.write_bytes(b"x")
    else:
        root.symlink_to(outside if what == "link" else tmp_path / "nowhere")
    with pytest.raises(Conflict):
        make()
    assert root.is_symlink() or root.read_bytes() == b"x"


@pytest.mark.skipif(sys.platform != "linux", reason="moves a folder away under an open restore")
def test_a_folder_becomes_a_link_meanwhile(outside: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    target = Target(root, merge=False)
    target.folder(folder(b"a", 0o777))
    os.rename(root / "a", root / "moved")
    (root / "a").symlink_to(outside)
    put(target, b"a/x", b"evil")
    put(target, b"a/secret", b"evil")
    target.folder(folder(b"a/sub", 0o700))
    put(target, b"a/sub/x", b"evil")
    target.special(link(b"a/l", b"x"))
    target.close()
    assert set(codes(target)) == {"not-restored"}


@pytest.mark.skipif(sys.platform != "linux", reason="swaps names while they are used")
def test_folders_and_files_that_somebody_swaps_all_the_time(outside: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            for name in ("a", "a/b", "a/file"):
                try:
                    os.rename(root / name, root / "aside")
                    os.symlink(outside / "secret" if name == "a/file" else outside, root / name)
                    os.unlink(root / name)
                    os.rename(root / "aside", root / name)
                except OSError:
                    pass

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(150):
            target = Target(root, merge=True)
            target.folder(folder(b"a", 0o777))
            target.folder(folder(b"a/b", 0o777))
            for name in (b"a/file", b"a/b/secret", b"a/secret", b"a/b/sub", b"a/sub"):
                put(target, name, SECRET, mode=0o777)
                put_parts(target, entry(name + b"2", size=8), SECRET, 4)
            try:
                target.special(name_of(b"a/second", b"a/file", 8))
            except Error:
                pass
            target.close()
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("size", [1 << 62, 1 << 60, (1 << 44) + 1, 1 << 40])
def test_absurd_sizes_fill_no_disk(make: Callable[[], Target], tmp_path: Path, size: int) -> None:
    target = make()
    target.whole(sparse(b"whole", size, [(size - 5, 4)]), memoryview(b"data"))
    put_parts(target, sparse(b"parts", size, [(0, 2), (size - 5, 2)]), b"data", 2)
    target.special(sparse(b"hole", size, []))
    put(target, b"fine", b"x")
    target.close()
    root = tmp_path / "root"
    assert (root / "fine").exists()
    for path in root.iterdir():
        assert path.stat().st_blocks * 512 < 100_000
        assert path.stat().st_size in (size, 1)
    if target.missing:
        assert codes(target) == ["too-large"] * target.missing


def test_a_merge_does_not_read_absurd_holes(make: Callable[[], Target], tmp_path: Path) -> None:
    for _ in range(2):
        target = make()
        target.whole(sparse(b"whole", 1 << 43, [(5, 4)]), memoryview(b"data"))
        put_parts(target, sparse(b"parts", 1 << 43, [(0, 2), (1 << 42, 2)]), b"data", 2)
        target.close()
    assert target.kept == 2 or target.missing == 2


def test_broken_details(make: Callable[[], Target]) -> None:
    target = make()
    for bad in (b"", b"x\0y"):
        with pytest.raises(Damaged):
            target.special(link(b"l", bad))
    with pytest.raises(Damaged):
        target.folder(Entry(b"a", EntryKind.FOLDER, 0o755, 0, 0, TIME, 0, 0, 0, 0, {Extra.ATTRIBUTES: b"\xc1"}))
    with pytest.raises(Damaged):
        put(target, b"f", b"x", extras={Extra.ATTRIBUTES: b"\xc1"})
    target.special(link(b"long", b"x" * 70_000))
    put(target, b"n" * 300, b"x")
    target.close()
    assert codes(target) == ["name-not-possible"] * 2
