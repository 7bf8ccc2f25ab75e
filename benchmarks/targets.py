"""A fresh place for every restore.

ext4 hands out no inode that was deleted within the last minutes, and searches long for another one: a restore into
a folder that was just emptied is up to ten times as slow, whichever tool does it. Every restore therefore gets a
file system of its own: a new ext4 image where this machine lets us mount one, else a folder that is not deleted
before the end of the benchmark.
"""

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from measure import Failed, output_of

DISK_BYTES = 64 << 30
"""As large as a small disk, though it is a sparse file: mkfs gives a small file system a journal so small that every
restore waits for it."""


class Targets:
    """Hands out fresh folders for restores."""

    def __init__(self, work: Path) -> None:
        self.work = work / "targets"
        self.numbers = itertools.count(1)
        self.mounts = self._can_mount()

    @property
    def kind(self) -> str:
        return (
            f"a fresh ext4 image each, laid out as a disk of {DISK_BYTES >> 30} GiB"
            if self.mounts
            else "a fresh folder each"
        )

    @contextlib.contextmanager
    def fresh(self, files: int) -> Iterator[Path]:
        """An empty folder with room for so many files."""
        place = self.work / f"{os.getpid()}-{next(self.numbers)}"
        if not self.mounts:
            place.mkdir(parents=True)
            yield place
            return
        with mounted(place, files) as root:
            folder = root / "restored"
            folder.mkdir()
            yield folder

    def clear(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)

    def _can_mount(self) -> bool:
        if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
            return False
        try:
            with mounted(self.work / "probe", 100):
                return True
        except Failed:
            return False


@contextlib.contextmanager
def mounted(place: Path, files: int) -> Iterator[Path]:
    """A new ext4 file system in an image beside `place`, mounted there; both are gone afterwards."""
    place.mkdir(parents=True)
    image = place.with_suffix(".img")
    try:
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        # Everything is laid out now: no thread of the kernel goes on doing it while a restore is measured.
        layout = ["-N", files * 2 + 1000, "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"]
        output_of(["mkfs.ext4", "-q", "-F", *map(str, layout), image])
        output_of(["mount", "-o", "loop", image, place])
        try:
            os.sync()
            yield place
        finally:
            subprocess.run(["umount", place], check=True)
    finally:
        image.unlink(missing_ok=True)
        place.rmdir()
