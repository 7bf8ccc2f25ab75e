"""Cases: writers and collectors, and what storage may do to them."""

from __future__ import annotations

from tests.model import others
from tests.model.actors import Actor
from tests.model.cases import DEAD, HALF_DEAD, TWICE, case, commit, names, pack, segment
from tests.model.collector import At as CollectorAt
from tests.model.deleting import Collector
from tests.model.readers import Reader
from tests.model.rules import Rules
from tests.model.store import Condemn, Done, Execute, Fate, Intent, Mark, Ripe, Store
from tests.model.writer import At as WriterAt
from tests.model.writer import Writer

Built = tuple[Store, tuple[Actor, ...]]


@case("C1", "a writer that relies on what is dead, a collector twice", everywhere=True)
def c1(rules: Rules) -> Built:
    return DEAD, (Writer("T", "d", rules, tries=2), Collector("C", rules, runs=2))


@case("C2", "the same, a pack half of which is dead, young packs", everywhere=True)
def c2(rules: Rules) -> Built:
    return HALF_DEAD, (Writer("T", "d", rules), Collector("C", rules, young=True))


@case("C3", "a writer, two collectors, moved blocks", asks_again=False)
def c3(rules: Rules) -> Built:
    return HALF_DEAD, (Writer("T", "d", rules, tries=0), Collector("C", rules), Collector("D", rules))


@case("C4", "the same, the writer begins anew, everything is asked again", nightly=True)
def c4(rules: Rules) -> Built:
    return HALF_DEAD, (Writer("T", "d", rules), Collector("C", rules), Collector("D", rules))


@case("C5", "two writers on each other's packs, the same blocks, a collector", asks_again=False)
def c5(rules: Rules) -> Built:
    return DEAD, (Writer("T", "n", rules, tries=0), Writer("U", "n", rules, tries=0), Collector("C", rules))


@case("C6", "the same, each has blocks of its own", asks_again=False)
def c6(rules: Rules) -> Built:
    return DEAD, (
        Writer("T", "n", rules, tries=0, same_blocks=False),
        Writer("U", "n", rules, tries=0, same_blocks=False),
        Collector("C", rules),
    )


@case("C7", "two writers that begin anew, a collector", nightly=True)
def c7(rules: Rules) -> Built:
    return DEAD, (
        Writer("T", "n", rules, same_blocks=False),
        Writer("U", "n", rules, same_blocks=False),
        Collector("C", rules),
    )


@case("C8", "two collectors twice, and two places of one block", commits=False, everywhere=True)
def c8(rules: Rules) -> Built:
    return TWICE, (Collector("C", rules, runs=2), Collector("D", rules, runs=2))


@case("C9", "a writer, a pack whose segment comes late, a collector twice", asks_again=False)
def c9(rules: Rules) -> Built:
    late = others.late_segment(pack("Lz", "z"), segment("ILz", "z Lz"))
    return DEAD, (Writer("T", "d", rules, tries=0), Collector("C", rules, runs=2), late)


@case("C10", "a segment comes late, and a writer wants what it names, a collector twice")
def c10(rules: Rules) -> Built:
    late = others.late_segment(pack("Ln", "n"), segment("ILn", "n Ln"))
    return frozenset({Fate("S0")}), (Writer("T", "n", rules), Collector("C", rules, runs=2), late)


@case("C11", "a writer on the packs of one that is under way, two collectors", nightly=True, asks_again=False)
def c11(rules: Rules) -> Built:
    store = DEAD | {pack("T0n", "n"), segment("IT0n", "n T0n"), Intent("T0", 0, names("T0n"))}
    at = WriterAt("recheck", first=1, written=frozenset({("n", "T0n")}), intents=1)
    return store, (
        Writer("T", "n", rules, tries=0, start=at),
        Writer("U", "n", rules, tries=0),
        Collector("C", rules),
        Collector("D", rules),
    )


def slept() -> Store:
    """Collection 1 condemned X and let it stay, because H pinned it."""
    return HALF_DEAD | {
        Condemn(1, names("X"), names("S0 S1"), names("S0")),
        Execute(1, frozenset(), frozenset()),
        Done(1),
        Intent("H", 0, names("X")),
        pack("Y", "c"),
        segment("IY", "c Y"),
        pack("L", "z"),
    }


