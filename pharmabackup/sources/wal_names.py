"""PostgreSQL's write-ahead log (WAL): what its files are called, and which one comes after which.

Names are those of https://www.postgresql.org/docs/current/wal-internals.html and continuous-archiving.html; a
segment's first bytes are XLogLongPageHeaderData of PostgreSQL's access/xlog_internal.h.
"""

from __future__ import annotations

import re
import struct

SEGMENT = re.compile(r"[0-9A-F]{24}")
FILE = re.compile(r"[0-9A-F]{24}(\.[0-9A-F]{8}\.backup|\.partial)?|[0-9A-F]{8}\.history")
HEADER = struct.Struct("=HHIQ")  # magic, info, timeline, address of the page: in the server's byte order
LOG = 1 << 32  # bytes of WAL that one number of a name's middle part counts


def is_segment(name: str) -> bool:
    return SEGMENT.fullmatch(name) is not None


def number(name: str, size: int) -> int:
    """Which segment it is, of those of `size` bytes, since the beginning of the log; whatever its timeline."""
    return int(name[8:16], 16) * (LOG // size) + int(name[16:24], 16)


def timeline(name: str) -> int:
    return int(name[:8], 16)


def after(name: str, size: int) -> str:
    """The next segment on the same timeline."""
    high, low = divmod(number(name, size) + 1, LOG // size)
    return f"{timeline(name):08X}{high:08X}{low:08X}"


def misses(name: str, following: str, size: int) -> int:
    """How many segments are missing between two that were archived one after the other, on whatever timelines."""
    return max(0, number(following, size) - number(name, size) - 1)


def is_what_it_says(name: str, head: bytes, size: int) -> bool:
    """Whether a segment's first bytes are of the place in the log that its name says.

    The timeline may be an earlier one: a new timeline begins with a copy of the segment in which it left the old.
    """
    if len(head) < HEADER.size:
        return False
    _, _, line, address = HEADER.unpack_from(head)
    return bool(address == number(name, size) * size and 0 < line <= timeline(name))
