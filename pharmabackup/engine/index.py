"""The index: which chunk lies where, from the signed segments in storage and a cache on this machine.

Segments say which blocks there are. Chunks' names lie in the packs; those of packs that the cache does not know yet
are read when the first name is looked up. A backup in which nothing changed never needs them, nor does a reader.
"""

from __future__ import annotations

import os
import struct
import time
from collections import deque
from pathlib import Path

import msgspec

from pharmabackup import ids
from pharmabackup.crypto.sealing import NotAuthentic, SealingKey
from pharmabackup.engine.blocktable import BlockTable
from pharmabackup.engine.listing import Listing
from pharmabackup.engine.localfiles import replace
from pharmabackup.engine.packs import block_id, names_in_lanes, read_directory
from pharmabackup.engine.rowfile import (
    COPY_ROWS,
    FRESH_BITS,
    KEY,
    ROW,
    Fresh,
    Run,
    merge_runs,
    open_run,
    split_rows,
    write_run,
)
from pharmabackup.engine.segments import CHANGED, read_segments
from pharmabackup.engine.unlocked import Statement, Unlocked
from pharmabackup.errors import Damaged, NotFound, StorageFailed
from pharmabackup.format import wire
from pharmabackup.format.index import PackEntry, Segment
from pharmabackup.format.pack import Directory, WrappedKey, check_directory
from pharmabackup.format.wire import Kind, Signed
from pharmabackup.storage.base import ObjectInfo

LOCATION = struct.Struct(">II")  # LAST - block number, ordinal: of one chunk, the newest block sorts first
LAST = (1 << 32) - 1
SPILL_ROWS = 1 << 19
RUNS_MAX = 3
CACHE_AFTER_ROWS = 4096  # fewer new rows than this are cheaper to read again than to write
CACHE_AFTER_SEGMENTS = 64  # the same, of segments: reading one takes some 0.3 ms, most of it for signatures
CACHE_VERSION = 6
FOLDER = "index"  # of the cache
LISTINGS = 10  # of segments, while collections replace them
STALE_S = 86400  # row files that the cache does not name may be another process's, for so long


class _RunFacts(msgspec.Struct, array_like=True):
    file: str
    count: int
    bits: int
    digest: bytes


class _Cache(msgspec.Struct, array_like=True):
    version: int
    segments: list[bytes]
    columns: dict[str, bytes]
    keys: list[WrappedKey]
    runs: list[_RunFacts]
    nameless: list[bytes]


