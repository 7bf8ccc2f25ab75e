"""A file for people that is written whole, or leaves what was there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from pharmabackup.errors import SourceFailed


def write_whole(path: str | os.PathLike[str], pieces: Iterable[str]) -> int:
    """In place of what is there, as UTF-8; a pipe or a device is written to as it is. How many. SourceFailed."""
    target, fresh, count = Path(path), None, 0
    try:
        if target.exists() and not target.is_file():
            descriptor = os.open(target, os.O_WRONLY)
        else:
            descriptor, fresh = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace", newline="") as file:
            for piece in pieces:
                file.write(piece)
                count += 1
            file.flush()
            if fresh is not None:
                os.fsync(file.fileno())
        if fresh is not None:
            os.replace(fresh, target)
            fresh = None
    except OSError as error:
        raise SourceFailed(
            f"{target} cannot be written: {error.strerror}.",
            kind="output",
            remedy="Free some space, or give another file.",
        ) from None
    finally:
        if fresh is not None:
            Path(fresh).unlink(missing_ok=True)
    return count
