"""What may go: packs that hold nothing alive, and packs that hold so much that is dead that the rest is worth moving.

Read in the order of docs/format.md, §21: intents, then fates and marks, then the index, then packs. Alive is what
committed snapshots rely on that are not forgotten, or are held; packs of transactions that are not decided stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pharmabackup import ids
from pharmabackup.engine.collections import read_condemned
from pharmabackup.engine.history import History, sound_history
from pharmabackup.engine.index import Index
from pharmabackup.engine.packs import read_directory
from pharmabackup.engine.reading import BlockReader, SnapshotReader
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged, NotFound
from pharmabackup.format.transaction import Intent
from pharmabackup.format.wire import Kind, malformed, split

YOUNG_NS = 24 * 3600 * 10**9  # what nobody relies on may be of a backup that has not come to its intent yet
Look = Callable[[], None]
UNUSED_SHARE = 0.05  # of what is alive: so much may stay dead between living blocks


@dataclass(frozen=True, slots=True)
class Intents:
    """One transaction's: all packs that they pin, and when the newest was made, by the storage's clock."""

    names: list[str]
    packs: frozenset[bytes]
    modified: int


@dataclass(slots=True)
class Garbage:
    """What one look showed. Packs are named by their digests, blocks by their numbers in `index`."""

    number: int  # of the collection that may come of it: if another has begun by then, this is not true any more
    history: History
    index: Index
    intents: dict[bytes, Intents]
    sizes: dict[bytes, int] = field(default_factory=dict)  # of packs that storage lists
    dead: set[bytes] = field(default_factory=set)
    sparse: dict[bytes, list[int]] = field(default_factory=dict)  # to be emptied: blocks that move
    gone: set[bytes] = field(default_factory=set)  # snapshots that are forgotten
    freed: int = 0  # bytes

    @property
    def decided(self) -> set[bytes]:
        """Transactions whose intents were read, and which were decided when fates were read after that."""
        return set(self.intents) & (set(self.history.committed) | self.history.aborted)


def read_intents(unlocked: Unlocked) -> dict[bytes, Intents]:
    """By transaction. Damaged, StorageFailed."""
    found: dict[bytes, Intents] = {}
    for info in unlocked.storage.list("intents"):
        try:
            record = unlocked.get(Kind.INTENT, info.name, Intent).record
        except NotFound:
            continue  # a collection that was finished meanwhile deleted it
        if ids.intent_name(record.transaction, record.number) != info.name:
            raise malformed("intent", f"{info.name} is not its name")
        before = found.get(record.transaction, Intents([], frozenset(), 0))
        found[record.transaction] = Intents(
            [*before.names, info.name],
            before.packs.union(split(record.packs, 32, "intent")),
            max(before.modified, info.modified),
        )
    return found


def look_for_garbage(unlocked: Unlocked, now: int, look: Look) -> Garbage:
    """`now`: by the storage's clock. `look` is called often and may raise. Damaged, StorageFailed."""
    state = read_condemned(unlocked)
    intents = read_intents(unlocked)
    garbage = Garbage(state.highest + 1, sound_history(unlocked), Index(unlocked, chunks=False), intents)
    modified = _read_packs(unlocked, garbage, look)
    table = garbage.index.blocks
    pinned = {pack for transaction in set(intents) - garbage.decided for pack in intents[transaction].packs}
    kept = _places(garbage, _alive(unlocked, garbage, now, look), pinned, state.packs)
    unused: list[tuple[float, int, bytes]] = []
    for pack, size in garbage.sizes.items():
        if pack in pinned:
            continue
        if pack in state.packs:  # a collection that is not finished will delete it
            garbage.freed += size
        elif pack in kept:
            rest = size - sum(table.length[number] for number in kept[pack])
            unused.append((rest / size, rest, pack))
        elif modified[pack] <= now - YOUNG_NS:
            garbage.dead.add(pack)
            garbage.freed += size
    _choose_sparse(garbage, unused, kept)
    return garbage


