"""Disks on Linux: /proc/self/mountinfo and /sys/dev/block, as proc(5) and sysfs(5) describe them."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator

assert sys.platform != "win32"  # type checkers read on only elsewhere

BY_LABEL = "/dev/disk/by-label"  # udev's links; where it does not run, blkid reads the disks themselves
ANONYMOUS = 0  # the major number of file systems without a device of their own, FUSE's among them
SECONDS = 60  # for a slow disk to write out what is still in memory


def labels() -> Iterator[tuple[str, str]]:
    """Each mounted disk's label and the folder it is mounted at; one that is mounted twice counts once."""
    names, seen = _names(), set()
    for place, source in mounts():
        if not source.startswith("/dev/") or (device := os.path.realpath(source)) in seen:
            continue
        seen.add(device)
        if label := names.get(device) or _read_label(device):
            yield label, place


def mounts() -> list[tuple[str, str]]:
    """Each mount's folder and what is mounted there."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        fields = [line.split() for line in lines]
    return [(_plain(line[4]), _plain(line[line.index("-") + 2])) for line in fields]


def hardware(path: str) -> frozenset[str] | None:
    """Names of whole disks, such as {"sda"}; through partitions, RAID, LVM, encryption and image files. OSError."""
    return _hardware(path, images=True)


def attached(path: str) -> frozenset[str] | None:
    """The same, where an image file is a disk of its own, such as {"loop0"}: it can be let go by itself. OSError."""
    return _hardware(path, images=False)


def _hardware(path: str, *, images: bool) -> frozenset[str] | None:
    device = os.stat(path).st_dev
    if os.major(device) == ANONYMOUS:
        source = _source(path)
        if source is None or not stat.S_ISBLK((status := os.stat(source)).st_mode):
            return None
        device = status.st_rdev
    folder = os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    return frozenset(_whole(folder, images=images))


def eject(place: str) -> str | None:
    """Unmount; what the system says if it cannot."""
    os.sync()
    tries = [["umount", place]]
    if (source := _source(place)) and shutil.which("udisksctl"):
        tries.insert(0, ["udisksctl", "unmount", "--no-user-interaction", "--block-device", source])
    said = ""
    for command in tries:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False)
        if done.returncode == 0:
            return None
        said = " ".join(done.stderr.split()).rstrip(".")
    return said or "the system did not say why"


def _names() -> dict[str, str]:
    try:
        with os.scandir(BY_LABEL) as links:
            return {os.path.realpath(link.path): _plain(link.name) for link in links}
    except FileNotFoundError:
        return {}


def _read_label(device: str) -> str | None:
    blkid = shutil.which("blkid", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if blkid is None:
        return None
    # Not from its cache: that believes for two seconds what it has read, also when another disk has come meanwhile.
    command = [blkid, "--probe", "--match-tag", "LABEL", "--output", "value", device]
    done = subprocess.run(command, capture_output=True, text=True, errors="surrogateescape", check=False)
    return done.stdout.removesuffix("\n") or None


def _source(path: str) -> str | None:
    """What the file system that holds `path` was mounted from, when that is a device."""
    above = [(place, source) for place, source in mounts() if os.path.commonpath([place, path]) == place]
    longest = max(len(place) for place, _ in above)
    source = [source for place, source in above if len(place) == longest][
        -1
    ]  # what was mounted last hides the others
    return source if source.startswith("/dev/") else None


def _whole(folder: str, *, images: bool = True) -> Iterator[str]:
    if os.path.exists(f"{folder}/partition"):
        folder = os.path.dirname(folder)
    below = os.listdir(f"{folder}/slaves") if os.path.isdir(f"{folder}/slaves") else []
    for name in below:
        yield from _whole(os.path.realpath(f"{folder}/slaves/{name}"), images=images)
    if below:
        return
    if not images:
        yield os.path.basename(folder)
        return
    try:
        with open(f"{folder}/loop/backing_file", encoding="utf-8", errors="surrogateescape") as file:
            image = file.read().removesuffix("\n")
    except FileNotFoundError:
        yield os.path.basename(folder)
    else:
        yield from hardware(image) or ()


def _plain(text: str) -> str:
    r"""Without the escapes of mountinfo (\040) and of udev (\x20)."""
    escaped = re.sub(
        r"\\x([0-9a-fA-F]{2})|\\([0-7]{3})", lambda m: chr(int(m[1], 16) if m[1] else int(m[2], 8)), text
    )
    return escaped.encode("latin-1", "surrogateescape").decode(errors="surrogateescape") if escaped != text else text
