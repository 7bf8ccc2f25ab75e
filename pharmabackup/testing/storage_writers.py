"""Writers that race each other or are killed: what the conformance suite of storages starts."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import TypeVar

from pharmabackup.errors import Conflict
from pharmabackup.storage.base import Storage

Reopen = Callable[[], Storage]
T = TypeVar("T")

WRITERS = 8
PATIENCE_S = 60


def at_once(work: Callable[[int], T]) -> list[T]:
    with ThreadPoolExecutor(WRITERS) as pool:
        return list(pool.map(work, range(WRITERS)))


def entry(writer: int) -> bytes:
    """What a racing writer writes: of its own length, so that a mixture of two shows."""
    return bytes([writer]) * (1000 + writer)


def race(storage: Storage, writer: int, rounds: int, start: threading.Barrier | Barrier) -> list[int]:
    """The rounds in which this writer created the object."""
    won = []
    for number in range(rounds):
        with storage.upload() as upload:
            upload.write(entry(writer))
            start.wait(PATIENCE_S)
            try:
                upload.publish(f"race/{number}")
            except Conflict as error:
                assert error.kind == "object-exists"
            else:
                won.append(number)
    return won


def race_process(reopen: Reopen, writer: int, rounds: int, start: Barrier, result: Connection) -> None:
    storage = reopen()
    result.send(race(storage, writer, rounds, start))
    storage.close()


def write_until_killed(reopen: Reopen, seed: int, started: Connection) -> None:
    """Objects that are named after what they hold, until someone ends this. It reports before its first or after."""
    storage, pick = reopen(), random.Random(seed)
    if seed % 2:
        started.send(True)
        started.close()
    while True:
        pieces = [pick.randbytes(pick.randrange(100_000)) for _ in range(pick.randrange(20))]
        with storage.upload() as upload:
            for piece in pieces:
                upload.write(piece)
            try:
                upload.publish(f"packs/{hashlib.sha256(b''.join(pieces)).hexdigest()}")
            except Conflict:
                pass  # the empty object may come up again
        if not started.closed:
            started.send(True)
            started.close()
