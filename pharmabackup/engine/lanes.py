"""Requests side by side: where each takes a while, several are under way, and their results come in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from types import MappingProxyType
from typing import TypeVar

from pharmabackup.storage.base import Storage

AHEAD_BYTES = 16 << 20  # that are fetched, or being fetched, and not yet taken

Item = TypeVar("Item")
T = TypeVar("T")


def in_lanes(
    lanes: int,
    work: Callable[[Item], T],
    items: Iterable[Item],
    *,
    size: Callable[[Item], int] = lambda _: 0,
    at_most: int = AHEAD_BYTES,
    pool: Executor | None = None,
) -> Iterator[tuple[Item, Callable[[], T]]]:
    """Each item, in order, with a function that gives or raises what `work` makes of it.

    With one lane that function does the work itself, when it is called: a plain loop, without a thread. With several
    it waits for a thread that began earlier: as many as there are lanes, with as many results that nobody has taken
    yet. What these take together, as `size` says in bytes, stays below `at_most`, but for one item that is larger by
    itself. Whoever ends early waits for what is under way, and nothing more is begun.

    `pool`: threads that several share, instead of as many as there are lanes; with one lane they are not used. Who
    ends early takes back what has not begun, and does not wait for what has: who shares them ends them, and waits.
    """
    if lanes <= 1:
        for item in items:
            yield item, partial(work, item)
        return
    left, ahead, total = ((item, size(item)) for item in items), deque[tuple[Item, int, Future[T]]](), 0
    own = ThreadPoolExecutor(lanes, thread_name_prefix="pharmabackup-lane") if pool is None else None
    threads = own or pool
    assert threads is not None
    try:
        coming = next(left, None)
        while True:
            while coming is not None and len(ahead) < 2 * lanes and (not ahead or total + coming[1] <= at_most):
                item, weight = coming
                ahead.append((item, weight, threads.submit(work, item)))
                total, coming = total + weight, next(left, None)
            if not ahead:
                return
            item, weight, future = ahead.popleft()
            yield item, future.result
            total -= weight
            del future  # with its result, which may be large
    finally:
        for _, _, future in ahead:
            future.cancel()
        if own is not None:
            own.shutdown(wait=True)


def objects_in_lanes(
    storage: Storage, names: Iterable[str], *, limit: int, sizes: Mapping[str, int] = MappingProxyType({})
) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Each object's name, in order, with a function that gives its bytes. `sizes`: as storage lists them, in bytes.

    What that function raises is what `Storage.get` does. Who opens what comes does it on his own thread: it may lead
    to newer keys.
    """
    return in_lanes(
        storage.lanes, lambda name: storage.get(name, limit=limit), names, size=lambda name: sizes.get(name, 0)
    )
