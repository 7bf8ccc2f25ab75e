"""Putting a tree into a sink: what is as it was is taken over, everything else is read.

The walk runs ahead of the reading: up to 128 files are open, and the system has been asked for their beginnings,
while those before them are stored. On a cold cache that makes reading small files three times as fast. Where the
system cannot be asked (Windows, macOS), files are opened one by one.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pharmabackup.sources import descriptors
from pharmabackup.sources.base import (
    ATTRIBUTES,
    EXTENTS,
    FILE,
    FOLDER,
    LINK,
    LINK_TARGET,
    SAME_FILE,
    SIZE_MAX,
    UNREAD,
    FolderColumns,
    Kept,
    PreviousFolder,
    Sink,
)
from pharmabackup.sources.descriptors import Identity
from pharmabackup.sources.reading import (
    READ_ATTRIBUTES,
    Reader,
    cut_extents,
    extents,
    fetch,
    has_attributes,
    open_file,
    pack_extents,
)
from pharmabackup.sources.walk import ENCODING, ERRORS, GONE, KINDS, ROW, Listed, clamped, unreadable, vanished

FILES_AHEAD = 128 if hasattr(os, "posix_fadvise") else 1
FOLDERS_AHEAD = 256
QUEUED = 1024  # files waiting for their turn, those kept included
SMALL = 16 << 10  # up to here a file is read in one go
CHECK_FILES = 64
_KINDS = bytes(KINDS) + bytes(256 - len(KINDS))  # by the type in st_mode
_INODE_LINKS = struct.Struct("<QI")  # the end of a row
_INODE_AT = ROW.size - _INODE_LINKS.size
OWN_PROC = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else ""
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)

if sys.platform == "win32":

    def _files_ahead() -> int:
        return FILES_AHEAD

else:
    import resource

    def _files_ahead() -> int:
        """Descriptors are left for everybody else in this process."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return FILES_AHEAD if limit == resource.RLIM_INFINITY else max(1, min(FILES_AHEAD, limit // 8))


@dataclass(slots=True)
class _File:
    """A file that waits for its turn: open, or known from the last snapshot, or neither."""

    entry: int
    fd: int = -1
    kept: Kept | None = None
    key: Identity | None = None  # when it has several names, or must be read through `descriptors`
    error: OSError | None = None


@dataclass(slots=True)
class _Folder:
    """A folder that has been listed and not yet been handed over."""

    listed: Listed
    columns: FolderColumns = field(default_factory=FolderColumns)
    files: deque[_File] = field(default_factory=deque)
    gone: list[int] = field(default_factory=list)
    ready: bool = False  # all its files are in `files`, or done


