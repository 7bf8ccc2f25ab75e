"""Work that nobody waits for in a hurry: on a thread of its own, which gives way where processors are few."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, TypeVar

LEAST = 19  # nice: whoever else wants a processor has it

P = ParamSpec("P")
T = TypeVar("T")
Item = TypeVar("Item")


def give_way(by: int) -> None:
    """Lower the priority of the calling thread, and of those that it will start."""
    if sys.platform == "linux":  # elsewhere the call is about the whole process
        with suppress(OSError):  # a sandbox may forbid it, and it only makes things faster
            now = os.getpriority(os.PRIO_PROCESS, 0)
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(LEAST, now + by))


class Background:
    """Threads that give way: one for what the caller waits for, and one that is a step ahead of it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(2, "pharmabackup-background", initializer=give_way, initargs=(LEAST,))

    def run(self, what: Callable[P, T], /, *arguments: P.args, **named: P.kwargs) -> T:
        """What it returns, or raises."""
        return self._pool.submit(what, *arguments, **named).result()

    def one_ahead(self, what: Callable[[Item], T], items: Iterable[Item]) -> Iterator[tuple[Item, Callable[[], T]]]:
        """Each item with a function that gives or raises what comes of it, while that of the next one is made."""
        before: tuple[Item, Callable[[], T]] | None = None
        for item in items:
            coming = item, self._pool.submit(what, item).result
            if before is not None:
                yield before
            before = coming
        if before is not None:
            yield before

    def close(self) -> None:
        """Wait for what is under way."""
        self._pool.shutdown(wait=True)
