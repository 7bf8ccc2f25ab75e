"""Recipes: what a dataset's content consists of, as runs of chunks in blocks, in the manifest's order.

A recipe is a stream of sections. A section is u32 n and then columns of n values: u32 block (which of the
snapshot's table), u32 first ordinal, u32 number of chunks, u64 bytes. The table is a stream of 32-byte block ids;
32 zero bytes are a place that is not used.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import add

from pharmabackup.format.pack import BLOCK_CHUNKS_MAX, BLOCK_MAX
from pharmabackup.format.wire import little, malformed

SECTION_RUNS_MAX = 1 << 16
UNUSED = bytes(32)
_COUNT = struct.Struct("<I")


@dataclass(slots=True)
class Runs:
    """Columns of runs, one place a run. Arrays, because a recipe may have millions."""

    block: array[int] = field(default_factory=lambda: array("I"))
    first: array[int] = field(default_factory=lambda: array("I"))
    count: array[int] = field(default_factory=lambda: array("I"))
    sizes: array[int] = field(default_factory=lambda: array("Q"))

    def __len__(self) -> int:
        return len(self.block)

    def add(self, block: int, first: int, count: int, size: int) -> None:
        """Append, joined to the run before it where it goes on there."""
        if self.block and self.block[-1] == block and self.first[-1] + self.count[-1] == first:
            self.count[-1] += count
            self.sizes[-1] += size
            return
        self.block.append(block)
        self.first.append(first)
        self.count.append(count)
        self.sizes.append(size)

    def extend(self, other: Runs, start: int, end: int) -> None:
        """Append other's runs start to end as they are."""
        self.block.extend(other.block[start:end])
        self.first.extend(other.first[start:end])
        self.count.extend(other.count[start:end])
        self.sizes.extend(other.sizes[start:end])

    def section(self, start: int, end: int) -> bytes:
        columns = (self.block, self.first, self.count, self.sizes)
        return _COUNT.pack(end - start) + b"".join(little(column[start:end]).tobytes() for column in columns)


def decode_runs(stream: Iterator[bytes | memoryview], *, table_size: int, chunks: int) -> Runs:
    """All sections of a recipe of so many chunks; each piece of `stream` holds whole sections. Damaged."""
    runs = Runs()
    for piece in stream:
        view, offset = memoryview(piece), 0
        while offset < len(view):
            if len(view) - offset < _COUNT.size:
                raise malformed("recipe", "a section is cut off")
            (n,) = _COUNT.unpack_from(view, offset)
            offset += _COUNT.size
            if not 0 < n <= SECTION_RUNS_MAX or len(view) - offset < 20 * n:
                raise malformed("recipe", "a section has an impossible length")
            for column, width in ((runs.block, 4), (runs.first, 4), (runs.count, 4), (runs.sizes, 8)):
                values = array(column.typecode)
                values.frombytes(view[offset : offset + width * n])
                column.extend(little(values))
                offset += width * n
        if len(runs) > chunks:
            raise malformed("recipe", "it has more runs than its snapshot has chunks")
    if runs.block and max(runs.block) >= table_size:
        raise malformed("recipe", "a run names no block of the table")
    if runs.count and min(runs.count) == 0:
        raise malformed("recipe", "a run has no chunks")
    if runs.first and max(map(add, runs.first, runs.count)) > BLOCK_CHUNKS_MAX:
        raise malformed("recipe", "a run lies outside its block")
    if runs.sizes and max(runs.sizes) > BLOCK_MAX:
        raise malformed("recipe", "a run is larger than a block")
    return runs
