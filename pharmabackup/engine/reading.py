"""Reading snapshots: blocks by id from whichever pack holds a whole one, manifests, recipes."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from itertools import groupby, pairwise

from blake3 import blake3

from pharmabackup import ids
from pharmabackup.crypto.hashing import derive
from pharmabackup.engine.ahead import Ahead, Range
from pharmabackup.engine.blocks import damaged_block, open_block
from pharmabackup.engine.blocktable import BlockTable
from pharmabackup.engine.condemned import Condemned, read_condemned
from pharmabackup.engine.filecache import cumulative
from pharmabackup.engine.index import Index
from pharmabackup.engine.lanes import in_lanes
from pharmabackup.engine.listing import Listing
from pharmabackup.engine.packs import block_id, read_directory
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged, Error, NotFound
from pharmabackup.format import block as layout
from pharmabackup.format.manifest import Entry, Frame, entries, read_folders, read_frames
from pharmabackup.format.recipe import UNUSED, Runs, decode_runs
from pharmabackup.format.transaction import Refs, Snapshot
from pharmabackup.format.wire import Kind, malformed
from pharmabackup.mutex import Mutex

TABLE_MAX = 1 << 28  # bytes: 8 million blocks
CACHED_BLOCKS = 12  # of about 1 MiB, for whoever reads here and there
LISTS_AHEAD = 4  # blocks of a manifest, recipe or table that are fetched at once, at most
NAME_KEYS = {
    Kind.DATA_BLOCK: "data names",
    Kind.MANIFEST_BLOCK: "manifest names",
    Kind.RECIPE_BLOCK: "recipe names",
}


class BlockReader:
    """Opens blocks of one repository. Any thread; keeps the last few.

    `index` is replaced as a whole when storage has changed, since another collection gives blocks other numbers: who
    holds a number holds the table it is of.
    """

    def __init__(self, unlocked: Unlocked, index: Index, others: Sequence[BlockReader] = ()) -> None:
        """`others`: of replicas, for what is not to be had here."""
        self.index = index
        self.first = 1  # the first collection that may have begun since the index was read
        self._looked: tuple[Index, object] | None = None  # an index for which all was listed, and what there was then
        self._unlocked = unlocked
        self._others = others
        self._ends = unlocked.threads.ends
        self._lock = Mutex()
        self._refreshing = Mutex()
        self._weak: dict[tuple[bytes, bytes, bytes], bool] = {}  # by roster, signer and domain
        self._cache: OrderedDict[bytes, tuple[bytes, list[int]]] = OrderedDict()

    @property
    def ended(self) -> bool:
        """Whether the repository was closed since this was made."""
        return self._unlocked.threads.ends != self._ends

    def pool(self) -> Executor:
        """Threads for whoever reads piece by piece; see `Lanes`."""
        return self._unlocked.threads.pool()

    def refresh(self, *, seen: Index | None = None, listing: Listing | None = None) -> None:
        """Learn what storage holds now.

        `seen`: the index in which a block was not found; if it is not the newest any more, another thread has done
        this meanwhile. Then packs that no segment names are looked into as well. `listing`: by which that is read.
        """
        listed_by = listing or self._unlocked.storage.list
        with self._refreshing.own:
            if seen is not None and self.index is not seen:
                return
            state = self._state(listed_by)
            self.first = state[0].first
            index = Index(self._unlocked, chunks=False)
            index.load(listing=listing)
            listed = {ids.hex_tail(info.name) or b"": info.size for info in listed_by("packs")}
            if seen is not None:
                for pack in sorted(set(listed) - set(index.blocks.packs)):
                    with suppress(Damaged, NotFound):
                        index.add_entry(read_directory(self._unlocked, pack, listed[pack])[0])
            # A condemned pack may still be read: only writers must not rely on it.
            index.blocks.restrict(listed, frozenset())
            self.index = index
            if seen is not None and listing is None:  # whose order is unknown: it may lack packs that the index has
                self._looked = index, state

    def block(self, wanted: bytes, domain: bytes) -> tuple[bytes, list[int]]:
        """A block's content and where its chunks end. Damaged when no whole instance is to be had; see `fetch`."""
        self._unlocked.threads.check(self._ends)
        with self._lock.own:
            found = self._cache.get(wanted)
            if found is not None:
                self._cache.move_to_end(wanted)
                return found
        content = self.fetch(wanted, domain)
        result = content, layout.chunk_ends(content)
        with self._lock.own:
            self._cache[wanted] = result
            while len(self._cache) > CACHED_BLOCKS:
                self._cache.popitem(last=False)
        return result

    def fetch_lists(self, snapshots: Iterable[Snapshot]) -> None:
        """Where several requests may be under way, fetch what these will be read by first, as far as it is kept.

        What goes wrong is told when it is needed.
        """
        domains = {
            refs[0].block: snapshot.domain
            for snapshot in snapshots
            for refs in (snapshot.table, snapshot.recipe, snapshot.manifest)
            if refs
        }
        lanes = self._unlocked.storage.lanes
        if lanes > 1:
            wanted = list(domains)[:CACHED_BLOCKS]
            with in_lanes(lanes, lambda block: self.block(block, domains[block]), wanted) as coming:
                for _, get in coming:
                    with suppress(Error):
                        get()

    def ahead(self) -> Ahead | None:
        """What fetches for a while what will be wanted here; None where that is of no use."""
        storage = self._unlocked.storage
        return Ahead(storage) if storage.lanes > 1 else None

    def fetch(self, wanted: bytes, domain: bytes, *, names: bool = False, ahead: Ahead | None = None) -> bytes:
        """As `block`, the content alone, and it is not kept. `names`: of its chunks they are computed again.

        InvalidInput when the repository was closed since this reader was made. `close` does not wait for the caller's
        own thread: what that was asking for meanwhile is not handed out either.
        """
        self._unlocked.threads.check(self._ends)
        try:
            content = self._fetch(wanted, domain, names, ahead)
            self._unlocked.threads.check(self._ends)
            return content
        except Damaged:
            for other in self._others:
                with suppress(Damaged):
                    return other.fetch(wanted, domain, names=names)
            raise

    def _fetch(self, wanted: bytes, domain: bytes, names: bool, ahead: Ahead | None) -> bytes:
        damaged: Damaged | None = None
        while True:
            index, missing = self.index, False
            for number in index.blocks.instances(wanted):
                try:
                    sealed = (ahead or self._unlocked.storage).get_range(*range_of(index.blocks, number))
                    return self.open(index.blocks, number, sealed, domain, names=names)
                except Damaged as error:
                    damaged = error
                except NotFound:
                    missing = True
            if damaged is not None and not missing:
                raise damaged
            if self._looked == (index, self._state(self._unlocked.storage.list)):  # nothing has moved or come since
                raise damaged or damaged_block("no pack that is here holds it")
            self.refresh(seen=index)  # a collection may have moved it, or a segment is lost

    def _state(self, listing: Listing) -> tuple[Condemned, frozenset[str]]:
        """What collections have come to, and which segments there are."""
        condemned = read_condemned(self._unlocked, listing=listing)
        return condemned, frozenset(info.name for info in listing("index"))

    def open(
        self, table: BlockTable, number: int, sealed: bytes | memoryview, domain: bytes, *, names: bool = False
    ) -> bytes:
        """The content of the sealed block that has this number in that table.

        Its chunks' names are computed again where the seal proves too little: a recipe's, whose key every role
        holds, one that a maintainer says he copied, one of a domain in which several devices write, and any of
        another domain; and on demand. Who has no naming key of the domain cannot do that.
        """
        wrapped = table.keys[table.key[number]]
        key = self._unlocked.block_key(wrapped)
        content = open_block(
            self._unlocked,
            sealed,
            kind=table.kind[number],
            block_id=table.ids[number],
            key=key,
            key_id=wrapped.key_id,
        )
        pack = table.pack[number]
        own = table.domains[pack]
        weak = table.kind[number] == Kind.RECIPE_BLOCK or self._is_weak(table.signers[pack], own)
        naming = next((item.key for item in self._unlocked.keyring.naming if item.domain == own), None)
        if naming is not None and (names or own != domain or weak):
            self._check_names(table, number, content, naming)
        elif names or own != domain or (weak and table.kind[number] != Kind.RECIPE_BLOCK):
            raise damaged_block("it is of a domain whose names this credential cannot check")
        return content

    def _is_weak(self, signer: bytes, domain: bytes) -> bool:
        """Whether a block may be another than its id says though all is well that was signed.

        A maintainer cannot open what he moves; of several devices of one domain one may have been stolen; and whoever
        stole what was revoked may have put something else beside what counts.
        """
        asked = self._unlocked.roster_hash, signer, domain
        if asked not in self._weak:
            slots = self._unlocked.roster.slots
            own = next((slot for slot in slots if slot.id == signer), None)
            devices = sum(slot.role == "device" and slot.domain == domain for slot in slots)
            several = devices + (domain == self._unlocked.roster.domains[0].id) > 1  # in the first, owners write too
            self._weak[asked] = (
                own is None
                or own.revoked is not None
                or own.role == "maintainer"
                or (own.role == "device" and several)
            )
        return self._weak[asked]

    def _check_names(self, table: BlockTable, number: int, content: bytes, naming: bytes) -> None:
        """A block's id is the keyed hash of its chunks' names, and these are keyed hashes of the chunks."""
        kind = Kind(table.kind[number])
        if (
            block_id(self._unlocked.keyring.block_names, kind, chunk_names(kind, naming, content))
            != table.ids[number]
        ):
            raise damaged_block("its chunks are not those that its id names")

    def chunks(self, references: Refs, domain: bytes) -> Iterator[memoryview]:
        """The chunks that a snapshot refers to, in order. Damaged."""
        lanes = min(self._unlocked.storage.lanes, LISTS_AHEAD)
        blocks = (block for block, _ in groupby(references, key=lambda ref: ref.block))
        pool = self.pool() if lanes > 1 else None
        coming = in_lanes(lanes, lambda block: self.block(block, domain), blocks, pool=pool)
        content, ends, before = b"", list[int](), b""
        for ref in references:
            if ref.block != before:
                before, get = next(coming)
                content, ends = get()
            if ref.first + ref.count >= len(ends):
                raise malformed("snapshot", "it refers to chunks that a block does not have")
            view = memoryview(content)
            for i in range(ref.first, ref.first + ref.count):
                yield view[ends[i] : ends[i + 1]]


