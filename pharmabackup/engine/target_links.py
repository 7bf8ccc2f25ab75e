"""Links, further names of files, and what is only named: special files, and files that were not read."""

from __future__ import annotations

import errno
import os
import stat

from pharmabackup.engine.target_folders import CREATE, READ, Folder, is_file, scratch_name
from pharmabackup.engine.target_layout import PIECE, data_ranges, read_at, write_at
from pharmabackup.engine.target_metadata import Dresser, Notes, look_of, printable
from pharmabackup.errors import Damaged
from pharmabackup.format.manifest import Entry, EntryKind

NO_HARD_LINKS = frozenset(
    getattr(errno, name)
    for name in ("EPERM", "EMLINK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EXDEV", "EINVAL")
    if hasattr(errno, name)
)
WHAT = {
    EntryKind.FIFO: "named pipe",
    EntryKind.SOCKET: "socket",
    EntryKind.CHARACTER_DEVICE: "device",
    EntryKind.BLOCK_DEVICE: "device",
}


def put_link(entry: Entry, folder: Folder, name: bytes, dresser: Dresser, *, to_folder: bool) -> bool:
    """True: it was already right. Where it leads is nobody's business: nothing is written through it."""
    target = entry.link_target
    if not target or b"\0" in target:
        raise Damaged(
            f"The link {printable(entry.path)} leads nowhere.",
            kind="format",
            remedy="Restore an earlier snapshot, and run check.",
        )
    found = folder.look(name)
    single = found is not None and stat.S_ISLNK(found.st_mode) and found.st_nlink == 1
    if single and os.readlink(folder.prefix + name, dir_fd=folder.fd) == target:
        try:
            dresser.dress_link(folder, name, entry.path, look_of(entry))
            return True
        except PermissionError:
            pass  # another user's, and may be replaced all the same
    if found is not None:
        folder.make_way(name, found)
    scratch = scratch_name()
    os.symlink(target, folder.prefix + scratch, target_is_directory=to_folder, dir_fd=folder.fd)
    try:
        dresser.dress_link(folder, scratch, entry.path, look_of(entry))
        folder.replace(scratch, name)
    except BaseException:
        folder.unlink(scratch)
        raise
    return False


def put_name(
    entry: Entry, source: tuple[Folder, bytes], folder: Folder, name: bytes, dresser: Dresser, notes: Notes
) -> bool:
    """One more name of a restored file. True: it had it already."""
    above, first = source
    original = above.look(first)
    if original is None or not is_file(original):
        raise FileNotFoundError(errno.ENOENT, "the file whose content it shares is not there")
    found = folder.look(name)
    if found is not None:
        if os.path.samestat(found, original):
            return True
        folder.make_way(name, found)
    scratch = scratch_name()
    try:
        _link(above, first, folder, scratch)
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        _copy(entry, source, original, folder, scratch, dresser)
        notes.once(
            ("link-became-copy",),
            "info",
            entry.path,
            f"{printable(entry.path)}, and others perhaps, became a copy: this disk has no hard links, or no more.",
            "Nothing needs to be done.",
        )
    try:
        folder.replace(scratch, name)
    except BaseException:
        folder.unlink(scratch)
        raise
    return False


def _link(above: Folder, first: bytes, folder: Folder, name: bytes) -> None:
    old, new = above.prefix + first, folder.prefix + name
    if os.link in os.supports_follow_symlinks:
        os.link(old, new, src_dir_fd=above.fd, dst_dir_fd=folder.fd, follow_symlinks=False)
    else:
        os.link(old, new, src_dir_fd=above.fd, dst_dir_fd=folder.fd)


def _copy(
    entry: Entry,
    source: tuple[Folder, bytes],
    original: os.stat_result,
    folder: Folder,
    name: bytes,
    dresser: Dresser,
) -> None:
    above, first = source
    old = os.open(above.prefix + first, READ, dir_fd=above.fd)
    try:
        new = os.open(folder.prefix + name, CREATE, 0o600, dir_fd=folder.fd)
        try:
            try:
                for begin, end in data_ranges(old, original.st_size):
                    for at in range(begin, end, PIECE):
                        write_at(new, memoryview(read_at(old, min(PIECE, end - at), at)), at)
                if os.fstat(new).st_size != original.st_size:
                    os.ftruncate(new, original.st_size)
                if folder.fd is not None:
                    dresser.dress(new, entry.path, look_of(entry), fresh=not folder.strict)
            finally:
                os.close(new)
            if folder.fd is None:
                dresser.dress_by_path(folder, name, entry.path, look_of(entry))
        except BaseException:
            folder.unlink(name)
            raise
    finally:
        os.close(old)


def note_unread(entry: Entry, notes: Notes) -> None:
    notes.add(
        "not-in-backup",
        "warning",
        entry.path,
        f"{printable(entry.path)} is not in this backup: it could not be read when the backup was made.",
        "Restore it from an earlier snapshot.",
    )


def note_special(entry: Entry, notes: Notes) -> None:
    notes.add(
        "special-not-restored",
        "info",
        entry.path,
        f"{printable(entry.path)} was a {WHAT[entry.kind]}; these are named in a backup and not made again.",
        "The program that it belongs to makes it when it starts.",
    )
