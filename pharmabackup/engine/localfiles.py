"""Writing this machine's own files: caches, and what must not be lost."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from pharmabackup.storage.local_os import sync, sync_folder


def replace(path: Path, data: bytes) -> None:
    """Write a cache file so that another process sees the old one or the new one, never a part. OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write(path, data, durably=False)


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file whole or not at all, and see that a power cut leaves it there. OSError."""
    _write(path, data, durably=True)
    with suppress(OSError):
        sync_folder(str(path.parent))


def _write(path: Path, data: bytes, *, durably: bool) -> None:
    fresh = path.with_name(f"{path.name}.{os.urandom(4).hex()}")
    try:
        with open(fresh, "xb") as file:
            file.write(data)
            if durably:
                file.flush()
                sync(file.fileno())
        os.replace(fresh, path)
    except OSError:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
