"""One writer's attempt to commit one snapshot, step by step as docs/format.md has it.

Writers and collectors work at once and no clock decides safety: an intent pins every pack that the snapshot
relies on before `collections/` is read for the last time, and one create-exclusive object decides the fate.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from pharmabackup import ids
from pharmabackup.chunking import ContentCutter
from pharmabackup.clock import now_ns
from pharmabackup.crypto.hashing import chunker_seed
from pharmabackup.crypto.sealing import SealingKey
from pharmabackup.engine.blocks import BlockWriter
from pharmabackup.engine.condemned import Condemned, read_condemned, shunned_packs
from pharmabackup.engine.historycache import Remembered, put_fate
from pharmabackup.engine.index import Index
from pharmabackup.engine.listing import Listing
from pharmabackup.engine.packs import PackWriter, Sending, WrittenPack, check_region, read_directory
from pharmabackup.engine.segments import write_segment
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Conflict, Damaged, NotFound
from pharmabackup.format.index import PackEntry
from pharmabackup.format.transaction import Carry, Fate, Intent, Snapshot
from pharmabackup.format.wire import Kind
from pharmabackup.storage.base import ObjectInfo

SURVEYS = 3  # while collections go on
SEGMENT_PACKS = 8  # a segment is published at least every so many packs, for whoever goes on after a crash


class Overtaken(Exception):
    """A collection condemned what this transaction relies on, or aborted it: begin again."""


@dataclass(slots=True)
class Ground:
    """What was read before anything is written: what may be relied on."""

    condemned: Condemned
    shunned: frozenset[bytes]  # packs that nobody relies on any more, and their names
    index: Index


def survey(unlocked: Unlocked, index: Index, *, foreign: bool = False, listing: Listing | None = None) -> Ground:
    """Read collections/, then the index, then list packs: a collection that slips between is shunned or seen later.

    `foreign`: make use of what was left behind in other domains, too. `listing`: by which all these are read, in
    whichever order it was made.
    """
    unlocked.renewed(listing)  # what is written from here on is for the newest keys, however long this has been open
    for left in reversed(range(SURVEYS)):
        try:
            return _survey(unlocked, index, listing or unlocked.storage.list, foreign=foreign)
        except NotFound:  # a collection has deleted the segment of what was adopted
            if not left:
                raise
            index.forget()
            listing = None
    raise AssertionError


def _survey(unlocked: Unlocked, index: Index, listing: Listing, *, foreign: bool) -> Ground:
    condemned = read_condemned(unlocked, listing=listing)
    index.load(without=condemned.segments, listing=listing)
    ground = Ground(condemned, shunned_packs(unlocked, listing), index)
    adopted: list[PackEntry] = []
    known = set(index.blocks.packs)
    listed: dict[bytes, int] = {}
    for info in listing("packs"):
        digest = ids.hex_tail(info.name)
        if digest is None or ids.pack_name(digest) != info.name:
            continue  # not ours: check names it
        listed[digest] = info.size
        if digest not in known and digest not in condemned.packs | ground.shunned:
            entry = _orphan(unlocked, index, digest, info, foreign=foreign)
            if entry is not None:
                index.add_entry(entry)
                adopted.append(entry)
    if adopted:  # at once: a backup that dies over and over must not read more directories each time
        index.segments.add(write_segment(unlocked, adopted))
    revoked = index.blocks.signed_by(unlocked.revoked_in)  # a thief may have put anything into them
    index.blocks.restrict(listed, condemned.packs | ground.shunned | revoked)
    return ground


def _orphan(unlocked: Unlocked, index: Index, digest: bytes, info: ObjectInfo, *, foreign: bool) -> PackEntry | None:
    """What a pack holds whose writer died before it published a segment, or has not come to it yet."""
    try:
        entry, directory = read_directory(unlocked, digest, info.size)
        if directory.domain != unlocked.domain and not foreign:
            return None
        check_region(unlocked.storage, digest, directory)
    except NotFound:
        return None
    except Damaged as error:
        index.damaged[digest] = error
        return None
    return entry


def cutter(unlocked: Unlocked, naming_key: bytes) -> ContentCutter:
    """How a domain's content is cut."""
    chunker = unlocked.roster.chunker
    return ContentCutter(
        chunker.minimum, chunker.average, chunker.maximum, chunker.normalization, chunker_seed(naming_key)
    )


