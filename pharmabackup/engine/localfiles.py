"""Writing this machine's own files: caches, and what must not be lost."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pharmabackup.storage.local_os import sync, sync_folder


def replace(path: Path, data: bytes) -> None:
    """Write a cache file so that another process sees the old one or the new one, never a part. OSError."""
    if not path.parent.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError), opened_folder(path.parent) as file:
            give(file, path.parent.parent)
    _write(path, data, durably=False)


def give(file: int, folder: Path) -> None:
    """Root leaves what he has just made to whose folder it is in, if he may: that account has to read and replace it.

    By its descriptor: an account could put a link to something else in the place of the name.
    """
    if sys.platform != "win32" and os.geteuid() == 0:
        with suppress(OSError):
            owner = folder.stat()
            os.fchown(file, owner.st_uid, owner.st_gid)


@contextmanager
def opened_folder(folder: Path) -> Iterator[int]:
    """The folder itself, and nothing that a link leads to. OSError."""
    if sys.platform == "win32":
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), str(folder))
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file whole or not at all, and see that a power cut leaves it there. OSError."""
    _write(path, data, durably=True)
    with suppress(OSError):
        sync_folder(str(path.parent))


def _write(path: Path, data: bytes, *, durably: bool) -> None:
    fresh = path.with_name(f"{path.name}.{os.urandom(4).hex()}")
    try:
        with open(fresh, "xb") as file:
            give(file.fileno(), path.parent)
            file.write(data)
            if durably:
                file.flush()
                sync(file.fileno())
        os.replace(fresh, path)
    except OSError:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
