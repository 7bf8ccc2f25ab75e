"""What may go wrong with a simulated storage, the clock that it has, and what was spoilt in it on purpose."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

START_NS = 1_767_225_600 * 10**9  # 2026-01-01
TICK_NS = 1_000_000

Fault = Literal["before", "after", "again", "torn", "lost", "twice", "late"]


class SimulatedClock:
    """Nanoseconds since 1970 UTC. Each change to a storage takes a millisecond; else it moves when it is told to."""

    def __init__(self, now: int = START_NS) -> None:
        self.now = now

    def advance(self, by: timedelta) -> None:
        """Time goes by. It may be negative: clocks are set back."""
        self.now += by // timedelta(microseconds=1) * 1000

    def tick(self) -> int:
        """A moment of its own."""
        self.now += TICK_NS
        return self.now


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One fault at one call: the `nth`, from 0, whose text begins with `call`, as "publish snapshots/" or "".

    A listing is as many calls as it has pages.
    """

    call: str
    fault: Fault
    nth: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How likely each fault is at each call that it can hurt, from 0 to 1; and what is planned.

    before  any call: StorageFailed, and nothing has happened
    after   publish, delete: it has happened, and StorageFailed comes back
    again   publish: it has happened, the answer was lost, and asked again the storage says Conflict
    torn    publish: the storage says that it is done, and has kept only the beginning
    lost    publish: the storage says that it is done, and has kept nothing
    twice   publish, delete: it is done, and arrives a second time later
    late    publish, delete: StorageFailed comes back, and it happens later, whether the client lives or not

    `arrives`: calls until what comes later has come, at most. `stale`: so old is what listings show.
    `capacity`: bytes; what does not fit is StorageFailed("full"). `page`: objects that a listing reads at once. Each
    page can fail, and before the next others may change something.
    """

    before: float = 0.0
    after: float = 0.0
    again: float = 0.0
    torn: float = 0.0
    lost: float = 0.0
    twice: float = 0.0
    late: float = 0.0
    planned: tuple[Planned, ...] = ()
    arrives: int = 50
    stale: timedelta = timedelta(0)
    capacity: int | None = None
    page: int = 1000


@dataclass(frozen=True, slots=True)
class Injury:
    """What was spoilt on purpose: the object's name, how ("flipped", "cut", "removed"), and its bytes before."""

    name: str
    how: str
    before: bytes
    modified: int
