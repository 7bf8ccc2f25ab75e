"""What may go: packs that hold nothing alive, and packs that hold so much that is dead that the rest is worth moving.

Read in the order of docs/format.md, §21: intents, then fates and marks, then the index, then packs. Alive is what
committed snapshots rely on that are not forgotten, or are held; packs of transactions that are not decided stay,
unless these are so old that the collection will abort them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from pharmabackup import ids
from pharmabackup.engine.background import Background
from pharmabackup.engine.condemned import let_go, read_condemned
from pharmabackup.engine.emptying import choose_small, choose_sparse
from pharmabackup.engine.grants import INTENT_GRANTS
from pharmabackup.engine.history import History
from pharmabackup.engine.historyreader import sound_history
from pharmabackup.engine.index import Index
from pharmabackup.engine.lanes import objects_in_lanes
from pharmabackup.engine.packs import PackBytes, check_region, read_directory
from pharmabackup.engine.reading import BlockReader, SnapshotReader
from pharmabackup.engine.unlocked import BODY_MAX, Unlocked
from pharmabackup.errors import Damaged, NotFound
from pharmabackup.format.keys import Slot
from pharmabackup.format.transaction import Intent, Snapshot
from pharmabackup.format.wire import Kind, malformed, split

ABANDONED_NS = 24 * 3600 * 10**9  # a transaction that was not decided so long after its last intent is taken for dead
YOUNG_NS = 24 * 3600 * 10**9  # what nobody relies on may be of a backup that has not come to its intent yet
Look = Callable[[], None]
READ_SIZE = 4 << 20


@dataclass(frozen=True, slots=True)
class Intents:
    """One transaction's: their names, and when the newest was made, by the storage's clock."""

    names: list[str]
    modified: int

    def abandoned(self, now: int) -> bool:
        """Whether a collector may abort the transaction, if it is undecided. `now`: by the storage's clock."""
        return self.modified <= now - ABANDONED_NS


@dataclass(slots=True)
class Garbage:
    """What one look showed. Packs are named by their digests, blocks by their numbers in `index`."""

    number: int  # of the collection that may come of it: if another has begun by then, this is not true any more
    unfinished: bool  # a collection has begun that nobody has finished: it comes first
    history: History
    index: Index
    intents: dict[bytes, Intents]
    gone: set[bytes] = field(default_factory=set)  # snapshots that are forgotten
    sizes: dict[bytes, int] = field(default_factory=dict)  # of packs that storage lists
    modified: dict[bytes, int] = field(default_factory=dict)  # when each was made, by the storage's clock
    unindexed: set[bytes] = field(default_factory=set)  # packs that no segment names
    doubtful: set[bytes] = field(default_factory=set)  # the same, and their blocks are not those of their directory
    unreadable: set[bytes] = field(default_factory=set)  # the same, and they do not say what they hold
    dead: set[bytes] = field(default_factory=set)
    left: set[bytes] = field(default_factory=set)  # the same, which a collection came to delete and storage kept
    in_doubt: set[bytes] = field(default_factory=set)  # ever condemned, or a revoked slot's: a block may be wrong
    emptiable: dict[bytes, list[int]] = field(default_factory=dict)  # packs that may go once these have moved
    sparse: dict[bytes, list[int]] = field(default_factory=dict)  # to be emptied: blocks that move
    small: set[bytes] = field(default_factory=set)  # of these, those that are only to be joined
    freed: int = 0  # bytes
    waits: dict[str, int] = field(default_factory=dict)  # bytes that would be, but for what so called slots are at
    _held: dict[bytes, frozenset[bytes]] = field(default_factory=dict)

    def holds(self, unlocked: Unlocked, pack: bytes, block: bytes) -> bool:
        """Whether a pack really holds a block; it is read. StorageFailed.

        Asked where a block lies twice, before one of the two may go: which of them is damaged is nowhere written.
        """
        if pack not in self._held:
            background = Background()
            try:
                self._held[pack] = background.run(held_blocks, unlocked, pack, self.sizes[pack])
            finally:
                background.close()
        return block in self._held[pack]

    @property
    def decided(self) -> set[bytes]:
        """Transactions whose intents were listed, and which were decided when fates were read after that."""
        return set(self.intents) & self.history.decided


