"""Whatever dies, at whichever call: nothing tidies up after it, and what was known as committed restores."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.testing.scheduler import Crash
from tests.simulation import damage
from tests.simulation.profile import profile
from tests.simulation.world import Verb, World

DEATHS = 100 if profile.seconds else 6  # spread over all calls that it makes
LEAST = {"backup": 20, "prune": 60, "copy": 40, "repair": 80, "rotate": 15, "reseal": 60}  # calls


def _rotate(repo: pb.Repository, device: str) -> None:
    repo.rotate(reason="a test")


def _prepared(root: Path, what: str) -> tuple[World, str | None]:
    """A site where there is something to do; the object that was damaged."""
    world = World(root)
    repo, other = world.repo("0"), world.repo("1")
    for number in range(2):
        world.write("0", number, number, alone=True)
        world.back_up(repo, "0")
    if what == "prune":
        world.forget(1)(other, "1")
        world.time_goes_by(timedelta(days=15))
        world.write("0", 0, 0)
        world.back_up(repo, "0")  # which finds again what is dead
    if what == "reseal":
        _rotate(other, "1")
    world.write("0", 2, 2)
    spoilt = damage.spoil_what_the_replica_has(world, "1", "packs", 0, "flipped", 100) if what == "repair" else None
    return world, spoilt


@pytest.mark.parametrize("what", LEAST)
def test_it_dies_at_any_call(tmp_path: Path, what: str) -> None:
    calls = _dies(tmp_path / "alone", what, None)
    assert calls >= LEAST[what]
    for number in range(DEATHS):
        _dies(tmp_path / str(number), what, Crash(calls * (2 * number + 1) // (2 * DEATHS), sent=number % 2 == 1))


def _dies(root: Path, what: str, crash: Crash | None) -> int:
    """Once; then all that was committed restores, and it is done again. How many calls it made."""
    world, spoilt = _prepared(root, what)
    acts = {
        "backup": world.back_up,
        "prune": world.prune,
        "copy": world.copy,
        "repair": world.repair,
        "rotate": _rotate,
        "reseal": world.reseal,
    }
    try:
        outcome = world.together({"0": Verb(what, acts[what])}, [], crashes={} if crash is None else {"0": crash})[
            "0"
        ]
        assert outcome.crashed == (crash is not None), repr(outcome.error)
        assert outcome.crashed or outcome.error is None, repr(outcome.error)
        if spoilt is not None:
            damage.mend(world, "1", spoilt)
        world.all_restore("1")
        acts[what](world.repo("0"), "0")
        world.quiet("1")
        return outcome.calls
    finally:
        world.close()
