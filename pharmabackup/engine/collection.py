"""One collection, step by step as docs/format.md, §21, has it. Any number of writers go on meanwhile.

Whoever finds one unfinished finishes it. What decides is created exclusively: of two collectors one begins anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from pharmabackup import ids
from pharmabackup.clock import now_ns
from pharmabackup.engine.background import Background
from pharmabackup.engine.collections import read_condemned
from pharmabackup.engine.creating import lost_write
from pharmabackup.engine.garbage import Garbage, Look, list_intents, pinned_by, still_needed
from pharmabackup.engine.historyreader import sound_history
from pharmabackup.engine.index import known_segments
from pharmabackup.engine.packs import PackBytes, PackWriter, check_region, read_directory
from pharmabackup.engine.reading import BlockReader
from pharmabackup.engine.segments import CHANGED, read_segment, write_segment
from pharmabackup.engine.unlocked import Statement, Unlocked
from pharmabackup.errors import Conflict, Damaged, Error, NotFound, Unsupported
from pharmabackup.format import pack as layout
from pharmabackup.format.index import PackEntry
from pharmabackup.format.keys import Slot
from pharmabackup.format.transaction import RECORD_MAX, Condemn, Done, Execute, Fate, Intent
from pharmabackup.format.wire import Kind, Signed, decode, is_kind, malformed, split

SEGMENT_ENTRIES = 4096
SEGMENT_BYTES = 1 << 25  # of directories; far below what a reader takes
DELETE_AT_ONCE = 1000
READ_TOGETHER = 4 << 20  # bytes of packs that are read in one go: small ones cost no more than what threads do
PACKS_TOGETHER = 64  # at most, so that whoever looks on or cancels is heard
Proved = tuple[int, frozenset[bytes]]  # a pack's size, and its blocks
Anew = Callable[[layout.Directory, layout.Block, memoryview], tuple[memoryview, layout.WrappedKey]]


def require_exclusive(unlocked: Unlocked) -> None:
    """Unsupported where two collectors could not be told apart, or do not see what was written before they looked."""
    for capability, problem in (
        ("exclusive-create", "cannot create an object exclusively, so that two collections could not be told apart"),
        ("fresh-listing", "may list what was there some time ago, so that what is needed could be missed"),
    ):
        if not unlocked.record.capabilities.get(capability, False):
            raise Unsupported(
                f"This storage {problem}.",
                kind="capability",
                remedy="Copy the repository to a storage that can.",
            )


def storage_now(unlocked: Unlocked) -> int:
    """The storage's time: that of an object made for it, which pins nothing and is taken away. StorageFailed."""
    transaction = ids.new_id()
    name = ids.intent_name(transaction, 0)
    try:
        info, _ = unlocked.put(Kind.INTENT, name, Intent(transaction, 0, "hold", b"", now_ns()))
    except NotFound:
        raise lost_write(unlocked.storage, name) from None
    unlocked.storage.delete([name])
    return info.modified


@dataclass(slots=True)
class Moved:
    """Living blocks in new packs, and the packs that they were taken from."""

    emptied: set[bytes] = field(default_factory=set)
    damaged: dict[bytes, Damaged] = field(default_factory=dict)
    proved: dict[bytes, Proved] = field(default_factory=dict)  # new packs, read back
    bytes: int = 0  # of new packs


