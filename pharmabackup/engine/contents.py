"""One dataset's content on its way into a snapshot: its recipe, its blocks, and what is taken over from the last one.

`content_files` and `content_pages` put content in. That is the hot path: per byte everything is compiled code; per
chunk it is a few microseconds of Python, and no Python object of a chunk outlives its block.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from pharmabackup.engine.blocks import BLOCK_CHUNKS, BlockWriter, Buffer
from pharmabackup.engine.filecache import Remembered, cumulative
from pharmabackup.engine.index import Index
from pharmabackup.engine.table import Table
from pharmabackup.format.recipe import Runs
from pharmabackup.format.wire import Kind


class Contents:
    """The stream of a dataset's content. Used by one thread."""

    def __init__(self, *, index: Index, blocks: BlockWriter, remembered: Remembered | None) -> None:
        self.table = Table()
        self.runs = Runs()
        self.total_chunks = 0
        self.total_bytes = 0
        self.kept_end = 0  # a stretch of the last recipe that is to be taken over, if not 0: see `keep`
        self.old: Remembered | None = None
        self._blocks = blocks
        self._open: dict[tuple[int, int], Buffer] = {}
        self._kept_from = self._kept_byte_from = self._kept_byte_end = 0
        if remembered is not None:
            if self.table.adopt(remembered.table, remembered.ages, index):
                self.old = remembered
                self.old_chunks = cumulative(remembered.runs.count)
                self.old_bytes = cumulative(remembered.runs.sizes)
            else:
                self.table = Table()

    @property
    def remembers(self) -> bool:
        """Whether the last snapshot's content may be taken over."""
        return self.old is not None

    # ------------------------------------------------------------ blocks

    def buffer(self, level: int, room: int, generation: int = 0) -> Buffer:
        """The open block for this kind of data, with room for one more chunk of that size.

        Of one generation is what will probably be let go together: it goes into blocks of its own.
        """
        buffer = self._open.get((level, generation))
        if buffer is not None:
            if buffer.fill + room <= self._blocks.target and len(buffer.names) < BLOCK_CHUNKS:
                return buffer
            self._blocks.finish_block(buffer)
        buffer = self._open[level, generation] = self._blocks.begin(Kind.DATA_BLOCK, level)
        buffer.slot = self.table.slot(buffer.number)
        return buffer

    def room(self, buffer: Buffer, chunk: int) -> int:
        """How many more chunks of that size fit."""
        return min((self._blocks.target - buffer.fill) // chunk, BLOCK_CHUNKS - len(buffer.names))

    def finish(self) -> None:
        """No more content comes."""
        self.flush_kept()
        self.close_blocks()

    def close_blocks(self) -> None:
        """What comes next begins new ones."""
        for buffer in self._open.values():
            self._blocks.finish_block(buffer)
        self._open = {}

    # ------------------------------------------------------------ what is as it was

    def keep(self, first_chunk: int, chunks: int, first_byte: int, size: int) -> None:
        """Take over a stretch of the last recipe: chunks and bytes from these positions of its stream."""
        if not chunks:
            return
        if first_chunk != self.kept_end or not self.kept_end:
            if self.kept_end:
                self.flush_kept()
            self._kept_from, self._kept_byte_from = first_chunk, first_byte
        self.kept_end = first_chunk + chunks
        self._kept_byte_end = first_byte + size

    def flush_kept(self) -> None:
        """Note what was kept in the recipe. Whoever adds other content does this first, if `kept_end` is not 0."""
        start, end = self._kept_from, self.kept_end
        byte_start, byte_end = self._kept_byte_from, self._kept_byte_end
        self.kept_end = 0
        if start >= end:
            return
        assert self.old is not None
        old, runs, chunks, sizes = self.old.runs, self.runs, self.old_chunks, self.old_bytes
        i = bisect_right(chunks, start) - 1
        j = bisect_left(chunks, end)  # runs i to j - 1 cover the stretch
        self.total_chunks += end - start
        self.total_bytes += byte_end - byte_start
        skip, skip_bytes = start - chunks[i], byte_start - sizes[i]
        over, over_bytes = chunks[j] - end, sizes[j] - byte_end
        if j - i == 1:
            runs.add(old.block[i], old.first[i] + skip, end - start, byte_end - byte_start)
            return
        runs.add(old.block[i], old.first[i] + skip, old.count[i] - skip, old.sizes[i] - skip_bytes)
        if j - i > 2:
            runs.extend(old, i + 1, j - 1)
        last = j - 1
        runs.add(old.block[last], old.first[last], old.count[last] - over, old.sizes[last] - over_bytes)
