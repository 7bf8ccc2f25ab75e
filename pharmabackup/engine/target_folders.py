"""Folders that are restored into: opened one component after the other, never through a link.

Where the system has `dir_fd`, every name is used relative to the descriptor of its folder, which was itself opened
with O_NOFOLLOW: whoever puts a link in place of a folder meanwhile makes the restore fail there, not lead out.
Windows has no such calls. There, each component is looked at before it is entered, and must not be a reparse point.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
import threading
from pathlib import Path

from pharmabackup.engine.target_names import LocalNames, Rules

HANDLES_MAX = 256
SCRATCH = b".pharmabackup-restoring-"  # and 16 hex digits: a file that is not whole yet
SCRATCH_SIZE = len(SCRATCH) + 16
DEFAULT_ACL = "system.posix_acl_default"
BY_PATH = sys.platform == "win32" or os.open not in os.supports_dir_fd
NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
CLOEXEC = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOINHERIT", 0)
BINARY = getattr(os, "O_BINARY", 0)
READ = os.O_RDONLY | NOFOLLOW | CLOEXEC | BINARY | getattr(os, "O_NONBLOCK", 0)
WRITE = os.O_WRONLY | NOFOLLOW | CLOEXEC | BINARY
CREATE = WRITE | os.O_CREAT | os.O_EXCL
ENTER = os.O_RDONLY | NOFOLLOW | CLOEXEC | getattr(os, "O_DIRECTORY", 0)
LOOK = getattr(os, "O_PATH", 0)
REPARSE_POINT = 0x400  # FILE_ATTRIBUTE_REPARSE_POINT of winnt.h
NOT_A_NAME = frozenset(
    getattr(errno, name) for name in ("EINVAL", "EILSEQ", "ENOENT", "EACCES", "EPERM") if hasattr(errno, name)
)


class Folder:
    """An open folder. Its descriptor is closed when nobody uses it any more.

    A name in it is `prefix + name` with `dir_fd=fd`; by path, `fd` is None and `prefix` the folder's path.
    `strict`: what is made in it may get other modes, owners or attributes than those it was made with.
    """

    __slots__ = ("fd", "prefix", "strict")

    def __init__(self, fd: int | None, prefix: bytes, *, strict: bool) -> None:
        self.fd = fd
        self.prefix = prefix
        self.strict = strict

    def __del__(self) -> None:
        if self.fd is not None:
            os.close(self.fd)

    def look(self, name: bytes) -> os.stat_result | None:
        """Whatever has that name, itself and not what it leads to."""
        try:
            return os.stat(self.prefix + name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def replace(self, scratch: bytes, name: bytes) -> None:
        """Give `scratch` its final name in one step, whatever file or link has that name."""
        old, new = self.prefix + scratch, self.prefix + name
        try:
            os.replace(old, new, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except PermissionError:
            if self.fd is not None:
                raise
            os.chmod(new, stat.S_IWRITE)  # Windows does not replace a read-only file
            os.replace(old, new)

    def unlink(self, name: bytes) -> None:
        try:
            os.unlink(self.prefix + name, dir_fd=self.fd)
        except FileNotFoundError:
            pass

    def make_way(self, name: bytes, found: os.stat_result) -> None:
        """An empty folder goes where a file or link has to be; OSError ENOTEMPTY when it holds anything."""
        if is_folder(found):
            os.rmdir(self.prefix + name, dir_fd=self.fd)

    def sweep(self) -> None:
        """Remove what an interrupted restore left half-written."""
        with os.scandir(self.prefix or (self.fd if self.fd is not None else b".")) as listing:
            left = [name for name in (os.fsencode(entry.name) for entry in listing) if is_scratch(name)]
        for name in left:
            found = self.look(name)
            if found is not None and not is_folder(found):
                self.unlink(name)


class Folders:
    """The root, and the folders under it that were entered last. Thread-safe."""

    def __init__(self, root: Path, *, by_path: bool = BY_PATH) -> None:
        self._by_path = by_path
        self._lock = threading.Lock()
        self._cache: dict[bytes, Folder] = {}
        self.names: LocalNames | None = None
        if by_path:
            self.root = Folder(None, _long(root), strict=True)
        else:
            fd = os.open(root, ENTER)
            self.root = Folder(fd, b"", strict=_is_strict(fd))

    def get(self, path: bytes) -> Folder:
        """An existing folder. OSError when a component is none, or a link."""
        if not path:
            return self.root
        folder = self._cache.get(path)
        if folder is not None:
            return folder
        missing = []
        while path and folder is None:
            missing.append(path)
            path = path.rpartition(b"/")[0]
            folder = self._cache.get(path)
        folder = folder or self.root
        for step in reversed(missing):
            parent, _, name = step.rpartition(b"/")
            folder = self._enter(folder, self.local(parent, name))
            self._keep(step, folder)
        return folder

    def local(self, parent: bytes, name: bytes) -> bytes:
        return name if self.names is None else self.names.local(parent, name)

    def make(self, path: bytes) -> bool:
        """Make a folder, private for now; whatever is no folder gives way. True: it was there already."""
        parent, _, name = path.rpartition(b"/")
        above = self.get(parent)
        name = self.local(parent, name)
        try:
            os.mkdir(above.prefix + name, 0o700, dir_fd=above.fd)
        except FileExistsError:
            found = above.look(name)
            if found is None or not is_folder(found):
                above.unlink(name)
                os.mkdir(above.prefix + name, 0o700, dir_fd=above.fd)
                return False
            try:
                folder = self._enter(above, name)
            except PermissionError:
                self._unlock(above, name)
                folder = self._enter(above, name)
            if found.st_mode & 0o700 != 0o700 and folder.fd is not None:
                os.fchmod(folder.fd, stat.S_IMODE(found.st_mode) | 0o700)
            folder.sweep()
            self._keep(path, folder)
            return True
        return False

    def close(self) -> None:
        with self._lock:
            self._cache.clear()

    def _keep(self, path: bytes, folder: Folder) -> None:
        with self._lock:
            self._cache[path] = folder
            if len(self._cache) > HANDLES_MAX:
                del self._cache[next(iter(self._cache))]

    def _enter(self, above: Folder, name: bytes) -> Folder:
        if self._by_path:
            found = above.look(name)
            if found is None or not is_folder(found):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            return Folder(None, above.prefix + name + os.sep.encode(), strict=True)
        fd = os.open(name, ENTER, dir_fd=above.fd)
        return Folder(fd, b"", strict=_is_strict(fd))

    def _unlock(self, above: Folder, name: bytes) -> None:
        """A folder that its owner may not read can still be given to its owner."""
        if self._by_path or not LOOK:
            return
        fd = os.open(name, ENTER | LOOK, dir_fd=above.fd)
        try:
            os.chmod(f"/proc/self/fd/{fd}", 0o700)
        finally:
            os.close(fd)


def is_folder(found: os.stat_result) -> bool:
    """A folder itself: no link to one, and none of Windows' other ways to lead elsewhere."""
    return stat.S_ISDIR(found.st_mode) and not getattr(found, "st_file_attributes", 0) & REPARSE_POINT


