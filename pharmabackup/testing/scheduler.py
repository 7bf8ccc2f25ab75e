"""Several clients of one storage, one of which runs at a time; who is next is chosen before every call.

    with Simulation(tmp_path) as simulation:
        storage = SimulatedStorage(clock=simulation.clock)
        scheduler = Scheduler(7)
        outcomes = scheduler.run({
            "writer": lambda: back_up(scheduler.client("writer", storage)),
            "collector": lambda: prune(scheduler.client("collector", storage)),
        }, crashes={"collector": Crash(call=12)})

Each client is a function, run in a thread of its own, that reaches the storage through `client` alone. It may be
killed at a call: that call and all that follow raise `Crashed`, and nothing that it does has an effect any more,
except a request that was already sent. To begin an upload and to write to it are no calls here, since what is
written shows nowhere before it is published: nobody is chosen or killed there. A client's own threads must not call
the storage at once: `Simulation` sees to that for the library's.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from pharmabackup.errors import Error
from pharmabackup.storage.base import Buffer, Capabilities, ObjectInfo, Storage, Upload

PATIENCE_S = 300  # after that a client is taken to wait for another one, which must not be
SWITCHING = (1.0, 0.3, 0.1)  # how likely it is drawn whose the next call is, anybody's; for half of the seeds
STOPS = 3  # at most, for the other half: there the one that runs is stopped until all others have ended,
STOPS_WITHIN = (150, 350)  # at a call up to one of these. Most faults need no more than one or two such stops
ARRIVES = 0.05  # how likely something that was sent arrives before the next call

R = TypeVar("R")


class Crashed(BaseException):
    """What a client that was killed gets for every call. No Exception: nothing that handles errors lives on."""


@dataclass(frozen=True, slots=True)
class Crash:
    """Killed at its call number `call`, from 0. `sent`: that call arrives nevertheless, some time."""

    call: int
    sent: bool = False


@dataclass(slots=True)
class Outcome:
    """What became of one client. `calls` that it made."""

    value: object = None
    error: BaseException | None = None
    calls: int = 0

    @property
    def crashed(self) -> bool:
        return isinstance(self.error, Crashed)


@dataclass(slots=True)
class _Client:
    name: str
    crash: Crash | None
    outcome: Outcome = field(default_factory=Outcome)
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    waits: bool = True
    dead: bool = False
    ended: bool = False


class Scheduler:
    """Runs clients, for the same choices always in the same order. `trace`: who made which call.

    `choices`: a seed; or for each call whose it is, of those that have something to do: 0 that of the client that
    made the last one, 1 that of the next, and so on. When no more are given, each client runs to its end.
    `page`: objects that a listing shows before another client may do something.
    """

    def __init__(self, choices: int | Sequence[int] = 0, *, page: int = 1000) -> None:
        self.trace: list[tuple[str, str]] = []
        self._random: random.Random | None = None
        self._given: Iterator[int] = iter(())
        if isinstance(choices, int):
            self._random = random.Random(choices)
            self._switching = self._random.choice(SWITCHING) if choices % 2 else 0.0
            stops = self._random.randint(1, STOPS) if not self._switching else 0
            self._stops = {self._random.randrange(self._random.choice(STOPS_WITHIN)) for _ in range(stops)}
        else:
            self._given = iter(choices)
        self._page = page
        self._clients: dict[str, _Client] = {}
        self._sent: list[tuple[str, str, Callable[[], object]]] = []
        self._turn = threading.Semaphore(0)

    def client(self, name: str, storage: Storage) -> Storage:
        """The storage as that client reaches it. Outside of `run` calls pass at once."""
        return _ClientStorage(self, name, storage)

    def run(
        self, clients: Mapping[str, Callable[[], object]], *, crashes: Mapping[str, Crash] | None = None
    ) -> Mapping[str, Outcome]:
        """All of them, until each has ended and all that was sent has arrived. It does not raise what they raise."""
        self._clients = {name: _Client(name, (crashes or {}).get(name)) for name in clients}
        threads = [
            threading.Thread(target=self._live, args=(self._clients[name], function), name=name, daemon=True)
            for name, function in clients.items()
        ]
        for thread in threads:
            thread.start()
        try:
            self._play()
        except BaseException:
            for client in self._clients.values():  # nobody is left waiting
                client.dead = True
                client.go.release()
            raise
        for thread in threads:
            thread.join()
        ended, self._clients = self._clients, {}
        return {name: client.outcome for name, client in ended.items()}

    def folders(self) -> list[tuple[str, str]]:
        """The trace without names, which are random: which client, which kind of call, in which folder."""
        return [(client, what.partition("/")[0]) for client, what in self.trace]

    # ------------------------------------------------------------ whose turn it is

    def _play(self) -> None:
        order = list(self._clients.values())
        if self._random is not None:
            self._random.shuffle(order)
        while True:
            order = [client for client in order if not client.ended]
            if not order and not self._sent:
                return
            chosen = self._choose(order)
            if chosen >= len(order):
                self._deliver(chosen - len(order))
                continue
            client = order.pop(chosen)
            order.insert(0, client)
            client.waits = False
            client.go.release()
            if not self._turn.acquire(timeout=PATIENCE_S):
                raise RuntimeError(f"{client.name} neither calls the storage nor ends: does it wait for another?")

    def _choose(self, order: list[_Client]) -> int:
        """Which goes on, the first of them being the one that made the last call; or what was sent, after these."""
        among = len(order) + len(self._sent)
        if among == 1:
            return 0
        if self._random is None:
            return next(self._given, 0) % among
        if self._switching:
            return self._random.randrange(among) if self._random.random() < self._switching else 0
        if self._sent and self._random.random() < ARRIVES:
            return len(order) + self._random.randrange(len(self._sent))
        if order and len(self.trace) in self._stops:
            self._stops.discard(len(self.trace))
            order.append(order.pop(0))
        return 0

    def _deliver(self, number: int) -> None:
        client, what, effect = self._sent.pop(number)
        self.trace.append((client, f"late {what}"))
        try:
            effect()
        except Error:
            pass  # nobody is there to hear of it

    # ------------------------------------------------------------ in the clients' threads

    def _live(self, client: _Client, function: Callable[[], object]) -> None:
        client.go.acquire()
        try:
            client.outcome.value = function()
        except BaseException as error:  # noqa: BLE001  (told to whoever runs the clients)
            client.outcome.error = error
        client.ended = True
        self._turn.release()

    def _call(self, name: str, what: str, effect: Callable[[], R], *, changes: bool = False) -> R:
        """Wait for this client's turn, and do it. `changes`: whether it can have been sent by one that is killed."""
        client = self._clients.get(name)
        if client is None:
            return effect()
        if client.dead:
            raise Crashed
        if client.waits:
            raise RuntimeError(f"Two threads of {name} call the storage at once: run it in a Simulation.")
        client.waits = True
        self._turn.release()
        client.go.acquire()
        number, client.outcome.calls = client.outcome.calls, client.outcome.calls + 1
        if client.crash is not None and number == client.crash.call:
            client.dead = True
            if changes and client.crash.sent:
                self._sent.append((name, what, effect))
        if client.dead:
            raise Crashed
        self.trace.append((name, what))
        return effect()


