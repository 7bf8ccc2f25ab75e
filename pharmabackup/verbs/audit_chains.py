"""Every slot's audit chain, read from its beginning: is a record missing, changed, put between, cut off, forked?"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pharmabackup import ids
from pharmabackup.engine import auditlocal
from pharmabackup.engine.auditlocal import Pin
from pharmabackup.engine.unlocked import Statement, Unlocked
from pharmabackup.errors import Damaged, NotFound
from pharmabackup.events import Finding, Severity
from pharmabackup.format.transaction import RECORD_MAX, Audit
from pharmabackup.format.wire import Kind, malformed

SLOT = re.compile(r"[0-9a-f]{32}")
GAP_LOOKED_INTO = 1000  # numbers; a wider one is nobody's late listing


@dataclass(frozen=True, slots=True)
class Witness:
    """A record of a chain as somebody saw it. `first`: the hash of the chain's record 0, if he kept it."""

    slot: str
    pin: Pin
    who: str  # "This machine", "The anchor of 2027-03-09T17:00:00Z"
    first: bytes | None = None


@dataclass(slots=True)
class Chain:
    """One slot's records, as they are listed."""

    slot: str  # hexadecimal
    name: str  # for people
    numbers: list[int]  # ascending

    @property
    def last(self) -> int:
        return self.numbers[-1] if self.numbers else -1

    def object(self, number: int) -> str:
        return f"audit/{self.slot}/{number}"


def list_chains(unlocked: Unlocked) -> dict[str, Chain]:
    """By slot, in the order of the roster; then those of nobody. StorageFailed."""
    listed = _numbers(unlocked)
    for slot, numbers in listed.items():
        numbers.update(list(_unlisted(unlocked, slot, numbers)))
    names = {slot.id.hex(): slot.name for slot in unlocked.roster.slots}
    slots = [*names, *sorted(set(listed) - set(names))]
    return {slot: Chain(slot, names.get(slot) or nobody(slot), sorted(listed.get(slot, ()))) for slot in slots}


def _numbers(unlocked: Unlocked) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for info in unlocked.storage.list("audit"):
        slot, _, last = info.name.removeprefix("audit/").rpartition("/")
        if ids.NUMBER.fullmatch(last) and SLOT.fullmatch(slot):
            found.setdefault(slot, set()).add(int(last))
    return found


def _unlisted(unlocked: Unlocked, slot: str, numbers: set[int]) -> Iterator[int]:
    """What is there all the same: others write while storage lists, and some storages list late."""
    before = -1
    for number in sorted(numbers):
        if number - before - 1 <= GAP_LOOKED_INTO:
            yield from (one for one in range(before + 1, number) if exists(unlocked, slot, one))
        before = number
    while exists(unlocked, slot, before + 1):
        before += 1
        yield before


def exists(unlocked: Unlocked, slot: str, number: int) -> bool:
    """Whether storage has a record of that number, whatever it lists. StorageFailed."""
    try:
        unlocked.storage.info(f"audit/{slot}/{number}")
    except NotFound:
        return False
    return True


def nobody(slot: str) -> str:
    """What a slot is called that no roster has."""
    return f"nobody ({slot[:8]})"


def read_record(unlocked: Unlocked, name: str) -> tuple[Statement[Audit], bytes]:
    """One record by its object's name, and its hash. Damaged, NotFound, StorageFailed."""
    data = unlocked.storage.get(name, limit=RECORD_MAX)
    opened = unlocked.open(Kind.AUDIT, name, data, Audit)
    _, slot, number = name.split("/")
    record = opened.record
    if record.number != int(number) or (record.number == 0) != (record.previous is None):
        raise malformed("audit", "it is another one")
    if opened.slot.id.hex() != slot:
        raise malformed("audit", "somebody else wrote it")
    return opened, hashlib.sha256(data).digest()


