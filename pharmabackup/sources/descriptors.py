"""Descriptors of files on which SQLite holds locks in this process: they must not be closed.

POSIX drops all locks that a process has on a file when the process closes any descriptor of that file: closing ours
would silently unlock SQLite's connections (https://sqlite.org/howtocorrupt.html, 2.2). So one descriptor is opened
for each such file and kept for whoever reads it next, until the file has been deleted and nobody can open it any
more. On Windows locks belong to handles, and it can be closed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pharmabackup.mutex import Mutex

Identity = tuple[int, int]  # of a file: device and inode
FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


@dataclass(slots=True)
class _Descriptor:
    fd: int
    users: int = 0


_mutex = Mutex()  # guards _known, and file positions where there is no preadv
_known: dict[Identity, _Descriptor] = {}


def identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


@contextmanager
def shared(path: str) -> Iterator[int]:
    """A descriptor of the file to read at given offsets, beside the ones SQLite has. OSError."""
    with _mutex.own:
        for key, entry in list(_known.items()):
            if not entry.users and not os.fstat(entry.fd).st_nlink:
                os.close(_known.pop(key).fd)
        known = _known.get(identity(os.stat(path)))
        if known is None:
            fd = os.open(path, FLAGS)
            known = _known.setdefault(identity(os.fstat(fd)), _Descriptor(fd))
        known.users += 1
    try:
        yield known.fd
    finally:
        with _mutex.own:
            known.users -= 1
            if sys.platform == "win32" and not known.users:
                os.close(_known.pop(identity(os.fstat(known.fd))).fd)


@contextmanager
def borrowed(key: Identity) -> Iterator[int | None]:
    """The descriptor of this file if it is one of those; None: the file may be opened and closed."""
    with _mutex.own:
        known = _known.get(key)
        if known is not None:
            known.users += 1
    try:
        yield None if known is None else known.fd
    finally:
        if known is not None:
            with _mutex.own:
                known.users -= 1


def are_known() -> bool:
    """Whether there are any."""
    return bool(_known)


def is_known(key: Identity) -> bool:
    return key in _known


def close(fd: int) -> None:
    """Close a descriptor, unless its file has become one of those since it was opened, or may have."""
    with _mutex.own:
        try:
            closing = not _known or sys.platform == "win32" or identity(os.fstat(fd)) not in _known
        except OSError:  # one descriptor that stays open does less harm than locks that are dropped
            closing = False
        if closing:
            os.close(fd)


def pread_into(fd: int, buffer: memoryview, offset: int) -> int:
    """Up to len(buffer) bytes from `offset`; 0 at the end. Several threads may share the descriptor."""
    if sys.platform != "win32":
        return os.preadv(fd, [buffer], offset)
    else:
        with _mutex.own:
            os.lseek(fd, offset, os.SEEK_SET)
            data = os.read(fd, len(buffer))
        buffer[: len(data)] = data
        return len(data)
