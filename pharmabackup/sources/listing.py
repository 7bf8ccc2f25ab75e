"""Listing one folder, and looking at what lies in it: what entries are like is packed into one row each.

The rows are what the next run compares. A row that must not be taken as proof then is stored as zeros: of an entry
that changed less than two seconds before it was looked at, for instance, since it may change again within the same
tick of the file system's clock (Git calls that "racily clean"). A file system whose clock is behind this machine's by
more than that is not covered.

Of a large folder only the names are held, those of parts to come joined; rows are made part by part.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from operator import eq
from time import time_ns

from pharmabackup.sources.base import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    FIFO,
    FILE,
    FOLDER,
    LINK,
    SOCKET,
    UNREAD,
    Sink,
)
from pharmabackup.sources.parts import part_end
from pharmabackup.sources.rows import NEVER, ROW, UNSEEN, clamped_row
from pharmabackup.sources.trouble import GONE, unreadable, unreadable_folder, vanished

BLOB_VERSION = b"\1"  # of how names and rows are joined
RACY = 2_000_000_000  # ns; FAT's clock ticks every two seconds

WINDOWS = sys.platform == "win32"
ENCODING, ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
NAME_SURROGATE = 0x20000000  # a Windows reparse point that leads elsewhere: link, junction, mounted volume

_KINDS = bytearray([UNREAD]) * 256  # by the file type in st_mode
for _type, _kind in (
    (stat.S_IFREG, FILE),
    (stat.S_IFDIR, FOLDER),
    (stat.S_IFLNK, LINK),
    (stat.S_IFIFO, FIFO),
    (stat.S_IFSOCK, SOCKET),
    (stat.S_IFCHR, CHARACTER_DEVICE),
    (stat.S_IFBLK, BLOCK_DEVICE),
):
    _KINDS[_type >> 12] = _kind
KINDS = bytes(_KINDS)


class RootUnreadable(Exception):
    """The whole tree cannot be read."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Listed:
    """A folder and what lies in it, or a part of that."""

    __slots__ = ("device", "fd", "folders", "linked", "names", "path", "rest", "root", "rows", "unsure", "whole")

    def __init__(self, root: str, path: bytes) -> None:
        self.root = root
        self.path = path  # from the root
        self.fd = -1  # open until the walk goes on; -1: it has to be reached by its path
        self.device = 0
        self.names: list[bytes] = []  # sorted
        self.rest: list[bytes] = []  # the names of each part to come, joined; the next part last
        self.rows: list[bytes] = []
        self.folders: list[bytes] = []  # names to go into
        self.unsure: list[int] = []  # entries whose rows must not be taken as proof
        self.linked = False  # a file in it has several names
        self.whole = True  # all of the folder was listed

    def place(self, name: bytes = b"") -> str:
        """The whole path of what lies in it, or its own."""
        below = b"/".join(filter(None, (self.path, name))).decode(ENCODING, ERRORS)
        return os.path.join(self.root, below.replace("/", os.sep) if WINDOWS else below) if below else self.root

    def divide(self, names: list[bytes]) -> None:
        """These are all of the folder's names. The first part's stay, the others are freed as they are joined."""
        ends = [part_end(names, 0)]
        while ends[-1] < len(names):
            ends.append(part_end(names, ends[-1]))
        for start in reversed(ends[:-1]):
            self.rest.append(b"\0".join(names[start:]))
            del names[start:]
        self.names = names

    def next_part(self) -> Listed:
        """What comes after this part. Both share `rest`, from which it is taken, and the descriptor."""
        part = Listed(self.root, self.path)
        part.fd, part.device, part.whole, part.rest = self.fd, self.device, self.whole, self.rest
        part.names = part.rest.pop().split(b"\0")
        return part

    def blob(self) -> bytes:
        """The rows as they are, to be compared."""
        return _joined(self.names, self.rows)

    def proof(self, gone: Collection[int]) -> bytes:
        """The rows for the next run, without those of entries that are gone."""
        if not self.whole:
            return b""
        for i in self.unsure:
            self.rows[i] = NEVER
        if not gone:
            return self.blob()
        left = [i for i in range(len(self.names)) if i not in gone]
        return _joined([self.names[i] for i in left], [self.rows[i] for i in left])