def list_intents(unlocked: Unlocked) -> dict[bytes, Intents]:
    """By transaction, as their names say. StorageFailed."""
    found: dict[bytes, Intents] = {}
    for info in unlocked.storage.list("intents"):
        transaction = ids.id_of(info.name)
        if transaction is not None:
            before = found.get(transaction)
            names, modified = ([], 0) if before is None else (before.names, before.modified)
            found[transaction] = Intents([*names, info.name], max(modified, info.modified))
    return found


def pinned_by(unlocked: Unlocked, intents: Intents) -> dict[bytes, Slot]:
    """The packs of one transaction's intents. NotFound when a collection has deleted one, Damaged, StorageFailed."""
    with objects_in_lanes(unlocked.storage, intents.names, limit=BODY_MAX) as stored:
        return {pack: slot for name, get in stored for pack, slot in pinned_in(unlocked, name, get).items()}


def pinned_in(unlocked: Unlocked, name: str, get: Callable[[], bytes] | None = None) -> dict[bytes, Slot]:
    """The packs of one intent, and whose it is. `get`: gives what is stored, if not read here.

    NotFound, Damaged, StorageFailed.
    """
    stored = unlocked.storage.get(name, limit=BODY_MAX) if get is None else get()
    opened = unlocked.open(Kind.INTENT, name, stored, Intent)
    record = opened.record
    if ids.intent_name(record.transaction, record.number) != name:
        raise malformed("intent", f"{name} is not its name")
    if opened.slot.role not in INTENT_GRANTS[record.kind]:
        raise malformed("intent", f"the signer of {name} may only hold what is there")
    return dict.fromkeys(split(record.packs, 32, "intent"), opened.slot)


def look_for_garbage(unlocked: Unlocked, now: int, look: Look, *, may_go: frozenset[bytes] | None = None) -> Garbage:
    """`now`: by the storage's clock. `may_go`: the only snapshots that are taken for gone; None: all that are.

    `look` is called often and may raise. Damaged, NotFound when a collection goes on, StorageFailed.
    """
    state, deleted = read_condemned(unlocked), let_go(unlocked)
    intents = list_intents(unlocked)
    history = sound_history(unlocked)
    garbage = Garbage(state.highest + 1, state.unfinished, history, Index(unlocked, chunks=False), intents)
    gone = history.gone(now)
    garbage.gone = gone if may_go is None else gone & (may_go | history.deleted)
    read_packs(unlocked, garbage, look)
    table = garbage.index.blocks
    garbage.in_doubt = history.shunned | table.signed_by(unlocked.revoked_in)
    decided = garbage.decided
    undecided = (own for who, own in intents.items() if who not in decided)
    pinned = dict[bytes, Slot]()
    for own in undecided:
        if not own.abandoned(now):
            pinned.update(pinned_by(unlocked, own))
    try:
        kept, unsure = _places(unlocked, garbage, alive(unlocked, garbage, look), state.packs | history.shunned)
    except Damaged as error:
        if read_condemned(unlocked) == state:
            raise
        raise NotFound(error.message, kind="object", remedy=error.remedy) from None  # another collection moved it
    content, domain_of = _content(garbage), dict(zip(table.packs, table.domains, strict=True))
    unused: dict[bytes, int] = {}  # bytes between living blocks
    for pack, size in garbage.sizes.items():
        if pack in pinned:
            if pack not in kept and garbage.modified[pack] <= now - YOUNG_NS:
                who = pinned[pack].name
                garbage.waits[who] = garbage.waits.get(who, 0) + size
            continue
        if pack in state.packs:  # a collection that is not finished will delete it
            garbage.freed += size
        elif pack in kept and pack in garbage.doubtful:
            continue
        elif pack in kept:
            garbage.emptiable[pack] = sorted(kept[pack])
            if pack in unsure or (pack in garbage.in_doubt and not _may_prove(unlocked, domain_of[pack])):
                continue  # a block in it may be wrong, and would get a new name
            unused[pack] = max(0, content[pack] - sum(table.length[number] for number in kept[pack]))
        elif garbage.modified[pack] <= now - YOUNG_NS:
            (garbage.left if ids.pack_name(pack) in deleted else garbage.dead).add(pack)
    choose_sparse(garbage, unused, content, kept)
    choose_small(garbage, unused, kept)
    garbage.freed += sum(garbage.sizes[pack] for pack in garbage.dead)
    garbage.freed += sum(unused[pack] for pack in garbage.sparse)
    return garbage


