"""A lock that a forked process finds free: of its parent's threads none is there to let go of it."""

from __future__ import annotations

import os
import threading
from weakref import WeakSet


class Mutex:
    """As `threading.Lock`, in a `with`.

    What it guards has to be right at any moment, since another thread may have been at work on it at the fork.
    """

    __slots__ = ("__weakref__", "_held", "_lock")

    def __init__(self) -> None:
        self._lock = self._held = threading.Lock()
        _all.add(self)

    def __enter__(self) -> None:
        lock = self._lock
        lock.acquire()
        self._held = lock  # who forks meanwhile lets go of this one in the child

    def __exit__(self, *_: object) -> None:
        self._held.release()

    def renew(self) -> None:
        """A new one, which is free."""
        self._lock = threading.Lock()


_all: WeakSet[Mutex] = WeakSet()


def _forked() -> None:
    for mutex in list(_all):
        mutex.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
