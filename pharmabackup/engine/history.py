"""What was committed, and what was said about it since: fates and marks, verified, remembered on this machine.

Fates and marks are never changed or deleted. One that this machine has seen and storage no longer lists means
that somebody has turned the storage back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from pharmabackup import ids
from pharmabackup.clock import now_ns
from pharmabackup.crypto.sealing import NotAuthentic, SealingKey
from pharmabackup.engine.localfiles import replace
from pharmabackup.engine.unlocked import COLLECTORS, EVERYBODY, WRITERS, Unlocked
from pharmabackup.errors import Damaged
from pharmabackup.format.keys import Role, Slot
from pharmabackup.format.transaction import RECORD_MAX, Carried, Carry, Condemn, Fate, Head, Mark, Snapshot
from pharmabackup.format.wire import Kind, is_kind, malformed, split

CONTEXT = b"history cache"
ENDLESS = 1 << 64
MARK_GRANTS: Mapping[str, frozenset[Role]] = {
    "forget": COLLECTORS,
    "undo": COLLECTORS,
    "hold": EVERYBODY - {"auditor"},
    "release": COLLECTORS,
    "verified": EVERYBODY,
}


@dataclass(frozen=True, slots=True)
class Committed:
    """One committed snapshot: its transaction, what was signed, and by whom."""

    transaction: bytes
    hash: bytes  # SHA-256 of the stored object
    slot: Slot
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Said:
    """A mark that counts: its id, who made it, and when by the storage's clock."""

    id: bytes
    mark: Mark
    slot: Slot
    time: int

    @property
    def transactions(self) -> list[bytes]:
        return split(self.mark.transactions, ids.ID_SIZE, "mark")


