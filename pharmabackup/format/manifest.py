"""Manifests: names and metadata of a dataset in path order, as a stream of folder records.

frame = u32 length of what follows | u8 type | u64 bytes | u64 chunks | MessagePack body

`bytes` and `chunks` count the content that the folder's entries have in the recipe's stream, so that a reader
finds one file without decoding the folders before it. Within a folder, entries are in the order of their
names' bytes; a folder's record comes before those of the folders in it, depth first; a large folder has
several records, one after the other. Names are bytes: UTF-8 where the system's names are Unicode (a lone
surrogate as WTF-8 has it), the system's own bytes elsewhere.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

import msgspec

from pharmabackup.format.wire import Record, Text, decode, encode, malformed

FRAME = struct.Struct("<IBQQ")
FRAME_MAX = 1 << 26
FOLDER_ENTRIES_MAX = 1 << 16
PATH_MAX = 1 << 16
NAME_MAX = 1 << 12
SIZE_MAX = 1 << 62


class FrameType(IntEnum):
    FOLDER = 1
    FINDING = 2


class EntryKind(IntEnum):
    FILE = 0
    FOLDER = 1
    LINK = 2
    FIFO = 3
    SOCKET = 4
    CHARACTER_DEVICE = 5
    BLOCK_DEVICE = 6
    UNREAD = 7  # a file whose content could not be read: named, without content


_KINDS = tuple(EntryKind)
_SPECIAL = frozenset((b"", b".", b".."))


class Extra(IntEnum):
    LINK_TARGET = 1  # bytes
    SAME_FILE = 2  # path, from the dataset's root, of the entry whose content this hard link shares
    EXTENTS = 3  # pairs of u64 offset, u64 length: where a sparse file's content lies
    ATTRIBUTES = 4  # MessagePack array of [name, value] pairs, both bin


class ExtraField(Record, frozen=True):
    entry: Annotated[int, msgspec.Meta(ge=0, lt=FOLDER_ENTRIES_MAX)]
    key: Annotated[int, msgspec.Meta(ge=0, le=255)]
    value: Annotated[bytes, msgspec.Meta(max_length=1 << 24)]


class Folder(Record, frozen=True):
    """Some or all entries of one folder, as columns."""

    path: Annotated[bytes, msgspec.Meta(max_length=PATH_MAX)]  # from the root, "/" between; the root is empty
    names: bytes  # joined by NUL
    kinds: bytes  # u8
    modes: bytes  # u32, permission bits: 0o7777 at most
    uids: bytes  # u32
    gids: bytes  # u32
    mtimes: bytes  # i64 ns
    sizes: bytes  # u64 bytes; of a link or special file 0
    chunks: bytes  # u32
    extras: Annotated[tuple[ExtraField, ...], msgspec.Meta(max_length=4 * FOLDER_ENTRIES_MAX)]


class ManifestFinding(Record, frozen=True):
    """What went wrong with one path while the snapshot was made."""

    code: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    severity: Annotated[str, msgspec.Meta(max_length=20)]
    subject: Annotated[bytes, msgspec.Meta(max_length=PATH_MAX)]
    message: Text
    remedy: Text


class Entry(msgspec.Struct, frozen=True):
    """One name in a dataset. `start` is where its content begins in the recipe's stream, in bytes."""

    path: bytes
    kind: EntryKind
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    chunks: int
    start: int
    stored: int  # bytes of content in the stream; less than size where it is sparse
    extras: dict[int, bytes]

    @property
    def link_target(self) -> bytes:
        return self.extras.get(Extra.LINK_TARGET, b"")

    @property
    def same_file(self) -> bytes | None:
        return self.extras.get(Extra.SAME_FILE)

    @property
    def extents(self) -> list[tuple[int, int]] | None:
        """(offset, length) of a sparse file's parts with content; None: it is not sparse."""
        raw = self.extras.get(Extra.EXTENTS)
        return None if raw is None else list(struct.iter_unpack("<QQ", raw))

    @property
    def attributes(self) -> list[tuple[bytes, bytes]]:
        raw = self.extras.get(Extra.ATTRIBUTES)
        return [] if raw is None else decode_attributes(raw)


_attributes_decoder = msgspec.msgpack.Decoder(list[tuple[bytes, bytes]])


def encode_attributes(attributes: list[tuple[bytes, bytes]]) -> bytes:
    return msgspec.msgpack.encode(attributes)


