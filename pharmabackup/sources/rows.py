"""What an entry of a folder is like, packed into a row: what the next run compares."""

from __future__ import annotations

import os
import struct

ROW = struct.Struct("<IIIQqqQI")  # st_mode, uid, gid, size, mtime, ctime, inode, links
ROW_SIZE = ROW.size
NEVER = bytes(ROW_SIZE)  # stored instead of a row that must not be taken as proof: no entry has the mode 0
UNSEEN = ROW.pack(0, 0, 0, 0, 0, 0, 0, 1)  # of what could not be looked at: never stored, so nothing equals it
TIME_MAX = (1 << 63) - 1
_INODE_LINKS = struct.Struct("<QI")


def clamped(time: int) -> int:
    """A time in ns as near as i64 comes: from 1677 to 2262. Some file systems hold more."""
    return max(-TIME_MAX, min(TIME_MAX, time))


def clamped_row(status: os.stat_result) -> bytes:
    """A row of what may have a time that no row holds."""
    times = clamped(status.st_mtime_ns), clamped(status.st_ctime_ns)
    return ROW.pack(
        status.st_mode, status.st_uid, status.st_gid, status.st_size, *times, status.st_ino, status.st_nlink
    )


def inode_and_links(row: bytes) -> tuple[int, int]:
    inode, links = _INODE_LINKS.unpack_from(row, ROW_SIZE - _INODE_LINKS.size)
    return inode, links
