"""What operating systems and file systems differ in: locks, syncing, publishing without replacing.

A file becomes an object in one step that refuses to replace, so that of several writers one wins. The ways to
do that, in the order in which they are tried:

1. **A hard link** to the new name (not on Windows, where the rename is enough). All Linux and macOS disks.
2. **A rename that refuses**: `renameat2` on Linux, `renamex_np` on macOS, every rename on Windows. FAT, exFAT, SMB.
3. **A rename under a lock**, where the driver offers neither, as FUSE drivers for FAT and exFAT do: whoever
   holds the lock of one file beside the uploads looks whether the name is free and renames. The rename is still
   one step, so the object is whole or absent, and the system frees the lock when its holder dies. It keeps
   processes of one computer apart, not two computers that share the folder.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from pharmabackup.errors import StorageFailed, Unsupported

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

RENAME_NOREPLACE = 1  # linux/fs.h
RENAME_EXCL = 4  # sys/stdio.h of macOS
AT_FDCWD = -100  # linux/fcntl.h
SHARING_VIOLATIONS = (32, 33)  # winerror.h: another program has the file open just now

Way = Callable[[str, str], None]
"""Gives a written file its final name. FileExistsError when that name is taken."""


def codes(*names: str) -> frozenset[int]:
    """These error numbers, as far as this platform has them."""
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


FULL = codes("ENOSPC", "EDQUOT")
DENIED = codes("EACCES", "EPERM", "EROFS")
TRANSIENT = codes(
    "EAGAIN", "EBUSY", "EMFILE", "ENFILE", "ESTALE", "ETIMEDOUT", "ENOTCONN", "ECONNRESET", "ECONNABORTED",
    "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH",
)  # fmt: skip
NOT_OFFERED = codes("EPERM", "EACCES", "EINVAL", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOTTY", "EMLINK")
NO_LOCKS = codes("EINVAL", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOLCK")
NO_FOLDER_SYNC = codes("EINVAL", "ENOSYS", "ENOTSUP", "EOPNOTSUPP")
MUCH = 256 << 20  # bytes free: it is not for want of them that an object finds no place
LOCK_HELD = codes("EAGAIN", "EWOULDBLOCK", "EACCES", "EDEADLK")


def failed(error: OSError, location: str, *, writing: bool = False) -> StorageFailed:
    """`error` in words that say what to do. `writing`: to a file that may be written to for certain."""
    busy = getattr(error, "winerror", None) in SHARING_VIOLATIONS
    if error.errno == errno.ENOSPC and _free(location) > MUCH:
        return StorageFailed(
            f"{location} has space left and takes no more files.",
            kind="full",
            remedy="FAT32 ends at some 10,000 objects in a folder: copy the repository to a disk with exFAT or NTFS.",
            location=location,
        )
    if error.errno in FULL or (writing and _free(location) == 0):
        return StorageFailed(
            f"{location} is full.",
            kind="full",
            remedy="Free some space there or use a larger disk; what was stored before is unharmed.",
            location=location,
        )
    if error.errno == errno.EROFS:
        return StorageFailed(
            f"{location} is write-protected.",
            kind="storage-denied",
            remedy="Take the write protection off, or use another disk.",
            location=location,
        )
    if error.errno in DENIED and not busy:
        return StorageFailed(
            f"The system refused access to {location}.",
            kind="storage-denied",
            remedy="Let the user that runs this read and write that folder.",
            location=location,
        )
    return StorageFailed(
        f"{location} cannot be used: {error.strerror or error}.",
        kind="unreachable",
        remedy="Check that the disk or share is connected and healthy, then run it again.",
        retryable=busy or error.errno in TRANSIENT,
        location=location,
    )


def _free(path: str) -> int:
    """Bytes; 1 where it cannot be told. Some drivers say something else when full: one for FAT "not permitted"."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return 1


def is_disk(path: str) -> bool:
    """Whether `path` surely lies on a disk of this computer, so that its locks show every process that uses it."""
    return sys.platform == "linux" and os.major(os.stat(path).st_dev) != 0


