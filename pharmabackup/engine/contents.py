"""Where a dataset's content goes: cut, named, looked up, placed into blocks if new, noted in the recipe.

This is the hot path. Per byte everything is compiled code; per chunk it is a few microseconds of Python, and no
Python object of a chunk outlives its block.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable

from blake3 import blake3

from pharmabackup.chunking import ContentCutter
from pharmabackup.compression import FILES_LEVEL, PAGES_LEVEL
from pharmabackup.engine.blocks import BLOCK_CHUNKS, BlockWriter, Buffer
from pharmabackup.engine.filecache import Remembered, cumulative
from pharmabackup.engine.index import Index
from pharmabackup.format.recipe import UNUSED, Runs
from pharmabackup.format.wire import Kind

EXTENT = 64 << 10  # of a database: unchanged ones are not cut into pages
EXTENT_HASH = 16
READ_SIZE = 1 << 20
SPARSE_USE = 4  # pages in blocks of which less than a quarter is used are written again

if hasattr(os, "readv"):

    def read_into(fd: int, view: memoryview) -> int:
        """Up to len(view) bytes from the file's position; 0 at its end."""
        return os.readv(fd, (view,))

else:

    def read_into(fd: int, view: memoryview) -> int:
        """Up to len(view) bytes from the file's position; 0 at its end."""
        data = os.read(fd, len(view))
        view[: len(data)] = data
        return len(data)


class Table:
    """The blocks that a recipe names, by slot. A slot keeps its block from snapshot to snapshot."""

    def __init__(self) -> None:
        self.numbers: array[int] = array("q")  # block number in the index; -1: unused
        self._slots: dict[int, int] = {}
        self._free: list[int] = []

    def adopt(self, ids: list[bytes], index: Index) -> bool:
        """Begin with the last snapshot's slots. False when one of its blocks may not be relied on."""
        for slot, block_id in enumerate(ids):
            number = index.blocks.find(block_id, index.domain) if block_id != UNUSED else -1
            if number is None:
                return False
            self.numbers.append(number)
            if number < 0:
                self._free.append(slot)
            else:
                self._slots.setdefault(number, slot)
        return True

    def slot(self, number: int) -> int:
        """The slot of a block; a new one if it has none."""
        found = self._slots.get(number)
        if found is None:
            if self._free:
                found = self._free.pop()
                self.numbers[found] = number
            else:
                found = len(self.numbers)
                self.numbers.append(number)
            self._slots[number] = found
        return found

    def ids(self, used: set[int], index: Index) -> bytes:
        """The table as stored: unused slots are zero, and those at the end are cut off."""
        end = max(used, default=-1) + 1
        return b"".join(
            index.blocks.ids[number] if slot in used else UNUSED for slot, number in enumerate(self.numbers[:end])
        )