@case(
    "C12",
    "a helper of collection 1, which let X stay, wakes before its execute; a writer, two more collections",
    nightly=True,
)
def c12(rules: Rules) -> Built:
    asleep = CollectorAt("execute", number=1, packs=names("X"))
    return slept(), (Writer("U", "d", rules), Collector("C", rules, runs=2), Collector("D", rules, start=asleep))


@case("C13", "a long backup that pins piece by piece, a collector", asks_again=False)
def c13(rules: Rules) -> Built:
    return DEAD, (Writer("T", "mn", rules, piecewise=True), Collector("C", rules, runs=2))


@case("C14", "a put may be torn and say yes; the writer reads back", torn_packs=True)
def c14(rules: Rules) -> Built:
    return DEAD, (Writer("T", "n", rules), Collector("C", rules))


@case("C15", "an intent may be torn: whoever needs it stops", torn_records="intent", quiet="")
def c15(rules: Rules) -> Built:
    return DEAD, (Writer("T", "d", rules), Collector("C", rules))


@case("C16", "a condemn may be torn: whoever needs it stops", torn_records="condemn", quiet="")
def c16(rules: Rules) -> Built:
    return DEAD, (Writer("T", "d", rules), Collector("C", rules))


@case("C17", "the answer to a commit is lost, and it is tried again; forget, a collector twice")
def c17(rules: Rules) -> Built:
    return frozenset({Ripe("T0")}), (
        Writer("T", "n", rules, tries=0, loses_reply=True),
        others.forget("T0"),
        Collector("C", rules, runs=2),
    )


@case("C18", "a forget races a writer that relies on what it frees, a collector")
def c18(rules: Rules) -> Built:
    store = (HALF_DEAD - {Mark("forget", "S0")}) | {Ripe("S1")}
    return store, (
        Writer("T", "d", rules, tries=0),
        others.forget("S0"),
        others.forget("S1"),
        Collector("C", rules),
    )


@case("C19", "what the first look of an unfinished collection took for a place is not there", commits=False)
def c19(rules: Rules) -> Built:
    store = HALF_DEAD | {Condemn(1, names("X"), names("S0 S1"), names("S0")), segment("I1", "c Y"), pack("L", "z")}
    return store, (Collector("C", rules, runs=2), Collector("D", rules))


@case("C20", "a segment was lost: what no segment names is looked into", commits=False, index_matters=False)
def c20(rules: Rules) -> Built:
    return frozenset({pack("X", "c"), pack("Z", "z"), commit("S1", "c")}), (Collector("C", rules, runs=2),)


@case("C21", "no exclusive create: one collector, which aborts nothing", exclusive=False, aborts=False)
def c21(rules: Rules) -> Built:
    second = () if rules.sole else (Collector("D", rules),)
    return HALF_DEAD, (Writer("T", "d", rules), Collector("C", rules), *second)


@case("C22", "a collector that restarts over and over, a writer", asks_again=False, nightly=True)
def c22(rules: Rules) -> Built:
    return HALF_DEAD, (Writer("T", "d", rules, tries=0), Collector("C", rules, runs=2), Collector("D", rules))


@case("C23", "stale listings: two writers, and nobody collects", stale=True, deletes=False, quiet="")
def c23(rules: Rules) -> Built:
    return HALF_DEAD, (Writer("T", "dn", rules), Writer("U", "dn", rules))


@case("C24", "an aborted transaction, a writer, a collector twice")
def c24(rules: Rules) -> Built:
    return frozenset({Fate("S0")}), (Writer("T", "n", rules), Collector("C", rules, runs=2))


@case("C25", "one collector", commits=False)
def c25(rules: Rules) -> Built:
    return DEAD, (Collector("C", rules),)


@case("C26", "packs that are all alive are joined, or not; a writer, a restore", nightly=True, asks_again=False)
def c26(rules: Rules) -> Built:
    store: Store = frozenset(
        {pack("P", "c"), pack("Q", "d"), segment("I0", "c P", "d Q"), commit("S1", "c d"), pack("Z", "z")}
    )
    return store, (Writer("T", "cz", rules), Reader("R", "S1", rules), Collector("C", rules, joins=True))


@case("C27", "packs that are all alive are joined, or not; a writer, two collectors", asks_again=False, nightly=True)
def c27(rules: Rules) -> Built:
    store: Store = frozenset({pack("P", "c"), pack("Q", "d"), segment("I0", "c P", "d Q"), commit("S1", "c d")})
    return store, (
        Writer("T", "c", rules, tries=0),
        Collector("C", rules, joins=True),
        Collector("D", rules, joins=True),
    )
