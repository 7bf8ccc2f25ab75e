"""Whatever devices, collectors, clocks, crashes and faults do, in any order: what was committed restores.

Hypothesis chooses what is done; the library's real code runs on a simulated storage. How often and how long is said
by the profile: see docs/testing.md. What a rule draws never depends on what came of the rules before it, so that the
same choices are the same test each time.
"""

from __future__ import annotations

import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from hypothesis import seed
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, get_state_machine_test, rule

import pharmabackup as pb
from pharmabackup.testing.faults import Faults
from pharmabackup.testing.scheduler import Crash
from tests.simulation.profile import machine_settings, profile
from tests.simulation.world import PAGE, Verb, World, steps

DEVICES = st.sampled_from(["0", "1", "2"])
SMALL = st.integers(0, 15)
PART = st.integers(0, 99)  # per cent of the calls that it would make
HOW = st.sampled_from(["flipped", "cut", "removed"])
CHOICES = st.one_of(st.integers(0, 1 << 16), st.lists(st.integers(0, 2), max_size=60))
MANY = ("before", "after", "again", "torn", "lost", "twice", "late")


def verb_of(world: World, number: int) -> Verb:
    """What one client does beside others."""
    verbs = [
        Verb("backup", world.back_up),
        Verb("prune", world.prune),
        Verb("backup", world.back_up),
        Verb("prune", world.prune),
        Verb("restore", world.restore(number)),
        Verb("forget", world.forget(1 + number % 2)),
        Verb("check", world.check),
        Verb("copy", world.copy),
        Verb("prune replica", world.prune_replica),
    ]
    return verbs[number % len(verbs)]


