"""Reading fates and marks: verified, judged together, and compared with what this machine remembers.

Fates, marks and rosters are never changed or deleted. If storage lacks one that this machine has seen, or has other
bytes under its name, somebody has turned the storage back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from pharmabackup import ids
from pharmabackup.engine import historycache
from pharmabackup.engine.accepted import accepts, refuse
from pharmabackup.engine.citations import Citations
from pharmabackup.engine.grants import FATE_GRANTS, JUDGED_MARKS, MARK_GRANTS
from pharmabackup.engine.history import CONTESTED_REMEDY, Committed, History, Said, told_contested
from pharmabackup.engine.historycache import SHAPES, Remembered, is_record, recalled, shape_of, verify_record
from pharmabackup.engine.lanes import objects_in_lanes
from pharmabackup.engine.listing import Listing
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged
from pharmabackup.format.keys import Slot
from pharmabackup.format.transaction import RECORD_MAX, Carried, Carry, Condemn, Execute, Fate, Mark
from pharmabackup.format.wire import malformed, split
from pharmabackup.storage.base import ObjectInfo

NEVER = Remembered()
CARRIED = ":"  # in what this machine remembers: between a carry's name and that of what it brought


@dataclass(frozen=True, slots=True)
class Looked:
    """A history and what it was read of: objects and when each was made, what this machine remembered, and keys."""

    of: tuple[object, ...]
    history: History


def load_history(unlocked: Unlocked, *, anew: bool = False, listing: Listing | None = None) -> History:
    """Read what storage lists and this machine has not seen, or `anew` all of it.

    What cannot be read is told, not raised. Where storage lists what it did, the last history is given again.
    """
    listed: dict[str, ObjectInfo] = {}
    for folder in SHAPES:
        for info in (listing or unlocked.storage.list)(folder):
            if folder == "collections" or ids.id_of(info.name) is not None:  # what else lies there is not ours
                listed[info.name] = info
    counting = {name: info.modified for name, info in listed.items() if _is_said(name, listed)}
    roster, looked = unlocked.roster_hash, unlocked.looked
    basis = counting, historycache.state_of(unlocked), roster  # before it is read: it may change meanwhile
    if not anew and looked is not None and looked.of == basis:
        history = looked.history
    else:
        history = _read(unlocked, listed, sorted(counting), anew=anew)
        if unlocked.roster_hash != roster:  # a record led to newer keys, and rules, than it was begun with
            return load_history(unlocked, anew=anew, listing=listing)
        if not history.damaged:
            unlocked.looked = Looked(basis, history)
    return replace(history, committed=dict(history.committed))  # which writers add to


def _read(unlocked: Unlocked, listed: Mapping[str, ObjectInfo], names: Sequence[str], *, anew: bool) -> History:
    seen = historycache.load(unlocked)
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
    stored = objects_in_lanes(unlocked.storage, unread, limit=RECORD_MAX, sizes=sizes)
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
                _take_carry(history, name, record, known.hash)
                carries.append((listed[name].modified, name, record, slot))
            else:
                _take(history, name, record, slot, known.hash, listed[name].modified)
        except Damaged as error:
            history.damaged[name] = error
            fresh.pop(name, None)
    for time, name, carry, slot in sorted(carries, key=lambda item: item[:2]):
        _take_carried(unlocked, history, _Carrier(name, carry, slot, time), {} if anew else seen, fresh)
    refuse(history)
    history.deleted |= history.absent
    history.vanished = [name for name in history.vanished if name not in history.brought]
    history.vanished += _missing_heads(history)
    _look_for_lists(unlocked, history)
    history.said.sort(key=lambda item: item.time)
    if fresh != {name: seen.get(name) for name in fresh}:
        historycache.save(unlocked, seen | fresh)
    return history


def _take(
    history: History, name: str, record: Fate | Mark | Condemn | Execute, slot: Slot, digest: bytes, time: int
) -> None:
    if isinstance(record, Fate):
        _take_fate(history, name, record, slot, digest)
    elif isinstance(record, Mark):
        if (said := _said(history, name, record, slot, digest, time)) is not None:
            history.said.append(said)
    else:
        history.shunned.update(split(record.packs, 32, "collection"))
    if isinstance(record, Condemn) and slot.revoked is None:  # else only marks say what is forgotten (§7.2)
        history.deleted.update(split(record.snapshots, ids.ID_SIZE, "collection"))


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


def _said(history: History, name: str, mark: Mark, slot: Slot, digest: bytes, time: int) -> Said | None:
    """What a mark says, if it counts.

    A revoked slot's holds do, as what is kept too long is not lost. The rest needs that an owner saw it (§7.2).
    """
    mark_id = ids.id_of(name)
    if mark_id is None or slot.role not in MARK_GRANTS[mark.kind]:
        history.void[name] = Damaged(
            f"A mark was made by somebody who may not make it. Object: {name}.",
            kind="mark",
            remedy="It does not count. Find out who wrote it.",
        )
        return None
    if mark.kind in JUDGED_MARKS and slot.revoked is not None and not accepts(slot, digest):
        history.void[name] = Damaged(
            f"A mark ({mark.kind}) was made as {slot.name!r}, which is revoked: no owner saw it. Object: {name}.",
            kind="mark",
            remedy="It does not count. Find out who still uses that credential. If it was genuine, say it anew.",
        )
        return None
    return Said(mark_id, mark, slot, time, digest)


def _take_fate(history: History, name: str, fate: Fate, slot: Slot, digest: bytes) -> None:
    committed = fate.outcome == "commit"
    if (
        ids.fate_name(fate.transaction) != name
        or committed != (fate.snapshot is not None)
        or (committed and fate.intent is None)
        or slot.role not in FATE_GRANTS[fate.outcome]
        or (fate.snapshot is not None and slot.domain not in (None, fate.snapshot.domain))
    ):
        raise Damaged(
            f"A snapshot's record contradicts itself. Object: {name}.",
            kind="snapshot-forged",
            remedy="Restore from another location, then run check.",
        )
    if fate.snapshot is None:
        (history.aborted if slot.revoked is None else history.refused).add(fate.transaction)
        return
    history.committed[fate.transaction] = Committed(fate.transaction, digest, slot, fate.snapshot)


def _take_carry(history: History, name: str, carry: Carry, digest: bytes) -> None:
    if ids.fate_name(carry.transaction) != name:
        raise malformed("carry", f"{name} is another transaction's")
    history.carriers[carry.transaction] = digest


@dataclass(frozen=True, slots=True)
class _Carrier:
    """A carry: its object's name, who signed it, and when it came here."""

    name: str
    carry: Carry
    slot: Slot
    time: int


