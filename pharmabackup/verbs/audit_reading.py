"""Reading audit records: several at once, ahead of who asks for them, since each is a request to the storage."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from pharmabackup.engine.unlocked import Statement, Unlocked
from pharmabackup.errors import Damaged, NotFound
from pharmabackup.format.transaction import RECORD_MAX, Audit
from pharmabackup.format.wire import Kind, malformed
from pharmabackup.verbs.audit_listing import Chain

WORKERS = 16  # requests under way
TOGETHER = 16  # records that one thread fetches before it hands them over, where there are many
AHEAD_BYTES = 4 << 20  # that are fetched and not yet taken, as storage lists their sizes
TOGETHER_BYTES = AHEAD_BYTES // WORKERS

Stored = bytes | Damaged | NotFound
Place = tuple[Chain, int]
"""A chain, and which of its records: 0 is the first that is there, whatever its number."""


class RecordReader:
    """Threads that fetch records. Leaving it ends them."""

    def __init__(self, unlocked: Unlocked) -> None:
        self._storage = unlocked.storage
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="pharmabackup-audit")

    def fetch(self, places: Iterable[Place], count: int, *, beside: int = 1) -> Iterator[Stored]:
        """What is stored at each place, in this order. StorageFailed.

        `count`: how many there are, about. `beside`: so many are read at once, and share what is ahead.
        """
        together = max(1, min(TOGETHER, count // (2 * WORKERS)))
        groups = max(4, 4 * WORKERS // beside)
        ahead: deque[tuple[Future[list[Stored]], int]] = deque()
        left, total = iter(places), 0
        while True:
            while len(ahead) < groups and total < AHEAD_BYTES:
                names, size = _group(left, together)
                if not names:
                    break
                ahead.append((self._pool.submit(self._fetch, names), size))
                total += size
            if not ahead:
                return
            future, size = ahead.popleft()
            yield from future.result()
            total -= size

    def _fetch(self, names: list[str]) -> list[Stored]:
        return [self._stored(name) for name in names]

    def _stored(self, name: str) -> Stored:
        try:
            return self._storage.get(name, limit=RECORD_MAX)
        except (Damaged, NotFound) as error:
            return error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _group(left: Iterator[Place], together: int) -> tuple[list[str], int]:
    """Names of what is fetched next, and their bytes."""
    names, size = list[str](), 0
    while len(names) < together and size < TOGETHER_BYTES and (found := next(left, None)):
        chain, place = found
        names.append(chain.object(chain.numbers[place]))
        size += chain.sizes[place]
    return names, size


def read_record(unlocked: Unlocked, name: str) -> tuple[Statement[Audit], bytes]:
    """One record by its object's name, and its hash. Damaged, NotFound, StorageFailed."""
    return open_record(unlocked, name, unlocked.storage.get(name, limit=RECORD_MAX))


def open_record(unlocked: Unlocked, name: str, stored: Stored) -> tuple[Statement[Audit], bytes]:
    """The same, of what was fetched. Damaged, NotFound."""
    if not isinstance(stored, bytes):
        raise stored
    opened = unlocked.open(Kind.AUDIT, name, stored, Audit)
    _, slot, number = name.split("/")
    record = opened.record
    if record.number != int(number) or (record.number == 0) != (record.previous is None):
        raise malformed("audit", "it is another one")
    if opened.slot.id.hex() != slot:
        raise malformed("audit", "somebody else wrote it")
    return opened, hashlib.sha256(stored).digest()
