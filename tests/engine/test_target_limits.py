"""Full and write-protected disks, and what a user may not do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pharmabackup.engine.target import Target
from pharmabackup.errors import StorageFailed
from tests.engine.entries import entry, folder, put, put_parts, tree
from tests.storage.mounts import image, tmpfs

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
CHUNK = bytes(range(256)) * 400


def fill(target: Target, kind: str) -> int:
    """Write until the disk is full; how many files were whole by then."""
    target.folder(folder(b"a"))
    for i in range(10_000):
        try:
            if kind == "whole":
                put(target, b"a/%d" % i, CHUNK)
            elif kind == "slow":
                put(target, b"a/%d" % i, CHUNK, mode=0o4755)
            else:
                put_parts(target, entry(b"a/%d" % i, size=len(CHUNK)), CHUNK, 7000)
        except StorageFailed as error:
            assert error.kind == "full" and "full" in str(error) and error.remedy and error.location
            return i
    pytest.fail("the disk never became full")


@pytest.mark.parametrize("kind", ["whole", "slow", "parts"])
@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("disk", ["tmpfs", "ext4", "exfat"])
def test_a_full_disk(kind: str, sync: bool, disk: str) -> None:
    with tmpfs("2m") if disk == "tmpfs" else image(disk, 8 << 20) as where:
        root = where / "root"
        target = Target(root, merge=False, sync=sync)
        whole = fill(target, kind)
        target.abandon()
        have = tree(root)
        assert len(have) == whole + 1 and whole > 5
        assert all(found[3] == CHUNK for path, found in have.items() if path != b"a")
        again = Target(root, merge=True)
        again.folder(folder(b"a"))
        for i in range(whole):
            put(again, b"a/%d" % i, CHUNK, mode=0o4755 if kind == "slow" else 0o644)
        again.close()
        assert (again.written, again.kept) == (0, whole)


def test_a_disk_without_space_for_names() -> None:
    with tmpfs("2m,nr_inodes=20") as where:
        target = Target(where / "root", merge=False)
        with pytest.raises(StorageFailed) as caught:
            for i in range(100):
                target.folder(folder(b"%d" % i))
        assert caught.value.kind == "full"


def test_a_write_protected_disk() -> None:
    with tmpfs("2m") as where:
        Target(where / "root", merge=False).close()
        target = Target(where / "root", merge=True)
        subprocess.run(["mount", "-o", "remount,ro", str(where)], check=True)
        with pytest.raises(StorageFailed) as caught:
            put(target, b"x", b"x")
        assert caught.value.kind == "storage-denied"
        for root in ("root", "other"):
            with pytest.raises(StorageFailed) as caught:
                Target(where / root, merge=True)
            assert caught.value.kind == "storage-denied"


PRELUDE = """
import os, sys
from pathlib import Path
from pharmabackup.engine.target import Target
from pharmabackup.errors import StorageFailed
from tests.engine.entries import *
os.setgroups([60000, 60001]); os.setgid(60000); os.setuid(60000)  # Python itself may lie where only root reads
os.umask(0o027)
assert entry.__kwdefaults__ is not None
entry.__kwdefaults__.update(uid=60000, gid=60000)
root = Path(sys.argv[1])
"""


def as_user(script: str, root: Path) -> None:
    """Run as a user who may do nothing but what is theirs."""
    if not ROOT:
        pytest.skip("becoming another user needs root")
    for above in root.parents:
        if above != above.parent and above.stat().st_uid == os.geteuid():
            above.chmod(above.stat().st_mode | 0o011)
    subprocess.run(
        [sys.executable, "-c", PRELUDE + script, str(root)], check=True, cwd=Path(__file__).parents[2], timeout=60
    )


def theirs(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    os.chown(root, 60000, 60000)
    return root


def test_a_user_restores_what_belonged_to_others(tmp_path: Path) -> None:
    script = """
target = Target(root, merge=True)
target.folder(folder(b"a", 0o555, uid=0, gid=0))
put(target, b"a/theirs", b"x", uid=0, gid=0, mode=0o6755)
put(target, b"a/plain", b"x", uid=0, gid=0, mode=0o640)
put(target, b"a/wide", b"x", uid=0, gid=0, mode=0o666)
put(target, b"a/ours", b"x", mode=0o6755)
put(target, b"a/group", b"x", gid=60001, mode=0o2770)
put(target, b"a/other-group", b"x", gid=5, mode=0o2770)
put(target, b"a/tagged", b"x", mode=0o400, attributes=[(b"user.a", b"1"), (b"trusted.a", b"1")])
target.close()
assert codes(target) == ["attribute-not-restored", "owner-not-restored"], target.findings
assert target.missing == 0
modes = {path.name: (path.stat().st_mode & 0o7777, path.stat().st_gid) for path in (root / "a").iterdir()}
assert modes == {
    "theirs": (0o755, 60000), "plain": (0o640, 60000), "wide": (0o666, 60000), "ours": (0o6755, 60000),
    "group": (0o2770, 60001), "other-group": (0o770, 60000), "tagged": (0o400, 60000),
}, modes
assert os.getxattr(root / "a/tagged", "user.a") == b"1"
inodes = {path.name: path.stat().st_ino for path in (root / "a").iterdir()}
for attribute in (b"1", b"2"):
    again = Target(root, merge=True)
    again.folder(folder(b"a", 0o300))
    put(again, b"a/plain", b"x", uid=0, gid=0, mode=0o640)
    put(again, b"a/tagged", b"x", mode=0o400, attributes=[(b"user.a", attribute)])
    again.close()
    assert (again.kept, again.missing) == (2, 0), again.findings
    assert (root / "a").stat().st_mode & 0o7777 == 0o300
os.chmod(root / "a", 0o700)
assert inodes == {path.name: path.stat().st_ino for path in (root / "a").iterdir()}
assert os.getxattr(root / "a/tagged", "user.a") == b"2"
"""
    as_user(script, theirs(tmp_path / "root"))


def test_a_user_finds_the_files_of_others(tmp_path: Path) -> None:
    root = theirs(tmp_path / "root")
    for name in ("same", "unreadable", "parts"):
        (root / name).write_bytes(b"content")
        (root / name).chmod(0o600 if name == "unreadable" else 0o644)
    (root / "link").symlink_to("x")
    (root / "closed").mkdir(mode=0o700)
    (root / "shared").mkdir()
    (root / "shared").chmod(0o777)
    script = """
target = Target(root, merge=True)
put(target, b"same", b"content", mode=0o640)
put(target, b"unreadable", b"content")
put_parts(target, entry(b"parts", size=7, mode=0o640), b"content", 3)
target.special(link(b"link", b"x"))
target.folder(folder(b"closed"))
target.folder(folder(b"closed/sub"))
put(target, b"closed/file", b"x")
put_parts(target, entry(b"closed/sub/parts", size=2), b"xy", 1)
target.folder(folder(b"shared"))
put(target, b"shared/file", b"x")
target.close()
assert codes(target) == ["mode-not-restored", "target-denied"], target.findings
assert (target.written, target.kept, target.missing) == (5, 0, 4), (target.written, target.kept, target.missing)
for name in ("same", "unreadable", "parts", "link"):
    assert (root / name).lstat().st_uid == 60000
"""
    as_user(script, root)


def test_a_user_may_not_write_there_at_all(tmp_path: Path) -> None:
    script = """
for place in (root, root / "below"):
    try:
        Target(place, merge=True)
    except StorageFailed as error:
        assert error.kind == "storage-denied"
    else:
        raise SystemExit("nobody refused")
"""
    (tmp_path / "root").mkdir()
    as_user(script, tmp_path / "root")
