"""Restore, restore under a hold, and check: docs/format.md, §23."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tests.model.actors import END, Move, names
from tests.model.rules import Rules
from tests.model.store import NONE, Entry, Fate, Intent, Names, Segment, View, entries_of

Seen = tuple[Names, int, bool, int]
NOTHING: Seen = (NONE, -1, False, -1)


class At(NamedTuple):
    pc: str
    want: Names = NONE
    domain: str = ""
    entries: frozenset[Entry] = frozenset()  # instances to be tried
    segments: Names = NONE  # that the first part of a listing showed
    looked: Seen = NOTHING  # what collections/ said when it last looked again
    pinned: Names = NONE
    first: int = 0


class Reader:
    """Restores a snapshot. It must never say that something is lost which is not."""

    name: str
    kind = "READER"

    def __init__(self, name: str, txn: str, rules: Rules) -> None:
        self.name = name
        self.start = At("fates")
        self._txn = txn
        self._rules = rules

    def moves(self, at: At, view: View) -> Iterator[Move]:
        yield from getattr(self, f"_{at.pc}")(at, view)

    def _once(self) -> bool:
        return self._rules.reader == "once"

    def _over(self, view: View) -> bool:
        """Whether it is forgotten meanwhile, so that nobody can expect it."""
        return self._txn not in view.snapshots() or self._txn in view.gone(view.counting)

    def _fates(self, at: At, view: View) -> Iterator[Move]:
        if self._over(view):
            yield Move("reads fates: it is not there, or forgotten", At(END), view.store)
        else:
            snapshot = view.snapshots()[self._txn]
            yield Move(
                "reads fates", at._replace(pc="index", want=snapshot.blocks, domain=snapshot.domain), view.store
            )

    def _index(self, at: At, view: View) -> Iterator[Move]:
        if self._rules.paged:
            found = frozenset(item for item in view.segments.values() if item.name != "I0")
            now = at._replace(
                pc="index2", segments=frozenset(i.name for i in found), entries=self._useful(at, found, view)
            )
            yield Move("lists index/, first part", now, view.store)
        else:
            yield self._loaded(at, self._useful(at, view.segments.values(), view), view)

    def _index2(self, at: At, view: View) -> Iterator[Move]:
        if any(name not in view.segments for name in at.segments):
            yield Move(
                "a listed segment is gone: lists index/ again", at._replace(pc="index", segments=NONE), view.store
            )
        else:
            older = [item for item in view.segments.values() if item.name == "I0"]
            yield self._loaded(at, at.entries | self._useful(at, older, view), view)

    def _useful(self, at: At, segments: Iterable[Segment], view: View) -> frozenset[Entry]:
        revoked = view.revoked()
        fate = view.fates.get(self._txn)
        found = list(segments)
        if self._rules.revoked_packs == "never":
            found = [item for item in found if item.slot not in revoked]
        if self._rules.revoked_packs == "own":
            found = [item for item in found if item.slot not in revoked or (fate and fate.slot == item.slot)]
        return frozenset(e for e in entries_of(found) if e.block in at.want and e.domain == at.domain)

    def _loaded(self, at: At, entries: frozenset[Entry], view: View) -> Move:
        return Move("reads index/", at._replace(pc="packs", entries=entries, segments=NONE), view.store)

    def _packs(self, at: At, view: View) -> Iterator[Move]:
        """Packs that no segment names are looked into as well, when something was missing."""
        entries = frozenset(entry for entry in at.entries if entry.pack in view.packs)
        named = {entry.pack for item in view.segments.values() for entry in item.entries}
        if at.looked != NOTHING:
            entries |= frozenset(
                Entry(block, pack.name, pack.domain)
                for pack in view.packs.values()
                if pack.name not in named and pack.domain == at.domain
                for block in pack.says & at.want
            )
        yield Move("lists packs/", at._replace(pc="fetch", entries=entries), view.store)

    def _fetch(self, at: At, view: View) -> Iterator[Move]:
        if not at.want:
            yield Move("has all", At(END), view.store)
            return
        block = min(at.want)
        instances = sorted(entry for entry in at.entries if entry.block == block)
        if not instances:
            yield from self._missing(at, block, view)
        for entry in instances:
            if entry.pack in view.packs and block in view.packs[entry.pack].holds:
                yield Move(f"reads {block} from {entry.pack}", at._replace(want=at.want - {block}), view.store)
            else:
                label = f"does not find {block} in {entry.pack}"
                yield Move(label, at._replace(entries=at.entries - {entry}), view.store)

    def _missing(self, at: At, block: str, view: View) -> Iterator[Move]:
        now: Seen = (
            view.condemned(view.unfinished or 1, finished=False),
            view.unfinished,
            bool(view.unfinished),
            view.highest,
        )
        if self._over(view):
            yield Move(f"does not find {block}: it is forgotten meanwhile, says so", At(END), view.store)
        elif now == at.looked or self._once():
            yield Move(f"says that {block} is lost", At(f"!{self.kind}: {self.name} misses {block}"), view.store)
        else:
            yield Move(f"does not find {block}, reads collections/", at._replace(pc="index", looked=now), view.store)


class Check(Reader):
    """Compares what snapshots need with what is listed; reads no pack."""

    kind = "ALARM"

    def __init__(self, name: str, txn: str, rules: Rules) -> None:
        super().__init__(name, txn, rules)
        if rules.check == "index-first":
            self.start = At("early")

    def _once(self) -> bool:
        return self._rules.check != "again"

    def _early(self, at: At, view: View) -> Iterator[Move]:
        """The shortcut: the index, then fates."""
        yield Move("reads index/", At("late", entries=entries_of(view.segments.values())), view.store)

    def _late(self, at: At, view: View) -> Iterator[Move]:
        if self._over(view):
            yield Move("reads fates: it is not there, or forgotten", At(END), view.store)
        else:
            snapshot = view.snapshots()[self._txn]
            entries = frozenset(e for e in at.entries if e.block in snapshot.blocks and e.domain == snapshot.domain)
            yield Move("reads fates", At("packs", snapshot.blocks, snapshot.domain, entries), view.store)

    def _fetch(self, at: At, view: View) -> Iterator[Move]:
        lost = at.want - {entry.block for entry in at.entries}
        if lost:
            yield from self._missing(at, min(lost), view)
        else:
            yield Move("finds all", At(END), view.store)


class Holder(Reader):
    """Restores under a hold: after its intent and a last look, no forget and no collection may disturb it."""

    kind = "HELD"

    def _packs(self, at: At, view: View) -> Iterator[Move]:
        condemned = view.condemned(view.unfinished, finished=False) if view.unfinished else NONE
        if self._rules.shuns != "none":
            condemned |= view.burnt
        places = {e.block: e.pack for e in sorted(at.entries) if e.pack in view.packs and e.pack not in condemned}
        if set(places) == at.want:
            first = view.unfinished or view.highest + 1
            now = at._replace(
                pc="intent", pinned=frozenset(places.values()), entries=frozenset(), first=at.first or first
            )
            yield Move(f"lists packs/: will hold {names(now.pinned)}", now, view.store)
        else:
            yield Move("lists packs/: not all is there, begins anew", At("fates"), view.store)

    def _index(self, at: At, view: View) -> Iterator[Move]:
        if not at.first:  # F, before the index is read
            yield Move("reads collections/", at._replace(first=view.unfinished or view.highest + 1), view.store)
        else:
            yield from super()._index(at, view)

    def _intent(self, at: At, view: View) -> Iterator[Move]:
        then = at._replace(pc="recheck" if self._rules.hold_rechecks else "held")
        yield Move(f"creates a hold of {names(at.pinned)}", then, view.put(Intent(self.name, 0, at.pinned)))

    def _recheck(self, at: At, view: View) -> Iterator[Move]:
        if at.pinned & view.condemned(at.first):
            yield Move("reads collections/ again: condemned, says so", At(END), view.store)
        else:
            yield Move("reads collections/ again: clear", at._replace(pc="held"), view.store)

    def _held(self, at: At, view: View) -> Iterator[Move]:
        fate = view.fates.get(self.name)
        if fate is not None:
            yield Move("sees that its hold was ended", At(END), view.store)
        elif not at.pinned <= set(view.packs):
            yield Move("misses a pack that it holds", At(f"!HELD: {self.name} misses a pack"), view.store)
        else:
            yield Move("has read all, ends its hold", At(END), view.put(Fate(self.name)))