class Attempt:
    """What decides, in every transaction: intents pin packs, then one record is created exclusively."""

    def __init__(self, unlocked: Unlocked, ground: Ground) -> None:
        self.id = ids.new_id()
        self._unlocked = unlocked
        self._first = ground.condemned.first
        self._pinned: set[bytes] = set()
        self._intents = 0

    def pin(self, packs: Iterable[bytes]) -> tuple[ObjectInfo, bytes]:
        """Write an intent; the last one names all that is relied on. Its object and its SHA-256. StorageFailed."""
        self._pinned = set(packs)
        number, self._intents = self._intents, self._intents + 1
        intent = Intent(self.id, number, "write", b"".join(sorted(self._pinned)), now_ns())
        return self._unlocked.put(Kind.INTENT, ids.intent_name(self.id, number), intent)

    def decide(self, record: Fate | Carry) -> Remembered:
        """Create the record that decides; what is stored. Overtaken when a collection was faster."""
        if read_condemned(self._unlocked, self._first).packs & self._pinned:
            raise Overtaken
        try:
            return put_fate(self._unlocked, self.id, record)
        except Conflict:  # it was aborted
            raise Overtaken from None


class Transaction:
    """From the first block to the fate. Not used again after `commit` or `abandon`."""

    def __init__(self, unlocked: Unlocked, ground: Ground, sending: Sending | None = None) -> None:
        """`sending`: where several transactions share what sends packs."""
        self._attempt = Attempt(unlocked, ground)
        self.id = self._attempt.id
        self.index = ground.index
        session = os.urandom(32)
        wrapped = unlocked.wrap(session)
        self.cutter = cutter(unlocked, unlocked.naming_key)
        self._packs = PackWriter(unlocked, unlocked.domain, sending)
        self.blocks = BlockWriter(
            unlocked, ground.index, self._packs, SealingKey(session), wrapped, self.cutter.maximum
        )
        self._unlocked = unlocked
        self._written: list[bytes] = []
        self._unindexed: list[WrittenPack] = []

    @property
    def bytes_written(self) -> int:
        """Bytes of packs in storage so far."""
        return self._packs.bytes_written

    def checkpoint(self) -> None:
        """Publish a segment now and then, so that a killed backup's work is found by the next, and pin its packs."""
        self._unindexed += self._packs.take_published()
        if len(self._unindexed) >= SEGMENT_PACKS:
            self._publish_segment()
            self.pin(())

    def publish(self) -> None:
        """All blocks are filled: make packs and their index durable. Raises what went wrong on the way."""
        self.blocks.close()
        self.blocks.check()
        self._unindexed += self._packs.finish()
        self._publish_segment()

    def _publish_segment(self) -> None:
        if self._unindexed:
            entries = [written.entry for written in self._unindexed]
            self.index.segments.add(write_segment(self._unlocked, entries))
        own = self._unlocked.keyring.slot
        for written in self._unindexed:
            self.index.blocks.place(
                written.numbers, written.entry.pack, written.entry.size, written.directory, signer=own
            )
            self._written.append(written.entry.pack)
        self._unindexed = []

    def pin(self, blocks: Iterable[int]) -> tuple[ObjectInfo, bytes]:
        """Write an intent: every pack that the snapshot relies on or that this transaction wrote."""
        table = self.index.blocks
        return self._attempt.pin({table.packs[table.pack[block]] for block in blocks} | set(self._written))

    def commit(self, intent: bytes, snapshot: Snapshot) -> Remembered:
        """Create the fate; what is stored. Overtaken when a collection was faster."""
        return self._attempt.decide(Fate(self.id, "commit", intent, snapshot))

    def abandon(self) -> None:
        """Not committed. What was uploaded whole stays, indexed, for the next attempt. Raises no Exception."""
        try:
            self.publish()
        except Exception:  # noqa: BLE001, S110  (the first error is on its way up already)
            pass
        finally:
            self.drop()

    def drop(self) -> None:
        """Not committed, and nothing more is sent: of what was uploaded whole storage's list tells."""
        self.index.blocks.give_up(self.blocks.reserved)
        self.close()

    def close(self) -> None:
        self.blocks.close()
        self._packs.close()
