"""What one replica holds and another lacks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from pharmabackup import ids
from pharmabackup.engine.history import Committed, History
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.index import Index
from pharmabackup.engine.reading import BlockReader, SnapshotReader
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged, InvalidInput
from pharmabackup.results import Comparison
from pharmabackup.verbs.copy_plan import Plan, plan_copy

if TYPE_CHECKING:
    from pharmabackup.snapshot import Snapshot

Shower = Callable[[History], Callable[[Committed], "Snapshot"]]


def compare(
    source: Unlocked, blocks: BlockReader, target: Unlocked, *, show_here: Shower, show_there: Shower
) -> Comparison:
    """Nothing is changed. InvalidInput when they are not replicas of one repository; Damaged, StorageFailed."""
    if source.repository != target.repository:
        raise InvalidInput(
            "These are two repositories, not two locations of one.", remedy="Open a replica to compare with."
        )
    here, there = load_history(source), load_history(target)
    show, show_other = show_here(here), show_there(there)
    only_here = _only(plan_copy(here, there, None))
    only_there = _only(plan_copy(there, here, None))
    return Comparison(
        only_here=tuple(show(item) for item in reversed(only_here)),
        only_there=tuple(show_other(item) for item in reversed(only_there)),
        bytes_to_copy=_bytes(blocks, target, only_here),
    )


def _only(plan: Plan) -> list[Committed]:
    refused = [item for item, _ in plan.refused]
    return sorted(plan.whole + refused, key=lambda item: (item.snapshot.time, item.snapshot.sequence))


def _bytes(blocks: BlockReader, target: Unlocked, wanted: list[Committed]) -> int:
    """Of the packs that hold what the target has in no pack. StorageFailed."""
    blocks.refresh()
    index = Index(target, chunks=False)
    try:
        index.load()
        listed = {ids.hex_tail(info.name) or b"": info.size for info in target.storage.list("packs")}
        index.blocks.restrict(listed, frozenset())
        packs: set[int] = set()
        table = blocks.index.blocks
        for item in wanted:
            domain = item.snapshot.domain
            relied = set[bytes]()
            with suppress(Damaged):  # a copy tells it, and does not bring it
                relied = SnapshotReader(blocks, item.snapshot).relied()
            for block in relied:
                number = table.find(block, domain)
                if number is not None and index.blocks.find(block, domain) is None:
                    packs.add(table.pack[number])
        return sum(table.pack_sizes[pack] for pack in packs)
    finally:
        index.close()
