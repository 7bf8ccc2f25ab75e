"""A simulated site: devices with small folders, a storage and a replica that go wrong, and what is known of each
snapshot."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pharmabackup as pb
from pharmabackup.storage.base import Storage
from pharmabackup.testing.faults import Faults
from pharmabackup.testing.scheduler import Crash, Outcome, Scheduler
from pharmabackup.testing.simulated import SimulatedStorage
from pharmabackup.testing.simulation import Simulation
from tests.simulation import judging
from tests.simulation.knowledge import Knowledge, Tree
from tests.simulation.reached import calls, count_collections, reached, steps

CONTENTS = 12
NAMES = "abcd"
PAGE = 3  # objects that a listing reads at once
GENERATIONS = 4  # of keys at most: each makes every opening dearer
Act = Callable[[pb.Repository, str], object]  # of a device, with its repository


def content(number: int) -> bytes:
    """One of few contents, each of its own size, so that what was deleted comes again."""
    return random.Random(number).randbytes(900 + 150 * number)


@dataclass(frozen=True, slots=True)
class Verb:
    """What one client does."""

    name: str
    act: Act


class World(Knowledge):
    """Devices named "0", "1" and so on; each has a folder `documents-<device>` and a memory of its own."""

    def __init__(self, root: Path, *, seed: int = 0) -> None:
        self.simulation = Simulation(root / "state", seed=seed)
        super().__init__(self.simulation.clock)
        self.storage = SimulatedStorage(seed=seed, clock=self.clock, faults=Faults(page=PAGE))
        self.replica = SimulatedStorage(seed=seed, clock=self.clock, faults=Faults(page=PAGE), name="replica")
        self._root = root
        self._open: dict[str, pb.Repository] = {}
        self.removed: set[bytes] = set()  # packs, on purpose
        self.scars: set[str] = set()  # audit records that a lying storage kept a part of: they stay
        self._outs = 0
        self._scheduler = Scheduler()
        self.trace: list[tuple[str, str]] = []
        self.calls: dict[str, int] = {}  # by verb: how many it made when it last came to its end
        self.kinds: dict[tuple[str, str], Counter[str]] = {}  # of these, by verb and storage
        # Everything that is dead is worth moving here: then what has to be left can be told exactly.
        self._all_dead = mock.patch("pharmabackup.engine.emptying.UNUSED_SHARE", 0.0)
        self._all_dead.start()
        self.simulation.__enter__()
        self.simulation.create(self.storage)
        with self.simulation.open(self.storage) as repo:
            self.simulation.replicate(repo, self.replica)

    def close(self) -> None:
        self.close_devices()
        self.simulation.__exit__(None, None, None)
        self._all_dead.stop()

    def close_devices(self) -> None:
        """As after a restart: what comes next opens the repository anew."""
        for repo in self._open.values():
            repo.close()
        self._open = {}

    def lose_memory(self, device: str) -> None:
        """What a device remembers can be deleted at any time."""
        self.close_devices()
        shutil.rmtree(self._root / "state" / device, ignore_errors=True)

    def repo(self, device: str) -> pb.Repository:
        """Open for as long as nobody is killed, as in a program that runs for long."""
        if device not in self._open:
            self._open[device] = self.simulation.open(self.storage, device=device)
        return self._open[device]

    def settle(self) -> None:
        """Whatever is on its way arrives."""
        self.storage.settle()
        self.replica.settle()
        self.nothing_is_on_its_way()

    def time_goes_by(self, by: timedelta) -> None:
        self.settle()  # nothing is on its way for hours
        self.clock.advance(by)

    # ------------------------------------------------------------ what devices do

    def folder(self, device: str) -> Path:
        return self._root / f"documents-{device}"

    def write(self, device: str, name: int, number: int | None, *, alone: bool = False) -> None:
        """One file gets that content, or is deleted; `alone`: all others are deleted, so that whole blocks die."""
        if alone:
            shutil.rmtree(self.folder(device), ignore_errors=True)
        path = self.folder(device) / NAMES[name % len(NAMES)]
        path.parent.mkdir(parents=True, exist_ok=True)
        if number is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(content(number % CONTENTS))
            self._date(path)
        self._date(path.parent)

    def _date(self, path: Path) -> None:
        """Times are those of the simulation: they are in manifests, and so in the names of packs."""
        os.utime(path, ns=(self.clock.now, self.clock.now))

    def back_up(self, repo: pb.Repository, device: str) -> object:
        folder = self.folder(device)
        if not folder.exists():
            folder.mkdir(parents=True)
            self._date(folder)
        tree = read(folder)
        self.attempts.setdefault(folder.name, []).append(tree)
        snapshot = repo.backup([pb.Files(folder)]).datasets[folder.name].snapshot
        assert snapshot is not None
        self.of(snapshot.id).tree = tree
        return snapshot

    def prune(self, repo: pb.Repository, device: str) -> object:
        return repo.apply(repo.propose_prune())

    def forget(self, keep: int = 1) -> Act:
        """All but so many of each dataset."""

        def forget(repo: pb.Repository, device: str) -> object:
            proposal = repo.propose_forget({"*": pb.Keep(last=keep)})
            with self.forgetting(snapshot.id for snapshot in proposal.snapshots):
                report = repo.apply(proposal)
            reached["snapshots forgotten"] += len(proposal.snapshots)
            return report

        return forget

    def restore(self, which: int = 0) -> Act:
        """One of those that have to be there."""

        def restore(repo: pb.Repository, device: str) -> object:
            there = self.there()
            if there:
                self.compare(repo, there[which % len(there)])
            return None

        return restore

    def copy(self, repo: pb.Repository, device: str) -> object:
        """To the replica. What is not forgotten there has to be there when it returns."""
        there = [one for one in self.there() if not self.known[one].doomed]
        with self.simulation.open(self._seen_by(device, self.replica), device=device) as other:
            report = repo.copy(other)
        reached["copies that brought something"] += bool(report.datasets)
        for one in there:
            self.known[one].copied = True
        return None

    def prune_replica(self, repo: pb.Repository, device: str) -> object:
        with self.simulation.open(self._seen_by(device, self.replica), device=device) as other:
            return self.prune(other, device)

    def restore_from_replica(self, repo: pb.Repository, device: str) -> object:
        """What was copied and what nobody ever said to forget."""
        with self.simulation.open(self._seen_by(device, self.replica), device=device) as other:
            for one in [one for one, known in self.known.items() if known.copied and not known.doomed]:
                self.compare(other, one)
        return None

    def check(self, repo: pb.Repository, device: str) -> object:
        """Nothing is damaged, so that nothing may be found but what is under way."""
        report = repo.check(read_data=1.0)
        torn = {
            name for storage in (self.storage, self.replica) for name in storage.torn if name.startswith("audit/")
        }
        bad = {
            finding.code
            for finding in report.findings
            if finding.severity != "info" and finding.subject not in self.scars | torn
        }
        assert bad <= {"collection-under-way", "audit-queued"}, report
        return report

    def repair(self, repo: pb.Repository, device: str) -> object:
        with self.simulation.open(self._seen_by(device, self.replica), device=device) as other:
            proposal = repo.propose_repair(replicas=[other])
            report = repo.apply(proposal)
        reached["repairs with a step"] += bool(proposal.steps)
        return report

    def rotate(self, repo: pb.Repository, device: str) -> object:
        if len(repo._unlocked.roster.generations) < GENERATIONS:
            repo.rotate(reason="a test")
            reached["keys replaced"] += 1
        return None

    def reseal(self, repo: pb.Repository, device: str) -> object:
        proposal = repo.propose_reseal()
        report = repo.apply(proposal)
        reached["reseals with a step"] += bool(proposal.steps)
        return report

    def sleep(self, *times: timedelta) -> Act:
        """So much time passes, again and again, while others are in the middle of what they do."""

        def sleep(repo: pb.Repository, device: str) -> object:
            for time in times:
                self.clock.advance(time)
                repo.snapshots()
            return None

        return sleep

    # ------------------------------------------------------------ what is said about snapshots

    def hold(self, which: int = 0) -> Act:
        """One that somebody said to forget, if there is such a one that is not held yet."""

        def hold(repo: pb.Repository, device: str) -> object:
            there = [one for one in self.pending() if not self.known[one].held] or self.there()
            if not there:
                return None
            one = there[which % len(there)]
            snapshot = self.find(repo, one)
            try:
                with self.holding(one):
                    repo.hold(snapshot, reason="a test")
            except pb.Conflict as error:
                assert error.kind == "snapshot-forgotten" and not self.is_there(one), repr(error)
            else:
                reached["holds"] += 1
            return None

        return hold

    def release(self, which: int = 0) -> Act:
        def release(repo: pb.Repository, device: str) -> object:
            held = [one for one, known in self.known.items() if known.held]
            if not held:
                return None
            one = held[which % len(held)]
            known, snapshot = self.known[one], self.find(repo, one)
            alone, releases = not known.releasing and known.held, known.releases
            try:
                with self.releasing(one):
                    repo.release(snapshot, reason="a test")
            except pb.NotFound:
                assert not alone or known.releases > releases + 1, "a hold that was told to count does not"
            else:
                reached["releases"] += 1
            return None

        return release

    def recall(self, which: int = 0) -> Act:
        def recall(repo: pb.Repository, device: str) -> object:
            said = self.pending()
            if not said:
                return None
            one = said[which % len(said)]
            known, snapshot = self.known[one], self.find(repo, one)
            sure, recalls = not known.doubtful, known.recalls
            try:
                with self.recalling(one):
                    repo.recall(snapshot, reason="a test")
            except pb.NotFound:
                assert not sure or known.recalls > recalls + 1, "a forget that was told to count does not"
            except pb.Conflict as error:
                too_late = known.ripe is not None and self.clock.now >= known.ripe
                assert error.kind == "snapshot-forgotten" and (too_late or not sure), repr(error)
            else:
                reached["recalls"] += 1
            return None

        return recall

    # ------------------------------------------------------------ comparing

    @staticmethod
    def find(repo: pb.Repository, one: str) -> pb.Snapshot:
        return next(snapshot for snapshot in repo.snapshots() if snapshot.id == one)

    def compare(self, repo: pb.Repository, one: str) -> None:
        """Restore it and compare every byte. Only if its time comes meanwhile it may be gone."""
        try:
            found = self.restored(repo, self.find(repo, one))
        except pb.Error:
            if self.is_there(one):
                raise
            return
        assert found == self.known[one].tree
        reached["snapshots restored"] += 1

    def restored(self, repo: pb.Repository, snapshot: pb.Snapshot) -> Tree:
        self._outs += 1
        out = self._root / f"out-{self._outs}"
        repo.restore(out, snapshots=[snapshot])
        found = read(out / snapshot.dataset)
        shutil.rmtree(out)
        return found

    def learn(self) -> None:
        """Look what has come of backups that failed or were killed: what is new is what one of them read."""
        with self.simulation.open(self.storage, device="learner") as repo:
            listed = {snapshot.id: snapshot for snapshot in repo.snapshots()}
            assert set(self.known) <= set(listed), "a snapshot that was committed is gone from the list"
            for one, snapshot in listed.items():
                known = self.of(one)
                if known.tree is None and self.is_there(one):
                    tree = self.restored(repo, snapshot)
                    assert tree in self.attempts.get(snapshot.dataset, []), "what was committed is what nobody read"
                    known.tree = tree
            for one in self.there():
                assert not listed[one].forgotten, "forgotten before its time"

    def all_restore(self, device: str) -> None:
        """Every snapshot that has to be there, byte for byte."""
        self.learn()
        for one in self.there():
            self.compare(self.repo(device), one)

    # ------------------------------------------------------------ several at once, deaths, faults

    def together(
        self,
        verbs: Mapping[str, Verb],
        choices: int | Sequence[int],
        *,
        crashes: Mapping[str, Crash] | None = None,
    ) -> Mapping[str, Outcome]:
        """Each device does its verb, opening the repository anew."""
        self.close_devices()
        scheduler = self._scheduler = Scheduler(choices, page=PAGE)

        def client(device: str, verb: Verb) -> Callable[[], object]:
            def run() -> object:
                with self.simulation.open(self._seen_by(device, self.storage), device=device) as repo:
                    return verb.act(repo, device)

            return run

        before = {storage.location: len(storage.log) for storage in (self.storage, self.replica)}
        outcomes = scheduler.run({device: client(device, verb) for device, verb in verbs.items()}, crashes=crashes)
        self.trace = scheduler.trace
        for device, outcome in outcomes.items():
            name = verbs[device].name
            if outcome.crashed:
                reached[f"{name}: crashes"] += 1
            elif outcome.error is None:
                self.calls[name] = outcome.calls
                if len(verbs) == 1:
                    for storage in (self.storage, self.replica):
                        words = (what.partition(" ")[0] for what in storage.log[before[storage.location] :])
                        self.kinds[name, storage.location] = Counter(word for word in words if word != "late")
        steps["calls"] += len(scheduler.trace)
        calls.update(repr(scheduler.trace).encode())
        if self.storage.settled and self.replica.settled:
            self.nothing_is_on_its_way()
        return outcomes

    def _seen_by(self, device: str, storage: SimulatedStorage) -> Storage:
        """As a client of the scheduler reaches it."""
        return self._scheduler.client(device, storage)

    @contextmanager
    def faulty(self, faults: Faults, *, replica: bool = False) -> Iterator[None]:
        """Meanwhile that storage goes wrong so, and it is counted what came to be of it."""
        storage = self.replica if replica else self.storage
        storage.faults = replace(faults, page=PAGE)
        before = storage.suffered.copy()
        try:
            yield
        finally:
            storage.faults = Faults(page=PAGE)
            for fault, count in (storage.suffered - before).items():
                reached[f"{storage.location.partition('//')[2]}: {fault}"] += count

    # ------------------------------------------------------------ when all is quiet

    def quiet(self, device: str) -> None:
        """Nobody does anything but prune now and then. After that there is no garbage, and all is well."""
        self.settle()
        for _ in range(3):
            self.clock.advance(timedelta(days=2))
            self.prune(self.repo(device), device)
            self.prune_replica(self.repo(device), device)
        self.all_restore(device)
        self.check(self.repo(device), device)
        self.restore_from_replica(self.repo(device), device)
        repo = self.repo(device)
        forgotten = {snapshot.id for snapshot in repo.snapshots() if snapshot.forgotten}
        assert set(self.gone()) <= forgotten <= set(self.known) - set(self.there())
        judging.no_garbage(repo, forgotten, self.removed)
        count_collections(repo, "here")
        with self.simulation.open(self.replica, device=device) as other:
            judging.no_garbage(other, {one.id for one in other.snapshots() if one.forgotten}, set())
            count_collections(other, "replica")


def read(folder: Path) -> Tree:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