class SnapshotReader:
    """One snapshot's names and content."""

    def __init__(self, blocks: BlockReader, snapshot: Snapshot) -> None:
        self.blocks = blocks
        self.snapshot = snapshot
        self._runs: Runs | None = None
        self._table: list[bytes] | None = None
        self._starts: array[int] | None = None

    def recipe(self) -> tuple[Runs, list[bytes]]:
        """The runs of the content, and the block ids that they name by slot. Damaged."""
        if self._runs is None:
            table = self.table()
            recipe = self.blocks.chunks(self.snapshot.recipe, self.snapshot.domain)
            runs = decode_runs(recipe, table_size=len(table), chunks=self.snapshot.chunks)
            if sum(runs.count) != self.snapshot.chunks:
                raise malformed("recipe", "it has another number of chunks than its snapshot says")
            if any(table[slot] == UNUSED for slot in set(runs.block)):
                raise malformed("recipe", "a run names a place of the block table that is not used")
            self._runs = runs
        return self._runs, self.table()

    @property
    def run_starts(self) -> array[int]:
        """Where in the content each run begins, and where the last ends. Damaged."""
        if self._starts is None:  # `cached_property` has one lock for all, which a forked process may find held
            self._starts = cumulative(self.recipe()[0].sizes)
        return self._starts

    def table(self) -> list[bytes]:
        """The block ids by slot. Damaged."""
        if self._table is None:
            raw = bytearray()
            for piece in self.blocks.chunks(self.snapshot.table, self.snapshot.domain):
                raw += piece
                if len(raw) > TABLE_MAX:
                    raise malformed("snapshot", "its block table is larger than allowed")
            if len(raw) % 32:
                raise malformed("snapshot", "its block table cannot be read")
            whole = bytes(raw)
            self._table = [whole[i : i + 32] for i in range(0, len(whole), 32)]
        return self._table

    def relied(self) -> set[bytes]:
        """Ids of all blocks that the snapshot relies on; the catalogue key is enough to know them. Damaged.

        What its table names, without a look at the recipe, which may have a hundred runs for each block.
        """
        record = self.snapshot
        found = {ref.block for refs in (record.table, record.recipe, record.manifest) for ref in refs}
        found.update(self.table())
        found.discard(UNUSED)
        return found

    def frames(self) -> Iterator[Frame]:
        return read_frames(self.blocks.chunks(self.snapshot.manifest, self.snapshot.domain))

    def entries(self) -> Iterator[list[Entry]]:
        """Every folder's entries, in path order. Damaged."""
        for folder, frame, start in read_folders(self.frames()):
            yield entries(folder, frame, start)

    def find(self, path: bytes) -> Entry | None:
        """One entry by its path; hard links lead to the entry with the content."""
        return next((entry for entry in self.folder(path.rpartition(b"/")[0]) if entry.path == path), None)

    def folder(self, path: bytes) -> Iterator[Entry]:
        """What lies in one folder; b"" is the dataset's root."""
        for folder, frame, start in read_folders(self.frames()):
            if folder.path == path:
                yield from (entry for entry in entries(folder, frame, start) if entry.path)

    def read(self, start: int, length: int) -> bytes:
        """Bytes of the content stream. Damaged."""
        runs, table = self.recipe()
        starts, parts, end = self.run_starts, [], start + length
        if end > starts[-1]:
            raise malformed("recipe", "it is shorter than its manifest says")
        i = bisect_right(starts, start) - 1
        while start < end:
            content, ends = self.blocks.block(table[runs.block[i]], self.snapshot.domain)
            first = runs.first[i]
            begin, stop = run_range(ends, first, runs.count[i], runs.sizes[i])
            offset = begin + start - starts[i]
            piece = memoryview(content)[offset : min(stop, offset + end - start)]
            parts.append(piece)
            start += len(piece)
            i += 1
        return b"".join(parts)