class _ClientStorage(Storage):
    def __init__(self, scheduler: Scheduler, name: str, inner: Storage) -> None:
        self._scheduler = scheduler
        self._name = name
        self._inner = inner
        self.location = inner.location

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    def upload(self) -> Upload:
        return _ClientUpload(self, self._inner.upload())

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        return self._call(f"get_range {name}", lambda: self._inner.get_range(name, offset, length))

    def get(self, name: str, *, limit: int) -> bytes:
        return self._call(f"get {name}", lambda: self._inner.get(name, limit=limit))

    def info(self, name: str) -> ObjectInfo:
        return self._call(f"info {name}", lambda: self._inner.info(name))

    def checksum(self, name: str) -> tuple[int, int]:
        return self._call(f"checksum {name}", lambda: self._inner.checksum(name))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        listing = self._call(f"list {prefix}", lambda: self._inner.list(prefix))
        for number, info in enumerate(listing, 1):
            yield info
            if number % self._scheduler._page == 0:
                self._call(f"list {prefix}", lambda: None)

    def delete(self, names: Sequence[str]) -> Mapping[str, Error | None]:
        """One object a call, so that something may happen between two of them."""
        results: dict[str, Error | None] = {}
        for name in names:
            results.update(self._delete(name))
        return results

    def _delete(self, name: str) -> Mapping[str, Error | None]:
        return self._call(f"delete {name}", lambda: self._inner.delete([name]), changes=True)

    def _call(self, what: str, effect: Callable[[], R], *, changes: bool = False) -> R:
        return self._scheduler._call(self._name, what, effect, changes=changes)


class _ClientUpload(Upload):
    """Bytes that are written show nowhere, so that nothing can happen between two writes that matters."""

    def __init__(self, storage: _ClientStorage, inner: Upload) -> None:
        self._storage = storage
        self._inner = inner
        self._sent = False

    def write(self, data: Buffer) -> None:
        self._inner.write(data)

    def publish(self, name: str) -> ObjectInfo:
        self._sent = True
        info = self._storage._call(f"publish {name}", lambda: self._inner.publish(name), changes=True)
        self._sent = False
        return info

    def discard(self) -> None:
        if not self._sent:  # else it may arrive yet
            self._inner.discard()
