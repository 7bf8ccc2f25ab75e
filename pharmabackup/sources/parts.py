"""Where a large folder is divided, so that it is never in memory as a whole.

Names decide it: one more file changes one part, and the others are as they were. A record of the manifest ends where
a part does.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

PART_MIN = 256  # entries; then a part ends after a name that says so, or at the maximum
PART_MAX = 4096
PART_CUT = 1024


def part_end(names: Sequence[bytes], start: int) -> int:
    """The end of the part that begins at `start`; names are sorted."""
    limit = min(len(names), start + PART_MAX)
    for end in range(start + PART_MIN, limit):
        if crc32(names[end - 1]) % PART_CUT == 0:
            return end
    return limit
