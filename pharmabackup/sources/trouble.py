"""What the sink is told of files and folders that cannot be read as they were found."""

from __future__ import annotations

import errno

from pharmabackup.sources.base import Sink

GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # removed, or replaced by a file or a link


def reason(error: OSError) -> str:
    """What the system said, without the file's name."""
    return error.strerror or type(error).__name__


def _remedy(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "Let the account that backs up read it, or close the program that has it locked."
    return "Check the disk that it is on."


def vanished(sink: Sink, path: bytes) -> None:
    sink.finding(
        "file-vanished",
        path,
        "It was removed, moved or replaced while the backup ran, and is not in it.",
        "Nothing, if that was meant; a moved file is in the next backup.",
    )


def unreadable(sink: Sink, path: bytes, error: OSError, *, stored: int = 0) -> None:
    part = f" after {stored} bytes" if stored else ""
    sink.finding("file-unreadable", path, f"It could not be read{part} ({reason(error)}).", _remedy(error))


def unreadable_folder(sink: Sink, path: bytes, error: OSError) -> None:
    sink.finding(
        "folder-unreadable",
        path,
        f"The folder could not be read ({reason(error)}), or not all of it.",
        _remedy(error),
    )
