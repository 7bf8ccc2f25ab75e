"""How fast bytes go out to a storage, so that the shop's line stays usable: one allowance for all its uploads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime

from pharmabackup.errors import InvalidInput

UploadLimit = int | Callable[[datetime], int | None]
"""Bytes a second; or what says so for a moment of this machine's local time, None: as fast as it goes."""

PIECES_PER_SECOND = 10  # a piece is what goes at once: smaller ones cost more, larger ones come in gusts
PIECE_MIN = 4096


class Pace:
    """Lets several threads together send no more than a limit. InvalidInput where that lets nothing through."""

    def __init__(self, limit: UploadLimit) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._free_at = 0.0  # monotonic seconds: when what was allowed until now will have gone
        if not callable(limit):
            _check(limit)

    def take(self, size: int) -> int:
        """How much of `size` bytes may go now. It waits until that is so."""
        limit = self._limit
        rate = _check(limit(datetime.now().astimezone())) if callable(limit) else limit
        if rate is None:
            return size
        size = min(size, max(PIECE_MIN, rate // PIECES_PER_SECOND))
        with self._lock:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + size / rate
            wait = self._free_at - now
        time.sleep(wait)
        return size


def _check(rate: int | None) -> int | None:
    if rate is not None and rate < 1:
        raise InvalidInput(
            f"An upload limit of {rate} bytes a second lets nothing through.",
            remedy="Give a number of bytes a second, or None for no limit.",
        )
    return rate
