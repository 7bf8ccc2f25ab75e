"""What is restored into an empty folder is what was backed up."""

from __future__ import annotations

import errno
import gc
import os
import random
import stat
import sys
import threading
from pathlib import Path

import pytest

from pharmabackup.engine import target_files, target_folders
from pharmabackup.engine.target import Target
from pharmabackup.format.manifest import EntryKind
from tests.engine.entries import TIME, codes, entry, folder, link, name_of, put, put_parts, sparse, tree

linux = pytest.mark.skipif(sys.platform != "linux", reason="as Linux has it")
root_only = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")


@pytest.fixture(params=[False, True], ids=["descriptors", "paths"])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    """In both ways: as with `dir_fd`, and as on Windows."""
    return Target(tmp_path / "root", merge=False, by_path=request.param)


def test_a_tree_comes_back(fresh: Target, tmp_path: Path) -> None:
    fresh.folder(folder(b"", 0o750))
    fresh.folder(folder(b"a", 0o555))
    fresh.folder(folder(b"a/b", 0o700))
    put(fresh, b"a/one", b"1", mode=0o444)
    put(fresh, b"a/b/two", b"22" * 5000, mode=0o666)
    put(fresh, b"script", b"#!", mode=0o775)
    fresh.special(entry(b"empty"))
    fresh.special(link(b"a/link", b"../somewhere"))
    fresh.special(link(b"loop", b"loop"))
    fresh.close()
    root = tmp_path / "root"
    assert tree(root) == {
        b"a": (stat.S_IFDIR, 0o555, TIME, None),
        b"a/b": (stat.S_IFDIR, 0o700, TIME, None),
        b"a/one": (stat.S_IFREG, 0o444, TIME, b"1"),
        b"a/b/two": (stat.S_IFREG, 0o666, TIME, b"22" * 5000),
        b"script": (stat.S_IFREG, 0o775, TIME, b"#!"),
        b"empty": (stat.S_IFREG, 0o644, TIME, b""),
        b"a/link": (stat.S_IFLNK, 0o777, TIME, b"../somewhere"),
        b"loop": (stat.S_IFLNK, 0o777, TIME, b"loop"),
    }
    assert stat.S_IMODE(root.stat().st_mode) == 0o750
    assert root.stat().st_mtime_ns == TIME
    assert (fresh.written, fresh.kept, fresh.missing, codes(fresh)) == (6, 0, 0, [])


def test_nobody_enters_a_folder_before_it_is_complete(tmp_path: Path) -> None:
    target = Target(tmp_path / "root", merge=False)
    target.folder(folder(b"a", 0o777))
    assert stat.S_IMODE((tmp_path / "root").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "root/a").stat().st_mode) == 0o700
    target.close()
    assert stat.S_IMODE((tmp_path / "root/a").stat().st_mode) == 0o777


def test_parts_come_in_any_order(fresh: Target, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(100_003)
    put_parts(fresh, entry(b"forwards", size=len(data)), data, 7919)
    put_parts(fresh, entry(b"backwards", size=len(data), mode=0o440), data, 7919, backwards=True)
    fresh.close()
    have = tree(tmp_path / "root")
    assert have[b"forwards"] == (stat.S_IFREG, 0o644, TIME, data)
    assert have[b"backwards"] == (stat.S_IFREG, 0o440, TIME, data)
    assert len(have) == 2 and fresh.written == 2


def test_a_file_has_its_name_only_when_it_is_whole(fresh: Target, tmp_path: Path) -> None:
    big = entry(b"big", size=10)
    fresh.parts(big, [(0, memoryview(b"01234"))])
    assert not (tmp_path / "root/big").exists()
    fresh.parts(big, [(5, memoryview(b"56789"))])
    fresh.finish(big)
    assert (tmp_path / "root/big").read_bytes() == b"0123456789"


def test_more_files_grow_at_once_than_may_be_open(fresh: Target, tmp_path: Path) -> None:
    count = target_files.OPEN_MAX + 50
    items = [entry(b"%d" % i, size=6) for i in range(count)]
    for begin in (0, 3):
        for i, item in enumerate(items):
            fresh.parts(item, [(begin, memoryview(b"%03d" % i))])
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) < count + 20
    for item in items:
        fresh.finish(item)
    fresh.close()
    assert all((tmp_path / f"root/{i}").read_bytes() == b"%03d" % i * 2 for i in range(count))


