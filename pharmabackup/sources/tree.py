"""Putting a tree into a sink: what is as it was is taken over, everything else is read.

The walk runs ahead of the reading: up to 128 files are open, and the system has been asked for their beginnings,
while those before them are stored. On a cold cache that makes reading small files three times as fast. Where the
system cannot be asked (Windows, macOS), files are opened one by one.
"""

from __future__ import annotations

import errno
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pharmabackup.sources import descriptors
from pharmabackup.sources.base import (
    EXTENTS,
    FILE,
    SAME_FILE,
    SIZE_MAX,
    Kept,
    PreviousFolder,
    Sink,
)
from pharmabackup.sources.descriptors import Identity
from pharmabackup.sources.listing import ENCODING, ERRORS, Listed
from pharmabackup.sources.pending import Pending, PendingFile
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
from pharmabackup.sources.rows import clamped, inode_and_links

FILES_AHEAD = 128 if hasattr(os, "posix_fadvise") else 1
FOLDERS_AHEAD = 256
ENTRIES_AHEAD = 4096  # of these folders; bounds memory
QUEUED = 1024  # files waiting for their turn, those kept included
SMALL = 16 << 10  # up to here a file is read in one go
CHECK_FILES = 64
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


@dataclass(frozen=True, slots=True)
class _Unchanged:
    """A folder, or a part of it, that is as it was."""

    previous: PreviousFolder
    count: int  # of its entries


@dataclass(slots=True)
class _SeveralNames:
    """A file with several names."""

    first: bytes = b""  # empty: it waits
    dumped: int = 0  # names


