"""Writing packs: sealed blocks go in as they come; a full pack gets its directory and is published."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Self
from zlib import crc32

from pharmabackup import ids
from pharmabackup.crypto import hashing
from pharmabackup.engine.creating import read_back
from pharmabackup.engine.lanes import in_lanes
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Conflict, Damaged
from pharmabackup.format import pack, wire
from pharmabackup.format.index import PackEntry
from pharmabackup.format.pack import Block, Directory, WrappedKey
from pharmabackup.format.wire import Kind
from pharmabackup.storage.base import Storage, Upload

PACK_TARGET = 32 << 20
PACK_SLACK = 2 << 20  # how far past its target a pack may grow to waste less padding
NAMES_TARGET = 8 << 20  # bytes of chunks' names: they are sealed in one go, so that tiny chunks end a pack sooner
BLOCKS_MAX = 1 << 14  # moved blocks may be tiny, and each may be under a key of its own: readers take 4 times as much
KEYS_MAX = 1 << 10
WASTE_MAX = 96 << 10
DIRECTORY_BYTES = 3 << 10  # about what a sealed directory has, and then for each block
BLOCK_BYTES = 40
REGION_READ = 4 << 20
COMMITS_AHEAD = 2  # packs that may wait to become durable while the next is filled
COMMITTERS = 4  # packs on their way at once, at most: each is held by its upload until it is there

Sent = Callable[[PackEntry], None]
"""Hears of each pack once it is durable and was read back, from any thread."""


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
    checksum: int = 0
    size: int = 0
    blocks: list[Block] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    keys: dict[WrappedKey, int] = field(default_factory=dict)
    chunks: int = 0

    def write(self, data: bytes | memoryview) -> None:
        self.upload.write(data)
        self.hasher.update(data)
        self.checksum = crc32(data, self.checksum)
        self.size += len(data)

    def is_full(self) -> bool:
        """Whether it should end here: it has its size, and little padding would follow; or has many parts."""
        names = pack.names_size(self.chunks)
        if names >= NAMES_TARGET or len(self.blocks) >= BLOCKS_MAX or len(self.keys) >= KEYS_MAX:
            return True
        total = self.size + names
        if total < PACK_TARGET:
            return False
        total += wire.padded_size(DIRECTORY_BYTES + BLOCK_BYTES * len(self.blocks))
        return wire.padded_size(total) - total < WASTE_MAX or total >= PACK_TARGET + PACK_SLACK


class Sending:
    """Packs on their way to a storage, with threads for their publishing: so many at once, whoever filled them."""

    def __init__(self, lanes: int, sent: Sent | None = None) -> None:
        self.sent = sent
        committers = max(1, min(lanes, COMMITTERS))
        self.threads = ThreadPoolExecutor(committers, thread_name_prefix="pharmabackup-commit")
        self.room = threading.Semaphore(max(COMMITS_AHEAD, committers))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.threads.shutdown(wait=True)


class PackWriter:
    """Takes sealed blocks from several threads. Publishing, with its fsync, has one of its own, or several."""

    def __init__(self, unlocked: Unlocked, domain: bytes, sending: Sending | None = None) -> None:
        self.bytes_written = 0
        self._shares = sending is not None
        self._sending = sending or Sending(unlocked.storage.lanes)
        self._unlocked = unlocked
        self._domain = domain
        self._lock = threading.Lock()
        self._filling: _Filling | None = None
        self._commits: list[Future[WrittenPack]] = []

    def add(
        self, *, kind: int, number: int, block_id: bytes, names: bytes, sealed: memoryview, key: WrappedKey
    ) -> None:
        """Append one block, sealed under that key."""
        full: _Filling | None = None
        with self._lock:
            filling = self._filling
            if filling is None:
                filling = self._filling = _Filling(self._unlocked.storage.upload())
            count = len(names) // pack.NAME_SIZE
            place = filling.keys.setdefault(key, len(filling.keys))
            filling.blocks.append(Block(block_id, kind, place, filling.size, len(sealed), count))
            filling.numbers.append(number)
            filling.names.append(names)
            filling.chunks += count
            try:
                filling.write(sealed)
            except BaseException:
                self._filling = None  # nobody may add to it, or publish it
                filling.upload.discard()
                raise
            if filling.is_full():
                full, self._filling = filling, None
        if full is not None:
            self._commit(full)

    def _commit(self, filling: _Filling) -> None:
        self._sending.room.acquire()
        try:
            self._commits.append(self._sending.threads.submit(self._publish, filling))
        except BaseException:
            self._sending.room.release()
            filling.upload.discard()
            raise

    def _publish(self, filling: _Filling) -> WrittenPack:
        try:
            with filling.upload as upload:
                directory = Directory(
                    domain=self._domain,
                    region=filling.hasher.digest(),
                    region_size=filling.size,
                    names_size=pack.names_size(filling.chunks),
                    keys=tuple(filling.keys),
                    blocks=tuple(filling.blocks),
                )
                signed = self._unlocked.sign(Kind.DIRECTORY, "packs/", directory)
                sealed = self._unlocked.seal_signed(Kind.DIRECTORY, signed)
                end = sealed + pack.TRAILER.pack(len(sealed), pack.TRAILER_MAGIC)
                filling.write(self._unlocked.seal_body(Kind.NAMES, b"".join(filling.names)))
                total = filling.size + len(end)
                filling.write(os.urandom(wire.padded_size(total) - total) + end)
                size, digest = filling.size, filling.hasher.digest()
                said = None
                with suppress(Conflict):  # it is there with these very bytes, or the reading back says otherwise
                    said = upload.publish(ids.pack_name(digest))
            read_back(self._unlocked.storage, ids.pack_name(digest), size, filling.checksum, said)
            with self._lock:
                self.bytes_written += size
            entry = PackEntry(digest, size, wire.encode(signed))
            if self._sending.sent is not None:
                self._sending.sent(entry)
            return WrittenPack(entry, directory, filling.numbers)
        finally:
            self._sending.room.release()

    def take_published(self) -> list[WrittenPack]:
        """Packs published since the last call, in order, none before those that were begun before it.

        Raises what publishing raised.
        """
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
        """Wait for packs on their way, and let go of one that is not finished."""
        wait(self._commits)
        if not self._shares:
            self._sending.threads.shutdown(wait=True)
        if self._filling is not None:
            self._filling.upload.discard()
            self._filling = None


class PackBytes:
    """A pack's bytes, wherever they are: read piece by piece from storage, or in memory when it was read whole."""

    def __init__(self, unlocked: Unlocked, digest: bytes, size: int, data: bytes | None = None) -> None:
        self.digest = digest
        self.size = size
        self.name = ids.pack_name(digest)
        self._unlocked = unlocked
        self._data = data

    def read(self, start: int, length: int) -> bytes:
        """NotFound, Damaged, StorageFailed."""
        if self._data is None:
            return self._unlocked.storage.get_range(self.name, start, length)
        return self._data[start : start + length]

    def directory(self) -> tuple[PackEntry, Directory]:
        """Its directory, if its signature counts. Damaged, NotFound, StorageFailed."""
        try:
            start, length = directory_range(self.read, self.size)
            opened = self._unlocked.open(Kind.DIRECTORY, self.name, self.read(start, length), Directory)
            directory = pack.check_directory(opened.record)
            own = opened.slot.domain in (None, directory.domain)
            if not own or directory.region_size + directory.names_size > start:
                raise wire.malformed("directory", "it does not fit its pack or its writer")
        except Damaged as error:
            raise Damaged(error.message, kind="pack", remedy=error.remedy) from None
        return PackEntry(self.digest, self.size, opened.signed), directory

    def names(self, directory: Directory, get: Callable[[], bytes] | None = None) -> list[bytes]:
        """The names of each block's chunks, in the directory's order. Damaged, NotFound, StorageFailed.

        `get`: gives them as they are stored, where that is not read here.

        Nobody signed them, and nobody needs to: each block's id, which is signed, commits to the names of its chunks.
        """
        if not directory.blocks:
            return []
        unlocked = self._unlocked
        try:
            stored = self.read(directory.region_size, directory.names_size) if get is None else get()
            names = pack.names_of(directory, unlocked.open_body(Kind.NAMES, stored))
            for block, own in zip(directory.blocks, names, strict=True):
                if block_id(unlocked.keyring.block_names, block.kind, own) != block.id:
                    raise wire.malformed("pack", "a block's id is not that of its chunks' names")
        except Damaged as error:
            raise Damaged(f"{error.message} Object: {self.name}.", kind="pack", remedy=error.remedy) from None
        return names


