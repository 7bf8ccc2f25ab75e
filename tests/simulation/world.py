"""A simulated site: devices with small folders, one faulty storage, and what is known about each snapshot.

What it knows it has from what it asked for and what came back, not from the library: a snapshot whose backup
returned is there, and restores byte for byte until somebody said to forget it and the delay is over. Where a call
failed or was killed, it takes what is least: a forget counts from the first attempt, a hold ends with the first
attempt to end it.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.engine.garbage import look_for_garbage
from pharmabackup.engine.history import load_history
from pharmabackup.engine.index import Index, read_segment
from pharmabackup.engine.packs import read_directory
from pharmabackup.engine.reading import BlockReader, SnapshotReader
from pharmabackup.storage.base import Storage
from pharmabackup.testing.faults import Faults
from pharmabackup.testing.scheduler import Crash, Outcome, Scheduler
from pharmabackup.testing.simulated import SimulatedStorage
from pharmabackup.testing.simulation import Simulation

DELAY = timedelta(days=14)  # of forgetting, as new repositories have it
CONTENTS = 12
NAMES = "abcd"
FOLDERS = ("packs", "index", "collections", "snapshots", "marks", "intents")  # what changes from day to day
PAGE = 3  # objects that a listing reads at once
Tree = dict[str, bytes]
Act = Callable[[pb.Repository, str], object]  # of a device, with its repository

steps: Counter[str] = Counter()  # what was done in all worlds of this process


def content(number: int) -> bytes:
    """One of few contents, each of its own size, so that what was deleted comes again."""
    return random.Random(number).randbytes(900 + 150 * number)


@dataclass(frozen=True, slots=True)
class Verb:
    """What one client does."""

    name: str
    act: Act


@dataclass(slots=True)
class Known:
    """What is known about one snapshot. Times by the storage's clock."""

    tree: Tree
    ripe: int | None = None  # from then on it may be gone
    held: bool = False
    doomed: bool = False  # somebody said once to forget it
    copied: bool = False  # a copy to the replica came to its end when it was there