def test_more_folders_than_may_be_open_and_deeper_than_a_path_can_be(tmp_path: Path) -> None:
    target = Target(tmp_path / "root", merge=False)
    depth = 3 * target_folders.HANDLES_MAX
    names = [b"/".join([b"%020d" % 0] * i) for i in range(1, depth + 1)]  # 16,000 bytes in the end
    for name in names:
        target.folder(folder(name, 0o711))
    put(target, names[-1] + b"/deep", b"x")
    put(target, names[0] + b"/shallow", b"y")
    target.close()
    fd = os.open(tmp_path / "root", os.O_RDONLY)
    for _ in range(depth):
        below = os.open(b"%020d" % 0, os.O_RDONLY, dir_fd=fd)
        assert stat.S_IMODE(os.fstat(below).st_mode) == 0o711
        assert os.fstat(below).st_mtime_ns == TIME
        os.close(fd)
        fd = below
    assert os.listdir(fd) == ["deep"]
    os.close(fd)
    top = os.open(tmp_path, os.O_RDONLY)
    above = os.open("root", os.O_RDONLY, dir_fd=top)
    chain = [above]
    for _ in range(depth):  # pytest's own clean-up goes by path
        chain.append(os.open(b"%020d" % 0, os.O_RDONLY, dir_fd=chain[-1]))
    os.unlink("deep", dir_fd=chain[-1])
    os.unlink("shallow", dir_fd=chain[1])
    for up in reversed(chain[:-1]):
        os.rmdir(b"%020d" % 0, dir_fd=up)
    for each in [*chain, top]:
        os.close(each)


def test_descriptors_are_given_back(tmp_path: Path) -> None:
    gc.collect()
    before = sorted(os.listdir("/proc/self/fd")) if sys.platform == "linux" else []
    for finish in (True, False):
        target = Target(tmp_path / f"root{finish}", merge=False)
        for i in range(20):
            target.folder(folder(b"%d" % i))
            put(target, b"%d/file" % i, b"x")
            target.parts(entry(b"%d/big" % i, size=2), [(0, memoryview(b"x"))])
        if finish:
            target.close()
        else:
            target.abandon()
        del target
    if sys.platform == "linux":
        assert sorted(os.listdir("/proc/self/fd")) == before


@linux
def test_sparse_files_stay_sparse(tmp_path: Path) -> None:
    root = tmp_path / "root"
    target = Target(root, merge=False)
    extents = [(1 << 20, 5000), (1 << 30, 4096), ((1 << 30) + 8192, 1000)]
    data = random.Random(2).randbytes(10096)
    target.whole(sparse(b"whole", 1 << 32, extents), memoryview(data))
    put_parts(target, sparse(b"parts", 1 << 32, extents), data, 777, backwards=True)
    target.special(sparse(b"hole", 1 << 40, []))
    target.close()
    for name in ("whole", "parts"):
        with open(root / name, "rb") as file:
            got = []
            for offset, length in extents:
                file.seek(offset)
                got.append(file.read(length))
            assert b"".join(got) == data
            file.seek((1 << 30) + 4096)
            assert file.read(4096) == bytes(4096)
    sizes = {path.name: path.stat() for path in root.iterdir()}
    assert {name: have.st_size for name, have in sizes.items()} == {
        "whole": 1 << 32,
        "parts": 1 << 32,
        "hole": 1 << 40,
    }
    assert all(have.st_blocks * 512 < 100_000 for have in sizes.values())


