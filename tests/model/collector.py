"""A collection: docs/format.md, §21. The first half: the look, what is moved, and what is condemned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import NamedTuple

from tests.model.actors import END, Move, names, subsets
from tests.model.rules import Rules
from tests.model.store import (
    NONE,
    OWNER,
    Citing,
    Condemn,
    Entry,
    Fate,
    Intent,
    Names,
    Pack,
    Segment,
    Torn,
    View,
    entries_of,
)

Needs = frozenset[tuple[str, str]]  # blocks, and the domains in which they are needed


class At(NamedTuple):
    pc: str
    run: int = 0
    number: int = 0
    ripe: Names = NONE  # forgets that count, by the storage's time when it was asked
    intents: frozenset[Intent] = frozenset()
    live: Needs = frozenset()
    decided: Names = NONE
    gone: Names = NONE
    entries: frozenset[Entry] = frozenset()
    packs: Names = NONE  # in the first half: what goes; in the second: what stays, then what dies
    moves: Needs = frozenset()
    wrong: Names = NONE  # of these, blocks that are not what they are said to be, which nobody knows
    segments: frozenset[str] = frozenset()
    left: Names = NONE  # to be aborted, or deleted
    roster: int = 0


class Looking:
    """Steps 1 to 3. `runs`: how many collections it makes. `clock`: marks are made meanwhile, so that time matters.

    `late`: each deletion is asked for, whether or not somebody else was faster. `young`: of what is dead, any part
    may be too young to go. `joins`: packs that are all alive may be emptied too. `slot`: whose key signs its records.
    """

    def __init__(
        self,
        name: str,
        rules: Rules,
        *,
        runs: int = 1,
        clock: bool = False,
        late: bool = False,
        young: bool = False,
        joins: bool = False,
        slot: str = OWNER,
        start: At | None = None,
    ) -> None:
        self.name = name
        self.start = start or At("roster")
        self._rules = rules
        self._runs = runs
        self._clock = clock
        self._late = late
        self._young = young
        self._joins = joins
        self._slot = slot

    def moves(self, at: At, view: View) -> Iterator[Move]:
        yield from getattr(self, f"_{at.pc}")(at, view)

    def _over(self, at: At, why: str, view: View) -> Iterator[Move]:
        """Another was faster: begin anew, as the next attempt."""
        if at.run < self._runs:
            yield Move(f"{why}: begins anew", At("roster", at.run + (not self._rules.reuses_names)), view.store)
        else:
            yield Move(f"{why}: gives up", At(END), view.store)

    def _stops(self, kinds: set[str], view: View) -> bool:
        return bool(view.torn & kinds) and self._rules.unreadable == "stop"

    def _newer(self, at: At, records: Iterable[Citing], view: View) -> Iterator[Move]:
        """A citation of a roster that this one does not know: list them again, and if that does not help, stop."""
        if self._rules.newer == "list" and any(item.cites > at.roster for item in records):
            if self._slot in view.revoked():
                yield self._hears(view)
            elif view.newest_roster() > at.roster:
                yield Move(
                    "sees a newer roster cited, lists roster/ again",
                    at._replace(roster=view.newest_roster()),
                    view.store,
                )
            else:
                yield Move("sees a newer roster cited than there is: stops", At(END), view.store)

    def _hears(self, view: View) -> Move:
        return Move("lists roster/: is revoked, and writes nothing more", At(END), view.store)

    def _heard(self, intents: Iterable[Intent], at: At) -> frozenset[Intent]:
        """Those that count; the shortcut passes over what cites a roster that it does not know."""
        return frozenset(item for item in intents if self._rules.newer == "list" or item.cites <= at.roster)

    # ------------------------------------------------------------ step 1

    def _roster(self, at: At, view: View) -> Iterator[Move]:
        if self._slot in view.revoked():
            yield self._hears(view)
        elif view.rosters:
            yield Move("lists roster/", at._replace(pc="time", roster=view.newest_roster()), view.store)
        else:
            yield from self._time(at, view)

    def _time(self, at: At, view: View) -> Iterator[Move]:
        if self._clock and self._rules.clock == "storage":
            counting = view.counting
            label = f"asks the storage for the time: {names(counting)} count as forgotten"
            yield Move(label, at._replace(pc="collections", ripe=counting), view.store)
        else:
            yield from self._collections(at, view)

    def _collections(self, at: At, view: View) -> Iterator[Move]:
        if self._stops({"condemn", "execute"}, view):
            return
        if view.rosters and (newer := list(self._newer(at, view.begun, view))):
            yield from newer
            return
        unfinished = self._unfinished(at, view)
        if unfinished and self._rules.waits:
            yield from self._resume(at, unfinished, view)
        else:
            now = at._replace(
                pc="intents" if self._rules.look == "intents-first" else "fates", number=view.highest + 1
            )
            yield Move(f"reads collections/: will be collection {now.number}", now, view.store)

    def _unfinished(self, at: At, view: View) -> int:
        """The number of a collection that comes first; 0: none."""
        rules = self._rules
        if rules.early_done == "void" and rules.revoked_collections != "absent":
            return view.unfinished
        over = view.done if rules.early_done == "counts" else view.done & set(view.executes)
        absent = view.revoked(at.roster) if rules.revoked_collections == "absent" else NONE
        return min((n for n, item in view.condemns.items() if n not in over and item.slot not in absent), default=0)

    def _resume(self, at: At, number: int, view: View) -> Iterator[Move]:
        raise NotImplementedError

    def _intents(self, at: At, view: View) -> Iterator[Move]:
        if self._stops({"intent"}, view):
            return
        if newer := list(self._newer(at, view.intents, view)):
            yield from newer
            return
        then = "fates" if self._rules.look == "intents-first" else "index"
        yield Move("lists intents/", at._replace(pc=then, intents=self._heard(view.intents, at)), view.store)
        if self._rules.stale:
            yield Move("lists intents/ of some time ago", at._replace(pc=then), view.store)

    def _fates(self, at: At, view: View) -> Iterator[Move]:
        if newer := list(self._newer(at, view.fates.values(), view)):
            yield from newer
            return
        then = "index" if self._rules.look == "intents-first" else "intents"
        known = {txn for txn, item in view.fates.items() if self._decides(item, at.roster, view)}
        now = at._replace(pc="marks" if self._clock else then, decided=frozenset(known))
        if self._clock:  # what is gone is not known yet
            now = now._replace(live=self._alive(view, at.roster, view.deleted_by(at.roster), by_name=True))
        else:
            gone = self._gone(at, view, view.counting)
            now = now._replace(live=self._alive(view, at.roster, gone), gone=gone)
        yield Move("reads fates", now, view.store)

    def _decides(self, fate: Fate, roster: int, view: View) -> bool:
        if self._rules.revoked_fates == "void":
            return True
        return view.fate_counts(fate, roster)

    def _gone(self, at: At, view: View, ripe: Iterable[str]) -> Names:
        rules = self._rules
        return view.gone(ripe, late_words=rules.late_words, heeds_holds=rules.heeds_holds, roster=at.roster)

    def _alive(self, view: View, roster: int, gone: Names, *, by_name: bool = False) -> Needs:
        """Blocks that snapshots rely on; `by_name`: with the snapshot instead of the domain, for `_marks`."""
        found = set()
        for txn, item in view.snapshots(roster).items():
            if txn not in gone:
                found |= {(block, f"{item.domain} {txn}" if by_name else item.domain) for block in item.blocks}
        return frozenset(found)

    def _marks(self, at: At, view: View) -> Iterator[Move]:
        """Marks come after fates, and what was carried out last."""
        rules = self._rules
        ripe = {mark.txn for mark in view.marks} if rules.clock in ("own", "late") else at.ripe
        gone = self._gone(at, view, ripe)
        if rules.clock == "late":
            yield Move("reads marks", at._replace(pc="time_late", gone=gone), view.store)
        else:
            yield self._judged(at, gone, "reads marks", view)

    def _time_late(self, at: At, view: View) -> Iterator[Move]:
        gone = frozenset(txn for txn in at.gone if txn in view.counting) | view.deleted_by(at.roster)
        yield self._judged(at, gone, "asks the storage for the time", view)

    def _judged(self, at: At, gone: Names, why: str, view: View) -> Move:
        live = frozenset((block, where.split()[0]) for block, where in at.live if where.split()[1] not in gone)
        then = "index" if self._rules.look == "intents-first" else "intents"
        return Move(f"{why}: {names(gone)} gone", at._replace(pc=then, live=live, gone=gone, ripe=NONE), view.store)

    def _index(self, at: At, view: View) -> Iterator[Move]:
        if newer := list(self._newer(at, view.segments.values(), view)):
            yield from newer
        elif self._rules.paged:
            found = frozenset(item for item in view.segments.values() if item.name != "I0")
            now = at._replace(
                pc="index2", segments=frozenset(item.name for item in found), entries=self._read(found, at, view)
            )
            yield Move("lists index/, first part", now, view.store)
        else:
            yield self._loaded(at, self._read(view.segments.values(), at, view), view)

    def _index2(self, at: At, view: View) -> Iterator[Move]:
        if any(name not in view.segments for name in at.segments):
            yield Move(
                "a listed segment is gone: lists index/ again",
                at._replace(pc="index", segments=frozenset()),
                view.store,
            )
        else:
            older = [item for item in view.segments.values() if item.name == "I0"]
            yield self._loaded(at, at.entries | self._read(older, at, view), view)

    def _loaded(self, at: At, entries: frozenset[Entry], view: View) -> Move:
        early = frozenset(view.segments) if self._rules.replaces == "early" else frozenset[str]()
        return Move("reads index/", at._replace(pc="packs", entries=entries, segments=early), view.store)

    def _read(self, segments: Iterable[Segment], at: At, view: View) -> frozenset[Entry]:
        """What counts of segments, with what this roster says of those of revoked slots."""
        if self._rules.revoked_packs == "never":
            segments = [item for item in segments if item.slot not in view.revoked(at.roster)]
        return entries_of(segments, foreign=self._rules.foreign_entries)

    # ------------------------------------------------------------ the plan

    def _packs(self, at: At, view: View) -> Iterator[Move]:
        """List packs, and choose what goes and what moves. Whichever place of a block is chosen has to be right."""
        if any(item.txn not in at.decided and item not in view.store for item in at.intents):
            yield from self._over(at, "an intent is gone", view)
            return
        where = self._where(at.entries, view)
        taken = view.condemned(view.unfinished, finished=False) if view.unfinished else NONE
        undecided = frozenset(item.txn for item in at.intents) - at.decided
        may_be_dead = self._rules.aborts and not self._rules.dead_pin
        for dead in subsets(undecided) if may_be_dead else [NONE]:  # which may be so at any time
            pinned = {pack for item in at.intents if item.txn in undecided - dead for pack in item.packs}
            yield from self._choose(at, view, where, pinned, taken)

    def _where(self, entries: frozenset[Entry], view: View) -> dict[tuple[str, str], set[str]]:
        """By block and domain: packs that are listed. What no segment names counts if it was read, and comes last."""
        rules = self._rules
        found: dict[tuple[str, str], set[str]] = {}
        for entry in entries:
            if entry.pack in view.packs:
                found.setdefault((entry.block, entry.domain), set()).add(entry.pack)
                if rules.foreign_instances:
                    for domain in "ab":
                        found.setdefault((entry.block, domain), set()).add(entry.pack)
        indexed = set(found)
        named = {entry.pack for entry in entries}
        for pack in view.packs.values():
            if pack.name not in named:
                for block in pack.says if rules.believes_directories else pack.says & pack.holds:
                    if (block, pack.domain) not in indexed or rules.believes_directories:
                        found.setdefault((block, pack.domain), set()).add(pack.name)
        return found

    def _choose(
        self, at: At, view: View, where: dict[tuple[str, str], set[str]], pinned: set[str], taken: Names
    ) -> Iterator[Move]:
        live, shunned = sorted(at.live), self._shunned(view)
        places = [self._places(where.get(need, set()) - taken, at, view) for need in live]
        if not all(places):
            yield Move("a living block is nowhere: stops", At(END), view.store)
            return
        for chosen in sorted(set(product(*places)), key=str):
            used: dict[str, set[tuple[str, str]]] = {}
            for need, packs in zip(live, chosen, strict=True):
                for pack in packs:
                    used.setdefault(pack, set()).add(need)
            free = {pack for pack in view.packs if pack not in pinned and pack not in taken}
            dead = frozenset(free - set(used))
            left = (free & view.burnt) if self._rules.deletes_left == "all" else dead & view.let_go(at.roster)
            unsure = {pack for packs in chosen if len(packs) > 1 for pack in packs} | shunned
            movable = sorted(p for p in free & set(used) if self._rules.moves_doubtful or p not in unsure)
            sparse = [p for p in movable if len(used[p]) < len(view.packs[p].says)]
            for going in subsets(dead - left) if self._young else [dead - left]:
                for emptied in [sparse, []] + [movable] * self._joins if used else [[]]:
                    moves = frozenset(need for pack in emptied for need in used[pack])
                    yield self._planned(at, going | frozenset(emptied), moves, left, view)

    def _shunned(self, view: View) -> Names:
        """The shortcut that takes a collection for done before it is decided heeds only what was decided."""
        return view.burnt if self._rules.early_done == "counts" else view.shunned()

    def _places(self, packs: set[str], at: At, view: View) -> list[tuple[str, ...]]:
        """What may be counted on for a block, which is one pack or, where there is a doubt about each, all of them.

        A device that was stolen may say that its new pack holds what is in old ones: such a place is the last. One
        that was ever condemned may have been so for damage that its bytes do not show, so it comes after others.
        """
        rules, shunned, revoked = self._rules, self._shunned(view), view.revoked(at.roster)
        sound = {pack for pack in packs if not view.packs[pack].late and view.packs[pack].slot not in revoked}
        trusted = (sound if rules.prefers_sound else packs) - (shunned if rules.shunned_last else NONE)
        if rules.keeps_doubtful and len(packs) > 1 and not trusted:
            return [tuple(sorted(packs))]
        if rules.shunned_last and not rules.sound_first:
            packs = packs - shunned or packs
        if rules.prefers_sound:
            packs = packs & sound or packs
        if rules.shunned_last:
            packs = packs - shunned or packs
        return [(pack,) for pack in sorted(packs)]

    def _planned(self, at: At, packs: Names, moves: Needs, left: Names | set[str], view: View) -> Move:
        if not packs and not left:
            return Move("finds nothing that may go", self._ended(at), view.store)
        listed = frozenset(item.txn for item in at.intents) & at.decided
        wrong = frozenset(block for pack in packs for block in view.packs[pack].says - view.packs[pack].holds)
        now = At(
            "move" if moves else "condemn", at.run, at.number, decided=listed, gone=at.gone, packs=packs, moves=moves,
            wrong=wrong & {block for block, _ in moves},
            segments=at.segments, entries=at.entries if self._rules.replaces == "early" else frozenset(),
            roster=at.roster,
        )  # fmt: skip
        if not moves and self._rules.replaces == "early":
            now = now._replace(pc="publish")
        elif left:
            now = now._replace(pc="ask_clear" if self._rules.asks_before_left else "clear", left=frozenset(left))
        return Move(
            f"lists packs/: {names(packs)} to go" + f", {names(b for b, _ in moves)} to move" * bool(moves),
            now,
            view.store,
        )

    def _ended(self, at: At) -> At:
        return At("roster", at.run + 1) if at.run + 1 < self._runs else At(END)

    # ------------------------------------------------------------ steps 2 and 3

    def _moved(self, at: At, domain: str) -> str:
        return f"m{self.name}{at.run}{domain if domain != 'a' else ''}"

    def _move(self, at: At, view: View) -> Iterator[Move]:
        new = []
        for domain in {domain for _, domain in at.moves}:
            blocks = frozenset(block for block, own in at.moves if own == domain)
            keys = sorted(p.key for p in view.packs.values() if p.name in at.packs and p.holds & blocks)
            name, key = self._moved(at, domain), keys[0] if keys else ""
            new.append(Pack(name, blocks - at.wrong, blocks, domain, self._slot, key))
        yield Move(f"puts pack {names(pack.name for pack in new)}", at._replace(pc="publish"), view.put(*new))

    def _publish(self, at: At, view: View) -> Iterator[Move]:
        entries = frozenset(Entry(block, self._moved(at, domain), domain) for block, domain in at.moves)
        if self._rules.replaces == "early":  # the shortcut: what stays is decided before anybody could pin
            entries |= frozenset(e for e in at.entries if e.pack in view.packs and e.pack not in at.packs)
        then = at._replace(pc="condemn", moves=frozenset(), wrong=NONE, entries=frozenset())
        if not self._rules.indexes_moved:
            yield Move("publishes no segment", then, view.store)
            return
        segment = Segment(f"I{self._moved(at, '')}", entries, self._slot, cites=at.roster)
        yield Move(f"publishes segment {segment.name}", then, view.put(segment))

    def _condemn(self, at: At, view: View) -> Iterator[Move]:
        number = view.highest + 1 if self._rules.number == "free" else at.number
        if (number in view.condemns or number in view.done) and self._rules.exclusive:
            yield from self._over(at, f"collections/{number}/condemn exists", view)
            return
        gone = at.gone - view.deleted_by(at.roster) if self._rules.lists_gone else NONE
        if self._rules.lists_absent:
            gone |= {item.txn for fate in view.fates.values() for item in fate.carried if item.gone} - set(
                view.snapshots()
            )
        record = Condemn(number, at.packs, at.decided, gone, self._slot, at.roster)
        old = [view.condemns[number]] if number in view.condemns else []
        now = At("intents2", at.run, number, segments=at.segments, roster=at.roster)
        label = f"creates collections/{number}/condemn = {names(at.packs)}, knows {names(at.decided)}"
        yield Move(label, now, view.delete(*old) | {record})
        if self._rules.torn_records == "condemn":
            yield Move(
                f"creates collections/{number}/condemn, which is torn",
                now,
                view.put(Torn("condemn", str(number), record)),
            )
