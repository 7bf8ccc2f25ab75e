"""Restoring over what is there: what is right stays, what is not is replaced in one step."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pharmabackup.engine.target import Target
from pharmabackup.engine.target_folders import scratch_name
from pharmabackup.format.manifest import Entry, EntryKind
from tests.engine.entries import TIME, codes, entry, folder, link, name_of, put, put_parts, sparse, tree

BIG = random.Random(5).randbytes(50_000)
MINE = [(b"user.a", b"1")]


def restore(root: Path, *, merge: bool, by_path: bool = False) -> Target:
    target = Target(root, merge=merge, by_path=by_path)
    more: dict[str, Any] = {} if by_path else {"attributes": MINE}
    target.folder(folder(b"", 0o755))
    target.folder(folder(b"a", 0o555, **more))
    put(target, b"a/small", b"x" * 5000, **more)
    put(target, b"a/read-only", b"y", mode=0o444)
    put_parts(target, entry(b"big", size=len(BIG), **more), BIG, 4096)
    put_parts(target, sparse(b"sparse", 1 << 22, [(4096, 9000), (1 << 21, 1000)]), BIG[:10_000], 3000)
    target.special(entry(b"empty"))
    target.special(link(b"a/link", b"small"))
    target.close()
    return target


@pytest.fixture(params=[False, True], ids=["descriptors", "paths"])
def by_path(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("merge", [False, True])
def test_what_is_right_is_not_written_again(tmp_path: Path, by_path: bool, merge: bool) -> None:
    root = tmp_path / "root"
    first = restore(root, merge=False, by_path=by_path)
    before = {path: path.lstat() for path in root.rglob("*")}
    again = restore(root, merge=merge, by_path=by_path)
    after = {path: path.lstat() for path in root.rglob("*")}
    assert (first.written, first.kept) == (6, 0)
    assert (again.written, again.kept) == (0, 6)
    assert {path: have.st_ino for path, have in after.items()} == {path: have.st_ino for path, have in before.items()}
    if not by_path:
        touched = {path.name for path in after if after[path].st_ctime_ns != before[path].st_ctime_ns}
        assert touched == {"a"}  # a folder's mode is its owner's only while it is restored


@pytest.mark.parametrize("parts", [False, True])
def test_only_the_looks_are_wrong(tmp_path: Path, by_path: bool, parts: bool) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_bytes(BIG)
    (root / "file").chmod(0o600)
    if not by_path:
        os.setxattr(root / "file", "user.surplus", b"1")
    inode = (root / "file").stat().st_ino
    target = Target(root, merge=True, by_path=by_path)
    if parts:
        put_parts(target, entry(b"file", size=len(BIG), mode=0o640), BIG, 777)
    else:
        put(target, b"file", BIG, mode=0o640)
    target.close()
    have = (root / "file").stat()
    assert (have.st_ino, stat.S_IMODE(have.st_mode), have.st_mtime_ns) == (inode, 0o640, TIME)
    assert os.listxattr(root / "file") == []
    assert (target.written, target.kept) == (0, 1)


@pytest.mark.parametrize("change", [0, 25_000, len(BIG) - 1])
@pytest.mark.parametrize("backwards", [False, True])
def test_one_byte_is_different(tmp_path: Path, by_path: bool, change: int, backwards: bool) -> None:
    root = tmp_path / "root"
    root.mkdir()
    old = bytearray(BIG)
    old[change] ^= 1
    for name in ("whole", "parts"):
        (root / name).write_bytes(old)
    kept_open = (root / "parts").open("rb")
    target = Target(root, merge=True, by_path=by_path)
    put(target, b"whole", BIG)
    put_parts(target, entry(b"parts", size=len(BIG)), BIG, 777, backwards=backwards)
    target.close()
    assert (root / "whole").read_bytes() == BIG == (root / "parts").read_bytes()
    with kept_open as file:
        assert file.read() == bytes(old)  # the old file was replaced, not written to
    assert target.written == 2 and len(list(root.iterdir())) == 2


def test_an_old_sparse_file_with_something_in_its_holes(tmp_path: Path, by_path: bool) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for name in ("whole", "parts"):
        with open(root / name, "wb") as file:
            file.truncate(1 << 20)
            file.seek(4096)
            file.write(b"data")
            file.seek(1 << 19)
            file.write(b"surplus")
    target = Target(root, merge=True, by_path=by_path)
    target.whole(sparse(b"whole", 1 << 20, [(4096, 4)]), memoryview(b"data"))
    put_parts(target, sparse(b"parts", 1 << 20, [(4096, 4)]), b"data", 3)
    target.close()
    want = bytes(4096) + b"data" + bytes((1 << 20) - 4100)
    assert (root / "whole").read_bytes() == want == (root / "parts").read_bytes()


def test_other_kinds_in_the_way(tmp_path: Path, by_path: bool) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for name in ("whole", "parts", "link", "second", "full", "full-parts", "full-link", "full-second"):
        (root / name).mkdir()
        if name.startswith("full"):
            (root / name / "somebody's").write_bytes(b"x")
    (root / "folder").write_bytes(b"a file")
    target = Target(root, merge=True, by_path=by_path)
    put(target, b"first", b"f")
    for prefix in (b"", b"full-"):
        put(target, prefix[:-1] or b"whole", b"x")
        put_parts(target, entry(prefix + b"parts", size=2), b"xy", 1)
        target.special(link(prefix + b"link", b"x"))
        target.special(name_of(prefix + b"second", b"first", 1))
    target.folder(folder(b"folder"))
    put(target, b"folder/file", b"x")
    target.close()
    have = tree(root)
    assert [have[name][3] for name in (b"whole", b"parts", b"link", b"second", b"folder/file")] == [
        b"x", b"xy", b"x", b"f", b"x",
    ]  # fmt: skip
    assert codes(target) == ["folder-in-the-way"] * 4 and target.missing == 4
    assert {finding.severity for finding in target.findings} == {"critical"}
    assert all((root / name / "somebody's").exists() for name in ("full", "full-parts", "full-link", "full-second"))


def test_hard_links_over_others(tmp_path: Path, by_path: bool) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "x").write_bytes(b"shared")
    for name in ("first", "second", "apart"):
        os.link(root / "x", root / name)
    for _ in range(2):
        target = Target(root, merge=True, by_path=by_path)
        put(target, b"first", b"shared")
        put(target, b"apart", b"shared")
        target.special(name_of(b"second", b"first", 6))
        target.close()
        inodes = {name: (root / name).stat().st_ino for name in ("x", "first", "second", "apart")}
        assert inodes["first"] == inodes["second"] and len(set(inodes.values())) == 3
        assert (root / "second").read_bytes() == b"shared"


def test_other_files_are_left_alone(tmp_path: Path, by_path: bool) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    for name in ("mine", "a/mine", ".pharmabackup-restoring-notes"):
        (root / name).write_bytes(b"mine")
    (root / "a" / os.fsdecode(scratch_name())).write_bytes(b"half of a file of an interrupted restore")
    (root / os.fsdecode(scratch_name())).symlink_to("x")
    restore(root, merge=True, by_path=by_path)
    left = {name for name in tree(root) if b"mine" in name or b"restoring" in name}
    assert left == {b"mine", b"a/mine", b".pharmabackup-restoring-notes"}


WORKER = """
import sys
from pathlib import Path
from pharmabackup.engine.target import Target
from tests.engine.entries import entry, put, put_parts
root, new = Path(sys.argv[1]), sys.argv[2].encode() * 200_000
print("go", flush=True)
while True:
    target = Target(root, merge=True)
    for i in range(20):
        put(target, b"whole%d" % i, new)
        put_parts(target, entry(b"parts%d" % i, size=len(new)), new, 70_000)
    target.close()
    new = new.swapcase()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no kill -9")
