"""Cases: copies into a replica. Packs, fates and collections are the replica's, if not said otherwise."""

from __future__ import annotations

from typing import Any

from tests.model import others
from tests.model.actors import Actor
from tests.model.cases import case, commit, names, pack, segment
from tests.model.copier import Copier
from tests.model.deleting import Collector
from tests.model.readers import Reader
from tests.model.rules import Rules
from tests.model.store import (
    Carried,
    Condemn,
    Done,
    Execute,
    Fate,
    Mark,
    Ripe,
    Snapshot,
    Source,
    SourcePack,
    Store,
    View,
)
from tests.model.writer import Writer

Built = tuple[Store, tuple[Actor, ...]]

# the source has S0, which needs d, in its pack X
SOURCE: Store = frozenset({Source("S0", Snapshot(names("d"), "a")), SourcePack("X", names("d"))})


def arrived(view: View) -> str:
    """After a quiet copy, what the source has is in the replica."""
    forgotten = {mark.txn for mark in view.marks if mark.kind == "forget"}
    there = set(view.snapshots()) - view.deleted
    missing = [item.txn for item in view.sources if not item.gone and item.txn not in there | forgotten]
    return f"{missing} cannot be copied" if missing else ""


COPIED: dict[str, Any] = {"quiet": "copier", "arrives": arrived}


@case("B1", "a copy, and a collector twice, which may take it for dead", everywhere=True, **COPIED)
def b1(rules: Rules) -> Built:
    return SOURCE, (Copier("X", rules), Collector("C", rules, runs=2, late=True))


@case("B2", "the same, and a copy that died has left its pack", **COPIED)
def b2(rules: Rules) -> Built:
    return SOURCE | {pack("X", "d")}, (Copier("X", rules), Collector("C", rules, runs=2, late=True))


@case("B3", "a copy, a collection that has let X go, and its collector that sleeps", everywhere=True, **COPIED)
def b3(rules: Rules) -> Built:
    old = {Condemn(1, names("X"), frozenset(), frozenset()), Execute(1, names("X"), frozenset()), Done(1)}
    return SOURCE | old, (Copier("X", rules), others.delete_again("X", 1), Collector("C", rules))


@case(
    "B4",
    "a copy that sleeps while X goes, its collector that sleeps, a writer of the replica",
    asks_again=False,
    **COPIED,
)
def b4(rules: Rules) -> Built:
    return SOURCE | {pack("X", "d")}, (
        Copier("X", rules, tries=0),
        Collector("C", rules),
        others.delete_again("X", 1),
        Writer("T", "d", rules, tries=0),
    )


@case("B5", "the same, and a block that the replica needs lies in X too", **COPIED)
def b5(rules: Rules) -> Built:
    source = {Source("S0", Snapshot(names("e"), "a")), SourcePack("X", names("d e"))}
    needs = {commit("S1", "d"), pack("W", "d"), segment("I0", "d W"), pack("X", "d e"), segment("I1", "d X", "e X")}
    return frozenset(source | needs), (
        Copier("X", rules, tries=0),
        Collector("C", rules, runs=2),
        others.delete_again("X", 1),
    )


@case("B6", "the source lets a snapshot go while it is copied, another stays", deletes=False, **COPIED)
def b6(rules: Rules) -> Built:
    more = {Source("S1", Snapshot(names("e"), "a")), SourcePack("Y", names("e"))}
    return SOURCE | more, (Copier("X", rules, tries=2), others.source_collection("S0", "X"))


@case("B7", "two copies at once, a collector", asks_again=False, **COPIED)
def b7(rules: Rules) -> Built:
    return SOURCE, (
        Copier("X", rules, tries=0),
        Copier("Y", rules, tries=0),
        Collector("C", rules, late=True),
    )


@case("B8", "what was copied is forgotten in the replica, and copied again", **COPIED)
def b8(rules: Rules) -> Built:
    return SOURCE | {Ripe("S0")}, (
        Copier("X", rules),
        others.forget("S0"),
        Copier("Y", rules, tries=0),
        Collector("C", rules),
    )


@case("B9", "a restore of what is being copied, a collector", **COPIED)
def b9(rules: Rules) -> Built:
    return SOURCE | {pack("Z", "z")}, (Copier("X", rules), Reader("R", "S0", rules), Collector("C", rules))


@case("B10", "a record was brought without its content, which comes later; a collector twice", **COPIED)
def b10(rules: Rules) -> Built:
    before = Fate("W0", None, (Carried("S0", Snapshot(names("d"), "a"), True),))
    return SOURCE | {before, pack("Z", "z")}, (Copier("X", rules), Collector("C", rules, runs=2))


@case("B11", "a copy that sleeps while X goes, its collector that sleeps, another copy", asks_again=False, **COPIED)
def b11(rules: Rules) -> Built:
    return SOURCE | {pack("X", "d")}, (
        Copier("X", rules, tries=0),
        Copier("Y", rules, tries=0),
        Collector("C", rules),
        others.delete_again("X", 1),
    )


@case("N1", "a request to store a pack is delivered once more, a collector that sleeps, a writer")
def n1(rules: Rules) -> Built:
    store: Store = frozenset(
        {pack("X", "d"), segment("I0", "d X"), commit("S0", "d"), Mark("forget", "S0"), Ripe("S0")}
    )
    return store, (
        others.put_again(pack("X", "d")),
        others.delete_again("X", 1),
        Collector("C", rules),
        Writer("T", "d", rules),
    )
