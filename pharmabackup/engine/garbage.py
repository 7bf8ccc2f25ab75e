"""What may go: packs that hold nothing alive, and packs that hold so much that is dead that the rest is worth moving.

Read in the order of docs/format.md, §21: intents, then fates and marks, then the index, then packs. Alive is what
committed snapshots rely on that are not forgotten, or are held; packs of transactions that are not decided stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from pharmabackup import ids
from pharmabackup.engine.collections import read_condemned
from pharmabackup.engine.history import History, sound_history
from pharmabackup.engine.index import Index
from pharmabackup.engine.packs import check_region, read_directory
from pharmabackup.engine.reading import BlockReader, SnapshotReader
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged, NotFound
from pharmabackup.format.transaction import Intent
from pharmabackup.format.wire import Kind, malformed, split

ABANDONED_NS = 24 * 3600 * 10**9  # a transaction that was not decided so long after its last intent is taken for dead
YOUNG_NS = 24 * 3600 * 10**9  # what nobody relies on may be of a backup that has not come to its intent yet
INTENT_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
Look = Callable[[], None]
UNUSED_SHARE = 0.05  # of what is alive: so much may stay dead between living blocks


@dataclass(frozen=True, slots=True)
class Intents:
    """One transaction's: their names, and when the newest was made, by the storage's clock."""

    names: list[str]
    modified: int


@dataclass(slots=True)
class Garbage:
    """What one look showed. Packs are named by their digests, blocks by their numbers in `index`."""

    number: int  # of the collection that may come of it: if another has begun by then, this is not true any more
    unfinished: bool  # a collection has begun that nobody has finished: it comes first
    history: History
    index: Index
    intents: dict[bytes, Intents]
    gone: set[bytes] = field(default_factory=set)  # snapshots that are forgotten
    abandoned: set[bytes] = field(default_factory=set)  # transactions to be aborted: what they pin is taken for free
    sizes: dict[bytes, int] = field(default_factory=dict)  # of packs that storage lists
    unindexed: set[bytes] = field(default_factory=set)  # packs that no segment names
    dead: set[bytes] = field(default_factory=set)
    sparse: dict[bytes, list[int]] = field(default_factory=dict)  # to be emptied: blocks that move
    freed: int = 0  # bytes

    @property
    def decided(self) -> set[bytes]:
        """Transactions whose intents were listed, and which were decided when fates were read after that."""
        return set(self.intents) & (set(self.history.committed) | self.history.aborted)


def list_intents(unlocked: Unlocked) -> dict[bytes, Intents]:
    """By transaction, as their names say. StorageFailed."""
    found: dict[bytes, Intents] = {}
    for info in unlocked.storage.list("intents"):
        head, _, number = info.name.partition(".")
        transaction = ids.hex_tail(head) or b""
        if len(transaction) != ids.ID_SIZE or not INTENT_NUMBER.fullmatch(number):
            continue  # no intent's name: it can pin nothing
        before = found.get(transaction, Intents([], 0))
        found[transaction] = Intents([*before.names, info.name], max(before.modified, info.modified))
    return found


def pinned_by(unlocked: Unlocked, intents: Intents) -> set[bytes]:
    """The packs of one transaction's intents. NotFound when a collection has deleted one, Damaged, StorageFailed."""
    return {pack for name in intents.names for pack in pinned_in(unlocked, name)}


def pinned_in(unlocked: Unlocked, name: str) -> list[bytes]:
    """The packs of one intent. NotFound, Damaged, StorageFailed."""
    record = unlocked.get(Kind.INTENT, name, Intent).record
    if ids.intent_name(record.transaction, record.number) != name:
        raise malformed("intent", f"{name} is not its name")
    return split(record.packs, 32, "intent")