def _joined(names: list[bytes], rows: list[bytes]) -> bytes:
    return b"".join((BLOB_VERSION, b"\0".join(names), *rows))


def list_names(listed: Listed, wanted: Callable[[os.DirEntry[str]], bool] | None, sink: Sink) -> list[bytes]:
    """The names in a folder that are wanted, sorted. OSError when nothing of it can be listed."""
    names: list[bytes] = []
    with os.scandir(listed.fd if listed.fd >= 0 else listed.place()) as entries:
        try:
            for entry in entries if wanted is None else filter(wanted, entries):
                names.append(entry.name.encode(ENCODING, ERRORS))
        except OSError as error:
            listed.whole = False
            unreadable_folder(sink, listed.path, error)
    names.sort()
    if any(map(eq, names, islice(names, 1, None))):  # the system may tell one twice when the folder changes meanwhile
        names = sorted(set(names))
    return names


def look(listed: Listed, sink: Sink, root: bytes = b".") -> None:
    """Make the rows of what was listed. What is gone is left out. RootUnreadable: it is the one of that name."""
    recent = time_ns() - RACY
    fd, lstat, prefix = listed.fd, os.lstat, listed.path + b"/" if listed.path else b""
    add_row, pack, lost = listed.rows.append, ROW.pack, set[bytes]()
    for name in listed.names:
        try:
            status = lstat(name, dir_fd=fd) if fd >= 0 and name != b"." else _look_otherwise(listed, name)
        except OSError as error:
            if name == root:  # nothing is where the root is not
                raise RootUnreadable(error) from error
            if error.errno in GONE:
                vanished(sink, prefix + name)
                lost.add(name)
            else:
                unreadable(sink, prefix + name, error)
                listed.unsure.append(len(listed.rows))
                add_row(UNSEEN)
            continue
        mode, inode, _, links, uid, gid, size, _, _, _ = status
        changed = status.st_ctime_ns
        if mode & 0o170000 == 0o040000:
            if name != b".":
                listed.folders.append(name)
        elif links > 1:
            listed.linked = True
        if changed >= recent or (WINDOWS and status.st_mtime_ns >= recent):
            listed.unsure.append(len(listed.rows))
        try:
            row = pack(mode, uid, gid, size, status.st_mtime_ns, changed, inode, links)
        except struct.error:  # a time that no i64 holds
            row = clamped_row(status)
            listed.unsure.append(len(listed.rows))
        add_row(row)
    if lost:
        listed.names = [name for name in listed.names if name not in lost]


def _look_otherwise(listed: Listed, name: bytes) -> os.stat_result:
    """The root itself, which need not be searchable for that, or what has to be reached by its path."""
    if name == b".":
        status = os.stat(listed.fd if listed.fd >= 0 else listed.root)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    else:
        status = os.lstat(listed.place(name))
    if not WINDOWS:
        return status
    mode, inode = status.st_mode, status.st_ino & 0xFFFF_FFFF_FFFF_FFFF
    if getattr(status, "st_reparse_tag", 0) & NAME_SURROGATE:
        mode = stat.S_IFLNK | stat.S_IMODE(mode)
    fields = {"st_mtime_ns": status.st_mtime_ns, "st_ctime_ns": status.st_ctime_ns}
    return os.stat_result((mode, inode, *status[2:]), fields)


def list_file(path: str, sink: Sink) -> Iterator[Listed]:
    """One file, as if it were alone in a folder; its path leads through no link. RootUnreadable."""
    folder, name = os.path.split(path)
    listed = Listed(folder, b"")
    listed.names.append(name.encode(ENCODING, ERRORS))
    try:
        listed.device = os.stat(path).st_dev
    except OSError as error:
        raise RootUnreadable(error) from error
    look(listed, sink, root=listed.names[0])
    if not stat.S_ISREG(ROW.unpack(listed.rows[0])[0]):
        raise RootUnreadable(FileNotFoundError(errno.ENOENT, "replaced"))
    yield listed
