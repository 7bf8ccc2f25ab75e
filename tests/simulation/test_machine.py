"""Whatever devices, collectors, clocks, crashes and faults do, in any order: what was committed restores.

Hypothesis chooses what is done; the library's real code runs on a simulated storage. How often and how long is said
by the profile: see docs/testing.md. What a rule draws never depends on what came of the rules before it, so that the
same choices are the same test each time.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from hypothesis import seed
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, get_state_machine_test, rule

import pharmabackup as pb
from pharmabackup.testing.faults import Faults, Planned
from pharmabackup.testing.scheduler import Crash, Outcome
from tests.simulation import damage
from tests.simulation.profile import machine_settings, plain_draws, profile
from tests.simulation.reached import missing, reached, steps
from tests.simulation.world import Verb, World

DEVICES = st.sampled_from(["0", "1", "2"])
SMALL = st.integers(0, 15)
PART = st.integers(0, 99)  # per cent of the calls that it would make
HOW = st.sampled_from(["flipped", "cut", "removed"])
FOLDER = st.sampled_from(["packs", "index"])
CHOICES = st.one_of(st.integers(0, 1 << 16), st.lists(st.integers(0, 2), max_size=60))
FORTNIGHT = timedelta(days=14, hours=1)
DAY = timedelta(hours=25)  # a transaction that sleeps so long is taken for dead

VERBS = (
    "backup", "prune", "forget", "copy", "prune replica", "repair", "hold", "release", "recall", "restore",
    "restore from replica", "check", "rotate", "reseal", "a day passes", "a fortnight passes",
)  # fmt: skip
VERB = st.sampled_from(VERBS)
MOSTLY = st.sampled_from(VERBS[:2] * 5 + VERBS)  # that work is what others have to be beside
TO_REPLICA = ("copy", "prune replica", "restore from replica", "repair")
HURTS: dict[str, tuple[str, ...]] = {  # the calls that a fault can come to
    "before": ("",), "after": ("publish", "delete"), "again": ("publish",), "torn": ("publish",),
    "lost": ("publish",), "twice": ("publish", "delete"), "late": ("publish", "delete"),
}  # fmt: skip
FAULT = st.tuples(st.sampled_from(sorted(HURTS)), PART)

BUSY = {"proposal-stale", "already-running"}  # others were faster, or what was proposed is not true any more
RACES = {verb: BUSY for verb in ("prune", "prune replica", "repair", "rotate")} | {
    "forget": {"proposal-stale"},
    "reseal": BUSY | {"reseal"},  # somebody needs a pack just now
}
FAILURES = {"unreachable", "full", "lost-write"}


def verb_of(world: World, name: str, number: int = 0) -> Verb:
    """What one client does beside others."""
    acts = {
        "backup": world.back_up,
        "prune": world.prune,
        "forget": world.forget(1 + number % 2),
        "copy": world.copy,
        "prune replica": world.prune_replica,
        "repair": world.repair,
        "hold": world.hold(number),
        "release": world.release(number),
        "recall": world.recall(number),
        "restore": world.restore(number),
        "restore from replica": world.restore_from_replica,
        "check": world.check,
        "rotate": world.rotate,
        "reseal": world.reseal,
        "a day passes": world.sleep(DAY),
        "a fortnight passes": world.sleep(DAY, FORTNIGHT),
    }
    return Verb(name, acts[name])


def crash_of(world: World, verb: str, part: int, sent: bool) -> Crash:
    """`part`: per cent of the calls that this verb made when it last came to its end."""
    return Crash(part * world.calls.get(verb, 30) // 100, sent)


def may_end_so(name: str, outcome: Outcome, kinds: set[str]) -> bool:
    error = outcome.error
    return error is None or outcome.crashed or (isinstance(error, pb.Error) and error.kind in kinds)


class Site(RuleBasedStateMachine):
    """It begins with five snapshots: of one the time is over, two others are said to be forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(prefix="pharmabackup-simulation-")
        self.world = world = World(Path(self._folder.name))
        for device, contents in [("0", [0, 1]), ("0", [2, 3]), ("1", [1, 5])]:
            self._day(device, contents)
        world.forget(1)(world.repo("0"), "0")
        world.clock.advance(timedelta(days=8))
        for device, contents in [("0", [2, 4]), ("1", [6])]:
            self._day(device, contents)
        world.forget(1)(world.repo("0"), "0")
        world.clock.advance(timedelta(days=7))
        world.write("0", 2, 0)  # what is dead is found again
        world.write("1", 2, 1)

    def _day(self, device: str, contents: Sequence[int]) -> None:
        for name, number in enumerate(contents):
            self.world.write(device, name, number, alone=not name)
        self.world.back_up(self.world.repo(device), device)

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.world.quiet("0")
                steps["quiet"] += 1
        finally:
            self.world.close()
            self._folder.cleanup()

    # ------------------------------------------------------------ every day

    @rule(device=DEVICES, name=SMALL, number=st.one_of(st.none(), SMALL))
    def write(self, device: str, name: int, number: int | None) -> None:
        self.world.write(device, name, number, alone=name >= 8)

    @rule(device=DEVICES, name=VERB, number=SMALL)
    def alone(self, device: str, name: str, number: int) -> None:
        """In a program that stays open."""
        steps[name] += 1
        verb_of(self.world, name, number).act(self.world.repo(device), device)

    @rule(device=DEVICES, keep=st.integers(1, 2), number=SMALL)
    def forget_and_let_go(self, device: str, keep: int, number: int) -> None:
        steps["forget and let go"] += 1
        world = self.world
        world.write(device, number, number)
        world.back_up(world.repo(device), device)
        world.forget(keep)(world.repo(device), device)
        world.time_goes_by(FORTNIGHT)
        world.prune(world.repo(device), device)

    @rule(device=DEVICES, which=SMALL)
    def change_ones_mind(self, device: str, which: int) -> None:
        """Hold and release, forget and recall."""
        steps["change one's mind"] += 1
        world = self.world
        repo = world.repo(device)
        world.forget(1 + which % 2)(repo, device)
        world.hold(which)(repo, device)
        world.recall(which + 1)(repo, device)
        world.release(which)(repo, device)

    @rule(hours=st.sampled_from([1, 25, 14 * 24 + 1]), device=st.one_of(st.none(), DEVICES))
    def time_goes_by(self, hours: int, device: str | None) -> None:
        """And somebody deletes what a device remembers."""
        self.world.time_goes_by(timedelta(hours=hours))
        if device is not None:
            steps["lose memory"] += 1
            self.world.lose_memory(device)

    # ------------------------------------------------------------ others, deaths, faults

    @rule(device=DEVICES, name=VERB, number=SMALL, part=PART, sent=st.booleans())
    def crash(self, device: str, name: str, number: int, part: int, sent: bool) -> None:
        world = self.world
        crash = crash_of(world, name, part, sent)
        outcome = world.together({device: verb_of(world, name, number)}, [], crashes={device: crash})[device]
        steps["crash"] += outcome.crashed
        assert outcome.crashed or outcome.error is None, repr(outcome.error)
        world.learn()

    @rule(names=st.lists(MOSTLY, min_size=2, max_size=3), number=SMALL, choices=CHOICES)
    def together(self, names: list[str], number: int, choices: Any) -> None:
        steps["together"] += 1
        self.side_by_side(names, number, choices)

    @rule(
        names=st.lists(MOSTLY, min_size=2, max_size=3), number=SMALL, choices=CHOICES, part=PART, sent=st.booleans()
    )
    def one_dies_beside_others(self, names: list[str], number: int, choices: Any, part: int, sent: bool) -> None:
        outcomes = self.side_by_side(names, number, choices, crash_of(self.world, names[0], part, sent))
        steps["crash beside others"] += outcomes[0].crashed

    def side_by_side(self, names: list[str], number: int, choices: Any, crash: Crash | None = None) -> list[Outcome]:
        """The first may be killed. For every other number something may be let go, and devices want it again."""
        world = self.world
        if number % 2:
            world.forget(1)(world.repo("2"), "2")
            world.time_goes_by(FORTNIGHT)
            for device in "01":
                world.write(device, number, number + int(device))
        verbs = {str(device): verb_of(world, name, number + device) for device, name in enumerate(names)}
        outcomes = world.together(verbs, choices, crashes={} if crash is None else {"0": crash})
        for device, outcome in outcomes.items():
            name = verbs[device].name
            assert may_end_so(name, outcome, RACES.get(name, set())), f"{name}: {outcome.error!r}"
        world.learn()
        return list(outcomes.values())

    @rule(
        device=DEVICES, name=VERB, number=SMALL, faults=st.lists(FAULT, min_size=1, max_size=2), replica=st.booleans()
    )
    def faults(self, device: str, name: str, number: int, faults: list[tuple[str, int]], replica: bool) -> None:
        """Each at a call that this verb makes, if it makes such calls."""
        world = self.world
        replica = replica and name in TO_REPLICA
        kinds = world.kinds.get((name, (world.replica if replica else world.storage).location), Counter())
        planned = []
        for fault, part in faults:
            calls = [(call, nth) for call in HURTS[fault] for nth in range(kinds[call] if call else kinds.total())]
            call, nth = calls[part * len(calls) // 100] if calls else (HURTS[fault][0], part % 4)
            planned.append(Planned(call=call, fault=fault, nth=nth))  # type: ignore[arg-type]
        self.fails_or_not(device, name, number, Faults(planned=tuple(planned), arrives=30), replica=replica)

    @rule(device=DEVICES, name=VERB, number=SMALL, room=st.integers(0, 12_000), replica=st.booleans())
    def full(self, device: str, name: str, number: int, room: int, replica: bool) -> None:
        replica = replica and name in TO_REPLICA
        used = (self.world.replica if replica else self.world.storage).used
        self.fails_or_not(device, name, number, Faults(capacity=used + room), replica=replica)

    def fails_or_not(self, device: str, name: str, number: int, faults: Faults, *, replica: bool) -> None:
        world = self.world
        storage = world.replica if replica else world.storage
        before = storage.suffered.copy()
        with world.faulty(faults, replica=replica):
            outcome = world.together({device: verb_of(world, name, number)}, [])[device]
        suffered = storage.suffered - before
        steps["fault"] += bool(suffered)
        kinds = set(FAILURES) if suffered else set()
        if suffered["torn"]:  # whoever reads it next finds it damaged
            kinds |= {outcome.error.kind} if isinstance(outcome.error, pb.Damaged | pb.Incomplete) else set()
        if suffered["lost"]:  # as if a collection had deleted it
            kinds.add("object")
        if suffered["lost"] > 1:  # in both tries of exclusive creation: as who cannot do it
            kinds.add("capability")
        assert may_end_so(name, outcome, kinds), f"{name}: {outcome.error!r}"
        damage.clear_torn(world, device)
        world.learn()

    # ------------------------------------------------------------ damage

    @rule(device=DEVICES, folder=FOLDER, which=SMALL, how=HOW, at=st.integers(0, 5000))
    def repair(self, device: str, folder: str, which: int, how: str, at: int) -> None:
        name = damage.spoil_what_the_replica_has(self.world, device, folder, which, how, at)
        if name is not None:
            steps["mend"] += 1
            damage.mend(self.world, device, name)

    @rule(device=DEVICES, kind=SMALL, which=SMALL, how=HOW, at=st.integers(0, 5000), bit=st.integers(0, 7))
    def damage(self, device: str, kind: int, which: int, how: str, at: int, bit: int) -> None:
        """Check names what is damaged, and nothing else; what is healed is healed."""
        steps["damage"] += 1
        damage.is_found(self.world, device, kind, which, how, at, bit)


def test_the_site_keeps_its_promises() -> None:
    before = steps + reached
    with plain_draws():
        for number in profile.machines():
            machine = get_state_machine_test(Site, settings=machine_settings())  # type: ignore[no-untyped-call]
            try:
                seed(number)(machine)()
            except BaseException as error:
                error.add_note(
                    f"Again with PHARMABACKUP_SEED={number}, PHARMABACKUP_PROFILE and PYTHONHASHSEED as here."
                )
                raise
            steps["machine"] += 1
    assert not missing(profile.least, before)
