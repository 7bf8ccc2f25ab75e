"""Objects as files in a folder: a disk of this computer, a removable one, a mounted share.

An object is written to a file in `.uploads/`, synced, given its name in one step that never replaces, and then
its folder is synced: whatever happens, it is whole or absent, and it stays when `publish` has returned. Whoever
finds a name taken syncs the folder too, since the winner may not have come to that yet and the loser goes on from
what it saw.

A disk that was unplugged is not an empty disk: a missing file is an answer only while the storage's folder is
still there, on the device where it was opened.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self
from zlib import crc32

from pharmabackup.errors import Conflict, Damaged, Error, InvalidInput, NotFound, StorageFailed
from pharmabackup.mutex import Mutex
from pharmabackup.storage import disks
from pharmabackup.storage.base import (
    READ_BACK,
    UNREADABLE,
    Capabilities,
    ObjectInfo,
    Storage,
    Upload,
    checked,
    is_name,
)
from pharmabackup.storage.local_os import (
    Way,
    drop_from_memory,
    entries_of,
    failed,
    find_way,
    is_disk,
    make_folders,
    rename_locked,
    sync,
    sync_folder,
)
from pharmabackup.storage.local_uploads import LocalUpload, Workspace

READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
DELETERS = 4
DELETE_TOGETHER = 64  # objects; for fewer, threads are not worth the while
DROP_FROM = 1 << 20  # bytes; smaller objects are read again soon
NOT_AN_OBJECT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class LocalStorage(Storage):
    """The folder `path`, which must be there: `create` makes it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.location = self._root = os.path.abspath(path)
        if os.path.exists(self._root) and not os.path.isdir(self._root):
            raise _a_file(self._root)
        self._device = self._look().st_dev
        self._way: Way | None = None
        self._workspace: Workspace | None = None
        self._folders = {""}  # known to be there for good; the root is its maker's care
        self._lock = Mutex()  # of the workspace
        self._trial = Mutex()  # of the way

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> Self:
        """The storage in a folder that may not be there yet. InvalidInput when there is a file instead."""
        root = os.path.abspath(path)
        try:
            make_folders(root)
        except NotADirectoryError as error:
            raise _a_file(root) from error
        except OSError as error:
            raise failed(error, root) from error
        return cls(root)

    def local_root(self) -> str:
        return self._root

    def eject(self) -> None:
        try:
            disks.eject(self._root)
        except OSError as error:
            raise failed(error, self.location) from error

    @property
    def capabilities(self) -> Capabilities:
        """As far as can be said without a probe. A storage that may not be written to promises nothing."""
        try:
            way = self._way_to_publish()
            exclusive = way is not rename_locked or is_disk(self._root)
        except OSError as error:
            raise failed(error, self.location) from error
        except StorageFailed as error:
            if error.kind != "storage-denied":
                raise
            exclusive = False
        return Capabilities(exclusive_create=exclusive, fresh_listing=True)

    def upload(self) -> Upload:
        try:
            try:
                return LocalUpload(self._own_workspace(), self.location, self._place, self.pace)
            except FileNotFoundError:  # someone cleared `.uploads` away
                self._look()
                self._workspace = None
                return LocalUpload(self._own_workspace(), self.location, self._place, self.pace)
        except OSError as error:
            raise failed(error, self.location) from error

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        # Opening again for each range costs 3 µs of 15 for 128 KiB. Files kept open would keep a disk from being
        # ejected, and on Windows an object from being deleted.
        try:
            file = os.open(self._path(name), READ)
            try:
                status = os.fstat(file)
                if not stat.S_ISREG(status.st_mode):
                    raise IsADirectoryError
                if status.st_size < offset + length:
                    raise self._damaged(name, f"ends before byte {offset + length}")
                data = _read_at(file, offset, length)
                while len(data) < length:
                    if not (more := _read_at(file, offset + len(data), length - len(data))):
                        raise self._damaged(name, f"ends before byte {offset + length}")
                    data += more
            finally:
                os.close(file)
        except OSError as error:
            raise self._why(error, name, reading=True) from error
        return data

    def get(self, name: str, *, limit: int) -> bytes:
        try:
            with open(self._path(name), "rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size > limit:
                    raise self._damaged(name, f"is larger than {limit} bytes")
                return file.readall()
        except OSError as error:
            raise self._why(error, name, reading=True) from error

    def info(self, name: str) -> ObjectInfo:
        try:
            status = os.stat(self._path(name))
            if not stat.S_ISREG(status.st_mode):
                raise IsADirectoryError
        except OSError as error:
            raise self._why(error, name) from error
        return ObjectInfo(name=name, size=status.st_size, modified=status.st_mtime_ns)

    def checksum(self, name: str) -> tuple[int, int]:
        # Asked of the disk itself where the system can be told to: what memory has is what was written, whatever
        # became of that on a stick that is smaller than it says. Afterwards the room is left to others.
        checksum = size = 0
        try:
            with open(self._path(name), "rb", buffering=0) as file:
                drop_from_memory(file.fileno())
                buffer = memoryview(bytearray(min(READ_BACK, os.fstat(file.fileno()).st_size + 1)))
                while got := file.readinto(buffer):
                    checksum = crc32(buffer[:got], checksum)
                    size += got
                if size >= DROP_FROM:
                    drop_from_memory(file.fileno())
        except OSError as error:
            raise self._why(error, name) from error
        return size, checksum

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._walk(checked(prefix) if prefix else "")

    def delete(self, names: Sequence[str]) -> Mapping[str, Error | None]:
        # A disk lets whoever deletes wait, a share even more: several wait together.
        paths = {name: self._path(name) for name in names}
        results: dict[str, Error | None] = {}
        with ThreadPoolExecutor(DELETERS, "pharmabackup-delete") as pool:  # of no threads until one is needed
            each = map if len(paths) < DELETE_TOGETHER else pool.map
            shares = [list(paths.items())[start::DELETERS] for start in range(DELETERS)]
            for share in each(self._unlink, shares):
                results.update(share)
            folders = {os.path.dirname(path) for name, path in paths.items() if results[name] is None}
            unsynced = dict(zip(folders, each(self._sync, folders), strict=True))
        return {name: results[name] or unsynced[os.path.dirname(path)] for name, path in paths.items()}

    def _sync(self, folder: str) -> Error | None:
        try:
            sync_folder(folder)
        except NOT_AN_OBJECT:
            pass  # a folder that is not there holds no name that could come back
        except OSError as error:
            return failed(error, self.location)
        return None

    def _unlink(self, paths: Sequence[tuple[str, str]]) -> dict[str, Error | None]:
        """Delete each; a result per name. Whoever asked syncs the folders."""
        results: dict[str, Error | None] = {}
        for name, path in paths:
            try:
                try:
                    os.unlink(path)
                except NOT_AN_OBJECT:
                    self._look()
                results[name] = None
            except OSError as error:
                results[name] = failed(error, self.location)
            except StorageFailed as error:
                results[name] = error
        return results

    def close(self) -> None:
        with self._lock.own:
            self._workspace = None
            self._folders = {""}

    def _path(self, name: str) -> str:
        return f"{self._root}/{checked(name)}"  # Windows takes both slashes

    def _look(self) -> os.stat_result:
        """StorageFailed when the storage's folder is not there, or lies on another device now."""
        try:
            status = os.stat(self._root)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._gone() from error
        except OSError as error:
            raise failed(error, self.location) from error
        if status.st_dev != getattr(self, "_device", status.st_dev):
            raise self._gone()
        return status

    def _gone(self) -> StorageFailed:
        return StorageFailed(
            f"{self.location} is not there.",
            kind="unreachable",
            remedy="Plug in its disk or connect its share, check the path, and open it again.",
            location=self.location,
        )

    def _no_folder(self, folder: str) -> StorageFailed:
        path = f"{self._root}/{folder}" if folder else self._root
        return StorageFailed(
            f"{path} is a file, or lies in one, and has to be a folder.",
            kind="unreachable",
            remedy="Find out who put that file there, move it away, and run check.",
            location=self.location,
        )

    def _why(self, error: OSError, name: str, *, reading: bool = False) -> Error:
        """NotFound when the storage is there and says so; Damaged when it is there, and that object cannot be read.

        StorageFailed for everything else: a disk or share that fails as a whole says nothing about one object.
        """
        no_object = isinstance(error, NOT_AN_OBJECT)
        if sys.platform == "win32":  # where a folder cannot be opened as a file, "access denied" is all it says
            no_object = no_object or os.path.isdir(self._path(name))
        if not no_object:
            unreadable = reading and error.errno == errno.EIO  # Windows tells programs nothing so precise
            return self._unreadable(name, error) if unreadable else failed(error, self.location)
        self._look()
        return NotFound(
            f"{self.location} has no object {name}.", kind="object", remedy="Run check to see what that means."
        )

    def _unreadable(self, name: str, error: OSError) -> Error:
        try:
            self._look()
            os.stat(self._path(name))
        except (Error, OSError):
            return failed(error, self.location)
        why = f"The object {name} in {self.location} cannot be read, says the disk, as if it were broken there."
        return Damaged(
            why, kind=UNREADABLE, remedy="Check the disk and its cable; run check, and repair from another location."
        )

    def _taken(self, name: str) -> Conflict:
        return Conflict(
            f"{self.location} has an object {name} already.",
            kind="object-exists",
            remedy="Look at what it is before going on.",
        )

    def _damaged(self, name: str, how: str) -> Damaged:
        return Damaged(
            f"The object {name} in {self.location} {how}.",
            kind="object",
            remedy="Run check to see what is affected, and restore from another location.",
        )

    def _walk(self, folder: str) -> Iterator[ObjectInfo]:
        """Depth first. What vanishes underway was deleted, if the storage itself is still there."""
        folders = [folder]
        try:
            while folders:
                folder = folders.pop()
                try:
                    with entries_of(f"{self._root}/{folder}" if folder else self._root) as entries:
                        for entry in entries:
                            name = f"{folder}/{entry.name}" if folder else entry.name
                            if not is_name(name):
                                continue  # not ours: no adapter can have written it
                            if entry.is_dir():
                                folders.append(name)
                            elif (found := self._status(entry)) and stat.S_ISREG(found.st_mode):
                                yield ObjectInfo(name=name, size=found.st_size, modified=found.st_mtime_ns)
                except FileNotFoundError:
                    pass
                except NotADirectoryError as error:
                    self._look()
                    raise self._no_folder(folder) from error
            self._look()
        except OSError as error:
            raise failed(error, self.location) from error

    def _status(self, entry: os.DirEntry[str]) -> os.stat_result | None:
        try:
            return entry.stat()
        except FileNotFoundError:
            return None

    def _own_workspace(self) -> Workspace:
        """This process's, a fork's too, made when first needed."""
        with self._lock.own:
            if self._workspace is None or self._workspace.process != os.getpid():
                self._look()  # or the folder of an unplugged disk would be made on the one underneath
                self._workspace = Workspace(self._root)
            return self._workspace

    def _way_to_publish(self) -> Way:
        with self._trial.own:
            if self._way is None:
                try:
                    self._way = find_way(self._own_workspace().fresh(), self.location)
                except OSError as error:
                    raise failed(error, self.location) from error
            return self._way

    def _place(self, temporary: str, name: str) -> None:
        """Give a written file its name, durably."""
        target = self._path(name)
        folder = name.rpartition("/")[0]
        way = self._way_to_publish()
        self._make_folder(folder)
        try:
            try:
                way(temporary, target)
            except FileNotFoundError:  # someone removed a folder that was known, or the whole storage
                self._look()
                self._folders = {""}
                self._make_folder(folder)
                way(temporary, target)
        except FileExistsError as error:
            sync_folder(os.path.dirname(target))
            raise self._taken(name) from error
        if sys.platform == "win32":  # a folder cannot be synced there; a flush of the file takes its new name along
            file = os.open(target, os.O_RDWR)
            try:
                sync(file)
            finally:
                os.close(file)
        sync_folder(os.path.dirname(target))

    def _make_folder(self, folder: str) -> None:
        """Once per folder. It is synced even if it was there: who made it may not have come to that yet."""
        if folder in self._folders:
            return
        self._look()
        above = folder.rpartition("/")[0]
        self._make_folder(above)
        path = f"{self._root}/{folder}"
        try:
            os.mkdir(path, 0o700)
        except FileExistsError as error:
            if not os.path.isdir(path):
                raise self._taken(folder) from error
        sync_folder(f"{self._root}/{above}")
        self._folders.add(folder)


def _read_at(file: int, offset: int, length: int) -> bytes:
    if sys.platform == "win32":
        os.lseek(file, offset, os.SEEK_SET)
        return os.read(file, length)
    return os.pread(file, length, offset)


def _a_file(path: str) -> InvalidInput:
    return InvalidInput(
        f"{path} is, or lies in, a file, and a repository is a folder.", remedy="Choose another path."
    )