def try_lock(file: int) -> bool:
    """Lock an open file unless another holds it; `close_locked` closes it. The system frees the lock when its holder
    dies. OSError where the file system has no locks.
    """
    _locked.add(file)  # before: who forks in between lets go of a file that is not locked
    try:
        if sys.platform == "win32":
            os.lseek(file, 0, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        _locked.discard(file)
        if error.errno in LOCK_HELD:
            return False
        raise
    return True


def close_locked(file: int) -> None:
    """Free the lock and close. Whether it was locked does not matter."""
    if sys.platform != "win32":
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)
    _locked.discard(file)
    os.close(file)


_locked: set[int] = set()  # files


def _forked() -> None:
    """A child has its parent's files open, and would hold their locks on when that is killed."""
    if _locked:
        nothing = os.open(os.devnull, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
        for file in _locked:
            os.dup2(nothing, file, inheritable=False)  # not closed: whoever was at it in the parent closes it here
        os.close(nothing)
        _locked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def sync(file: int) -> None:
    """Have the disk itself hold what was written."""
    if sys.platform == "darwin":
        try:
            fcntl.fcntl(file, fcntl.F_FULLFSYNC)  # fsync leaves it in the drive's own cache there
            return
        except OSError:
            pass  # network shares only know fsync
    os.fsync(file)


def drop_from_memory(file: int) -> None:
    """Have the system forget what it keeps of a synced file in memory, where it can be asked to (Linux)."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def sync_folder(path: str) -> None:
    """Have the disk itself hold the names in a folder.

    Windows cannot sync a folder, nor can some drivers for shares: there is nothing more to be done, then.
    """
    if sys.platform == "win32":
        return
    file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
    finally:
        os.close(file)


@contextmanager
def entries_of(path: str) -> Iterator[Iterator[os.DirEntry[str]]]:
    """What a folder holds. Through its descriptor, which Windows has not, to look at each takes a fifth less time."""
    if sys.platform == "win32":
        with os.scandir(path) as entries:
            yield entries
        return
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with os.scandir(folder) as entries:
            yield entries
    finally:
        os.close(folder)


def make_folders(path: str) -> None:
    """Make the folder and those above it, durably."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    except FileNotFoundError:
        above = os.path.dirname(path)
        if above == path:
            raise
        make_folders(above)
        os.mkdir(path, 0o700)
    sync_folder(os.path.dirname(path))


def link(temporary: str, target: str) -> None:
    try:
        os.link(temporary, target)
    except FileExistsError:
        # A network file system may have linked, lost the answer and asked again: then the winner is this one.
        if not _same(temporary, target):
            raise
    try:
        os.unlink(temporary)
    except OSError:
        pass  # the object is there; its first name is cleared up with the process's other remains


def rename(temporary: str, target: str) -> None:
    if sys.platform == "win32":
        os.rename(temporary, target)
        return
    import ctypes  # 2 ms that only those pay who need it

    system = ctypes.CDLL(None, use_errno=True)
    old, new = os.fsencode(temporary), os.fsencode(target)
    if hasattr(system, "renameat2"):
        result = system.renameat2(AT_FDCWD, old, AT_FDCWD, new, RENAME_NOREPLACE)
    elif hasattr(system, "renamex_np"):
        result = system.renamex_np(old, new, RENAME_EXCL)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), target)
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), target)


def rename_locked(temporary: str, target: str) -> None:
    if sys.platform == "win32":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), target)
    lock = os.path.join(os.path.dirname(temporary), "publish")
    file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    _locked.add(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            os.lstat(target)
        except FileNotFoundError:
            os.rename(temporary, target)
        else:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    finally:
        close_locked(file)


def find_way(scratch: str, location: str) -> Way:
    """The first way that works on this file system, by trying it with files named `scratch` and more."""
    for way in (rename,) if sys.platform == "win32" else (link, rename, rename_locked):
        source, target = f"{scratch}.from", f"{scratch}.to"
        os.close(os.open(source, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            way(source, target)
        except OSError as error:
            if error.errno not in NOT_OFFERED | NO_LOCKS:
                raise
            os.unlink(source)
        else:
            os.unlink(target)
            return way
    raise Unsupported(
        f"The file system of {location} can neither link, rename without replacing, nor lock.",
        kind="capability",
        remedy="Use a folder on another disk or share.",
    )


def _same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except FileNotFoundError:
        return False