def is_file(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) and not getattr(found, "st_file_attributes", 0) & REPARSE_POINT


def scratch_name() -> bytes:
    return SCRATCH + secrets.token_hex(8).encode()


def is_scratch(name: bytes) -> bool:
    tail = name[len(SCRATCH) :]
    return name.startswith(SCRATCH) and len(name) == SCRATCH_SIZE and not tail.strip(b"0123456789abcdef")


def probe(root: Folder) -> Rules:
    """Try what the file system does with names."""
    if sys.platform == "win32":
        return Rules(portable=True, folds=True)
    plain = scratch_name()
    _touch(root, plain)
    try:
        folds = root.look(plain.upper()) is not None
    finally:
        root.unlink(plain)
    return Rules(
        portable=not _takes(root, scratch_name() + b"?"),
        unicode=not _takes(root, scratch_name() + b"\xff"),
        folds=folds,
    )


def _takes(root: Folder, name: bytes) -> bool:
    try:
        _touch(root, name)
    except OSError as error:
        if error.errno in NOT_A_NAME:
            return False
        raise
    root.unlink(name)
    return True


def _touch(root: Folder, name: bytes) -> None:
    os.close(os.open(root.prefix + name, CREATE, 0o600, dir_fd=root.fd))


def _is_strict(fd: int) -> bool:
    """Default ACLs and the folder's group are passed on to what is made in it; outside Linux, the group always."""
    if sys.platform != "linux":
        return True
    found = os.fstat(fd)
    if found.st_mode & stat.S_ISGID or found.st_gid != os.getegid():
        return True
    try:
        return bool(os.getxattr(fd, DEFAULT_ACL))
    except OSError:
        return False


def _long(root: Path) -> bytes:
    """The folder's path as a prefix of names; on Windows in the form that may be longer than 260 characters."""
    path = os.path.abspath(root)
    if sys.platform == "win32":
        path = "\\\\?\\UNC\\" + path[2:] if path.startswith("\\\\") else "\\\\?\\" + path
    return os.fsencode(path).rstrip(os.sep.encode()) + os.sep.encode()
