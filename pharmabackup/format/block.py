"""A block's content: its chunks, one after the other, and a trailer with their lengths.

content   = chunk bytes | n times u32 length | u32 n
plaintext = one zstd frame of content, with its size and its checksum
"""

from __future__ import annotations

import struct

from pharmabackup.format.pack import BLOCK_CHUNKS_MAX, BLOCK_MAX, CHUNK_MAX
from pharmabackup.format.wire import malformed

COUNT = struct.Struct("<I")
CONTENT_MAX = BLOCK_MAX + 4 * BLOCK_CHUNKS_MAX + COUNT.size


def trailer(lengths: bytes) -> bytes:
    """What follows the chunks; `lengths` are u32 little-endian."""
    return lengths + COUNT.pack(len(lengths) // 4)


def chunk_ends(content: bytes | memoryview) -> list[int]:
    """Where each chunk ends, with a 0 before: chunk i is content[ends[i]:ends[i+1]]. Damaged."""
    if len(content) < COUNT.size:
        raise malformed("block", "it is too short")
    (count,) = COUNT.unpack_from(content, len(content) - COUNT.size)
    start = len(content) - COUNT.size - 4 * count
    if not 0 < count <= BLOCK_CHUNKS_MAX or start < 0:
        raise malformed("block", "it has an impossible number of chunks")
    ends, end = [0], 0
    for length in struct.unpack_from(f"<{count}I", content, start):
        if length > CHUNK_MAX:
            raise malformed("block", "a chunk is too large")
        end += length
        ends.append(end)
    if end != start or end > BLOCK_MAX:
        raise malformed("block", "its chunks do not fill it, or are too much")
    return ends
