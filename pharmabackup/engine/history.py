"""What was committed, and what was said about it since: which snapshots there are, and which of them may be gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pharmabackup import ids
from pharmabackup.clock import now_ns
from pharmabackup.errors import Damaged
from pharmabackup.format.keys import Slot
from pharmabackup.format.transaction import Head, Mark, Snapshot
from pharmabackup.format.wire import COUNT_MAX, split

Way = Literal["", "copy", "device"]
ENDLESS = 1 << 64
CONTESTED_REMEDY = (
    "One of them signed what is not his: find out whose key was stolen, and revoke that. Then delete the object of "
    "that name by hand; what a copy brought stays."
)


def told_contested(name: str, own: Slot, brought: Slot) -> str:
    """What is said of a name that two records have."""
    return (
        f"Two different records have the name {name}: one that {own.name!r} signed, and one of {brought.name!r} that "
        "a copy brought. Until somebody says which is genuine nothing is let go."
    )


@dataclass(frozen=True, slots=True)
class Committed:
    """One committed snapshot: its transaction, what was signed, and by whom."""

    transaction: bytes
    hash: bytes  # SHA-256 of the stored object
    slot: Slot
    snapshot: Snapshot
    came: int = 0  # here, by the storage's clock; 0 of one that this process has just written
    way: Way = ""  # in which it came: as an object of its own, or brought by who may copy all, or by a device

    @property
    def order(self) -> tuple[int, int]:
        """By the storage's time, and by sequence where that is equal."""
        return self.snapshot.time, self.snapshot.sequence


@dataclass(frozen=True, slots=True)
class Said:
    """A mark that counts: its id, who made it, and when by the storage's clock."""

    id: bytes
    mark: Mark
    slot: Slot
    time: int
    hash: bytes = b""  # SHA-256 of the stored object
    transactions: frozenset[bytes] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        found = frozenset(split(self.mark.transactions, ids.ID_SIZE, "mark"))  # once: it is asked for each of them
        object.__setattr__(self, "transactions", found)

    @property
    def keeps(self) -> bool:
        """Whether snapshots stay by it."""
        return self.mark.kind in ("hold", "undo")


