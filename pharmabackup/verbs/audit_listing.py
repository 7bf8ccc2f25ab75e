"""Audit chains as storage lists them: which records there are, how large each is, and since when it is there."""

from __future__ import annotations

import hashlib
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

from pharmabackup import ids
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import NotFound
from pharmabackup.storage.base import ObjectInfo

RECORD = re.compile(rf"audit/([0-9a-f]{{32}})/({ids.NUMBER.pattern})")
GAP_LOOKED_INTO = 1000  # numbers; a wider one is nobody's late listing
WORD = (1 << 64) - 1


def _column() -> array[int]:
    return array("Q")


@dataclass(slots=True)
class Chain:
    """One slot's records: 24 bytes of memory each, since a device writes tens of thousands a year."""

    slot: str  # hexadecimal
    name: str  # for people
    numbers: array[int] = field(default_factory=_column)  # ascending
    sizes: array[int] = field(default_factory=_column)
    times: array[int] = field(default_factory=_column)  # when each was put there, as storage says
    unlisted: list[int] = field(default_factory=list)  # that are there all the same

    @property
    def last(self) -> int:
        return self.numbers[-1] if self.numbers else -1

    def object(self, number: int) -> str:
        return f"audit/{self.slot}/{number}"

    def has(self, number: int) -> bool:
        place = bisect_left(self.numbers, number)
        return place < len(self.numbers) and self.numbers[place] == number

    def listed(self, until: int) -> bytes:
        """A hash of how all are listed up to that number: it is another one when something was put in a record's
        place."""
        count, hasher = bisect_right(self.numbers, until), hashlib.sha256()
        for column in (self.numbers, self.sizes, self.times):
            hasher.update(column[:count].tobytes())
        return hasher.digest()

    def add(self, number: int, info: ObjectInfo) -> None:
        """What storage listed, in any order: `sort` comes after it."""
        self._put(len(self.numbers), number, info)

    def sort(self) -> None:
        order = sorted(range(len(self.numbers)), key=self.numbers.__getitem__)
        once = [next(same) for _, same in groupby(order, key=self.numbers.__getitem__)]  # a storage may list twice
        self.numbers, self.sizes, self.times = (
            array("Q", map(column.__getitem__, once)) for column in (self.numbers, self.sizes, self.times)
        )

    def complete(self, number: int, info: ObjectInfo) -> None:
        """What storage did not list."""
        self._put(bisect_left(self.numbers, number), number, info)
        self.unlisted.append(number)

    def _put(self, place: int, number: int, info: ObjectInfo) -> None:
        self.numbers.insert(place, number)
        self.sizes.insert(place, info.size & WORD)
        self.times.insert(place, info.modified & WORD)


def list_chains(unlocked: Unlocked) -> dict[str, Chain]:
    """By slot, in the order of the roster; then those of nobody. StorageFailed."""
    return list_audit(unlocked)[0]


def list_audit(unlocked: Unlocked) -> tuple[dict[str, Chain], list[str]]:
    """All chains, and the names of what lies among them and is no audit record. StorageFailed."""
    listed: dict[str, Chain] = {}
    strangers: list[str] = []
    for info in unlocked.storage.list("audit"):
        if name := RECORD.fullmatch(info.name):
            slot, number = name.groups()
            (listed.get(slot) or listed.setdefault(slot, Chain(slot, nobody(slot)))).add(int(number), info)
        else:
            strangers.append(info.name)
    chains = {slot.id.hex(): Chain(slot.id.hex(), slot.name) for slot in unlocked.roster.slots}
    for slot, chain in sorted(listed.items()):
        chain.name = chains[slot].name if slot in chains else chain.name
        chain.sort()
        complete(unlocked, chain)
        chains[slot] = chain
    return chains, strangers


def complete(unlocked: Unlocked, chain: Chain) -> None:
    """Add what is there all the same: others write while storage lists, and some storages list late."""
    for number, info in list(_unlisted(unlocked, chain)):
        chain.complete(number, info)


def _unlisted(unlocked: Unlocked, chain: Chain) -> Iterator[tuple[int, ObjectInfo]]:
    before = -1
    for number in chain.numbers:
        if 1 < number - before <= GAP_LOOKED_INTO + 1:
            for one in range(before + 1, number):
                if (info := info_of(unlocked, chain, one)) is not None:
                    yield one, info
        before = number
    while (info := info_of(unlocked, chain, before + 1)) is not None:
        before += 1
        yield before, info


def info_of(unlocked: Unlocked, chain: Chain, number: int) -> ObjectInfo | None:
    """What storage says of that record, whatever it lists; None where there is none. StorageFailed."""
    try:
        return unlocked.storage.info(chain.object(number))
    except NotFound:
        return None


def nobody(slot: str) -> str:
    """What a slot is called that no roster has."""
    return f"nobody ({slot[:8]})"
