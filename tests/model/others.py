"""Those who do one thing whenever they come to it: marks, time, locks, owners, and requests that come late."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.model.actors import END, Move
from tests.model.rules import Rules
from tests.model.store import (
    NONE,
    Condemn,
    Done,
    Execute,
    Fate,
    Intent,
    Locked,
    Mark,
    Pack,
    Ripe,
    Roster,
    Segment,
    Slower,
    Source,
    SourcePack,
    Store,
    View,
)


class At(NamedTuple):
    pc: str


class Steps:
    """Does these things one after the other. Each returns what storage holds then, or None: not yet."""

    def __init__(self, name: str, *steps: tuple[str, Callable[[View], Store | None]]) -> None:
        self.name = name
        self.start = At("0")
        self._steps = steps

    def moves(self, at: At, view: View) -> Iterator[Move]:
        number = int(at.pc)
        label, step = self._steps[number]
        store = step(view)
        if store is not None:
            yield Move(label, At(END if number + 1 == len(self._steps) else str(number + 1)), store)


# ---------------------------------------------------------------- marks and time


def forget(txn: str) -> Steps:
    def mark(view: View) -> Store | None:
        return view.put(Mark("forget", txn)) if txn in view.snapshots() else None

    return Steps("forget", (f"says to forget {txn}", mark))


def clock(txn: str) -> Steps:
    """By the storage's time, the delay of a forget has passed."""

    def ripen(view: View) -> Store | None:
        return view.put(Ripe(txn)) if Mark("forget", txn) in view.store else None

    return Steps("clock", (f"the forget of {txn} counts", ripen))


def say(kind: str, txn: str, rules: Rules) -> Steps:
    """An undo or a hold: the storage's time tells whether it came in time."""

    def mark(view: View) -> Store | None:
        if kind == "undo" and Mark("forget", txn) not in view.store:
            return None
        late = txn in view.counting or txn in view.deleted
        told = txn not in view.deleted if rules.late_words == "count" else not late
        return view.put(Mark(kind, txn, late, told))

    return Steps(kind, (f"says {kind} of {txn}", mark))


def slower_policy(rules: Rules) -> Steps:
    """An owner sets a longer delay."""

    def publish(view: View) -> Store | None:
        return view.put(Slower()) if rules.policy == "newest" else view.store

    return Steps("owner", ("sets a longer delay for forgets", publish))


# ---------------------------------------------------------------- locks


def unlock(pack: str) -> Steps:
    return Steps("lock", (f"the lock of {pack} ends", lambda view: view.delete(Locked(pack))))


def lock(pack: str) -> Steps:
    """A lock may be put on at any time, also on what is just being deleted, and end at any time."""
    return Steps(
        "lock",
        (f"{pack} is locked", lambda view: view.put(Locked(pack)) if pack in view.packs else None),
        (f"the lock of {pack} ends", lambda view: view.delete(Locked(pack))),
    )


# ---------------------------------------------------------------- rosters


def revoke(slot: str) -> Steps:
    """An owner looks at what a slot has committed, and revokes it; what he saw is accepted."""

    def publish(view: View) -> Store | None:
        number = view.newest_roster()
        old = view.rosters[number]
        own = frozenset(txn for txn, item in view.fates.items() if item.slot == slot)
        return view.put(Roster(number + 1, old.slots, old.revoked | {slot}, old.accepted | own))

    return Steps("owner", (f"revokes {slot}, and accepts what it has committed so far", publish))


def enrol(slot: str) -> Steps:
    def publish(view: View) -> Store | None:
        number = view.newest_roster()
        old = view.rosters[number]
        return view.put(Roster(number + 1, old.slots | {slot}, old.revoked, old.accepted))

    return Steps("owner", (f"enrols {slot}", publish))