class Contents:
    """One dataset's content on its way into blocks. Used by one thread."""

    def __init__(
        self,
        *,
        index: Index,
        blocks: BlockWriter,
        naming_key: bytes,
        extent_key: bytes,
        cutter: ContentCutter,
        remembered: Remembered | None,
    ) -> None:
        self.table = Table()
        self.runs = Runs()
        self.extents = bytearray()
        self.total_chunks = 0
        self.total_bytes = 0
        self._index = index
        self._blocks = blocks
        self._naming_key = naming_key
        self._extent_key = extent_key
        self._cutter = cutter
        self._open: dict[int, Buffer] = {}
        self._read = memoryview(bytearray(READ_SIZE + cutter.maximum))
        self._kept_end = self._kept_from = self._kept_byte_from = self._kept_byte_end = 0
        self._old: Remembered | None = None
        self._scarce: list[tuple[int, int]] = []
        self._scarce_blocks: set[int] = set()
        self._scarce_at = 0
        if remembered is not None and self.table.adopt(remembered.table, index):
            self._old = remembered
            self._old_chunks = cumulative(remembered.runs.count)
            self._old_bytes = cumulative(remembered.runs.sizes)
            self._scarce = self._scarcely_used(remembered.runs)
        elif remembered is not None:
            self.table = Table()

    @property
    def remembers(self) -> bool:
        """Whether the last snapshot's content may be taken over."""
        return self._old is not None

    # ------------------------------------------------------------ blocks

    def _buffer(self, level: int, room: int) -> Buffer:
        """The open block for this kind of data, with room for one more chunk of that size."""
        buffer = self._open.get(level)
        if buffer is not None:
            if buffer.fill + room <= self._blocks.target and len(buffer.names) < BLOCK_CHUNKS:
                return buffer
            self._blocks.finish_block(buffer)
        buffer = self._open[level] = self._blocks.begin(Kind.DATA_BLOCK, level)
        buffer.slot = self.table.slot(buffer.number)
        return buffer

    def _known(self, name: bytes) -> tuple[int, int] | None:
        found = self._index.find(name)
        return None if found is None else (self.table.slot(found[0]), found[1])

    def finish(self) -> None:
        """No more content comes."""
        self._flush_kept()
        for buffer in self._open.values():
            self._blocks.finish_block(buffer)
        self._open = {}

    # ------------------------------------------------------------ files, cut by content

    def file(self, fd: int, size: int) -> tuple[int, int]:
        """An open file from its position to its end; (chunks, bytes)."""
        if size > self._cutter.minimum:
            return self.stream(lambda view: read_into(fd, view))
        if self._kept_end:
            self._flush_kept()
        buffer = self._buffer(FILES_LEVEL, size + 1)
        fill = buffer.fill
        end = fill + size + 1  # one byte more: a file that has grown shows it
        got = read_into(fd, buffer.content[fill:end])
        if got > size or (0 < got < size):
            rest = bytes(buffer.content[fill : fill + got])  # it changed meanwhile: go the long way
            return self.stream(_after(rest, lambda view: read_into(fd, view)))
        if got == 0:
            return 0, 0
        view = buffer.content[fill : fill + got]
        name = blake3(view, key=self._naming_key).digest()
        found = self._index.find(name)
        if found is None:
            ordinal = len(buffer.names)
            buffer.names.append(name)
            buffer.lengths.append(got)
            buffer.fill = fill + got
            self._index.put(name, buffer.number, ordinal)
            self.runs.add(buffer.slot, ordinal, 1, got)
        else:
            self.runs.add(self.table.slot(found[0]), found[1], 1, got)
        self.total_chunks += 1
        self.total_bytes += got
        return 1, got

    def stream(self, read: Callable[[memoryview], int]) -> tuple[int, int]:
        """What `read` gives until it gives 0; (chunks, bytes). Cuts depend on the content alone."""
        if self._kept_end:
            self._flush_kept()
        view, cutter = self._read, self._cutter
        filled = chunks = total = 0
        ended = False
        while not ended:
            while filled < len(view):
                got = read(view[filled:])
                if got == 0:
                    ended = True
                    break
                filled += got
            if not filled:
                break
            lengths = cutter.cuts(view[:filled])
            if not ended and len(lengths) > 1:
                lengths.pop()  # it ends where the buffer does; more content may move its end
            at = 0
            for length in lengths:
                self._chunk(view[at : at + length], length, FILES_LEVEL)
                at += length
            chunks += len(lengths)
            total += at
            filled -= at
            if filled:
                view[:filled] = bytes(view[at : at + filled])
        self.total_chunks += chunks
        self.total_bytes += total
        return chunks, total

    def _chunk(self, data: memoryview, length: int, level: int) -> None:
        name = blake3(data, key=self._naming_key).digest()
        found = self._index.find(name)
        if found is not None:
            self.runs.add(self.table.slot(found[0]), found[1], 1, length)
            return
        self._place(name, data, length, level)

    def _place(self, name: bytes, data: memoryview, length: int, level: int) -> None:
        buffer = self._buffer(level, length)
        ordinal, fill = len(buffer.names), buffer.fill
        buffer.content[fill : fill + length] = data
        buffer.fill = fill + length
        buffer.names.append(name)
        buffer.lengths.append(length)
        self._index.put(name, buffer.number, ordinal)
        self.runs.add(buffer.slot, ordinal, 1, length)

    # ------------------------------------------------------------ databases, cut by page

    def pages(
        self,
        read_at: Callable[[int, memoryview], int],
        *,
        size: int,
        page_size: int,
        step: Callable[[int], None],
    ) -> tuple[int, int]:
        """A database file; (chunks, bytes). `step` hears of each part that is done, in bytes."""
        old = self._old if self._old is not None and self._old.page_size == page_size else None
        before = old.extents if old is not None and self.total_bytes == 0 else b""
        old_size = self._old_bytes[-1] if old is not None else 0
        view = self._read[:READ_SIZE]
        key, extent_pages, chunks = self._extent_key, EXTENT // page_size, 0
        for offset in range(0, size, READ_SIZE):
            part = view[: min(READ_SIZE, size - offset)]
            read_exactly(read_at, offset, part)
            for at in range(0, len(part), EXTENT):
                extent = part[at : at + EXTENT]
                digest = blake3(extent, key=key).digest(EXTENT_HASH)
                place = len(self.extents)
                self.extents += digest
                start = offset + at
                same = before[place : place + EXTENT_HASH] == digest and start + len(extent) <= old_size
                page = start // page_size
                if same and not self._is_scarce(page, page + extent_pages):
                    self.keep(page, len(extent) // page_size, start, len(extent))
                else:
                    if self._kept_end:
                        self._flush_kept()
                    self._extent_pages(extent, page_size)
            step(len(part))
        chunks = -(-size // page_size)
        return chunks, size

    def _extent_pages(self, extent: memoryview, page_size: int) -> None:
        """The pages of one extent: those that are new go into the block, neighbours in one move."""
        key, size = self._naming_key, len(extent)
        buffer = self._buffer(PAGES_LEVEL, size)
        names = [blake3(extent[at : at + page_size], key=key).digest() for at in range(0, size, page_size)]
        ordinal = len(buffer.names)
        places = self._index.take(names, buffer.number, ordinal, self._scarce_blocks)
        add, slot, fill, new = self.runs.add, self.table.slot, buffer.fill, 0
        for i, place in enumerate(places):
            at = i * page_size
            length = min(page_size, size - at)
            if place is None:
                new += 1
                buffer.names.append(names[i])
                buffer.lengths.append(length)
                if i + 1 == len(places) or places[i + 1] is not None:
                    start = (i + 1 - new) * page_size
                    moved = at + length - start
                    buffer.content[fill : fill + moved] = extent[start : at + length]
                    fill += moved
                    add(buffer.slot, ordinal, new, moved)
                    ordinal, new = ordinal + new, 0
            else:
                add(slot(place[0]), place[1], 1, length)
        buffer.fill = fill
        self.total_chunks += len(places)
        self.total_bytes += size

    # ------------------------------------------------------------ what is as it was

    def keep(self, first_chunk: int, chunks: int, first_byte: int, size: int) -> None:
        """Take over a stretch of the last recipe: chunks and bytes from these positions of its stream."""
        if not chunks:
            return
        if first_chunk != self._kept_end or not self._kept_end:
            if self._kept_end:
                self._flush_kept()
            self._kept_from, self._kept_byte_from = first_chunk, first_byte
        self._kept_end = first_chunk + chunks
        self._kept_byte_end = first_byte + size

    def _flush_kept(self) -> None:
        start, end = self._kept_from, self._kept_end
        byte_start, byte_end = self._kept_byte_from, self._kept_byte_end
        self._kept_end = 0
        if start >= end:
            return
        assert self._old is not None
        old, runs, chunks, sizes = self._old.runs, self.runs, self._old_chunks, self._old_bytes
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

    def _scarcely_used(self, runs: Runs) -> list[tuple[int, int]]:
        """Stretches of pages (first, end) that lie in blocks of which the last recipe uses too little."""
        assert self._old is not None
        if not self._old.page_size:
            return []
        used: dict[int, int] = {}
        for block, count in zip(runs.block, runs.count, strict=True):
            used[block] = used.get(block, 0) + count
        counts, numbers = self._index.blocks.count, self.table.numbers
        slots = {slot for slot, pages in used.items() if pages * SPARSE_USE < counts[numbers[slot]]}
        self._scarce_blocks = {numbers[slot] for slot in slots}
        return [
            (self._old_chunks[i], self._old_chunks[i + 1]) for i, block in enumerate(runs.block) if block in slots
        ]

    def _is_scarce(self, first: int, end: int) -> bool:
        """Whether pages from first to end touch such a stretch. Asked in the order of the pages."""
        scarce = self._scarce
        while self._scarce_at < len(scarce) and scarce[self._scarce_at][1] <= first:
            self._scarce_at += 1
        return self._scarce_at < len(scarce) and scarce[self._scarce_at][0] < end


def read_exactly(read_at: Callable[[int, memoryview], int], offset: int, view: memoryview) -> None:
    """Fill `view`; what the file lacks because it became shorter is zero, as SQLite reads it."""
    done = 0
    while done < len(view):
        got = read_at(offset + done, view[done:])
        if got == 0:
            view[done:] = bytes(len(view) - done)
            return
        done += got


def _after(first: bytes, read: Callable[[memoryview], int]) -> Callable[[memoryview], int]:
    """A reader that gives `first` and then what `read` gives."""
    left = [first]

    def both(view: memoryview) -> int:
        if left:
            data = left.pop()
            view[: len(data)] = data
            return len(data)
        return read(view)

    return both
