"""Walking a tree of folders: what lies in it, in the order of a manifest, without reading any file.

A folder is listed and its entries are looked at (lstat) in one go; what they are like is packed into one row each,
which is what the next run compares. On POSIX everything is reached from its folder's descriptor, so that a folder
that is replaced by a link meanwhile leads nowhere else, and no path is too long for the system; elsewhere by path.

A row that must not be taken as proof next time is stored as zeros: of an entry that changed less than two seconds
before it was looked at, for instance, since it may change again within the same tick of the file system's clock
(Git calls that "racily clean"). A file system whose clock is behind this machine's by more than that is not covered.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from time import time_ns

from pharmabackup.patterns import Matcher
from pharmabackup.sources.base import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    FIFO,
    FILE,
    FOLDER,
    LINK,
    NAME_MAX,
    PATH_MAX,
    SOCKET,
    UNREAD,
    Sink,
)
from pharmabackup.sources.descriptors import Identity, identity

ROW = struct.Struct("<IIIQqqQI")  # st_mode, uid, gid, size, mtime, ctime, inode, links
ROW_SIZE = ROW.size
NEVER = bytes(ROW_SIZE)  # a row that equals no other: no file has the mode 0
BLOB_VERSION = b"\1"  # of how names and rows are joined
RACY = 2_000_000_000  # ns; FAT's clock ticks every two seconds
TIME_MAX = (1 << 63) - 1
FOLDERS_OPEN = 32  # of those that lead to the current one
DEEPEST = PATH_MAX - NAME_MAX - 1  # bytes of a folder's path, so that what lies in it can be named

WINDOWS = sys.platform == "win32"
BY_DESCRIPTOR = os.scandir in os.supports_fd and os.open in os.supports_dir_fd
ENCODING, ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
FOLDER_FLAGS = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # removed, or replaced by a file or a link
NAME_SURROGATE = 0x20000000  # a Windows reparse point that leads elsewhere: link, junction, mounted volume

KINDS = bytearray([UNREAD]) * 16  # by the file type in st_mode
for _type, _kind in (
    (stat.S_IFREG, FILE),
    (stat.S_IFDIR, FOLDER),
    (stat.S_IFLNK, LINK),
    (stat.S_IFIFO, FIFO),
    (stat.S_IFSOCK, SOCKET),
    (stat.S_IFCHR, CHARACTER_DEVICE),
    (stat.S_IFBLK, BLOCK_DEVICE),
):
    KINDS[_type >> 12] = _kind


class RootUnreadable(Exception):
    """The whole tree cannot be read."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Listed:
    """A folder and what lies in it."""

    __slots__ = ("device", "fd", "folders", "linked", "names", "path", "root", "rows", "unsure", "whole")

    def __init__(self, root: str, path: bytes) -> None:
        self.root = root
        self.path = path  # from the root
        self.fd = -1  # open until the walk goes on; -1: it has to be reached by its path
        self.device = 0
        self.names: list[bytes] = []  # sorted
        self.rows: list[bytes] = []
        self.folders: list[bytes] = []  # names to go into
        self.unsure: list[int] = []  # entries whose rows must not be taken as proof
        self.linked = False  # a file in it has several names
        self.whole = True  # all of it was listed

    def place(self, name: bytes = b"") -> str:
        """The whole path of what lies in it, or its own."""
        below = b"/".join(filter(None, (self.path, name))).decode(ENCODING, ERRORS)
        return os.path.join(self.root, below.replace("/", os.sep) if WINDOWS else below) if below else self.root

    def blob(self) -> bytes:
        """The rows as they are, to be compared."""
        return b"".join((BLOB_VERSION, b"\0".join(self.names), *self.rows))

    def proof(self) -> bytes:
        """The rows for the next run."""
        if not self.whole:
            return b""
        for i in self.unsure:
            self.rows[i] = NEVER
        return self.blob()


@dataclass(slots=True)
class _Level:
    """A folder on the way to the current one."""

    path: bytes  # kept of the current one only: paths may be long, and many
    fd: int
    device: int
    left: list[bytes]  # folders in it to go into, the next one last
    identity: Identity | None = None  # when its descriptor had to be closed


