"""Manifests, recipes and block tables as chunks: cut where their content says, so that they deduplicate too."""

from __future__ import annotations

from collections.abc import Callable
from zlib import crc32

from blake3 import blake3

from pharmabackup.compression import FILES_LEVEL
from pharmabackup.engine.blocks import BLOCK_CHUNKS, BlockWriter, Buffer
from pharmabackup.engine.index import Index
from pharmabackup.format.recipe import Runs
from pharmabackup.format.transaction import Ref
from pharmabackup.format.wire import Kind

PIECE_MIN = 16 << 10  # of a manifest, bytes
PIECE_MAX = 256 << 10
PIECE_CUT = 8  # on average one folder record in so many ends a piece, once it is large enough
SECTION_MIN = 256  # of a recipe, runs
SECTION_MAX = 4096
SECTION_CUT = 256
TABLE_PIECE = 256 * 32  # of a block table, bytes: its slots do not move, so the cuts need not either


class PieceWriter:
    """Puts chunks of one kind into blocks of their own."""

    def __init__(self, index: Index, blocks: BlockWriter, kind: Kind, names_key: bytes) -> None:
        self._index = index
        self._blocks = blocks
        self._kind = kind
        self._key = names_key
        self._buffer: Buffer | None = None
        self._places: list[tuple[int, int]] = []

    def put(self, data: bytes) -> None:
        """Store a chunk, or find it stored."""
        name = blake3(data, key=self._key).digest()
        found = self._index.find(name)
        if found is None:
            buffer = self._buffer
            if buffer is not None and (
                buffer.fill + len(data) > self._blocks.target or len(buffer.names) == BLOCK_CHUNKS
            ):
                self._blocks.finish_block(buffer)
                buffer = None
            if buffer is None:
                buffer = self._buffer = self._blocks.begin(self._kind, FILES_LEVEL)
            found = (buffer.number, len(buffer.names))
            buffer.content[buffer.fill : buffer.fill + len(data)] = data
            buffer.fill += len(data)
            buffer.names.append(name)
            buffer.lengths.append(len(data))
            self._index.put(name, *found)
        self._places.append(found)

    def take_places(self) -> list[tuple[int, int]]:
        """Where the chunks put since the last call lie: (block number, ordinal), in order."""
        places, self._places = self._places, []
        return places

    def finish(self) -> None:
        if self._buffer is not None:
            self._blocks.finish_block(self._buffer)
            self._buffer = None


class ManifestWriter:
    """Takes a manifest's frames and cuts them into pieces."""

    def __init__(self, put: Callable[[bytes], None]) -> None:
        self._put = put
        self._frames: list[bytes] = []
        self._size = 0
        self._path: bytes | None = None  # of the last frames

    def add(self, frames: bytes, path: bytes) -> None:
        """Whole frames. A piece that is large enough ends after them where their path says so.

        Within a large folder it always does, so that what follows a changed part is cut as before.
        """
        self._frames.append(frames)
        self._size += len(frames)
        ends = path == self._path or crc32(path) % PIECE_CUT == 0
        self._path = path
        if (self._size >= PIECE_MIN and ends) or self._size >= PIECE_MAX:
            self.flush()

    def flush(self) -> None:
        data = b"".join(self._frames)
        for at in range(0, len(data), PIECE_MAX):  # a frame may go on in the next chunk
            self._put(data[at : at + PIECE_MAX])
        self._frames, self._size = [], 0


def put_recipe(pieces: PieceWriter, runs: Runs) -> None:
    """A recipe in sections that end after runs that say so themselves."""
    start = 0
    for i, (block, first) in enumerate(zip(runs.block, runs.first, strict=True)):
        length = i + 1 - start
        if length < SECTION_MIN:
            continue
        if (block * 0x9E3779B1 + first * 0x85EBCA6B) >> 8 & SECTION_CUT - 1 == 0 or length == SECTION_MAX:
            pieces.put(runs.section(start, i + 1))
            start = i + 1
    if start < len(runs):
        pieces.put(runs.section(start, len(runs)))


def put_table(pieces: PieceWriter, table: bytes) -> None:
    for at in range(0, len(table), TABLE_PIECE):
        pieces.put(table[at : at + TABLE_PIECE])


def refs(index: Index, places: list[tuple[int, int]]) -> tuple[Ref, ...]:
    """Places as the snapshot names them: block id, first ordinal, count."""
    joined: list[list[int]] = []
    for number, ordinal in places:
        if joined and joined[-1][0] == number and joined[-1][1] + joined[-1][2] == ordinal:
            joined[-1][2] += 1
        else:
            joined.append([number, ordinal, 1])
    return tuple(Ref(index.blocks.ids[number], first, count) for number, first, count in joined)
