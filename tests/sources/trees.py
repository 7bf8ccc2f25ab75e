"""Trees to back up, and ways to watch and to disturb it."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

MIB = 1 << 20
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")


def make(root: Path) -> Path:
    """A tree with what a pharmacy has, and with what it might have."""
    for folder in ("scans/2024/empty", "scans/2025", "a", "a.b", "!"):
        (root / folder).mkdir(parents=True)
    for number in range(40):
        (root / f"scans/2024/{number}.tif").write_bytes(os.urandom(number * 1000))
    (root / "scans/2025/big").write_bytes(os.urandom(3 * MIB))
    (root / "empty").touch()
    (root / "Zebra").touch()
    (root / "a/x").write_text("x")
    (root / "a.b/x").write_text("y")
    (root / "one").write_text("several names")
    os.link(root / "one", root / "scans/two")
    os.link(root / "one", root / "!/three")
    (root / "link").symlink_to("scans/2024")
    (root / "broken").symlink_to("nowhere/\udcff")
    (root / "scans/out").symlink_to("/etc")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        folder = os.open(root, os.O_RDONLY)
        unix.bind(f"/proc/self/fd/{folder}/socket")
        os.close(folder)
    Path(os.fsdecode(os.fsencode(root) + b"/latin-\xe9")).write_text("no text in its name")
    Path(os.fsdecode(os.fsencode(root) + b"/new\nline")).write_text("n")
    (root / "a b:c*?").write_text("not on Windows")
    (root / "a/x").chmod(0o4711)
    (root / "a").chmod(0o1777)
    os.utime(root / "a/x", ns=(0, -1_500_000_001))
    os.utime(root / "a.b", ns=(0, 123_456_789_012_345_678))
    os.utime(root / "broken", ns=(0, 5), follow_symlinks=False)
    if os.geteuid() == 0:
        os.chown(root / "a.b/x", 1234, 4_000_000_000)
    return root


def punched(path: Path, size: int, *data: tuple[int, bytes]) -> Path:
    with path.open("wb") as file:
        for offset, content in data:
            file.seek(offset)
            file.write(content)
        file.truncate(size)
    return path


def fill(root: Path, names: str = "a b c d", size: int = 100) -> Path:
    for name in names.split():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(name.encode() * size)
    return root


def once(name: bytes, act: Callable[[], object], what: str = "file") -> Callable[[str, bytes], None]:
    """A hook that acts once, before the file of that name is stored."""
    done: list[bool] = []

    def hook(event: str, path: bytes) -> None:
        if event == what and path.endswith(name) and not done:
            done.append(True)
            act()

    return hook


def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files that are opened from now on."""
    names: list[str] = []
    real = os.open

    def watch(path: str, flags: int, *args: int, **options: int) -> int:
        if not flags & os.O_DIRECTORY:
            names.append(os.path.basename(path))
        return real(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", watch)
    return names


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
