"""Cases: a maintainer that is revoked while it collects, and what who has its key writes into collections/ then."""

from __future__ import annotations

from tests.model import others
from tests.model.actors import Actor
from tests.model.cases import DEAD, FORGOTTEN, HALF_DEAD, TWICE, case, names, pack
from tests.model.copier import Copier
from tests.model.deleting import Collector
from tests.model.readers import Holder, Reader
from tests.model.rules import Rules
from tests.model.safe_replicas import COPIED, SOURCE
from tests.model.store import Ripe, Roster, Store
from tests.model.writer import Writer

Built = tuple[Store, tuple[Actor, ...]]

ENROLLED: Store = frozenset({Roster(0, names("m"))})
REVOKED = ENROLLED | {Roster(1, names("m"), names("m"))}


# ---------------------------------------------------------------- revoked in the middle


@case(
    "K1",
    "a maintainer is revoked while it collects, and sleeps; a writer, another collector",
    nightly=True,
    everywhere=True,
)
def k1(rules: Rules) -> Built:
    return DEAD | ENROLLED, (
        others.revoke("m"),
        Collector("M", rules, slot="m", late=True),
        Writer("T", "d", rules, tries=0),
        Collector("C", rules),
    )


@case("K2", "the same, a pack half of which is dead", nightly=True)
def k2(rules: Rules) -> Built:
    return HALF_DEAD | ENROLLED, (
        others.revoke("m"),
        Collector("M", rules, slot="m", late=True),
        Writer("T", "d", rules, tries=0),
        Collector("C", rules),
    )


@case(
    "K3",
    "the same, two copies of a block, two others, who hear of it or not",
    nightly=True,
    commits=False,
    asks_again=False,
)
def k3(rules: Rules) -> Built:
    return TWICE | ENROLLED, (
        others.revoke("m"),
        Collector("M", rules, slot="m"),
        Collector("C", rules),
        Collector("D", rules),
    )


@case("K4", "a restore while a maintainer is revoked that collects; another collector", commits=False)
def k4(rules: Rules) -> Built:
    return HALF_DEAD | ENROLLED, (
        others.revoke("m"),
        Collector("M", rules, slot="m"),
        Reader("R", "S1", rules),
        Collector("C", rules),
    )


@case("K5", "forget, its delay, an undo at any time; a maintainer is revoked that collects; another", commits=False)
def k5(rules: Rules) -> Built:
    return (HALF_DEAD - set(FORGOTTEN)) | ENROLLED, (
        others.revoke("m"),
        others.forget("S0"),
        others.clock("S0"),
        others.say("undo", "S0", rules),
        Collector("M", rules, slot="m", clock=True),
        Collector("C", rules, clock=True),
    )


@case("K6", "a longer delay is set at any time; a maintainer is revoked that collects; another", commits=False)
def k6(rules: Rules) -> Built:
    return HALF_DEAD | ENROLLED, (
        others.revoke("m"),
        others.slower_policy(rules),
        Collector("M", rules, slot="m", clock=True),
        Collector("C", rules, clock=True),
    )


@case("K7", "an owner is revoked while it collects and backs up, which is accepted or not; another collector")
def k7(rules: Rules) -> Built:
    return DEAD | ENROLLED, (
        others.revoke("m"),
        Collector("M", rules, slot="m"),
        Writer("T", "d", rules, tries=0, slot="m"),
        Collector("C", rules),
    )


# ---------------------------------------------------------------- thieves


@case("K8", "a thief of a revoked maintainer, a writer, a collector that knows of it")
def k8(rules: Rules) -> Built:
    return HALF_DEAD | REVOKED, (others.Thief("m"), Writer("T", "d", rules, tries=0), Collector("C", rules))


@case("K9", "the same, the collector hears of it or not")
def k9(rules: Rules) -> Built:
    return DEAD | ENROLLED, (
        others.revoke("m"),
        others.Thief("m"),
        Writer("T", "d", rules, tries=0),
        Collector("C", rules),
    )


@case("K10", "the same, a pack half of which is dead, all begin anew", nightly=True)
def k10(rules: Rules) -> Built:
    return HALF_DEAD | ENROLLED, (
        others.revoke("m"),
        others.Thief("m"),
        Writer("T", "d", rules),
        Collector("C", rules, runs=2),
    )


@case("K11", "such a thief, two collectors that know of it", nightly=True, commits=False)
def k11(rules: Rules) -> Built:
    return HALF_DEAD | REVOKED, (others.Thief("m"), Collector("C", rules), Collector("D", rules))


@case("K12", "such a thief, two collectors that hear of it or not", nightly=True, commits=False)
def k12(rules: Rules) -> Built:
    return TWICE | ENROLLED, (
        others.revoke("m"),
        others.Thief("m"),
        Collector("C", rules),
        Collector("D", rules),
    )


@case("K13", "a thief beside the revoked maintainer that sleeps, another collector", commits=False, nightly=True)
def k13(rules: Rules) -> Built:
    return HALF_DEAD | ENROLLED, (
        others.revoke("m"),
        others.Thief("m"),
        Collector("M", rules, slot="m", late=True),
        Collector("C", rules),
    )


@case("K14", "a restore under a hold, a forget, a thief, a collector", commits=False)
def k14(rules: Rules) -> Built:
    return HALF_DEAD | REVOKED | {Ripe("S1")}, (
        others.Thief("m"),
        Holder("H", "S1", rules),
        others.forget("S1"),
        Collector("C", rules),
    )


@case("K15", "a copy into a replica, a thief there, a collector", **COPIED)
def k15(rules: Rules) -> Built:
    return SOURCE | REVOKED | {pack("Z", "z")}, (others.Thief("m"), Copier("X", rules), Collector("C", rules))


@case("K16", "a thief cites the roster in which his slot was revoked: whoever needs the record stops", quiet="")
def k16(rules: Rules) -> Built:
    return DEAD | ENROLLED, (
        others.revoke("m"),
        others.Thief("m", "condemn execute", cites=1),
        Writer("T", "d", rules, tries=0),
        Collector("C", rules),
    )
