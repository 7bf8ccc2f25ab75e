"""Writing this machine's own files: caches, and what must not be lost."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from pharmabackup.storage.local_os import sync, sync_folder


def replace(path: Path, data: bytes) -> None:
    """Write a cache file so that another process sees the old one or the new one, never a part. OSError."""
    if not path.parent.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _give(path.parent)
    fresh = path.with_name(f"{path.name}.{os.urandom(4).hex()}")
    try:
        fresh.write_bytes(data)
        _give(fresh)
        os.replace(fresh, path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def _give(path: Path) -> None:
    """Root leaves what he makes to whose folder it is in: that account has to read it, and to replace it."""
    if sys.platform != "win32" and os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid)


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file whole or not at all, and see that a power cut leaves it there. OSError."""
    fresh = path.with_name(f"{path.name}.new")
    try:
        with open(fresh, "xb") as file:
            file.write(data)
            file.flush()
            sync(file.fileno())
        _give(fresh)
        os.replace(fresh, path)
    except OSError:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
    with suppress(OSError):
        sync_folder(str(path.parent))