class TreeDump:
    """One dump of one tree."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._folders: deque[_Folder | PreviousFolder] = deque()  # the latter: as it was, all of it
        self._links: dict[Identity, bytes] = {}  # of files with several names, the first; empty: it waits
        self._open = 0
        self._queued = 0
        self._done = 0
        self._ahead = _files_ahead()
        self._user = os.geteuid() if sys.platform != "win32" else 0

    def run(self, listed_folders: Iterator[Listed]) -> None:
        try:
            for listed in listed_folders:
                self._add(listed)
                while len(self._folders) > FOLDERS_AHEAD:
                    self._step()
            while self._folders:
                self._step()
        finally:
            for folder in self._folders:
                if isinstance(folder, _Folder):
                    for file in folder.files:
                        if file.fd >= 0:
                            os.close(file.fd)

    # ------------------------------------------------------------ ahead: comparing and opening

    def _add(self, listed: Listed) -> None:
        previous = self._sink.previous(listed.path)
        if previous is not None and not listed.linked and previous.rows and previous.rows == listed.blob():
            self._folders.append(previous)
            return
        folder = _Folder(listed)
        self._folders.append(folder)
        self._describe(folder)
        self._queue_files(folder, previous.entries() if previous is not None else {})
        folder.ready = True

    def _describe(self, folder: _Folder) -> None:
        """Everything about the entries but the files' content."""
        listed, columns = folder.listed, folder.columns
        if not listed.names:
            return
        rows = ROW.iter_unpack(b"".join(listed.rows))
        modes, columns.uids, columns.gids, columns.sizes, columns.mtimes, _, _, _ = map(list, zip(*rows, strict=True))
        kinds = bytes([mode >> 12 for mode in modes]).translate(_KINDS)
        columns.names = listed.names
        columns.kinds = bytearray(kinds)
        columns.modes = [mode & 0o7777 for mode in modes]
        columns.chunks, columns.stored = [0] * len(kinds), [0] * len(kinds)
        for entry, kind in enumerate(kinds):
            if kind != FILE:
                columns.sizes[entry] = 0
            if kind == LINK:
                self._describe_link(folder, entry)
            if kind in (LINK, FOLDER) and READ_ATTRIBUTES is not None:
                self._note_attributes(folder, entry, self._place(listed, listed.names[entry]))

    def _describe_link(self, folder: _Folder, entry: int) -> None:
        listed, name = folder.listed, folder.listed.names[entry]
        try:
            if listed.fd >= 0:
                target = os.readlink(name.decode(ENCODING, ERRORS), dir_fd=listed.fd)
            else:
                target = os.readlink(listed.place(name))
        except ValueError:  # a kind of link that Windows does not tell the target of
            self._failed(folder, entry, OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP)))
        except OSError as error:
            replaced = error.errno == errno.EINVAL  # it is no link any more
            self._failed(folder, entry, FileNotFoundError(errno.ENOENT, "replaced") if replaced else error)
        else:
            folder.columns.extras.append((entry, LINK_TARGET, target.encode(ENCODING, ERRORS)))

    def _place(self, listed: Listed, name: bytes) -> int | str:
        """What to ask for a link's or folder's attributes: no call takes a folder's descriptor and a name."""
        if name == b"." and listed.fd >= 0:
            return listed.fd
        if listed.fd >= 0 and OWN_PROC:
            return f"{OWN_PROC}/{listed.fd}/{name.decode(ENCODING, ERRORS)}"
        return listed.place(name)

    def _note_attributes(self, folder: _Folder, entry: int, target: int | str) -> None:
        assert READ_ATTRIBUTES is not None
        found = READ_ATTRIBUTES(target, self._path(folder, entry), self._sink)
        if found:
            folder.columns.extras.append((entry, ATTRIBUTES, found))
        elif found is None:
            folder.listed.unsure.append(entry)

    def _queue_files(self, folder: _Folder, known: Mapping[bytes, Kept]) -> None:
        listed, kinds, names = folder.listed, folder.columns.kinds, folder.listed.names
        special = listed.linked or descriptors.are_known()
        user, device, rows, uids, sizes = (
            self._user,
            listed.device,
            listed.rows,
            folder.columns.uids,
            folder.columns.sizes,
        )
        for entry, kind in enumerate(kinds):
            if kind != FILE:
                continue
            file = _File(entry)
            inode = 0
            if special:
                inode, links = _INODE_LINKS.unpack_from(rows[entry], _INODE_AT)
                if links > 1:
                    file.key = device, inode
            kept = known.get(names[entry]) if known else None
            if kept is not None and kept.row == rows[entry] and SAME_FILE not in dict(kept.extras):
                file.kept = kept
            elif sizes[entry] > SIZE_MAX:
                file.error = OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            elif special and descriptors.is_known((device, inode)):
                file.key = device, inode
            elif file.key is None or file.key not in self._links:
                self._open_file(listed, names[entry], file, own=user == 0 or user == uids[entry])
            if file.key is not None:
                self._links.setdefault(file.key, b"")
            folder.files.append(file)
            self._queued += 1
            while self._open >= self._ahead or self._queued >= QUEUED:
                self._step()

    def _open_file(self, listed: Listed, name: bytes, file: _File, *, own: bool) -> None:
        where = listed.fd if listed.fd >= 0 else None
        path = name.decode(ENCODING, ERRORS) if listed.fd >= 0 else listed.place(name)
        try:
            try:
                fd = open_file(path, where, own=own)
            except OSError as error:
                if error.errno not in _OUT_OF_DESCRIPTORS:
                    raise
                while self._open:
                    self._step()
                fd = open_file(path, where, own=own)
        except OSError as error:
            file.error = error
            return
        file.fd = fd
        self._open += 1
        fetch(fd)

    # ------------------------------------------------------------ in order: reading and handing over

    def _step(self) -> None:
        """Do the next thing in the order of the manifest: a file, or the end of its folder."""
        folder = self._folders[0]
        if not isinstance(folder, _Folder):
            self._sink.keep_folder(folder)
            self._folders.popleft()
        elif folder.files:
            file = folder.files.popleft()
            self._queued -= 1
            self._done += 1
            if self._done % CHECK_FILES == 0:
                self._sink.check()
            try:
                if file.fd >= 0 and file.key is None:
                    self._store(folder, file.entry, file.fd)
                else:
                    self._take(folder, file)
            finally:
                if file.fd >= 0:
                    self._close(file)
        elif folder.ready:
            self._hand_over(folder)
            self._folders.popleft()

    def _close(self, file: _File) -> None:
        descriptors.close(file.fd)
        file.fd = -1
        self._open -= 1

    def _take(self, folder: _Folder, file: _File) -> None:
        columns, entry, key = folder.columns, file.entry, file.key
        if key is not None and (first := self._links.get(key)):
            columns.extras.append((entry, SAME_FILE, first))
            return
        if file.kept is not None:
            kept = file.kept
            self._sink.keep_file(kept)
            columns.sizes[entry], columns.chunks[entry], columns.stored[entry] = kept.size, kept.chunks, kept.stored
            columns.extras += [(entry, extra, value) for extra, value in kept.extras]
        elif file.fd >= 0:
            self._store(folder, entry, file.fd)
        elif file.error is not None:
            self._failed(folder, entry, file.error)
        elif key is not None:
            self._store_late(folder, file, key)
        if key is not None and columns.kinds[entry] == FILE and entry not in folder.gone:
            self._links[key] = self._path(folder, entry)

    def _store_late(self, folder: _Folder, file: _File, key: Identity) -> None:
        """A file that must not be opened here, or another name of one of which the first could not be read."""
        entry, listed = file.entry, folder.listed
        with descriptors.borrowed(key) as fd:
            if fd is not None:
                self._store_large(folder, entry, fd)
                return
        try:
            file.fd = open_file(listed.place(listed.names[entry]), None, own=False)
        except OSError as error:
            self._failed(folder, entry, error)
        else:
            self._open += 1
            self._store(folder, entry, file.fd)

    def _store(self, folder: _Folder, entry: int, fd: int) -> None:
        columns = folder.columns
        size = columns.sizes[entry]
        if size > SMALL:
            self._store_large(folder, entry, fd)
            return
        try:
            chunks, stored = self._sink.file(fd, size)
            after = os.fstat(fd)
        except OSError as error:
            self._failed(folder, entry, error)
            return
        columns.chunks[entry], columns.stored[entry] = chunks, stored
        if stored != size or clamped(after.st_mtime_ns) != columns.mtimes[entry]:
            columns.sizes[entry] = stored
            self._changed(folder, entry)
        if READ_ATTRIBUTES is not None and has_attributes(fd):
            self._note_attributes(folder, entry, fd)

    def _store_large(self, folder: _Folder, entry: int, fd: int) -> None:
        """What was stored of it counts, whatever the folder said before."""
        columns = folder.columns
        size = columns.sizes[entry]
        try:
            found = extents(fd, size)
            reader = Reader(fd, found)
            chunks, stored = self._sink.stream(reader.read_into)
            after = os.fstat(fd)
        except OSError as error:
            self._failed(folder, entry, error)
            return
        if reader.error is not None and not stored:
            self._failed(folder, entry, reader.error)
            return
        columns.chunks[entry], columns.stored[entry] = chunks, stored
        whole = stored == (size if found is None else sum(length for _, length in found))
        if found is None:
            columns.sizes[entry] = stored
        else:
            if not whole:
                found = cut_extents(found, stored)
                columns.sizes[entry] = max(sum(found[-1]) if found else 0, min(size, after.st_size))
            columns.extras.append((entry, EXTENTS, pack_extents(found)))
        if reader.error is not None:
            unreadable(self._sink, self._path(folder, entry), reader.error, stored=stored)
            folder.listed.unsure.append(entry)
        elif not whole or (after.st_size, clamped(after.st_mtime_ns)) != (size, columns.mtimes[entry]):
            self._changed(folder, entry)
        if READ_ATTRIBUTES is not None and has_attributes(fd):
            self._note_attributes(folder, entry, fd)

    def _hand_over(self, folder: _Folder) -> None:
        listed, columns = folder.listed, folder.columns
        if folder.gone:
            listed.whole = False
            _drop(columns, set(folder.gone))
        columns.extras.sort()
        self._sink.folder(listed.path, columns, listed.proof())

    # ------------------------------------------------------------ what went wrong

    def _path(self, folder: _Folder, entry: int) -> bytes:
        path, name = folder.listed.path, folder.listed.names[entry]
        return path + b"/" + name if path else b"" if name == b"." else name

    def _failed(self, folder: _Folder, entry: int, error: OSError) -> None:
        """An entry that is gone is left out; one that cannot be read is named without content."""
        if error.errno in GONE:
            vanished(self._sink, self._path(folder, entry))
            folder.gone.append(entry)
            return
        unreadable(self._sink, self._path(folder, entry), error)
        folder.columns.kinds[entry] = UNREAD
        folder.columns.sizes[entry] = 0
        folder.listed.unsure.append(entry)

    def _changed(self, folder: _Folder, entry: int) -> None:
        self._sink.finding(
            "file-changed",
            self._path(folder, entry),
            "It was written while it was read, so it may be half old and half new.",
            "Close the program that writes it, and back up again; back up a live database as what it is.",
        )
        folder.listed.unsure.append(entry)


def _drop(columns: FolderColumns, gone: set[int]) -> None:
    """Take entries out of a folder."""
    left = [entry for entry in range(len(columns.names)) if entry not in gone]
    numbers = {entry: number for number, entry in enumerate(left)}
    columns.extras = [(numbers[entry], key, value) for entry, key, value in columns.extras if entry in numbers]
    columns.names = [columns.names[entry] for entry in left]
    columns.kinds = bytearray(columns.kinds[entry] for entry in left)
    for column in ("modes", "uids", "gids", "mtimes", "sizes", "chunks", "stored"):
        values = getattr(columns, column)
        setattr(columns, column, [values[entry] for entry in left])
