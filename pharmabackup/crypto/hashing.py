"""Keyed names, derived keys and commitments, all BLAKE3 (https://github.com/BLAKE3-team/BLAKE3-specs).

Every derivation has a context string of its own, so that no key serves two purposes.
"""

from __future__ import annotations

from blake3 import blake3

PREFIX = "pharmabackup/1 "
Buffer = bytes | bytearray | memoryview


def derive(purpose: str, key: bytes, length: int = 32) -> bytes:
    """A key for one purpose, of so many bytes, from which `key` cannot be found."""
    return blake3(key, derive_key_context=PREFIX + purpose).digest(length=length)


def key_id(key: bytes) -> bytes:
    """A key's public name (32 bytes), which commits to it: no two keys with one id can be found."""
    return derive("key id", key)


def keyed(key: bytes, data: Buffer) -> bytes:
    """BLAKE3 keyed hash, 32 bytes."""
    return blake3(data, key=key).digest()


def digest(data: Buffer) -> bytes:
    """BLAKE3 without a key, 32 bytes: for what lies inside a seal."""
    return blake3(data).digest()


def chunker_seed(naming_key: bytes) -> int:
    """The chunker's seed, below 2^63. One-way: who learns it learns nothing about the naming key."""
    return int.from_bytes(derive("chunker seed", naming_key)[:8], "little") >> 1
