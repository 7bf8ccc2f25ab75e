"""A collection: docs/format.md, §21. The second half: what survives, what is decided to die, and deleting it."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.actors import END, Move, names, subsets
from tests.model.collector import At, Looking
from tests.model.store import NONE, Condemn, Done, Entry, Execute, Fate, Names, Segment, View


class Collector(Looking):
    """Carries a collection to its end, whoever has begun it."""

    def _resume(self, at: At, number: int, view: View) -> Iterator[Move]:
        now = At("delete" if number in view.executes else "intents2", at.run, number, roster=at.roster)
        if number in view.executes:
            now = now._replace(left=self._names(view.executes[number]))
        label = f"reads collections/: goes on with collection {number}"
        yield Move(label, self._asking(now, view), view.store)

    def _asking(self, at: At, view: View) -> At:
        """Where slots may be revoked: it lists roster/ after it has read what it goes on with."""
        asks = bool(view.rosters) and self._rules.revoked_collections == "ended"
        return at._replace(pc=f"ask_{at.pc}") if asks else at

    def _ask_intents2(self, at: At, view: View) -> Iterator[Move]:
        yield self._asked_who(at._replace(pc="intents2"), [self._record(at, view).slot], view)

    def _ask_delete(self, at: At, view: View) -> Iterator[Move]:
        signers = [self._record(at, view).slot, view.executes[at.number].slot]
        yield self._asked_who(at._replace(pc="delete"), signers, view)

    def _ask_begun(self, at: At, view: View) -> Iterator[Move]:
        """The shortcut: whose the execute is that came first does not matter."""
        yield self._asked_who(at._replace(pc="delete"), [self._record(at, view).slot], view)

    def _asked_who(self, at: At, signers: list[str], view: View) -> Move:
        """What a revoked slot has begun, or come to execute, ends without a deletion."""
        newest = at.roster if self._rules.asks_who == "known" else view.newest_roster()
        now = at._replace(roster=newest)
        if self._slot in view.revoked(newest):
            return self._hears(view)
        if not view.revoked(newest).intersection(signers):
            return Move("lists roster/: whose records they are may", now, view.store)
        if at.pc == "delete":
            now = now._replace(pc="done", left=NONE)
        else:
            now = now._replace(pc="index3", packs=self._record(at, view).packs)
        return Move("lists roster/: a revoked slot's collection is to end", now, view.store)

    def _record(self, at: At, view: View) -> Condemn:
        """What the collection condemned; the shortcuts go on where the record is torn, or deleted."""
        found = view.condemns.get(at.number) or view.remembered.get(at.number)
        return found or Condemn(at.number, NONE, NONE, NONE)

    # ------------------------------------------------------------ step 4

    def _intents2(self, at: At, view: View) -> Iterator[Move]:
        if self._stops({"intent"}, view):
            return
        listed = self._record(at, view).listed
        intents = frozenset(item for item in view.intents if item.txn not in listed)
        if not self._rules.second_look:
            intents = frozenset()
        if newer := list(self._newer(at, intents, view)):
            yield from newer
            return
        intents = self._heard(intents, at)
        yield Move("lists intents/ again", at._replace(pc="fates2", intents=intents), view.store)
        if self._rules.stale:
            yield Move("lists intents/ again, as it was", at._replace(pc="fates2"), view.store)

    def _fates2(self, at: At, view: View) -> Iterator[Move]:
        """What is committed stays; what is not decided stays unless it is aborted now, which may be at any time."""
        if newer := list(self._newer(at, view.fates.values(), view)):
            yield from newer
            return
        rules = self._rules
        undecided = set()
        stays: set[str] = set()
        for item in at.intents:
            fate = view.fates.get(item.txn)
            if fate is None or (rules.revoked_fates == "absent" and not view.fate_counts(fate, at.roster)):
                undecided.add(item.txn)
            elif not fate.aborted and view.fate_counts(fate, at.roster) and rules.known == "listed":
                stays |= item.packs
        for dead in subsets(frozenset(undecided)) if rules.aborts else [NONE]:
            pinned = {p for item in at.intents if item.txn in undecided - dead for p in item.packs}
            now = at._replace(packs=frozenset(stays | pinned), left=dead, pc="abort" if dead else "needed")
            if not dead or not rules.abort_decides:
                now = now._replace(intents=frozenset(), left=NONE, pc="needed")
            label = f"reads fates again: {names(now.packs)} stay"
            yield self._asked(now, label + f", takes {names(dead)} for dead" * bool(dead), view)

    def _asked(self, at: At, label: str, view: View) -> Move:
        """Go on at step 5; without asking what is needed, its first reading is not made."""
        if at.pc == "needed" and not self._rules.asks_again:
            at = at._replace(pc="index3")
        elif at.pc == "needed" and view.rosters and self._rules.asks_who != "not step 5":
            at = at._replace(pc="roster3")
        return Move(label, at, view.store)

    def _abort(self, at: At, view: View) -> Iterator[Move]:
        txn = min(at.left)
        left = at.left - {txn}
        now = at._replace(left=left, pc="abort" if left else "needed", intents=at.intents if left else frozenset())
        old = view.fates.get(txn)
        if old is not None and self._rules.exclusive:
            packs = {pack for item in at.intents if item.txn == txn for pack in item.packs}
            stays = at.packs if old.aborted else at.packs | packs
            yield self._asked(now._replace(packs=stays), f"finds snapshots/{txn} decided", view)
        else:
            move = self._asked(now, f"creates snapshots/{txn}: abort", view)
            fate = Fate(txn, slot=self._slot, cites=at.roster)
            store = view.put(fate) if old is None else view.delete(old) | {fate}
            yield move._replace(store=store)

    # ------------------------------------------------------------ step 5

    def _roster3(self, at: At, view: View) -> Iterator[Move]:
        """By an older one, what a thief said to be gone would be."""
        if self._slot in view.revoked():
            yield self._hears(view)
        else:
            yield Move("lists roster/", at._replace(pc="needed", roster=view.newest_roster()), view.store)

    def _needed(self, at: At, view: View) -> Iterator[Move]:
        gone = self._record(at, view).gone | view.deleted_by(at.roster)
        if not self._rules.lists_gone:
            gone = view.gone(view.counting)
        live = self._alive(view, at.roster, gone)
        yield Move("reads fates and marks", at._replace(pc="index3", live=live), view.store)

    def _index3(self, at: At, view: View) -> Iterator[Move]:
        if self._rules.replaces == "early":
            yield from self._packs3(at._replace(segments=at.segments), view)
        elif self._rules.compacts == "packs-first":
            yield Move("lists packs/", at._replace(pc="index_late", left=frozenset(view.packs)), view.store)
        else:
            found = frozenset(view.segments)
            now = at._replace(pc="packs3", segments=found, entries=self._stated(at, view))
            yield Move("reads index/", now, view.store)

    def _index_late(self, at: At, view: View) -> Iterator[Move]:
        now = at._replace(segments=frozenset(view.segments), entries=self._stated(at, view), left=NONE)
        yield self._decide(now, at.left, view)

    def _stated(self, at: At, view: View) -> frozenset[Entry]:
        """What segments say and counts: who states it again vouches for it."""
        segments = view.segments.values()
        if self._rules.restates_all:
            return frozenset(entry for item in segments for entry in item.entries)
        return self._read(segments, at, view)

    def _packs3(self, at: At, view: View) -> Iterator[Move]:
        yield self._decide(at, frozenset(view.packs), view)

    def _decide(self, at: At, listed: Names, view: View) -> Move:
        """What dies, and which segments go for it."""
        rules = self._rules
        dead = self._record(at, view).packs - at.packs
        if rules.asks_again:
            where, shunned = self._where(at.entries, view), view.shunned(at.number)
            for need in at.live:
                places = where.get(need, set()) & listed
                others = places - dead
                if not rules.shunned_replaces and not places <= shunned:
                    others -= shunned
                if not others:
                    dead -= places
        now = At("execute", at.run, at.number, packs=dead, roster=at.roster)
        if rules.replaces == "early":
            return Move(f"lets {names(dead)} go", now._replace(segments=at.segments), view.store)
        there = listed - dead
        going = frozenset(
            name for name in at.segments
            if name in view.segments and any(entry.pack not in there for entry in view.segments[name].entries)
        )  # fmt: skip
        staying = frozenset(
            entry
            for name in going
            for entry in view.segments[name].entries
            if entry.pack in there and entry in at.entries
        )
        now = now._replace(segments=going, pc="replace" if staying else "execute", entries=staying)
        return Move(f"lists packs/: lets {names(dead)} go", now, view.store)

    def _replace(self, at: At, view: View) -> Iterator[Move]:
        segment = Segment(f"r{self.name}{at.run}n{at.number}", at.entries, self._slot, cites=at.roster)
        now = at._replace(pc="execute", entries=frozenset())
        yield Move(f"publishes segment {segment.name}", now, view.put(segment))

    def _execute(self, at: At, view: View) -> Iterator[Move]:
        rules = self._rules
        record = Execute(at.number, at.packs, at.segments, self._slot, at.roster)
        old = view.executes.get(at.number)
        if not rules.executes:
            now = At("delete", at.run, at.number, packs=at.packs, segments=at.segments, left=self._names(record))
            yield Move(f"lets {names(at.packs)} go", now, view.store)
        elif old is not None and rules.exclusive:
            if self._stops({"execute"}, view):
                return
            mine = record if rules.deletes == "own" else old
            now = At("delete", at.run, at.number, left=self._names(mine), roster=at.roster)
            then = now if rules.deletes == "own" else self._asking(now, view)
            if rules.asks_who == "not the winner" and then.pc == "ask_delete":
                then = then._replace(pc="ask_begun")
            yield Move(f"finds collections/{at.number}/execute", then, view.store)
        else:
            now = At("delete", at.run, at.number, left=self._names(record), roster=at.roster)
            label = f"creates collections/{at.number}/execute = {names(at.packs)}, segments {names(at.segments)}"
            store = (view.delete(old) if old else view.store) | {record}
            yield Move(label, self._asking(now, view), store)

    # ------------------------------------------------------------ step 6

    def _names(self, record: Execute) -> Names:
        return record.packs | record.segments

    def _delete(self, at: At, view: View) -> Iterator[Move]:
        """In any order, since storage may carry out one request with many names in any."""
        left = at.left if self._late else frozenset(n for n in at.left if n in view.packs or n in view.segments)
        if not left:
            yield from self._tidy(at, view)
        for name in sorted(left):
            now = at._replace(left=left - {name})
            if name in view.locked:
                if self._rules.done_despite_refusal:
                    yield Move(f"asks to delete {name}: refused, goes on", now, view.store)
                else:
                    yield Move(
                        f"asks to delete {name}: refused, leaves the collection unfinished", At(END), view.store
                    )
                continue
            item = view.packs.get(name) or view.segments.get(name)
            yield Move(f"deletes {name}", now, view.delete(item) if item else view.store)

    def _ask_clear(self, at: At, view: View) -> Iterator[Move]:
        """What it is to delete was judged by the roster that it knew: a thief's word may have counted."""
        if self._slot in view.revoked():
            yield self._hears(view)
        elif view.newest_roster() != at.roster:
            yield Move("lists roster/: begins anew", At("roster", at.run), view.store)
        else:
            yield Move("lists roster/ again", at._replace(pc="clear"), view.store)

    def _clear(self, at: At, view: View) -> Iterator[Move]:
        """In any order. What is locked still is left to the next."""
        for name in sorted(at.left):
            now = at._replace(left=at.left - {name})
            if not now.left:
                now = now._replace(pc="move" if at.moves else "condemn") if at.packs else self._ended(at)
            if name in view.locked:
                yield Move(f"asks again to delete {name}: refused", now, view.store)
            else:
                found = [view.packs[name]] if name in view.packs else []
                yield Move(f"deletes {name}, which was left", now, view.delete(*found))

    def _tidy(self, at: At, view: View) -> Iterator[Move]:
        """Delete the intents of the transactions that condemn lists, then say that it is done."""
        listed = self._record(at, view).listed
        intents = sorted((item for item in view.intents if item.txn in listed), key=str)
        if intents:
            now = at._replace(pc="delete", left=NONE)
            yield Move(f"deletes intents/{intents[0].txn}.{intents[0].number}", now, view.delete(intents[0]))
            return
        dropped: list[object] = []
        if "fates" in self._rules.drops:
            dropped += [
                f for f in view.fates.values() if f.txn in listed and (f.aborted or f.txn in view.gone(view.counting))
            ]
        if "marks" in self._rules.drops:
            dropped += [mark for mark in view.marks if mark.txn in view.gone(view.counting)]
        if "collections" in self._rules.drops:
            dropped += [r for records in (view.condemns, view.executes) for n, r in records.items() if n < at.number]
            dropped += [Done(n) for n in view.done if n < at.number]
        if dropped:
            yield Move("deletes records", at, view.delete(*dropped))
        else:
            yield from self._done(at, view)

    def _done(self, at: At, view: View) -> Iterator[Move]:
        if at.number in view.done:
            yield Move(f"finds collections/{at.number}/done", self._ended(at), view.store)
        else:
            yield Move(f"creates collections/{at.number}/done", self._ended(at), view.put(Done(at.number)))