def test_killed_at_any_moment_each_file_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for i in range(20):
        for kind in ("whole", "parts"):
            (root / f"{kind}{i}").write_bytes(b"a" * 200_000)
    for attempt in range(8):
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(root), "b"], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        assert worker.stdout is not None
        worker.stdout.readline()
        time.sleep(0.003 + attempt * 0.011)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        worker.stdout.close()
        for path in root.iterdir():
            if not path.name.startswith("."):
                content = path.read_bytes()
                assert len(content) == 200_000 and len(set(content)) == 1, path.name
    Target(root, merge=True).close()
    assert len(list(root.iterdir())) == 40


NAMES = st.sampled_from([b"a", b"b", b"c", b"\xff", b"A"])
CONTENTS = st.sampled_from([b"", b"x", b"y", b"x" * 500, b"y" * 500, bytes(900)])
MODES = st.sampled_from([0o644, 0o400, 0o755, 0o4711, 0o666])
LEAVES = st.one_of(
    st.tuples(st.just("file"), CONTENTS, MODES),
    st.tuples(st.just("parts"), CONTENTS, MODES),
    st.tuples(st.just("link"), st.sampled_from([b"a", b"..", b"/nowhere"])),
)
TREES = st.recursive(LEAVES, lambda below: st.dictionaries(NAMES, below, max_size=4), max_leaves=12).filter(
    lambda made: isinstance(made, dict)
)


