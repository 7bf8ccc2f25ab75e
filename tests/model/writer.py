"""A backup: docs/format.md, §20. A new attempt is a new transaction."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import product
from typing import NamedTuple

from tests.model.actors import END, Move, names
from tests.model.rules import Rules
from tests.model.store import NONE, OWNER, Entry, Fate, Intent, Names, Pack, Segment, Snapshot, Torn, View, entries_of

Places = frozenset[tuple[str, str]]  # blocks, and the packs that they are relied on in
NOWHERE: Places = frozenset()
FOLDERS = frozenset({"collections", "index", "packs"})


class At(NamedTuple):
    pc: str
    attempt: int = 0
    first: int = 0  # F: collections from here on are read again
    bad: Names = NONE  # packs not to be relied on
    entries: frozenset[Entry] = frozenset()  # what the index says of blocks that are wanted
    relied: Places = NOWHERE
    written: Places = NOWHERE
    todo: Names = NONE  # chunks to be uploaded
    intents: int = 0
    roster: int = 0
    seen: Names = NONE  # of one listing: the folders that it has come to
    listed: Names = NONE  # packs in it


class Writer:
    """Backs up some chunks. `tries`: how often it begins anew at most."""

    def __init__(
        self,
        name: str,
        chunks: str,
        rules: Rules,
        *,
        tries: int = 1,
        slot: str = OWNER,
        domain: str = "a",
        same_blocks: bool = True,  # what two writers upload of one chunk is the same block
        piecewise: bool = False,  # a pack, a segment and an intent for each chunk, as long backups do
        loses_reply: bool = False,  # of the last create, which it then does once more
        start: At | None = None,
    ) -> None:
        self.name = name
        self.start = start or At("roster")
        self._chunks = frozenset(chunks)
        self._rules = rules
        self._tries = tries
        self._slot = slot
        self._domain = domain
        self._same = same_blocks
        self._piecewise = piecewise
        self._loses_reply = loses_reply

    def moves(self, at: At, view: View) -> Iterator[Move]:
        yield from getattr(self, f"_{at.pc}")(at, view)

    def _txn(self, at: At) -> str:
        return f"{self.name}{at.attempt}"

    def _anew(self, at: At, why: str, view: View) -> Iterator[Move]:
        """Begin again with a new transaction, or give up and say so."""
        if at.attempt < self._tries:
            yield Move(f"{why}: begins anew", At("roster", at.attempt + 1), view.store)
        else:
            yield Move(f"{why}: gives up and says so", At(END), view.store)

    # ------------------------------------------------------------ step 1

    def _roster(self, at: At, view: View) -> Iterator[Move]:
        together = self._rules.survey == "together"
        if not view.rosters:
            yield from self._together(at, view) if together else self._collections(at, view)
        else:
            newest = view.newest_roster()
            if self._slot == OWNER or self._slot in view.rosters[newest].slots - view.rosters[newest].revoked:
                then = "together" if together else "collections"
                yield Move("lists roster/", At(then, at.attempt, roster=newest), view.store)

    def _together(self, at: At, view: View) -> Iterator[Move]:
        """One listing of all: it may come to collections/, index/ and packs/ in any order."""
        if len(at.seen) == len(FOLDERS):
            yield from self._gathered(at, view)
            return
        for folder in sorted(FOLDERS - at.seen):
            now, label = at._replace(pc="together", seen=at.seen | {folder}), f"one listing comes to {folder}/"
            if folder == "collections":
                if view.torn & {"condemn", "execute"} and self._rules.unreadable == "stop":
                    continue
                first, bad = self._known_of(self._heeded(at, view))
                now, label = now._replace(first=first, bad=bad), f"{label}: F is {first}, condemned {names(bad)}"
            elif folder == "index":
                now = now._replace(entries=self._read(view.segments.values()))
            else:
                now = now._replace(listed=frozenset(view.packs))
            yield Move(label, now, view.store)

    def _gathered(self, at: At, view: View) -> Iterator[Move]:
        entries = frozenset(entry for entry in at.entries if entry.pack in at.listed - at.bad)
        adopted = self._adopted(at, view, at.listed, {entry.pack for entry in at.entries})
        at = at._replace(entries=entries)
        if any(entry.block[0] in self._chunks for entry in adopted):
            label = f"takes in {names({entry.pack for entry in adopted})}"
            yield Move(label, at._replace(pc="adopt", entries=entries | adopted), view.store)
        else:
            yield from self._rely(at, view, "of what was listed together")

    def _heeded(self, at: At, view: View) -> View:
        """The shortcut does not see what revoked slots have written into collections/."""
        return view.without(view.revoked(at.roster)) if self._rules.revoked_collections == "absent" else view

    def _collections(self, at: At, view: View) -> Iterator[Move]:
        rules, view = self._rules, self._heeded(at, view)
        if view.torn & {"condemn", "execute"} and rules.unreadable == "stop":
            return
        first, bad = self._known_of(view)
        after = "packs_first" if rules.survey == "packs-first" else "index"
        if at.pc == "late_collections":  # the shortcut: packs were listed before
            yield from self._rely(at._replace(first=first, bad=bad), view, "reads collections/")
        elif after == "packs_first":
            yield from self._packs_first(at, view)
        else:
            now = At("index", at.attempt, first, bad, roster=at.roster)
            yield Move(f"reads collections/: F is {first}, condemned {names(bad)}", now, view.store)

    def _known_of(self, view: View) -> tuple[int, Names]:
        """F, and what is not to be relied on."""
        rules = self._rules
        unfinished = view.unfinished if rules.first == "unfinished" else 0
        bad = view.condemned(view.unfinished, finished=False) if view.unfinished else NONE
        if rules.relies_on_condemned:
            bad = NONE
        if rules.shuns in ("condemned", "burnt"):
            bad |= view.shunned() if rules.shuns == "condemned" else view.burnt
        return unfinished or view.highest + 1, bad

    def _packs_first(self, at: At, view: View) -> Iterator[Move]:
        found = frozenset(entry for entry in self._read(view.segments.values()) if entry.pack in view.packs)
        yield Move("lists packs/ first", at._replace(pc="late_collections", entries=found), view.store)

    def _late_collections(self, at: At, view: View) -> Iterator[Move]:
        yield from self._collections(at, view)

    def _read(self, segments: Iterable[Segment]) -> frozenset[Entry]:
        return frozenset(
            entry
            for entry in entries_of(segments, foreign=self._rules.foreign_entries)
            if entry.block[0] in self._chunks and (entry.domain == self._domain or self._rules.foreign_instances)
        )

    def _index(self, at: At, view: View) -> Iterator[Move]:
        if self._rules.paged:
            newer = [item for item in view.segments.values() if is_new(item.name)]
            yield Move("lists index/, first part", at._replace(pc="index2", entries=self._read(newer)), view.store)
        else:
            yield from self._loaded(at, view, self._read(view.segments.values()))
        if self._rules.stale:
            yield Move("lists index/ of some time ago", at._replace(pc="packs"), view.store)

    def _index2(self, at: At, view: View) -> Iterator[Move]:
        older = [item for item in view.segments.values() if not is_new(item.name)]
        yield from self._loaded(at, view, at.entries | self._read(older))

    def _loaded(self, at: At, view: View, entries: frozenset[Entry]) -> Iterator[Move]:
        entries = frozenset(entry for entry in entries if entry.pack not in at.bad)
        yield Move("reads index/", at._replace(pc="packs", entries=entries), view.store)

    def _packs(self, at: At, view: View) -> Iterator[Move]:
        """List packs; take in those that no segment names, once they were read."""
        named = {entry.pack for item in view.segments.values() for entry in item.entries}
        adopted = self._adopted(at, view, frozenset(view.packs), named)
        useful = frozenset(entry for entry in adopted if entry.block[0] in self._chunks)
        if useful:
            label = f"lists packs/, takes in {names({entry.pack for entry in adopted})}"
            yield Move(label, at._replace(pc="adopt", entries=at.entries | adopted), view.store)
        else:
            yield from self._rely(at, view, "lists packs/")

    def _adopted(self, at: At, view: View, listed: Names, named: Collection[str]) -> frozenset[Entry]:
        """What packs hold that are listed and that no segment names."""
        return frozenset(
            Entry(block, pack.name, pack.domain)
            for pack in view.packs.values()
            if pack.name in listed and pack.name not in named and pack.name not in at.bad
            and pack.domain == self._domain
            and (pack.says == pack.holds or self._rules.believes_directories)
            for block in pack.says
        )  # fmt: skip

    def _adopt(self, at: At, view: View) -> Iterator[Move]:
        entries = frozenset(entry for entry in at.entries if entry.pack in view.packs)
        segment = self._segment(f"A{self._txn(at)}", entries, at)
        yield from self._rely(at._replace(entries=entries), view, "publishes their segment, and", segment)

    def _rely(self, at: At, view: View, why: str, *new: Segment) -> Iterator[Move]:
        """Choose where each chunk is; what is nowhere is to be uploaded."""
        revoked = NONE if self._rules.relies_on_revoked else view.revoked(at.roster)
        places: dict[str, set[tuple[str, str]]] = {chunk: set() for chunk in self._chunks}
        for block, pack, _ in at.entries:
            listed = pack in (at.listed if at.seen else view.packs) or self._rules.relies == "indexed"
            listed = listed or at.pc == "late_collections"
            trusted = pack not in view.packs or view.packs[pack].slot not in revoked
            if listed and trusted and pack not in at.bad and block[0] in places:
                places[block[0]].add((block, pack))
        options: list[list[tuple[str, str] | None]] = [[*sorted(places[chunk])] or [None] for chunk in sorted(places)]
        for chosen in product(*options):
            relied = frozenset(place for place in chosen if place)
            todo = self._chunks - {block[0] for block, _ in relied}
            now = At(
                "upload" if todo else "intent", at.attempt, at.first, NONE, relied=relied, todo=todo, roster=at.roster
            )
            yield Move(f"{why} relies on {names(pack for _, pack in relied)}", now, view.put(*new))

    # ------------------------------------------------------------ step 2

    def _piece(self, at: At) -> tuple[Names, str]:
        """The chunks of the next pack, and its name."""
        chunks = frozenset(min(at.todo)) if self._piecewise else at.todo
        return chunks, f"{self._txn(at)}{''.join(sorted(chunks))}"

    def _block(self, at: At, chunk: str) -> str:
        return chunk if self._same else chunk + self._txn(at)

    def _upload(self, at: At, view: View) -> Iterator[Move]:
        chunks, name = self._piece(at)
        blocks = frozenset(self._block(at, chunk) for chunk in chunks)
        pack = Pack(name, blocks, blocks, self._domain, self._slot, self._txn(at))
        then = at._replace(pc="verify" if self._rules.verify else "publish")
        yield Move(f"puts pack {name} of {names(blocks)}", then, view.put(pack))
        if self._rules.torn_packs:
            yield Move(f"puts pack {name}, which is torn", then, view.put(Pack(name, NONE, NONE, self._domain)))

    def _verify(self, at: At, view: View) -> Iterator[Move]:
        _, name = self._piece(at)
        if name in view.packs and view.packs[name].holds:
            yield Move("reads it back", at._replace(pc="publish"), view.store)
        else:
            yield from self._anew(at, "reads it back: torn or gone", view)

    def _publish(self, at: At, view: View) -> Iterator[Move]:
        chunks, name = self._piece(at)
        places = frozenset((self._block(at, chunk), name) for chunk in chunks)
        segment = self._segment(f"I{name}", frozenset(Entry(block, pack, self._domain) for block, pack in places), at)
        left = at.todo - chunks
        now = at._replace(pc="checkpoint" if left else "intent", written=at.written | places, todo=left)
        yield Move(f"publishes segment {segment.name}", now, view.put(segment))

    def _segment(self, name: str, entries: frozenset[Entry], at: At) -> Segment:
        return Segment(name, entries, self._slot, "" if self._slot == OWNER else self._domain, at.roster)

    # ------------------------------------------------------------ steps 3 to 5

    def _checkpoint(self, at: At, view: View) -> Iterator[Move]:
        yield self._pin(at, view, frozenset(pack for _, pack in at.written), at._replace(pc="upload"))

    def _intent(self, at: At, view: View) -> Iterator[Move]:
        rules = self._rules
        if rules.intent in ("after", "none") and at.first:  # shortcuts: look again first, or pin nothing
            yield from self._recheck(at, view)
            return
        pinned = {"all": at.relied | at.written, "relied": at.relied, "written": at.written}[rules.pins]
        then = at._replace(pc="recheck" if rules.intent == "before" else "commit")
        yield self._pin(at, view, frozenset(pack for _, pack in pinned), then)
        if rules.torn_records == "intent":
            label = f"creates intents/{self._txn(at)}.{at.intents}, which is torn"
            yield Move(label, then._replace(intents=at.intents + 1), view.put(Torn("intent", self._txn(at))))

    def _pin(self, at: At, view: View, packs: Names, then: At) -> Move:
        intent = Intent(self._txn(at), at.intents, packs, self._slot, at.roster)
        label = f"creates intents/{intent.txn}.{intent.number} = {names(packs)}"
        return Move(label, then._replace(intents=at.intents + 1), view.put(intent))

    def _recheck(self, at: At, view: View) -> Iterator[Move]:
        rules, view = self._rules, self._heeded(at, view)
        if view.torn & {"condemn", "execute"} and rules.unreadable == "stop":
            return
        if rules.gap == "anew" and any(n not in view.condemns for n in range(at.first, view.highest + 1)):
            yield from self._anew(at, "reads collections/ again: records are missing", view)
            return
        condemned = view.condemned(at.first, finished=rules.recheck == "all") if rules.recheck != "none" else NONE
        mine = at.relied | at.written if rules.recheck_own else at.relied
        hit = frozenset(place for place in mine if place[1] in condemned)
        if hit and rules.begin_anew == "anew":
            yield from self._anew(at, f"reads collections/ again: {names(p for _, p in hit)} condemned", view)
        elif hit:
            yield from self._patch(at, view, hit)
        else:
            then = "intent" if rules.intent == "after" else "commit"
            now = at._replace(pc=then, first=at.first if rules.intent == "before" else 0)
            yield Move("reads collections/ again: clear", now, view.store)

    def _patch(self, at: At, view: View, hit: Places) -> Iterator[Move]:
        """The shortcut: it goes on with a new pack for what is condemned, and that pack is in no segment."""
        if at.attempt >= self._tries:
            return
        blocks = frozenset(block for block, _ in hit)
        name = f"{self.name}{at.attempt}again"
        pack = Pack(name, blocks, blocks, self._domain, self._slot, self._txn(at))
        places = frozenset((block, name) for block in blocks)
        now = at._replace(
            pc="intent", relied=at.relied - hit, written=(at.written - hit) | places, attempt=at.attempt + 1
        )
        yield Move(
            f"reads collections/ again: {names(p for _, p in hit)} condemned, puts {name}", now, view.put(pack)
        )

    def _commit(self, at: At, view: View) -> Iterator[Move]:
        txn = self._txn(at)
        blocks = frozenset(block for block, _ in at.relied | at.written)
        fate = Fate(txn, Snapshot(blocks, self._domain), slot=self._slot, cites=at.roster)
        old = view.fates.get(txn)
        end = At("tidy", at.attempt) if self._rules.drops_intents else At(END)
        if old is not None and self._rules.exclusive and old.aborted:
            if self._rules.obeys_abort:
                yield from self._anew(at, f"finds snapshots/{txn} aborted", view)
                return
        elif old is not None and self._rules.exclusive:
            yield Move(f"finds snapshots/{txn} as it wants it", end, view.store)
            return
        store = view.delete(old) | {fate} if old is not None else view.put(fate)
        yield Move(f"creates snapshots/{txn}: commit {names(blocks)}", end, store)
        if self._loses_reply:
            yield Move(f"creates snapshots/{txn}: commit {names(blocks)}, and the answer is lost", at, store)

    def _tidy(self, at: At, view: View) -> Iterator[Move]:
        """The shortcut: a writer that deletes."""
        own = [item for item in view.intents if item.txn == self._txn(at)]
        yield Move("deletes its intents", At(END), view.delete(*own))


def is_new(name: str) -> bool:
    """In which part of a listing a segment comes: what was made since the beginning is in the first, at worst."""
    return name != "I0"
