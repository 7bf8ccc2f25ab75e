"""Cases: readers, marks and time, domains, rosters, locks."""

from __future__ import annotations

from typing import Any

from tests.model import others
from tests.model.actors import Actor
from tests.model.cases import DEAD, FORGOTTEN, HALF_DEAD, case, commit, names, pack, segment
from tests.model.deleting import Collector
from tests.model.readers import Check, Holder, Reader
from tests.model.rules import Rules
from tests.model.store import Intent, Locked, Mark, Ripe, Roster, Store
from tests.model.writer import Writer

Built = tuple[Store, tuple[Actor, ...]]


# ---------------------------------------------------------------- readers


@case("R1", "a restore, listings in parts, a collector twice", paged=True, commits=False)
def r1(rules: Rules) -> Built:
    return HALF_DEAD, (Reader("R", "S1", rules), Collector("C", rules, runs=2))


@case("R2", "a restore, listings in parts, two collectors", paged=True, commits=False)
def r2(rules: Rules) -> Built:
    return HALF_DEAD, (Reader("R", "S1", rules), Collector("C", rules), Collector("D", rules))


@case("R3", "a check beside a writer and a collector, listings in parts", paged=True, asks_again=False)
def r3(rules: Rules) -> Built:
    return HALF_DEAD, (Check("K", "T0", rules), Writer("T", "dn", rules, tries=0), Collector("C", rules))


@case("R4", "a check of what a collector moves, twice", commits=False)
def r4(rules: Rules) -> Built:
    return HALF_DEAD, (Check("K", "S1", rules), Collector("C", rules, runs=2))


@case("R5", "a restore under a hold, a forget, a collector twice", commits=False)
def r5(rules: Rules) -> Built:
    return HALF_DEAD | {Ripe("S1")}, (Holder("H", "S1", rules), others.forget("S1"), Collector("C", rules, runs=2))


@case(
    "R6",
    "a restore under a hold, a forget, two collectors, listings in parts",
    nightly=True,
    paged=True,
    commits=False,
)
def r6(rules: Rules) -> Built:
    return HALF_DEAD | {Ripe("S1")}, (
        Holder("H", "S1", rules),
        others.forget("S1"),
        Collector("C", rules),
        Collector("D", rules),
    )


# ---------------------------------------------------------------- marks and time


@case("M1", "forget, its delay, an undo at any time; a collector twice", commits=False)
def m1(rules: Rules) -> Built:
    store = HALF_DEAD - set(FORGOTTEN)
    return store, (
        others.forget("S0"),
        others.clock("S0"),
        others.say("undo", "S0", rules),
        Collector("C", rules, runs=2, clock=True),
    )


@case("M2", "forget, its delay, a hold at any time; a writer, a collector")
def m2(rules: Rules) -> Built:
    store = HALF_DEAD - set(FORGOTTEN)
    return store, (
        others.forget("S0"),
        others.clock("S0"),
        others.say("hold", "S0", rules),
        Writer("T", "d", rules, tries=0),
        Collector("C", rules, clock=True),
    )


@case("M3", "a longer delay is set at any time; a collector twice, two of them", commits=False, policy="newest")
def m3(rules: Rules) -> Built:
    return HALF_DEAD, (
        others.slower_policy(rules),
        Collector("C", rules, runs=2, clock=True),
        Collector("D", rules, clock=True),
    )


@case("M4", "a restore while its snapshot is forgotten and called back", commits=False)
def m4(rules: Rules) -> Built:
    store = (HALF_DEAD - set(FORGOTTEN)) | {Mark("forget", "S0")}
    return store, (
        Reader("R", "S0", rules),
        others.clock("S0"),
        others.say("undo", "S0", rules),
        Collector("C", rules, clock=True),
    )


@case("M5", "a longer delay is set at any time, and a hold is said at any time; a collector", commits=False)
def m5(rules: Rules) -> Built:
    return HALF_DEAD, (
        others.slower_policy(rules),
        others.say("hold", "S0", rules),
        Collector("C", rules, clock=True),
    )


@case("M6", "forget, its delay, an undo at any time; a writer, a collector twice")
def m6(rules: Rules) -> Built:
    store = HALF_DEAD - set(FORGOTTEN)
    return store, (
        others.forget("S0"),
        others.clock("S0"),
        others.say("undo", "S0", rules),
        Writer("T", "d", rules),
        Collector("C", rules, runs=2, clock=True),
    )


# ---------------------------------------------------------------- domains: device x writes in b


STOLEN: dict[str, Any] = {"slot": "x", "domain": "b"}


@case("D1", "a device of b says that its pack holds a's block", commits=False)
def d1(rules: Rules) -> Built:
    store: Store = frozenset(
        {pack("X", "c"), segment("I0", "c X"), commit("S1", "c"), pack("Z", "z")}
        | {pack("Q", "", says="c", **STOLEN), segment("I1", "c Q b", **STOLEN)}
    )
    return store, (Collector("C", rules, runs=2), Collector("D", rules))


@case("D2", "a device of b publishes a directory of a for a pack of its own; a writer of a", quiet="")
def d2(rules: Rules) -> Built:
    store: Store = frozenset(
        {pack("X", "c"), segment("I0", "c X"), commit("S1", "c"), pack("Z", "z", **STOLEN), pack("D", "d")}
        | {pack("Q", "q", **STOLEN), segment("I1", "q Q b", "c Q a", "e Q a", "z Z b", **STOLEN)}
        | {commit("S2", "q", **STOLEN)}
    )
    return store, (Collector("C", rules, runs=2), Writer("T", "e", rules, tries=0))