def move(
    unlocked: Unlocked, garbage: Garbage, packs: Iterable[bytes], look: Look, *, anew: Anew | None = None
) -> Moved:
    """Put the living blocks of sparse packs into new packs, as they are sealed, or `anew`. StorageFailed.

    When another collection has begun meanwhile no index names the new packs, and `condemn` will refuse; NotFound when
    it has deleted what was to be read.

    A pack is read whole and compared with its name first: what is damaged is not given a new, sound name. Blocks of
    a pack that was ever condemned are opened too: they may have been wrong before the pack got its name.
    """
    moved, table = Moved(), garbage.index.blocks
    writers: dict[bytes, PackWriter] = {}
    entries: list[PackEntry] = []
    background = Background()

    def read(group: list[bytes]) -> list[WholePack]:
        whole = []
        for pack in group:
            try:
                whole.append(read_whole(unlocked, pack, garbage.sizes[pack]))
            except NotFound as error:
                if _overtaken(unlocked, garbage.number):  # the other collection has deleted it
                    raise
                moved.damaged[pack] = Damaged(error.message)
            except Damaged as error:
                moved.damaged[pack] = error
        return whole

    def write(group: list[WholePack]) -> None:
        for whole in group:
            wanted = {table.ids[number] for number in garbage.sparse[whole.digest]}
            try:
                if whole.digest in garbage.in_doubt:
                    _prove(unlocked, garbage, whole)
                transplant(whole, wanted, unlocked, writers, anew=anew)
            except Damaged as error:
                moved.damaged[whole.digest] = error
            else:
                moved.emptied.add(whole.digest)

    try:
        neighbours = sorted(packs, key=lambda pack: (garbage.modified[pack], pack))  # and they stay neighbours
        for _, whole in background.one_ahead(read, groups(neighbours, garbage.sizes)):
            look()
            background.run(write, whole())
        for writer in writers.values():
            for written in writer.finish():
                entries.append(written.entry)
                blocks = frozenset(block.id for block in written.directory.blocks)
                moved.proved[written.entry.pack] = written.entry.size, blocks
            moved.bytes += writer.bytes_written
    finally:
        background.close()
        for writer in writers.values():
            writer.close()
    if not _overtaken(unlocked, garbage.number):  # else what was moved may have been condemned for damage meanwhile
        publish(unlocked, entries)
    return moved


def _overtaken(unlocked: Unlocked, number: int) -> bool:
    """Whether the collection of this number, which one wants to begin, has been begun by another. StorageFailed."""
    try:
        unlocked.storage.info(ids.collection_name(number, "condemn"))
    except NotFound:
        return False
    return True


def _prove(unlocked: Unlocked, garbage: Garbage, whole: WholePack) -> None:
    """That the blocks of a pack that are to move are what their ids say. Damaged."""
    reader, table = BlockReader(unlocked, garbage.index), garbage.index.blocks
    places = {block.id: block for block in reversed(whole.directory.blocks)}  # the first of an id is what moves
    for number in garbage.sparse[whole.digest]:
        if (block := places.get(table.ids[number])) is not None:
            sealed = whole.data[block.offset : block.offset + block.length]
            reader.open(table, number, sealed, whole.directory.domain, names=True)


def groups(packs: Iterable[bytes], sizes: Mapping[bytes, int]) -> Iterator[list[bytes]]:
    """Packs in order, small ones together."""
    group, size = list[bytes](), 0
    for pack in packs:
        if group and (size + sizes[pack] > READ_TOGETHER or len(group) == PACKS_TOGETHER):
            yield group
            group, size = [], 0
        group.append(pack)
        size += sizes[pack]
    if group:
        yield group


@dataclass(frozen=True, slots=True)
class WholePack:
    """A pack that is what its name says. `names`: of each block's chunks, in the directory's order."""

    digest: bytes
    data: memoryview
    directory: layout.Directory
    names: list[bytes]


def read_whole(unlocked: Unlocked, pack: bytes, size: int) -> WholePack:
    """Damaged when the pack is not what its name says; NotFound, StorageFailed."""
    data = unlocked.storage.get(ids.pack_name(pack), limit=layout.PACK_MAX)
    if hashlib.sha256(data).digest() != pack:
        raise Damaged(f"The pack {ids.pack_name(pack)} is not what was written.", kind="pack", remedy="Run check.")
    whole = PackBytes(unlocked, pack, size, data)
    _, directory = whole.directory()
    return WholePack(pack, memoryview(data), directory, whole.names(directory))


def transplant(
    source: WholePack,
    wanted: set[bytes],
    target: Unlocked,
    writers: dict[bytes, PackWriter],
    *,
    anew: Anew | None = None,
) -> None:
    """Put blocks of a pack into new packs, as they are sealed or `anew`. `writers`: by domain, made as needed.

    Damaged when the pack does not hold them; StorageFailed.
    """
    directory, left = source.directory, set(wanted)
    if not left <= {block.id for block in directory.blocks}:
        raise Damaged(f"The pack {ids.pack_name(source.digest)} does not hold what its index says.")
    writer = writers.get(directory.domain)
    if writer is None:
        writer = writers[directory.domain] = PackWriter(target, directory.domain)
    for block, own in zip(directory.blocks, source.names, strict=True):
        if block.id in left:
            left.discard(block.id)
            sealed, key = source.data[block.offset : block.offset + block.length], directory.keys[block.key]
            if anew is not None:
                sealed, key = anew(directory, block, sealed)
            writer.add(kind=block.kind, number=0, block_id=block.id, names=own, sealed=sealed, key=key)


