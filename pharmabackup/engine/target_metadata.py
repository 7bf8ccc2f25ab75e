"""Owners, modes, times and extended attributes of restored files; and the findings about what was not possible.

The order matters: the owner first, because a change of it clears setuid bits and capabilities; attributes before
the mode, because they cannot be set any more on what is read-only; the times last.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from typing import NamedTuple

from pharmabackup.engine.target_folders import Folder
from pharmabackup.events import Finding, Severity
from pharmabackup.format.manifest import Entry

FINDINGS_MAX = 10_000  # of one dataset; what is not told one by one is still counted as missing
NOBODY = 0xFFFFFFFF  # to the system, "do not change"
SETUID_SETGID = stat.S_ISUID | stat.S_ISGID
OURS = ("user.", "system.posix_acl_", "security.capability")  # attributes that are removed if they are too many
FULL = frozenset(getattr(errno, name) for name in ("ENOSPC", "EDQUOT") if hasattr(errno, name))

NOT_OFFERED = frozenset(getattr(errno, name) for name in ("ENOSYS", "ENOTSUP", "EOPNOTSUPP") if hasattr(errno, name))


class Look(NamedTuple):
    """What a file or folder should be like, its content aside."""

    mode: int
    uid: int
    gid: int
    mtime: int
    attributes: list[tuple[bytes, bytes]]


def look_of(entry: Entry) -> Look:
    return Look(entry.mode, entry.uid, entry.gid, entry.mtime, entry.attributes)


class Notes:
    """Findings about one dataset's restore. Thread-safe."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self._lock = threading.Lock()
        self._told: set[tuple[object, ...]] = set()

    def add(self, code: str, severity: Severity, path: bytes, message: str, remedy: str) -> None:
        finding = Finding(code=code, severity=severity, subject=printable(path), message=message, remedy=remedy)
        with self._lock:
            if len(self.findings) < FINDINGS_MAX:
                self.findings.append(finding)

    def once(self, key: tuple[object, ...], severity: Severity, path: bytes, message: str, remedy: str) -> None:
        """As `add`, but only the first time for this key, whose first member is the code."""
        with self._lock:
            if key in self._told or len(self._told) >= FINDINGS_MAX:
                return
            self._told.add(key)
        self.add(str(key[0]), severity, path, message, remedy)

    def renamed(self, path: bytes, here: bytes) -> None:
        self.add(
            "name-changed",
            "warning",
            path,
            f"{printable(path)} is called {printable(here)} here: this disk does not take the name it had.",
            "Rename it once it is on a disk that takes the name, or restore to such a disk.",
        )

    def mode(self, path: bytes) -> None:
        self.once(
            ("mode-not-restored",),
            "warning",
            path,
            f"The permissions or times of {printable(path)}, and of others perhaps, could not be set.",
            "The content is complete. Restore as an administrator, or to a disk that has permissions.",
        )


