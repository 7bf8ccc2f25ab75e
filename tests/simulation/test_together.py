"""Writers, collectors and readers at once, call by call as a seed says; and each way in which a storage lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.testing.faults import Faults, Planned
from pharmabackup.testing.scheduler import Crash, Outcome
from pharmabackup.testing.simulated import SimulatedStorage
from pharmabackup.testing.simulation import Simulation
from tests.simulation.damage import clear_torn
from tests.simulation.profile import profile
from tests.simulation.world import Verb, World

Make = Callable[[int], World]
PUBLISHES = 12  # of a backup at most; the tests say so if it is not enough


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """A site of which the newest backup of each device is kept. Of the others some is dead, and is written again."""
    made: list[World] = []

    def make(seed: int) -> World:
        for world in made[-1:]:
            world.close()
        world = World(tmp_path / str(len(made)), seed=seed)
        made.append(world)
        for device, contents in [("0", [0, 1]), ("0", [2, 3]), ("0", [2, 4]), ("1", [1, 5]), ("1", [6])]:
            world.write(device, 0, contents[0], alone=True)
            for name, number in enumerate(contents[1:], 1):
                world.write(device, name, number)
            world.back_up(world.repo(device), device)
        world.forget(1)(world.repo("0"), "0")
        world.clock.advance(timedelta(days=15))
        world.write("0", 2, 0)  # what is dead is found again
        world.write("1", 2, 1)
        return world

    yield make
    for world in made[-1:]:
        world.close()


def _all_is_well(world: World) -> None:
    world.all_restore("2")
    world.quiet("2")


measured: dict[str, int] = {}  # by verb: the calls that it makes where it is alone and nobody kills it


def _crash(make: Make, act: str, seed: int) -> Crash:
    """At calls that are spread over all that it makes."""
    if act not in measured:
        world = make(0)
        alone = world.together({"0": Verb(act, world.back_up if act == "backup" else world.prune)}, [])["0"]
        assert alone.error is None
        measured[act] = alone.calls
    return Crash(measured[act] * (2 * seed + 1) // (2 * profile.seeds), sent=seed % 2 == 0)


@pytest.mark.parametrize("seed", range(profile.seeds))
def test_two_writers_and_a_collector(make: Make, seed: int) -> None:
    world = make(seed)
    verbs = {"0": Verb("backup", world.back_up), "1": Verb("backup", world.back_up), "2": Verb("prune", world.prune)}
    outcomes = world.together(verbs, seed)
    assert outcomes["0"].error is None and outcomes["1"].error is None
    error = outcomes["2"].error
    assert error is None or (isinstance(error, pb.Conflict) and error.kind == "proposal-stale")
    assert len(world.there()) == 4  # the newest of each, and these
    _all_is_well(world)


@pytest.mark.parametrize("seed", range(profile.seeds))
def test_two_collectors_and_a_reader(make: Make, seed: int) -> None:
    world = make(seed)
    verbs = {
        "0": Verb("prune", world.prune),
        "1": Verb("prune", world.prune),
        "2": Verb("restore", world.restore(seed)),
    }
    outcomes = world.together(verbs, seed)
    for device in "01":
        error = outcomes[device].error
        assert error is None or isinstance(error, pb.Conflict), repr(error)
    assert outcomes["2"].error is None
    _all_is_well(world)


@pytest.mark.parametrize("seed", range(profile.seeds))
def test_a_collector_is_killed_beside_a_writer_and_another_collector(make: Make, seed: int) -> None:
    crash = _crash(make, "prune", seed)
    world = make(seed)
    verbs = {"0": Verb("prune", world.prune), "1": Verb("backup", world.back_up), "2": Verb("prune", world.prune)}
    outcomes = world.together(verbs, seed, crashes={"0": crash})
    assert outcomes["0"].crashed or _was_overtaken(outcomes["0"])
    assert outcomes["1"].error is None
    assert outcomes["2"].error is None or isinstance(outcomes["2"].error, pb.Conflict)
    _all_is_well(world)


@pytest.mark.parametrize("seed", range(profile.seeds))
def test_a_writer_is_killed_beside_a_collector(make: Make, seed: int) -> None:
    crash = _crash(make, "backup", seed)
    world = make(seed)
    verbs = {"0": Verb("backup", world.back_up), "1": Verb("backup", world.back_up), "2": Verb("prune", world.prune)}
    outcomes = world.together(verbs, seed, crashes={"0": crash})
    assert outcomes["0"].crashed
    assert outcomes["1"].error is None
    assert outcomes["2"].error is None or isinstance(outcomes["2"].error, pb.Conflict)
    _all_is_well(world)


def _was_overtaken(outcome: Outcome) -> bool:
    """It ended before its crash: another has done some of its work."""
    return isinstance(outcome.error, pb.Conflict) or outcome.error is None


# ------------------------------------------------------------ a storage that lies, or is slow


def _lies(world: World, device: str, plan: Planned) -> pb.Error | None:
    """What becomes of a backup while the storage does that once."""
    with world.faulty(Faults(planned=(plan,))):
        error = world.together({device: Verb("backup", world.back_up)}, [])[device].error
    assert error is None or isinstance(error, pb.Error), repr(error)
    return error


@pytest.mark.parametrize("fault", ["torn", "lost"])
def test_what_is_torn_or_lost_is_found_before_anything_depends_on_it(make: Make, fault: str) -> None:
    world = make(0)
    failed = 0
    for nth in range(PUBLISHES):
        world.write("0", nth, nth + 1)
        before = len(world.there())
        error = _lies(world, "0", Planned(call="publish", fault=fault, nth=nth))  # type: ignore[arg-type]
        clear_torn(world, "0")
        world.learn()
        if error is not None:
            failed += 1
            assert error.kind == "lost-write", repr(error)
            assert len(world.there()) == before, "what was told to have failed was committed"
        world.all_restore("2")
    assert world.together({"0": Verb("backup", world.back_up)}, [])["0"].error is None
    if fault == "torn":
        assert failed >= 4
    else:  # it is as if a collection had deleted it: the source is read again
        assert failed == 0
        with world.faulty(Faults(lost=1.0)):
            error = world.together({"0": Verb("backup", world.back_up)}, [])["0"].error  # type: ignore[assignment]
        assert isinstance(error, pb.StorageFailed) and error.kind == "lost-write"
    _all_is_well(world)


@pytest.mark.parametrize("fault", ["torn", "lost"])
def test_a_mark_that_is_not_kept_is_told(make: Make, fault: str) -> None:
    world = make(0)
    plan = Planned(call="publish marks/", fault=fault)  # type: ignore[arg-type]
    with world.faulty(Faults(planned=(plan,))), pytest.raises(pb.StorageFailed) as caught:
        world.hold(0)(world.repo("0"), "0")
    assert caught.value.kind == "lost-write"
    clear_torn(world, "0")
    _all_is_well(world)


@pytest.mark.parametrize("verb", ["backup", "prune"])
def test_a_lost_answer_is_settled_by_reading_back(make: Make, verb: str) -> None:
    """Each create succeeds, and is told that it exists: its own request was sent twice."""
    world = make(0)
    act = world.back_up if verb == "backup" else world.prune
    with world.faulty(Faults(again=1.0)):
        outcome = world.together({"0": Verb(verb, act)}, [])["0"]
    assert outcome.error is None, repr(outcome.error)
    with world.faulty(Faults(again=1.0)):
        world.hold(0)(world.repo("0"), "0")
    _all_is_well(world)


@pytest.mark.parametrize("fault", ["before", "after", "late"])
def test_a_backup_fails_at_each_of_its_calls_and_the_next_goes_on(make: Make, fault: str) -> None:
    world = make(0)
    calls = 0
    while _lies(world, "0", Planned(call="publish", fault=fault, nth=calls)) is not None:  # type: ignore[arg-type]
        calls += 1
        world.write("0", calls, calls)
        world.learn()
    assert 4 <= calls <= PUBLISHES
    _all_is_well(world)


@pytest.mark.parametrize("seed", range(profile.seeds // 4))
@pytest.mark.parametrize("fault", ["twice", "late"])
def test_deletes_that_arrive_late_hurt_nobody(make: Make, fault: str, seed: int) -> None:
    """They come while others back up, or after the collector has ended, or died."""
    world = make(seed)
    with world.faulty(Faults(**{fault: 1.0 if fault == "twice" else 0.2}, arrives=200)):  # type: ignore[arg-type]
        alone = world.together({"2": Verb("prune", world.prune)}, [])["2"]
        world.forget(1)(world.repo("0"), "0")
        world.clock.advance(timedelta(days=15))
        verbs = {
            "0": Verb("backup", world.back_up),
            "1": Verb("backup", world.back_up),
            "2": Verb("prune", world.prune),
        }
        crash = Crash(alone.calls * (seed + 3) // (profile.seeds // 4 + 3))
        world.together(verbs, seed, crashes={"2": crash})
    assert world.storage.suffered[fault]
    world.learn()
    _all_is_well(world)


def test_where_listings_are_stale_nothing_is_collected(tmp_path: Path) -> None:
    """The repository knows it from its creation; what was backed up restores when the listing shows it."""
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "file").write_bytes(b"content" * 100)
    with Simulation(tmp_path / "state") as simulation:
        storage = SimulatedStorage(clock=simulation.clock, faults=Faults(stale=timedelta(minutes=1)))
        with suppress(pb.Damaged):  # it lists at once what it has made
            simulation.create(storage)
        simulation.clock.advance(timedelta(minutes=2))
        with simulation.open(storage) as repo:
            assert not repo.capabilities["fresh-listing"]
            for _ in range(3):
                repo.backup([pb.Files(tmp_path / "documents")])
            with pytest.raises(pb.Unsupported) as caught:
                repo.propose_prune()
            assert caught.value.kind == "capability"
            simulation.clock.advance(timedelta(minutes=2))
            assert len(repo.snapshots()) == 3
            repo.restore(tmp_path / "out")
            assert (tmp_path / "out" / "documents" / "file").read_bytes() == b"content" * 100
            assert repo.check(read_data=1.0).state == "ok"
