"""How a case is written down, and what storage holds when most begin. `safe_*.py` and `mutants.py` have the cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.model.actors import Actor
from tests.model.copier import Copier
from tests.model.deleting import Collector
from tests.model.explore import Case
from tests.model.rules import THE_PROTOCOL, Rules
from tests.model.store import Entry, Fate, Intent, Mark, Pack, Ripe, Segment, Snapshot, Store, View

Build = Callable[[Rules], tuple[Store, tuple[Actor, ...]]]


@dataclass(frozen=True)
class Setting:
    """A case but for its rules: `build` makes the store and the actors that keep to these rules."""

    code: str
    title: str
    build: Build
    rules: Rules
    deletes: bool
    commits: bool
    quiet: str  # who comes afterwards: "collector", "copier", "" nobody
    everywhere: bool
    nightly: bool
    index_matters: bool
    arrives: Callable[[View], str] | None


SETTINGS: dict[str, Setting] = {}


def case(
    code: str,
    title: str,
    *,
    deletes: bool = True,
    commits: bool = True,
    quiet: str = "collector",
    everywhere: bool = False,
    nightly: bool = False,
    index_matters: bool = True,
    arrives: Callable[[View], str] | None = None,
    **rules: object,
) -> Callable[[Build], Build]:
    """Enter a case. `rules`: what is different in it, such as what its storage is like."""

    def enter(build: Build) -> Build:
        changed = replace(THE_PROTOCOL, **rules)  # type: ignore[arg-type]
        assert code not in SETTINGS
        SETTINGS[code] = Setting(
            code, title, build, changed, deletes, commits, quiet, everywhere, nightly, index_matters, arrives
        )
        return build

    return enter


def make(code: str) -> Case:
    """A case under the protocol's rules."""
    return make_mutant(code, code, SETTINGS[code].title, "", {})


def make_mutant(of: str, code: str, title: str, expects: str, changes: dict[str, object]) -> Case:
    """A case under rules of which some are changed."""
    setting = SETTINGS[of]
    rules = replace(setting.rules, **changes)  # type: ignore[arg-type]
    store, actors = setting.build(rules)
    if setting.quiet == "copier":
        after: tuple[Callable[[], Actor], ...] = (
            lambda: Copier("Z", rules, tries=3),
            lambda: Collector("Q", rules, runs=4),
        )
    else:
        after = (lambda: Collector("Q", rules, runs=4),) if setting.quiet else ()
    return Case(
        code=code,
        title=title,
        rules=rules,
        store=store,
        actors=actors,
        expects=expects,
        deletes=setting.deletes,
        commits=setting.commits,
        nightly=setting.nightly,
        afterwards=after,
        everywhere=setting.everywhere,
        arrives=setting.arrives,
        index_matters=setting.index_matters and expects in ("", "INDEX"),
    )


# ---------------------------------------------------------------- what storage holds


def names(text: str) -> frozenset[str]:
    """'c d' as a set."""
    return frozenset(text.split())


def pack(
    name: str, blocks: str, *, says: str | None = None, domain: str = "a", slot: str = "owner", late: bool = False
) -> Pack:
    return Pack(name, names(blocks), names(blocks if says is None else says), domain, slot, "S0", late)


def segment(name: str, *places: str, slot: str = "owner", domain: str = "") -> Segment:
    """Places such as 'c X b': block c is in pack X, whose directory has the domain b; without one, a."""
    split = [(*place.split(), "a")[:3] for place in places]
    return Segment(name, frozenset(Entry(*item) for item in split), slot, domain)


def commit(txn: str, blocks: str, *, domain: str = "a", slot: str = "owner", cites: int = 0) -> Fate:
    return Fate(txn, Snapshot(names(blocks), domain), slot=slot, cites=cites)


FORGOTTEN = (Mark("forget", "S0"), Ripe("S0"))  # S0, and its delay has passed

# c is needed for ever, d is not
HALF_DEAD: Store = frozenset(
    {pack("X", "c d"), segment("I0", "c X", "d X"), commit("S0", "c d"), commit("S1", "c"), *FORGOTTEN}
)
# nothing is needed
DEAD: Store = frozenset(
    {pack("X", "d"), segment("I0", "d X"), Intent("S0", 0, names("X")), commit("S0", "d"), *FORGOTTEN}
)
# c lies in two packs
TWICE: Store = frozenset({pack("P", "c"), pack("Q", "c"), segment("I0", "c P", "c Q"), commit("S1", "c")})