def look_for_garbage(unlocked: Unlocked, now: int, look: Look, *, may_go: frozenset[bytes] | None = None) -> Garbage:
    """`now`: by the storage's clock. `may_go`: the only snapshots that are taken for gone; None: all that are.

    `look` is called often and may raise. Damaged, NotFound when a collection goes on, StorageFailed.
    """
    state = read_condemned(unlocked)
    intents = list_intents(unlocked)
    history = sound_history(unlocked)
    garbage = Garbage(state.highest + 1, state.unfinished, history, Index(unlocked, chunks=False), intents)
    gone = history.gone(now)
    garbage.gone = gone if may_go is None else gone & (may_go | history.deleted)
    modified = _read_packs(unlocked, garbage, look)
    table = garbage.index.blocks
    undecided = set(intents) - garbage.decided
    garbage.abandoned = {who for who in undecided if intents[who].modified <= now - ABANDONED_NS}
    pinned = {pack for who in undecided - garbage.abandoned for pack in pinned_by(unlocked, intents[who])}
    kept = _places(garbage, _alive(unlocked, garbage, look), pinned, state.packs)
    content = _content(garbage)
    unused: list[tuple[float, int, bytes]] = []
    for pack, size in garbage.sizes.items():
        if pack in pinned:
            continue
        if pack in state.packs:  # a collection that is not finished will delete it
            garbage.freed += size
        elif pack in kept:
            rest = content[pack] - sum(table.length[number] for number in kept[pack])
            unused.append((rest / content[pack], rest, pack))
        elif modified[pack] <= now - YOUNG_NS:
            garbage.dead.add(pack)
            garbage.freed += size
    _choose_sparse(garbage, unused, kept)
    return garbage


def still_needed(unlocked: Unlocked, packs: set[bytes], gone: set[bytes], look: Look) -> set[bytes]:
    """Those of these condemned packs without which a snapshot that is not in `gone` could not be restored.

    Asked before anything is deleted: what the first look took for somewhere else may not be there. Damaged,
    StorageFailed.
    """
    history = sound_history(unlocked)
    garbage = Garbage(0, True, history, Index(unlocked, chunks=False), {}, gone | history.deleted)
    try:
        _read_packs(unlocked, garbage, look)
        table = garbage.index.blocks
        found: set[bytes] = set()
        for domain, blocks in _alive(unlocked, garbage, look).items():
            for block in blocks:
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


def _content(garbage: Garbage) -> dict[bytes, int]:
    """How many bytes of blocks each pack has."""
    table = garbage.index.blocks
    number_of = dict(zip(table.packs, range(len(table.packs)), strict=True))
    found = dict.fromkeys(table.packs, 0)
    for pack, length in zip(table.pack, table.length, strict=True):
        if pack < len(table.packs) and number_of[table.packs[pack]] == pack:  # two segments may name one pack
            found[table.packs[pack]] += length
    return found


def _learn_unindexed(unlocked: Unlocked, garbage: Garbage, look: Look) -> None:
    """Packs that no segment names: their own directories say what they hold."""
    known = set(garbage.index.blocks.packs)
    for pack, size in garbage.sizes.items():
        if pack not in known:
            look()
            try:
                entry, directory = read_directory(unlocked, pack, size)
                check_region(unlocked.storage, pack, directory)
            except (Damaged, NotFound):
                continue  # if something alive lies in it alone, that is told as missing
            garbage.index.add_entry(entry)
            garbage.unindexed.add(pack)


def _alive(unlocked: Unlocked, garbage: Garbage, look: Look) -> dict[bytes, set[bytes]]:
    """The blocks that snapshots rely on, by domain."""
    reader = BlockReader(unlocked, garbage.index)
    alive: dict[bytes, set[bytes]] = {}
    for item in garbage.history.committed.values():
        look()
        if item.transaction not in garbage.gone:
            alive.setdefault(item.snapshot.domain, set()).update(SnapshotReader(reader, item.snapshot).relied())
    return alive


def _places(
    garbage: Garbage, alive: dict[bytes, set[bytes]], pinned: set[bytes], condemned: frozenset[bytes]
) -> dict[bytes, list[int]]:
    """By pack: the blocks that have to be kept there, or moved. Each in one place. Damaged.

    A pack that two segments name is in the table twice.
    """
    table = garbage.index.blocks
    kept: dict[bytes, list[int]] = {}
    several: list[dict[bytes, int]] = []
    for block, domain in ((block, domain) for domain, blocks in alive.items() for block in blocks):
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
        last = sorted(places, key=lambda pack: (pack in condemned, pack in garbage.unindexed, pack))
        last = [pack for pack in last if pack not in condemned and pack not in garbage.unindexed] or last[:1]
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