def still_needed(unlocked: Unlocked, packs: set[bytes], now: int, look: Look) -> set[bytes]:
    """Those of these condemned packs without which a snapshot could not be restored. Damaged, StorageFailed.

    Asked before anything is deleted: what was held or called back since the first look is alive again, and what
    that look took for somewhere else may not be there.
    """
    garbage = Garbage(0, sound_history(unlocked), Index(unlocked, chunks=False), {})
    try:
        _read_packs(unlocked, garbage, look)
        table = garbage.index.blocks
        found: set[bytes] = set()
        for block, domain in _alive(unlocked, garbage, now, look):
            places = {table.packs[table.pack[number]] for number in _instances(garbage, block, domain)}
            if places <= packs:
                found |= places
        return found
    finally:
        garbage.index.close()


def _read_packs(unlocked: Unlocked, garbage: Garbage, look: Look) -> dict[bytes, int]:
    """First the index, then which packs are there; when each was made, by the storage's clock."""
    garbage.index.load()
    modified: dict[bytes, int] = {}
    for info in unlocked.storage.list("packs"):
        digest = ids.hex_tail(info.name)
        if digest is not None and ids.pack_name(digest) == info.name:
            garbage.sizes[digest], modified[digest] = info.size, info.modified
    _learn_unindexed(unlocked, garbage, look)
    garbage.index.blocks.restrict(garbage.sizes, frozenset())
    return modified


def _instances(garbage: Garbage, block: bytes, domain: bytes) -> list[int]:
    table = garbage.index.blocks
    return [
        number
        for number in table.instances(block)
        if table.usable[table.pack[number]] and table.domains[table.pack[number]] == domain
    ]


def _learn_unindexed(unlocked: Unlocked, garbage: Garbage, look: Look) -> None:
    """Packs that no segment names: their own directories say what they hold."""
    known = set(garbage.index.blocks.packs)
    for pack, size in garbage.sizes.items():
        if pack not in known:
            look()
            try:
                garbage.index.add_entry(read_directory(unlocked, pack, size)[0])
            except (Damaged, NotFound):
                continue  # if something alive lies in it alone, that is told as missing


def _alive(unlocked: Unlocked, garbage: Garbage, now: int, look: Look) -> set[tuple[bytes, bytes]]:
    """The blocks that snapshots rely on: (id, domain)."""
    history, reader = garbage.history, BlockReader(unlocked, garbage.index)
    held = history.holds(now)
    ripe = {transaction for transaction, at in history.forgets().items() if at <= now}
    alive: set[tuple[bytes, bytes]] = set()
    for item in history.committed.values():
        look()
        if item.transaction in ripe and item.transaction not in held:
            garbage.gone.add(item.transaction)
            continue
        alive.update((block, item.snapshot.domain) for block in SnapshotReader(reader, item.snapshot).relied())
    return alive


def _places(
    garbage: Garbage, alive: set[tuple[bytes, bytes]], pinned: set[bytes], condemned: frozenset[bytes]
) -> dict[bytes, list[int]]:
    """By pack: the blocks that have to be kept there, or moved. Each in one place. Damaged.

    A pack that two segments name is in the table twice.
    """
    table = garbage.index.blocks
    kept: dict[bytes, list[int]] = {}
    several: list[dict[bytes, int]] = []
    for block, domain in alive:
        places = {table.packs[table.pack[number]]: number for number in _instances(garbage, block, domain)}
        if not places:
            raise Damaged(
                "A block that a snapshot needs is in no pack that is here, so nothing can be let go.",
                kind="block",
                remedy="Run check, and mend what it names.",
            )
        if len(places) == 1:
            ((pack, number),) = places.items()
            kept.setdefault(pack, []).append(number)
        else:
            several.append(places)
    for places in several:
        last = sorted(pack for pack in places if pack not in condemned) or sorted(places)
        best = next((pack for pack in last if pack in pinned or pack in kept), last[0])
        kept.setdefault(best, []).append(places[best])
    return kept


def _choose_sparse(garbage: Garbage, unused: list[tuple[float, int, bytes]], kept: dict[bytes, list[int]]) -> None:
    """Empty the packs with the greatest share of dead bytes, until few are left."""
    left = sum(rest for _, rest, _ in unused)
    may_stay = UNUSED_SHARE * sum(garbage.sizes[pack] - rest for _, rest, pack in unused)
    for _, rest, pack in sorted(unused, reverse=True):
        if left <= may_stay:
            return
        garbage.sparse[pack] = sorted(kept[pack])
        garbage.freed += rest
        left -= rest
