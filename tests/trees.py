"""Trees of files: making them, and comparing them as closely as a restore has to bring them back."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def describe(root: Path, *, times: bool = True, owners: bool = True) -> dict[bytes, tuple[object, ...]]:
    """Every name below `root` with all that a restore brings back."""
    found: dict[bytes, tuple[object, ...]] = {}
    first: dict[tuple[int, int], bytes] = {}
    top = os.fsencode(root)
    for folder, folders, files in os.walk(top):
        for name in sorted(folders + files):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            facts: list[object] = [kind, stat.S_IMODE(status.st_mode)]
            if times and kind != stat.S_IFLNK:
                facts.append(status.st_mtime_ns)
            if owners:
                facts += [status.st_uid, status.st_gid]
            if kind == stat.S_IFREG:
                facts.append(Path(os.fsdecode(path)).read_bytes())
            elif kind == stat.S_IFLNK:
                facts.append(os.readlink(path))
            if status.st_nlink > 1 and kind == stat.S_IFREG:
                same = first.setdefault((status.st_dev, status.st_ino), os.path.relpath(path, top))
                facts.append(same)
            if kind != stat.S_IFLNK and hasattr(os, "listxattr"):
                facts.append(tuple((key, os.getxattr(path, key)) for key in sorted(os.listxattr(path))))
            found[os.path.relpath(path, top)] = tuple(facts)
    return found


def sample(root: Path) -> None:
    """A bit of everything."""
    (root / "empty folder").mkdir(parents=True)
    (root / "deep" / "er" / "still").mkdir(parents=True)
    (root / "empty").write_bytes(b"")
    (root / "small.txt").write_bytes(b"a few bytes\n")
    (root / "deep" / "same.txt").write_bytes(b"a few bytes\n")
    (root / "deep" / "large.bin").write_bytes(os.urandom(3_000_000))
    (root / "deep" / "er" / "text.txt").write_bytes(b"line after line\n" * 50_000)
    (root / "deep" / "er" / "still" / "there").write_bytes(os.urandom(20_000))
    os.symlink("small.txt", root / "link")
    os.symlink("/nowhere/at all", root / "deep" / "dangling")
    os.link(root / "small.txt", root / "deep" / "hard link")
    with open(root / "sparse", "wb") as file:
        file.truncate(5_000_000)
        file.seek(1_000_000)
        file.write(os.urandom(70_000))
        file.seek(4_000_000)
        file.write(b"near the end")
    os.chmod(root / "small.txt", 0o640)
    os.chmod(root / "deep" / "er", 0o750)
    os.utime(root / "empty", ns=(1, 1_234_567_890_123_456_789))
    if os.name == "posix":
        with open(os.path.join(os.fsencode(root), b"not \xff\xfe utf-8"), "wb") as file:
            file.write(b"x")
    os.utime(root / "deep", ns=(5, 1_111_111_111_000_000_000))