@case("D3", "a pack that no segment names has a true directory and other blocks", commits=False)
def d3(rules: Rules) -> Built:
    store: Store = frozenset(
        {pack("X", "c"), segment("I0", "c X"), commit("S1", "c"), pack("Q", "", says="c"), pack("Z", "z")}
    )
    return store, (Collector("C", rules, runs=2), Collector("D", rules))


@case("D4", "two domains with one block, a writer in each, a collector", asks_again=False)
def d4(rules: Rules) -> Built:
    store: Store = frozenset(
        {pack("X", "c d"), segment("I0", "c X", "d X", slot="w", domain="a"), commit("S0", "d"), commit("S1", "c")}
        | {pack("Y", "c d", **STOLEN), segment("I1", "c Y b", "d Y b", **STOLEN), commit("S2", "c", **STOLEN)}
        | set(FORGOTTEN)
    )
    return store, (
        Writer("T", "d", rules, tries=0, slot="w"),
        Writer("U", "c", rules, tries=0, slot="x", domain="b"),
        Collector("C", rules),
    )


@case("D5", "a stolen device says that its new pack holds what its own domain's old one does", commits=False)
def d5(rules: Rules) -> Built:
    store: Store = frozenset(
        {pack("X", "c"), segment("I0", "c X"), commit("S1", "c"), pack("Z", "z")}
        | {pack("Q", "", says="c", slot="x", late=True), segment("I1", "c Q a", slot="x", domain="a")}
    )
    return store, (Collector("C", rules, runs=2), Collector("D", rules))


# ---------------------------------------------------------------- rosters


@case("O1", "a device is enrolled and backs up, while a collector still knows the roster before", asks_again=False)
def o1(rules: Rules) -> Built:
    return DEAD | {Roster(0, names("x"))}, (
        others.enrol("y"),
        Writer("T", "d", rules, slot="y"),
        Collector("C", rules, runs=2),
    )


@case(
    "O2",
    "a device is revoked while it backs up, another relies on its packs; a collector",
    nightly=True,
    asks_again=False,
)
def o2(rules: Rules) -> Built:
    return DEAD | {Roster(0, names("x y"))}, (
        others.revoke("x"),
        Writer("T", "n", rules, tries=0, slot="x"),
        Writer("U", "n", rules, tries=0, slot="y"),
        Collector("C", rules),
    )


def revoked() -> Store:
    """x is revoked. S1, which counts, and S2, another device's, rely on its pack."""
    return frozenset(
        {pack("X", "c d", slot="x"), segment("I0", "c X", "d X", slot="x", domain="a"), pack("Z", "z")}
        | {
            commit("S1", "c", slot="x"),
            commit("S2", "d", slot="y"),
            commit("S9", "z", slot="x"),
            Intent("S9", 0, names("Z"), "x"),
        }
        | {Roster(0, names("x y")), Roster(1, names("x y"), names("x"), names("S1"))}
    )


@case(
    "O3",
    "what a revoked device stored before is read, and stays; a later record of it does not count",
    everywhere=True,
)
def o3(rules: Rules) -> Built:
    return revoked(), (Reader("R", "S2", rules), Writer("T", "e", rules, slot="y"), Collector("C", rules))


@case("O4", "a revoked device has said that its pack holds what it does not; a writer of its domain")
def o4(rules: Rules) -> Built:
    store = revoked() | {pack("Q", "", says="e", slot="x"), segment("I1", "e Q", slot="x", domain="a")}
    return store, (Writer("T", "e", rules, slot="y"), Collector("C", rules))


@case(
    "O5",
    "storage was turned back: a snapshot cites a roster that is not there",
    deletes=False,
    commits=False,
    quiet="",
)
def o5(rules: Rules) -> Built:
    store: Store = frozenset(
        {pack("X", "c", slot="x"), segment("I0", "c X", slot="x", domain="a"), pack("Z", "z"), Roster(0, names("x"))}
        | {commit("S1", "c", slot="x", cites=1)}
    )
    return store, (Collector("C", rules),)


# ---------------------------------------------------------------- locks


@case("L1", "a lock on a pack that is dead, and ends at any time; a writer, a collector, deletions that come late")
def l1(rules: Rules) -> Built:
    store: Store = frozenset({pack("X", "d"), segment("I0", "d X"), pack("Z", "z"), Locked("X")})
    return store, (others.unlock("X"), Writer("T", "d", rules), Collector("C", rules, runs=2, late=True))


@case("L2", "a lock is put on what is just being deleted, two collectors", nightly=True, quiet="", asks_again=False)
def l2(rules: Rules) -> Built:
    return DEAD, (
        others.lock("X"),
        Writer("T", "d", rules, tries=0),
        Collector("C", rules, runs=2, late=True),
        Collector("D", rules, late=True),
    )


@case("L3", "a lock that does not end on one dead pack, and another dead one", commits=False, everywhere=True)
def l3(rules: Rules) -> Built:
    store: Store = frozenset({pack("X", "d"), segment("I0", "d X"), pack("Z", "z"), Locked("X")})
    late = others.late_segment(pack("Ln", "n"), segment("ILn", "n Ln"))
    return store, (Collector("C", rules, late=True), late)


@case("L4", "a lock is put on and ends, a writer, two collectors", asks_again=False)
def l4(rules: Rules) -> Built:
    return DEAD, (
        others.lock("X"),
        Writer("T", "d", rules, tries=0),
        Collector("C", rules, late=True),
        Collector("D", rules, late=True),
    )