def _take_carried(
    unlocked: Unlocked,
    history: History,
    carrier: _Carrier,
    seen: Mapping[str, Remembered],
    fresh: dict[str, Remembered],
) -> None:
    """Make the records count that this storage does not hold whole itself; marks as of when they came here."""
    said = {item.id: item for item in history.said}

    def recall(item: Carried) -> tuple[bytes, Slot, Fate | Mark]:
        name = f"{carrier.name}{CARRIED}{item.name}"
        known = seen.get(name)
        if known is None or not known.signed:
            kind, shape = shape_of(item.name)
            signed = unlocked.open(kind, item.name, item.stored, shape).signed
            known = fresh[name] = Remembered(hashlib.sha256(item.stored).digest(), signed, kind)
        record, slot = recalled(unlocked, item.name, known)
        assert isinstance(record, Fate | Mark)
        return known.hash, slot, record

    for place, item in enumerate(carrier.carry.items):
        try:
            if item.name.startswith("snapshots/"):
                _take_carried_fate(history, carrier, item, recall)
            elif item.name.startswith("marks/"):
                _take_carried_mark(history, carrier, item, said, carrier.time + place, recall)
            else:
                raise malformed("carry", "it brings what is neither a snapshot nor a mark")
        except Damaged as error:
            history.damaged.setdefault(f"{carrier.name} ({item.name})", error)


def _take_carried_mark(
    history: History,
    carrier: _Carrier,
    item: Carried,
    said: dict[bytes, Said],
    time: int,
    recall: Callable[[Carried], tuple[bytes, Slot, Fate | Mark]],
) -> None:
    before = said.get(ids.hex_tail(item.name) or b"")
    if before is not None and before.hash == hashlib.sha256(item.stored).digest():
        return
    digest, slot, record = recall(item)
    if not isinstance(record, Mark) or record.kind == "verified":
        return  # what was read there says nothing about what lies here
    one = _said(history, item.name, record, slot, digest, time)
    if one is None:
        return
    if before is not None:
        if any(other.id == one.id and other.hash == digest for other in history.said):
            return
        first = _displaces(history, carrier, item.name, before, slot, digest, counts=True)
        left = slot.revoked is not None or before.slot.revoked is not None
        both = left and one.keeps and before.keeps
        if left and one.keeps != before.keeps:
            first = one.keeps  # who is revoked since was not always: no other record of that name ends what he kept
        if not first:
            history.said += [one] if both else []
            return
        if not both:
            history.said.remove(before)
    history.damaged.pop(item.name, None)
    history.brought[item.name] = carrier.name
    history.said.append(one)
    said[one.id] = one


def _take_carried_fate(
    history: History,
    carrier: _Carrier,
    item: Carried,
    recall: Callable[[Carried], tuple[bytes, Slot, Fate | Mark]],
) -> None:
    transaction = ids.hex_tail(item.name) or b""
    if transaction in history.aborted or transaction in history.carriers:
        raise malformed("carry", "it brings what was decided otherwise here")
    before = history.committed.get(transaction)
    if before is not None and before.hash == hashlib.sha256(item.stored).digest():
        if not item.gone:
            history.absent.discard(transaction)
        return
    digest, slot, record = recall(item)
    if before is not None:
        counts = accepts(slot, digest)
        if not _displaces(history, carrier, item.name, before, slot, digest, counts=counts):
            return
    _take(history, item.name, record, slot, digest, 0)
    if transaction not in history.committed:
        raise malformed("carry", "it brings what was not committed")
    history.brought[item.name] = carrier.name
    if history.damaged.pop(item.name, None) is None and item.gone:
        history.absent.add(transaction)


def _displaces(
    history: History,
    carrier: _Carrier,
    name: str,
    before: Committed | Said,
    slot: Slot,
    digest: bytes,
    *,
    counts: bool,
) -> bool:
    """Whether what a carry brings counts instead of another record that is here under its name (§13.4).

    Nobody signs two records of one name. Where a snapshot or mark lies in a carry alone, its name is free, and who
    stole any device could put a record of his own there, so that what it stands for would be deleted. What came by
    copy was found in another replica by a maintainer; it is only told where the roster does not say who is the thief.

    `counts`: whether what is brought would count by itself though its signer is revoked.
    """
    own = before.slot
    if own.revoked is not None:
        if slot.revoked is None:
            return True
        return not accepts(own, before.hash) and (accepts(slot, digest) or _vouched(history, carrier, name))
    if slot.revoked is None or counts:
        history.contested[name] = own, slot
    return slot.revoked is None and _vouched(history, carrier, name)


def _vouched(history: History, carrier: _Carrier, name: str) -> bool:
    """Whether somebody who may copy vouches for what an object of that name contradicts."""
    return name not in history.brought and carrier.slot.revoked is None
