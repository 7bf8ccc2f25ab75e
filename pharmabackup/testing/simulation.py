"""The library's own code in a world of its own: time that is told to move, and threads that take turns.

While a `Simulation` is entered

- the library's clocks are `clock`, and its random bytes come from the seed;
- its threads work one after the other: who gives another thread something to do waits until that is done. So a
  client makes the same calls to its storage in the same order each time. All else is the code that always runs;
- passphrases are stretched at no cost, and a transaction's key is sealed to its readers by a stand-in: the real one
  takes its random bytes from the system. It hides nothing from anybody;
- `create` and `open` make and open repositories over any `Storage`.

Python's own order of sets of bytes is another one in each process, unless PYTHONHASHSEED is set.
"""

from __future__ import annotations

import os
import queue
import random
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Self
from unittest import mock

from pharmabackup.credentials import Passphrase
from pharmabackup.crypto import hashing
from pharmabackup.crypto.recipients import PrivateKey, PublicKey
from pharmabackup.crypto.sealing import SealingKey
from pharmabackup.repository import Repository
from pharmabackup.storage.base import Storage
from pharmabackup.testing.faults import SimulatedClock

PASSPHRASE = "correct horse battery staple"


class Simulation:
    """Entered by one test at a time: it is about the whole process. `state`: a folder for what devices remember."""

    def __init__(self, state: Path, *, seed: int = 0, clock: SimulatedClock | None = None) -> None:
        self.clock = clock or SimulatedClock()
        self.credential = Passphrase(PASSPHRASE)
        self._state = state
        self._random = random.Random(seed)
        self._next = threading.local()
        self._entered = ExitStack()

    def create(self, storage: Storage) -> None:
        """Make a repository there."""
        self._next.storage = storage
        Repository.create("simulated://", self.credential, state_dir=self._state / "founder").close()

    def replicate(self, repo: Repository, storage: Storage) -> None:
        """Make an empty replica of a repository there."""
        self._next.storage = storage
        Repository.create("simulated://", self.credential, state_dir=self._state / "founder", replica_of=repo).close()

    def open(self, storage: Storage, *, device: str = "device") -> Repository:
        """Open it as that device: each has a folder of its own for what it remembers."""
        self._next.storage = storage
        return Repository.open("simulated://", self.credential, state_dir=self._state / device)

    def __enter__(self) -> Self:
        turns = SimpleNamespace(Queue=TurnQueue, SimpleQueue=queue.SimpleQueue)
        all_turns = SimpleNamespace(Queue=TurnQueue, SimpleQueue=TurnQueue)
        no_race = SimpleNamespace(
            Barrier=lambda _: SimpleNamespace(wait=lambda _: 0), BrokenBarrierError=threading.BrokenBarrierError
        )
        time = SimpleNamespace(time_ns=lambda: self.clock.now, monotonic_ns=lambda: self.clock.now)
        for place, stand_in in {
            "clock.time": time,
            "crypto.passphrases.MEMORY_KIB": 64,
            "crypto.passphrases.ITERATIONS": 1,
            "engine.opening.connect": lambda *_, **__: self._next.storage,
            "engine.opening.ThreadPoolExecutor": TurnExecutor,
            "engine.background.ThreadPoolExecutor": TurnExecutor,
            "engine.packs.ThreadPoolExecutor": TurnExecutor,
            "storage.probe.ThreadPoolExecutor": TurnExecutor,
            "storage.probe.threading": no_race,
            "engine.lanes.ThreadPoolExecutor": TurnExecutor,
            "engine.ahead.ThreadPoolExecutor": TurnExecutor,
            "crypto.recipients.PublicKey.seal": _seal,
            "crypto.recipients.PrivateKey.open": _open,
            "engine.blocks.queue": turns,
            "verbs.backup_run.ThreadPoolExecutor": TurnExecutor,
            "verbs.check_packs.ThreadPoolExecutor": TurnExecutor,
            "verbs.restore_content.queue": all_turns,
        }.items():
            self._entered.enter_context(mock.patch(f"pharmabackup.{place}", stand_in))
        self._entered.enter_context(mock.patch.object(os, "urandom", self._random.randbytes))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._entered.close()


def _seal(self: PublicKey, data: bytes, info: bytes) -> bytes:
    return SealingKey(hashing.key_id(self.raw)).seal(data, info)


def _open(self: PrivateKey, sealed: bytes, info: bytes) -> bytes:
    return SealingKey(hashing.key_id(self.public.raw)).open(sealed, info)


class TurnExecutor(Executor):
    """Does at once, in the thread that asks for it, what it is given to do."""

    def __init__(self, max_workers: int = 1, thread_name_prefix: str = "", **named: object) -> None:
        pass

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001  (raised where the result is asked for)
            future.set_exception(error)
        return future


class TurnQueue:
    """`put` waits until the thread that took it asks for the next: they never work at the same time."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._working: set[int] = set()
        self._changed = threading.Condition()

    def put(self, item: Any) -> None:
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()
            if item is not None:  # which says that there will be no more
                self._changed.wait_for(lambda: not self._items and not self._working)

    def get(self) -> Any:
        me = threading.get_ident()
        with self._changed:
            self._working.discard(me)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._items)
            item = self._items.popleft()
            if item is not None:
                self._working.add(me)
            return item

    def task_done(self) -> None:
        """For the sake of `queue.Queue`."""

    def join(self) -> None:
        """`put` has waited already."""
