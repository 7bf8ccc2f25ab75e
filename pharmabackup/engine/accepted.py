"""What counts of a slot that was revoked: what an owner accepted, and what came before that (docs/format.md, §7.2).

A thief can cite an old roster, so neither time nor citation says when something was signed. He can sign another
snapshot under a number that was accepted: so hashes were.
"""

from __future__ import annotations

from functools import lru_cache

from pharmabackup import ids
from pharmabackup.engine.history import History
from pharmabackup.errors import Damaged
from pharmabackup.format.keys import Slot
from pharmabackup.format.wire import split

HASH_SIZE = 32


def accepts(slot: Slot, digest: bytes) -> bool:
    """Whether the owner has accepted a fate or mark of a slot that is revoked."""
    return slot.revoked is not None and digest in _hashes(slot.revoked.accepted)


@lru_cache(maxsize=64)
def _hashes(accepted: bytes) -> frozenset[bytes]:
    return frozenset(split(accepted, HASH_SIZE, "roster"))  # once: it is asked for each mark


def refuse(history: History) -> None:
    """Let nothing count that a revoked slot committed, but what an owner accepted and what came before that.

    What came before is found from head to head. Where one of these is not here, nobody can say what it led to.
    """
    reached, broken = set[bytes](), set[bytes]()
    marks = {item.hash for item in history.said}
    revoked = {item.slot.id: item.slot.revoked for item in history.committed.values() if item.slot.revoked}
    by_hash = {item.hash: item for item in history.committed.values() if item.slot.revoked}
    for slot, said in revoked.items():
        ahead = list(split(said.accepted, HASH_SIZE, "roster"))
        while ahead:
            item = by_hash.get(digest := ahead.pop())
            if item is None and digest not in marks:
                broken.add(slot)
            elif item is not None and item.slot.id == slot and digest not in reached:
                reached.add(digest)
                ahead += [head.hash for head in item.snapshot.heads if head.slot == slot]
    for who, item in list(history.committed.items()):
        if item.slot.revoked is not None and item.hash not in reached:
            del history.committed[who]
            history.refused.add(who)
            name = ids.fate_name(who)
            history.void[name] = _told(name, item.slot, broken=item.slot.id in broken)


def _told(name: str, slot: Slot, *, broken: bool) -> Damaged:
    """`broken`: something that an owner accepted of the slot, or that this led to, is not here."""
    message = f"A snapshot was made as {slot.name!r} after that was revoked. Object: {name}."
    remedy = "It does not count. Find out who still uses that credential."
    if broken:
        message = (
            f"A snapshot of {slot.name!r}, which is revoked, does not count: it was made afterwards, or what an "
            f"owner accepted leads to it through a record that is damaged or gone. Object: {name}."
        )
        remedy = (
            "If a record of that slot is damaged or gone, bring it back with propose_repair and a replica: then it "
            "counts again. Else find out who still uses that credential."
        )
    return Damaged(message, kind="snapshot-revoked", remedy=remedy)
