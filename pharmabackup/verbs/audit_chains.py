"""Every slot's audit chain: is a record missing, changed, put between, cut off, forked?

A check reads what is new since this machine last verified a chain, and of the rest a share; `audit verify` reads all.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil

from pharmabackup.engine import auditlocal
from pharmabackup.engine.auditlocal import Pin, Verified
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged, NotFound
from pharmabackup.events import Finding, Severity
from pharmabackup.format.transaction import RECORD_MAX
from pharmabackup.verbs.audit_listing import Chain, complete, info_of, list_audit, list_chains, nobody
from pharmabackup.verbs.audit_reading import RecordReader, Stored, open_record


@dataclass(frozen=True, slots=True)
class Witness:
    """A record of a chain as somebody saw it. `first`: the hash of the chain's record 0, if he kept it."""

    slot: str
    pin: Pin
    who: str  # "This machine", "The anchor of 2027-03-09T17:00:00Z"
    first: bytes | None = None


@dataclass(slots=True)
class _Look:
    """What is read of one chain, and what came of it."""

    chain: Chain
    places: Sequence[int]  # ascending: 0 is the chain's first record that is there
    known: Verified | None  # what this machine has verified, whether or not that holds still
    turn: int  # where the next share begins
    hashes: dict[int, bytes] = field(default_factory=dict)  # of those records that are asked for
    bad: list[int] = field(default_factory=list)
    head: Pin | None = None  # the last record that could be read, as far as storage lists all


