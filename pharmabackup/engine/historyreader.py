"""Reading fates and marks: verified, judged together, and compared with what this machine remembers.

Fates, marks and rosters are never changed or deleted. If storage lacks one that this machine has seen, or has other
bytes under its name, somebody has turned the storage back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from pharmabackup import ids
from pharmabackup.engine import historycache
from pharmabackup.engine.accepted import refuse
from pharmabackup.engine.citations import Citations
from pharmabackup.engine.history import CONTESTED_REMEDY, History, told_contested
from pharmabackup.engine.historycache import SHAPES, Remembered, is_record, recalled, verify_record
from pharmabackup.engine.historycarried import CARRIED, Carrier, believed_first, take_carried, take_carry
from pharmabackup.engine.historyrules import take
from pharmabackup.engine.lanes import objects_in_lanes
from pharmabackup.engine.listing import Listing
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged
from pharmabackup.format.keys import Slot
from pharmabackup.format.transaction import RECORD_MAX, Carry
from pharmabackup.storage.base import ObjectInfo

NEVER = Remembered()


@dataclass(frozen=True, slots=True)
class Looked:
    """A history and what it was read of: objects and when each was made, what this machine remembered, and keys."""

    of: tuple[object, ...]
    history: History


def load_history(unlocked: Unlocked, *, anew: bool = False, listing: Listing | None = None) -> History:
    """Read what storage lists and this machine has not seen, or `anew` all of it.

    What cannot be read is told, not raised. Where storage lists what it did, the last history is given again.
    """
    state, roster, looked = historycache.state_of(unlocked), unlocked.roster_hash, unlocked.looked
    seen: dict[str, Remembered] | None = None
    if anew or looked is None or looked.of[1:] != (state, roster):
        # Before the listing: what another process of this machine commits, and remembers, after it is not gone.
        seen = historycache.load(unlocked)
    listed: dict[str, ObjectInfo] = {}
    for folder in SHAPES:
        for info in (listing or unlocked.storage.list)(folder):
            if folder == "collections" or ids.id_of(info.name) is not None:  # what else lies there is not ours
                listed[info.name] = info
    counting = {name: info.modified for name, info in listed.items() if _is_said(name, listed)}
    basis = counting, state, roster
    if not anew and looked is not None and looked.of == basis:
        history = looked.history
    else:
        if seen is None:
            seen = historycache.load(unlocked)
            if historycache.state_of(unlocked) != state:  # perhaps after the listing
                return load_history(unlocked)
        history = _read(unlocked, seen, state, listed, sorted(counting), anew=anew)
        if unlocked.roster_hash != roster:  # a record led to newer keys, and rules, than it was begun with
            return load_history(unlocked, anew=anew)
        if not history.damaged:
            unlocked.looked = Looked(basis, history)
    return replace(history, committed=dict(history.committed))  # which writers add to


def _read(
    unlocked: Unlocked,
    seen: Mapping[str, Remembered],
    state: tuple[int, int, int],
    listed: Mapping[str, ObjectInfo],
    names: Sequence[str],
    *,
    anew: bool,
) -> History:
    policy = unlocked.roster.policy
    history = History(quorum=policy.forget_quorum, delay=policy.forget_delay * 10**9)
    rosters = {ids.roster_name(number): Remembered(digest) for number, digest in unlocked.rosters.items()}
    history.vanished = [name for name in set(seen) - set(listed) - set(rosters) if CARRIED not in name]
    history.vanished += [name for name, roster in rosters.items() if name in seen and seen[name] != roster]
    history.vanished.sort()
    if any(name.startswith("roster/") for name in history.vanished):
        unlocked.renewed()  # another process of this machine may have seen a newer one; then all is read again
    fresh = {name: roster for name, roster in rosters.items() if name not in seen}
    carries: list[tuple[int, str, Carry, Slot]] = []
    unread = [name for name in names if anew or not seen.get(name, NEVER).signed]
    sizes = {name: listed[name].size for name in unread}
    with objects_in_lanes(unlocked.storage, unread, limit=RECORD_MAX, sizes=sizes) as stored:
        for name in names:
            known = seen.get(name)
            try:
                if known is None or not known.signed or anew:
                    known = fresh[name] = verify_record(unlocked, name, next(stored)[1]())
                if name in fresh and seen.get(name, NEVER).hash not in (b"", known.hash):
                    history.vanished.append(name)  # another record lies in its place
                    del fresh[name]
                record, slot = recalled(unlocked, name, known)
                if isinstance(record, Carry):
                    take_carry(history, name, record, known.hash)
                    carries.append((listed[name].modified, name, record, slot))
                else:
                    take(history, name, record, slot, known.hash, listed[name].modified)
            except Damaged as error:
                history.damaged[name] = error
                fresh.pop(name, None)
    for time, name, carry, slot in sorted(carries, key=believed_first):
        take_carried(unlocked, history, Carrier(name, carry, slot, time), {} if anew else seen, fresh, seen)
    refuse(history)
    history.deleted |= history.absent
    history.vanished = [name for name in history.vanished if name not in history.brought]
    history.vanished += _missing_heads(history)
    _look_for_lists(unlocked, history)
    history.said.sort(key=lambda item: item.time)
    if fresh != {name: seen.get(name) for name in fresh}:
        others = historycache.load(unlocked) if historycache.state_of(unlocked) != state else {}
        historycache.save(unlocked, {**seen, **others, **fresh})
    return history


def _is_said(name: str, listed: Collection[str]) -> bool:
    """Whether a record counts: of a collection only once it has come to delete."""
    if not name.startswith("collections/"):
        return True
    number, _, part = name.removeprefix("collections/").partition("/")
    return part in ("condemn", "execute") and f"collections/{number}/execute" in listed


def sound_history(unlocked: Unlocked) -> History:
    """By the newest roster. Damaged when something committed or said is damaged or gone: it might be a hold."""
    unlocked.renewed()
    history = load_history(unlocked)
    if history.damaged or history.vanished:
        what = [*history.damaged, *history.vanished][0]
        raise Damaged(
            f"Not all that was committed or said about snapshots can be read ({what}), so nothing can be let go.",
            kind="history-forked" if history.vanished else "snapshot",
            remedy="Run check, and restore that object from another location.",
        )
    if history.contested:
        name, (own, brought) = min(history.contested.items())
        raise Damaged(told_contested(name, own, brought), kind="record-contested", remedy=CONTESTED_REMEDY)
    return history


def _look_for_lists(unlocked: Unlocked, history: History) -> None:
    """Lists of keys that are not here though records cite them: a new machine, too, can tell that they were."""
    citations = Citations(unlocked)
    for name in filter(is_record, history.damaged):
        found = citations.unlisted(name)
        if found is not None and found[0] not in history.vanished:
            history.unlisted[name] = found
    history.vanished += sorted({roster for roster, _ in history.unlisted.values()})


def _missing_heads(history: History) -> list[str]:
    """Transactions that others name as what came before them, and that are not there as they name them."""
    named = {(head.transaction, head.hash) for item in history.committed.values() for head in item.snapshot.heads}
    there = {(item.transaction, item.hash) for item in history.committed.values()}
    heads = {ids.fate_name(transaction) for transaction, _ in named}
    if any(name.startswith("snapshots/") for name in set(history.damaged) - heads):
        return []  # it may be a carry that brought them: they are not missing but damaged
    names = {ids.fate_name(transaction) for transaction, _ in named - there}
    return sorted(names - set(history.damaged) - set(history.vanished))
