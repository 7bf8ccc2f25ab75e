"""Moving living blocks out of packs that are hardly used, unopened or sealed anew, and telling where they lie now."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pharmabackup import ids
from pharmabackup.engine.background import Background
from pharmabackup.engine.garbage import Garbage, Look
from pharmabackup.engine.packs import PackBytes, PackWriter
from pharmabackup.engine.reading import BlockReader
from pharmabackup.engine.segments import write_segment
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged, NotFound
from pharmabackup.format import pack as layout
from pharmabackup.format.index import PackEntry

SEGMENT_ENTRIES = 4096
SEGMENT_BYTES = 1 << 25  # of directories; far below what a reader takes
READ_TOGETHER = 4 << 20  # bytes of packs that are read in one go: small ones cost no more than what threads do
PACKS_TOGETHER = 64  # at most, so that whoever looks on or cancels is heard
Proved = tuple[int, frozenset[bytes]]  # a pack's size, and its blocks
Anew = Callable[[layout.Directory, layout.Block, memoryview], tuple[memoryview, layout.WrappedKey]]


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
    a pack in doubt are opened too: they may have been wrong before the pack got its name.
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