def write(target: Target, made: dict[bytes, Any], path: bytes = b"") -> None:
    target.folder(folder(path, 0o700 + len(path) % 8))
    later: list[Entry] = []
    for name, what in sorted(made.items()):
        where = path + b"/" + name if path else name
        if isinstance(what, dict):
            write(target, what, where)
        elif what[0] == "link":
            later.append(link(where, what[1]))
        elif not what[1]:
            later.append(entry(where, mode=what[2]))
        elif what[0] == "parts":
            put_parts(target, entry(where, size=len(what[1]), mode=what[2]), what[1], 100)
        else:
            put(target, where, what[1], mode=what[2])
    for item in later:
        target.special(item)


def expected(made: dict[bytes, Any], path: bytes = b"") -> dict[bytes, tuple[object, ...]]:
    found: dict[bytes, tuple[object, ...]] = {}
    for name, what in made.items():
        where = path + b"/" + name if path else name
        if isinstance(what, dict):
            found[where] = (stat.S_IFDIR, 0o700 + len(where) % 8, TIME, None)
            found.update(expected(what, where))
        elif what[0] == "link":
            found[where] = (stat.S_IFLNK, 0o777, TIME, what[1])
        else:
            found[where] = (stat.S_IFREG, what[2], TIME, what[1])
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="as Linux has names and modes")
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(old=TREES, new=TREES)
def test_any_tree_over_any_other(
    tmp_path_factory: pytest.TempPathFactory, old: dict[bytes, Any], new: dict[bytes, Any]
) -> None:
    root = tmp_path_factory.mktemp("merge") / "root"
    target = Target(root, merge=False)
    write(target, old)
    target.close()
    assert tree(root) == expected(old) and codes(target) == []
    target = Target(root, merge=True)
    write(target, new)
    target.close()
    have, want, was = tree(root), expected(new), expected(old)
    blocked = {
        path for path in want if want[path][0] != stat.S_IFDIR and any(other.startswith(path + b"/") for other in was)
    }
    assert codes(target) == ["folder-in-the-way"] * len(blocked)
    assert {path: have[path] for path in want if path not in blocked} == {
        path: found for path, found in want.items() if path not in blocked
    }
    gone = {path for path in was if path not in have}
    assert all(any(path.startswith(new_path + b"/") or path == new_path for new_path in want) for path in gone)
    again = Target(root, merge=True)
    write(again, new)
    again.close()
    assert again.written == 0 and tree(root) == have


def test_special_files_that_are_there_stay(tmp_path: Path, by_path: bool) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "unread").write_bytes(b"older")
    target = Target(root, merge=True, by_path=by_path)
    target.special(entry(b"unread", EntryKind.UNREAD))
    target.close()
    assert (root / "unread").read_bytes() == b"older"
