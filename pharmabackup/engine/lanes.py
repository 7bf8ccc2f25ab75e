"""Requests side by side: where each takes a while, several are under way, and their results come in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from functools import partial
from types import MappingProxyType, TracebackType
from typing import Generic, Self, TypeVar
from weakref import WeakSet

from pharmabackup.errors import InvalidInput
from pharmabackup.mutex import Mutex
from pharmabackup.storage.base import Storage

AHEAD_BYTES = 16 << 20  # that are fetched, or being fetched, and not yet taken
THREADS = 16  # requests under way for what is read piece by piece

Item = TypeVar("Item")
T = TypeVar("T")

_ended: WeakSet[Executor] = WeakSet()  # what `Threads` have shut down


class Threads:
    """Those of an opened repository, for what is read piece by piece and may be given up in between.

    Whoever gives it up cannot wait for them (see `Lanes`). `close` does, so that nobody reads a storage after that.
    """

    def __init__(self) -> None:
        self.ends = 0  # how often they were ended
        self._lock = Mutex()
        self._pool: Executor | None = None
        self._process = os.getpid()

    def pool(self) -> Executor:
        """Made when it is needed, and anew in a forked child, which has none of its parent's threads."""
        with self._lock.own:
            if self._pool is None or self._process != os.getpid():
                self._process = os.getpid()
                self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="pharmabackup-reading")
            return self._pool

    def check(self, ends: int) -> None:
        """InvalidInput where they were ended since there were so many ends: whoever began before may not go on."""
        if self.ends != ends:
            raise closed()

    def close(self) -> None:
        """Nothing more is begun, and what is under way is waited for. Who reads on is told so; who begins is not."""
        with self._lock.own:
            self.ends += 1
            pool, self._pool = self._pool, None
        if pool is not None:
            _ended.add(pool)
        if pool is not None and self._process == os.getpid():
            pool.shutdown(wait=True, cancel_futures=True)


def closed() -> InvalidInput:
    """What whoever goes on reading of a repository that was closed is told."""
    return InvalidInput("The repository was closed.", kind="closed", remedy="Open it again.")


class Beside(Generic[T]):
    """One piece of work beside what the caller does, where requests take a while; elsewhere it is done at once.

    Whoever leaves the `with` has waited for it.
    """

    def __init__(self, lanes: int, work: Callable[[], T]) -> None:
        """`lanes`: of the storage that is asked; one is asked by one thread."""
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="pharmabackup-beside") if lanes > 1 else None
        self._work = work if self._threads is None else self._threads.submit(work).result
        self._done: list[T] = []
        if self._threads is None:
            self.result()

    def result(self) -> T:
        """What it gives or raises. The caller's own thread alone asks."""
        if not self._done:
            self._done.append(self._work())
        return self._done[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=True)


class Lanes(Generic[Item, T]):
    """What `in_lanes` gives. Whoever leaves the `with` waits for what its own threads are at; nothing more is begun.

    Whoever lets go of it otherwise takes back what has not begun, and does not wait: the garbage collector may do
    that on any thread at any time, also while `threading` starts another, which would then be waited for for ever.
    """

    def __init__(
        self,
        work: Callable[[Item], T],
        items: Iterable[Item],
        size: Callable[[Item], int],
        *,
        lanes: int,
        at_most: int,
        pool: Executor | None,
    ) -> None:
        self._ahead: deque[tuple[Item, int, Future[T]]] = deque()
        self._work, self._lanes, self._at_most = work, lanes, at_most
        self._left: Iterator[tuple[Item, int]] = ((item, size(item)) for item in items)
        self._coming: tuple[Item, int] | None = None  # the first of what is left, if that was looked at
        self._total = self._taken = 0  # bytes of all that is ahead and of what was taken last; of that alone
        self._own: Executor | None = None
        self._process = os.getpid()
        if lanes > 1 and pool is None:
            self._own = ThreadPoolExecutor(lanes, thread_name_prefix="pharmabackup-lane")
        self._threads = self._own or (pool if lanes > 1 else None)

    def __iter__(self) -> Iterator[tuple[Item, Callable[[], T]]]:
        return self

    def __next__(self) -> tuple[Item, Callable[[], T]]:
        if self._threads is None:
            item, _ = next(self._left)
            return item, partial(self._work, item)
        if self._process != os.getpid():
            raise InvalidInput(
                "A forked process cannot go on with what its parent was reading.",
                kind="forked",
                remedy="Begin to read in the process that goes on.",
            )
        self._total, self._taken = self._total - self._taken, 0
        ahead = self._ahead
        while len(ahead) < 2 * self._lanes:
            self._coming = self._coming or next(self._left, None)
            if self._coming is None or (ahead and self._total + self._coming[1] > self._at_most):
                break
            (item, weight), self._coming = self._coming, None
            try:
                future = self._threads.submit(self._work, item)
            except RuntimeError:
                if self._threads not in _ended:  # as when the interpreter ends
                    raise
                raise closed() from None  # who shares its threads has ended them
            ahead.append((item, weight, future))
            self._total += weight
        if not ahead:
            self.close()
            raise StopIteration
        item, self._taken, future = ahead.popleft()
        return item, partial(_result, future)

    def close(self) -> None:
        """Nothing more is begun; of its own threads it waits for what is under way."""
        self._left, self._coming = iter(()), None
        self._take_back()
        if self._own is not None:
            self._own.shutdown(wait=True)

    def _take_back(self) -> None:
        while self._ahead and self._process == os.getpid():  # of a parent's threads one may have held its lock
            self._ahead.pop()[2].cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self._take_back()


def _result(future: Future[T]) -> T:
    try:
        return future.result()
    except CancelledError:
        raise closed() from None


def in_lanes(
    lanes: int,
    work: Callable[[Item], T],
    items: Iterable[Item],
    *,
    size: Callable[[Item], int] = lambda _: 0,
    at_most: int = AHEAD_BYTES,
    pool: Executor | None = None,
) -> Lanes[Item, T]:
    """Each item, in order, with a function that gives or raises what `work` makes of it.

    With one lane that function does the work itself, when it is called: a plain loop, without a thread. With several
    it waits for a thread that began earlier: as many as there are lanes, with as many results that nobody has taken
    yet. What these take together, as `size` says in bytes, stays below `at_most`, but for one item that is larger by
    itself.

    `pool`: threads that several share, instead of as many as there are lanes; with one lane they are not used. Who
    shares them ends them, and waits.
    """
    return Lanes(work, items, size, lanes=lanes, at_most=at_most, pool=pool)


def objects_in_lanes(
    storage: Storage, names: Iterable[str], *, limit: int, sizes: Mapping[str, int] = MappingProxyType({})
) -> Lanes[str, bytes]:
    """Each object's name, in order, with a function that gives its bytes. `sizes`: as storage lists them, in bytes.

    What that function raises is what `Storage.get` does. Who opens what comes does it on his own thread: it may lead
    to newer keys.
    """
    return in_lanes(
        storage.lanes, lambda name: storage.get(name, limit=limit), names, size=lambda name: sizes.get(name, 0)
    )