def publish(unlocked: Unlocked, entries: list[PackEntry]) -> None:
    """Index segments with these entries. StorageFailed."""
    size, ready = 0, list[PackEntry]()
    for entry in entries:
        if ready and (len(ready) == SEGMENT_ENTRIES or size + len(entry.directory) > SEGMENT_BYTES):
            write_segment(unlocked, ready)
            size, ready = 0, []
        ready.append(entry)
        size += len(entry.directory)
    if ready:
        write_segment(unlocked, ready)


def condemn(unlocked: Unlocked, garbage: Garbage, packs: Collection[bytes]) -> bool:
    """Step 3: from now on nobody may rely on these packs. False: another collection has begun since the look."""
    new = garbage.gone - garbage.history.deleted
    record = Condemn(
        garbage.number, b"".join(sorted(packs)), b"".join(sorted(garbage.decided)), b"".join(sorted(new))
    )
    try:
        unlocked.put(Kind.CONDEMN, ids.collection_name(garbage.number, "condemn"), record)
    except Conflict:
        return False
    return True


def finish(
    unlocked: Unlocked, now: int, look: Look, *, proved: Mapping[bytes, Proved] | None = None
) -> set[bytes] | None:
    """Carry a collection that was begun to its end, whoever began it; the packs that it deleted.

    One that a revoked slot began, or came to execute, ends without deleting: what it names may be a thief's choice.
    Then it gives None, and what was to be deleted has to begin anew.
    `proved`: what packs hold that this collector has just written and read back; others are read when it matters.
    NotFound when another collection goes on, Damaged, StorageFailed.
    """
    state = read_condemned(unlocked)
    if not state.unfinished:
        return set()
    number = state.first
    begun = unlocked.get(Kind.CONDEMN, ids.collection_name(number, "condemn"), Condemn)
    try:
        executed = unlocked.get(Kind.EXECUTE, ids.collection_name(number, "execute"), Execute)
        execute, signer = executed.record, executed.slot
    except NotFound:
        execute, signer = _execute(unlocked, begun, now, look, proved or {})
    if _any_revoked(unlocked, begun.slot, signer):
        _end(unlocked, number)
        return None
    packs, segments = split(execute.packs, 32, "collection"), split(execute.segments, 32, "collection")
    if not set(packs) <= set(split(begun.record.packs, 32, "collection")):
        raise malformed("collection", f"number {number} deletes what it has not condemned")
    names = [ids.pack_name(pack) for pack in packs] + [ids.index_name(segment) for segment in segments]
    _delete(unlocked, names, look)
    listed = set(split(begun.record.transactions, ids.ID_SIZE, "collection"))
    _delete(
        unlocked,
        [name for who, own in list_intents(unlocked).items() if who in listed for name in own.names],
        look,
    )
    _end(unlocked, number)
    return set(packs)


def _end(unlocked: Unlocked, number: int) -> None:
    with suppress(Conflict):  # another collector has finished it too
        unlocked.put(Kind.DONE, ids.collection_name(number, "done"), Done(number))


def _any_revoked(unlocked: Unlocked, *signers: Slot) -> bool:
    """Asked after what they signed was read: it lists roster/, so that who was revoked before he signed is known."""
    unlocked.renewed()
    return any(signer.id in unlocked.revoked_in for signer in signers)


def _execute(
    unlocked: Unlocked, begun: Statement[Condemn], now: int, look: Look, proved: Mapping[bytes, Proved]
) -> tuple[Execute, Slot]:
    """Steps 4 and 5: what survives, which segments go, and the record that decides it, by whomever it is."""
    condemned, number = begun.record, begun.record.number
    packs = set(split(b"" if _any_revoked(unlocked, begun.slot) else condemned.packs, 32, "collection"))
    if packs:
        packs = packs - _survivors(unlocked, condemned, now)
        gone = set(split(condemned.snapshots, ids.ID_SIZE, "collection"))
        packs -= still_needed(unlocked, packs, gone, look, proved)
    segments = _replace_segments(unlocked, packs, look)
    record = Execute(number, b"".join(sorted(packs)), b"".join(sorted(segments)))
    name = ids.collection_name(number, "execute")
    try:
        unlocked.put(Kind.EXECUTE, name, record)
    except Conflict:
        other = unlocked.get(Kind.EXECUTE, name, Execute)
        return other.record, other.slot
    return record, unlocked.slot


