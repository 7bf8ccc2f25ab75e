"""Entries as a manifest has them, and what a folder really holds."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

from pharmabackup.engine.target import Target
from pharmabackup.format.manifest import Entry, EntryKind, Extra, encode_attributes

TIME = 1_700_000_000_123_456_789
UID = os.geteuid()
GID = os.getegid()


def entry(
    path: bytes,
    kind: EntryKind = EntryKind.FILE,
    *,
    size: int = 0,
    mode: int = 0o644,
    uid: int = UID,
    gid: int = GID,
    mtime: int = TIME,
    stored: int | None = None,
    extras: dict[int, bytes] | None = None,
    attributes: Sequence[tuple[bytes, bytes]] = (),
) -> Entry:
    extras = dict(extras or {})
    if attributes:
        extras[Extra.ATTRIBUTES] = encode_attributes(list(attributes))
    return Entry(path, kind, mode, uid, gid, mtime, size, 1, 0, size if stored is None else stored, extras)


def folder(path: bytes, mode: int = 0o755, **more: object) -> Entry:
    return entry(path, EntryKind.FOLDER, mode=mode, **more)  # type: ignore[arg-type]


def link(path: bytes, target: bytes) -> Entry:
    return entry(path, EntryKind.LINK, mode=0o777, extras={Extra.LINK_TARGET: target})


def name_of(path: bytes, first: bytes, size: int) -> Entry:
    return entry(path, size=size, stored=0, extras={Extra.SAME_FILE: first})


def sparse(path: bytes, size: int, extents: Sequence[tuple[int, int]]) -> Entry:
    raw = b"".join(struct.pack("<QQ", *extent) for extent in extents)
    return entry(path, size=size, stored=sum(length for _, length in extents), extras={Extra.EXTENTS: raw})


def put(target: Target, path: bytes, data: bytes, **more: object) -> None:
    target.whole(entry(path, size=len(data), **more), memoryview(data))  # type: ignore[arg-type]


def put_parts(target: Target, item: Entry, data: bytes, size: int, *, backwards: bool = False) -> None:
    offsets = range(0, len(data), size)
    target.begin(item)
    for offset in reversed(offsets) if backwards else offsets:
        target.parts(item, [(offset, memoryview(data)[offset : offset + size])])
    target.finish(item)


def codes(target: Target) -> list[str]:
    return sorted(finding.code for finding in target.findings)


def tree(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything under a folder: kind, mode, time, content."""
    found: dict[bytes, tuple[object, ...]] = {}
    top = os.fsencode(root)
    for where, folders, files in os.walk(top):
        for name in folders + files:
            path = os.path.join(where, name)
            have = os.lstat(path)
            what: object = None
            if stat.S_ISREG(have.st_mode):
                with open(path, "rb") as file:
                    what = file.read()
            elif stat.S_ISLNK(have.st_mode):
                what = os.readlink(path)
            kind = stat.S_IFMT(have.st_mode)
            found[os.path.relpath(path, top)] = (kind, stat.S_IMODE(have.st_mode), have.st_mtime_ns, what)
    return found