def _look_closely(entry: os.DirEntry[str]) -> os.stat_result:
    """On Windows: folders keep copies of sizes and times that lag behind while a file is open."""
    status = os.lstat(entry.path)
    mode, inode = status.st_mode, status.st_ino & 0xFFFF_FFFF_FFFF_FFFF
    if getattr(status, "st_reparse_tag", 0) & NAME_SURROGATE:
        mode = stat.S_IFLNK | stat.S_IMODE(mode)
    fields = {"st_mtime_ns": status.st_mtime_ns, "st_ctime_ns": status.st_ctime_ns}
    return os.stat_result((mode, inode, *status[2:]), fields)


class Walk:
    """A tree's folders, depth first. What cannot be listed is told to the sink."""

    def __init__(
        self,
        root: str,
        sink: Sink,
        *,
        excluded: Matcher | None,
        included: Matcher | None,
        leads_on: Matcher | None,
        stay: bool,
    ) -> None:
        self._root = root
        self._sink = sink
        self._excluded = excluded
        self._included = included
        self._leads_on = leads_on
        self._stay = stay

    def folders(self) -> Iterator[Listed]:
        """Each folder before those in it, which are in the order of their names' bytes. RootUnreadable."""
        levels: list[_Level] = []
        try:
            root = self._open_root()
            levels.append(_Level(b"", root.fd, root.device, root.folders[::-1]))
            yield root
            while levels:
                level = levels[-1]
                if not level.left:
                    self._leave(levels)
                    continue
                self._sink.check()
                listed = self._enter(level, level.left.pop())
                level.path = b""
                levels.append(_Level(listed.path, listed.fd, listed.device, listed.folders[::-1]))
                yield listed
                if len(levels) > FOLDERS_OPEN:
                    self._close(levels[-FOLDERS_OPEN - 1])
        finally:
            for level in levels:
                if level.fd >= 0:
                    os.close(level.fd)

    def _open_root(self) -> Listed:
        root = Listed(self._root, b"")
        try:
            if BY_DESCRIPTOR:
                root.fd = os.open(self._root, FOLDER_FLAGS)
            status = os.stat(root.fd if BY_DESCRIPTOR else self._root)
            root.device = status.st_dev
            self._list(root, status)
        except OSError as error:
            if root.fd >= 0:
                os.close(root.fd)
            raise RootUnreadable(error) from error
        return root

    def _enter(self, parent: _Level, name: bytes) -> Listed:
        """Open and list a folder. One that cannot be has a record all the same, and a finding."""
        listed = Listed(self._root, parent.path + b"/" + name if parent.path else name)
        try:
            if not BY_DESCRIPTOR:
                status = os.lstat(listed.place())
            elif parent.fd < 0:
                raise FileNotFoundError(errno.ENOENT, "moved")
            else:
                decoded = name.decode(ENCODING, ERRORS)
                listed.fd = os.open(decoded, FOLDER_FLAGS | NO_FOLLOW, dir_fd=parent.fd)
                status = os.fstat(listed.fd)
            listed.device = status.st_dev
            if status.st_dev != parent.device and self._stay:
                listed.whole = False
                self._sink.finding(
                    "mount-not-entered",
                    listed.path,
                    "Another file system is mounted here; what lies in it was not read.",
                    "Back it up as a dataset of its own, or pass one_file_system=False.",
                    severity="info",
                )
            else:
                self._list(listed, status)
        except OSError as error:
            listed.whole = False
            if error.errno in GONE:
                vanished(self._sink, listed.path)
            else:
                self._unreadable_folder(listed.path, error)
        return listed

    def _list(self, listed: Listed, own: os.stat_result) -> None:
        """OSError when nothing of it can be listed. `own`: what the folder itself is like."""
        recent = time_ns() - RACY
        found: dict[bytes, os.DirEntry[str] | None] = {}
        with os.scandir(listed.fd if listed.fd >= 0 else listed.place()) as entries:
            try:
                for entry in entries:
                    found[entry.name.encode(ENCODING, ERRORS)] = entry
            except OSError as error:
                listed.whole = False
                self._unreadable_folder(listed.path, error)
        if self._excluded is not None or self._included is not None:
            self._select(listed.path, found)
        if not listed.path:
            found[b"."] = None
        prefix = listed.path + b"/" if listed.path else b""
        names = listed.names = sorted(found)
        add_row, pack, lost = listed.rows.append, ROW.pack, set[bytes]()
        for name, known in zip(names, map(found.pop, names), strict=True):
            try:
                if known is None:
                    status = own
                else:
                    status = _look_closely(known) if WINDOWS else known.stat(follow_symlinks=False)
            except OSError as error:
                if error.errno in GONE:
                    vanished(self._sink, prefix + name)
                    lost.add(name)
                else:
                    unreadable(self._sink, prefix + name, error)
                    add_row(NEVER)
                continue
            mode, inode, _, links, uid, gid, size, _, _, _ = status
            changed = status.st_ctime_ns
            if mode & 0o170000 == 0o040000:
                if known is not None:
                    listed.folders.append(name)
            elif links > 1:
                listed.linked = True
            if changed >= recent or (WINDOWS and status.st_mtime_ns >= recent):
                listed.unsure.append(len(listed.rows))
            try:
                row = pack(mode, uid, gid, size, status.st_mtime_ns, changed, inode, links)
            except struct.error:  # a time that no i64 holds
                row = _row(status, mode)
                listed.unsure.append(len(listed.rows))
            add_row(row)
        if lost:
            listed.names = [name for name in names if name not in lost]
        if len(prefix) + NAME_MAX > DEEPEST and listed.folders:
            listed.folders = [name for name in listed.folders if self._short_enough(prefix + name)]

    def _select(self, folder: bytes, found: dict[bytes, os.DirEntry[str] | None]) -> None:
        """Leave out what the patterns say. A folder that may hold something included stays."""
        excluded, included, leads_on = self._excluded, self._included, self._leads_on
        prefix = folder + b"/" if folder else b""
        for name, entry in list(found.items()):
            path = prefix + name
            if excluded is not None and excluded(path):
                del found[name]
            elif included is not None and not included(path):
                assert leads_on is not None and entry is not None
                if not (leads_on(path) and _is_folder(entry)):
                    del found[name]

    def _short_enough(self, path: bytes) -> bool:
        if len(path) <= DEEPEST:
            return True
        self._sink.finding(
            "folder-unreadable",
            path[:PATH_MAX],
            "The folder lies too deep: its path is longer than 60,000 bytes.",
            "Back up a folder further down as a dataset of its own.",
        )
        return False

    # ------------------------------------------------------------ descriptors of the folders above

    def _leave(self, levels: list[_Level]) -> None:
        """Done with a folder: back to the one above, through it if that one had to be closed."""
        done = levels.pop()
        if levels:
            levels[-1].path = done.path.rpartition(b"/")[0]
            if levels[-1].identity is not None:
                self._reopen(levels[-1], done.fd)
        if done.fd >= 0:
            os.close(done.fd)

    def _close(self, level: _Level) -> None:
        if level.fd >= 0:
            level.identity = identity(os.fstat(level.fd))
            os.close(level.fd)
            level.fd = -1

    def _reopen(self, level: _Level, below: int) -> None:
        """When folders were moved meanwhile, ".." is another one: those left in this one count as vanished."""
        with suppress(OSError):
            fd = os.open("..", FOLDER_FLAGS, dir_fd=below)
            if identity(os.fstat(fd)) == level.identity:
                level.fd, level.identity = fd, None
            else:
                os.close(fd)

    def _unreadable_folder(self, path: bytes, error: OSError) -> None:
        self._sink.finding(
            "folder-unreadable",
            path,
            f"The folder could not be read ({reason(error)}), or not all of it.",
            _remedy(error),
        )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


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


def clamped(time: int) -> int:
    """A time in ns as near as i64 comes: from 1677 to 2262. Some file systems hold more."""
    return max(-TIME_MAX, min(TIME_MAX, time))


def list_file(path: str) -> Iterator[Listed]:
    """One file, as if it were alone in a folder. RootUnreadable."""
    recent = time_ns() - RACY
    folder, name = os.path.split(path)
    try:
        status = os.stat(path)
    except OSError as error:
        raise RootUnreadable(error) from error
    listed = Listed(folder, b"")
    listed.device = status.st_dev
    listed.names.append(name.encode(ENCODING, ERRORS))
    listed.rows.append(_row(status, status.st_mode))
    listed.linked = status.st_nlink > 1
    if max(status.st_ctime_ns, status.st_mtime_ns if WINDOWS else 0) >= recent:
        listed.unsure.append(0)
    yield listed


def _row(status: os.stat_result, mode: int) -> bytes:
    times = clamped(status.st_mtime_ns), clamped(status.st_ctime_ns)
    return ROW.pack(mode, status.st_uid, status.st_gid, status.st_size, *times, status.st_ino, status.st_nlink)
