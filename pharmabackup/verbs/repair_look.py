"""What is damaged here, what snapshots need of it, and where that is still to be had."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from pharmabackup import ids
from pharmabackup.engine.condemned import read_condemned, shunned_packs
from pharmabackup.engine.garbage import Garbage, alive, instances, is_whole, list_intents, read_packs
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.hunting import Hunt, Sought, naming_key
from pharmabackup.engine.index import Index
from pharmabackup.engine.packs import read_directory
from pharmabackup.engine.reading import BlockReader
from pharmabackup.engine.taking import Shelf, Taken, replica_shelf
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged, NotFound, SourceFailed
from pharmabackup.events import Finding
from pharmabackup.format.index import PackEntry
from pharmabackup.format.wire import Kind
from pharmabackup.sources.base import Source
from pharmabackup.verbs.check_packs import PackFound, PackReading
from pharmabackup.verbs.repair_wish import Block
from pharmabackup.verbs.reporter import Reporter


class Look:
    """One look at a repository and its replicas. Used by one thread, and closed."""

    def __init__(self, unlocked: Unlocked, replicas: Sequence[Unlocked], reporter: Reporter) -> None:
        """Read what there is, in the order of a collector. Damaged, NotFound, StorageFailed, Cancelled."""
        self._unlocked = unlocked
        self._reporter = reporter
        state = read_condemned(unlocked)
        intents = list_intents(unlocked)
        history = load_history(unlocked, anew=True)
        self.garbage = garbage = Garbage(
            state.highest + 1, state.unfinished, history, Index(unlocked, chunks=False), intents
        )
        garbage.gone = set(history.deleted)  # what is only forgotten can be called back
        self.sound_history = not (history.damaged or history.vanished or history.contested)
        self.found: dict[bytes, PackFound] = {}  # damaged packs
        self.blind: set[bytes] = set()  # snapshots whose lists of blocks cannot be read anywhere
        self.needed: set[Block] = set()
        self._bad: set[int] = set()
        try:
            read_packs(unlocked, garbage, reporter.look)
            self.here = Shelf(unlocked, garbage.index)
            self.shelves = [replica_shelf(unlocked, other) for other in replicas]
            others = [BlockReader(other, shelf.index) for other, shelf in zip(replicas, self.shelves, strict=True)]
            self.reader = BlockReader(unlocked, garbage.index, others)
        except BaseException:
            garbage.index.close()
            raise

    def tell(self) -> None:
        """Progress, and whether to stop. Cancelled."""
        self._reporter.look()

    def close(self) -> None:
        self.garbage.index.close()

    # ------------------------------------------------------------ damage and need

    def read(self, only: frozenset[bytes] | None = None) -> None:
        """Read all packs, or only these: what of them is not what was written. Then what snapshots need."""
        table = self.garbage.index.blocks
        chosen: list[int] = []
        seen: set[tuple[bytes, frozenset[tuple[int, bytes]]]] = set()
        blocks_of: dict[int, list[int]] = {}
        for number, place in table.placed():
            blocks_of.setdefault(place, []).append(number)
        for place, pack in enumerate(table.packs):
            what = pack, frozenset((table.offset[n], table.ids[n]) for n in blocks_of.get(place, ()))
            if pack in self.garbage.sizes and (only is None or pack in only) and what not in seen:
                seen.add(what)  # two segments may say the same of it
                chosen.append(place)
        self._reporter.total = sum(table.pack_sizes[place] for place in chosen)
        bad: set[tuple[bytes, int, bytes]] = set()
        for place, result in PackReading(self._unlocked, self.garbage.index, self._reporter).read(chosen).items():
            pack = table.packs[place]
            if self.garbage.sizes[pack] != table.pack_sizes[place]:
                result.changed, result.problem = True, result.problem or "It has another size than it had."
            if result.problem is not None:
                self.found[pack] = result
                bad |= {(pack, table.offset[number], table.ids[number]) for number in result.bad}
        for pack in self.garbage.doubtful:  # and a pack that was planted has the name that its bytes have
            self.found.setdefault(pack, PackFound("Its blocks are not those that its directory is of."))
        self._bad = {
            number
            for number, place in table.placed()
            if (table.packs[place], table.offset[number], table.ids[number]) in bad
        }
        for place, pack in enumerate(table.packs):  # a pack that was cut may hold some whole blocks
            table.usable[place] = pack in self.garbage.sizes
        self._learn_needed()

    def _learn_needed(self) -> None:
        table, history = self.garbage.index.blocks, self.garbage.history
        found = alive(self._unlocked, self.garbage, self._reporter.look, reader=self.reader, blind=self.blind)
        domains = {history.committed[who].snapshot.domain for who in self.blind}
        for number, place in table.placed():  # it may be any block that such a snapshot needs
            if table.packs[place] in self.found and table.domains[place] in domains:
                found.setdefault(table.domains[place], set()).add(table.ids[number])
        self.needed = {(domain, block) for domain, blocks in found.items() for block in blocks}

    def stays(self, block: Block) -> bool:
        """Whether a pack that is whole holds it."""
        table = self.garbage.index.blocks
        return any(table.packs[table.pack[number]] not in self.found for number in self._numbers(block))

    def _numbers(self, block: Block) -> list[int]:
        return instances(self.garbage, block[1], block[0])

    # ------------------------------------------------------------ where it is to be had

    def places(self, block: Block) -> Iterator[tuple[Shelf, int]]:
        """Where a block may be taken from: damaged packs here first, then replicas."""
        for number in self._numbers(block):
            if number not in self._bad:
                yield self.here, number
        yield from self._in_replicas(block)

    def take(self, block: Block) -> tuple[Taken, Shelf] | None:
        """A block that is proved, from the first place that has it."""
        for shelf, number in self.places(block):
            with suppress(Damaged, NotFound):
                return shelf.take(number), shelf
        return None

    def in_order(self, blocks: Iterable[Block]) -> list[Block]:
        """As they lie, so that each pack is read once."""

        def place(block: Block) -> tuple[int, bytes, int, Block]:
            for shelf, number in self.places(block):
                table = shelf.index.blocks
                where = 0 if shelf is self.here else 1 + self.shelves.index(shelf)
                return where, table.packs[table.pack[number]], table.offset[number], block
            return -1, b"", 0, block

        return sorted(blocks, key=place)

    def sought(self, blocks: Iterable[Block]) -> dict[bytes, list[Sought]]:
        """By domain: lost blocks whose chunks' names are known somewhere."""
        found: dict[bytes, list[Sought]] = {}
        unnamed: dict[bytes, Block] = {}
        kinds: dict[bytes, int] = {}
        for block in sorted(blocks, key=lambda block: (self._first_pack(block), block)):  # a pack's names at a time
            for shelf in (self.here, *self.shelves):
                table = shelf.index.blocks
                for number in table.instances(block[1]):
                    kinds[block[1]] = table.kind[number]
            if kinds.get(block[1], Kind.RECIPE_BLOCK) == Kind.RECIPE_BLOCK:
                continue  # no source knows where chunks lay
            names = self._names(block)
            if names is None:
                unnamed[block[1]] = block
            else:
                found.setdefault(block[0], []).append(Sought(block[1], kinds[block[1]], names))
        own = {block_id for block_id, (domain, _) in unnamed.items() if domain == self._own_domain()}
        for block_id, names in self._remembered(own).items():
            found.setdefault(unnamed[block_id][0], []).append(Sought(block_id, kinds[block_id], names))
        return found

    def _names(self, block: Block) -> bytes | None:
        for shelf, number in self._everywhere(block):
            with suppress(Damaged, NotFound):
                return shelf.names(number)
        return None

    def _first_pack(self, block: Block) -> bytes:
        for shelf, number in self._everywhere(block):
            return shelf.index.blocks.packs[shelf.index.blocks.pack[number]]
        return b""

    def _everywhere(self, block: Block) -> Iterator[tuple[Shelf, int]]:
        """Where a block lies or lay, be it damaged there or not."""
        yield from ((self.here, number) for number in self._numbers(block))
        yield from self._in_replicas(block)

    def _in_replicas(self, block: Block) -> Iterator[tuple[Shelf, int]]:
        for shelf in self.shelves:
            yield from ((shelf, number) for number in _instances(shelf, block))

    def _own_domain(self) -> bytes | None:
        return self._unlocked.domain if self._unlocked.keyring.naming else None

    def _remembered(self, wanted: set[bytes]) -> dict[bytes, bytes]:
        """This machine may have looked their chunks up before."""
        if not wanted:
            return {}
        index = Index(self._unlocked)
        try:
            index.load()
            return index.remembered_names(wanted)
        finally:
            index.close()

    def hunts(self, blocks: Iterable[Block], sources: Sequence[Source]) -> Iterator[tuple[Hunt, bytes, list[Sought]]]:
        """One for each domain of which blocks are lost and named, as far as this credential may name chunks."""
        if sources:
            for domain, sought in sorted(self.sought(blocks).items()):
                if naming_key(self._unlocked, domain) is not None:
                    look, failed = self._reporter.look, self._source_failed
                    yield Hunt(self._unlocked, domain, sources, look, failed), domain, sought

    def _source_failed(self, source: Source, error: SourceFailed) -> None:
        """What replicas and other sources have is mended all the same."""
        finding = Finding(
            code="dataset-failed",
            severity="warning",
            subject=source.name,
            message=f"It could not be read to its end, and nothing is made anew from it. {error.message}",
            remedy=error.remedy or "Mend that, and repair again.",
            location=self._unlocked.storage.location,
        )
        if finding not in self._reporter.findings:  # it is read again for what it may have of another domain
            self._reporter.find(finding)

    # ------------------------------------------------------------ what goes

    def condemnable(self, lost: set[Block]) -> set[bytes]:
        """Damaged packs that nothing needs once all is in new packs that is not lost; and some more.

        One that holds what is lost is condemned too: it will stay, since a snapshot needs it, and no backup relies
        anew on what was condemned (docs/format.md, §20). On what no segment names they do not rely anyway.
        """
        if not self.sound_history:
            return set()
        shunned = shunned_packs(self._unlocked)
        going = set(self.found) - (self.holding(lost) & shunned)
        if not lost and not self.blind:
            going |= {
                pack
                for pack in self.garbage.unreadable
                if not is_whole(self._unlocked, pack, self.garbage.sizes[pack])
            }
        return going

    def holding(self, blocks: set[Block]) -> set[bytes]:
        """The packs here that say they hold one of these."""
        table = self.garbage.index.blocks
        return {table.packs[table.pack[number]] for block in blocks for number in self._numbers(block)}

    def entries(self) -> Iterator[PackEntry]:
        """What these say of themselves. That their blocks are those that they say was looked at with the index."""
        for pack in sorted(self.nameable()):
            self.tell()
            with suppress(Damaged, NotFound):
                yield read_directory(self._unlocked, pack, self.garbage.sizes[pack])[0]

    def nameable(self) -> set[bytes]:
        """Whole packs that no segment names."""
        return self.garbage.unindexed - set(self.found)

    def described(self, pack: bytes) -> str:
        problem = self.found[pack].problem if pack in self.found else None
        return problem or f"The pack {ids.pack_name(pack)} does not say what it holds."


def _instances(shelf: Shelf, block: Block) -> list[int]:
    table = shelf.index.blocks
    return [
        number
        for number in table.instances(block[1])
        if table.usable[table.pack[number]] and table.domains[table.pack[number]] == block[0]
    ]
