"""Files' content: cut where it says itself, named, looked up, placed into blocks if new, noted in the recipe."""

from __future__ import annotations

import os
from collections.abc import Callable

from blake3 import blake3

from pharmabackup.chunking import ContentCutter
from pharmabackup.compression import CHANGED_DUMP_LEVEL, FILES_LEVEL
from pharmabackup.engine.contents import Contents
from pharmabackup.engine.index import Index

READ_SIZE = 1 << 20

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


class FileContents:
    """Puts files into a dataset's content. Used by one thread."""

    def __init__(self, contents: Contents, *, index: Index, naming_key: bytes, cutter: ContentCutter) -> None:
        self._contents = contents
        self._index = index
        self._naming_key = naming_key
        self._cutter = cutter
        self._finer = cutter.finer()
        self._read = memoryview(bytearray(READ_SIZE + cutter.maximum))

    def file(self, fd: int, size: int) -> tuple[int, int]:
        """An open file from its position to its end; (chunks, bytes)."""
        if size > self._cutter.minimum:
            return self.stream(lambda view: read_into(fd, view))
        contents = self._contents
        if contents.kept_end:
            contents.flush_kept()
        buffer = contents.buffer(FILES_LEVEL, size + 1)
        fill = buffer.fill
        view = buffer.content[fill : fill + size + 1]  # one byte more: a file that has grown shows it
        got = read_into(fd, view)
        if got != size:
            if got == 0:
                return 0, 0
            rest = bytes(view[:got])  # it changed meanwhile: go the long way
            return self.stream(_after(rest, lambda view: read_into(fd, view)))
        if got == 0:
            return 0, 0
        name = blake3(view[:size], key=self._naming_key).digest()
        ordinal = len(buffer.names)
        found = self._index.take_one(name, buffer.number, ordinal)
        if found is None:
            buffer.names.append(name)
            buffer.lengths.append(got)
            buffer.fill = fill + got
            contents.runs.add(buffer.slot, ordinal, 1, got)
        else:
            contents.runs.add(contents.table.slot(found[0]), found[1], 1, got)
        contents.total_chunks += 1
        contents.total_bytes += got
        return 1, got

    def stream(self, read: Callable[[memoryview], int], *, fine: bool = False) -> tuple[int, int]:
        """What `read` gives until it gives 0; (chunks, bytes). Cuts depend on the content and `fine` alone."""
        contents = self._contents
        if contents.kept_end:
            contents.flush_kept()
        view, cutter = self._read, self._finer if fine else self._cutter
        level = CHANGED_DUMP_LEVEL if fine and contents.remembers else FILES_LEVEL
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
                self._chunk(view[at : at + length], length, level)
                at += length
            chunks += len(lengths)
            total += at
            filled -= at
            if filled:
                view[:filled] = bytes(view[at : at + filled])
        contents.total_chunks += chunks
        contents.total_bytes += total
        return chunks, total

    def _chunk(self, data: memoryview, length: int, level: int) -> None:
        contents = self._contents
        name = blake3(data, key=self._naming_key).digest()
        buffer = contents.buffer(level, length)
        ordinal, fill = len(buffer.names), buffer.fill
        found = self._index.take_one(name, buffer.number, ordinal)
        if found is not None:
            contents.runs.add(contents.table.slot(found[0]), found[1], 1, length)
            return
        buffer.content[fill : fill + length] = data
        buffer.fill = fill + length
        buffer.names.append(name)
        buffer.lengths.append(length)
        contents.runs.add(buffer.slot, ordinal, 1, length)


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
