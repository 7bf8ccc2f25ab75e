"""Packs: sealed blocks, their chunks' names, a sealed and signed directory, a trailer that says where that begins."""

from __future__ import annotations

import struct
from typing import Annotated

import msgspec

from pharmabackup.format.wire import HEADER, KEY_ID_SIZE, Count, Hash, Id, Kind, Record, malformed

PACK_MAX = 1 << 28
CHUNK_MAX = 1 << 22
BLOCK_MAX = 1 << 23  # content, uncompressed
BLOCK_CHUNKS_MAX = 1 << 16
SEALED_BLOCK_MAX = BLOCK_MAX + (1 << 18)
DIRECTORY_MAX = 1 << 26
NAMES_MAX = 1 << 26
BLOCK_KINDS = (Kind.DATA_BLOCK, Kind.MANIFEST_BLOCK, Kind.RECIPE_BLOCK)

NAME_SIZE = 32
NAMES_OVERHEAD = HEADER.size + KEY_ID_SIZE + 24 + 16  # header, key id, nonce, tag
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
    """One block in its pack: where, under which key, and how many chunks. Its id commits to their names."""

    id: Hash
    kind: Annotated[int, msgspec.Meta(ge=0, le=255)]
    key: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]  # which of the directory's keys
    offset: Annotated[int, msgspec.Meta(ge=0, lt=PACK_MAX)]
    length: Annotated[int, msgspec.Meta(ge=0, le=SEALED_BLOCK_MAX)]
    count: Annotated[int, msgspec.Meta(ge=1, le=BLOCK_CHUNKS_MAX)]  # chunks


class Directory(Record, frozen=True):
    """What a pack holds. `region` is the SHA-256 of its first `region_size` bytes: the blocks. Names follow them."""

    domain: Id
    region: Hash
    region_size: Count
    names_size: Annotated[int, msgspec.Meta(ge=0, le=NAMES_MAX)]  # sealed
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
        if block.offset < end or block.offset + block.length > directory.region_size:
            raise malformed("directory", "a block lies in another one or outside its pack")
        end = block.offset + block.length
    if directory.names_size != names_size(sum(block.count for block in directory.blocks)):
        raise malformed("directory", "its list of names is not as long as its blocks need")
    return directory


def names_size(chunks: int) -> int:
    """How many bytes the sealed names of so many chunks take in a pack; without chunks there is no list."""
    return NAMES_OVERHEAD + NAME_SIZE * chunks if chunks else 0


def names_of(directory: Directory, names: bytes) -> list[bytes]:
    """Each block's part of an opened list of names. Damaged."""
    if len(names) != NAME_SIZE * sum(block.count for block in directory.blocks):
        raise malformed("pack", "its list of names is not as long as its blocks need")
    found, at = [], 0
    for block in directory.blocks:
        found.append(names[at : at + NAME_SIZE * block.count])
        at += NAME_SIZE * block.count
    return found
