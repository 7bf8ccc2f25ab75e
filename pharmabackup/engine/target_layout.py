"""Reading and writing content where it belongs in its file; sparse files have holes in between."""

from __future__ import annotations

import errno
import os
import threading
from bisect import bisect_right
from collections.abc import Iterator

PIECE = 1 << 20
HAS_PWRITE = hasattr(os, "pwrite")
_ZEROS = bytes(PIECE)
_seek_lock = threading.Lock()


def write_all(fd: int, data: memoryview) -> None:
    done = os.write(fd, data)
    while done < len(data):
        done += os.write(fd, data[done:])


def write_at(fd: int, data: memoryview, offset: int) -> None:
    if not HAS_PWRITE:
        with _seek_lock:
            os.lseek(fd, offset, os.SEEK_SET)
            write_all(fd, data)
        return
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def read_at(fd: int, size: int, offset: int) -> bytes:
    if not hasattr(os, "pread"):
        with _seek_lock:
            os.lseek(fd, offset, os.SEEK_SET)
            return os.read(fd, size)
    return os.pread(fd, size, offset)


class Layout:
    """Where stored content lies in its file: the same place, unless the file is sparse."""

    def __init__(self, extents: list[tuple[int, int]] | None) -> None:
        self.extents = extents
        self._starts: list[int] = []
        total = 0
        for _, length in extents or ():
            self._starts.append(total)
            total += length

    def spans(self, offset: int, size: int) -> Iterator[tuple[int, int, int]]:
        """(offset in the file, begin, end) of each stretch of `size` stored bytes from `offset`."""
        if self.extents is None:
            yield offset, 0, size
            return
        i = bisect_right(self._starts, offset) - 1
        done = 0
        while done < size:
            place, length = self.extents[i]
            skip = offset + done - self._starts[i]
            part = min(length - skip, size - done)
            yield place + skip, done, done + part
            done += part
            i += 1

    def write(self, fd: int, data: memoryview, offset: int = 0) -> None:
        for place, begin, end in self.spans(offset, len(data)):
            write_at(fd, data[begin:end], place)

    def write_pieces(self, fd: int, pieces: list[tuple[int, memoryview]]) -> None:
        """Write each at its offset. There may be many: of a database's pages, most lie alone."""
        if self.extents is None and HAS_PWRITE:
            for offset, data in pieces:
                done = os.pwrite(fd, data, offset)
                if done < len(data):
                    write_at(fd, data[done:], offset + done)
        else:
            for offset, data in pieces:
                self.write(fd, data, offset)

    def equals(self, fd: int, data: memoryview, offset: int = 0) -> bool:
        for place, begin, end in self.spans(offset, len(data)):
            for at in range(begin, end, PIECE):
                piece = data[at : min(at + PIECE, end)]
                if read_at(fd, len(piece), place + at - begin) != bytes(piece):  # memoryviews compare slowly
                    return False
        return True

    def holes_are_empty(self, fd: int, size: int) -> bool:
        """Whether a file of that size has nothing but zeros outside the extents."""
        if self.extents is None:
            return True
        ends = [place + length for place, length in self.extents]
        for begin, end in data_ranges(fd, size):
            at = begin
            while at < end:
                i = bisect_right(self.extents, (at, 1 << 63)) - 1
                if i >= 0 and at < ends[i]:
                    at = ends[i]
                    continue
                stop = min(end, self.extents[i + 1][0] if i + 1 < len(ends) else end, at + PIECE)
                piece = read_at(fd, stop - at, at)
                if not piece or piece != _ZEROS[: len(piece)]:
                    return False
                at += len(piece)
        return True


def data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where an open file has data, as far as the file system says so."""
    if not hasattr(os, "SEEK_DATA"):
        yield 0, size
        return
    at = 0
    while at < size:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
            at = os.lseek(fd, begin, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        yield begin, min(at, size)
