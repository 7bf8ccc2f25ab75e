"""A database's content: extents that are as they were are taken over, the pages of all others are named one by one.

Where there is something to compare with, parts are read and hashed ahead by other threads: most of the work is that.
A first backup does it all on one thread: naming pages keeps that busy, and others would only make it wait.

A block stays as long as one of its pages is needed, and a restore reads it whole. So a page lies with others that
will probably change when it does: those whose blocks, when they changed or were left, were about as old. And what is
left in blocks that are hardly used is written again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing

from blake3 import blake3

from pharmabackup.compression import CHANGED_PAGES_LEVEL, PAGES_LEVEL
from pharmabackup.engine.contents import Contents
from pharmabackup.engine.filecache import Remembered
from pharmabackup.engine.index import Index
from pharmabackup.engine.readahead import ReadAt, read_parts, read_parts_ahead
from pharmabackup.format.recipe import Runs

EXTENT = 32 << 10  # unchanged ones are not cut into pages; half of that would cost more calls than it saves
EXTENT_HASH = 16
FEW_BYTES = 64 << 20  # so many new pages of a later backup are compressed better
GENERATIONS = (1, 6, 24)  # backups: pages that changed after so many, or more than all, go into blocks of their own
YOUNG = 6  # backups; until then a block still loses most of what it will lose


class PageContents:
    """Puts a database file into a dataset's content. Used by one thread."""

    def __init__(self, contents: Contents, *, index: Index, naming_key: bytes, extent_key: bytes) -> None:
        self.extents = bytearray()  # the hash of each, for the next run
        self._contents = contents
        self._index = index
        self._naming_key = naming_key
        self._extent_key = extent_key
        self._extent = EXTENT
        self._remembers = False
        self._new = 0  # bytes of new pages
        self._level = PAGES_LEVEL
        self._scarce: list[tuple[int, int]] = []
        self._scarce_blocks: set[int] = set()
        self._full_blocks: set[int] = set()  # of the last recipe, the others
        self._scarce_at = 0
        self._generation_of: list[int] = []  # of the last recipe's blocks, by slot
        self._run_at = 0

    def pages(self, read_at: ReadAt, *, size: int, page_size: int, step: Callable[[int], None]) -> tuple[int, int]:
        """A database file; (chunks, bytes). `step` hears of each part that is done, in bytes."""
        contents = self._contents
        self._extent = max(EXTENT, page_size)  # whole pages, and a part is whole extents: all are powers of two
        before, old_size = b"", 0
        old, first = contents.old, contents.total_bytes == 0 and not contents.kept_end
        if old is not None and old.page_size == page_size and first:
            before, old_size = old.extents, contents.old_bytes[-1]
            self._generation_of = [bisect_left(GENERATIONS, age) for age in contents.table.ages]
            self._scarce = self._scarcely_used(old)
            self._remembers = True
        read = read_parts_ahead if before else read_parts
        with closing(read(read_at, size, self._hashes)) as parts:
            for offset, part, hashes in parts:
                place, length = offset // self._extent * EXTENT_HASH, len(part)
                if first:  # the extents that are remembered are those with which the content begins
                    self.extents += hashes
                was = before[place : place + len(hashes)] if offset + length <= old_size else b""
                if was == hashes and not self._is_scarce(offset // page_size, (offset + length) // page_size):
                    contents.keep(offset // page_size, length // page_size, offset, length)
                else:
                    self._part(offset, part, hashes, was, page_size)
                step(length)
        return -(-size // page_size), size

    def _hashes(self, part: memoryview) -> bytes:
        """The joined hashes of a part's extents."""
        key, extent = self._extent_key, self._extent
        return b"".join(
            [blake3(part[at : at + extent], key=key).digest(EXTENT_HASH) for at in range(0, len(part), extent)]
        )

    def _part(self, offset: int, part: memoryview, hashes: bytes, was: bytes, page_size: int) -> None:
        """Take over the extents that are as they were; name the pages of each stretch between them."""
        contents, extent = self._contents, self._extent
        new_from = -1  # where a stretch of changed extents began
        for at in range(0, len(part), extent):
            place, size = at // extent * EXTENT_HASH, min(extent, len(part) - at)
            same = was[place : place + EXTENT_HASH] == hashes[place : place + EXTENT_HASH]
            page = (offset + at) // page_size
            if same and not self._is_scarce(page, page + size // page_size):
                if new_from >= 0:
                    self._changed(part[new_from:at], (offset + new_from) // page_size, page_size)
                    new_from = -1
                contents.keep(page, size // page_size, offset + at, size)
            elif new_from < 0:
                new_from = at
        if new_from >= 0:
            self._changed(part[new_from:], (offset + new_from) // page_size, page_size)

    def _changed(self, data: memoryview, page: int, page_size: int) -> None:
        """Pages that may be new, from this one on."""
        contents, key, at = self._contents, self._naming_key, 0
        if contents.kept_end:
            contents.flush_kept()
        names = [blake3(data[i : i + page_size], key=key).digest() for i in range(0, len(data), page_size)]
        for stop, generation in self._generations(page, page + len(names)):
            self._put(data, names, at, stop - page, generation, page_size)
            at = stop - page
        contents.total_chunks += len(names)
        contents.total_bytes += len(data)

    def _put(self, data: memoryview, names: list[bytes], at: int, stop: int, generation: int, page_size: int) -> None:
        """Pages `at` to `stop` of these, a block's room of them at a time."""
        contents = self._contents
        while at < stop:
            level = CHANGED_PAGES_LEVEL if self._remembers and self._new < FEW_BYTES else PAGES_LEVEL
            if level != self._level:
                contents.close_blocks()  # so that no more are open at a time than there are generations
                self._level = level
            buffer = contents.buffer(level, page_size, generation)
            end = min(stop, at + contents.room(buffer, page_size))
            fill, slot, ordinal = buffer.fill, buffer.slot, len(buffer.names)
            places = self._index.take(
                names[at:end], buffer.number, ordinal, renew=self._scarce_blocks, prefer=self._full_blocks
            )
            add = contents.runs.add
            while at < end:
                count = 1
                place = places[at - end]
                if place is None:
                    while at + count < end and places[at + count - end] is None:
                        count += 1
                    piece = data[at * page_size : (at + count) * page_size]
                    buffer.content[fill : fill + len(piece)] = piece
                    fill += len(piece)
                    buffer.names += names[at : at + count]
                    buffer.lengths.extend([page_size] * (count - 1))
                    buffer.lengths.append(len(piece) - (count - 1) * page_size)
                    add(slot, ordinal, count, len(piece))
                    ordinal += count
                else:
                    add(contents.table.slot(place[0]), place[1], 1, min(page_size, len(data) - at * page_size))
                at += count
            self._new += fill - buffer.fill
            buffer.fill = fill

    def _scarcely_used(self, old: Remembered) -> list[tuple[int, int]]:
        """Stretches of pages (first, end) that lie in blocks of which the last recipe uses too little."""
        runs: Runs = old.runs
        used: dict[int, int] = {}
        for block, count in zip(runs.block, runs.count, strict=True):
            used[block] = used.get(block, 0) + count
        counts, numbers, ages = self._index.blocks.count, self._contents.table.numbers, self._contents.table.ages
        slots = {slot for slot, pages in used.items() if hardly_used(pages, counts[numbers[slot]], ages[slot])}
        self._scarce_blocks, self._full_blocks = self._instances(slots), self._instances(used.keys() - slots)
        chunks = self._contents.old_chunks
        return [(chunks[i], chunks[i + 1]) for i, block in enumerate(runs.block) if block in slots]

    def _instances(self, slots: Iterable[int]) -> set[int]:
        """The numbers of these blocks in all packs that have them."""
        blocks, numbers = self._index.blocks, self._contents.table.numbers
        return {number for slot in slots for number in blocks.instances(blocks.ids[numbers[slot]])}

    def _is_scarce(self, first: int, end: int) -> bool:
        """Whether pages from first to end touch such a stretch. Asked in the order of the pages."""
        scarce = self._scarce
        while self._scarce_at < len(scarce) and scarce[self._scarce_at][1] <= first:
            self._scarce_at += 1
        return self._scarce_at < len(scarce) and scarce[self._scarce_at][0] < end

    def _generations(self, page: int, end: int) -> Iterator[tuple[int, int]]:
        """Where stretches of pages end that lay in blocks of one generation, and which. Asked in the pages' order."""
        old = self._contents.old
        if old is None or not self._remembers:
            yield end, 0
            return
        starts, blocks, of = self._contents.old_chunks, old.runs.block, self._generation_of
        at, last, generation = self._run_at, len(blocks), -1
        while page < end:
            while at < last and starts[at + 1] <= page:
                at += 1
            found, stop = (of[blocks[at]], min(end, starts[at + 1])) if at < last else (0, end)
            if found != generation and generation >= 0:
                yield page, generation
            generation, page = found, stop
        self._run_at = at
        yield end, generation


def hardly_used(pages: int, count: int, age: int) -> bool:
    """Whether the pages that are left of a block's `count` are to be written again. `age`: in backups."""
    return pages * 10 < count * (1 if age <= YOUNG else 4)