class TreeDump:
    """One dump of one tree."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._folders: deque[Pending | _Unchanged] = deque()
        self._entries = 0  # of these
        self._links: dict[Identity, _SeveralNames] = {}  # of which more names are to come, in this tree or elsewhere
        self._open = 0
        self._queued = 0
        self._done = 0
        self._ahead = _files_ahead()
        self._user = os.geteuid() if sys.platform != "win32" else 0

    def run(self, listed_folders: Iterator[Listed]) -> None:
        try:
            for listed in listed_folders:
                self._add(listed)
                while len(self._folders) > FOLDERS_AHEAD or self._entries > ENTRIES_AHEAD:
                    self._step()
            while self._folders:
                self._step()
        finally:
            for folder in self._folders:
                if isinstance(folder, Pending):
                    for file in folder.files:
                        if file.fd >= 0:
                            descriptors.close(file.fd)

    # ------------------------------------------------------------ ahead: comparing and opening

    def _add(self, listed: Listed) -> None:
        previous = self._sink.previous(listed.path, listed.names)
        if previous is not None and not listed.linked and previous.rows and previous.rows == listed.blob():
            if self._folders:
                self._folders.append(_Unchanged(previous, len(listed.names)))
                self._entries += len(listed.names)
            else:
                self._sink.keep_folder(previous)
            return
        folder = Pending(self._sink, listed)
        self._folders.append(folder)
        self._entries += len(listed.names)
        folder.describe()
        self._queue_files(folder, previous.entries() if previous is not None else {})
        folder.ready = True

    def _queue_files(self, folder: Pending, known: Mapping[bytes, Kept]) -> None:
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
            file = PendingFile(entry)
            inode = 0
            if special:
                inode, links = inode_and_links(rows[entry])
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
            if file.key is not None and file.key not in self._links:
                self._links[file.key] = _SeveralNames()
            folder.files.append(file)
            self._queued += 1
            while self._open >= self._ahead or self._queued >= QUEUED:
                self._step()

    def _open_file(self, listed: Listed, name: bytes, file: PendingFile, *, own: bool) -> None:
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
        if isinstance(folder, _Unchanged):
            self._sink.keep_folder(folder.previous)
            self._folders.popleft()
            self._entries -= folder.count
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
            folder.hand_over()
            self._folders.popleft()
            self._entries -= len(folder.listed.names)

    def _close(self, file: PendingFile) -> None:
        descriptors.close(file.fd)
        file.fd = -1
        self._open -= 1

    def _take(self, folder: Pending, file: PendingFile) -> None:
        if file.key is None:
            self._take_content(folder, file)
        else:
            self._take_name(folder, file, file.key)

    def _take_name(self, folder: Pending, file: PendingFile, key: Identity) -> None:
        """One of a file's several names. After the last one the file is forgotten: memory would grow with them."""
        entry = file.entry
        names = self._links.setdefault(key, _SeveralNames())
        if names.first:
            folder.columns.extras.append((entry, SAME_FILE, names.first))
        else:
            self._take_content(folder, file)
            if entry in folder.gone:
                return
            if folder.columns.kinds[entry] == FILE:
                names.first = folder.path(entry)
        names.dumped += 1
        if names.dumped >= inode_and_links(folder.listed.rows[entry])[1]:
            del self._links[key]

    def _take_content(self, folder: Pending, file: PendingFile) -> None:
        columns, entry, key = folder.columns, file.entry, file.key
        if file.kept is not None:
            kept = file.kept
            self._sink.keep_file(kept)
            columns.sizes[entry], columns.chunks[entry], columns.stored[entry] = kept.size, kept.chunks, kept.stored
            columns.extras += [(entry, extra, value) for extra, value in kept.extras]
        elif file.fd >= 0:
            self._store(folder, entry, file.fd)
        elif file.error is not None:
            folder.failed(entry, file.error)
        elif key is not None:
            self._store_late(folder, file, key)

    def _store_late(self, folder: Pending, file: PendingFile, key: Identity) -> None:
        """A file that must not be opened here, or another name of one of which the first could not be read."""
        entry, listed = file.entry, folder.listed
        with descriptors.borrowed(key) as fd:
            if fd is not None:
                self._store_large(folder, entry, fd)
                return
        try:
            file.fd = open_file(listed.place(listed.names[entry]), None, own=False)
        except OSError as error:
            folder.failed(entry, error)
        else:
            self._open += 1
            self._store(folder, entry, file.fd)

    def _store(self, folder: Pending, entry: int, fd: int) -> None:
        columns = folder.columns
        size = columns.sizes[entry]
        if size > SMALL:
            self._store_large(folder, entry, fd)
            return
        try:
            chunks, stored = self._sink.file(fd, size)
        except OSError as error:
            folder.failed(entry, error)
            return
        columns.chunks[entry], columns.stored[entry], columns.sizes[entry] = chunks, stored, stored
        try:
            mtime = clamped(os.fstat(fd).st_mtime_ns)
        except OSError as error:
            if not stored:
                folder.failed(entry, error)
                return
            folder.broken_off(entry, error)
        else:
            if stored != size or mtime != columns.mtimes[entry]:
                folder.changed(entry)
        if READ_ATTRIBUTES is not None and has_attributes(fd):
            folder.note_attributes(entry, fd)

    def _store_large(self, folder: Pending, entry: int, fd: int) -> None:
        """What was stored of it counts, whatever the folder said before."""
        columns = folder.columns
        size, mtime = size_after, mtime_after = columns.sizes[entry], columns.mtimes[entry]
        try:
            found = extents(fd, size)
            reader = Reader(fd, found)
            chunks, stored = self._sink.stream(reader.read_into)
        except OSError as error:
            folder.failed(entry, error)
            return
        broken = reader.error
        try:
            after = os.fstat(fd)
            size_after, mtime_after = after.st_size, clamped(after.st_mtime_ns)
        except OSError as error:
            broken = broken or error
        if broken is not None and not stored:
            folder.failed(entry, broken)
            return
        columns.chunks[entry], columns.stored[entry] = chunks, stored
        whole = stored == (size if found is None else sum(length for _, length in found))
        if found is None:
            columns.sizes[entry] = stored
        else:
            if not whole:
                found = cut_extents(found, stored)
                columns.sizes[entry] = max(sum(found[-1]) if found else 0, min(size, size_after))
            columns.extras.append((entry, EXTENTS, pack_extents(found)))
        if broken is not None:
            folder.broken_off(entry, broken)
        elif not whole or (size_after, mtime_after) != (size, mtime):
            folder.changed(entry)
        if READ_ATTRIBUTES is not None and has_attributes(fd):
            folder.note_attributes(entry, fd)