def still_needed(
    unlocked: Unlocked,
    packs: set[bytes],
    gone: set[bytes],
    look: Look,
    proved: Mapping[bytes, tuple[int, frozenset[bytes]]],
) -> set[bytes]:
    """Those of these condemned packs without which a snapshot that is not in `gone` could not be restored.

    Asked before anything is deleted: what the first look took for somewhere else may not be there, or not be whole.
    `proved`: packs that need not be read for that as long as they have that size, and the blocks that they hold.
    Damaged, StorageFailed.
    """
    history = sound_history(unlocked)
    garbage = Garbage(0, True, history, Index(unlocked, chunks=False), {}, gone | history.deleted)
    try:
        read_packs(unlocked, garbage, look)
        for pack, (size, held) in proved.items():
            if garbage.sizes.get(pack) == size:
                garbage._held[pack] = held
        table, found, blind = garbage.index.blocks, set[bytes](), set[bytes]()
        for place, pack in enumerate(table.packs):  # one that was cut may hold some whole blocks
            table.usable[place] = pack in garbage.sizes
        needed = alive(unlocked, garbage, look, blind=blind)
        domains = {history.committed[who].snapshot.domain for who in blind}
        for place, pack in enumerate(table.packs):
            if pack in packs and table.domains[place] in domains:  # it may be any of its blocks that they need
                needed.setdefault(table.domains[place], set()).update(table.ids_in(place))
        for domain, blocks in needed.items():
            for block in blocks:
                look()
                places = {table.packs[table.pack[number]] for number in instances(garbage, block, domain)}
                others = sorted(places - packs)
                if places & packs and not any(garbage.holds(unlocked, pack, block) for pack in others):
                    found |= places & packs
        return found
    finally:
        garbage.index.close()


def is_whole(unlocked: Unlocked, pack: bytes, size: int) -> bool:
    """Whether a pack's bytes are those of its name. StorageFailed."""
    name, hasher = ids.pack_name(pack), hashlib.sha256()
    try:
        for start in range(0, size, READ_SIZE):
            hasher.update(unlocked.storage.get_range(name, start, min(READ_SIZE, size - start)))
    except (Damaged, NotFound):
        return False
    return hasher.digest() == pack


def held_blocks(unlocked: Unlocked, pack: bytes, size: int) -> frozenset[bytes]:
    """The blocks that a pack really holds: it is read, is what its name says, and its own directory is of its bytes.

    None if it is anything else: segments may lie about a pack, and a directory may have been put behind other bytes.
    """
    whole, region = hashlib.sha256(), b""
    try:
        small = unlocked.storage.get(ids.pack_name(pack), limit=size) if size <= READ_SIZE else None
        stored = PackBytes(unlocked, pack, size, small)
        _, directory = stored.directory()
        for start, end in pairwise(sorted({*range(0, size, READ_SIZE), directory.region_size, size})):
            if start == directory.region_size:
                region = whole.digest()
            whole.update(stored.read(start, end - start))
    except (Damaged, NotFound):
        return frozenset()
    if whole.digest() != pack or region != directory.region:
        return frozenset()
    return frozenset(block.id for block in directory.blocks)


def read_packs(unlocked: Unlocked, garbage: Garbage, look: Look) -> None:
    """First the index, then which packs are there."""
    garbage.index.load()
    for info in unlocked.storage.list("packs"):
        digest = ids.hex_tail(info.name)
        if digest is not None and len(digest) == 32 and ids.pack_name(digest) == info.name:
            garbage.sizes[digest], garbage.modified[digest] = info.size, info.modified
    _learn_unindexed(unlocked, garbage, look)
    garbage.index.blocks.restrict(garbage.sizes, frozenset())