def decode_attributes(raw: bytes) -> list[tuple[bytes, bytes]]:
    try:
        return _attributes_decoder.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise malformed("manifest", "extended attributes cannot be read") from None


def frame(kind: FrameType, body: Record, *, size: int = 0, chunks: int = 0) -> bytes:
    raw = encode(body)
    return FRAME.pack(len(raw) + FRAME.size - 4, kind, size, chunks) + raw


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, its body not yet decoded."""

    kind: FrameType
    size: int
    chunks: int
    body: memoryview


def read_frames(stream: Iterable[bytes | memoryview]) -> Iterator[Frame]:
    """The frames of a manifest, whose bytes come in any pieces. Damaged."""
    pieces: list[bytes | memoryview] = []
    have, wanted = 0, FRAME.size
    for piece in stream:
        pieces.append(piece)
        have += len(piece)
        if have < wanted:
            continue
        view, offset = memoryview(b"".join(pieces)), 0
        while (frame := _frame_at(view, offset)) is not None:
            yield frame
            offset += FRAME.size + len(frame.body)
        pieces, have = [view[offset:]], len(view) - offset
        wanted = FRAME.size if have < FRAME.size else 4 + FRAME.unpack_from(view, offset)[0]
    if have:
        raise malformed("manifest", "a frame is cut off")


def ends_whole(data: bytes | bytearray) -> bool:
    """Whether these frames' lengths, one after the other, end where the bytes do."""
    offset = 0
    while len(data) - offset >= FRAME.size:
        offset += 4 + FRAME.unpack_from(data, offset)[0]
    return offset == len(data)


def _frame_at(view: memoryview, offset: int) -> Frame | None:
    """The frame that begins there; None when not all of it is there yet. Damaged."""
    if len(view) - offset < FRAME.size:
        return None
    length, kind, size, chunks = FRAME.unpack_from(view, offset)
    if not FRAME.size - 4 <= length <= FRAME_MAX or size > SIZE_MAX or chunks > SIZE_MAX:
        raise malformed("manifest", "a frame has an impossible length")
    if kind not in (FrameType.FOLDER, FrameType.FINDING) or (kind == FrameType.FINDING and (size or chunks)):
        raise malformed("manifest", "a frame has an unknown type, or a finding has content")
    end = offset + 4 + length
    return None if end > len(view) else Frame(FrameType(kind), size, chunks, view[offset + FRAME.size : end])


def decode_folder(frame: Frame) -> Folder:
    return decode(frame.body, Folder)


class RecordOrder:
    """Folders' records come in one order: paths component by component, and names within a folder (§17.1)."""

    def __init__(self) -> None:
        self._path: bytes | None = None
        self._last = b""

    def takes(self, path: bytes, first: bytes, last: bytes) -> bool:
        """Whether a record with these names may come now; without names they are empty. It is noted."""
        if path == self._path:
            fits = not first or first > self._last
            last = last or self._last
        else:
            fits = self._path is None or _sortable(path) > _sortable(self._path)
        self._path, self._last = path, last
        return fits

    def skip(self, path: bytes, last: bytes) -> None:
        """Further records came, of another path than the one before them, and are known to be in order among them."""
        self._path, self._last = path, last


def _sortable(path: bytes) -> bytes:
    return path.replace(b"/", b"\0")  # no name has a zero byte, so that what lies in a folder comes before its next


def read_folders(frames: Iterable[Frame]) -> Iterator[tuple[Folder, Frame, int]]:
    """The folders' records, and where the content of each begins in the stream. Damaged."""
    position, order = 0, RecordOrder()
    for frame in frames:
        if frame.kind != FrameType.FOLDER:
            continue
        if position > SIZE_MAX:
            raise malformed("manifest", "its content is larger than any can be")
        folder = decode_folder(frame)
        first, last = folder.names.split(b"\0", 1)[0], folder.names.rsplit(b"\0", 1)[-1]
        if not order.takes(folder.path, first, last):
            raise malformed("manifest", "its folders or their names are not in order")
        yield folder, frame, position
        position += frame.size


