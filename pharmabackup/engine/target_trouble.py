"""What to make of an error while files are restored: one file's trouble, or the disk's."""

from __future__ import annotations

import errno
import shutil
import sys
from pathlib import Path

from pharmabackup.engine.target_metadata import FULL, printable
from pharmabackup.errors import Damaged, StorageFailed

FAILING = frozenset(
    getattr(errno, name) for name in ("EIO", "ENODEV", "ENXIO", "ENOMEM", "EMFILE", "ENFILE") if hasattr(errno, name)
)
DENIED = (errno.EACCES, errno.EPERM)
IN_THE_WAY = (errno.ENOTEMPTY, errno.EISDIR, errno.EEXIST)
NOT_A_NAME = (errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG)


def concerns_disk(error: OSError, root: Path, size: int) -> bool:
    """Whether the next file would fail too. `size`: what was to be written."""
    if error.errno in FULL or error.errno in FAILING or error.errno == errno.EROFS:
        return True
    return error.errno in DENIED and _free(root) < size


def stopped(error: OSError, root: Path, size: int = 1) -> StorageFailed:
    location = str(root)
    if error.errno in FULL or (error.errno in DENIED and _free(root) < size):
        return StorageFailed(
            f"The disk of {location} is full.",
            kind="full",
            remedy="Free some space or choose another disk, and run it again: it goes on from there.",
            location=location,
        )
    if error.errno == errno.EROFS or error.errno in DENIED:
        return StorageFailed(
            f"{location} cannot be written to: {error.strerror}.",
            kind="storage-denied",
            remedy="Let the user that runs this write there, or choose another folder.",
            location=location,
        )
    return StorageFailed(
        f"{location} cannot be written to: {error.strerror or error}.",
        remedy="Check that disk or choose another one, and run it again: it goes on from there.",
        location=location,
    )


def _free(root: Path) -> int:
    """Space that is left. Some drivers for FAT say "not permitted" when a disk is full."""
    try:
        return shutil.disk_usage(root).free
    except OSError:
        return sys.maxsize


def refused(path: bytes) -> Damaged:
    return Damaged(
        f"The snapshot names {printable(path)}, which does not lie in a folder of it.",
        kind="format",
        remedy="It was made by a faulty or hostile program: restore another snapshot, and run check.",
    )


def trouble(error: OSError) -> tuple[str, str, str]:
    """Code, reason and remedy."""
    if error.errno in DENIED:
        return (
            "target-denied",
            "the system refused it",
            "Let the user that runs this write there, or restore as an administrator, and run it again.",
        )
    if error.errno in IN_THE_WAY:
        return (
            "folder-in-the-way",
            "a folder that is not empty has its name",
            "Move that folder away and run it again.",
        )
    if error.errno in NOT_A_NAME:
        return "name-not-possible", "this disk does not take its name", "Restore it to another disk."
    if error.errno == errno.EFBIG:
        return "too-large", "it is larger than a file on this disk can be", "Restore it to another disk."
    reason = error.strerror or str(error)
    return "not-restored", reason[:1].lower() + reason[1:], "Look at what is in its place, and run it again."