class Chains:
    """All chains of a repository, to be verified once."""

    def __init__(self, unlocked: Unlocked, look: Callable[[], None], witnesses: Iterable[Witness] = ()) -> None:
        self._unlocked = unlocked
        self._look = look
        self._remembered = auditlocal.load(unlocked)
        self._witnesses = [
            Witness(slot, pin, "This machine") for slot, pins in self._remembered.items() for pin in pins
        ] + list(witnesses)
        self.chains = list_chains(unlocked)
        for witness in self._witnesses:
            self._complete(witness)
        self.records = 0

    def _complete(self, witness: Witness) -> None:
        """A record that somebody saw may be there all the same, and only not be listed yet."""
        chain = self.chains.setdefault(witness.slot, Chain(witness.slot, nobody(witness.slot), []))
        number = witness.pin.number
        if number > chain.last and exists(self._unlocked, chain.slot, number):
            numbers = {*chain.numbers, number}
            chain.numbers[:] = sorted(numbers.union(list(_unlisted(self._unlocked, chain.slot, numbers))))

    def findings(self, severity: Severity) -> Iterator[Finding]:
        """`severity`: of what is damaged; what is cut off or forked is critical. It goes on after the first."""
        for slot, chain in self.chains.items():
            found, hashes = [], _Hashes({w.pin.number for w in self._witnesses if w.slot == slot} | {0, chain.last})
            for finding in self._verify(chain, severity, hashes):
                found.append(finding)
                yield finding
            for finding in self._compare(chain, hashes):
                found.append(finding)
                yield finding
            if chain.numbers and not found:
                stale = self._remembered.get(slot, ())  # all of them are there
                auditlocal.remember(self._unlocked, slot, Pin(chain.last, hashes[chain.last]), stale)

    def _verify(self, chain: Chain, severity: Severity, hashes: _Hashes) -> Iterator[Finding]:
        """What the records themselves tell."""
        before, previous = -1, None  # the hash of the one before; None: it cannot be known
        for number in chain.numbers:
            self._look()
            if number != before + 1:
                previous = None
                yield self._gap(chain, before + 1, number - 1, severity)
            before, name = number, chain.object(number)
            try:
                opened, digest = read_record(self._unlocked, name)
            except (Damaged, NotFound) as error:
                previous = None
                yield self._damaged(chain, name, error.message.rstrip("."), severity)
                continue
            self.records += 1
            hashes.take(number, digest)
            if previous is not None and opened.record.previous != previous:
                yield self._damaged(chain, name, "it does not follow from the one before it", severity)
            previous = digest

    def _compare(self, chain: Chain, hashes: _Hashes) -> Iterator[Finding]:
        """What others saw, against what is there."""
        for witness in self._witnesses:
            if witness.slot != chain.slot:
                continue
            number = witness.pin.number
            seen = f"{witness.who} has seen record {number} of {chain.name}"
            if number > chain.last:
                there = f"the last one here is {chain.last}" if chain.numbers else "there is none here"
                yield self._finding(
                    "audit-truncated",
                    "critical",
                    chain.object(number),
                    f"{seen}, and {there}: records were cut off.",
                    "Somebody deleted them or turned the storage back: find out who, and why.",
                )
            elif hashes.get(number, witness.pin.hash) != witness.pin.hash:
                yield self._finding(
                    "audit-forked",
                    "critical",
                    chain.object(number),
                    f"{seen}, and the one here is another: this chain was written anew, or it is another place's.",
                    "If it is of this place, somebody with this slot's key wrote it anew: find out who, and why.",
                )
            elif witness.first is not None and hashes.get(0, witness.first) != witness.first:
                yield self._finding(
                    "audit-forked",
                    "critical",
                    chain.object(0),
                    f"{witness.who} has seen a chain of {chain.name} that begins with another record.",
                    "If it is of this place, somebody with this slot's key wrote it anew: find out who, and why.",
                )

    def _gap(self, chain: Chain, first: int, last: int, severity: Severity) -> Finding:
        name = chain.object(last)
        which = "it is missing" if first == last else f"it is missing, and so are all from {first} on"
        return self._damaged(chain, name, which, severity)

    def _damaged(self, chain: Chain, name: str, why: str, severity: Severity) -> Finding:
        return self._finding(
            "audit-damaged",
            severity,
            name,
            f"What {chain.name} did, as {name} told it, cannot be relied on: {why}.",
            "Somebody changed it, or its disk did: check that disk, and find out who. What is backed up is unharmed.",
        )

    def _finding(self, code: str, severity: Severity, subject: str, message: str, remedy: str) -> Finding:
        return Finding(
            code=code,
            severity=severity,
            subject=subject,
            message=message,
            remedy=remedy,
            location=self._unlocked.storage.location,
        )


class _Hashes(dict[int, bytes]):
    """The hashes of those records that are asked for."""

    def __init__(self, wanted: set[int]) -> None:
        self._wanted = wanted

    def take(self, number: int, digest: bytes) -> None:
        if number in self._wanted:
            self[number] = digest


def fork(one: Unlocked, other: Unlocked) -> Iterator[tuple[Chain, int]]:
    """Chains that two places have in common, and the first number from which they differ. Damaged, StorageFailed.

    Each place has chains of its own. Only where both begin with the same record one is a copy of the other.
    """
    there = list_chains(other)
    for chain in list_chains(one).values():
        twin = there.get(chain.slot)
        common = sorted({*chain.numbers} & {*twin.numbers}) if twin else []
        if not common or common[0] != 0 or not _same(one, other, chain, 0):
            continue
        if _same(one, other, chain, common[-1]):
            continue
        low, high = 0, len(common) - 1  # the same, different
        while high - low > 1:
            middle = (low + high) // 2
            if _same(one, other, chain, common[middle]):
                low = middle
            else:
                high = middle
        yield chain, common[high]


def _same(one: Unlocked, other: Unlocked, chain: Chain, number: int) -> bool:
    return _stored(one, chain, number) == _stored(other, chain, number)


def _stored(unlocked: Unlocked, chain: Chain, number: int) -> bytes:
    return unlocked.storage.get(chain.object(number), limit=RECORD_MAX)
