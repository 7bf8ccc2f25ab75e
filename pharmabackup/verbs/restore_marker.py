"""The file beside a folder while its restore is under way: of what, and which parts of files it saved."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pharmabackup.engine.localfiles import replace
from pharmabackup.engine.target_files import Identity
from pharmabackup.errors import StorageFailed

MARKER = ".restoring"


@dataclass(frozen=True, slots=True)
class Marker:
    """`salvaged`: by the paths of files that were not whole, what was put beside them, so that it is known again."""

    transaction: bytes
    salvaged: Mapping[bytes, Identity] = field(default_factory=dict)

    def encode(self) -> bytes:
        lines = [f"{' '.join(map(str, found))} {path.hex()}" for path, found in sorted(self.salvaged.items())]
        return "\n".join([self.transaction.hex(), *lines]).encode("ascii")


def marker_of(folder: Path) -> Path:
    return folder.with_name(folder.name + MARKER)


def read_marker(folder: Path) -> Marker | None:
    """None where no restore is under way, or what is there cannot be read."""
    try:
        first, *lines = marker_of(folder).read_text("ascii").split("\n")
        salvaged = {}
        for line in lines:
            inode, size, modified, changed, path = line.split(" ")
            salvaged[bytes.fromhex(path)] = Identity(int(inode), int(size), int(modified), int(changed))
        return Marker(bytes.fromhex(first), salvaged)
    except (OSError, ValueError):
        return None


def write_marker(folder: Path, marker: Marker) -> None:
    """StorageFailed."""
    path, data = marker_of(folder), marker.encode()
    try:
        if not (path.is_file() and path.read_bytes() == data):  # a full disk stops nobody who has nothing to write
            replace(path, data)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StorageFailed(
            f"{folder.parent} cannot be written to: {os.strerror(error.errno or errno.EIO)}.",
            kind="full" if full else "storage-denied",
            remedy="Free some space there, or choose another target folder.",
            location=str(folder.parent),
        ) from error
