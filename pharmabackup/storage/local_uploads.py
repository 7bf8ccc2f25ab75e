"""Files on their way to becoming objects, and what to do with those that a killed process left behind."""

from __future__ import annotations

import hashlib
import itertools
import os
import platform
import secrets
import weakref
from collections.abc import Callable

from pharmabackup.errors import StorageFailed
from pharmabackup.storage.base import Buffer, ObjectInfo, Upload, checked
from pharmabackup.storage.local_os import close_locked, failed, is_disk, sync, try_lock
from pharmabackup.storage.pace import Pace

UPLOADS = ".uploads"  # no object's name begins with a dot, so that no listing shows it
LOCK = ".lock"
NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
HOST = hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()

Place = Callable[[str, str], None]


class Workspace:
    """Where one process writes what is not an object yet: files in `.uploads/` named after a lock that it holds.

    Whoever gets that lock knows, whatever the clocks say, that its owner is dead, and only then removes its files.
    A share may not carry locks from one computer to another, so that there each clears up only after itself; on
    a disk, which one computer has at a time, everyone's remains go. Where nothing can be locked nothing is removed.
    """

    def __init__(self, root: str) -> None:
        self.folder = os.path.join(root, UPLOADS)
        try:
            os.mkdir(self.folder, 0o700)
        except FileExistsError:
            pass
        self.process = os.getpid()
        self._numbers = itertools.count()
        self.owner, lock = _claim(self.folder)
        weakref.finalize(self, _release, self.folder, self.owner, lock, self.process)
        clear(self.folder, everyone=is_disk(root))

    def fresh(self) -> str:
        """The path of a file that is not there yet."""
        return os.path.join(self.folder, f"{self.owner}.{next(self._numbers)}")


def _claim(folder: str) -> tuple[str, int | None]:
    while True:
        owner = f"{HOST}-{secrets.token_hex(8)}"
        path = os.path.join(folder, owner + LOCK)
        lock = os.open(path, NEW_FILE, 0o600)
        try:
            # Someone who clears up may have come between the two steps: then this lock, or its file, is lost.
            if try_lock(lock) and os.path.exists(path):
                return owner, lock
        except OSError:  # no locks here: without its file nobody takes this owner for dead
            close_locked(lock)
            os.unlink(path)
            return owner, None
        close_locked(lock)


def _release(folder: str, owner: str, lock: int | None, process: int) -> None:
    if lock is None:
        return
    close_locked(lock)  # in a forked child it is no lock any more
    if os.getpid() == process:
        _remove(os.path.join(folder, owner + LOCK))


def clear(folder: str, *, everyone: bool) -> None:
    """Remove what dead processes left. A courtesy: whatever goes wrong here is no reason not to back up."""
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        owner = name.removesuffix(LOCK)
        if owner != name and (everyone or owner.startswith(HOST)) and _is_dead(os.path.join(folder, name)):
            for left in names:
                if left.startswith(f"{owner}.") and left != name:
                    _remove(os.path.join(folder, left))
            _remove(os.path.join(folder, name))  # last: without it nobody would clear up the others


def _is_dead(path: str) -> bool:
    try:
        lock = os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return False
    try:
        return try_lock(lock)
    except OSError:
        return False
    finally:
        close_locked(lock)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


class LocalUpload(Upload):
    """A file of this process's workspace. `place` gives it its final name, durably."""

    def __init__(self, workspace: Workspace, location: str, place: Place, pace: Pace | None) -> None:
        self._workspace = workspace  # keeps its lock while this is under way, even past the storage's close
        self._location = location
        self._place = place
        self._pace = pace
        self._path = workspace.fresh()
        self._size = 0
        self._file: int | None = os.open(self._path, NEW_FILE, 0o600)

    def write(self, data: Buffer) -> None:
        assert self._file is not None, "published or discarded"
        rest = memoryview(data).cast("B")
        self._size += len(rest)
        while rest:
            allowed = len(rest) if self._pace is None else self._pace.take(len(rest))
            try:
                rest = rest[os.write(self._file, rest[:allowed]) :]
            except OSError as error:
                raise failed(error, self._location, writing=True) from error

    def publish(self, name: str) -> ObjectInfo:
        checked(name)
        assert self._file is not None, "published or discarded"
        try:
            sync(self._file)
            self._close()  # Windows renames no open file
            status = os.stat(self._path)
            if status.st_size != self._size:
                raise StorageFailed(
                    f"{self._location} holds {status.st_size} of {self._size} bytes that it said it had taken.",
                    kind="lost-write",
                    remedy="Do not trust this disk: check it, and use another one.",
                    location=self._location,
                )
            self._place(self._path, name)
        except OSError as error:
            raise failed(error, self._location) from error
        self._path = ""
        return ObjectInfo(name=name, size=status.st_size, modified=status.st_mtime_ns)

    def discard(self) -> None:
        try:
            self._close()
        except OSError:
            pass  # what it could not write is not wanted any more
        if self._path:
            _remove(self._path)
            self._path = ""

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)