@dataclass(slots=True)
class History:
    """All fates and marks of a repository, as storage has them now."""

    committed: dict[bytes, Committed] = field(default_factory=dict)
    aborted: set[bytes] = field(default_factory=set)
    carriers: dict[bytes, bytes] = field(default_factory=dict)  # transactions that brought others' records; SHA-256
    brought: dict[str, str] = field(default_factory=dict)  # records by their names: the object that carries each
    said: list[Said] = field(default_factory=list)  # by the storage's time
    absent: set[bytes] = field(default_factory=set)  # brought from another replica without their content
    shunned: set[bytes] = field(default_factory=set)  # packs that collections ever condemned
    deleted: set[bytes] = field(default_factory=set)  # these, and what collections took for forgotten and carried out
    quorum: int = 1  # slots that a forget needs
    delay: int = 0  # nanoseconds until it counts
    damaged: dict[str, Damaged] = field(default_factory=dict)
    void: dict[str, Damaged] = field(default_factory=dict)  # what can be read and does not count
    contested: dict[str, tuple[Slot, Slot]] = field(default_factory=dict)  # two have this name: whose lies here, came
    refused: set[bytes] = field(default_factory=set)  # what a revoked slot committed afterwards, or aborted
    vanished: list[str] = field(default_factory=list)  # what was there, or somebody signed that it was
    unlisted: dict[str, tuple[str, Slot]] = field(default_factory=dict)  # records: the list each cites, its signer

    @property
    def decided(self) -> set[bytes]:
        """Transactions whose fate is known."""
        return {*self.committed, *self.aborted, *self.carriers, *self.refused}

    def heads(self, slot: bytes) -> tuple[Head, ...]:
        """The slot's newest transactions: those that none of its others names, in the order in which they came."""
        own = [item for item in self.newest() if item.slot.id == slot]
        named = {head.transaction for item in own for head in item.snapshot.heads}
        left = sorted((item for item in own if item.transaction not in named), key=lambda item: item.came or ENDLESS)
        return tuple(Head(slot, item.transaction, item.hash) for item in left)

    def next_sequence(self, slot: bytes) -> int:
        """The number of the slot's next transaction; the last that there is stays that: a thief may have used it."""
        before = (item.snapshot.sequence for item in self.committed.values() if item.slot.id == slot)
        return min(1 + max(before, default=-1), COUNT_MAX)

    def forgotten(self) -> set[bytes]:
        """Transactions whose content may be gone, by this machine's clock: see `gone`."""
        return self.gone(now_ns())

    def gone(self, now: int) -> set[bytes]:
        """What is forgotten and not held, and what a collection has carried out.

        `now`: who deletes something for it asks the storage for the time.
        """
        forgets = self.forgets()
        held = self._held(now, forgets)
        return self.deleted | {who for who, ripe in forgets.items() if ripe <= now and who not in held}

    def forgets(self) -> dict[bytes, int]:
        """Transactions that enough slots have said to forget; from when on that counts, by the storage's clock."""
        found: dict[bytes, int] = {}
        for (_, who), (_, ripe) in self._forgets().items():
            if ripe is not None:
                found[who] = min(ripe, found.get(who, ripe))
        return found

    def standing_forgets(self) -> dict[tuple[bytes, bytes], set[bytes]]:
        """By first forget and transaction: the slots that stand for it."""
        return {key: slots for key, (slots, _) in self._forgets().items() if slots}

    def holds(self, now: int) -> dict[bytes, list[Said]]:
        """The holds that hold then, by transaction.

        One that came when its snapshot could be gone already does not count, unless another held it then.
        """
        return self._held(now, self.forgets())

    def _held(self, now: int, ripe: Mapping[bytes, int]) -> dict[bytes, list[Said]]:
        released: dict[tuple[bytes | None, bytes], int] = {}
        for item in self.said:
            if item.mark.kind == "release":
                for who in item.transactions:
                    released.setdefault((item.mark.about, who), item.time)
        spans: dict[bytes, list[tuple[Said, int]]] = {}
        for item in self.said:  # in the order of their times
            if item.mark.kind == "hold":
                for who in item.transactions:
                    end = min(item.mark.until or ENDLESS, released.get((item.id, who), ENDLESS))
                    before = spans.setdefault(who, [])
                    if item.time < ripe.get(who, ENDLESS) or any(other > item.time for _, other in before):
                        before.append((item, end))
        return {
            who: [item for item, end in found if end > now]
            for who, found in spans.items()
            if who not in self.deleted and any(end > now for _, end in found)
        }

    def _forgets(self) -> dict[tuple[bytes, bytes], tuple[set[bytes], int | None]]:
        """By first forget and transaction: the slots that stand for it, and from when on it counts."""
        made = {item.id: item for item in self.said if item.mark.kind == "forget"}
        events: dict[bytes, list[tuple[int, int, Said]]] = {}  # by first forget: what was said about it, in order
        for item in self.said:
            about = made.get(item.mark.about or b"")
            if item.mark.kind == "forget":
                events.setdefault(item.mark.about or item.id, []).append((item.time, 0, item))
            elif (
                item.mark.kind == "undo" and about is not None
            ):  # made after that, whatever a clock says that went back
                events.setdefault(about.mark.about or about.id, []).append((max(item.time, about.time), 1, item))
        for found in events.values():
            found.sort(key=lambda event: event[:2])
        ordered = {first: [item for *_, item in found] for first, found in events.items()}
        return {
            (first.id, who): self._outcome(first, who, ordered[first.id])
            for first in self.said
            if first.mark.kind == "forget" and first.mark.about is None
            for who in first.transactions
        }

    def _outcome(self, first: Said, who: bytes, events: list[Said]) -> tuple[set[bytes], int | None]:
        stand: dict[bytes, Said] = {}  # the marks that do
        undone: set[bytes | None] = set()
        ripe: int | None = None
        for item in events:
            if ripe is not None and item.time >= ripe:
                break  # from then on it may be gone, and words do not bring it back
            if who not in item.transactions:
                continue
            if item.mark.kind == "undo":
                if item.mark.about == first.id:
                    return set(), None
                undone.add(item.mark.about)
            else:
                stand[item.id] = item
            slots: dict[bytes, int] = {}  # each with its earliest
            for said in stand.values():
                if said.id not in undone:
                    slots.setdefault(said.slot.id, said.time)
            enough = len(slots) >= self.quorum
            ripe = sorted(slots.values())[self.quorum - 1] + self.delay if enough else None
        return {said.slot.id for said in stand.values() if said.id not in undone}, ripe

    def newest(self) -> list[Committed]:
        """Everything committed, newest first by the storage's time; by sequence where that is equal."""
        return sorted(self.committed.values(), key=lambda item: item.order, reverse=True)