@linux
def test_extended_attributes(tmp_path: Path) -> None:
    target = Target(tmp_path / "root", merge=False)
    mine = [(b"user.origin", b"till 3"), (b"user.\xff", bytes(range(256)))]
    target.folder(folder(b"a", attributes=mine))
    put(target, b"a/file", b"x", mode=0o400, attributes=mine)
    put_parts(target, entry(b"a/big", size=4, attributes=mine), b"abcd", 2)
    put(target, b"odd", b"x", attributes=[(b"nonsense", b"1"), (b"", b"1"), (b"user.nul\0", b"1"), (b"user.y", b"2")])
    target.close()
    for name in ("a", "a/file", "a/big"):
        path = tmp_path / "root" / name
        assert {os.fsencode(key): os.getxattr(path, key) for key in os.listxattr(path)} == dict(mine)
    assert os.getxattr(tmp_path / "root/odd", "user.y") == b"2"
    assert set(codes(target)) == {"attribute-not-restored"}
    assert target.missing == 0


@root_only
def test_owners_and_setuid_bits(tmp_path: Path) -> None:
    target = Target(tmp_path / "root", merge=False)
    target.folder(folder(b"a", 0o2770, uid=12, gid=34))
    put(target, b"a/su", b"x", mode=0o6755, uid=12, gid=34)
    put(target, b"a/ours", b"x", mode=0o4711)
    target.special(entry(b"l", EntryKind.LINK, uid=12, gid=34, extras={1: b"a/su"}))
    put(target, b"nobody", b"x", uid=0xFFFFFFFF, mode=0o4755)
    target.close()

    def look(name: str) -> tuple[int, int, int]:
        have = os.lstat(tmp_path / "root" / name)
        return have.st_uid, have.st_gid, stat.S_IMODE(have.st_mode)

    assert look("a") == (12, 34, 0o2770)
    assert look("a/su") == (12, 34, 0o6755)
    assert look("a/ours") == (os.geteuid(), os.getegid(), 0o4711)
    assert look("l")[:2] == (12, 34)
    assert look("nobody")[2] == 0o755  # whose bit it was is not known
    assert codes(target) == ["owner-not-restored"]


@root_only
def test_what_a_folder_would_pass_on_is_not_passed_on(tmp_path: Path) -> None:
    """A folder with a group of its own gives that group to new files."""
    root = tmp_path / "root"
    root.mkdir()
    os.chown(root, 0, 77)
    root.chmod(0o2777)
    target = Target(root, merge=True)
    target.folder(folder(b"a"))
    put(target, b"file", b"x")
    put(target, b"a/file", b"x")
    target.close()
    for name in ("a", "file", "a/file"):
        assert (root / name).stat().st_gid == os.getegid()
        assert not (root / name).stat().st_mode & stat.S_ISGID


def test_hard_links(fresh: Target, tmp_path: Path) -> None:
    root = tmp_path / "root"
    fresh.folder(folder(b"a"))
    put(fresh, b"a/first", b"shared")
    fresh.special(name_of(b"second", b"a/first", 6))
    fresh.special(name_of(b"a/third", b"a/first", 6))
    fresh.close()
    assert len({(root / name).stat().st_ino for name in ("a/first", "second", "a/third")}) == 1
    assert (root / "second").stat().st_nlink == 3
    assert (root / "a").stat().st_mtime_ns == TIME


@linux
def test_names_that_are_not_text(tmp_path: Path) -> None:
    target = Target(tmp_path / "root", merge=False)
    names = [b"\xff\xfe", b"a\nb", b"CON", b"x ", b"...", b"\xed\xa0\x80", "é".encode(), "é".encode(), b"~", b"-rf"]
    for name in names:
        put(target, name, name)
    target.close()
    assert {name: found[3] for name, found in tree(tmp_path / "root").items()} == {name: name for name in names}
    assert codes(target) == []


def test_what_is_only_named(fresh: Target, tmp_path: Path) -> None:
    for i, kind in enumerate(
        (EntryKind.FIFO, EntryKind.SOCKET, EntryKind.CHARACTER_DEVICE, EntryKind.BLOCK_DEVICE, EntryKind.UNREAD)
    ):
        fresh.special(entry(b"%d" % i, kind))
    fresh.close()
    assert tree(tmp_path / "root") == {}
    assert codes(fresh) == ["not-in-backup"] + ["special-not-restored"] * 4
    assert {finding.severity for finding in fresh.findings} == {"info", "warning"}
    assert fresh.missing == 1