class Chains:
    """All chains of a repository, to be verified once."""

    def __init__(
        self,
        unlocked: Unlocked,
        look: Callable[[], None],
        witnesses: Iterable[Witness] = (),
        *,
        share: float | None = None,
    ) -> None:
        """`share`: of those records that this machine has verified before (0-1), the next in turn; None: all."""
        self._unlocked = unlocked
        self._look = look
        self._share = share
        self._remembered = auditlocal.load(unlocked)
        self._verified = auditlocal.load_verified(unlocked)
        seen = {(slot, pin) for slot, pins in self._remembered.items() for pin in pins}
        seen.update((slot, known.head) for slot, known in self._verified.items())
        self._witnesses = [Witness(slot, pin, "This machine") for slot, pin in sorted(seen)] + list(witnesses)
        self.chains, self.strangers = list_audit(unlocked)
        for witness in self._witnesses:
            self._complete(witness)
        self.records = 0

    def _complete(self, witness: Witness) -> None:
        """A record that somebody saw may be there all the same, and only not be listed yet."""
        chain = self.chains.setdefault(witness.slot, Chain(witness.slot, nobody(witness.slot)))
        number = witness.pin.number
        if number > chain.last and (info := info_of(self._unlocked, chain, number)) is not None:
            chain.complete(number, info)
            complete(self._unlocked, chain)

    def findings(self, severity: Severity) -> Iterator[Finding]:
        """`severity`: of what is damaged; what is cut off or forked is critical. It goes on after the first."""
        looks = [self._choose(chain) for chain in self.chains.values()]
        places = ((look.chain, place) for look in looks for place in look.places)
        fetched = RecordReader(self._unlocked).fetch(places, sum(len(look.places) for look in looks))
        for look in looks:
            yield from self._judge(look, severity, fetched)
        yield from self._waiting()

    def _waiting(self) -> Iterator[Finding]:
        """Records that other credentials have left on this machine, and that lack in their chains meanwhile."""
        names = {slot.id.hex()[:8]: slot for slot in self._unlocked.roster.slots}
        try:
            here, elsewhere = auditlocal.queued_by_others(self._unlocked), auditlocal.queued_elsewhere(self._unlocked)
        except OSError as error:
            yield self._queued(
                "this-machine",
                f"Whether audit records of others wait on this machine cannot be seen now: {error.strerror}.",
                "Run this again. If it stays so, have the disk with the state folder looked at.",
            )
            return
        for digits, count in sorted(here.items()):
            slot = names.get(digits)  # none: whoever turned the storage back took it away
            goes = slot is not None and slot.revoked is None
            who = slot.name if slot is not None else nobody(digits)
            yield self._queued(
                digits if slot is None else slot.id.hex(),
                f"Audit records of {who} that wait on this machine, and are not in storage: {count}.",
                "They go there when that credential opens the place on this machine."
                if goes
                else "That credential is revoked or unknown: they stay here, as evidence. Keep the state folder.",
            )
        for place, count in sorted(elsewhere.items()):
            yield self._queued(
                place,
                f"Audit records that wait here for another place of this repository, {place}: {count}.",
                "They go there when that place is opened here by the name that it had, with the same credential. "
                "If none has that name any more, they stay, as evidence.",
            )

    def _queued(self, what: str, message: str, remedy: str) -> Finding:
        return Finding(
            code="audit-queued",
            severity="info",
            subject=f"audit/{what}",
            message=message,
            remedy=remedy,
            location=self._unlocked.storage.location,
        )

    def _choose(self, chain: Chain) -> _Look:
        """Which records are read."""
        known, numbers = self._verified.get(chain.slot), chain.numbers
        everything = _Look(chain, range(len(numbers)), known, turn=known.turn if known else 0)
        if self._share is None or known is None or known.listed != chain.listed(known.head.number):
            return everything
        old = bisect_right(numbers, known.head.number)
        count = ceil(self._share * old)
        if count == old or not chain.has(known.head.number):
            return everything
        begin = bisect_left(numbers, known.turn, 0, old) % old
        pins = [witness.pin.number for witness in self._witnesses if witness.slot == chain.slot]
        places = {bisect_left(numbers, number) for number in (*pins, *known.bad)}
        places.update((begin + more) % old for more in range(count))
        places.update([place - 1 for place in places if place])  # a record follows from the one before it, or not
        places.update(range(old, len(numbers)))
        places.discard(len(numbers))
        return _Look(chain, sorted(places), known, turn=numbers[(begin + count) % old])

    def _judge(self, look: _Look, severity: Severity, fetched: Iterator[Stored]) -> Iterator[Finding]:
        chain, found = look.chain, 0
        for finding in self._verify(look, severity, fetched):
            found += 1
            yield finding
        forked = False
        for finding in self._compare(chain, look.hashes):
            forked = True
            yield finding
        if chain.numbers and not found and not forked:
            stale = self._remembered.get(chain.slot, ())  # all of them are there
            auditlocal.remember(self._unlocked, chain.slot, Pin(chain.last, look.hashes[chain.last]), stale)
        if not forked:
            self._remember(look)

    def _remember(self, look: _Look) -> None:
        """All up to the head was read, now or before. Not called where it contradicts what somebody has seen."""
        known, head = look.known, look.head
        if head is None or (known is not None and head.number < known.head.number):
            return
        bad = [number for number in look.bad if number <= head.number]
        verified = Verified(head, look.chain.listed(head.number), bad, look.turn)
        if verified != known:
            auditlocal.remember_verified(self._unlocked, look.chain.slot, verified)

    def _verify(self, look: _Look, severity: Severity, fetched: Iterator[Stored]) -> Iterator[Finding]:
        """What the records themselves tell."""
        chain, wanted = look.chain, {0, look.chain.last}
        wanted.update(witness.pin.number for witness in self._witnesses if witness.slot == chain.slot)
        certain = min(chain.unlisted, default=chain.last + 1)
        before, previous = -1, None  # the hash of the one before; None: it cannot be known
        chosen = iter(look.places)
        coming = next(chosen, None)
        for place, number in enumerate(chain.numbers):
            if number != before + 1:
                previous = None
                yield self._gap(chain, before + 1, number - 1, severity)
            before = number
            if place != coming:
                previous = None
                continue
            coming = next(chosen, None)
            self._look()
            name = chain.object(number)
            try:
                opened, digest = open_record(self._unlocked, name, next(fetched))
            except (Damaged, NotFound) as error:
                previous = None
                look.bad.append(number)
                yield self._damaged(chain, name, error.message.rstrip("."), severity)
                continue
            self.records += 1
            if number in wanted:
                look.hashes[number] = digest
            if number < certain:
                look.head = Pin(number, digest)
            if previous is not None and opened.record.previous != previous:
                look.bad.append(number)
                yield self._damaged(chain, name, "it does not follow from the one before it", severity)
            previous = digest

    def _compare(self, chain: Chain, hashes: dict[int, bytes]) -> Iterator[Finding]:
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


def fork(one: Unlocked, other: Unlocked) -> Iterator[tuple[Chain, int]]:
    """Chains that two places have in common, and the first number from which they differ. Damaged, StorageFailed.

    Each place has chains of its own. Only where both begin with the same record one is a copy of the other.
    """
    there = list_chains(other)
    for chain in list_chains(one).values():
        twin = there.get(chain.slot)
        common = [number for number in chain.numbers if twin.has(number)] if twin else []
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