def range_of(table: BlockTable, number: int) -> Range:
    """Where a block's sealed bytes lie."""
    return ids.pack_name(table.packs[table.pack[number]]), table.offset[number], table.length[number]


def relied_by(blocks: BlockReader, snapshots: Iterable[Snapshot]) -> dict[bytes, set[bytes]]:
    """Ids of the blocks that any of these rely on, by domain. Damaged.

    Asked of neighbours in time, whose lists of blocks are often the same or in one block.
    """
    found: dict[bytes, set[bytes]] = {}
    seen: set[tuple[bytes, Refs, Refs, Refs]] = set()
    for snapshot in snapshots:
        lists = snapshot.domain, snapshot.table, snapshot.recipe, snapshot.manifest
        if lists not in seen:
            seen.add(lists)
            found.setdefault(snapshot.domain, set()).update(SnapshotReader(blocks, snapshot).relied())
    return found


def chunk_names(kind: int, naming: bytes, content: bytes | memoryview) -> bytes:
    """The names of a block's chunks, computed from its content. Damaged."""
    key, ends, view = derive(NAME_KEYS[Kind(kind)], naming), layout.chunk_ends(content), memoryview(content)
    return b"".join(blake3(view[start:end], key=key).digest() for start, end in pairwise(ends))


def run_range(ends: list[int], first: int, count: int, size: int) -> tuple[int, int]:
    """Where in a block's content a run lies. Damaged when the block has no such run."""
    if first + count >= len(ends) or ends[first + count] - ends[first] != size:
        raise run_damaged()
    return ends[first], ends[first + count]


def run_damaged() -> Damaged:
    return malformed("recipe", "a run is not as long as it says")
