"""Work that nobody waits for in a hurry: on a thread of its own, which gives way where processors are few."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, TypeVar

LEAST = 19  # nice: whoever else wants a processor has it

P = ParamSpec("P")
T = TypeVar("T")


def give_way(by: int) -> None:
    """Lower the priority of the calling thread, and of those that it will start."""
    if sys.platform == "linux":  # elsewhere the call is about the whole process
        with suppress(OSError):  # a sandbox may forbid it, and it only makes things faster
            now = os.getpriority(os.PRIO_PROCESS, 0)
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(LEAST, now + by))


class Background:
    """One thread that gives way. The caller waits for what it does, so that there is nothing to synchronize."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "pharmabackup-background", initializer=give_way, initargs=(LEAST,))

    def run(self, what: Callable[P, T], /, *arguments: P.args, **named: P.kwargs) -> T:
        """What it returns, or raises."""
        return self._pool.submit(what, *arguments, **named).result()

    def close(self) -> None:
        """Wait for what is under way."""
        self._pool.shutdown(wait=True)
