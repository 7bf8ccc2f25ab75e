"""Packs: sealed blocks, a sealed and signed directory, a trailer that says where the directory begins."""

from __future__ import annotations

import struct
from typing import Annotated

import msgspec

from pharmabackup.format.wire import Count, Hash, Id, Kind, Record, malformed

PACK_MAX = 1 << 28
CHUNK_MAX = 1 << 22
BLOCK_MAX = 1 << 23  # content, uncompressed
BLOCK_CHUNKS_MAX = 1 << 16
SEALED_BLOCK_MAX = BLOCK_MAX + (1 << 18)
DIRECTORY_MAX = 1 << 26
BLOCK_KINDS = (Kind.DATA_BLOCK, Kind.MANIFEST_BLOCK, Kind.RECIPE_BLOCK)

TRAILER = struct.Struct("<I4s")  # length of the sealed directory before it, magic
TRAILER_MAGIC = b"PHBP"


class Wrap(Record, frozen=True):
    """A key sealed (HPKE) to one recipient; `recipient` is the key id of its public key."""

    recipient: Hash
    sealed: Annotated[bytes, msgspec.Meta(max_length=4096)]


class WrappedKey(Record, frozen=True):
    """A transaction's key for everyone who may read. No wraps: a catalogue key, found in the keyring."""

    key_id: Hash
    wraps: Annotated[tuple[Wrap, ...], msgspec.Meta(max_length=16)]


class Block(Record, frozen=True):
    """One block in its pack: where, under which key, and the chunks in it."""

    id: Hash
    kind: Annotated[int, msgspec.Meta(ge=0, le=255)]
    key: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]  # which of the directory's keys
    offset: Annotated[int, msgspec.Meta(ge=0, lt=PACK_MAX)]
    length: Annotated[int, msgspec.Meta(ge=0, le=SEALED_BLOCK_MAX)]
    names: Annotated[bytes, msgspec.Meta(max_length=32 * BLOCK_CHUNKS_MAX)]  # 32 bytes a chunk
    lengths: Annotated[bytes, msgspec.Meta(max_length=4 * BLOCK_CHUNKS_MAX)]  # u32 a chunk, bytes

    @property
    def count(self) -> int:
        return len(self.names) // 32


class Directory(Record, frozen=True):
    """What a pack holds. `region` is the SHA-256 of its first `region_size` bytes: the blocks, without the filler."""

    domain: Id
    region: Hash
    region_size: Count
    keys: Annotated[tuple[WrappedKey, ...], msgspec.Meta(max_length=1 << 12)]
    blocks: Annotated[tuple[Block, ...], msgspec.Meta(max_length=1 << 16)]


def check_directory(directory: Directory) -> Directory:
    """The rules between fields. Damaged."""
    end = 0
    for block in sorted(directory.blocks, key=lambda block: block.offset):
        if block.kind not in BLOCK_KINDS or block.key >= len(directory.keys):
            raise malformed("directory", "a block has an unknown kind or key")
        if (block.kind == Kind.RECIPE_BLOCK) == bool(directory.keys[block.key].wraps):
            raise malformed("directory", "a block is sealed under another key than its kind has to be")
        if len(block.names) % 32 or len(block.lengths) != block.count * 4 or not block.names:
            raise malformed("directory", "a block's columns do not fit together")
        if block.offset < end or block.offset + block.length > directory.region_size:
            raise malformed("directory", "a block lies in another one or outside its pack")
        end = block.offset + block.length
        lengths = block_lengths(block)
        if sum(lengths) > BLOCK_MAX or not 0 < min(lengths) <= max(lengths) <= CHUNK_MAX:
            raise malformed("directory", "a block or a chunk of it has an impossible size")
    return directory


def block_lengths(block: Block) -> tuple[int, ...]:
    """The chunks' lengths in bytes."""
    return struct.unpack(f"<{block.count}I", block.lengths)
