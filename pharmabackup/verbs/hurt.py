"""Which snapshots cannot be restored whole, as far as this machine knows without reading their data."""

from __future__ import annotations

from pharmabackup.engine.history import ENDLESS, History
from pharmabackup.engine.reading import BlockReader, SnapshotReader
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged
from pharmabackup.verbs.check_schedule import damaged_packs


def hurt(unlocked: Unlocked, blocks: BlockReader, history: History) -> frozenset[bytes]:
    """Those that need a block which lies in no pack but missing ones, and ones that a check here found damaged.

    `blocks`: refreshed. Of snapshots that somebody has said to forget nothing is asked. StorageFailed.
    """
    table, damaged = blocks.index.blocks, damaged_packs(unlocked)
    sound = [usable and pack not in damaged for pack, usable in zip(table.packs, table.usable, strict=True)]
    if all(sound):
        return frozenset()
    whole: dict[bytes, set[bytes]] = {}  # by domain
    for number, place in table.placed():
        if sound[place]:
            whole.setdefault(table.domains[place], set()).add(table.ids[number])
    found, forgotten = set[bytes](), history.gone(ENDLESS - 1)
    for item in history.newest():
        if item.transaction in forgotten:
            continue
        try:
            relied = SnapshotReader(blocks, item.snapshot).relied()
        except Damaged:
            found.add(item.transaction)
        else:
            if not relied <= whole.get(item.snapshot.domain, set()):
                found.add(item.transaction)
    return frozenset(found)
