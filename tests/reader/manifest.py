"""What a manifest says: entries, and the order that they have to have (section 17 of docs/format.md)."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass, field
from typing import Any

from tests.reader import wire
from tests.reader.wire import require, unpack


@dataclass
class Entry:
    """What a snapshot has under one path; `pieces` are (offset, bytes) in zeros, and nothing for a further name."""

    path: bytes
    kind: int
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    target: bytes | None = None
    same_file: bytes | None = None
    extents: list[tuple[int, int]] | None = None
    attributes: dict[bytes, bytes] = field(default_factory=dict)
    pieces: list[tuple[int, bytes]] = field(default_factory=list)

    def data(self) -> bytes:
        whole = bytearray(self.size)
        for offset, piece in self.pieces:
            whole[offset : offset + len(piece)] = piece
        return bytes(whole)


class Walk:
    """The order of folders in a manifest, and the entries of each (§17.1)."""

    def __init__(self) -> None:
        self._path: bytes | None = None
        self._last, self._inside, self._waiting = b"", [], [b""]

    def folder(self, folder: Any) -> tuple[list[Entry], tuple[int, ...]]:
        if folder.path != self._path or self._path is None:
            self._waiting += reversed(self._inside)
            require(self._waiting and self._waiting.pop() == folder.path, "a folder that is not the next one")
            self._path, self._last, self._inside = folder.path, b"", []
        require(all(_proper(part) for part in folder.path.split(b"/") if folder.path), "a path")
        names = folder.names.split(b"\0") if folder.names else []
        n = len(names)
        require(n <= 65536, "a folder's record with too many entries")
        kinds, modes = column("B", folder.kinds, n), column("I", folder.modes, n)
        uids, gids, mtimes = (
            column("I", folder.uids, n),
            column("I", folder.gids, n),
            column("q", folder.mtimes, n),
        )
        sizes, chunks = column("Q", folder.sizes, n), column("I", folder.chunks, n)
        entries = []
        for name, kind, mode, uid, gid, mtime, size in zip(
            names, kinds, modes, uids, gids, mtimes, sizes, strict=True
        ):
            root = name == b"." and not folder.path and kind == wire.FOLDER
            require(root or _proper(name), f"a name that may not be: {name!r}")
            require(name > self._last, "names that do not ascend")
            require(kind <= wire.UNREAD and mode <= 0o7777 and size <= 2**62, "an entry out of bounds")
            self._last = name
            path = folder.path + b"/" + name if folder.path else name
            if kind == wire.FOLDER and not root:
                self._inside.append(path)
            entries.append(Entry(path, kind, mode, uid, gid, mtime, size if kind == wire.FILE else 0))
        seen = set()
        for extra in folder.extras:
            require(extra.entry < n and (extra.entry, extra.key) not in seen, "an extra of no entry, or twice")
            seen.add((extra.entry, extra.key))
            _add_extra(entries[extra.entry], extra.key, extra.value)
        return entries, chunks

    def end(self) -> None:
        require(not self._waiting and not self._inside, "a folder without a record")


def _add_extra(entry: Entry, key: int, value: bytes) -> None:
    if key == wire.LINK_TARGET:
        require(entry.kind == wire.LINK and b"\0" not in value, "a target that may not be")
        entry.target = value
    elif key == wire.SAME_FILE:
        require(entry.kind == wire.FILE and all(map(_proper, value.split(b"/"))), "a further name of no path")
        entry.same_file = value
    elif key == wire.EXTENTS:
        require(entry.kind == wire.FILE and len(value) % 16 == 0, "extents that do not fit")
        entry.extents = list(struct.iter_unpack("<QQ", value))
        ends = [0, *itertools.chain(*((at, at + size) for at, size in entry.extents)), entry.size]
        require(ends == sorted(ends), "extents out of order or outside of the file")
    elif key == wire.ATTRIBUTES:
        entry.attributes = dict(wire.Attributes(unpack(value)))


def extents_of(entry: Entry) -> list[tuple[int, int]]:
    if entry.kind != wire.FILE or entry.same_file is not None:
        return []
    return [(0, entry.size)] if entry.extents is None else entry.extents


def _proper(name: bytes) -> bool:
    return 1 <= len(name) <= 4096 and name not in (b".", b"..") and not {0, 0x2F} & set(name)


def column(letter: str, data: bytes, n: int) -> tuple[int, ...]:
    require(len(data) == n * struct.calcsize("<" + letter), "a column that does not fit")
    return struct.unpack(f"<{n}{letter}", data)
