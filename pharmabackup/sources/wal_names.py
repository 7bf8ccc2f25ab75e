"""PostgreSQL's write-ahead log (WAL): what its files are called, and which one comes after which.

Names are those of https://www.postgresql.org/docs/current/wal-internals.html and continuous-archiving.html; a
segment's first bytes are XLogLongPageHeaderData of PostgreSQL's access/xlog_internal.h, and the lines of a history
file those of its access/transam/timeline.c.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping, Sequence

SEGMENT = re.compile(r"[0-9A-F]{24}")
HISTORY = re.compile(r"[0-9A-F]{8}\.history")
FILE = re.compile(r"[0-9A-F]{24}(\.[0-9A-F]{8}\.backup|\.partial)?|[0-9A-F]{8}\.history")
HEADER = struct.Struct("=HHIQ")  # magic, info, timeline, address of the page: in the server's byte order
USUAL_SIZE = 16 << 20  # of a segment, unless initdb was told otherwise
LOG = 1 << 32  # bytes of WAL that one number of a name's middle part counts

Run = tuple[str, str]
"""The first and the last of segments of one timeline, none of which is missing."""


def is_segment(name: str) -> bool:
    return SEGMENT.fullmatch(name) is not None


def is_history(name: str) -> bool:
    """Whether it says where a timeline left another."""
    return HISTORY.fullmatch(name) is not None


def number(name: str, size: int) -> int:
    """Which segment it is, of those of `size` bytes, since the beginning of the log; whatever its timeline."""
    return int(name[8:16], 16) * (LOG // size) + int(name[16:24], 16)


def timeline(name: str) -> int:
    return int(name[:8], 16)


def after(name: str, size: int) -> str:
    """The next segment on the same timeline."""
    return named(timeline(name), number(name, size) + 1, size)


def runs(names: Iterable[str], size: int) -> list[Run]:
    """Segments, as runs in which none is missing, in the order of their names."""
    found: list[Run] = []
    for name in sorted(names):
        if found and name == after(found[-1][1], size):
            found[-1] = found[-1][0], name
        else:
            found.append((name, name))
    return found


def joined(parts: Iterable[Run], size: int) -> list[Run]:
    """Runs that may overlap or follow one another, as few as possible."""
    found: list[Run] = []
    for first, last in sorted(parts):
        if found and timeline(first) == timeline(found[-1][1]) and first <= after(found[-1][1], size):
            found[-1] = found[-1][0], max(last, found[-1][1])
        else:
            found.append((first, last))
    return found


def covers(parts: Iterable[Run], wanted: Sequence[Run], size: int) -> bool:
    """Whether all segments of `wanted` are in `parts`."""
    there = joined(parts, size)
    return all(any(first <= run[0] and run[1] <= last for first, last in there) for run in wanted)


def length(run: Run, size: int) -> int:
    """How many segments."""
    return number(run[1], size) - number(run[0], size) + 1


def forks(history: str, size: int) -> list[tuple[int, int]]:
    """The timelines that one came from, by its history file, and the segments they were left in; the nearest last."""
    found: list[tuple[int, int]] = []
    for line in history.splitlines():
        words = line.split()
        if words and not words[0].startswith("#"):
            try:
                high, low = (int(half, 16) for half in words[1].split("/"))
                found.append((int(words[0]), (high << 32 | low) // size))
            except (IndexError, ValueError):
                continue
    return found


def gaps(there: Iterable[Run], histories: Mapping[int, str], size: int) -> list[Run]:
    """What is missing between segments, in the order of names. `histories`: by timeline, as far as they are there.

    Of a timeline it begins where that left another, if its history says so; and the other's has to reach that place.
    """
    parts = joined(there, size)
    missing: list[Run] = []
    for before, run in zip([None, *parts], parts, strict=False):
        line, first = timeline(run[0]), number(run[0], size)
        if before is not None and timeline(before[1]) == line:
            missing.append((after(before[1], size), named(line, first - 1, size)))
        elif came := forks(histories.get(line, ""), size):
            if first > came[-1][1]:
                missing.append((named(line, came[-1][1], size), named(line, first - 1, size)))
            missing += _lacks(parts, came, size)
        elif before is not None and first > number(before[1], size) + 1:
            missing.append((named(line, number(before[1], size) + 1, size), named(line, first - 1, size)))
    return joined(missing, size)


def _lacks(there: Sequence[Run], came: Sequence[tuple[int, int]], size: int) -> list[Run]:
    """What is missing of the timelines that one came from, up to where each was left."""
    missing: list[Run] = []
    begins = None  # of the oldest nobody knows
    for parent, fork in came:
        ends = [number(last, size) for _, last in there if timeline(last) == parent]
        have = max(ends) + 1 if ends else begins
        if have is not None and have < fork:
            missing.append((named(parent, have, size), named(parent, fork - 1, size)))
        begins = fork
    return missing


def named(line: int, which: int, size: int) -> str:
    """The name of a segment, by its timeline and number."""
    high, low = divmod(which, LOG // size)
    return f"{line:08X}{high:08X}{low:08X}"


def is_what_it_says(name: str, head: bytes, size: int) -> bool:
    """Whether a segment's first bytes are of the place in the log that its name says.

    The timeline may be an earlier one: a new timeline begins with a copy of the segment in which it left the old.
    """
    if len(head) < HEADER.size:
        return False
    _, _, line, address = HEADER.unpack_from(head)
    return bool(address == number(name, size) * size and 0 < line <= timeline(name))
