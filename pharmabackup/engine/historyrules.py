"""What one record of a history counts for, by the role of who signed it."""

from __future__ import annotations

from pharmabackup import ids
from pharmabackup.engine.accepted import accepts
from pharmabackup.engine.grants import FATE_GRANTS, JUDGED_MARKS, MARK_GRANTS
from pharmabackup.engine.history import Committed, History, Said, Way
from pharmabackup.errors import Damaged
from pharmabackup.format.keys import Slot
from pharmabackup.format.transaction import Condemn, Execute, Fate, Mark
from pharmabackup.format.wire import split


def take(
    history: History,
    name: str,
    record: Fate | Mark | Condemn | Execute,
    slot: Slot,
    digest: bytes,
    time: int,
    way: Way = "",
) -> None:
    """`time`: when it came here, and the way in which it did."""
    if isinstance(record, Fate):
        _take_fate(history, name, record, slot, digest, time, way)
    elif isinstance(record, Mark):
        if (said := said_of(history, name, record, slot, digest, time)) is not None:
            history.said.append(said)
    else:
        history.shunned.update(split(record.packs, 32, "collection"))
    if isinstance(record, Condemn) and slot.revoked is None:  # else only marks say what is forgotten (§7.2)
        history.deleted.update(split(record.snapshots, ids.ID_SIZE, "collection"))


def _take_fate(history: History, name: str, fate: Fate, slot: Slot, digest: bytes, time: int, way: Way) -> None:
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
    history.committed[fate.transaction] = Committed(fate.transaction, digest, slot, fate.snapshot, time, way)


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
