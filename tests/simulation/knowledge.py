"""What is known about each snapshot, from what was asked for and what came back, not from the library.

A snapshot whose backup returned is there, until somebody said to forget it and the delay is over. Where a call failed
or was killed, or another spoke of the same snapshot meanwhile, it takes what is least: a forget may count from the
first attempt, a hold ends with the first attempt to end it, and nothing says for sure that it is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pharmabackup.testing.faults import SimulatedClock

DELAY_NS = 14 * 86400 * 10**9  # of forgetting, as new repositories have it
Tree = dict[str, bytes]


@dataclass(slots=True)
class Known:
    """One snapshot. Times by the storage's clock."""

    tree: Tree | None = None  # None: nobody has looked what was committed
    ripe: int | None = None  # from then on it may be gone
    due: int | None = None  # from then on it is gone, unless somebody holds it
    held: bool = False
    doomed: bool = False  # somebody said once to forget it
    copied: bool = False  # a copy to the replica came to its end when it was there
    doubtful: bool = False  # something that was said may count or not
    forgets: int = 0  # how often that was begun
    forgetting: int = 0  # and is under way, or may yet arrive
    releases: int = 0
    releasing: int = 0
    recalls: int = 0


class Knowledge:
    """By snapshot, in the order in which they were made known."""

    def __init__(self, clock: SimulatedClock) -> None:
        self.clock = clock
        self.known: dict[str, Known] = {}
        self.attempts: dict[str, list[Tree]] = {}  # by dataset: what may have been committed

    def of(self, one: str) -> Known:
        return self.known.setdefault(one, Known())

    def there(self) -> list[str]:
        """Snapshots that have to be there now."""
        return [one for one, known in self.known.items() if known.tree is not None and not self._ripe(known)]

    def _ripe(self, known: Known) -> bool:
        return not known.held and known.ripe is not None and self.clock.now >= known.ripe

    def is_there(self, one: str) -> bool:
        return not self._ripe(self.known[one])

    def gone(self) -> list[str]:
        """Snapshots that have to count as gone now."""
        return [
            one
            for one, known in self.known.items()
            if known.due is not None and self.clock.now >= known.due and not known.held and not known.doubtful
        ]

    def pending(self) -> list[str]:
        """Snapshots that somebody said to forget, which may still be taken back."""
        return [one for one in self.there() if self.clock.now < (self.known[one].ripe or 0)]

    def nothing_is_on_its_way(self) -> None:
        """What failed or was killed has arrived by now, or never will."""
        for known in self.known.values():
            known.forgetting = known.releasing = 0

    # ------------------------------------------------------------ while something is said

    @contextmanager
    def forgetting(self, snapshots: Iterable[str]) -> Iterator[None]:
        told = [self.of(one) for one in snapshots]
        ripe = self.clock.now + DELAY_NS
        for known in told:
            known.ripe = min(ripe, known.ripe or ripe)
            known.doomed = True
            known.forgets += 1
            known.forgetting += 1
        try:
            yield
        except BaseException:
            for known in told:
                known.doubtful = True
            raise
        due = self.clock.now + DELAY_NS
        for known in told:
            known.forgetting -= 1
            known.due = min(due, known.due or due)

    @contextmanager
    def holding(self, one: str) -> Iterator[None]:
        known = self.known[one]
        alone, releases = not known.releasing, known.releases
        try:
            yield
        except BaseException:
            known.doubtful = True
            raise
        if alone and known.releases == releases:
            known.held = True
        else:
            known.doubtful = True

    @contextmanager
    def releasing(self, one: str) -> Iterator[None]:
        known = self.known[one]
        known.held = False
        known.releases += 1
        known.releasing += 1
        try:
            yield
        except BaseException:
            known.doubtful = True
            raise
        known.releasing -= 1

    @contextmanager
    def recalling(self, one: str) -> Iterator[None]:
        known = self.known[one]
        alone, forgets = not known.forgetting, known.forgets
        known.recalls += 1
        try:
            yield
        except BaseException:
            known.doubtful = True
            raise
        if alone and known.forgets == forgets:
            known.ripe = known.due = None
        else:
            known.doubtful = True
