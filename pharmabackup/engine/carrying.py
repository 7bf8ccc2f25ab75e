"""Bringing sealed packs and signed records from one replica to another, without opening a block.

The target's own collections go on meanwhile: this is a writer there, with intents of its own, and one record that is
created exclusively decides whether what it brought counts (docs/format.md, §13.4 and §20).
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from zlib import crc32

from pharmabackup import ids
from pharmabackup.engine.creating import create, read_back
from pharmabackup.engine.garbage import is_whole
from pharmabackup.engine.grants import COLLECTORS
from pharmabackup.engine.history import History
from pharmabackup.engine.index import Index
from pharmabackup.engine.keyrings import keyring_numbers, keyring_problem
from pharmabackup.engine.keyrings_taken import keyrings_to_take
from pharmabackup.engine.lanes import in_lanes
from pharmabackup.engine.moving import read_whole, transplant
from pharmabackup.engine.packs import COMMITTERS, PackWriter, read_directory
from pharmabackup.engine.reading import BlockReader
from pharmabackup.engine.roster import read_rosters
from pharmabackup.engine.segments import write_segment
from pharmabackup.engine.transaction import SEGMENT_PACKS, Attempt, survey
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Conflict, Damaged
from pharmabackup.format import keys
from pharmabackup.format.index import PackEntry
from pharmabackup.format.pack import Directory
from pharmabackup.format.transaction import RECORD_MAX, Carried, Carry, Fate, Mark
from pharmabackup.format.wire import Kind
from pharmabackup.storage.base import Storage

TICKS, TICK_S = 10, 0.25  # FAT has times of two seconds
PIECE = 1 << 20
FAR_PIECE = 4 << 20  # where each request takes a while
ROSTER_MAX = keys.ROSTER_MAX + 4096  # bytes as stored; keyrings are smaller
Step = Callable[[int], None]  # so many bytes were sent; may raise


@dataclass(frozen=True, slots=True)
class _Sent:
    """`there`: whether the target has the pack, whole."""

    entry: PackEntry
    directory: Directory
    there: bool


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
        self._lanes = min(max(source.storage.lanes, target.storage.lanes), COMMITTERS)
        ground = survey(target, index, foreign=target.keyring.role in COLLECTORS)
        self._attempt = Attempt(target, ground)
        self._shunned = ground.shunned | ground.condemned.packs
        self._relied: set[bytes] = set()  # packs of the target
        self._unindexed: list[PackEntry] = []

    def bring(self, blocks: Iterable[bytes], domain: bytes) -> None:
        """Have these blocks in the target. Damaged when the source has not all whole, NotFound, StorageFailed."""
        wanted, table = set(blocks), self._index.blocks
        if self._lanes > 1:
            self._bring_many([block for block in wanted if table.find(block, domain) is None], wanted, domain)
        for block in wanted:
            if table.find(block, domain) is None:
                self._bring_one(block, wanted, domain)
            number = table.find(block, domain)
            assert number is not None
            self._relied.add(table.packs[table.pack[number]])

    def _bring_many(self, missing: list[bytes], wanted: set[bytes], domain: bytes) -> None:
        """For each block the pack that most likely has it, several packs at once. What is damaged is left out."""
        table, packs = self._blocks.index.blocks, dict[bytes, int]()
        for block in missing:
            for pack in map(table.pack.__getitem__, table.instances(block)):
                if table.usable[pack] and table.domains[pack] == domain:
                    packs.setdefault(table.packs[pack], table.pack_sizes[pack])
                    break
        steps: deque[int] = deque()

        def send(pack: bytes) -> _Sent:
            return self._send(pack, packs[pack], steps.append)

        with in_lanes(self._lanes, send, packs) as coming:
            for _, get in coming:
                with suppress(Damaged):  # `_bring_one` looks for others, or tells
                    sent = get()
                    while steps:
                        self._step(steps.popleft())
                    self._take(sent, wanted, domain)

    def _bring_one(self, block: bytes, wanted: set[bytes], domain: bytes) -> None:
        """A pack that holds this block, and with it all else that it holds of what is wanted."""
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
                sent = self._send(table.packs[pack], table.pack_sizes[pack], self._step)
                self._take(sent, wanted, domain)
            except Damaged as error:
                problem = error
            else:
                if self._index.blocks.find(block, domain) is not None:
                    return
        raise problem

    def _take(self, sent: _Sent, wanted: set[bytes], domain: bytes) -> None:
        """Make use of a pack that is there now under its own name, or else bring what is needed under a new one."""
        pack, size, entries = sent.entry.pack, sent.entry.size, [sent.entry]
        if sent.there:
            self.bytes_sent += size
            self._relied.add(pack)
        else:
            table = self._index.blocks
            missing = {block.id for block in sent.directory.blocks if block.id in wanted}
            missing = {block for block in missing if table.find(block, domain) is None}
            entries = self._transplant(pack, size, missing)
        for new in entries:
            self._index.add_entry(new)
        self._unindexed += entries
        if len(self._unindexed) >= SEGMENT_PACKS:  # who goes on after a crash finds them
            self._publish()
            self._attempt.pin(self._relied)

    def _send(self, pack: bytes, size: int, step: Step) -> _Sent:
        """Copy a pack bit for bit, unless nobody relies on that name any more, or something else lies there."""
        entry, directory = read_directory(self._source, pack, size)
        return _Sent(entry, directory, pack not in self._shunned and self._copy(pack, size, step))

    def _copy(self, pack: bytes, size: int, step: Step) -> bool:
        sent = send_pack(self._source.storage, self._target.storage, pack, size, step)
        return sent or is_whole(self._target, pack, size)

    def _transplant(self, pack: bytes, size: int, wanted: set[bytes]) -> list[PackEntry]:
        writers: dict[bytes, PackWriter] = {}
        try:
            transplant(read_whole(self._source, pack, size), wanted, self._target, writers)
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

    def decide(self, items: list[Carried], *, after: int = 0, more: bool = False) -> int:
        """Make what was brought count. Overtaken when a collection was faster; StorageFailed.

        `after`: the storage's time that has to be over, as far as that comes soon: what was given back for those
        before. Rules go by these, and there are storages that have whole seconds. `more`: whether others are to come.
        """
        self._publish()
        made, intent = self._attempt.pin(self._relied)
        for _ in range(TICKS):
            if made.modified > after:
                break
            time.sleep(TICK_S)
            made, intent = self._attempt.pin(self._relied)
        self._attempt.decide(Carry(self._attempt.id, intent, tuple(items)))
        return self._target.storage.info(ids.fate_name(self._attempt.id)).modified + len(items) if more else 0


def send_pack(source: Storage, target: Storage, pack: bytes, size: int, step: Step | None = None) -> bool:
    """Create a pack in the target, bit for bit as it is in the source, and read it back. False: its name is taken.

    Damaged when it is not what its name says, NotFound, StorageFailed.
    """
    name, done, hasher, checksum, said = ids.pack_name(pack), 0, hashlib.sha256(), 0, None
    at_once = PIECE if source.lanes == 1 else FAR_PIECE
    with target.upload() as upload:
        while done < size:
            piece = source.get_range(name, done, min(at_once, size - done))
            hasher.update(piece)
            checksum = crc32(piece, checksum)
            upload.write(piece)
            done += len(piece)
            if step is not None:
                step(len(piece))
        if hasher.digest() != pack:
            raise Damaged(f"The pack {name} is not what was written.", kind="pack", remedy="Run check.")
        with suppress(Conflict):  # another copy was faster, or what is there is damaged
            said = upload.publish(name)
    if said is None:
        return False
    read_back(target, name, size, checksum, said)
    return True


class StoredRecords:
    """Fates and marks that count in a repository as they are stored there, be they objects or carried."""

    def __init__(self, unlocked: Unlocked, history: History) -> None:
        self._unlocked = unlocked
        self._history = history
        self._carrier: str | None = None
        self._carried: dict[str, bytes] = {}  # what it brought: a carry is large, and most of it is asked for

    def get(self, name: str) -> bytes:
        """One that is whole now: this machine may have verified it long ago. NotFound, Damaged, StorageFailed."""
        unlocked, carrier = self._unlocked, self._history.brought.get(name)
        if carrier is None:
            stored = unlocked.storage.get(name, limit=RECORD_MAX)
        else:
            if carrier != self._carrier:
                carry = unlocked.get(Kind.CARRY, carrier, Carry, limit=RECORD_MAX).record
                self._carrier, self._carried = carrier, {item.name: item.stored for item in carry.items}
            stored = self._carried[name]
        if name.startswith("snapshots/"):
            unlocked.open(Kind.FATE, name, stored, Fate)
        else:
            unlocked.open(Kind.MARK, name, stored, Mark)
        return stored


def copy_keys(source: Unlocked, target: Storage) -> list[str]:
    """Bring keyrings and rosters that the target lacks; the names of keyrings that differ, or that are not taken.

    First keyrings, then rosters: nobody may write for a key that no keyring there holds. Conflict when the two do not
    have the same rosters: then nothing is written, since one that does not follow from the one before it would lock
    everybody out. Damaged, StorageFailed.
    """
    rosters = {ids.roster_name(number): source.rosters[number] for number in sorted(source.rosters)}
    there = {info.name for folder in ("keys", "roster") for info in target.list(folder)}
    if any(
        hashlib.sha256(target.get(name, limit=ROSTER_MAX)).digest() != rosters[name]
        for name in rosters.keys() & there
    ):
        raise _forked()
    differing: list[str] = []
    for name in sorted(there & {info.name for info in source.storage.list("keys")}):
        if target.get(name, limit=ROSTER_MAX) != source.storage.get(name, limit=ROSTER_MAX):
            if not set(rosters) <= there and _keeps_out(source.storage, target, name):
                raise Damaged(
                    f"The keyring {name} in {target.location} is damaged: with the list of keys that is to come, "
                    "somebody could not open it any more. Nothing was copied.",
                    kind="keyring",
                    remedy="It is whole where you copy from: delete that one object, and copy again.",
                )
            differing.append(name)
    own = {source.keyring.slot: source.opener}
    lists = read_rosters(source.storage, source.repository)
    for name, taken in keyrings_to_take(source.storage, target, lists, own, source.repository):
        if taken is None:
            differing.append(name)
            continue
        try:
            create(target, name, taken)
        except Conflict:
            differing.append(name)
    for name in (name for name in rosters if name not in there):
        data = source.storage.get(name, limit=ROSTER_MAX)
        if hashlib.sha256(data).digest() != rosters[name]:
            raise Damaged(f"{name} is not what it was when it was verified.", kind="roster", remedy="Run check.")
        try:
            create(target, name, data)
        except Conflict:  # somebody has changed it there just now
            raise _forked() from None
    return sorted(set(differing))


def _keeps_out(source: Storage, target: Storage, name: str) -> bool:
    """Whether a slot's newest keyring is damaged there, and whole here."""
    slot, last = name.split("/")[1], name.rpartition("/")[2]
    newest = max(keyring_numbers(source).get(slot, [-1]))
    return str(newest) == last and not keyring_problem(source, name) and keyring_problem(target, name) is not None


def _forked() -> Conflict:
    return Conflict(
        "The two locations do not have the same list of who may do what.",
        kind="history-forked",
        remedy="Find out who changed it where; nothing was copied.",
    )
