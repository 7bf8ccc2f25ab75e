"""Blocks as they are sealed, taken from one location's packs and proved before they get a place in new ones.

Who may read opens a block and computes its chunks' names: the block's id commits to them. Who may not compares all
blocks of the pack with the hash of them that its directory was signed with. So a block is taken out of a damaged pack
only where it is what its writer sealed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from pharmabackup import ids
from pharmabackup.engine.blocks import damaged_block
from pharmabackup.engine.index import Index
from pharmabackup.engine.packs import PackWriter, read_directory, read_names
from pharmabackup.engine.reading import BlockReader, chunk_names
from pharmabackup.engine.segments import read_segments
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged, NotFound
from pharmabackup.format.index import PackEntry
from pharmabackup.format.pack import PACK_MAX, Directory, WrappedKey, check_directory
from pharmabackup.format.wire import Kind, Signed, decode


@dataclass(frozen=True, slots=True)
class Taken:
    """A block that is what its id says, sealed as it was."""

    id: bytes
    kind: int
    domain: bytes
    names: bytes
    sealed: bytes | memoryview
    key: WrappedKey


class Shelf:
    """One location's packs. Used by one thread."""

    def __init__(self, unlocked: Unlocked, index: Index) -> None:
        self.index = index
        self.location = unlocked.storage.location
        self._unlocked = unlocked
        self._reader = BlockReader(unlocked, index)
        self._pack: tuple[bytes, memoryview, Directory, list[bytes]] | None = None  # the last one
        self._changed: dict[bytes, Damaged] = {}  # packs that were read whole and are not what was signed
        self._names: tuple[bytes, dict[bytes, bytes], Damaged | None] | None = None  # of the last pack
        self._directories: dict[bytes, list[Directory]] = {}
        self._in_segments: dict[bytes, set[bytes]] | None = None  # directories as they are signed, by pack

    def take(self, number: int) -> Taken:
        """The block with this number in the index. Damaged, NotFound, StorageFailed."""
        table, unlocked = self.index.blocks, self._unlocked
        pack, offset, length = table.pack[number], table.offset[number], table.length[number]
        digest, domain, kind, block_id = table.packs[pack], table.domains[pack], table.kind[number], table.ids[number]
        naming = next((item.key for item in unlocked.keyring.naming if item.domain == domain), None)
        sealed: bytes | memoryview
        if unlocked.keyring.readers and naming is not None:
            sealed = unlocked.storage.get_range(ids.pack_name(digest), offset, length)
            content = self._reader.open(table, number, sealed, domain, names=True)
            return Taken(
                block_id, kind, domain, chunk_names(kind, naming, content), sealed, table.keys[table.key[number]]
            )
        data, directory, names = self._whole(digest)
        for block, own in zip(directory.blocks, names, strict=True):
            if (block.id, block.offset, block.length) == (block_id, offset, length):
                sealed = data[offset : offset + length]
                return Taken(block_id, block.kind, directory.domain, own, sealed, directory.keys[block.key])
        raise damaged_block("its pack does not say that it is there")

    def names(self, number: int) -> bytes:
        """The names of a block's chunks, from its pack's list of names. Damaged, NotFound, StorageFailed."""
        table = self.index.blocks
        digest, wanted = table.packs[table.pack[number]], table.ids[number]
        if self._names is None or self._names[0] != digest:
            found: dict[bytes, bytes] = {}
            problem: Damaged | None = None
            for directory in self._said(digest):
                try:
                    names = read_names(self._unlocked, digest, directory)
                except Damaged as error:
                    problem = error
                else:
                    found.update(zip((block.id for block in directory.blocks), names, strict=True))
            self._names = digest, found, problem
        _, found, problem = self._names
        if wanted not in found:
            raise problem or damaged_block("the names of its chunks are not to be had")
        return found[wanted]

    def _whole(self, digest: bytes) -> tuple[memoryview, Directory, list[bytes]]:
        """A pack all of whose blocks are those that its directory was signed for. Damaged, NotFound."""
        if digest in self._changed:
            raise self._changed[digest]
        if self._pack is None or self._pack[0] != digest:
            self._pack = None
            data = memoryview(self._unlocked.storage.get(ids.pack_name(digest), limit=PACK_MAX))
            for directory in self._said(digest):
                if hashlib.sha256(data[: directory.region_size]).digest() == directory.region:
                    self._pack = digest, data, directory, read_names(self._unlocked, digest, directory)
                    break
            else:
                error = damaged_block("its pack has changed, and only who may read could say which part of it")
                self._changed[digest] = error
                raise error
        return self._pack[1:]

    def _said(self, digest: bytes) -> list[Directory]:
        """What a pack holds, as it says itself and as segments say."""
        found = self._directories.get(digest)
        if found is None:
            found = []
            with suppress(Damaged, NotFound):
                size = self._unlocked.storage.info(ids.pack_name(digest)).size
                found.append(read_directory(self._unlocked, digest, size)[1])
            if not found:
                found += self._segments_say(digest)
            self._directories[digest] = found
        return found

    def _segments_say(self, digest: bytes) -> Iterator[Directory]:
        if self._in_segments is None:
            self._in_segments = {}
            with read_segments(self._unlocked, dict.fromkeys(sorted(self.index.segments), 0)) as segments:
                for _, get in segments:
                    with suppress(Damaged, NotFound):
                        for entry in get().record.packs:
                            self._in_segments.setdefault(entry.pack, set()).add(entry.directory)
        for said in sorted(self._in_segments.get(digest, ())):
            with suppress(Damaged):
                opened = self._unlocked.statement(Kind.DIRECTORY, "packs/", decode(said, Signed), Directory)
                if opened.slot.domain in (None, opened.record.domain):
                    yield check_directory(opened.record)


def replica_shelf(unlocked: Unlocked, other: Unlocked) -> Shelf:
    """A replica's packs. What they say is judged by the roster that is known here. Damaged, StorageFailed."""
    there = replace(unlocked, storage=other.storage, state=other.state)
    index = Index(there, chunks=False)
    index.load()
    listed = {ids.hex_tail(info.name) or b"": info.size for info in there.storage.list("packs")}
    for pack in sorted(set(listed) - set(index.blocks.packs)):
        with suppress(Damaged, NotFound):
            index.add_entry(read_directory(there, pack, listed[pack])[0])
    for place, pack in enumerate(index.blocks.packs):
        index.blocks.usable[place] = pack in listed
    return Shelf(there, index)


def put_away(unlocked: Unlocked, blocks: Iterable[Taken]) -> tuple[list[PackEntry], int]:
    """Put blocks into new packs: what segments are to say, and how many bytes. StorageFailed."""
    writers: dict[bytes, PackWriter] = {}
    entries: list[PackEntry] = []
    try:
        for block in blocks:
            writer = writers.get(block.domain)
            if writer is None:
                writer = writers[block.domain] = PackWriter(unlocked, block.domain)
            writer.add(
                kind=block.kind,
                number=0,
                block_id=block.id,
                names=block.names,
                sealed=memoryview(block.sealed),
                key=block.key,
            )
        for writer in writers.values():
            entries += [written.entry for written in writer.finish()]
        return entries, sum(writer.bytes_written for writer in writers.values())
    finally:
        for writer in writers.values():
            writer.close()