def test_folders_on_the_way_to_what_was_asked_for(fresh: Target, tmp_path: Path) -> None:
    wanted = entry(b"a/b/c/file", size=1)
    fresh.parents(wanted)
    fresh.whole(wanted, memoryview(b"x"))
    fresh.parents(entry(b"top"))
    fresh.close()
    assert (tmp_path / "root/a/b/c/file").read_bytes() == b"x"


@pytest.mark.parametrize("time", [-(1 << 63), (1 << 63) - 1, -1, 0])
def test_impossible_times_do_not_matter(fresh: Target, tmp_path: Path, time: int) -> None:
    put(fresh, b"file", b"x", mtime=time)
    fresh.folder(folder(b"a", mtime=time))
    fresh.special(entry(b"l", EntryKind.LINK, mtime=time, extras={1: b"x"}))
    fresh.close()
    assert set(tree(tmp_path / "root")) == {b"file", b"a", b"l"}
    assert fresh.missing == 0


def test_four_threads_at_once(fresh: Target, tmp_path: Path) -> None:
    paths = [b"%d/%d" % (i % 7, i) for i in range(800)]
    data = random.Random(3).randbytes(30_000)
    big = [entry(b"big%d" % i, size=len(data)) for i in range(6)]
    for i in range(7):
        fresh.folder(folder(b"%d" % i))
    pieces = [(item, offset) for item in big for offset in range(0, len(data), 1000)]
    random.Random(4).shuffle(pieces)
    failed: list[BaseException] = []

    def work(mine: int) -> None:
        try:
            for path in paths[mine::4]:
                put(fresh, path, path * 9)
            for item, offset in pieces[mine::4]:
                fresh.parts(item, [(offset, memoryview(data)[offset : offset + 1000])])
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for item in big:
        fresh.finish(item)
    fresh.close()
    have = tree(tmp_path / "root")
    assert not failed
    assert all(have[path][3] == path * 9 for path in paths)
    assert all(have[item.path][3] == data for item in big)
    assert len(have) == 800 + 7 + 6
    assert fresh.written == 806


def test_synced_files_are_the_same(tmp_path: Path) -> None:
    target = Target(tmp_path / "root", merge=False, sync=True)
    target.folder(folder(b"a"))
    put(target, b"a/file", b"x")
    put_parts(target, entry(b"a/big", size=4), b"abcd", 2)
    target.close()
    have = tree(tmp_path / "root")
    assert have[b"a/file"][3] == b"x" and have[b"a/big"][3] == b"abcd"
    assert have[b"a"][2] == TIME


def test_abandoned_whole_files_stay_and_half_ones_go(fresh: Target, tmp_path: Path) -> None:
    fresh.folder(folder(b"a"))
    put(fresh, b"a/whole", b"x")
    fresh.parts(entry(b"a/half", size=2), [(0, memoryview(b"x"))])
    fresh.abandon()
    assert set(tree(tmp_path / "root")) == {b"a", b"a/whole"}


def test_what_never_became_whole_is_removed_at_the_end(fresh: Target, tmp_path: Path) -> None:
    """As when a stored block is lost: the other files are complete."""
    put(fresh, b"whole", b"x")
    fresh.parts(entry(b"half", size=2), [(0, memoryview(b"x"))])
    fresh.close()
    assert set(tree(tmp_path / "root")) == {b"whole"}


def test_a_file_that_lacks_a_part_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder could not be reached for a moment: whatever else of it was written, it has no name."""
    target = Target(tmp_path / "out", merge=False)
    target.folder(folder(b"a"))
    file = entry(b"a/scan", size=8)
    target.parts(file, [(0, memoryview(b"0123"))])

    def gone(path: bytes) -> object:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    monkeypatch.setattr(target._folders, "get", gone)
    target.parts(file, [(4, memoryview(b"4567"))])
    monkeypatch.undo()
    target.finish(file)
    target.close()
    assert (target.missing, target.written) == (1, 0)
    assert [finding.severity for finding in target.findings] == ["critical"]
    assert os.listdir(tmp_path / "out" / "a") == []
