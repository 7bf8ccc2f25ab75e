"""Fetching ahead of who reads: ranges of packs that will be wanted, neighbours in one request, several at once."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from pharmabackup.errors import Damaged, NotFound
from pharmabackup.storage.base import Storage

GAP = 1 << 20  # bytes that are fetched for nothing rather than to ask once more: at 100 MB/s they take 10 ms
PIECE = 8 << 20  # that one request fetches, about
AHEAD_BYTES = 40 << 20  # that are fetched, or being fetched, and not done with; who reads holds a piece each beside

Range = tuple[str, int, int]
"""An object's name, an offset in it, and a length."""


@dataclass(slots=True)
class _Piece:
    name: str
    start: int
    end: int
    ranges: int = 0  # that are not done with
    fetched: Future[bytes] | None = None  # None: not begun

    @property
    def size(self) -> int:
        return self.end - self.start


class Ahead:
    """What several threads are going to read, in order. Any thread."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._pool = ThreadPoolExecutor(max(1, storage.lanes), thread_name_prefix="pharmabackup-ahead")
        self._lock = threading.Lock()
        self._waiting: deque[_Piece] = deque()
        self._of: defaultdict[Range, deque[_Piece]] = defaultdict(deque)
        self._bytes = 0  # of pieces that were begun and are not done with

    def plan(self, ranges: Iterable[Range]) -> None:
        """What will be read after all that was planned before. Each is to be read, or not, and then `done`."""
        pieces: list[_Piece] = []
        with self._lock:
            for name, offset, length in ranges:
                last = pieces[-1] if pieces else None
                if (
                    last is None
                    or last.name != name
                    or not 0 <= offset - last.end <= GAP
                    or offset + length - last.start > PIECE
                ):
                    last = _Piece(name, offset, offset)
                    pieces.append(last)
                last.end = offset + length
                last.ranges += 1
                self._of[name, offset, length].append(last)
            self._waiting += pieces
            self._go_on()

    def get_range(self, name: str, offset: int, length: int) -> bytes | memoryview:
        """As `Storage.get_range`. What was not planned, or is asked for before its turn, is fetched now.

        StorageFailed, too, comes to who wants what was fetched, and is not asked for twice.
        """
        with self._lock:
            pieces = self._of.get((name, offset, length))
            piece = pieces[0] if pieces else None
            fetched = None if piece is None else piece.fetched
        if piece is not None and fetched is not None:
            with suppress(Damaged, NotFound):  # it may be the neighbour; a storage that failed was patient already
                at = offset - piece.start
                return memoryview(fetched.result())[at : at + length]
        return self._storage.get_range(name, offset, length)

    def done(self, planned: Range) -> None:
        """A range that was planned is not asked for any more."""
        with self._lock:
            piece = self._of[planned].popleft()
            if not self._of[planned]:
                del self._of[planned]
            piece.ranges -= 1
            if not piece.ranges:
                if piece.fetched is None:
                    self._waiting.remove(piece)
                else:
                    self._bytes -= piece.size
                    piece.fetched = None
                self._go_on()

    def _go_on(self) -> None:
        while self._waiting and (not self._bytes or self._bytes + self._waiting[0].size <= AHEAD_BYTES):
            piece = self._waiting.popleft()
            self._bytes += piece.size
            piece.fetched = self._pool.submit(self._storage.get_range, piece.name, piece.start, piece.size)

    def close(self) -> None:
        """Wait for what is under way; nothing more is begun."""
        self._pool.shutdown(wait=True, cancel_futures=True)
