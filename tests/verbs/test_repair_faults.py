"""A repair that dies at any call, and others at work between any two of them: nothing becomes worse."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.engine import garbage, opening
from pharmabackup.engine.packs import read_directory
from pharmabackup.format.wire import Kind
from pharmabackup.results import Proposal
from pharmabackup.storage.base import Storage
from pharmabackup.storage.memory import MemoryStorage
from tests.verbs.faults import BusyStorage, Dead, DyingStorage, any_call

PASSPHRASE = pb.Passphrase("correct horse battery staple")


@dataclass
class Case:
    """A damaged repository in memory, a replica of it, and what can be restored before and after a repair."""

    damaged: MemoryStorage
    replica: pb.Repository
    root: Path
    states: dict[str, dict[str, bytes]] = field(default_factory=dict)
    before: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)

    def back_up(self, repo: pb.Repository) -> str:
        snapshot = repo.backup([pb.Files(self.root)]).datasets[self.root.name].snapshot
        assert snapshot is not None
        self.states[snapshot.id] = {path.name: path.read_bytes() for path in self.root.iterdir()}
        return snapshot.id

    def whole(self, repo: pb.Repository, out: Path, among: set[str] | None = None) -> set[str]:
        """The snapshots that come back byte for byte; what comes back under its name is never wrong."""
        found: set[str] = set()
        for snapshot in repo.snapshots():
            if among is not None and snapshot.id not in among:
                continue
            try:
                repo.restore(out / snapshot.id, snapshots=[snapshot])
                found.add(snapshot.id)
            except (pb.Incomplete, pb.Damaged):
                pass
            folder = out / snapshot.id / self.root.name
            have = {path.name: path.read_bytes() for path in folder.iterdir()} if folder.is_dir() else {}
            have = {name: data for name, data in have.items() if not name.endswith(".salvaged")}
            assert have.items() <= self.states[snapshot.id].items()
            assert snapshot.id not in found or have == self.states[snapshot.id]
        return found


def _change(storage: MemoryStorage, name: str, data: bytes) -> None:
    storage.delete([name])
    storage.put_new(name, data)


def _flip(storage: MemoryStorage, name: str, at: int) -> None:
    data = bytearray(storage.get(name, limit=1 << 30))
    data[at] ^= 1
    _change(storage, name, bytes(data))


def _twin(storage: MemoryStorage) -> MemoryStorage:
    twin = MemoryStorage("twin")
    for info in storage.list(""):
        twin.put_new(info.name, storage.get(info.name, limit=1 << 30))
    return twin


def _open(monkeypatch: pytest.MonkeyPatch, storage: Storage, state: Path) -> pb.Repository:
    monkeypatch.setattr(opening, "connect", lambda *_, **__: storage)
    return pb.Repository.open("memory://x", PASSPHRASE, state_dir=state)


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, tmp_path: Path) -> Case:
    """Of five packs one is whole; one has a damaged block, one a damaged end, one is missing, and of one a block is
    damaged that the replica lacks. One of the segments is damaged."""
    monkeypatch.setattr(garbage, "YOUNG_NS", -(1 << 62))
    storage = MemoryStorage("base")
    monkeypatch.setattr(opening, "connect", lambda *_, **__: storage)
    pb.Repository.create("memory://x", PASSPHRASE).close()
    root = tmp_path / "documents"
    root.mkdir()
    made = Case(storage, None, root)  # type: ignore[arg-type]
    packs, segments = list[str](), list[str]()
    with _open(monkeypatch, storage, tmp_path / "first") as repo:
        for day in range(5):
            for path in root.iterdir():
                path.unlink()
            (root / f"day-{day}").write_bytes(os.urandom(3000))
            (root / "always").write_bytes(b"the same" * 500)
            made.back_up(repo)
            packs += sorted({info.name for info in storage.list("packs")} - set(packs))
            segments += sorted({info.name for info in storage.list("index")} - set(segments))
        regions = {name: _regions(repo, name) for name in packs}
    assert len(packs) == 5
    replica = _twin(storage)
    replica.delete([packs[4]])
    _flip(storage, packs[1], regions[packs[1]][0])
    _flip(storage, packs[2], regions[packs[2]][1])
    storage.delete([packs[3]])
    _flip(storage, packs[4], regions[packs[4]][0])
    _flip(storage, segments[0], 100)
    made.replica = _open(monkeypatch, replica, tmp_path / "replica")
    with _open(monkeypatch, _twin(storage), tmp_path / "before") as repo:
        made.before = made.whole(repo, tmp_path / "out")
    ids_by_day = list(made.states)
    made.lost = {ids_by_day[4]}
    assert made.before == {ids_by_day[0], ids_by_day[2]}
    return made


def _regions(repo: pb.Repository, name: str) -> tuple[int, int]:
    """An offset in a block of data, and one before the directory."""
    storage, digest = repo._unlocked.storage, bytes.fromhex(name.rpartition("/")[2])
    _, directory = read_directory(repo._unlocked, digest, storage.info(name).size)
    block = next(block for block in directory.blocks if block.kind == Kind.DATA_BLOCK)
    return block.offset + 50, directory.region_size + directory.names_size


def _mended(case: Case, storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch, where: Path) -> None:
    """All that can be is whole; of the damaged packs, the one is left in which something is lost."""
    with _open(monkeypatch, storage, where / "state") as repo:
        assert case.whole(repo, where / "out") == set(case.states) - case.lost
        codes = [finding.code for finding in repo.check(read_data=1.0).findings]
        assert set(codes) <= {"pack-damaged", "pack-unindexed", "index-missing", "index-stale"}, codes
        assert codes.count("pack-damaged") == 1
        assert not repo.propose_repair(replicas=[case.replica]).steps


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_it_dies_at_any_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case, after: bool) -> None:
    for dies_at in any_call():
        inner, where = _twin(case.damaged), tmp_path / f"{dies_at}"
        storage = DyingStorage(inner, deletes=True)
        with _open(monkeypatch, storage, where / "one") as repo:
            proposal = repo.propose_repair(replicas=[case.replica])
            storage.arm(dies_at, after=after)
            try:
                repo.apply(proposal)
                died = False
            except Dead:
                died = True
        with _open(monkeypatch, inner, where / "two") as repo:
            assert case.whole(repo, where / "out", case.before) == case.before
            repo.apply(proposal)
        if dies_at % 7 == 0 or not died:  # what is left behind hardly differs from call to call
            _mended(case, inner, monkeypatch, where / "end")
        if not died:
            return


def _meanwhile(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: Case,
    one: Callable[[pb.Repository], object],
    other: Callable[[pb.Repository], object],
    prepare: Callable[[pb.Repository], Proposal] | None = None,
) -> None:
    """`other` as a whole between any two calls of `one`; then everything is as it should be."""
    for at in any_call():
        inner, where = _twin(case.damaged), tmp_path / f"{at}"
        states = dict(case.states)
        condemned: list[bool] = []

        def meanwhile(inner: MemoryStorage = inner, where: Path = where, condemned: list[bool] = condemned) -> None:
            condemned.append(any(True for _ in inner.list("collections")))
            with _open(monkeypatch, inner, where / "other") as repo:
                other(repo)

        storage = BusyStorage(inner, meanwhile)
        with _open(monkeypatch, storage, where / "one") as repo:
            proposal = prepare(repo) if prepare is not None else None
            storage.interrupt(at)
            try:
                one(repo) if proposal is None else repo.apply(proposal)
            except pb.Conflict as conflict:
                assert conflict.kind == "proposal-stale"
        with _open(monkeypatch, inner, where / "end") as repo:
            new = set(case.states) - set(states)
            sure = new if condemned == [True] else set()  # before, it may rely on what is damaged
            assert case.whole(repo, where / "out", case.before | sure) == case.before | sure
            repo.apply(repo.propose_repair(replicas=[case.replica]))
        with _open(monkeypatch, inner, where / "end") as repo:
            assert case.whole(repo, where / "again") >= set(states) - case.lost | sure
        case.states = states
        if not storage.interrupted:
            return


def _proposed(case: Case) -> Callable[[pb.Repository], Proposal]:
    return lambda repo: repo.propose_repair(replicas=[case.replica])


def _nothing(_: pb.Repository) -> None:
    raise AssertionError


def test_a_backup_runs_between_any_two_calls_of_a_repair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    """Of data that lies in damaged packs and of data that is lost."""
    (case.root / "day-1").write_bytes(case.states[list(case.states)[1]]["day-1"])
    _meanwhile(tmp_path, monkeypatch, case, _nothing, case.back_up, _proposed(case))


def test_a_repair_runs_between_any_two_calls_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    def repair(repo: pb.Repository) -> None:
        repo.apply(repo.propose_repair(replicas=[case.replica]))

    _meanwhile(tmp_path, monkeypatch, case, _nothing, repair, _proposed(case))


def test_a_prune_runs_between_any_two_calls_of_a_repair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    def prune(repo: pb.Repository) -> None:
        try:
            repo.apply(repo.propose_prune())
        except pb.Damaged:  # a block is still missing: it deletes nothing
            return

    _meanwhile(tmp_path, monkeypatch, case, _nothing, prune, _proposed(case))


def test_a_repair_runs_between_any_two_calls_of_a_restore(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    first = next(iter(case.states))
    for at in any_call():
        inner, where = _twin(case.damaged), tmp_path / f"{at}"

        def meanwhile(inner: MemoryStorage = inner, where: Path = where) -> None:
            with _open(monkeypatch, inner, where / "other") as repo:
                repo.apply(repo.propose_repair(replicas=[case.replica]))

        storage = BusyStorage(inner, meanwhile)
        with _open(monkeypatch, storage, where / "one") as repo:
            snapshot = repo.snapshot(id=first)
            storage.interrupt(at)
            repo.restore(where / "out", snapshots=[snapshot])
        found = {path.name: path.read_bytes() for path in (where / "out" / case.root.name).iterdir()}
        assert found == case.states[first]
        if not storage.interrupted:
            return


def test_a_repair_runs_between_any_two_calls_of_a_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    """The backup finds its data in packs that are damaged, and may have done so before the repair."""

    def repair(repo: pb.Repository) -> None:
        repo.apply(repo.propose_repair(replicas=[case.replica]))

    (case.root / "day-1").write_bytes(case.states[list(case.states)[1]]["day-1"])
    _meanwhile(tmp_path, monkeypatch, case, case.back_up, repair)