class Thief:
    """Has the key of a slot that is revoked, and may add objects: he writes what he likes into collections/.

    `records`: how many at most, of these `kinds`. He says that all is gone, or that nothing has to go. `cites`: the
    roster.
    """

    def __init__(self, slot: str, kinds: str = "condemn execute done", *, records: int = 2, cites: int = 0) -> None:
        self.name = "thief"
        self.start = At(str(records))
        self._slot = slot
        self._kinds = kinds.split()
        self._cites = cites

    def moves(self, at: At, view: View) -> Iterator[Move]:
        left = int(at.pc) - 1
        then = At(str(left) if left else END)
        if self._slot in view.revoked():  # before that he is somebody whom everybody believes
            for label, record in self._records(view):
                yield Move(label, then, view.put(record))

    def _records(self, view: View) -> Iterator[tuple[str, object]]:
        by: tuple[str, int] = (self._slot, self._cites)
        packs, segments, number = frozenset(view.packs), frozenset(view.segments), view.highest + 1
        if "condemn" in self._kinds:
            listed = frozenset(view.fates) | {item.txn for item in view.intents}
            record = Condemn(number, packs, listed, frozenset(view.snapshots()), *by)
            yield f"creates collections/{number}/condemn of all there is", record
        for number in sorted(view.condemns):
            if "execute" in self._kinds and number not in view.executes:
                all_of_it = Execute(number, view.condemns[number].packs, segments, *by)
                yield f"creates collections/{number}/execute of all of it", all_of_it
                yield f"creates collections/{number}/execute of nothing", Execute(number, NONE, NONE, *by)
            if "done" in self._kinds and number not in view.done:
                yield f"creates collections/{number}/done", Done(number)


# ---------------------------------------------------------------- late and lost requests


def late_segment(pack: Pack, segment: Segment) -> Steps:
    """A writer that stops between a pack and its segment, and wakes whenever."""
    return Steps(
        "late",
        (f"puts pack {pack.name}", lambda v: v.put(pack)),
        (f"wakes, publishes {segment.name}", lambda v: v.put(segment)),
    )


def pin(txn: str, pack: str) -> Steps:
    """A transaction that pins a pack whenever it comes to it, and does not go on."""
    return Steps(
        txn, (f"creates intents/{txn}.0 = {{{pack}}}", lambda view: view.put(Intent(txn, 0, frozenset([pack]))))
    )


def put_again(pack: Pack) -> Steps:
    """A request to store a pack that the network delivers once more, after the pack was deleted."""

    def put(view: View) -> Store | None:
        return view.put(pack) if any(pack.name in item.packs for item in view.executes.values()) else None

    return Steps("network", (f"delivers the request that stores {pack.name} once more", put))


def listed_again(pack: Pack) -> Steps:
    """A storage that shows what was deleted once more, and later does not."""

    def show(view: View) -> Store | None:
        deleted = any(pack.name in item.packs for item in view.executes.values()) and pack.name not in view.packs
        return view.put(pack) if deleted else None

    return Steps(
        "storage",
        (f"lists {pack.name} again", show),
        (f"does not list {pack.name} any more", lambda view: view.delete(pack)),
    )


def delete_again(name: str, number: int) -> Steps:
    """A collector of an earlier collection whose request to delete a pack arrives whenever."""

    def delete(view: View) -> Store | None:
        if number not in view.executes or name not in view.executes[number].packs:
            return None
        return view.delete(view.packs[name]) if name in view.packs else view.store

    return Steps("sleeper", (f"wakes, and deletes {name}", delete))


# ---------------------------------------------------------------- the replica that is copied from


def source_collection(txn: str, pack: str) -> Steps:
    """In the replica that is copied from, a snapshot is forgotten and collected."""

    def gone(view: View) -> Store | None:
        old = next(item for item in view.sources if item.txn == txn)
        return view.delete(old) | {Source(txn, old.snapshot, gone=True)}

    def delete(view: View) -> Store | None:
        item: SourcePack = view.source_packs[pack]
        return view.delete(item)

    return Steps("source", (f"{txn} is gone in the source", gone), (f"deletes the source's {pack}", delete))


def commits(txn: str, fate: Fate) -> Steps:
    return Steps(
        txn, (f"creates snapshots/{txn}", lambda view: view.put(fate) if txn not in view.fates else view.store)
    )
