"""Clients take turns as the seed says: the same seed, the same calls; what is killed has no effect any more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.errors import Conflict
from pharmabackup.storage.base import Storage
from pharmabackup.testing.faults import Faults
from pharmabackup.testing.scheduler import Crash, Crashed, Scheduler
from pharmabackup.testing.simulated import SimulatedStorage
from pharmabackup.testing.simulation import Simulation


def _writes(storage: Storage, names: str) -> Callable[[], None]:
    def write() -> None:
        for name in names:
            storage.put_new(name, b"x")

    return write


def _order(choices: int | list[int]) -> str:
    scheduler, storage = Scheduler(choices), SimulatedStorage()
    outcomes = scheduler.run(
        {names: _writes(scheduler.client(names, storage), names) for names in ("abcdef", "uvwxyz")}
    )
    assert [(item.error, item.calls) for item in outcomes.values()] == [(None, 6)] * 2
    return "".join(what.removeprefix("publish ") for _, what in scheduler.trace)


def test_choices_say_whose_turn_it_is() -> None:
    assert _order([]) == "abcdefuvwxyz"
    assert _order([0, 0, 1, 0, 1]) == "aubcdefvwxyz"
    assert _order([1] * 14) == "uavbwcxdyezf"


def test_a_seed_is_an_order() -> None:
    orders = [_order(seed) for seed in range(30)]
    assert orders == [_order(seed) for seed in range(30)]
    assert len(set(orders)) >= 10


def test_what_is_killed_has_no_effect_any_more() -> None:
    for sent in (False, True):
        scheduler, storage = Scheduler(3), SimulatedStorage()
        client = scheduler.client("a", storage)

        def stubborn(client: Storage = client) -> None:
            for name in "abcdef":
                try:
                    client.put_new(name, b"x")
                except Crashed:
                    continue  # nothing real does that

        outcome = scheduler.run({"a": stubborn}, crashes={"a": Crash(2, sent)})["a"]
        assert (outcome.crashed, outcome.error) == (False, None)
        assert sorted(info.name for info in storage.list("")) == (["a", "b", "c"] if sent else ["a", "b"])
        assert scheduler.trace[-1] == ("a", "late publish c" if sent else "publish b")


def test_what_was_sent_arrives_whenever_it_likes() -> None:
    """Also after somebody else has done something about it."""
    first: set[str] = set()
    for seed in range(40):
        scheduler, storage = Scheduler(seed), SimulatedStorage()
        outcomes = scheduler.run(
            {name: _writes(scheduler.client(name, storage), "xyz") for name in ("killed", "other")},
            crashes={"killed": Crash(0, sent=True)},
        )
        assert outcomes["killed"].crashed
        error = outcomes["other"].error
        assert error is None or isinstance(error, Conflict)
        first.add("killed" if error else "other")
        assert storage.info("x").size == 1
    assert first == {"killed", "other"}


def test_others_work_while_one_lists() -> None:
    scheduler, storage = Scheduler([0, 1, 0, 0, 0, 0, 0], page=1), SimulatedStorage(faults=Faults(page=1))
    _writes(storage, "ad")()
    reader = scheduler.client("reader", storage)
    outcomes = scheduler.run(
        {
            "reader": lambda: [info.name for info in reader.list("")],
            "writer": _writes(scheduler.client("writer", storage), "be"),
        }
    )
    assert outcomes["reader"].value == ["a", "b", "d", "e"]


def test_an_error_is_its_clients_own() -> None:
    scheduler, storage = Scheduler(0), SimulatedStorage()
    outcomes = scheduler.run({name: _writes(scheduler.client(name, storage), "a" + name) for name in "xy"})
    assert sorted(type(item.error).__name__ for item in outcomes.values()) == ["Conflict", "NoneType"]


# ------------------------------------------------------------ the library's own code


def _pharmacy(root: Path) -> pb.Files:
    root.mkdir()
    for number in range(5):
        (root / f"file-{number}").write_bytes(bytes([number]) * 3000)
    return pb.Files(root)


def _day(folder: Path, choices: int) -> list[tuple[str, str]]:
    """Two backups and a restore at once, then a check, all of real code."""
    folder.mkdir()
    files = _pharmacy(folder / "documents")
    with Simulation(folder / "state", seed=choices) as simulation:
        storage = SimulatedStorage(clock=simulation.clock)
        simulation.create(storage)
        with simulation.open(storage) as repo:
            repo.backup([files])
        scheduler = Scheduler(choices)

        def back_up(name: str) -> None:
            with simulation.open(scheduler.client(name, storage), device=name) as repo:
                repo.backup([files])

        def restore() -> None:
            with simulation.open(scheduler.client("reader", storage), device="reader") as repo:
                repo.restore(folder / "out")
                repo.check(read_data=1.0)

        outcomes = scheduler.run({"one": lambda: back_up("one"), "two": lambda: back_up("two"), "reader": restore})
        assert [outcome.error for outcome in outcomes.values()] == [None] * 3
        with simulation.open(storage) as repo:
            assert len(repo.snapshots()) == 3
    return scheduler.folders()


@pytest.mark.parametrize("seed", range(4))
def test_the_same_seed_gives_the_same_calls(tmp_path: Path, seed: int) -> None:
    first = _day(tmp_path / "first", seed)
    assert first == _day(tmp_path / "again", seed)
    assert len(first) > 80
    assert len({client for client, _ in first[:-20]}) == 3


def test_other_seeds_give_other_calls(tmp_path: Path) -> None:
    assert len({tuple(_day(tmp_path / str(seed), seed)) for seed in range(4)}) == 4
