"""What collections have condemned: the writer's and the reader's side of docs/format.md's protocol."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from pharmabackup import ids
from pharmabackup.engine import historycache
from pharmabackup.engine.lanes import objects_in_lanes
from pharmabackup.engine.listing import Listing
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged
from pharmabackup.format.keys import Slot
from pharmabackup.format.transaction import RECORD_MAX, Condemn, Execute
from pharmabackup.format.wire import Kind, malformed, or_planted, split

NUMBER = re.compile(r"[1-9][0-9]{0,8}")
PARTS = {"condemn", "execute", "done"}
FINISHED = {"execute", "done"}  # `done`, which nobody opens, ends nothing that is not decided: it may be a thief's
R = TypeVar("R", Condemn, Execute)


@dataclass(frozen=True, slots=True)
class Condemned:
    """What may not be relied on, and the first collection that has to be read again before a commit."""

    packs: frozenset[bytes]
    segments: frozenset[bytes]  # that are to be deleted: what takes their place is there
    first: int
    unfinished: bool
    highest: int


def parse_name(name: str) -> tuple[int, str]:
    """The collection's number, and which of its records. Damaged."""
    pieces = name.split("/")
    if len(pieces) != 3 or not NUMBER.fullmatch(pieces[1]) or pieces[2] not in PARTS:
        raise or_planted(malformed("collection", f"{name} is no name of a collection's record"), name)
    return int(pieces[1]), pieces[2]


def _read(unlocked: Unlocked, kind: Kind, name: str, shape: type[R]) -> R:
    try:
        return unlocked.get(kind, name, shape).record
    except Damaged as error:
        raise or_planted(error, name) from None


def burnt_names(unlocked: Unlocked, listing: Listing | None = None) -> frozenset[bytes]:
    """Packs that a collection ever came to delete. Damaged, StorageFailed.

    A delete that was on its way when its collector died may still come, and somebody who slept may have put such a
    pack there again: nobody relies on one, or gives a pack such a name.
    """
    return _packs_of(_records(unlocked, {"execute"}, listing or unlocked.storage.list))


def let_go(unlocked: Unlocked) -> frozenset[str]:
    """The names of packs and segments that a collection ever came to delete. Damaged, StorageFailed.

    But for those of collections that a revoked slot began, or came to execute: these delete nothing.
    """
    condemns, executes, revoked = dict[int, Slot](), list[tuple[Execute, Slot]](), unlocked.revoked_in
    for record, slot in _signed(unlocked, {"condemn", "execute"}, unlocked.storage.list):
        if isinstance(record, Execute):
            executes.append((record, slot))
        else:
            condemns[record.number] = slot
    found = set[str]()
    for record, slot in executes:
        begun = condemns.get(record.number)
        if begun is not None and not {begun.id, slot.id} & revoked.keys():
            found.update(map(ids.pack_name, split(record.packs, 32, "collection")))
            found.update(map(ids.index_name, split(record.segments, 32, "collection")))
    return frozenset(found)


def shunned_packs(unlocked: Unlocked, listing: Listing | None = None) -> frozenset[bytes]:
    """Burnt names, and packs that were condemned and survived. Damaged, StorageFailed.

    One that survived, since a snapshot needs it, may have been condemned for damage: no writer relies on it anew.
    """
    return _packs_of(_records(unlocked, {"condemn", "execute"}, listing or unlocked.storage.list))


def _packs_of(records: Iterable[Condemn | Execute]) -> frozenset[bytes]:
    return frozenset(pack for record in records for pack in split(record.packs, 32, "collection"))


def _records(unlocked: Unlocked, parts: Collection[str], listing: Listing) -> Iterator[Condemn | Execute]:
    return (record for record, _ in _signed(unlocked, parts, listing))


def _signed(unlocked: Unlocked, parts: Collection[str], listing: Listing) -> list[tuple[Condemn | Execute, Slot]]:
    seen = historycache.load(unlocked)
    sizes = {info.name: info.size for info in listing("collections") if parse_name(info.name)[1] in parts}
    unread = [name for name in sizes if name not in seen or not seen[name].signed]
    found: list[tuple[Condemn | Execute, Slot]] = []
    with objects_in_lanes(unlocked.storage, unread, limit=RECORD_MAX, sizes=sizes) as stored:
        for name in sizes:
            known = seen.get(name)
            try:
                if known is None or not known.signed:
                    known = historycache.verify_record(unlocked, name, next(stored)[1]())
                record, slot = historycache.recalled(unlocked, name, known)
            except Damaged as error:
                raise or_planted(error, name) from None
            assert isinstance(record, Condemn | Execute)
            found.append((record, slot))
    return found


def read_condemned(unlocked: Unlocked, since: int | None = None, *, listing: Listing | None = None) -> Condemned:
    """Read collections/: all that are unfinished, or all from number `since`. Damaged, StorageFailed."""
    parts: dict[int, set[str]] = {}
    for info in (listing or unlocked.storage.list)("collections"):
        number, part = parse_name(info.name)
        parts.setdefault(number, set()).add(part)
    highest = max(parts, default=0)
    if highest != len(parts):
        first = next(number for number in range(1, highest) if number not in parts)
        error = malformed("collection", f"there are records of number {highest}, and none of number {first}")
        raise or_planted(error, f"collections/{highest}")
    unfinished = [number for number in range(1, highest + 1) if not parts.get(number, set()) >= FINISHED]
    first = min(unfinished, default=highest + 1) if since is None else since
    packs: set[bytes] = set()
    segments: set[bytes] = set()
    for number in range(first, highest + 1):
        have = parts.get(number, set())
        if "execute" in have:
            record = _read(unlocked, Kind.EXECUTE, ids.collection_name(number, "execute"), Execute)
            packs.update(split(record.packs, 32, "collection"))
            segments.update(split(record.segments, 32, "collection"))
        elif "condemn" in have:
            condemn = _read(unlocked, Kind.CONDEMN, ids.collection_name(number, "condemn"), Condemn)
            packs.update(split(condemn.packs, 32, "collection"))
        else:
            name = ids.collection_name(number, "done")
            raise or_planted(malformed("collection", f"{name} has no records before it"), name)
    return Condemned(frozenset(packs), frozenset(segments), first, bool(unfinished), highest)
