"""A folder on its way into the sink, or a part of a large one: its columns, the files that wait, what went wrong."""

from __future__ import annotations

import errno
import os
from collections import deque
from dataclasses import dataclass, field

from pharmabackup.sources.base import (
    ATTRIBUTES,
    FILE,
    FOLDER,
    LINK,
    LINK_TARGET,
    UNREAD,
    FolderColumns,
    Kept,
    Sink,
)
from pharmabackup.sources.descriptors import Identity
from pharmabackup.sources.listing import ENCODING, ERRORS, KINDS, Listed
from pharmabackup.sources.reading import READ_ATTRIBUTES
from pharmabackup.sources.rows import ROW
from pharmabackup.sources.trouble import GONE, unreadable, vanished

OWN_PROC = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else ""


@dataclass(slots=True)
class PendingFile:
    """A file that waits for its turn: open, or known from the last snapshot, or neither."""

    entry: int
    fd: int = -1
    kept: Kept | None = None
    key: Identity | None = None  # when it has several names, or must be read through `descriptors`
    error: OSError | None = None


@dataclass(slots=True)
class Pending:
    """What has been listed and not yet been handed over."""

    sink: Sink
    listed: Listed
    columns: FolderColumns = field(default_factory=FolderColumns)
    files: deque[PendingFile] = field(default_factory=deque)
    gone: list[int] = field(default_factory=list)
    ready: bool = False  # all its files are in `files`, or done

    def path(self, entry: int) -> bytes:
        path, name = self.listed.path, self.listed.names[entry]
        return path + b"/" + name if path else b"" if name == b"." else name

    # ------------------------------------------------------------ what it is like

    def describe(self) -> None:
        """Everything about the entries but the files' content."""
        listed, columns = self.listed, self.columns
        if not listed.names:
            return
        rows = ROW.iter_unpack(b"".join(listed.rows))
        modes, columns.uids, columns.gids, columns.sizes, columns.mtimes, _, _, _ = map(list, zip(*rows, strict=True))
        kinds = bytes([mode >> 12 for mode in modes]).translate(KINDS)
        columns.names = listed.names
        columns.kinds = bytearray(kinds)
        columns.modes = [mode & 0o7777 for mode in modes]
        columns.chunks, columns.stored = [0] * len(kinds), [0] * len(kinds)
        for entry, kind in enumerate(kinds):
            if kind != FILE:
                columns.sizes[entry] = 0
            if kind == LINK:
                self._describe_link(entry)
            if kind in (LINK, FOLDER) and READ_ATTRIBUTES is not None:
                self.note_attributes(entry, self._place(listed.names[entry]))

    def _describe_link(self, entry: int) -> None:
        listed, name = self.listed, self.listed.names[entry]
        try:
            if listed.fd >= 0:
                target = os.readlink(name.decode(ENCODING, ERRORS), dir_fd=listed.fd)
            else:
                target = os.readlink(listed.place(name))
        except ValueError:  # a kind of link that Windows does not tell the target of
            self.failed(entry, OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP)))
        except OSError as error:
            replaced = error.errno == errno.EINVAL  # it is no link any more
            self.failed(entry, FileNotFoundError(errno.ENOENT, "replaced") if replaced else error)
        else:
            self.columns.extras.append((entry, LINK_TARGET, target.encode(ENCODING, ERRORS)))

    def _place(self, name: bytes) -> int | str:
        """What to ask for a link's or folder's attributes: no call takes a folder's descriptor and a name."""
        listed = self.listed
        if name == b"." and listed.fd >= 0:
            return listed.fd
        if listed.fd >= 0 and OWN_PROC:
            return f"{OWN_PROC}/{listed.fd}/{name.decode(ENCODING, ERRORS)}"
        return listed.place(name)

    def note_attributes(self, entry: int, target: int | str) -> None:
        assert READ_ATTRIBUTES is not None
        found = READ_ATTRIBUTES(target, self.path(entry), self.sink)
        if found:
            self.columns.extras.append((entry, ATTRIBUTES, found))
        elif found is None:
            self.listed.unsure.append(entry)

    # ------------------------------------------------------------ what went wrong

    def failed(self, entry: int, error: OSError) -> None:
        """An entry that is gone is left out; one that cannot be read is named without content."""
        if error.errno in GONE:
            vanished(self.sink, self.path(entry))
            self.gone.append(entry)
            return
        unreadable(self.sink, self.path(entry), error)
        self.columns.kinds[entry] = UNREAD
        self.columns.sizes[entry] = 0
        self.listed.unsure.append(entry)

    def broken_off(self, entry: int, error: OSError) -> None:
        """What was stored of it cannot be taken back; whether that is all of it, or as it was, nobody knows."""
        unreadable(self.sink, self.path(entry), error, stored=self.columns.stored[entry])
        self.listed.unsure.append(entry)

    def changed(self, entry: int) -> None:
        self.sink.finding(
            "file-changed",
            self.path(entry),
            "It was written while it was read, so it may be half old and half new.",
            "Close the program that writes it, and back up again; back up a live database as what it is.",
        )
        self.listed.unsure.append(entry)

    # ------------------------------------------------------------ the end

    def hand_over(self) -> None:
        columns, gone = self.columns, set(self.gone)
        if gone:
            _drop(columns, gone)
        columns.extras.sort()
        self.sink.folder(self.listed.path, columns, self.listed.proof(gone))


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
