"""Disks: what they are called, which of them is which piece of hardware, and how one is let go.

Linux asks /proc, /sys and `blkid`, macOS `diskutil`, Windows its own functions. The last two were written from their
documentation and never run.
"""

from __future__ import annotations

import os
import sys

from pharmabackup.errors import NotFound, StorageFailed, Unsupported

if sys.platform == "win32":
    from pharmabackup.storage import disks_windows as system
elif sys.platform == "darwin":
    from pharmabackup.storage import disks_macos as system
else:
    from pharmabackup.storage import disks_linux as system

StrPath = str | os.PathLike[str]


def mounted(label: str) -> str:
    """The folder, or the drive, where the disk called `label` is. NotFound("volume"), StorageFailed.

    Letter case does not matter: some systems write a label in capitals that was given in small letters.
    """
    found = {place for name, place in system.labels() if name.casefold() == label.casefold()}
    if not found:
        raise NotFound(
            f"No disk labelled {label} is connected.",
            kind="volume",
            remedy=f"Plug in the disk labelled {label}; if it is plugged in, open it once in the file manager.",
        )
    if len(found) > 1:
        raise StorageFailed(
            f"Several connected disks are labelled {label}: {', '.join(sorted(found))}.",
            kind="unreachable",
            remedy="Unplug the one that is not meant, or give each a label of its own.",
            location=f"volume://{label}",
        )
    return found.pop()


def hardware(path: StrPath) -> frozenset[str] | None:
    """The pieces of hardware that hold `path`: two partitions of one disk are one. None where that cannot be told."""
    try:
        return system.hardware(os.path.realpath(path))
    except OSError:
        return None


def on_one_disk(one: StrPath, other: StrPath) -> bool:
    """Whether one broken disk takes both paths with it, as far as can be told. OSError when one is not there."""
    if os.stat(one).st_dev == os.stat(other).st_dev:
        return True
    return bool((hardware(one) or frozenset()) & (hardware(other) or frozenset()))


def eject(path: str) -> None:
    """Write out what the system still holds, and take the disk with `path` off, so that it can be unplugged.

    StorageFailed("in-use") while a program uses it. Unsupported when it is a disk that the system runs from, or none:
    what lies in memory alone would be gone. OSError when it is not there.
    """
    place = os.path.realpath(path)  # the way that was given may lead over other file systems
    held = system.attached(place)
    if sys.platform == "linux" and held is None:
        raise Unsupported(
            f"{path} is on no disk that could be unplugged.",
            kind="capability",
            remedy="Only a disk of its own can be made safe to unplug.",
        )
    while not os.path.ismount(place):
        place = os.path.dirname(place)
    top = place == os.path.dirname(place) and not place.upper().startswith(_drives())
    if top or (held or frozenset()) & (system.attached(_system()) or frozenset()):
        raise Unsupported(
            f"{path} is on the disk that this computer runs from.",
            kind="capability",
            remedy="Only a disk of its own can be made safe to unplug.",
        )
    if said := system.eject(place):
        raise StorageFailed(
            f"{place} cannot be let go: {said}.",
            kind="in-use",
            remedy="Close what uses the disk and try again. What was backed up is safe on it.",
            retryable=True,
            location=path,
        )


def _system() -> str:
    return f"{os.environ.get('SYSTEMDRIVE', 'C:')}\\" if os.name == "nt" else "/"


def _drives() -> tuple[str, ...]:
    """On Windows every drive but the system's can be let go, and is the top of its own tree."""
    if os.name != "nt":
        return ()
    own = _system()[:2].upper()
    return tuple(f"{letter}:" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if f"{letter}:" != own)
