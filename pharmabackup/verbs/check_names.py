"""Snapshots' names looked through whole.

Days have most pieces of a manifest in common, and pieces most of their folders' records: each is decoded once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blake3 import blake3

from pharmabackup.engine.reading import BlockReader, SnapshotReader
from pharmabackup.format.manifest import (
    EntryKind,
    Frame,
    FrameType,
    RecordOrder,
    decode_folder,
    ends_whole,
    entries,
    read_frames,
)
from pharmabackup.format.transaction import Ref
from pharmabackup.format.wire import malformed

KEPT_PATHS = 100_000  # of folders, in all pieces that are remembered, and in all records: some 30 MB each at most

Place = tuple[bytes, bytes, int]  # domain, block, ordinal


@dataclass(frozen=True, slots=True)
class _Record:
    """What a look through one folder's record showed."""

    path: bytes
    first: bytes  # names, empty in an empty folder
    last: bytes
    folders: frozenset[bytes]  # paths of entries that are folders
    firsts: frozenset[bytes]  # files that others are further names of
    files: int
    size: int


@dataclass(frozen=True, slots=True)
class _Piece:
    """What one look through some chunks showed that begin and end between frames."""

    places: tuple[Place, ...]
    head: tuple[tuple[bytes, bytes, bytes], ...]  # path, first and last name of the records of the first path
    end: tuple[bytes, bytes] | None  # path and last name of the last record, if it is of another path
    records: frozenset[bytes]  # paths of folders' records
    folders: frozenset[bytes]  # paths of entries that are folders
    firsts: frozenset[bytes]  # files that others are further names of
    files: int
    size: int
    stored: int


class NamesCheck:
    """Decodes manifests. `look` is called often and may raise."""

    def __init__(self, blocks: BlockReader, look: Callable[[], None]) -> None:
        self._blocks = blocks
        self._look = look
        self._known: OrderedDict[Place, _Piece] = OrderedDict()  # by the first place
        self._paths = 0
        self._records: dict[tuple[bytes, int, int], _Record] = {}
        self._record_paths = 0

    def totals(self, reader: SnapshotReader) -> tuple[int, int, int]:
        """The bytes of content that a whole manifest speaks of, its files, the sum of their sizes. Damaged."""
        record = reader.snapshot
        places = [(record.domain, ref.block, ref.first + i) for ref in record.manifest for i in range(ref.count)]
        stored = files = size = 0
        order = RecordOrder()
        records, folders, firsts = set[bytes](), {b""}, set[bytes]()
        while places:
            self._look()
            piece = self._piece(places)
            del places[: len(piece.places)]
            if not all(order.takes(*item) for item in piece.head):
                raise malformed("manifest", "its folders or their names are not in order")
            if piece.end is not None:
                order.skip(*piece.end)
            records |= piece.records
            folders |= piece.folders
            firsts |= piece.firsts
            stored, files, size = stored + piece.stored, files + piece.files, size + piece.size
        if not records <= folders:  # records are in order: a folder's own entry comes before what is in it, or never
            raise malformed("manifest", "a path names no folder seen before")
        if firsts:
            self._find_firsts(reader, firsts)
        return stored, files, size

    def _find_firsts(self, reader: SnapshotReader, firsts: set[bytes]) -> None:
        """Rare enough that names are read once more instead of being kept. Damaged."""
        for found in reader.entries():
            firsts -= {entry.path for entry in found if entry.kind == EntryKind.FILE and entry.same_file is None}
            self._look()
        if firsts:
            raise malformed("manifest", "a further name is of a file that is not in it")

    def _piece(self, places: Sequence[Place]) -> _Piece:
        """Some chunks from the first on: as few as end between two frames. Damaged."""
        known = self._known.get(places[0])
        if known is not None and tuple(places[: len(known.places)]) == known.places:
            self._known.move_to_end(places[0])
            return known
        data, used = bytearray(), list[Place]()
        for place in places:
            domain, block, ordinal = place
            for chunk in self._blocks.chunks((Ref(block, ordinal, 1),), domain):
                data += chunk
            used.append(place)
            if ends_whole(data):
                break
        piece = self._look_through(tuple(used), bytes(data))
        self._remember(piece)
        return piece

    def _look_through(self, places: tuple[Place, ...], data: bytes) -> _Piece:
        """Every record of a piece. Damaged."""
        found, stored, order = list[_Record](), 0, RecordOrder()
        for frame in read_frames([data]):
            if frame.kind != FrameType.FOLDER:
                continue
            record = self._record(frame)
            if not order.takes(record.path, record.first, record.last):
                raise malformed("manifest", "its folders or their names are not in order")
            found.append(record)
            stored += frame.size
        head = tuple((item.path, item.first, item.last) for item in found if item.path == found[0].path)
        end = None
        if found and found[-1].path != found[0].path:
            names = (item.last for item in reversed(found) if item.path == found[-1].path and item.last)
            end = found[-1].path, next(names, b"")
        return _Piece(
            places=places,
            head=head,
            end=end,
            records=frozenset(item.path for item in found),
            folders=frozenset().union(*(item.folders for item in found)),
            firsts=frozenset().union(*(item.firsts for item in found)),
            files=sum(item.files for item in found),
            size=sum(item.size for item in found),
            stored=stored,
        )

    def _record(self, frame: Frame) -> _Record:
        """A folder's record, every entry decoded. Damaged."""
        key = blake3(frame.body).digest(), frame.size, frame.chunks
        known = self._records.get(key)
        if known is None:
            known = self._records[key] = _look_at(frame)
            self._record_paths += 10 + len(known.folders) + len(known.firsts)
            if self._record_paths > KEPT_PATHS:  # rare, and the next pieces bring most of them again
                self._records.clear()
                self._record_paths = 0
        return known

    def _remember(self, piece: _Piece) -> None:
        before = self._known.pop(piece.places[0], None)
        self._known[piece.places[0]] = piece
        self._paths += _weight(piece) - (_weight(before) if before else 0)
        while self._paths > KEPT_PATHS:
            self._paths -= _weight(self._known.popitem(last=False)[1])


def _weight(piece: _Piece) -> int:
    return 10 + len(piece.records) + len(piece.folders) + len(piece.firsts) + len(piece.head)


def _look_at(frame: Frame) -> _Record:
    """Damaged."""
    folder = decode_folder(frame)
    found = entries(folder, frame, 0)
    files = [entry.size for entry in found if entry.kind == EntryKind.FILE]
    return _Record(
        path=folder.path,
        first=folder.names.split(b"\0", 1)[0],
        last=folder.names.rsplit(b"\0", 1)[-1],
        folders=frozenset(entry.path for entry in found if entry.kind == EntryKind.FOLDER),
        firsts=frozenset(entry.same_file for entry in found if entry.same_file is not None),
        files=len(files),
        size=sum(files),
    )