@dataclass(slots=True)
class History:
    """All fates and marks of a repository, as storage has them now."""

    committed: dict[bytes, Committed] = field(default_factory=dict)
    aborted: set[bytes] = field(default_factory=set)
    carriers: dict[bytes, bytes] = field(default_factory=dict)  # transactions that brought others' records; SHA-256
    brought: dict[str, str] = field(default_factory=dict)  # records by their names: the object that carries each
    said: list[Said] = field(default_factory=list)  # by the storage's time
    absent: set[bytes] = field(default_factory=set)  # brought from another replica without their content
    deleted: set[bytes] = field(default_factory=set)  # these, and what collections took for forgotten and carried out
    quorum: int = 1  # slots that a forget needs
    delay: int = 0  # nanoseconds until it counts
    damaged: dict[str, Damaged] = field(default_factory=dict)
    void: dict[str, Damaged] = field(default_factory=dict)  # marks that can be read and do not count
    vanished: list[str] = field(default_factory=list)

    @property
    def decided(self) -> set[bytes]:
        """Transactions whose fate is known."""
        return {*self.committed, *self.aborted, *self.carriers}

    def heads(self, slot: bytes) -> tuple[Head, ...]:
        """The slot's newest transactions: those that none of its others names."""
        own = [item for item in self.committed.values() if item.slot.id == slot]
        named = {head.transaction for item in own for head in item.snapshot.heads}
        return tuple(Head(slot, item.transaction, item.hash) for item in own if item.transaction not in named)

    def next_sequence(self, slot: bytes) -> int:
        """The number of the slot's next transaction."""
        return 1 + max(
            (item.snapshot.sequence for item in self.committed.values() if item.slot.id == slot), default=-1
        )

    def forgotten(self) -> set[bytes]:
        """Transactions whose content may be gone, by this machine's clock: see `gone`."""
        return self.gone(now_ns())

    def gone(self, now: int) -> set[bytes]:
        """What is forgotten and not held, and what a collection has carried out.

        `now`: who deletes something for it asks the storage for the time.
        """
        held = self.holds(now)
        return self.deleted | {who for who, ripe in self.forgets().items() if ripe <= now and who not in held}

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
        released: dict[bytes, int] = {}
        for item in self.said:
            if item.mark.kind == "release" and item.mark.about is not None:
                released.setdefault(item.mark.about, item.time)
        ripe = self.forgets()
        spans: dict[bytes, list[tuple[Said, int]]] = {}
        for item in self.said:  # in the order of their times
            if item.mark.kind == "hold":
                end = min(item.mark.until or ENDLESS, released.get(item.id, ENDLESS))
                for who in item.transactions:
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
        events: dict[bytes, list[Said]] = {}  # by first forget: what was said about it, in the order of times
        # First all forgets: one that a copy had to bring again counts from then, after what has undone it already.
        first_of = {item.id: item.mark.about or item.id for item in self.said if item.mark.kind == "forget"}
        for item in self.said:
            forget = item.mark.about if item.mark.kind == "undo" else item.id
            if forget in first_of:
                events.setdefault(first_of[forget], []).append(item)
        return {
            (first.id, who): self._outcome(first, who, events[first.id])
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
            if item.mark.kind == "undo":
                if item.mark.about == first.id:
                    return set(), None
                undone.add(item.mark.about)
            elif who in item.transactions:
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
        return sorted(
            self.committed.values(), key=lambda item: (item.snapshot.time, item.snapshot.sequence), reverse=True
        )


def load_history(unlocked: Unlocked, *, anew: bool = False) -> History:
    """Read what storage lists and this machine has not seen, or `anew` all of it.

    What cannot be read is told, not raised.
    """
    seen = _load_cache(unlocked)
    policy = unlocked.roster.policy
    history = History(quorum=policy.forget_quorum, delay=policy.forget_delay * 10**9)
    objects: dict[str, bytes] = {}
    listed: dict[str, int] = {}  # when each was made
    for folder in ("snapshots", "marks", "collections"):
        for info in unlocked.storage.list(folder):
            listed[info.name] = info.modified
    history.vanished = sorted(set(seen) - set(listed))
    fresh = False
    carries: list[tuple[int, str, Carry]] = []
    for name in sorted(listed):
        if name.startswith("collections/") and not _is_carried_out(name, listed):
            continue
        data = None if anew else seen.get(name)
        try:
            if data is None:
                data = unlocked.storage.get(name, limit=RECORD_MAX)
            if name.startswith("snapshots/") and is_kind(data, Kind.CARRY):
                carries.append((listed[name], name, _carry(unlocked, history, name, data)))
            elif name.startswith("snapshots/"):
                _take_fate(unlocked, history, name, data)
            elif name.startswith("marks/"):
                _take_mark(unlocked, history, name, data, listed[name])
            else:
                record = unlocked.open(Kind.CONDEMN, name, data, Condemn).record
                history.deleted.update(split(record.snapshots, ids.ID_SIZE, "collection"))
        except Damaged as error:
            history.damaged[name] = error
            continue
        fresh = fresh or name not in seen
        objects[name] = data
    for time, name, carry in sorted(carries, key=lambda item: item[:2]):
        _take_carried(unlocked, history, name, carry, time)
    history.deleted |= history.absent
    history.vanished = [name for name in history.vanished if name not in history.brought]
    history.vanished += _missing_heads(history)
    history.said.sort(key=lambda item: item.time)
    if fresh:
        _save_cache(unlocked, seen | objects)
    return history


def _is_carried_out(name: str, listed: Mapping[str, int]) -> bool:
    """Whether it is what a collection condemned that has come to delete it."""
    number, _, part = name.removeprefix("collections/").partition("/")
    return part == "condemn" and f"collections/{number}/execute" in listed


def sound_history(unlocked: Unlocked) -> History:
    """Damaged when something that was committed or said cannot be read or is gone: it might be a hold."""
    history = load_history(unlocked)
    if history.damaged or history.vanished:
        what = [*history.damaged, *history.vanished][0]
        raise Damaged(
            f"Not all that was committed or said about snapshots can be read ({what}), so nothing can be let go.",
            kind="history-forked" if history.vanished else "snapshot",
            remedy="Run check, and restore that object from another location.",
        )
    return history


def _missing_heads(history: History) -> list[str]:
    """Transactions that others name as what came before them, and that are not there as they name them."""
    named = {(head.transaction, head.hash) for item in history.committed.values() for head in item.snapshot.heads}
    there = {(item.transaction, item.hash) for item in history.committed.values()}
    names = {ids.fate_name(transaction) for transaction, _ in named - there}
    return sorted(names - set(history.damaged) - set(history.vanished))


def _take_mark(unlocked: Unlocked, history: History, name: str, data: bytes, time: int) -> None:
    opened = unlocked.open(Kind.MARK, name, data, Mark)
    mark_id = ids.hex_tail(name)
    if mark_id is None or len(mark_id) != ids.ID_SIZE or opened.slot.role not in MARK_GRANTS[opened.record.kind]:
        history.void[name] = Damaged(
            f"A mark was made by somebody who may not make it. Object: {name}.",
            kind="mark",
            remedy="It does not count. Find out who wrote it.",
        )
        return
    split(opened.record.transactions, ids.ID_SIZE, "mark")
    history.said.append(Said(mark_id, opened.record, opened.slot, time))


def _take_fate(unlocked: Unlocked, history: History, name: str, data: bytes) -> None:
    opened = unlocked.open(Kind.FATE, name, data, Fate)
    fate = opened.record
    committed = fate.outcome == "commit"
    if (
        ids.fate_name(fate.transaction) != name
        or committed != (fate.snapshot is not None)
        or (committed and fate.intent is None)
        or opened.slot.role not in (WRITERS if committed else COLLECTORS)
        or (fate.snapshot is not None and opened.slot.domain not in (None, fate.snapshot.domain))
    ):
        raise Damaged(
            f"A snapshot's record contradicts itself. Object: {name}.",
            kind="snapshot-forged",
            remedy="Restore from another location, then run check.",
        )
    if fate.snapshot is None:
        history.aborted.add(fate.transaction)
        return
    digest = hashlib.sha256(data).digest()
    history.committed[fate.transaction] = Committed(fate.transaction, digest, opened.slot, fate.snapshot)


def _carry(unlocked: Unlocked, history: History, name: str, data: bytes) -> Carry:
    carry = unlocked.open(Kind.CARRY, name, data, Carry).record
    if ids.fate_name(carry.transaction) != name:
        raise unlocked.damaged(name, malformed("carry", "it is another transaction's"))
    history.carriers[carry.transaction] = hashlib.sha256(data).digest()
    return carry


def _take_carried(unlocked: Unlocked, history: History, carrier: str, carry: Carry, time: int) -> None:
    """Make the records count that this storage does not hold whole itself; marks as of when they came here."""
    for place, item in enumerate(carry.items):
        try:
            if item.name.startswith("snapshots/"):
                _take_carried_fate(unlocked, history, carrier, item)
            elif item.name.startswith("marks/") and item.name not in history.brought:
                _take_carried_mark(unlocked, history, carrier, item, time + place)
        except Damaged as error:
            history.damaged.setdefault(f"{carrier} ({item.name})", error)


def _take_carried_fate(unlocked: Unlocked, history: History, carrier: str, item: Carried) -> None:
    transaction = ids.hex_tail(item.name) or b""
    known = history.committed.get(transaction)
    if transaction in history.aborted or transaction in history.carriers:
        raise malformed("carry", "it brings what was decided otherwise here")
    if known is None:
        _take_fate(unlocked, history, item.name, item.stored)
        if transaction not in history.committed:
            raise malformed("carry", "it brings what was not committed")
        history.brought[item.name] = carrier
        if history.damaged.pop(item.name, None) is None and item.gone:
            history.absent.add(transaction)
    elif not item.gone:
        history.absent.discard(transaction)


def _take_carried_mark(unlocked: Unlocked, history: History, carrier: str, item: Carried, time: int) -> None:
    if ids.hex_tail(item.name) in {said.id for said in history.said}:
        return
    opened = unlocked.open(Kind.MARK, item.name, item.stored, Mark)
    if opened.record.kind == "verified":
        return  # what was read there says nothing about what lies here
    history.damaged.pop(item.name, None)
    history.brought[item.name] = carrier
    _take_mark(unlocked, history, item.name, item.stored, time)


def _cache_key(unlocked: Unlocked) -> SealingKey:
    return SealingKey(unlocked.purpose_key("history cache"))


def _load_cache(unlocked: Unlocked) -> dict[str, bytes]:
    try:
        data = _cache_key(unlocked).open((unlocked.state / "history").read_bytes(), CONTEXT)
        return msgspec.msgpack.decode(data, type=dict[str, bytes])
    except (OSError, NotAuthentic, msgspec.MsgspecError, ValueError):
        return {}


def _save_cache(unlocked: Unlocked, objects: dict[str, bytes]) -> None:
    try:
        replace(unlocked.state / "history", _cache_key(unlocked).seal(msgspec.msgpack.encode(objects), CONTEXT))
    except OSError:
        return  # a full or read-only state folder: the next time everything is read again
