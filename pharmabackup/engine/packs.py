"""Writing packs: sealed blocks go in as they come; a full pack gets its directory and is published."""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from pharmabackup import ids
from pharmabackup.engine.unlocked import Unlocked, read_back
from pharmabackup.errors import Conflict, Damaged
from pharmabackup.format import pack, wire
from pharmabackup.format.index import PackEntry
from pharmabackup.format.pack import Block, Directory, WrappedKey
from pharmabackup.format.wire import Kind
from pharmabackup.storage.base import Storage, Upload

PACK_TARGET = 32 << 20
PACK_SLACK = 2 << 20  # how far past its target a pack may grow to waste less padding
WASTE_MAX = 96 << 10
DIRECTORY_BYTES = 6 << 10  # about what a sealed directory has, and then for each chunk
CHUNK_BYTES = 33
COMMITS_AHEAD = 2  # packs that may wait to become durable while the next is filled


@dataclass(frozen=True, slots=True)
class WrittenPack:
    """A published pack, and the block numbers that its directory's blocks were reserved under."""

    entry: PackEntry
    directory: Directory
    numbers: list[int]


@dataclass(slots=True)
class _Filling:
    upload: Upload
    hasher: hashlib._Hash = field(default_factory=hashlib.sha256)
    size: int = 0
    blocks: list[Block] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    chunks: int = 0

    def is_well_filled(self) -> bool:
        """Whether little padding would follow if the pack ended here. One more block may fill what that wastes."""
        directory = wire.padded_size(DIRECTORY_BYTES + CHUNK_BYTES * self.chunks)
        total = self.size + directory
        return wire.padded_size(total) - total < WASTE_MAX or self.size >= PACK_TARGET + PACK_SLACK


class PackWriter:
    """Takes sealed blocks from several threads. Publishing, with its fsync, has a thread of its own."""

    def __init__(self, unlocked: Unlocked, session: WrappedKey) -> None:
        self.bytes_written = 0
        self.session_id = session.key_id
        self._unlocked = unlocked
        self._keys = (session, WrappedKey(unlocked.catalogue_id, ()))
        self._lock = threading.Lock()
        self._filling: _Filling | None = None
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="pharmabackup-commit")
        self._ahead = threading.Semaphore(COMMITS_AHEAD)
        self._commits: list[Future[WrittenPack]] = []

    def add(
        self, *, kind: Kind, number: int, block_id: bytes, names: bytes, lengths: bytes, sealed: memoryview
    ) -> None:
        """Append one sealed block. Recipes are sealed under the catalogue key, all else under the session's."""
        full: _Filling | None = None
        with self._lock:
            filling = self._filling
            if filling is None:
                filling = self._filling = _Filling(self._unlocked.storage.upload())
            filling.upload.write(sealed)
            filling.hasher.update(sealed)
            key = 1 if kind == Kind.RECIPE_BLOCK else 0
            filling.blocks.append(Block(block_id, kind, key, filling.size, len(sealed), names, lengths))
            filling.numbers.append(number)
            filling.size += len(sealed)
            filling.chunks += len(names) // 32
            if filling.size >= PACK_TARGET and filling.is_well_filled():
                full, self._filling = filling, None
        if full is not None:
            self._commit(full)

    def _commit(self, filling: _Filling) -> None:
        self._ahead.acquire()
        future = self._committer.submit(self._publish, filling)
        self._commits.append(future)

    def _publish(self, filling: _Filling) -> WrittenPack:
        try:
            with filling.upload as upload:
                directory = Directory(
                    self._unlocked.domain, filling.hasher.digest(), filling.size, self._keys, tuple(filling.blocks)
                )
                signed = self._unlocked.sign(Kind.DIRECTORY, "packs/", directory)
                sealed = self._unlocked.seal_signed(Kind.DIRECTORY, signed)
                end = sealed + pack.TRAILER.pack(len(sealed), pack.TRAILER_MAGIC)
                total = filling.size + len(end)
                tail = os.urandom(wire.padded_size(total) - total) + end
                upload.write(tail)
                filling.hasher.update(tail)
                size, digest = filling.size + len(tail), filling.hasher.digest()
                try:
                    upload.publish(ids.pack_name(digest))
                except Conflict:
                    pass  # it is there with these very bytes, or the reading back below says otherwise
            read_back(self._unlocked.storage, ids.pack_name(digest), size, digest)
            self.bytes_written += size
            return WrittenPack(PackEntry(digest, size, wire.encode(signed)), directory, filling.numbers)
        finally:
            self._ahead.release()

    def take_published(self) -> list[WrittenPack]:
        """Packs published since the last call, in order. Raises what publishing raised."""
        done = []
        while self._commits and self._commits[0].done():
            done.append(self._commits.pop(0).result())
        return done

    def finish(self) -> list[WrittenPack]:
        """Publish what is left; all packs not yet taken. Raises what publishing raised."""
        with self._lock:
            filling, self._filling = self._filling, None
        if filling is not None:
            self._commit(filling)
        written = [future.result() for future in self._commits]
        self._commits = []
        return written

    def close(self) -> None:
        """Let go of threads and of a pack that is not finished."""
        self._committer.shutdown(wait=True)
        if self._filling is not None:
            self._filling.upload.discard()
            self._filling = None


def read_directory(unlocked: Unlocked, pack_digest: bytes, size: int) -> tuple[PackEntry, Directory]:
    """A pack's directory, read from the pack itself. Damaged, NotFound, StorageFailed."""
    name = ids.pack_name(pack_digest)
    try:
        start, length = directory_range(unlocked.storage, name, size)
        sealed = unlocked.storage.get_range(name, start, length)
        opened = unlocked.open(Kind.DIRECTORY, name, sealed, Directory)
        directory = pack.check_directory(opened.record)
        if opened.slot.domain not in (None, directory.domain) or directory.region_size > start:
            raise wire.malformed("directory", "it does not fit its pack or its writer")
    except Damaged as error:
        raise Damaged(error.message, kind="pack", remedy=error.remedy) from None
    return PackEntry(pack_digest, size, opened.signed), directory


def directory_range(storage: Storage, name: str, size: int) -> tuple[int, int]:
    """Where a pack's sealed directory lies. Damaged."""
    if not pack.TRAILER.size <= size <= pack.PACK_MAX:
        raise wire.malformed("pack", "it has an impossible size")
    trailer = storage.get_range(name, size - pack.TRAILER.size, pack.TRAILER.size)
    length, magic = pack.TRAILER.unpack(trailer)
    start = size - pack.TRAILER.size - length
    if magic != pack.TRAILER_MAGIC or start < 0 or length > pack.DIRECTORY_MAX:
        raise wire.malformed("pack", "its end does not say where its directory is")
    return start, length