def instances(garbage: Garbage, block: bytes, domain: bytes) -> list[int]:
    """The numbers of a block of this domain in the packs that are here, with the size that they should have."""
    table = garbage.index.blocks
    return [
        number
        for number in table.instances(block)
        if table.usable[table.pack[number]] and table.domains[table.pack[number]] == domain
    ]


def _may_prove(unlocked: Unlocked, domain: bytes) -> bool:
    """Whether this credential can open blocks of that domain, and tell whether they are what their ids say."""
    return bool(unlocked.keyring.readers) and any(item.domain == domain for item in unlocked.keyring.naming)


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
            except (Damaged, NotFound):
                garbage.unreadable.add(pack)  # if something alive lies in it alone, that is told as missing
                continue
            garbage.index.add_entry(entry)
            garbage.unindexed.add(pack)
            try:
                check_region(unlocked.storage, pack, directory)
            except (Damaged, NotFound):
                garbage.doubtful.add(pack)


def alive(
    unlocked: Unlocked,
    garbage: Garbage,
    look: Look,
    *,
    reader: BlockReader | None = None,
    blind: set[bytes] | None = None,
) -> dict[bytes, set[bytes]]:
    """The blocks that snapshots rely on, by domain. Damaged.

    `blind`, if it is given, takes the snapshots whose lists of blocks cannot be read, instead of an error.
    """
    reader = reader or BlockReader(unlocked, garbage.index)
    found: dict[bytes, set[bytes]] = {}
    for item in garbage.history.committed.values():
        look()
        if item.transaction in garbage.gone:
            continue
        own = found.setdefault(item.snapshot.domain, set())
        try:
            own.update(SnapshotReader(reader, item.snapshot).relied())
        except Damaged:
            if blind is None:
                raise
            blind.add(item.transaction)
            own.update(named(item.snapshot))
    return found


def named(snapshot: Snapshot) -> set[bytes]:
    """The blocks that a snapshot's record itself names."""
    return {ref.block for refs in (snapshot.table, snapshot.recipe, snapshot.manifest) for ref in refs}


def _places(
    unlocked: Unlocked, garbage: Garbage, needed: dict[bytes, set[bytes]], shunned: frozenset[bytes]
) -> tuple[dict[bytes, list[int]], set[bytes]]:
    """By pack: the blocks that have to be kept there, or moved. Each in one place that really holds it. Damaged.

    The oldest is taken, since whoever adds something later, be it a device that was stolen, must not make others go.
    One that was ever condemned may have been so for a wrong block, which its name does not show; into one that a
    revoked slot signed a thief may have put anything. Where there is no other, all of these are kept, and given
    second: what is moved out of them unopened would be believed. A pack that two segments name is in the table twice.
    """
    table = garbage.index.blocks
    revoked = table.signed_by(unlocked.revoked_in)
    kept: dict[bytes, list[int]] = {}
    unsure: set[bytes] = set()
    for block, domain in ((block, domain) for domain, blocks in needed.items() for block in blocks):
        places = {table.packs[table.pack[number]]: number for number in instances(garbage, block, domain)}
        if not places:
            raise Damaged(
                "A block that a snapshot needs is in no pack that is here, so nothing can be let go.",
                kind="block",
                remedy="Run check, and mend what it names with propose_repair.",
            )
        if len(places) == 1:
            ((pack, number),) = places.items()
            kept.setdefault(pack, []).append(number)
            continue
        order = sorted(
            places,
            key=lambda pack: (
                *(pack in those for those in (revoked, shunned, garbage.unindexed)),
                garbage.modified[pack],
                pack,
            ),
        )
        whole = (pack for pack in order if garbage.holds(unlocked, pack, block))
        best = next(whole, None)
        chosen = order if best is None else [best]  # of what is whole nowhere, nothing goes
        if best is not None and (best in revoked or best in shunned):
            chosen += whole
            unsure.update(chosen if len(chosen) > 1 else ())
        for pack in chosen:
            kept.setdefault(pack, []).append(places[pack])
    return kept, unsure
