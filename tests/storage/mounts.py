"""Small file systems of their own, for what cannot be tried on the one that the tests run on.

Mounting needs root on Linux. Where it or a tool is missing, the test is skipped and says what is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

MAKERS = {
    "ext4": (["mkfs.ext4", "-q"], "e2fsprogs"),
    "vfat": (["mkfs.vfat"], "dosfstools"),
    "exfat": (["mkfs.exfat"], "exfatprogs"),
}
LABEL = {"ext4": "-L", "vfat": "-n", "exfat": "-L"}
UNMOUNT_TRIES = 20


@contextmanager
def tmpfs(size: str) -> Iterator[Path]:
    """A file system in memory, such as `tmpfs("2m")`."""
    _need_root()
    with _folder() as where:
        _run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(where)])
        try:
            yield where
        finally:
            unmount(where)


@contextmanager
def image(fs: str, size: int, *, label: str | None = None, on: Path | None = None) -> Iterator[Path]:
    """A file system of `size` bytes in a file: "ext4", "vfat" or "exfat", by the kernel's driver or by FUSE's.

    The file is where temporary files are, or in the folder `on`.
    """
    _need_root()
    make, package = MAKERS[fs]
    _need_tool(make[0], package)
    with ExitStack() as stack:
        where = stack.enter_context(_folder())
        disk = (on or stack.enter_context(_folder())) / "disk"
        with disk.open("wb") as file:
            file.truncate(size)
        _run([*make, *([LABEL[fs], label] if label else []), str(disk)])
        device = _run(["losetup", "--find", "--show", str(disk)]).strip()
        stack.callback(subprocess.run, ["losetup", "--detach", device], check=False)
        _mount(fs, device, where)
        stack.callback(unmount, where)
        yield where


def unmount(where: Path) -> None:
    """Like a disk that is unplugged once nobody uses it any more. Nothing happens if it is unmounted already."""
    for _ in range(UNMOUNT_TRIES):
        if not os.path.ismount(where):
            return
        subprocess.run(["umount", str(where)], check=False, capture_output=True)
        time.sleep(0.05)
    _run(["umount", "--lazy", str(where)])


def _mount(fs: str, device: str, where: Path) -> None:
    known = Path("/proc/filesystems").read_text(encoding="ascii").split()
    if fs in known:
        _run(["mount", "-t", fs, device, str(where)])
    elif fs == "exfat":
        _need_tool("mount.exfat-fuse", "exfat-fuse")
        _run(["mount.exfat-fuse", device, str(where)])
    else:
        _need_tool("fusefat", "fusefat")
        _run(["fusefat", "-s", "-o", "rw+", device, str(where)])  # its threads overwrite each other's files
    if not os.path.ismount(where):
        pytest.skip(f"{fs} could not be mounted, though its driver did not say so")


@contextmanager
def _folder() -> Iterator[Path]:
    where = Path(tempfile.mkdtemp(prefix="pharmabackup-"))
    try:
        yield where
    finally:
        shutil.rmtree(where, ignore_errors=True)


def _need_root() -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting needs root on Linux")


def _need_tool(tool: str, package: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is missing (Debian: {package})")


def _run(command: Sequence[str]) -> str:
    # Into a file, not a pipe: a FUSE driver stays, and would keep a pipe open.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
        output.seek(0)
        said = output.read()
    if done.returncode:
        pytest.skip(f"{' '.join(command)} failed here: {said.strip()}")
    return said