class World:
    """Devices named "0", "1" and so on; each has a folder `documents-<device>` and a memory of its own."""

    def __init__(self, root: Path, *, seed: int = 0) -> None:
        self.simulation = Simulation(root / "state", seed=seed)
        self.clock = self.simulation.clock
        self.storage = SimulatedStorage(seed=seed, clock=self.clock)
        self.storage.faults = Faults(page=PAGE)
        self.replica = SimulatedStorage(seed=seed, clock=self.clock, name="replica")
        self.replica.faults = Faults(page=PAGE)
        self.known: dict[str, Known] = {}
        self.attempts: dict[str, list[Tree]] = {}  # by dataset: what may have been committed
        self._root = root
        self._open: dict[str, pb.Repository] = {}
        self.removed: set[bytes] = set()  # packs, on purpose
        self._outs = 0
        self._scheduler = Scheduler()
        self.calls: dict[str, int] = {}  # by verb: how many it made when it last came to its end
        # Everything that is dead is worth moving here: then what has to be left can be told exactly.
        self._all_dead = mock.patch("pharmabackup.engine.garbage.UNUSED_SHARE", 0.0)
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
        self.known[snapshot.id] = Known(tree)
        return snapshot

    def prune(self, repo: pb.Repository, device: str) -> object:
        return repo.apply(repo.propose_prune())

    def forget(self, keep: int = 1) -> Act:
        """All but so many of each dataset."""

        def forget(repo: pb.Repository, device: str) -> object:
            proposal = repo.propose_forget({"*": pb.Keep(last=keep)})
            ripe = self.clock.now + DELAY // timedelta(microseconds=1) * 1000
            for snapshot in proposal.snapshots:
                known = self.known.get(snapshot.id)
                if known is not None:
                    known.ripe = min(ripe, known.ripe or ripe)
                    known.doomed = True
            return repo.apply(proposal)

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
            repo.copy(other)
        for one in there:
            self.known[one].copied = True
        return None

    def prune_replica(self, repo: pb.Repository, device: str) -> object:
        with self.simulation.open(self._seen_by(device, self.replica), device=device) as other:
            return self.prune(other, device)

    def all_restore_from_replica(self, device: str) -> None:
        """What was copied and what nobody ever said to forget."""
        with self.simulation.open(self.replica, device=device) as other:
            for one, known in self.known.items():
                if known.copied and not known.doomed:
                    self.compare(other, one)

    def check(self, repo: pb.Repository, device: str) -> object:
        """Nothing is damaged, so that nothing may be found but what is under way."""
        report = repo.check(read_data=1.0)
        bad = {finding.code for finding in report.findings if finding.severity != "info"}
        assert bad <= {"collection-under-way"}, report
        return report

    def hold(self, repo: pb.Repository, which: int) -> None:
        there = self.there()
        if there:
            one = there[which % len(there)]
            repo.hold(self.find(repo, one), reason="a test")
            self.known[one].held = True

    def release(self, repo: pb.Repository, which: int) -> None:
        held = [one for one, known in self.known.items() if known.held]
        if held:
            one = held[which % len(held)]
            self.known[one].held = False
            repo.release(self.find(repo, one), reason="a test")

    def recall(self, repo: pb.Repository, which: int) -> None:
        now = self.clock.now
        said = [one for one, known in self.known.items() if known.ripe is not None and now < known.ripe]
        if said:
            one = said[which % len(said)]
            try:
                repo.recall(self.find(repo, one), reason="a test")
            except pb.NotFound:
                pass  # the forget was not said after all
            self.known[one].ripe = None

    # ------------------------------------------------------------ what is known

    def there(self) -> list[str]:
        """Snapshots that have to be there now, in the order in which they were made known."""
        return [
            one
            for one, known in self.known.items()
            if known.held or known.ripe is None or self.clock.now < known.ripe
        ]

    @staticmethod
    def find(repo: pb.Repository, one: str) -> pb.Snapshot:
        return next(snapshot for snapshot in repo.snapshots() if snapshot.id == one)

    def compare(self, repo: pb.Repository, one: str) -> None:
        """Restore it and compare every byte."""
        snapshot = self.find(repo, one)
        assert self.restored(repo, snapshot) == self.known[one].tree

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
            for one in set(listed) - set(self.known):
                tree = self.restored(repo, listed[one])
                assert tree in self.attempts.get(listed[one].dataset, []), "what was committed is what nobody read"
                self.known[one] = Known(tree)
            for one in self.there():
                assert not listed[one].forgotten, "forgotten before its time"

    def all_restore(self, device: str) -> None:
        """Every snapshot that has to be there, byte for byte."""
        self.learn()
        for one in self.there():
            self.compare(self.repo(device), one)

    # ------------------------------------------------------------ several at once, and deaths

    def together(
        self,
        verbs: Mapping[str, Verb],
        choices: int | Sequence[int],
        *,
        crashes: Mapping[str, Crash] | None = None,
    ) -> Mapping[str, Outcome]:
        """Each device does its verb, opening the repository anew; asserts that none fails as it must not."""
        self.close_devices()
        scheduler = self._scheduler = Scheduler(choices, page=PAGE)

        def client(device: str, verb: Verb) -> Callable[[], object]:
            def run() -> object:
                with self.simulation.open(self._seen_by(device, self.storage), device=device) as repo:
                    return verb.act(repo, device)

            return run

        outcomes = scheduler.run({device: client(device, verb) for device, verb in verbs.items()}, crashes=crashes)
        self.trace = scheduler.trace
        self.calls |= {verbs[device].name: item.calls for device, item in outcomes.items() if item.error is None}
        steps["calls"] += len(scheduler.trace)
        return outcomes

    def _seen_by(self, device: str, storage: SimulatedStorage) -> Storage:
        """As a client of the scheduler reaches it."""
        return self._scheduler.client(device, storage)

    @contextmanager
    def faulty(self, faults: Faults) -> Iterator[None]:
        self.storage.faults = faults
        try:
            yield
        finally:
            self.storage.faults = Faults(page=PAGE)

    # ------------------------------------------------------------ damage

    def repair(self, device: str, folder: str, which: int, how: str, at: int) -> None:
        """One pack or segment is spoilt and mended from the replica, where all is that has to be here."""
        self.copy(self.repo(device), device)
        names = [name for name in self.storage.names() if name.startswith(folder)]
        with self.simulation.open(self.replica, device=device) as other:
            copied = {snapshot.id for snapshot in other.snapshots() if not snapshot.forgotten}
            here = [snapshot for snapshot in self.repo(device).snapshots() if not snapshot.forgotten]
            if not names or not {snapshot.id for snapshot in here} <= copied:
                return  # the replica has forgotten it, or its collector came first
            self.spoil(names[which % len(names)], how, at)
            if folder == "packs" and how == "removed":
                self.removed.add(ids.hex_tail(names[which % len(names)]) or b"")
            self.close_devices()
            repo = self.repo(device)
            repo.apply(repo.propose_repair(replicas=[other]))
            for snapshot in here:
                self.compare(repo, snapshot.id)
            if names[which % len(names)] in self.storage.names():
                self.storage.heal()  # a backup that has not ended pins it, and no snapshot needs it
            self.storage.injuries.clear()
            self.check(repo, device)

    def spoil(self, name: str, how: str, at: int, bit: int = 0) -> None:
        if how == "flipped":
            self.storage.flip(name, at, bit)
        elif how == "cut":
            self.storage.cut(name, at)
        else:
            self.storage.remove(name)

    def damage(self, kind: int, which: int, how: str, at: int, bit: int) -> str:
        """Spoil one object, of one kind; its name."""
        there = {name.partition("/")[0] for name in self.storage.names()}
        kinds = [folder for folder in (*FOLDERS, *FOLDERS, "keys", "repository", "roster") if folder in there]
        folder = kinds[kind % len(kinds)]
        names = [name for name in self.storage.names() if name.partition("/")[0] == folder]
        name = names[which % len(names)]
        self.spoil(name, how, at, bit)
        return name

    def finds(self, device: str, name: str) -> None:
        """A check names the object that was spoilt, and no other."""
        folder, how = name.partition("/")[0], self.storage.injuries[-1].how
        try:
            with self.simulation.open(self.storage, device=device) as repo:
                unindexed = self.unindexed(repo) if folder == "index" else set()
                findings = repo.check(read_data=1.0).findings
        except (pb.Damaged, pb.NotFound, pb.WrongCredential, pb.Unsupported) as error:
            # Without these nothing can be opened, and nothing judged. And one bit makes a version a newer one, which
            # is refused and not called damage.
            newer = how == "flipped" and isinstance(error, pb.Unsupported)
            assert newer or folder in ("repository", "roster", "keys"), f"{name} {how}: {error!r}"
            return
        named = [finding for finding in findings if finding.subject == name]
        others = {
            finding.subject
            for finding in findings
            if "/" in finding.subject and finding.subject != name and finding.severity != "info"
        } - {ids.pack_name(pack) for pack in self.removed}  # of which what was spoilt now was the other copy
        assert not others, f"{name} was {how}, and these are named: {findings}"
        hurt = {finding.subject for finding in findings if finding.code == "snapshot-damaged"} - {name}
        assert not hurt or folder == "packs", f"{name} was {how}, and snapshots seem hurt: {findings}"
        if folder == "index" and how == "removed":
            assert unindexed <= {finding.subject for finding in findings if finding.code == "pack-unindexed"}, (
                findings
            )
        elif not self.hurts_nobody(name, how):
            assert named, f"{name} was {how}, and nothing says so: {findings}"

    def hurts_nobody(self, name: str, how: str) -> bool:
        """An intent may always be deleted; a collection may have come just so far; `repository` has a comment."""
        folder, number = (*name.split("/"), "")[:2]
        if folder == "collections" and how == "removed":
            rest = {
                other.rpartition("/")[2] for other in self.storage.names() if other.startswith(f"{folder}/{number}/")
            }
            highest = f"{folder}/{int(number) + 1}/condemn" not in self.storage.names()
            return highest and rest in (set(), {"condemn"}, {"condemn", "execute"})
        return (folder, how) in {("intents", "removed"), ("repository", "flipped")}

    def clear_torn(self, device: str) -> None:
        """What a lying storage has kept the beginning of: check names it, and somebody takes it away."""
        names = [name for name in self.storage.torn if name in self.storage.names()]
        self.storage.torn.clear()
        if not names:
            return
        self.close_devices()
        with self.simulation.open(self.storage, device=device) as repo:
            try:
                report = repo.check(read_data=1.0)
            except pb.Damaged as error:
                assert any(name in error.message for name in names)
            else:
                assert set(names) <= {finding.subject for finding in report.findings}, report
        for name in names:
            self.storage.remove(name)
        self.storage.injuries.clear()

    def unindexed(self, repo: pb.Repository) -> set[str]:
        """Packs that are there and that no segment names."""
        segments = [ids.hex_tail(info.name) or b"" for info in self.storage.list("index")]
        named: set[str] = set()
        for segment in segments:
            try:
                named.update(
                    ids.pack_name(entry.pack) for entry in read_segment(repo._unlocked, segment).record.packs
                )
            except pb.Damaged:
                continue
        return {info.name for info in self.storage.list("packs")} - named

    # ------------------------------------------------------------ when all is quiet

    def quiet(self, device: str) -> None:
        """Nobody does anything but prune now and then. After that there is no garbage, and all is well."""
        self.storage.settle()
        for _ in range(3):
            self.clock.advance(timedelta(days=2))
            self.prune(self.repo(device), device)
            self.prune_replica(self.repo(device), device)
        self.all_restore(device)
        self.check(self.repo(device), device)
        self.no_garbage(self.repo(device))
        self.all_restore_from_replica(device)

    def no_garbage(self, repo: pb.Repository) -> None:
        """Every block that is stored is needed, and is stored once; the index names what is there, nothing else."""
        unlocked = repo._unlocked
        history = load_history(unlocked, anew=True)
        index = Index(unlocked, chunks=False)
        index.load()
        reader = BlockReader(unlocked, index)
        gone = history.gone(self.clock.now)
        needed = {
            block
            for item in history.committed.values()
            if item.transaction not in gone
            for block in SnapshotReader(reader, item.snapshot).relied()
        }
        packs = {ids.hex_tail(info.name) or b"": info.size for info in self.storage.list("packs")}
        stored = Counter(
            block.id for pack, size in packs.items() for block in read_directory(unlocked, pack, size)[1].blocks
        )
        assert set(stored) == needed, f"{len(set(stored) - needed)} blocks of garbage"
        assert set(stored.values()) <= {1}, "a block is stored twice"
        segments = [ids.hex_tail(info.name) or b"" for info in self.storage.list("index")]
        named = [entry.pack for segment in segments for entry in read_segment(unlocked, segment).record.packs]
        # Two writers that found one orphan have both named it; and a pack that was removed on purpose is named until
        # something else is collected.
        assert set(packs) <= set(named)
        assert set(named) <= set(packs) | self.removed
        garbage = look_for_garbage(unlocked, self.clock.now, lambda: None)
        garbage.index.close()
        assert (garbage.dead, garbage.sparse, garbage.unfinished) == (set(), {}, False)


def read(folder: Path) -> Tree:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
