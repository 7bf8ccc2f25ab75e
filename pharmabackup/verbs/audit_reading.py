"""Reading audit records: several at once, ahead of who asks for them, since each is a request to the storage."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from operator import itemgetter

from pharmabackup.engine.lanes import THREADS, in_lanes
from pharmabackup.engine.unlocked import Statement, Unlocked
from pharmabackup.errors import Damaged, NotFound
from pharmabackup.format.transaction import RECORD_MAX, Audit
from pharmabackup.format.wire import Kind, malformed
from pharmabackup.verbs.audit_listing import Chain

TOGETHER = 16  # records that one thread fetches before it hands them over, where there are many
AHEAD_BYTES = 4 << 20  # that are fetched and not yet taken, as storage lists their sizes
TOGETHER_BYTES = AHEAD_BYTES // THREADS

Stored = bytes | Damaged | NotFound
Place = tuple[Chain, int]
"""A chain, and which of its records: 0 is the first that is there, whatever its number."""


class RecordReader:
    """Fetches records, on the threads of the opened repository."""

    def __init__(self, unlocked: Unlocked) -> None:
        self._storage = unlocked.storage
        self._threads, self._ends = unlocked.threads, unlocked.threads.ends
        self._pool = unlocked.threads.pool()

    def fetch(self, places: Iterable[Place], count: int, *, beside: int = 1) -> Iterator[Stored]:
        """What is stored at each place, in this order. StorageFailed.

        `count`: how many there are, about. `beside`: so many are read at once, and share what is ahead.
        """
        groups = _groups(iter(places), max(1, min(TOGETHER, count // (2 * THREADS))))
        lanes, wanted = max(2, 2 * THREADS // beside), True  # no lock: the garbage collector may be who gives up

        def fetch(group: tuple[list[str], int]) -> list[Stored]:
            return [self._stored(name) for name in group[0] if wanted]  # who gave up takes no result

        try:
            share = AHEAD_BYTES // beside
            for _, get in in_lanes(lanes, fetch, groups, size=itemgetter(1), at_most=share, pool=self._pool):
                yield from get()
        finally:
            wanted = False

    def _stored(self, name: str) -> Stored:
        self._threads.check(self._ends)
        try:
            return self._storage.get(name, limit=RECORD_MAX)
        except (Damaged, NotFound) as error:
            return error


def _groups(left: Iterator[Place], together: int) -> Iterator[tuple[list[str], int]]:
    """Names of what is fetched in one go, and their bytes."""
    names, size = list[str](), 0
    for chain, place in left:
        names.append(chain.object(chain.numbers[place]))
        size += chain.sizes[place]
        if len(names) == together or size >= TOGETHER_BYTES:
            yield names, size
            names, size = [], 0
    if names:
        yield names, size


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
