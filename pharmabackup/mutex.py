"""A lock that a forked process finds free: of its parent's threads none is there to let go of it."""

from __future__ import annotations

import os
import threading
from weakref import WeakSet


class Mutex:
    """Used as `with mutex.own:`.

    What it guards has to be right at any moment, since another thread may have been at work on it at the fork.
    """

    __slots__ = ("__weakref__", "own")

    def __init__(self) -> None:
        # This process' one, entered itself: `with` lets go of the one that it took, also in a child that was forked
        # meanwhile, and no interrupt comes between taking it and that, as one may within a method written in Python.
        self.own = threading.Lock()
        _all.add(self)


_all: WeakSet[Mutex] = WeakSet()


def _forked() -> None:
    for mutex in list(_all):
        mutex.own = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
