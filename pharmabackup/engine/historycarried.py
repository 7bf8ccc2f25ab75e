"""What carries bring into a history (docs/format.md, §13.4): records of another replica, under their names there.

A maintainer's or owner's carry stands in for what is damaged or gone, and is believed against what lies there under
the same name. A device's brings its own snapshots and displaces nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from pharmabackup import ids
from pharmabackup.engine.accepted import accepts
from pharmabackup.engine.grants import COLLECTORS
from pharmabackup.engine.history import Committed, History, Said, Way
from pharmabackup.engine.historycache import Remembered, recalled, shape_of
from pharmabackup.engine.historyrules import said_of, take
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged
from pharmabackup.format.keys import Slot
from pharmabackup.format.transaction import Carried, Carry, Fate, Mark
from pharmabackup.format.wire import malformed

CARRIED = ":"  # in what this machine remembers: between a carry's name and that of what it brought
Recall = Callable[[Carried], tuple[bytes, Slot, Fate | Mark]]


def believed_first(carry: tuple[int, str, Carry, Slot]) -> tuple[bool, int, str]:
    """What those bring who may copy everything, then what devices bring; each in the order in which it came."""
    return carry[3].role not in COLLECTORS, carry[0], carry[1]


@dataclass(frozen=True, slots=True)
class Carrier:
    """A carry: its object's name, who signed it, and when it came here."""

    name: str
    carry: Carry
    slot: Slot
    time: int


def take_carry(history: History, name: str, carry: Carry, digest: bytes) -> None:
    if ids.fate_name(carry.transaction) != name:
        raise malformed("carry", f"{name} is another transaction's")
    history.carriers[carry.transaction] = digest


def take_carried(
    unlocked: Unlocked,
    history: History,
    carrier: Carrier,
    seen: Mapping[str, Remembered],
    fresh: dict[str, Remembered],
    remembered: Mapping[str, Remembered],
) -> None:
    """Make the records count that this storage does not hold whole itself; marks as of when they came here.

    `seen`: what need not be opened again. `remembered`: all that this machine has seen, also where it reads anew.
    """
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

    judges_all = carrier.slot.role in COLLECTORS
    for place, item in enumerate(carrier.carry.items):
        try:
            if not judges_all:
                _take_own(history, carrier, item, carrier.time + place, recall, remembered)
            elif item.name.startswith("snapshots/"):
                _take_carried_fate(history, carrier, item, carrier.time + place, recall)
            elif item.name.startswith("marks/"):
                _take_carried_mark(history, carrier, item, said, carrier.time + place, recall)
            else:
                raise malformed("carry", "it brings what is neither a snapshot nor a mark")
        except Damaged as error:
            name = f"{carrier.name} ({item.name})"
            if judges_all:
                history.damaged.setdefault(name, error)
            else:  # a device's word stops nobody
                history.void[name] = _not_its_own(carrier, item)


def _take_own(
    history: History,
    carrier: Carrier,
    item: Carried,
    time: int,
    recall: Recall,
    remembered: Mapping[str, Remembered],
) -> None:
    """A snapshot that a device brings: one of its own, under a name that nothing else has or had here.

    Where another record has that name, one of the two is a thief's, and nobody here vouches for either. What is
    damaged or gone comes back where this machine knows that it was the same.
    """
    if not item.name.startswith("snapshots/"):
        raise _not_its_own(carrier, item)
    digest, slot, _ = recall(item)
    missed = item.name in history.damaged or item.name in history.vanished
    same = item.name in remembered and remembered[item.name].hash == digest
    if slot.id != carrier.slot.id or (missed and not same):
        raise _not_its_own(carrier, item)
    before = history.committed.get(ids.hex_tail(item.name) or b"")
    if before is None or before.hash == digest:
        _take_carried_fate(history, carrier, item, time, recall)
    elif before.slot.revoked is None and slot.revoked is None:
        history.contested[item.name] = before.slot, slot
    else:
        raise _not_its_own(carrier, item)


def _not_its_own(carrier: Carrier, item: Carried) -> Damaged:
    return Damaged(
        f"{carrier.slot.name!r} copied what is not its own, or what was damaged or deleted here. "
        f"Object: {item.name} in {carrier.name}.",
        kind="carry",
        remedy="It does not count. Copy as a maintainer or owner, and find out who damaged or deleted what was here.",
    )


def _take_carried_mark(
    history: History,
    carrier: Carrier,
    item: Carried,
    said: dict[bytes, Said],
    time: int,
    recall: Recall,
) -> None:
    before = said.get(ids.hex_tail(item.name) or b"")
    if before is not None and before.hash == hashlib.sha256(item.stored).digest():
        if before.keeps and time < before.time:  # anybody may write the same bytes again, to have it come too late
            history.said.remove(before)
            said[before.id] = Said(before.id, before.mark, before.slot, time, before.hash)
            history.said.append(said[before.id])
        return
    digest, slot, record = recall(item)
    if not isinstance(record, Mark) or record.kind == "verified":
        return  # what was read there says nothing about what lies here
    one = said_of(history, item.name, record, slot, digest, time)
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
    carrier: Carrier,
    item: Carried,
    time: int,
    recall: Recall,
) -> None:
    transaction = ids.hex_tail(item.name) or b""
    if transaction in history.aborted or transaction in history.carriers:
        raise malformed("carry", "it brings what was decided otherwise here")
    before = history.committed.get(transaction)
    way: Way = "copy" if carrier.slot.role in COLLECTORS else "device"
    if before is not None and before.hash == hashlib.sha256(item.stored).digest():
        # Anybody may write the same bytes again, to have it come later. Nothing came before it was made.
        if way == "copy" and before.snapshot.time <= time < before.came:
            history.committed[transaction] = replace(before, came=time, way=way)
        if not item.gone:
            history.absent.discard(transaction)
        return
    digest, slot, record = recall(item)
    if before is not None:
        counts = accepts(slot, digest)
        if not _displaces(history, carrier, item.name, before, slot, digest, counts=counts):
            return
    take(history, item.name, record, slot, digest, time, way)
    if transaction not in history.committed:
        raise malformed("carry", "it brings what was not committed")
    history.brought[item.name] = carrier.name
    if history.damaged.pop(item.name, None) is None and item.gone:
        history.absent.add(transaction)


def _displaces(
    history: History,
    carrier: Carrier,
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


def _vouched(history: History, carrier: Carrier, name: str) -> bool:
    """Whether somebody who may copy vouches for what an object of that name contradicts."""
    return name not in history.brought and carrier.slot.revoked is None