class Dresser:
    """Gives restored files and folders their owner, attributes, mode and times."""

    def __init__(self, notes: Notes, *, by_path: bool) -> None:
        self._notes = notes
        self._by_path = by_path
        self.privileged = hasattr(os, "geteuid") and os.geteuid() == 0
        self.uid = os.geteuid() if hasattr(os, "geteuid") else 0
        self.gid = os.getegid() if hasattr(os, "getegid") else 0
        self._groups = {self.gid, *os.getgroups()} if hasattr(os, "getgroups") else set()
        self._owner_told = False
        self.usual_bits = 0o777 & ~_umask()  # what new files keep of their mode

    def is_plain(self, entry: Entry) -> bool:
        """Whether a file that is made with the entry's mode has everything but its times."""
        if entry.mode & ~self.usual_bits or entry.extras:
            return False
        if entry.uid == self.uid and entry.gid == self.gid:
            return True
        if self.privileged or entry.uid == self.uid:
            return False
        self._not_owner(entry.path)
        return True

    def dress(self, fd: int, path: bytes, look: Look, *, fresh: bool) -> None:
        """`fresh`: it has no attributes yet. PermissionError when it is another user's, and not as it should be."""
        have = os.fstat(fd)
        mode, changed = self._owner(fd, path, look, have)
        if look.attributes or not fresh:
            changed |= self._attributes(fd, path, look.attributes, have)
        if changed or stat.S_IMODE(have.st_mode) != mode:
            try:
                os.fchmod(fd, mode)
            except OSError as error:
                _raise_if_full(error)
                if have.st_uid != self.uid and not self.privileged:
                    raise
                self._notes.mode(path)
        if fresh or changed or have.st_mtime_ns != look.mtime:
            self.times(fd, path, look.mtime)

    def dress_by_path(self, folder: Folder, name: bytes, path: bytes, look: Look) -> None:
        """Where there are no calls for open files: the times and whether it may be written to."""
        place = folder.prefix + name
        if look.attributes:
            self._no_attributes(path)
        if look.uid != self.uid or look.gid != self.gid:
            self._not_owner(path)
        self.times(place, path, look.mtime)
        if not look.mode & stat.S_IWUSR or sys.platform != "win32":
            try:
                os.chmod(place, look.mode & 0o777)
            except OSError as error:
                if error.errno not in NOT_OFFERED:
                    raise
                self._notes.mode(path)

    def dress_link(self, folder: Folder, name: bytes, path: bytes, look: Look) -> None:
        """A link itself, never what it leads to. Modes of links mean nothing."""
        place = folder.prefix + name
        have = os.stat(place, dir_fd=folder.fd, follow_symlinks=False)
        if (have.st_uid, have.st_gid) != (look.uid, look.gid):
            self._refuse_if_better_new(look, have)
            uid, gid = self._possible(look, have)
            try:
                if uid is None or os.chown not in os.supports_follow_symlinks:
                    raise PermissionError
                os.chown(place, uid, gid, dir_fd=folder.fd, follow_symlinks=False)
            except OSError as error:
                _raise_if_full(error)
                self._not_owner(path)
            else:
                if uid == -1 and have.st_uid != look.uid:
                    self._not_owner(path)
        if look.attributes and sys.platform == "linux" and folder.fd is not None:
            here = b"/proc/self/fd/%d/%s" % (folder.fd, name)
            for key, value in look.attributes:
                try:
                    os.setxattr(here, key, value, follow_symlinks=False)
                except (OSError, ValueError) as error:
                    self._not_attribute(path, key, error)
        elif look.attributes:
            self._no_attributes(path)
        if have.st_mtime_ns != look.mtime and os.utime in os.supports_follow_symlinks:
            os.utime(place, ns=(look.mtime, look.mtime), dir_fd=folder.fd, follow_symlinks=False)

    def times(self, target: int | bytes, path: bytes, mtime: int) -> None:
        try:
            os.utime(target, ns=(mtime, mtime))
        except (OverflowError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.EINVAL, errno.EOVERFLOW, *NOT_OFFERED):
                raise
            self._notes.add(
                "time-not-restored",
                "warning",
                path,
                f"The time of {printable(path)} is one that this disk cannot hold.",
                "Its content is complete; nothing needs to be done.",
            )

    def _owner(self, fd: int, path: bytes, look: Look, have: os.stat_result) -> tuple[int, bool]:
        """The mode that it may have, and whether its owner was changed."""
        if (have.st_uid, have.st_gid) == (look.uid, look.gid):
            return look.mode, False
        self._refuse_if_better_new(look, have)
        uid, gid = self._possible(look, have)
        changed = False
        if uid is not None:
            try:
                os.fchown(fd, uid, gid)
                changed = True
            except OSError as error:
                _raise_if_full(error)
        if changed and (uid == look.uid or have.st_uid == look.uid):
            return look.mode, True
        self._not_owner(path)
        mode = look.mode
        if not stat.S_ISDIR(have.st_mode):
            mode &= ~SETUID_SETGID  # or a program would run as whoever restores it
        return mode, changed

    def _refuse_if_better_new(self, look: Look, have: os.stat_result) -> None:
        """PermissionError when another user's file would be ours if it were made again."""
        if not self.privileged and have.st_uid != self.uid and look.uid == self.uid:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def _possible(self, look: Look, have: os.stat_result) -> tuple[int | None, int]:
        """What may be asked of the system: all as root, otherwise one of the user's own groups. None: nothing."""
        if self.privileged and NOBODY not in (look.uid, look.gid):
            return look.uid, look.gid
        if have.st_uid == look.uid and look.gid in self._groups:
            return -1, look.gid
        return None, -1

    def _attributes(self, fd: int, path: bytes, wanted: list[tuple[bytes, bytes]], have: os.stat_result) -> bool:
        """Make the extended attributes those that are wanted. True: something was changed."""
        if sys.platform != "linux":
            if wanted:
                self._no_attributes(path)
            return False
        try:
            present = {os.fsencode(name) for name in os.listxattr(fd)}
        except OSError:
            present = set()
        names = {name for name, _ in wanted}
        surplus = [name for name in present - names if name.decode("utf-8", "replace").startswith(OURS)]
        todo = [(name, value) for name, value in wanted if name not in present or _value(fd, name) != value]
        if not surplus and not todo:
            return False
        if not have.st_mode & stat.S_IWUSR and not self.privileged:
            os.fchmod(fd, stat.S_IMODE(have.st_mode) | stat.S_IWUSR)
        for name in surplus:
            try:
                os.removexattr(fd, name)
            except OSError as error:
                self._not_attribute(path, name, error)
        for name, value in todo:
            try:
                os.setxattr(fd, name, value)
            except (OSError, ValueError) as error:
                self._not_attribute(path, name, error)
        return True

    def _not_owner(self, path: bytes) -> None:
        if self._owner_told:
            return
        self._owner_told = True
        self._notes.once(
            ("owner-not-restored",),
            "info",
            path,
            f"{printable(path)}, and others perhaps, belong to whoever restored them: the system does not let "
            "this user give files away.",
            "If the owners matter, restore again as an administrator, to the same folder.",
        )

    def _not_attribute(self, path: bytes, name: bytes, error: OSError | ValueError) -> None:
        if isinstance(error, OSError):
            reason: object = error.strerror  # also "no space", where an attribute is larger than a file may have
        else:
            reason = "it has no valid name"
        self._notes.once(
            ("attribute-not-restored", name, reason),
            "warning",
            path,
            f"The attribute {printable(name)} of {printable(path)} could not be set: {reason}. Others may lack it.",
            "The content is complete. Restore as an administrator, or to a disk that has such attributes.",
        )

    def _no_attributes(self, path: bytes) -> None:
        self._notes.once(
            ("attribute-not-restored",),
            "warning",
            path,
            f"{printable(path)}, and others perhaps, had extended attributes, which this system does not have.",
            "The content is complete; nothing needs to be done unless a program asks for them.",
        )


def printable(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _value(fd: int, name: bytes) -> bytes | None:
    try:
        return os.getxattr(fd, name)
    except OSError:
        return None


def _raise_if_full(error: OSError) -> None:
    if error.errno in FULL:
        raise error


def _umask() -> int:
    """What the system takes off the modes of new files. To ask by setting it would disturb other threads."""
    try:
        with open("/proc/self/status", "rb") as status:
            for line in status:
                if line.startswith(b"Umask:"):
                    return int(line.split()[1], 8)
    except (OSError, ValueError):
        pass
    return 0o777
