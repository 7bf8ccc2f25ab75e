"""The storage's clock decides what may go, and whether words came in time; a machine's may be far ahead or behind."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

import pharmabackup as pb
from pharmabackup.engine.transaction import Transaction
from pharmabackup.errors import StorageFailed
from pharmabackup.testing.faults import SimulatedClock
from pharmabackup.testing.simulated import SimulatedStorage
from pharmabackup.testing.simulation import Simulation
from tests.verbs.faults import BusyStorage
from tests.verbs.site import Site, prune, stops, stored

DAY = timedelta(days=1)
YEAR = timedelta(days=365)


class Clocks:
    """The storage's, and this machine's, which differs from it by as much as a test says."""

    def __init__(self, storage: SimulatedClock) -> None:
        self.storage = storage
        self.machine_ahead = timedelta(0)

    def machine(self) -> int:
        return self.storage.now + self.machine_ahead // timedelta(microseconds=1) * 1000


@pytest.fixture
def storage() -> SimulatedStorage:
    return SimulatedStorage()


@pytest.fixture
def simulation(tmp_path: Path, storage: SimulatedStorage) -> Iterator[Simulation]:
    with Simulation(tmp_path / "state", clock=storage.clock) as made:
        made.create(storage)
        yield made


@pytest.fixture
def clocks(simulation: Simulation, storage: SimulatedStorage) -> Iterator[Clocks]:
    made = Clocks(storage.clock)
    with mock.patch("pharmabackup.clock.time", SimpleNamespace(time_ns=made.machine, monotonic_ns=made.machine)):
        yield made


@pytest.fixture
def repo(simulation: Simulation, storage: SimulatedStorage, clocks: Clocks, site: Site) -> Iterator[pb.Repository]:
    """Six snapshots."""
    with simulation.open(storage) as made:
        for _ in range(6):
            site.change()
            site.back_up(made)
        yield made


def _dies(repo: pb.Repository, site: Site, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backup comes as far as that and no further."""
    site.change()
    with monkeypatch.context() as patch:
        patch.setattr(Transaction, step, stops)
        with pytest.raises(StorageFailed):
            site.back_up(repo)


@pytest.mark.parametrize("what", ["young", "pinned", "forgotten a moment ago"])
@pytest.mark.parametrize("hours", [0, 23])
def test_a_machine_whose_clock_is_far_ahead_lets_nothing_go_before_its_time(
    repo: pb.Repository, site: Site, clocks: Clocks, monkeypatch: pytest.MonkeyPatch, what: str, hours: int
) -> None:
    storage = repo._unlocked.storage
    if what == "forgotten a moment ago":
        repo.apply(repo.propose_forget({"*": pb.Keep(last=1)}))
    else:
        _dies(repo, site, "pin" if what == "young" else "commit", monkeypatch)
    before = [stored(storage, folder) for folder in ("packs", "snapshots", "collections")]
    clocks.storage.advance(timedelta(hours=hours))
    clocks.machine_ahead = YEAR
    proposal = repo.propose_prune()
    assert (proposal.bytes_freed, proposal.snapshots) == (0, ())
    assert repo.apply(proposal).bytes == 0
    assert [stored(storage, folder) for folder in ("packs", "snapshots", "collections")] == before


@pytest.mark.parametrize("what", ["young", "pinned", "forgotten"])
def test_a_machine_whose_clock_is_far_behind_lets_go_what_the_storages_time_is_over_for(
    repo: pb.Repository, site: Site, clocks: Clocks, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    storage = repo._unlocked.storage
    if what == "forgotten":
        repo.apply(repo.propose_forget({"*": pb.Keep(last=1)}))
    else:
        _dies(repo, site, "pin" if what == "young" else "commit", monkeypatch)
    before = len(stored(storage, "packs"))
    clocks.storage.advance(15 * DAY)
    clocks.machine_ahead = -YEAR
    assert prune(repo).bytes > 0
    assert len(stored(storage, "packs")) < before


@pytest.mark.parametrize("verb", ["hold", "recall"])
def test_words_that_come_too_late_by_the_storages_clock_are_said_to(
    repo: pb.Repository, clocks: Clocks, verb: str
) -> None:
    """This machine takes the snapshot for one that is there still."""
    repo.apply(repo.propose_forget({"*": pb.Keep(last=1)}))
    clocks.storage.advance(15 * DAY)
    clocks.machine_ahead = -15 * DAY
    snapshot = repo.snapshots()[-1]
    assert not snapshot.forgotten
    with pytest.raises(pb.Conflict) as caught:
        getattr(repo, verb)(snapshot, reason="incident 7")
    assert caught.value.kind == "snapshot-forgotten"
    assert len(repo.propose_prune().snapshots) == 5


@pytest.mark.parametrize("verb", ["hold", "recall"])
def test_whichever_call_they_are_at_when_the_time_is_over_and_a_collection_runs(
    tmp_path: Path,
    simulation: Simulation,
    storage: SimulatedStorage,
    repo: pb.Repository,
    clocks: Clocks,
    site: Site,
    verb: str,
) -> None:
    """What was said to be in time has saved its snapshot, and what was not is told."""
    repo.apply(repo.propose_forget({"*": pb.Keep(last=1)}))
    snapshot, kept = repo.snapshots()[-1], dict(storage._objects)
    outcomes: set[bool] = set()
    for at in range(100):
        storage._objects, start = dict(kept), clocks.storage.now

        def meanwhile(at: int = at) -> None:
            clocks.storage.advance(15 * DAY)
            with simulation.open(storage, device=f"collector-{at}") as collector:
                prune(collector)

        busy = BusyStorage(storage, meanwhile)
        with simulation.open(busy, device=f"device-{at}") as one:
            found = one.snapshot(id=snapshot.id)
            busy.interrupt(at)
            try:
                getattr(one, verb)(found, reason="incident 7")
                saved = True
            except pb.Conflict:
                saved = False
        if saved:
            with simulation.open(storage, device=f"device-{at}") as one:
                one.restore(tmp_path / f"out-{at}", snapshots=[one.snapshot(id=snapshot.id)])
        outcomes.add(saved)
        clocks.storage.now = start
        if not busy.interrupted:
            assert outcomes == {True, False}
            return
    pytest.fail("it never ends")
