"""Reading one file of a tree: opening it without side effects, its holes, its extended attributes."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from contextlib import suppress

import msgspec

from pharmabackup.sources.base import Sink
from pharmabackup.sources.descriptors import pread_into
from pharmabackup.sources.trouble import reason

READ_FLAGS = os.O_RDONLY
for _flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_SEQUENTIAL"):  # NONBLOCK: it may be a FIFO now
    READ_FLAGS |= getattr(os, _flag, 0)
NO_ACCESS_TIME = getattr(os, "O_NOATIME", 0)
NON_BLOCKING = getattr(os, "O_NONBLOCK", 0)

AHEAD_BYTES = 1 << 20  # of one file
SPARSE_MIN = 64 << 10  # smaller files are read whole
EXTENTS_MAX = 4096  # of one file; the last one then goes to the file's end
ATTRIBUTES_MAX = 1 << 20  # bytes of one file's attributes
HAS_HOLES = hasattr(os, "SEEK_DATA") and hasattr(os, "preadv")
HAS_ATTRIBUTES = hasattr(os, "listxattr")
EXTENT = struct.Struct("<QQ")


def open_file(path: str, folder: int | None, *, own: bool) -> int:
    """A descriptor to read from the start. `own`: opening may leave the time of last access alone. OSError."""
    flags = READ_FLAGS
    if own and NO_ACCESS_TIME:
        try:
            return os.open(path, flags | NO_ACCESS_TIME, dir_fd=folder)
        except PermissionError:
            pass
        except BlockingIOError:
            flags &= ~NON_BLOCKING
    try:
        return os.open(path, flags, dir_fd=folder)
    except BlockingIOError:  # another program, Samba for one, holds a lease: the system asks it to give it up
        return os.open(path, flags & ~NON_BLOCKING, dir_fd=folder)


if hasattr(os, "posix_fadvise"):

    def fetch(fd: int) -> None:
        """Ask for a file's beginning, to be read later."""
        with suppress(OSError):  # it is no file any more: reading it will say so
            os.posix_fadvise(fd, 0, AHEAD_BYTES, os.POSIX_FADV_WILLNEED)

else:

    def fetch(fd: int) -> None:
        """Nothing to ask: files are then opened one by one."""


class Reader:
    """Reads what an open file holds. An error ends it early, since what was stored cannot be taken back."""

    def __init__(self, fd: int, extents: list[tuple[int, int]] | None = None) -> None:
        self.error: OSError | None = None
        self._fd = fd
        self._extents = extents
        self._at = self._place = self._done = 0  # offset in the file; extent, bytes of it that are done

    def read_into(self, view: memoryview) -> int:
        try:
            if self._extents is not None:
                return self._next_of_extents(view)
            got = pread_into(self._fd, view, self._at)
        except OSError as error:
            self.error = error
            return 0
        self._at += got
        return got

    def _next_of_extents(self, view: memoryview) -> int:
        assert self._extents is not None
        while self._place < len(self._extents):
            offset, length = self._extents[self._place]
            if self._done < length:
                got = pread_into(self._fd, view[: length - self._done], offset + self._done)
                self._done += got
                return got
            self._place, self._done = self._place + 1, 0
        return 0


def extents(fd: int, size: int) -> list[tuple[int, int]] | None:
    """(offset, length) of the parts of a file that are not holes; None: it has no holes, or none are known."""
    if not HAS_HOLES or size < SPARSE_MIN:
        return None
    status = os.fstat(fd)
    if status.st_blocks * 512 >= status.st_size:
        return None
    found: list[tuple[int, int]] = []
    end = 0
    try:
        while end < size:
            start = os.lseek(fd, end, os.SEEK_DATA)
            if start >= size:
                break
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size) if len(found) < EXTENTS_MAX - 1 else size
            found.append((start, end - start))
    except OSError as error:
        if error.errno != errno.ENXIO:  # that says: only a hole follows
            return None
    return None if found == [(0, size)] else found


def cut_extents(found: list[tuple[int, int]], stored: int) -> list[tuple[int, int]]:
    """The first `stored` bytes of these extents."""
    left, kept = stored, []
    for offset, length in found:
        if left > 0:
            kept.append((offset, min(length, left)))
        left -= length
    return kept


def pack_extents(found: list[tuple[int, int]]) -> bytes:
    return b"".join(EXTENT.pack(*extent) for extent in found)


def has_attributes(fd: int) -> bool:
    """False: the open file certainly has no extended attributes."""
    try:
        return bool(os.listxattr(fd))
    except OSError:
        return True


def attributes(target: int | str, path: bytes, sink: Sink) -> bytes | None:
    """The extended attributes of an open file, or of a link or folder by path; b"": none.

    None: they could not all be read, and the sink was told.
    """
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError as error:
        return _not_all(error, path, sink)
    if not names:
        return b""
    return _values(target, sorted(names), follow, path, sink)


def _values(target: int | str, names: list[str], follow: bool, path: bytes, sink: Sink) -> bytes | None:
    found: list[tuple[bytes, bytes]] = []
    told: bytes | None = b""
    for name in names:
        try:
            found.append((os.fsencode(name), os.getxattr(target, name, follow_symlinks=follow)))
        except OSError as error:
            told = _not_all(error, path, sink)
    encoded: bytes = msgspec.msgpack.encode(found) if found else b""
    if len(encoded) > ATTRIBUTES_MAX:
        return _not_all(OSError(errno.E2BIG, os.strerror(errno.E2BIG)), path, sink)
    return encoded if told is not None else None


def _not_all(error: OSError, path: bytes, sink: Sink) -> bytes | None:
    if error.errno in (errno.ENOTSUP, errno.ENODATA, errno.ENOENT):  # none here, or gone since
        return b""
    sink.finding(
        "attributes-unreadable",
        path,
        f"Its extended attributes could not all be read ({reason(error)}).",
        "Let the account that backs up read them; its content is safe.",
    )
    return None


READ_ATTRIBUTES: Callable[[int | str, bytes, Sink], bytes | None] | None = attributes if HAS_ATTRIBUTES else None