class Index:
    """Chunks and blocks of one repository. Used by one thread; another places blocks, and adds their segment."""

    def __init__(self, unlocked: Unlocked, *, chunks: bool = True) -> None:
        """`chunks`: whether chunks will be looked up, as writers do; readers need blocks alone."""
        self.damaged: dict[bytes, Damaged] = {}  # packs that are not relied on, and why
        self.changed: dict[bytes, Damaged] = {}  # segments whose bytes have changed, and that are passed over
        self._unlocked = unlocked
        self._chunks = chunks
        self._folder = unlocked.state / FOLDER
        self.forget()

    @property
    def domain(self) -> bytes:
        """The domain whose chunks may be relied on: this slot's own."""
        return self._unlocked.domain

    def forget(self) -> None:
        """Begin anew."""
        self.blocks = BlockTable()
        self.segments: set[bytes] = set()
        self._cached: set[bytes] = set()  # those of them that the cache has
        self._pending: deque[tuple[bytes, Directory, int]] = deque()  # packs whose names are not read; first block
        self._pending_rows = 0
        self._nameless: set[bytes] = set()  # packs whose names could not be had; the next run tries again
        self._fresh = Fresh()
        self._spill_at = SPILL_ROWS
        self._runs: list[Run] = []
        self._unsaved = False  # whether there are runs that the cache does not name

    # ------------------------------------------------------------ reading

    def load(self, *, without: frozenset[bytes] = frozenset(), listing: Listing | None = None) -> None:
        """Learn all segments that storage lists, `without` some. Damaged, NotFound, StorageFailed.

        One that is damaged, or that nobody can be seen to have signed, is passed over: what it said stands in the
        packs, and whoever can write to the storage must not stop others by a file that he puts there. The oldest
        first: of a chunk that lies in several blocks, the newest is found, the one that pages are moved to.
        """
        for left in reversed(range(LISTINGS)):
            try:
                self._load_listed(without, listing or self._unlocked.storage.list)
                break
            except NotFound:  # a collection has deleted it, and what takes its place is listed by now
                listing = None
                if not left:
                    raise

    def _load_listed(self, without: frozenset[bytes], listing: Listing) -> None:
        listed: dict[bytes, ObjectInfo] = {}
        for info in listing("index"):
            digest = ids.hex_tail(info.name) or b""
            if len(digest) == 32 and ids.index_name(digest) == info.name and digest not in without:
                listed[digest] = info  # others are not ours: check names them
        if not self.segments:
            self._load_cache(set(listed))
        if not self.segments <= set(listed):  # a collection replaced some: what is in memory may name what is gone
            self.forget()
        self.changed = {}
        new = sorted(set(listed) - self.segments, key=lambda digest: (listed[digest].modified, digest))
        with read_segments(self._unlocked, {digest: listed[digest].size for digest in new}) as segments:
            for digest, get in segments:
                try:
                    self.add_segment(digest, get())
                except Damaged as error:
                    if error.kind == CHANGED:
                        self.changed[digest] = error

    def add_segment(self, digest: bytes, segment: Statement[Segment]) -> bool:
        """Make known what a segment says of its writer's domain: a device cannot say where others' blocks lie.

        Whether that is all that it says. Damaged when an entry of it is none; the others are known all the same.
        """
        problem: Damaged | None = None
        counts = True
        for entry in segment.record.packs:
            try:
                counts = self.add_entry(entry, of=segment.slot.domain) and counts
            except Damaged as error:
                problem = problem or error
        self.segments.add(digest)
        if problem is not None:
            raise problem
        return counts

    def add_entry(self, entry: PackEntry, *, of: bytes | None = None) -> bool:
        """Make a pack known, if its domain is its writer's, and `of` if that is given; whether it is. Damaged."""
        signed = wire.decode(entry.directory, Signed)
        opened = self._unlocked.statement(Kind.DIRECTORY, "packs/", signed, Directory)
        directory = check_directory(opened.record)
        if opened.slot.domain not in (None, directory.domain) or of not in (None, directory.domain):
            return False
        number = self.blocks.add_pack(entry.pack, entry.size, directory, signer=opened.slot.id)
        if self._chunks and directory.blocks and directory.domain == self._unlocked.domain:
            self._pending.append((entry.pack, directory, number))
            self._pending_rows += sum(block.count for block in directory.blocks)
        return True

    # ------------------------------------------------------------ looking up

    def find(self, name: bytes) -> tuple[int, int] | None:
        """(block number, ordinal) of a chunk that may be relied on."""
        if self._pending:
            self._take_pending()
        newest_first: list[Fresh | Run] = [self._fresh, *self._runs]
        for rows in newest_first:
            if (found := rows.get(name)) is not None and (place := self._where(found)) is not None:
                return place
        return None

    def _where(self, found: bytes) -> tuple[int, int] | None:
        below, ordinal = LOCATION.unpack(found)
        place = (number := LAST - below), ordinal
        blocks = self.blocks
        if blocks.may_rely(number):
            return place
        again = blocks.find(blocks.ids[number], self._unlocked.domain)
        return None if again is None else (again, ordinal)

    def put(self, name: bytes, number: int, ordinal: int) -> None:
        """A chunk that was just placed into a block."""
        self._fresh.put(name, LOCATION.pack(LAST - number, ordinal))
        if len(self._fresh) >= self._spill_at:
            self._spill()

    def take(
        self, names: list[bytes], number: int, ordinal: int, *, renew: set[int], prefer: set[int]
    ) -> list[tuple[int, int] | None]:
        """Where each chunk lies; None for a new one, which is noted to lie in block `number` from `ordinal` on.

        One call for many names, because a call costs as much as a lookup. A chunk in a block of `renew` counts as
        new: it is about to be written again. Of one that lies in several blocks, a block of `prefer` is taken.
        """
        if self._pending:
            self._take_pending()
        if len(self._fresh) >= self._spill_at:
            self._spill()
        places: list[tuple[int, int] | None] = []
        buckets, runs, may_rely = self._fresh.buckets_by_prefix, self._runs, self.blocks.may_rely
        pack, unpack, add = LOCATION.pack, LOCATION.unpack, places.append
        added, below = 0, LAST - number
        place: tuple[int, int] | None
        for name in names:
            rows = buckets[(name[0] << 8 | name[1]) >> 1]
            at = rows.rfind(name)
            if at < 0:
                place = None
                for run in runs:
                    if (found := run.get(name)) is not None and (place := self._where(found)) is not None:
                        break
            elif at % ROW == 0:
                found_below, found_at = unpack(rows[at + KEY : at + ROW])
                place = LAST - found_below, found_at
            else:
                place = self.find(name)
            if place is not None and prefer and place[0] not in prefer and place[0] != number:
                place = self._preferred(name, prefer) or place
            if place is not None and place[0] not in renew and may_rely(place[0]):
                add(place)
            else:
                rows += name + pack(below, ordinal)
                ordinal += 1
                added += 1
                add(None)
        self._fresh.added(added)
        return places

    def _preferred(self, name: bytes, prefer: set[int]) -> tuple[int, int] | None:
        """Where a chunk lies in one of these blocks: what a collection moved last is not what was written last."""
        everywhere: list[Fresh | Run] = [self._fresh, *self._runs]
        for rows in everywhere:
            for found in rows.get_all(name):
                place = self._where(found)
                if place is not None and place[0] in prefer:
                    return place
        return None

    def take_one(self, name: bytes, number: int, ordinal: int) -> tuple[int, int] | None:
        """Where a chunk lies; None if it is new, and then it is noted to lie in block `number`, at `ordinal`."""
        found = self.find(name)
        if found is None:
            self.put(name, number, ordinal)
        return found

    def _take_pending(self) -> None:
        """Read the names in packs that are new here. StorageFailed: what was not read yet stays pending."""
        reliable = [(pack, directory) for pack, directory, first in self._pending if self.blocks.may_rely(first)]
        with names_in_lanes(self._unlocked, reliable) as coming:
            while self._pending:
                pack, directory, first = self._pending[0]
                found: list[bytes] = []
                try:
                    if self.blocks.may_rely(first):
                        found = next(coming)()
                    else:
                        self._nameless.add(pack)
                except NotFound:
                    self._nameless.add(pack)
                except Damaged as error:
                    self._nameless.add(pack)
                    self.damaged[pack] = error
                self._pending.popleft()
                self._pending_rows -= sum(block.count for block in directory.blocks)
                for number, names in enumerate(found, first):
                    for ordinal in range(len(names) // KEY):
                        self.put(names[ordinal * KEY : ordinal * KEY + KEY], number, ordinal)

    def remembered_names(self, wanted: set[bytes]) -> dict[bytes, bytes]:
        """The names of these blocks' chunks, of those that this machine remembers all of; proved by their ids."""
        blocks = self.blocks
        numbers = {number for number, found_id in enumerate(blocks.ids) if found_id in wanted}
        found: dict[int, dict[int, bytes]] = {number: {} for number in numbers}
        for run in self._runs:
            for start in range(0, len(run), COPY_ROWS):
                for row in split_rows(run.rows(start, min(len(run), start + COPY_ROWS))):
                    below, ordinal = LOCATION.unpack(row[KEY:])
                    if (number := LAST - below) in numbers:
                        found[number][ordinal] = row[:KEY]
        names: dict[bytes, bytes] = {}
        for number, own in found.items():
            joined = b"".join(own[ordinal] for ordinal in sorted(own))
            if block_id(self._unlocked.keyring.block_names, blocks.kind[number], joined) == blocks.ids[number]:
                names[blocks.ids[number]] = joined
        return names

    # ------------------------------------------------------------ the cache on this machine

    def _spill(self) -> None:
        try:
            self._write_run()
        except OSError:  # a full or read-only state folder: memory has to do, and most sites have enough
            self._spill_at *= 2

    def _write_run(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = str(self._folder / f"{os.urandom(8).hex()}.rows")
        self._runs.insert(0, write_run(path, self._fresh.buckets(), FRESH_BITS, len(self._fresh)))
        self._fresh = Fresh()
        self._unsaved = True
        if len(self._runs) > RUNS_MAX:
            merged = merge_runs(str(self._folder / f"{os.urandom(8).hex()}.rows"), self._runs)
            self._drop_runs()
            self._runs = [merged]

    def _drop_runs(self) -> None:
        for run in self._runs:
            run.close()
            Path(run.path).unlink(missing_ok=True)
        self._runs = []

    def save(self) -> None:
        """Keep what was loaded for the next time; losing it costs time, never data."""
        rows, segments_new = self._pending_rows + len(self._fresh), len(self.segments - self._cached)
        enough = CACHE_AFTER_SEGMENTS if self._unlocked.storage.lanes == 1 else 1  # each is a request
        if not self._unsaved and rows < CACHE_AFTER_ROWS and segments_new < enough:
            return
        try:
            if self._pending:
                self._take_pending()
            if len(self._fresh):
                self._write_run()
            facts = [_RunFacts(Path(run.path).name, len(run), run.bits, run.digest) for run in self._runs]
            segments = sorted(self.segments)
            cache = _Cache(
                CACHE_VERSION, segments, self.blocks.columns(), self.blocks.keys, facts, sorted(self._nameless)
            )
            sealed = _cache_key(self._unlocked).seal(msgspec.msgpack.encode(cache), b"index cache")
            replace(self._folder / "cache", sealed)
            keep = {fact.file for fact in facts} | {"cache"}
            for file in self._folder.iterdir():
                if file.name not in keep and time.time() - file.stat().st_mtime > STALE_S:
                    file.unlink(missing_ok=True)
        except (OSError, StorageFailed):
            return  # a full or read-only state folder, or names that cannot be read now: the next backup reads again
        self._unsaved, self._cached = False, set(segments)

    def _load_cache(self, listed: set[bytes]) -> None:
        cache = _read_cache(self._unlocked)
        segments = set(cache.segments) if cache else set()
        if cache is None or not segments <= listed:
            return
        runs = []
        for fact in cache.runs if self._chunks else ():
            run = open_run(str(self._folder / fact.file), count=fact.count, bits=fact.bits, digest=fact.digest)
            if run is None:
                return
            runs.append(run)
        self.blocks = BlockTable.from_columns(cache.columns, cache.keys)
        self.segments, self._cached, self._runs = segments, set(segments), runs
        if self._chunks:
            self._try_again(cache.nameless)

    def _try_again(self, packs: list[bytes]) -> None:
        """Packs whose names could not be had before: they may have been mended, or a collection has ended."""
        for pack in packs:
            number = self.blocks.packs.index(pack)
            try:
                _, directory = read_directory(self._unlocked, pack, self.blocks.pack_sizes[number])
            except NotFound:
                self._nameless.add(pack)
            except Damaged as error:
                self._nameless.add(pack)
                self.damaged[pack] = error
            else:
                self._pending.append((pack, directory, self.blocks.pack.index(number)))
                self._pending_rows += sum(block.count for block in directory.blocks)

    def close(self) -> None:
        for run in self._runs:
            run.close()


def _read_cache(unlocked: Unlocked) -> _Cache | None:
    try:
        raw = _cache_key(unlocked).open((unlocked.state / FOLDER / "cache").read_bytes(), b"index cache")
        cache = wire.decoder(_Cache).decode(raw)
    except (OSError, NotAuthentic, msgspec.MsgspecError, ValueError):
        return None
    return cache if cache.version == CACHE_VERSION else None


def _cache_key(unlocked: Unlocked) -> SealingKey:
    return SealingKey(unlocked.purpose_key("index cache"))


def known_segments(unlocked: Unlocked) -> frozenset[bytes]:
    """Those that this machine has verified before, as its sealed cache says, on which all that it knows rests."""
    cache = _read_cache(unlocked)
    return frozenset(cache.segments) if cache else frozenset()
