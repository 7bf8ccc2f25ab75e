"""Bringing sealed packs and signed records from one replica to another, without opening a block.

The target's own collections go on meanwhile: this is a writer there, with intents of its own, and one record that is
created exclusively decides whether what it brought counts (docs/format.md, §13.4 and §20).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from zlib import crc32

from pharmabackup import ids
from pharmabackup.engine.collection import transplant
from pharmabackup.engine.garbage import is_whole
from pharmabackup.engine.history import History
from pharmabackup.engine.index import Index, write_segment
from pharmabackup.engine.packs import PackWriter, read_directory
from pharmabackup.engine.reading import BlockReader
from pharmabackup.engine.transaction import SEGMENT_PACKS, Attempt, survey
from pharmabackup.engine.unlocked import Unlocked, read_back
from pharmabackup.errors import Conflict, Damaged
from pharmabackup.format.index import PackEntry
from pharmabackup.format.transaction import RECORD_MAX, Carried, Carry
from pharmabackup.format.wire import Kind
from pharmabackup.storage.base import Storage

PIECE = 1 << 20
Step = Callable[[int], None]  # so many bytes were sent; may raise


class Carrier:
    """One transaction in the target. Not used again after `decide`, or when something was raised."""

    def __init__(
        self,
        source: Unlocked,
        blocks: BlockReader,
        target: Unlocked,
        index: Index,
        step: Step,
    ) -> None:
        """`blocks`: of the source; `index`: of the target. Damaged, NotFound, StorageFailed."""
        self.bytes_sent = 0
        self._source = source
        self._blocks = blocks
        self._target = target
        self._index = index
        self._step = step
        ground = survey(target, index, foreign=True)
        self._attempt = Attempt(target, ground)
        self._burnt = ground.burnt | ground.condemned.packs
        self._relied: set[bytes] = set()  # packs of the target
        self._unindexed: list[PackEntry] = []

    def bring(self, blocks: Iterable[bytes], domain: bytes) -> None:
        """Have these blocks in the target. Damaged when the source has not all whole, NotFound, StorageFailed."""
        wanted, table = set(blocks), self._index.blocks
        missing = {block for block in wanted if table.find(block, domain) is None}
        while missing:
            self._bring_one(next(iter(missing)), missing, domain)
            missing = {block for block in missing if table.find(block, domain) is None}
        for block in wanted:
            number = table.find(block, domain)
            assert number is not None
            self._relied.add(table.packs[table.pack[number]])

    def _bring_one(self, block: bytes, missing: set[bytes], domain: bytes) -> None:
        """A pack that holds this block, and with it all else that it holds of what is missing."""
        table = self._blocks.index.blocks
        problem = Damaged(
            "A block that a snapshot needs is in no pack that is here.",
            kind="block",
            remedy="Run check, and repair what it names.",
        )
        for number in table.instances(block):
            pack = table.pack[number]
            if not table.usable[pack] or table.domains[pack] != domain:
                continue
            try:
                self._bring_pack(table.packs[pack], table.pack_sizes[pack], missing)
            except Damaged as error:
                problem = error
            else:
                if self._index.blocks.find(block, domain) is not None:
                    return
        raise problem

    def _bring_pack(self, pack: bytes, size: int, missing: set[bytes]) -> None:
        """The whole pack under its own name, where that is free; else what is needed of it under a new one."""
        entry, directory = read_directory(self._source, pack, size)
        entries = [entry]
        if pack in self._burnt or not self._send(pack, size):
            entries = self._transplant(pack, size, missing.intersection(block.id for block in directory.blocks))
        for new in entries:
            self._index.add_entry(new)
        self._unindexed += entries
        if len(self._unindexed) >= SEGMENT_PACKS:  # who goes on after a crash finds them
            self._publish()
            self._attempt.pin(self._relied)

    def _send(self, pack: bytes, size: int) -> bool:
        """Copy a pack bit for bit. False when something else lies there under its name."""
        name, storage, done = ids.pack_name(pack), self._source.storage, 0
        hasher, checksum, created = hashlib.sha256(), 0, True
        with self._target.storage.upload() as upload:
            while done < size:
                piece = storage.get_range(name, done, min(PIECE, size - done))
                hasher.update(piece)
                checksum = crc32(piece, checksum)
                upload.write(piece)
                done += len(piece)
                self._step(len(piece))
            if hasher.digest() != pack:
                raise Damaged(f"The pack {name} is not what was written.", kind="pack", remedy="Run check.")
            try:
                upload.publish(name)
            except Conflict:  # another copy was faster, or what is there is damaged
                created = False
        if created:
            read_back(self._target.storage, name, size, checksum)
        elif not is_whole(self._target, pack, size):
            return False
        self.bytes_sent += size
        self._relied.add(pack)
        return True

    def _transplant(self, pack: bytes, size: int, wanted: set[bytes]) -> list[PackEntry]:
        writers: dict[bytes, PackWriter] = {}
        try:
            transplant(self._source, pack, size, wanted, self._target, writers)
            written = [one for writer in writers.values() for one in writer.finish()]
        finally:
            for writer in writers.values():
                writer.close()
        for one in written:
            self.bytes_sent += one.entry.size
            self._step(one.entry.size)
            self._relied.add(one.entry.pack)
        return [one.entry for one in written]

    def _publish(self) -> None:
        if self._unindexed:
            self._index.segments.add(write_segment(self._target, self._unindexed))
            self._unindexed = []

    def decide(self, items: list[Carried]) -> None:
        """Make what was brought count. Overtaken when a collection was faster; StorageFailed."""
        self._publish()
        _, intent = self._attempt.pin(self._relied)
        self._attempt.decide(Carry(self._attempt.id, intent, tuple(items)))


def stored_record(unlocked: Unlocked, history: History, name: str) -> bytes:
    """The bytes of a fate or mark that counts here, be it an object or carried. NotFound, Damaged, StorageFailed."""
    carrier = history.brought.get(name)
    if carrier is None:
        return unlocked.storage.get(name, limit=RECORD_MAX)
    carry = unlocked.get(Kind.CARRY, carrier, Carry, limit=RECORD_MAX).record
    return next(item.stored for item in carry.items if item.name == name)


def copy_objects(source: Storage, target: Storage, folder: str) -> list[str]:
    """Copy the objects of a folder that the target lacks; the names of those that differ. StorageFailed, NotFound."""
    there = {info.name for info in target.list(folder)}
    differ: list[str] = []
    for info in sorted(source.list(folder), key=lambda info: (len(info.name), info.name)):
        data = source.get(info.name, limit=RECORD_MAX)
        if info.name not in there:
            with suppress(Conflict):
                target.put_new(info.name, data)
        if target.get(info.name, limit=RECORD_MAX) != data:
            differ.append(info.name)
    return differ
