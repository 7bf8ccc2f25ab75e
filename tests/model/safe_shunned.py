"""Cases: packs that a collection condemned, and that are there all the same."""

from __future__ import annotations

from tests.model import others
from tests.model.actors import Actor
from tests.model.cases import DEAD, FORGOTTEN, case, commit, names, pack, segment
from tests.model.deleting import Collector
from tests.model.rules import Rules
from tests.model.store import Condemn, Done, Execute, Intent, Lost, Roster, Store
from tests.model.writer import Writer

Built = tuple[Store, tuple[Actor, ...]]


def survived(name: str) -> Store:
    """Collection 1 condemned this pack and let it stay."""
    return frozenset(
        {Condemn(1, names(name), frozenset(), frozenset()), Execute(1, frozenset(), frozenset()), Done(1)}
    )


@case("V1", "a repair has condemned a pack with a wrong block, which an old snapshot needs; a writer of that block")
def v1(rules: Rules) -> Built:
    store: Store = frozenset(
        {pack("X", "c", says="c d"), pack("M", "c"), segment("I0", "c X", "d X"), segment("IM", "c M")}
        | {commit("S0", "d"), Lost("S0", "d"), commit("S1", "c")}
        | {Condemn(1, names("X"), names("S0 S1"), frozenset())}
    )
    return store, (Writer("T", "d", rules), Collector("C", rules, runs=3))


@case("V2", "such a pack, and a whole one with that block that is condemned and survives; a writer", quiet="")
def v2(rules: Rules) -> Built:
    store: Store = frozenset(
        {pack("W", "", says="d"), pack("P", "d"), segment("I0", "d W"), segment("IP", "d P")}
        | {commit("S0", "d"), *FORGOTTEN, Intent("V", 0, names("W"))}
    )
    return store | survived("W"), (Writer("U", "d", rules, tries=0), Collector("C", rules, runs=3))


@case("V3", "such a pack, and what a collector took for a place of that block is not there", commits=False, quiet="")
def v3(rules: Rules) -> Built:
    store: Store = frozenset(
        {pack("W", "", says="c"), pack("X", "c"), pack("L", "z"), segment("I0", "c W", "c X"), segment("I1", "c Y")}
        | {commit("S1", "c"), Condemn(2, names("X"), names("S1"), frozenset())}
    )
    return store | survived("W"), (Collector("C", rules, runs=2), Collector("D", rules))


@case("V4", "a pack that survived, and a stolen device says that its new one holds the same", commits=False, quiet="")
def v4(rules: Rules) -> Built:
    store: Store = frozenset(
        {pack("X", "c"), segment("I0", "c X"), commit("S1", "c"), pack("Z", "z")}
        | {pack("Q", "", says="c e", slot="x", late=True), segment("I1", "c Q a", "e Q a", slot="x", domain="a")}
    )
    return store | survived("X"), (Collector("C", rules, runs=2), Collector("D", rules))


@case("V5", "a deletion does not last: storage lists the pack again, and later not; a writer, a collector twice")
def v5(rules: Rules) -> Built:
    return DEAD, (Writer("T", "d", rules), Collector("C", rules, runs=2), others.listed_again(pack("X", "d")))


def mended(slot: str, *, first: str = "owner") -> Store:
    """X has another block than d under d's name. Who mended that has put d into G; `first`: who has stored X."""
    return frozenset(
        {pack("X", "c", says="c d", slot=first), pack("G", "d", slot=slot), pack("Z", "z")}
        | {segment("I0", "c X", "d X"), segment("IG", "d G", slot=slot), commit("S0", "d"), commit("S1", "c")}
        | {Roster(0, names("m")), Roster(1, names("m"), names("m"))}
    )


@case("V6", "a wrong block in a pack that survived; who has stored it anew is revoked since", commits=False)
def v6(rules: Rules) -> Built:
    return mended("m") | survived("X"), (Collector("C", rules, runs=2),)


@case("V7", "such a block, stored anew by somebody else, and a thief that condemns all", commits=False)
def v7(rules: Rules) -> Built:
    return mended("owner") | survived("X"), (others.Thief("m"), Collector("C", rules, runs=2))


@case("V8", "a wrong block that nobody has condemned; who has stored it first, and anew, is revoked", commits=False)
def v8(rules: Rules) -> Built:
    return mended("m", first="m"), (Collector("C", rules, runs=2),)
