"""A copy into a replica. It is a writer there, whose fate brings the fates of the source.

(1) Read all of the replica's collections, its index, its packs. (2) Upload what is missing, bit for bit under its
own name; blocks of a pack whose name was ever condemned go into a new pack, unopened. (3)
Write an intent. (4) Read collections again. (5) Create the fate, which carries the source's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.model.actors import END, Move, names
from tests.model.rules import Rules
from tests.model.store import (
    NONE,
    Carried,
    Entry,
    Fate,
    Intent,
    Names,
    Pack,
    Segment,
    Source,
    View,
    entries_of,
)


class At(NamedTuple):
    pc: str
    attempt: int = 0
    brings: frozenset[Source] = frozenset()
    first: int = 0
    bad: Names = NONE  # ever condemned: not to be relied on
    taken: Names = NONE  # the same: no name for a new pack
    entries: frozenset[Entry] = frozenset()
    uploads: Names = NONE  # the source's packs that are to be read
    pinned: Names = NONE
    unindexed: frozenset[Entry] = frozenset()
    done: bool = False  # the shortcut: the fate is there before the intent


class Copier:
    """Brings what the source has. `tries`: how often it begins anew at most."""

    def __init__(self, name: str, rules: Rules, *, tries: int = 1, start: At | None = None) -> None:
        self.name = name
        self.start = start or At("source")
        self._rules = rules
        self._tries = tries

    def moves(self, at: At, view: View) -> Iterator[Move]:
        yield from getattr(self, f"_{at.pc}")(at, view)

    def _txn(self, at: At) -> str:
        if self._rules.carries == "own-name" and at.brings:
            return min(item.txn for item in at.brings)
        return f"{self.name}{at.attempt}"

    def _anew(self, at: At, why: str, view: View) -> Iterator[Move]:
        if at.attempt < self._tries:
            yield Move(f"{why}: begins anew", At("source", at.attempt + 1), view.store)
        else:
            yield Move(f"{why}: gives up and says so", At(END), view.store)

    # ------------------------------------------------------------ step 1

    def _source(self, at: At, view: View) -> Iterator[Move]:
        """The source's fates, without those that the replica has or has let go. Content may come after its record."""
        there = set(view.snapshots()) | view.gone(view.counting)
        absent = {item.txn for fate in view.fates.values() for item in fate.carried}
        brings = frozenset(item for item in view.sources if item.txn not in there | (absent if item.gone else NONE))
        if brings:
            label = f"reads the source's fates: {names(item.txn for item in brings)} to be brought"
            yield Move(label, at._replace(pc="collections", brings=brings), view.store)
        else:
            yield Move("reads the source's fates: has all", At(END), view.store)

    def _collections(self, at: At, view: View) -> Iterator[Move]:
        condemned = view.condemned(view.unfinished, finished=False) if view.unfinished else NONE
        shunned = {"condemned": view.shunned(), "none": NONE}.get(self._rules.shuns, view.burnt)
        taken = condemned | shunned
        bad = condemned if self._rules.shuns == "names" else taken
        first = view.unfinished or view.highest + 1
        label = f"reads collections/: F is {first}, ever condemned {names(taken)}"
        yield Move(label, at._replace(pc="index", first=first, bad=bad, taken=taken), view.store)

    def _index(self, at: At, view: View) -> Iterator[Move]:
        wanted = {block for item in at.brings for block in item.snapshot.blocks}
        entries = frozenset(
            e for e in entries_of(view.segments.values()) if e.block in wanted and e.pack not in at.bad
        )
        yield Move("reads index/", at._replace(pc="packs", entries=entries), view.store)

    def _packs(self, at: At, view: View) -> Iterator[Move]:
        """Rely on what is listed. Of the rest, the source says in which of its packs it lies."""
        there = {(e.block, e.domain): e.pack for e in sorted(at.entries) if e.pack in view.packs}
        pinned, uploads, unindexed = set(), set(), set()
        for item in sorted(at.brings, key=str):
            for block in sorted(item.snapshot.blocks) if not item.gone else []:
                need = (block, item.snapshot.domain)
                if need in there:
                    pinned.add(there[need])
                    continue
                pack = next(
                    (p for p in view.source_packs.values() if block in p.blocks and p.domain == need[1]), None
                )
                if pack is None:
                    yield from self._vanished(at, item, view)
                    return
                if pack.name in view.packs and pack.name not in at.bad:  # uploaded by one that died
                    pinned.add(pack.name)
                    unindexed |= {Entry(b, pack.name, pack.domain) for b in pack.blocks}
                else:
                    uploads.add(pack.name)
        now = At(
            "upload", at.attempt, at.brings, at.first, at.bad, at.taken,
            uploads=frozenset(uploads), pinned=frozenset(pinned), unindexed=frozenset(unindexed),
        )  # fmt: skip
        yield Move(f"lists packs/: relies on {names(pinned)}", self._onward(now), view.store)

    def _vanished(self, at: At, item: Source, view: View) -> Iterator[Move]:
        if self._rules.marks_gone:
            yield from self._anew(at, f"what {item.txn} needs is not in the source any more", view)
        else:  # the shortcut: it is brought as it is
            rest = frozenset(other for other in at.brings if other != item)
            here = Source(item.txn, item.snapshot, gone=True)
            yield Move("passes over what is missing in the source", at._replace(brings=rest | {here}), view.store)

    def _onward(self, at: At) -> At:
        if at.uploads:
            return at._replace(pc="upload")
        if at.unindexed:
            return at._replace(pc="publish")
        return at._replace(pc="intent" if self._rules.copy_order == "intent-first" else "recheck")

    # ------------------------------------------------------------ steps 2 to 5

    def _upload(self, at: At, view: View) -> Iterator[Move]:
        name = min(at.uploads)
        pack = view.source_packs.get(name)
        if pack is None:
            yield from self._anew(at, f"{name} is not in the source any more", view)
            return
        here = name if name not in at.taken else f"{name}{self._txn(at)}"
        entries = at.unindexed | {Entry(block, here, pack.domain) for block in pack.blocks}
        now = at._replace(uploads=at.uploads - {name}, pinned=at.pinned | {here}, unindexed=entries)
        store = view.store if here in view.packs else view.put(Pack(here, pack.blocks, pack.blocks, pack.domain))
        yield Move(f"puts pack {here}", self._onward(now), store)

    def _publish(self, at: At, view: View) -> Iterator[Move]:
        segment = Segment(f"I{self._txn(at)}{at.attempt}", at.unindexed)
        yield Move(
            f"publishes segment {segment.name}", self._onward(at._replace(unindexed=frozenset())), view.put(segment)
        )

    def _intent(self, at: At, view: View) -> Iterator[Move]:
        then = at._replace(pc="recheck" if self._rules.copy_rechecks else "carry")
        if at.done:
            then = At(END)
        label = f"creates intents/{self._txn(at)}.{at.attempt} = {names(at.pinned)}"
        yield Move(label, then, view.put(Intent(self._txn(at), at.attempt, at.pinned)))

    def _recheck(self, at: At, view: View) -> Iterator[Move]:
        hit = at.pinned & view.condemned(at.first)
        if hit:
            yield from self._anew(at, f"reads collections/ again: {names(hit)} condemned", view)
        else:
            yield Move("reads collections/ again: clear", at._replace(pc="carry"), view.store)

    def _carry(self, at: At, view: View) -> Iterator[Move]:
        rules, txn = self._rules, self._txn(at)
        then = At(END) if rules.copy_order == "intent-first" else at._replace(pc="intent", done=True)
        if rules.carries == "carry":
            carried = tuple(
                Carried(item.txn, item.snapshot, item.gone and rules.marks_gone)
                for item in sorted(at.brings, key=lambda item: item.txn)
            )
            if txn in view.fates:
                yield from self._anew(at, f"finds snapshots/{txn} aborted", view)
            else:
                yield Move(
                    f"creates snapshots/{txn}: carries {names(c.txn for c in carried)}",
                    then,
                    view.put(Fate(txn, None, carried)),
                )
            return
        new = [Fate(item.txn, item.snapshot) for item in at.brings if not item.gone and item.txn not in view.fates]
        yield Move(f"creates {names('snapshots/' + f.txn for f in new)}", then, view.put(*new))
