"""zstd frames (RFC 8878) with bounded output: a frame says its size, and more than allowed is refused unread.

A frame's checksum (XXH64 of the content) finds faults of memory and of the compressor; who may have changed the frame
is for the seal around it to say.
"""

from __future__ import annotations

import threading

import zstandard

from pharmabackup.errors import Damaged

PAGES_LEVEL = 2  # database pages: on the sample database 19 % slower than level 1, and 2.7 % smaller
CHANGED_PAGES_LEVEL = 6  # of a later backup, while they are few: a tenth smaller in no more time
FILES_LEVEL = 3
CHANGED_DUMP_LEVEL = 9  # of a later dump, of which little is new: 7 % smaller than level 3
Buffer = bytes | bytearray | memoryview

_local = threading.local()  # contexts are expensive to make and belong to one thread at a time


def compress(data: Buffer, level: int, *, checksum: bool = False) -> bytes:
    """One frame with its content's size in the header, and its checksum where that is asked for."""
    compressors: dict[tuple[int, bool], zstandard.ZstdCompressor] = _local.__dict__.setdefault("compressors", {})
    compressor = compressors.get((level, checksum))
    if compressor is None:
        compressor = zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=checksum)
        compressors[level, checksum] = compressor
    return compressor.compress(data)


def decompress(frame: Buffer, *, limit: int, checksum: bool = False) -> bytes:
    """The content, at most `limit` bytes; `checksum`: the frame must have one. Damaged."""
    decompressor: zstandard.ZstdDecompressor | None = _local.__dict__.get("decompressor")
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    try:
        size = zstandard.frame_content_size(frame)
        if 0 <= size <= limit and not (checksum and not zstandard.get_frame_parameters(frame).has_checksum):
            return decompressor.decompress(frame, read_across_frames=False)
    except zstandard.ZstdError:
        size = 0
    why = "is larger than allowed" if size > limit else "cannot be decompressed"
    raise Damaged(
        f"A stored object {why}.",
        kind="format",
        remedy="Run check to see what is affected, and restore from another location.",
    )
