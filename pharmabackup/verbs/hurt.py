"""Which snapshots cannot be restored whole, as far as is known here without reading their data."""

from __future__ import annotations

from collections.abc import Iterable, Set

from pharmabackup.engine.history import Committed, History
from pharmabackup.engine.index import Index
from pharmabackup.engine.reading import BlockReader, SnapshotReader
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged
from pharmabackup.format.transaction import Snapshot
from pharmabackup.verbs.check_schedule import known_damage


def hurt(unlocked: Unlocked, blocks: BlockReader, history: History, *, but: Set[bytes]) -> frozenset[bytes]:
    """Those that a check found damaged, and those that need a block which lies in no pack but missing ones, and ones
    that a check found damaged.

    `blocks`: fresh. `but`: snapshots of which nothing is asked. StorageFailed.
    """
    table, (packs, snapshots) = blocks.index.blocks, known_damage(unlocked)
    found = frozenset(snapshots - but)
    if all(usable and pack not in packs for pack, usable in zip(table.packs, table.usable, strict=True)):
        return found
    return found | lacking(blocks, (item for item in history.newest() if item.transaction not in but), damaged=packs)


def lacking(
    blocks: BlockReader, snapshots: Iterable[Committed], *, damaged: Set[bytes] = frozenset()
) -> frozenset[bytes]:
    """Those of these that need a block which lies in no pack but missing ones, and `damaged` ones. StorageFailed."""
    table = blocks.index.blocks
    sound = [usable and pack not in damaged for pack, usable in zip(table.packs, table.usable, strict=True)]
    whole: dict[bytes, set[bytes]] = {}  # by domain
    for number, place in table.placed():
        if sound[place]:
            whole.setdefault(table.domains[place], set()).add(table.ids[number])
    seen: dict[object, bool] = {}  # neighbours often have the same lists
    found: set[bytes] = set()
    for item in snapshots:
        record = item.snapshot
        lists = record.domain, record.table, record.recipe, record.manifest
        if lists not in seen:
            seen[lists] = _lacks(blocks, record, whole.get(record.domain, set()))
        if seen[lists]:
            found.add(item.transaction)
    return frozenset(found)


def _lacks(blocks: BlockReader, snapshot: Snapshot, whole: Set[bytes]) -> bool:
    try:
        return not SnapshotReader(blocks, snapshot).relied() <= whole
    except Damaged:
        return True


def last_good(unlocked: Unlocked, history: History, going: Set[bytes]) -> list[Committed]:
    """Of those that go for good, the newest of each dataset and device of which all that stay are damaged.

    StorageFailed.
    """
    if not any(known_damage(unlocked)):
        return []  # without a block that is only missing nothing is let go anyway
    blocks = BlockReader(unlocked, Index(unlocked, chunks=False))
    blocks.refresh(seen=blocks.index)
    damaged = hurt(unlocked, blocks, history, but=history.deleted)
    found: dict[object, Committed] = {}
    safe = set[object]()
    for item in history.newest():
        group = item.snapshot.domain, item.snapshot.dataset, item.slot.id
        if item.transaction in damaged or item.transaction in history.deleted:
            continue
        if item.transaction in going:
            found.setdefault(group, item)
        else:
            safe.add(group)
    return [item for group, item in found.items() if group not in safe]
