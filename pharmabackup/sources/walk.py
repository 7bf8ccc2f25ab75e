"""Walking a tree of folders: what lies in it, in the order of a manifest, without reading any file.

A folder's names are listed, and its entries are looked at (lstat) in one go, or part by part when it is large. On
POSIX everything is reached from its folder's descriptor, so that a folder that is replaced by a link meanwhile leads
nowhere else, and no path is too long for the system; elsewhere by path.
"""

from __future__ import annotations

import errno
import os
from bisect import insort
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from pharmabackup.patterns import Matcher
from pharmabackup.sources.base import NAME_MAX, PATH_MAX, Sink
from pharmabackup.sources.descriptors import Identity, identity
from pharmabackup.sources.listing import ENCODING, ERRORS, Listed, RootUnreadable, list_names, look
from pharmabackup.sources.trouble import GONE, unreadable_folder, vanished

FOLDERS_OPEN = 32  # of those that lead to the current one
DEEPEST = PATH_MAX - NAME_MAX - 1  # bytes of a folder's path, so that what lies in it can be named

BY_DESCRIPTOR = os.scandir in os.supports_fd and {os.open, os.stat} <= os.supports_dir_fd
FOLDER_FLAGS = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)


@dataclass(slots=True)
class _Level:
    """A folder on the way to the current one."""

    path: bytes  # kept of the current one only: paths may be long, and many
    fd: int
    device: int
    left: list[bytes]  # folders in it to go into, the next one last
    identity: Identity | None = None  # when its descriptor had to be closed


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
        """Each folder, part by part, before those in it, which are in the order of their names' bytes.

        RootUnreadable.
        """
        levels: list[_Level] = []
        try:
            listed = self._open_root()
            while True:
                level = _Level(listed.path, listed.fd, listed.device, listed.folders)
                levels.append(level)
                yield listed
                while listed.rest:
                    self._sink.check()
                    listed = listed.next_part()
                    look(listed, self._sink)
                    level.left += listed.folders
                    if listed.names:
                        yield listed
                level.left.reverse()
                if len(levels) > FOLDERS_OPEN:
                    self._close(levels[-FOLDERS_OPEN - 1])
                while not level.left:
                    self._leave(levels)
                    if not levels:
                        return
                    level = levels[-1]
                self._sink.check()
                listed = self._enter(level, level.left.pop())
                level.path = b""
        finally:
            for level in levels:
                if level.fd >= 0:
                    os.close(level.fd)

    def _open_root(self) -> Listed:
        root = Listed(self._root, b"")
        with _closed_on_error(root):
            try:
                if BY_DESCRIPTOR:
                    root.fd = os.open(self._root, FOLDER_FLAGS)
                root.device = os.stat(root.fd if BY_DESCRIPTOR else self._root).st_dev
                self._list(root)
            except OSError as error:
                raise RootUnreadable(error) from error
        return root

    def _enter(self, parent: _Level, name: bytes) -> Listed:
        """Open and list a folder. One that cannot be has a record all the same, and a finding."""
        listed = Listed(self._root, parent.path + b"/" + name if parent.path else name)
        if len(listed.path) > DEEPEST:
            listed.whole = False
            self._sink.finding(
                "folder-unreadable",
                listed.path,
                "The folder lies too deep: its path is longer than 60,000 bytes.",
                "Back up a folder further down as a dataset of its own.",
            )
            return listed
        with _closed_on_error(listed):
            try:
                self._open(listed, parent, name)
                if listed.device != parent.device and self._stay:
                    listed.whole = False
                    self._sink.finding(
                        "mount-not-entered",
                        listed.path,
                        "Another file system is mounted here; what lies in it was not read.",
                        "Back it up as a dataset of its own, or pass one_file_system=False.",
                        severity="info",
                    )
                else:
                    self._list(listed)
            except OSError as error:
                listed.whole = False
                if error.errno in GONE:
                    vanished(self._sink, listed.path)
                else:
                    unreadable_folder(self._sink, listed.path, error)
        return listed

    def _open(self, listed: Listed, parent: _Level, name: bytes) -> None:
        if not BY_DESCRIPTOR:
            status = os.lstat(listed.place())
        elif parent.fd < 0:
            raise FileNotFoundError(errno.ENOENT, "moved")
        else:
            listed.fd = os.open(name.decode(ENCODING, ERRORS), FOLDER_FLAGS | NO_FOLLOW, dir_fd=parent.fd)
            status = os.fstat(listed.fd)
        listed.device = status.st_dev

    def _list(self, listed: Listed) -> None:
        """List a folder and look at its first part. OSError when nothing of it can be listed."""
        every = self._excluded is None and self._included is None
        names = list_names(listed, None if every else partial(self._is_wanted, listed.path), self._sink)
        if not listed.path:
            insort(names, b".")
        listed.divide(names)
        look(listed, self._sink)

    def _is_wanted(self, folder: bytes, entry: os.DirEntry[str]) -> bool:
        """What the patterns say. A folder that may hold something included is wanted."""
        excluded, included, leads_on = self._excluded, self._included, self._leads_on
        name = entry.name.encode(ENCODING, ERRORS)
        path = folder + b"/" + name if folder else name
        if excluded is not None and excluded(path):
            return False
        if included is None or included(path):
            return True
        assert leads_on is not None
        return leads_on(path) and _is_folder(entry)

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


@contextmanager
def _closed_on_error(listed: Listed) -> Iterator[None]:
    """Nobody else knows of a folder that is being opened and listed."""
    try:
        yield
    except BaseException:
        if listed.fd >= 0:
            os.close(listed.fd)
        raise


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False