def entries(folder: Folder, frame: Frame, start: int) -> list[Entry]:
    """The folder's entries; `start` is where its content begins in the stream. Damaged."""
    names = folder.names.split(b"\0") if folder.kinds or folder.names else []
    n = len(folder.kinds)
    widths = ((folder.modes, 4), (folder.uids, 4), (folder.gids, 4), (folder.mtimes, 8), (folder.sizes, 8))
    if len(names) != n or n > FOLDER_ENTRIES_MAX or len(folder.chunks) != 4 * n:
        raise malformed("manifest", "a folder's columns do not fit together")
    if any(len(column) != width * n for column, width in widths):
        raise malformed("manifest", "a folder's columns do not fit together")
    check_path(folder.path)
    extras: dict[int, dict[int, bytes]] = {}
    for extra in folder.extras:
        if extra.entry >= n:
            raise malformed("manifest", "an additional field belongs to no entry")
        if extra.key in extras.setdefault(extra.entry, {}):
            raise malformed("manifest", "an entry has an additional field twice")
        extras[extra.entry][extra.key] = extra.value
    _check_names(names, folder)
    modes, sizes = struct.unpack(f"<{n}I", folder.modes), struct.unpack(f"<{n}Q", folder.sizes)
    if n and (max(folder.kinds) > EntryKind.UNREAD or max(modes) > 0o7777 or max(sizes) > SIZE_MAX):
        raise malformed("manifest", "an entry has an impossible kind, mode or size")
    uids, gids = struct.unpack(f"<{n}I", folder.uids), struct.unpack(f"<{n}I", folder.gids)
    mtimes, counts = struct.unpack(f"<{n}q", folder.mtimes), struct.unpack(f"<{n}I", folder.chunks)
    prefix = folder.path + b"/" if folder.path else b""
    found: list[Entry] = []
    position, count = start, sum(counts)
    columns = zip(names, folder.kinds, modes, uids, gids, mtimes, sizes, counts, strict=True)
    for i, (name, kind, mode, uid, gid, mtime, size, chunks) in enumerate(columns):
        fields = extras.get(i, {})
        stored = size if kind == EntryKind.FILE and not fields else _stored(kind, size, fields)
        if Extra.SAME_FILE in fields:
            check_path(fields[Extra.SAME_FILE])
            if kind != EntryKind.FILE or not fields[Extra.SAME_FILE]:
                raise malformed("manifest", "a further name of a file is no file")
        path = prefix + name if name != b"." else b""
        found.append(Entry(path, _KINDS[kind], mode, uid, gid, mtime, size, chunks, position, stored, fields))
        position += stored
    if position - start != frame.size or count != frame.chunks:
        raise malformed("manifest", "a folder's content is not as large as it says")
    return found


def _check_names(names: list[bytes], folder: Folder) -> None:
    """Damaged when they are not in order, or one is none. Columns are looked at whole: it is asked for every file."""
    if sorted(names) != names or len(set(names)) != len(names):
        raise malformed("manifest", "a folder's names are not in order")
    if b"/" in folder.names or not _SPECIAL.isdisjoint(names) or (names and max(map(len, names)) > NAME_MAX):
        for name, kind in zip(names, folder.kinds, strict=True):
            check_name(name, root=not folder.path)
            if name == b"." and kind != EntryKind.FOLDER:
                raise malformed("manifest", "the root is no folder")


def _stored(kind: int, size: int, extra: dict[int, bytes]) -> int:
    own = kind == EntryKind.FILE and Extra.SAME_FILE not in extra
    raw = extra.get(Extra.EXTENTS)
    if raw is None:
        return size if own else 0
    if kind != EntryKind.FILE or len(raw) % 16:
        raise malformed("manifest", "a sparse file's extents cannot be read")
    total = end = 0
    for offset, length in struct.iter_unpack("<QQ", raw):
        if offset < end or length > SIZE_MAX or offset + length > size:
            raise malformed("manifest", "a sparse file's extents are not in order")
        end = offset + length
        total += length
    return total if own else 0


def check_name(name: bytes, *, root: bool) -> None:
    """One component of a path. "." is allowed in the root's record alone, where it is the root itself."""
    if not name or len(name) > NAME_MAX or b"/" in name or b"\0" in name or name == b"..":
        raise malformed("manifest", "a name is empty, too long, or would lead out of its folder")
    if name == b"." and not root:
        raise malformed("manifest", "a name would lead out of its folder")


def check_path(path: bytes) -> None:
    """A path from the dataset's root: components that `check_name` allows. Damaged."""
    if path:
        for part in path.split(b"/"):
            check_name(part, root=False)