def read_directory(unlocked: Unlocked, pack_digest: bytes, size: int) -> tuple[PackEntry, Directory]:
    """A pack's directory, read from the pack itself. Damaged, NotFound, StorageFailed."""
    return PackBytes(unlocked, pack_digest, size).directory()


def check_region(storage: Storage, pack_digest: bytes, directory: Directory) -> None:
    """That a pack holds the blocks that its directory was signed for. Damaged, NotFound, StorageFailed.

    A directory that is read from a pack proves nothing about the bytes before it: anybody could have put it there.
    """
    name, hasher = ids.pack_name(pack_digest), hashlib.sha256()
    for start in range(0, directory.region_size, REGION_READ):
        hasher.update(storage.get_range(name, start, min(REGION_READ, directory.region_size - start)))
    if hasher.digest() != directory.region:
        why = f"The pack {name} does not hold the blocks that its directory is of."
        raise Damaged(why, kind="pack", remedy="Run check to see what is affected.")


def read_names(unlocked: Unlocked, pack_digest: bytes, directory: Directory) -> list[bytes]:
    """The names of each block's chunks, from the pack. Damaged, NotFound, StorageFailed."""
    return PackBytes(unlocked, pack_digest, 0).names(directory)


@contextmanager
def names_in_lanes(
    unlocked: Unlocked, packs: Iterable[tuple[bytes, Directory]]
) -> Iterator[Iterator[Callable[[], list[bytes]]]]:
    """For each of these packs, in order, a function that gives what `read_names` does, or raises it."""

    def fetch(of: tuple[bytes, Directory]) -> bytes:
        digest, directory = of
        return unlocked.storage.get_range(ids.pack_name(digest), directory.region_size, directory.names_size)

    with in_lanes(unlocked.storage.lanes, fetch, packs, size=lambda of: of[1].names_size) as coming:
        yield (partial(PackBytes(unlocked, digest, 0).names, directory, get) for (digest, directory), get in coming)


def block_id(block_names_key: bytes, kind: int, names: bytes) -> bytes:
    """A block's id: the keyed hash of its kind and its chunks' names."""
    return hashing.keyed(block_names_key, bytes((kind,)) + names)


def directory_range(read: Callable[[int, int], bytes], size: int) -> tuple[int, int]:
    """Where a pack's sealed directory lies. `read` gives so many bytes from an offset. Damaged."""
    if not pack.TRAILER.size <= size <= pack.PACK_MAX:
        raise wire.malformed("pack", "it has an impossible size")
    length, magic = pack.TRAILER.unpack(read(size - pack.TRAILER.size, pack.TRAILER.size))
    start = size - pack.TRAILER.size - length
    if magic != pack.TRAILER_MAGIC or start < 0 or length > pack.DIRECTORY_MAX:
        raise wire.malformed("pack", "its end does not say where its directory is")
    return start, length
