"""A large file in parts, one after the other: by the calling thread, or ahead of it by threads of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor

PART = 1 << 20
READERS = 2
AHEAD = 4  # parts that are read and not yet taken

ReadAt = Callable[[int, memoryview], int]
Parts = Generator[tuple[int, memoryview, bytes], None, None]
"""Offset, bytes and hashes of each part. The bytes are good until the next part is asked for."""


def read_parts(read_at: ReadAt, size: int, hashed: Callable[[memoryview], bytes]) -> Parts:
    """Read and hash on this thread."""
    buffer = memoryview(bytearray(min(PART, size)))
    for offset in range(0, size, PART):
        part = buffer[: min(PART, size - offset)]
        read_exactly(read_at, offset, part)
        yield offset, part, hashed(part)


def read_parts_ahead(read_at: ReadAt, size: int, hashed: Callable[[memoryview], bytes]) -> Parts:
    """`read_at` and `hashed` are called by several threads at once."""
    buffers = [memoryview(bytearray(min(PART, size))) for _ in range(min(AHEAD, -(-size // PART)))]
    with ThreadPoolExecutor(READERS, thread_name_prefix="pharmabackup-read") as pool:
        under_way: deque[tuple[int, memoryview, memoryview, Future[bytes]]] = deque()
        offsets = iter(range(0, size, PART))

        def read(offset: int, part: memoryview) -> bytes:
            read_exactly(read_at, offset, part)
            return hashed(part)

        def begin(buffer: memoryview) -> None:
            offset = next(offsets, None)
            if offset is not None:
                part = buffer[: min(PART, size - offset)]
                under_way.append((offset, part, buffer, pool.submit(read, offset, part)))

        try:
            for buffer in buffers:
                begin(buffer)
            while under_way:
                offset, part, buffer, hashes = under_way.popleft()
                yield offset, part, hashes.result()
                begin(buffer)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def read_exactly(read_at: ReadAt, offset: int, view: memoryview) -> None:
    """Fill `view`; what the file lacks because it became shorter is zero, as SQLite reads it."""
    done = 0
    while done < len(view):
        got = read_at(offset + done, view[done:])
        if got == 0:
            view[done:] = bytes(len(view) - done)
            return
        done += got