def _survivors(unlocked: Unlocked, condemned: Condemn, now: int) -> set[bytes]:
    """Packs of transactions that the collector did not know to be decided when it looked."""
    listed = set(split(condemned.transactions, ids.ID_SIZE, "collection"))
    intents = {who: own for who, own in list_intents(unlocked).items() if who not in listed}
    history = sound_history(unlocked)
    found: set[bytes] = set()
    for who, own in intents.items():
        if who not in history.decided and own.abandoned(now) and _abort(unlocked, who):
            continue
        if who not in history.aborted:
            found |= pinned_by(unlocked, own)
    return found


def _abort(unlocked: Unlocked, transaction: bytes) -> bool:
    """Decide that it never commits; False when it was decided otherwise just now."""
    name = ids.fate_name(transaction)
    try:
        unlocked.put(Kind.FATE, name, Fate(transaction, "abort", None, None))
    except Conflict:
        stored = unlocked.storage.get(name, limit=RECORD_MAX)
        return (
            not is_kind(stored, Kind.CARRY) and unlocked.open(Kind.FATE, name, stored, Fate).record.outcome == "abort"
        )
    return True


def _replace_segments(unlocked: Unlocked, packs: set[bytes], look: Look) -> set[bytes]:
    """Publish what stays of the segments that name one of these packs, or a pack that is gone; those segments.

    Segments whose bytes have changed go as well: what they said is read from the packs. Those that cannot be judged
    are left alone: they may cite a roster that is missing here.
    """
    names = {info.name for info in unlocked.storage.list("index")}
    sizes = {ids.hex_tail(info.name) or b"": info.size for info in unlocked.storage.list("packs")}
    there = set(sizes) - packs
    going, changed, known, verified = set[bytes](), set[bytes](), set[bytes](), known_segments(unlocked)
    staying: dict[PackEntry, None] = {}
    for digest in sorted(filter(None, map(ids.hex_tail, names))):
        if len(digest) != 32 or ids.index_name(digest) not in names:
            continue  # not ours: check names it
        look()
        try:
            segment = read_segment(unlocked, digest, verified=digest in verified)
        except NotFound:  # another collector, which finishes this collection too, has deleted it
            continue
        except Damaged as error:
            if error.kind == CHANGED:
                changed.add(digest)
            continue
        known.update(entry.pack for entry in segment.record.packs)
        if any(entry.pack not in there for entry in segment.record.packs):
            going.add(digest)
            own = (entry for entry in segment.record.packs if entry.pack in there and _counts(segment.slot, entry))
            staying.update(dict.fromkeys(own))
    if changed:
        staying.update(dict.fromkeys(own_entries(unlocked, there - known, sizes, look)))
    publish(unlocked, list(staying))
    return going | changed


def _counts(slot: Slot, entry: PackEntry) -> bool:
    """Whether an entry is of its publisher's domain. Others would begin to count when a collector publishes them."""
    try:
        return slot.domain in (None, decode(decode(entry.directory, Signed).content, layout.Directory).domain)
    except Damaged:
        return False


def own_entries(
    unlocked: Unlocked, packs: Iterable[bytes], sizes: Mapping[bytes, int], look: Look
) -> list[PackEntry]:
    """What packs say of themselves: those that are by whom they say, and hold the blocks that they say."""
    found: list[PackEntry] = []
    for pack in sorted(packs):
        look()
        with suppress(Damaged, NotFound):
            entry, directory = read_directory(unlocked, pack, sizes[pack])
            check_region(unlocked.storage, pack, directory)
            found.append(entry)
    return found


def _delete(unlocked: Unlocked, names: list[str], look: Look) -> None:
    """StorageFailed when one is still there: then the collection is not finished."""
    for start in range(0, len(names), DELETE_AT_ONCE):
        look()
        results = unlocked.storage.delete(names[start : start + DELETE_AT_ONCE])
        problem: Error | None = next((error for error in results.values() if error is not None), None)
        if problem is not None:
            raise problem
