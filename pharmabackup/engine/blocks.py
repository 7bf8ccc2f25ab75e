"""Blocks: filling them with chunks, sealing them on other threads, and opening them again.

Chunks are hashed by the thread that fills; compressing and sealing go on beside it. A fixed number of buffers
goes round, so memory does not depend on how much is backed up.
"""

from __future__ import annotations

import queue
import threading
from array import array
from dataclasses import dataclass

from pharmabackup import compression
from pharmabackup.crypto.sealing import OVERHEAD, NotAuthentic, SealingKey
from pharmabackup.engine.background import give_way
from pharmabackup.engine.index import Index
from pharmabackup.engine.packs import PackWriter, block_id
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged
from pharmabackup.format import block as layout
from pharmabackup.format import wire
from pharmabackup.format.pack import WrappedKey
from pharmabackup.format.wire import Kind

BLOCK_TARGET = 1 << 20
BLOCK_CHUNKS = 1 << 14  # tiny files: a block is closed at this many chunks
TRAILER_ROOM = 4 * BLOCK_CHUNKS + 4
SEALERS = 2
SEALERS_GIVE_WAY = 5  # to the thread that fills blocks: everything waits for that one
BUFFERS = 10  # files, manifest, recipe and each generation of pages may have one open; the rest goes round


class Buffer:
    """A block that is being filled."""

    __slots__ = ("content", "fill", "kind", "lengths", "level", "names", "number", "raw", "slot")

    def __init__(self, size: int) -> None:
        self.raw = bytearray(size)
        self.content = memoryview(self.raw)
        self.names: list[bytes] = []
        self.lengths: array[int] = array("I")
        self.fill = 0
        self.number = self.slot = self.level = 0
        self.kind = Kind.DATA_BLOCK


_local = threading.local()  # a buffer for each thread that opens blocks: fresh memory costs more than the cipher


@dataclass(frozen=True, slots=True)
class _Job:
    buffer: Buffer
    block_id: bytes
    names: bytes


class BlockWriter:
    """Gives out buffers to fill and takes them full. `begin` and `finish_block` are one thread's."""

    def __init__(
        self, unlocked: Unlocked, index: Index, packs: PackWriter, session: SealingKey, wrapped: WrappedKey, size: int
    ) -> None:
        """`session`: the transaction's own key, as it is used and as it is stored. `size`: of the largest chunk."""
        self.target = max(BLOCK_TARGET, size)
        self.reserved: array[int] = array("I")  # the numbers of its blocks
        self._ended = False
        self._unlocked = unlocked
        self._index = index
        self._packs = packs
        self._session = session, wrapped
        self._catalogue = unlocked.catalogue_key, WrappedKey(unlocked.catalogue_id, ())
        self._free: queue.SimpleQueue[Buffer] = queue.SimpleQueue()
        self._buffers = 0
        self._jobs: queue.Queue[_Job | None] = queue.Queue()  # as many as buffers, at most; None ends a thread
        self._threads: list[threading.Thread] = []
        self._failed: BaseException | None = None

    def begin(self, kind: Kind, level: int) -> Buffer:
        """An empty buffer for a new block. Raises what sealing raised."""
        if self._ended:
            raise AssertionError("nothing more was to come")
        self.check()
        if self._buffers < BUFFERS and self._free.empty():
            self._buffers += 1
            buffer = Buffer(self.target + TRAILER_ROOM)
        else:
            buffer = self._free.get()
            self.check()
        buffer.names = []
        buffer.lengths = array("I")
        buffer.fill = 0
        buffer.kind, buffer.level = kind, level
        buffer.number = self._index.blocks.reserve()
        self.reserved.append(buffer.number)
        return buffer

    def finish_block(self, buffer: Buffer) -> None:
        """Seal what a buffer holds. The caller must not touch it again."""
        if not buffer.names:
            self._let_go(buffer)
            return
        names = b"".join(buffer.names)
        identity = block_id(self._unlocked.keyring.block_names, buffer.kind, names)
        self._index.blocks.name(buffer.number, identity, buffer.kind, len(buffer.names))
        if len(self._threads) < SEALERS:
            thread = threading.Thread(target=self._work, name="pharmabackup-seal", daemon=True)
            thread.start()
            self._threads.append(thread)
        self._jobs.put(_Job(buffer, identity, names))

    def _work(self) -> None:
        """What each sealing thread does until it is told to end."""
        give_way(SEALERS_GIVE_WAY)
        out = bytearray()
        while (job := self._jobs.get()) is not None:
            try:
                if self._failed is None:
                    out = self._seal(job, out)
                else:
                    self._let_go(job.buffer)
            except BaseException as error:  # noqa: BLE001  (carried over to the thread that fills)
                self._failed = self._failed or error

    def _seal(self, job: _Job, out: bytearray) -> bytearray:
        """Compress, seal, and put into a pack. The output buffer, a larger one if it had to be."""
        buffer, kind, number = job.buffer, job.buffer.kind, job.buffer.number
        try:
            trailer = layout.trailer(wire.little(buffer.lengths).tobytes())
            end = buffer.fill + len(trailer)
            buffer.content[buffer.fill : end] = trailer
            plain = compression.compress(buffer.content[:end], buffer.level, checksum=True)
        finally:
            self._let_go(buffer)
        if len(out) < len(plain) + OVERHEAD:
            out = bytearray(max(len(plain), self.target) + OVERHEAD)
        key, wrapped = self._catalogue if kind == Kind.RECIPE_BLOCK else self._session
        with memoryview(out) as view:
            context = wire.block_context(self._unlocked.repository, kind, wrapped.key_id, job.block_id)
            size = key.seal_into(plain, context, view)
            self._packs.add(
                kind=kind, number=number, block_id=job.block_id, names=job.names, sealed=view[:size], key=wrapped
            )
        return out

    def check(self) -> None:
        """Raise what went wrong on another thread."""
        if self._failed is not None:
            raise self._failed

    def _let_go(self, buffer: Buffer) -> None:
        if not self._ended:
            self._free.put(buffer)

    def end(self) -> None:
        """Nothing more comes: threads end when all is sealed, and buffers are let go. Any number of times."""
        if not self._ended:
            self._ended = True
            self._free = queue.SimpleQueue()
            for _ in self._threads:
                self._jobs.put(None)

    def close(self) -> None:
        """End, and wait until all finished blocks are in packs, or failed: `check` tells."""
        self.end()
        for thread in self._threads:
            thread.join()


def open_block(
    unlocked: Unlocked, sealed: bytes | memoryview, *, kind: int, block_id: bytes, key: SealingKey, key_id: bytes
) -> bytes:
    """A block's content, if it is what its writer sealed: chunks and trailer. Damaged."""
    scratch: bytearray | None = _local.__dict__.get("scratch")
    if scratch is None or len(scratch) < len(sealed):
        scratch = _local.scratch = bytearray(max(len(sealed), BLOCK_TARGET))
    with memoryview(scratch) as plain:
        try:
            size = key.open_into(sealed, wire.block_context(unlocked.repository, Kind(kind), key_id, block_id), plain)
        except NotAuthentic:
            raise damaged_block("it was changed after it was written") from None
        return compression.decompress(plain[:size], limit=layout.CONTENT_MAX, checksum=True)


def damaged_block(why: str) -> Damaged:
    return Damaged(
        f"A stored block is damaged: {why}.",
        kind="block",
        remedy="Restore from another location, then run check and propose_repair.",
    )
