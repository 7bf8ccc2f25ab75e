"""What one record of a history counts for: by the role of who signed it, and once that slot is revoked (§7.2)."""

from __future__ import annotations

from functools import lru_cache

from pharmabackup import ids
from pharmabackup.engine.grants import FATE_GRANTS, JUDGED_MARKS, MARK_GRANTS
from pharmabackup.engine.history import Committed, History, Said
from pharmabackup.errors import Damaged
from pharmabackup.format.keys import Slot
from pharmabackup.format.transaction import Condemn, Execute, Fate, Mark
from pharmabackup.format.wire import split

HASH_SIZE = 32


def take(
    history: History, name: str, record: Fate | Mark | Condemn | Execute, slot: Slot, digest: bytes, time: int
) -> None:
    if isinstance(record, Fate):
        _take_fate(history, name, record, slot, digest)
    elif isinstance(record, Mark):
        if (said := said_of(history, name, record, slot, digest, time)) is not None:
            history.said.append(said)
    else:
        history.shunned.update(split(record.packs, 32, "collection"))
    if isinstance(record, Condemn) and slot.revoked is None:  # else only marks say what is forgotten (§7.2)
        history.deleted.update(split(record.snapshots, ids.ID_SIZE, "collection"))


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


def said_of(history: History, name: str, mark: Mark, slot: Slot, digest: bytes, time: int) -> Said | None:
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


def refuse(history: History) -> None:
    """Let nothing count that a revoked slot committed, but what an owner accepted and what came before that.

    A thief can cite an old roster, so neither time nor citation says when something was signed (§7.2). He can sign
    another snapshot under a number that was accepted: so hashes were.
    """
    reached: set[bytes] = set()
    revoked = {item.slot.id: item.slot.revoked for item in history.committed.values() if item.slot.revoked}
    by_hash = {item.hash: item for item in history.committed.values() if item.slot.revoked}
    for slot, said in revoked.items():
        ahead = list(split(said.accepted, HASH_SIZE, "roster"))
        while ahead:
            item = by_hash.get(digest := ahead.pop())
            if item is not None and item.slot.id == slot and digest not in reached:
                reached.add(digest)
                ahead += [head.hash for head in item.snapshot.heads if head.slot == slot]
    for who, item in list(history.committed.items()):
        if item.slot.revoked is not None and item.hash not in reached:
            del history.committed[who]
            history.refused.add(who)
            name = ids.fate_name(who)
            history.void[name] = Damaged(
                f"A snapshot was made as {item.slot.name!r} after that was revoked. Object: {name}.",
                kind="snapshot-revoked",
                remedy="It does not count. Find out who still uses that credential.",
            )


def accepts(slot: Slot, digest: bytes) -> bool:
    """Whether the owner has accepted a fate or mark of a slot that is revoked."""
    return slot.revoked is not None and digest in _hashes(slot.revoked.accepted)


@lru_cache(maxsize=64)
def _hashes(accepted: bytes) -> frozenset[bytes]:
    return frozenset(split(accepted, HASH_SIZE, "roster"))  # once: it is asked for each mark