def crash_of(world: World, verb: Verb, part: int, sent: bool) -> Crash:
    """`part`: per cent of the calls that this verb made when it last came to its end."""
    return Crash(part * world.calls.get(verb.name, 30) // 100, sent)


class Site(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(prefix="pharmabackup-simulation-")
        self.world = world = World(Path(self._folder.name))
        for number, device in enumerate("01"):
            world.write(device, number, number)
            world.write(device, number + 1, 5)
            world.back_up(world.repo(device), device)

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                self.world.quiet("0")
        finally:
            self.world.close()
            self._folder.cleanup()

    # ------------------------------------------------------------ every day

    @rule(device=DEVICES, name=SMALL, number=st.one_of(st.none(), SMALL))
    def write(self, device: str, name: int, number: int | None) -> None:
        steps["write"] += 1
        self.world.write(device, name, number, alone=name >= 8)

    @rule(device=DEVICES)
    def back_up(self, device: str) -> None:
        steps["backup"] += 1
        self.world.back_up(self.world.repo(device), device)

    @rule(device=DEVICES, which=SMALL)
    def restore(self, device: str, which: int) -> None:
        steps["restore"] += 1
        self.world.restore(which)(self.world.repo(device), device)

    @rule(device=DEVICES)
    def prune(self, device: str) -> None:
        steps["prune"] += 1
        self.world.prune(self.world.repo(device), device)

    @rule(device=DEVICES, keep=st.integers(1, 3))
    def forget(self, device: str, keep: int) -> None:
        steps["forget"] += 1
        self.world.forget(keep)(self.world.repo(device), device)

    @rule(device=DEVICES, which=SMALL)
    def hold(self, device: str, which: int) -> None:
        steps["hold"] += 1
        self.world.hold(self.world.repo(device), which)

    @rule(device=DEVICES, which=SMALL)
    def release(self, device: str, which: int) -> None:
        steps["release"] += 1
        self.world.release(self.world.repo(device), which)

    @rule(device=DEVICES, which=SMALL)
    def recall(self, device: str, which: int) -> None:
        steps["recall"] += 1
        self.world.recall(self.world.repo(device), which)

    @rule(device=DEVICES)
    def copy(self, device: str) -> None:
        steps["copy"] += 1
        self.world.copy(self.world.repo(device), device)

    @rule(device=DEVICES)
    def restore_from_replica(self, device: str) -> None:
        steps["restore from replica"] += 1
        self.world.all_restore_from_replica(device)

    @rule(device=DEVICES)
    def check(self, device: str) -> None:
        steps["check"] += 1
        self.world.check(self.world.repo(device), device)

    @rule(hours=st.sampled_from([1, 25, 14 * 24 + 1]))
    def time_goes_by(self, hours: int) -> None:
        steps["time goes by"] += 1
        self.world.storage.settle()  # nothing is on its way for hours
        self.world.clock.advance(timedelta(hours=hours))

    @rule(device=DEVICES)
    def lose_memory(self, device: str) -> None:
        steps["lose memory"] += 1
        self.world.lose_memory(device)

    # ------------------------------------------------------------ deaths, faults, others

    @rule(device=DEVICES, number=SMALL, part=PART, sent=st.booleans())
    def crash(self, device: str, number: int, part: int, sent: bool) -> None:
        world, verb = self.world, verb_of(self.world, number)
        steps[f"crash of {verb.name}"] += 1
        outcome = world.together({device: verb}, [], crashes={device: crash_of(world, verb, part, sent)})
        assert outcome[device].crashed or outcome[device].error is None, repr(outcome[device].error)
        world.learn()

    @rule(numbers=st.lists(SMALL, min_size=2, max_size=3), choices=CHOICES)
    def together(self, numbers: list[int], choices: Any) -> None:
        steps["together"] += 1
        self.side_by_side(numbers, choices)

    @rule(numbers=st.lists(SMALL, min_size=2, max_size=3), choices=CHOICES, part=PART, sent=st.booleans())
    def one_dies_beside_others(self, numbers: list[int], choices: Any, part: int, sent: bool) -> None:
        steps["crash beside others"] += 1
        self.side_by_side(numbers, choices, crash_of(self.world, verb_of(self.world, numbers[0]), part, sent))

    def side_by_side(self, numbers: list[int], choices: Any, crash: Crash | None = None) -> None:
        """The first may be killed."""
        world = self.world
        verbs = {str(device): verb_of(world, number) for device, number in enumerate(numbers)}
        outcomes = world.together(verbs, choices, crashes={} if crash is None else {"0": crash})
        for device, outcome in outcomes.items():
            error = outcome.error
            if isinstance(error, pb.Conflict):  # others were faster, or what was proposed is not true any more
                assert error.kind in ("proposal-stale", "already-running"), repr(error)
                assert verbs[device].name in ("prune", "prune replica", "forget"), repr(error)
            else:
                assert error is None or outcome.crashed, repr(error)
        world.learn()

    @rule(device=DEVICES, number=SMALL, what=st.sampled_from(MANY), often=st.sampled_from([0.02, 0.1, 0.4]))
    def faults(self, device: str, number: int, what: str, often: float) -> None:
        steps["faults"] += 1
        self.fails_or_not(device, number, Faults(**{what: often}, page=PAGE, arrives=30))

    @rule(device=DEVICES, number=SMALL, room=st.integers(0, 12_000))
    def full(self, device: str, number: int, room: int) -> None:
        steps["full"] += 1
        self.fails_or_not(device, number, Faults(capacity=self.world.storage.used + room, page=PAGE))

    def fails_or_not(self, device: str, number: int, faults: Faults) -> None:
        world = self.world
        with world.faulty(faults):
            outcome = world.together({device: verb_of(world, number)}, [])[device]
        error = outcome.error
        assert error is None or isinstance(error, pb.Error), repr(error)
        assert not isinstance(error, pb.Damaged | pb.WrongCredential) or world.storage.torn, repr(error)
        world.clear_torn(device)
        world.learn()

    # ------------------------------------------------------------ damage

    @rule(device=DEVICES, folder=st.sampled_from(["packs", "index"]), which=SMALL, how=HOW, at=st.integers(0, 5000))
    def repair(self, device: str, folder: str, which: int, how: str, at: int) -> None:
        steps["repair"] += 1
        self.world.repair(device, folder, which, how, at)

    @rule(device=DEVICES, kind=SMALL, which=SMALL, how=HOW, at=st.integers(0, 5000), bit=st.integers(0, 7))
    def damage(self, device: str, kind: int, which: int, how: str, at: int, bit: int) -> None:
        """Check names what is damaged, and nothing else; what is healed is healed."""
        steps["damage"] += 1
        world = self.world
        world.repo(device).snapshots()  # it has seen all that there is: what vanishes can be missed
        world.close_devices()
        name = world.damage(kind, which, how, at, bit)
        try:
            world.finds(device, name)
        finally:
            world.storage.heal()
        world.check(world.repo(device), device)


def test_the_site_keeps_its_promises() -> None:
    for number in profile.machines():
        machine = get_state_machine_test(Site, settings=machine_settings())  # type: ignore[no-untyped-call]
        try:
            seed(number)(machine)()
        except BaseException as error:
            error.add_note(f"Again with PHARMABACKUP_SEED={number}, PHARMABACKUP_PROFILE and PYTHONHASHSEED as here.")
            raise
        steps["machine"] += 1
