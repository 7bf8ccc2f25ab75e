"""How fast bytes go out to a storage, so that the shop's line stays usable: one allowance for all its uploads."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime

from pharmabackup.errors import InvalidInput
from pharmabackup.mutex import Mutex

UploadLimit = int | Callable[[datetime], int | None]
"""Bytes a second, at least RATE_MIN; or what says so for a moment of this machine's local time.

None: as fast as it goes. 0, of a function alone: nothing now. What is under way waits then until the function says
something else; a server may end a line on which nothing comes, and what was being sent is sent again.
"""

RATE_MIN = 1000  # bytes a second; below it, pieces of several threads come so seldom that servers end their lines
PIECES_PER_SECOND = 10  # a piece is what goes at once: smaller ones cost more, larger ones come in gusts
PIECE_MIN = 4096
ASK_AGAIN_S = 1.0  # while nothing may go


class Pace:
    """Lets several threads together send no more than a limit. InvalidInput where that lets too little through."""

    def __init__(self, limit: UploadLimit) -> None:
        self._limit = limit
        self._lock = Mutex()
        self._free_at = 0.0  # monotonic seconds: when what was allowed until now will have gone
        if not callable(limit):
            _check(limit)

    def take(self, size: int) -> int:
        """How much of `size` bytes may go now. It waits until that is so. It raises what a limit's function does."""
        rate = self._rate()
        if rate is None:
            return size
        size = min(size, max(PIECE_MIN, rate // PIECES_PER_SECOND))
        with self._lock.own:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + size / rate
            wait = self._free_at - now
        time.sleep(wait)
        return size

    def _rate(self) -> int | None:
        if not callable(self._limit):
            return self._limit
        while (rate := self._limit(datetime.now().astimezone())) == 0:
            time.sleep(ASK_AGAIN_S)
        return _check(rate)


def _check(rate: int | None) -> int | None:
    if rate is not None and rate < RATE_MIN:
        raise InvalidInput(
            f"An upload limit of {rate} bytes a second lets too little through: it has to be {RATE_MIN:,} or more.",
            remedy="Give a number of bytes a second, or None for no limit. A function may say 0: nothing now.",
        )
    return rate
