"""Several datasets in one backup: each is committed by itself, in order, whatever comes in between."""

from __future__ import annotations

import errno
import os
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.engine import opening
from pharmabackup.engine.transaction import Transaction
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import SourceFailed
from pharmabackup.format.transaction import Condemn, Intent
from pharmabackup.format.wire import Kind
from pharmabackup.sources import sqlite_view
from pharmabackup.sources.base import Sink, View
from pharmabackup.sources.files import _FilesView
from pharmabackup.storage.base import ObjectInfo, Storage
from pharmabackup.storage.memory import MemoryStorage
from tests.sources.databases import make, posix
from tests.threads import threads_left
from tests.verbs.faults import Dead, DyingStorage

PASSPHRASE = pb.Passphrase("correct horse battery staple")
MakeRepo = Callable[[], pb.Repository]


@pytest.fixture(params=[1, 8], ids=["near", "far"], autouse=True)
def lanes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Far away, each is committed beside the reading of those after it."""
    monkeypatch.setattr(Storage, "lanes", request.param)
    return int(request.param)


@pytest.fixture
def sources(tmp_path: Path) -> list[pb.Files]:
    """Three tiers whose files are half the same."""
    shared = [os.urandom(30_000) for _ in range(4)]
    made = []
    for tier in range(3):
        root = tmp_path / f"tier-{tier}"
        root.mkdir()
        for number, data in enumerate(shared):
            (root / f"shared-{number}").write_bytes(data)
        (root / "own").write_bytes(os.urandom(50_000))
        made.append(pb.Files(root, tier=tier))
    return made


def _contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir()}


def _all_restore(repo: pb.Repository, tmp_path: Path, out: str) -> None:
    for snapshot in repo.snapshots():
        repo.restore(tmp_path / out / snapshot.id, snapshots=[snapshot])
        restored = tmp_path / out / snapshot.id / snapshot.dataset
        assert _contents(restored) == _contents(tmp_path / snapshot.dataset)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_several_datasets_die_at_any_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, sources: list[pb.Files], after: bool, lanes: int
) -> None:
    kept: set[int] = set()
    for dies_at in range(300):
        inner = MemoryStorage("inner")
        storage = DyingStorage(inner, lanes=lanes)
        died = _dies(monkeypatch, storage, tmp_path / f"state-{dies_at}", sources, dies_at, after=after)
        monkeypatch.setattr(opening, "connect", lambda *_, inner=inner, **__: inner)
        with pb.Repository.open("memory://x", PASSPHRASE, state_dir=tmp_path / f"state-{dies_at}") as repo:
            names = sorted(snapshot.dataset for snapshot in repo.snapshots())
            assert names == [f"tier-{tier}" for tier in range(len(names))]  # the first are safe first
            kept.add(len(names))
            assert repo.check(read_data=1.0).state == "ok"
            _all_restore(repo, tmp_path, f"out-{dies_at}")
            assert repo.backup(sources).state == "ok"
            assert repo.check(read_data=1.0).state == "ok"
            _all_restore(repo, tmp_path, f"again-{dies_at}")
        if not died:
            break
    assert not died
    assert kept == {0, 1, 2, 3}


def _dies(
    monkeypatch: pytest.MonkeyPatch,
    storage: DyingStorage,
    state: Path,
    sources: list[pb.Files],
    dies_at: int,
    *,
    after: bool,
) -> bool:
    monkeypatch.setattr(opening, "connect", lambda *_, **__: storage.inner)
    pb.Repository.create("memory://x", PASSPHRASE).close()
    monkeypatch.setattr(opening, "connect", lambda *_, **__: storage)
    with pb.Repository.open("memory://x", PASSPHRASE, state_dir=state) as repo:
        storage.arm(dies_at, after=after)
        try:
            repo.backup(sources)
        except Dead:
            return True
    return False


class _Collector:
    """Condemns what a transaction wrote just after its intent, as a collector does that had read intents before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.condemned: set[bytes] = set()
        self._left = times
        self._real = Transaction.pin
        monkeypatch.setattr(Transaction, "pin", lambda *arguments: self._pin(*arguments))

    def _pin(self, transaction: Transaction, *arguments: Any) -> tuple[ObjectInfo, bytes]:
        found = self._real(transaction, *arguments)
        if self._left:
            self._left -= 1
            unlocked = transaction._unlocked
            number = 1 + len(list(unlocked.storage.list("collections")))
            packs = b"".join(sorted(transaction._written))
            unlocked.put(Kind.CONDEMN, ids.collection_name(number, "condemn"), Condemn(number, packs, b"", b""))
            self.condemned.update(transaction._written)
        return found


def _relied_on(unlocked: Unlocked) -> set[bytes]:
    """The packs that committed transactions pinned."""
    found: set[bytes] = set()
    for info in unlocked.storage.list("snapshots"):
        name = ids.intent_name(ids.hex_tail(info.name) or b"", 0)
        packs = unlocked.get(Kind.INTENT, name, Intent).record.packs
        found.update(packs[i : i + 32] for i in range(0, len(packs), 32))
    return found


def test_a_collection_overtakes_the_first(
    tmp_path: Path, make_repo: MakeRepo, sources: list[pb.Files], monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = _Collector(monkeypatch, times=2)
    repo = make_repo()
    events: list[pb.Event] = []
    report = repo.backup(sources, progress=events.append)
    assert report.state == "ok" or [finding.code for finding in report.findings] == ["same-device"] * 3
    assert [event.kind for event in events].count("retrying") == 2
    assert len(collector.condemned) == 2
    assert not collector.condemned & _relied_on(repo._unlocked)
    assert len(repo.snapshots()) == 3
    _all_restore(repo, tmp_path, "out")


def test_one_that_collections_keep_overtaking_does_not_stop_the_others(
    tmp_path: Path, make_repo: MakeRepo, sources: list[pb.Files], monkeypatch: pytest.MonkeyPatch, lanes: int
) -> None:
    _Collector(monkeypatch, times=3 if lanes == 1 else 4)  # the one beside the others is not counted
    repo = make_repo()
    events: list[pb.Event] = []
    with pytest.raises(pb.Incomplete, match=r"1 of 3 datasets not backed up: tier-0\."):
        repo.backup(sources, progress=events.append)
    retrying = [event.dataset for event in events if event.kind == "retrying"]
    assert retrying == ["tier-0"] * (2 if lanes == 1 else 3)  # the others are read once
    assert sorted(snapshot.dataset for snapshot in repo.snapshots()) == ["tier-1", "tier-2"]
    _all_restore(repo, tmp_path, "out")


def test_collections_overtake_for_ever(
    make_repo: MakeRepo, sources: list[pb.Files], monkeypatch: pytest.MonkeyPatch
) -> None:
    _Collector(monkeypatch, times=100)
    repo = make_repo()
    with pytest.raises(pb.Incomplete, match=r"3 of 3 datasets not backed up") as caught:
        repo.backup(sources)
    messages = [finding.message for finding in caught.value.findings if finding.code == "dataset-failed"]
    assert "Collections kept overtaking the backup of tier-0." in messages[0]
    assert repo.snapshots() == []
    assert not threads_left("pharmabackup-")


class _Breaking(pb.Files):
    """Cannot be read."""

    def dump(self, sink: Sink, place: str) -> None:
        raise SourceFailed("It broke.", kind="tool-failed", remedy="Mend it.", dataset=self.name)


class _Brittle(pb.Files):
    """Cannot be read, and then not be let go."""

    ended: str | None = None

    @contextmanager
    def view(self, *, scratch: Path) -> Iterator[View]:
        with super().view(scratch=scratch) as view:
            view.dump = self._break  # type: ignore[method-assign]
            try:
                yield view
                self.ended = "well"
            except SourceFailed:
                self.ended = "badly"
                raise SourceFailed("It broke again.", kind="tool-failed", dataset=self.name) from None

    def _break(self, _: Sink) -> Mapping[str, object]:
        raise SourceFailed("It broke.", kind="tool-failed", remedy="Mend it.", dataset=self.name)


def test_one_that_fails_and_cannot_be_let_go_does_not_stop_the_others(
    tmp_path: Path, make_repo: MakeRepo, sources: list[pb.Files]
) -> None:
    """Its view hears that it failed, as that of a program that ran, or of a transaction, has to."""
    repo, brittle = make_repo(), _Brittle(tmp_path / "tier-1", tier=1)
    with pytest.raises(pb.Incomplete, match=r"1 of 3 datasets not backed up: tier-1\.") as caught:
        repo.backup([sources[0], brittle, sources[2]])
    assert brittle.ended == "badly"
    messages = [finding.message for finding in caught.value.findings if finding.code == "dataset-failed"]
    assert messages == ["tier-1 was not backed up: It broke."]
    _all_restore(repo, tmp_path, "out")


class _LateFacts(UserDict[str, object]):
    """Asks its source when it is looked at."""

    def __iter__(self) -> Iterator[str]:
        raise SourceFailed("It broke.", kind="tool-failed", dataset="tier-0")


def test_facts_that_cannot_be_had_fail_their_own_dataset(
    tmp_path: Path, make_repo: MakeRepo, sources: list[pb.Files], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = _FilesView.dump, [1]

    def dump(self: _FilesView, sink: Sink) -> Mapping[str, object]:
        facts = real(self, sink)
        return _LateFacts(facts) if left and left.pop() else facts

    monkeypatch.setattr(_FilesView, "dump", dump)
    repo = make_repo()
    with pytest.raises(pb.Incomplete, match=r"1 of 3 datasets not backed up: tier-0\."):
        repo.backup(sources)
    assert sorted(snapshot.dataset for snapshot in repo.snapshots()) == ["tier-1", "tier-2"]
    _all_restore(repo, tmp_path, "out")


def test_a_collection_condemns_what_the_next_relies_on(
    tmp_path: Path, make_repo: MakeRepo, sources: list[pb.Files], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packs of the first, once it is committed, and before the second has looked for the last time."""
    first: list[set[bytes]] = []
    real = Transaction.pin

    def pin(transaction: Transaction, *arguments: Any) -> tuple[ObjectInfo, bytes]:
        found = real(transaction, *arguments)
        first.append(set(transaction._written))
        if len(first) == 2:
            condemn = Condemn(1, b"".join(sorted(first[0])), b"", b"")
            transaction._unlocked.put(Kind.CONDEMN, ids.collection_name(1, "condemn"), condemn)
        return found

    monkeypatch.setattr(Transaction, "pin", pin)
    repo = make_repo()
    events: list[pb.Event] = []
    repo.backup(sources, progress=events.append)
    assert [event.dataset for event in events if event.kind == "retrying"] == ["tier-1"]
    for dataset, relies in (("tier-0", True), ("tier-1", False), ("tier-2", False)):
        name = ids.intent_name(bytes.fromhex(repo.snapshot(dataset).id), 0)
        packs = repo._unlocked.get(Kind.INTENT, name, Intent).record.packs
        assert bool(first[0] & {packs[i : i + 32] for i in range(0, len(packs), 32)}) is relies
    _all_restore(repo, tmp_path, "out")


def test_a_database_before_the_others(tmp_path: Path, make_repo: MakeRepo, sources: list[pb.Files]) -> None:
    """SQLite lets its connections be closed by the thread alone that opened them."""
    make(tmp_path / "till.db")
    repo = make_repo()
    repo.backup([pb.SQLite(tmp_path / "till.db", tier=0), *sources])
    assert len(repo.snapshots()) == 4
    repo.restore(tmp_path / "out", snapshots=[repo.snapshot("till")])
    assert next((tmp_path / "out").rglob("till.db")).stat().st_size == (tmp_path / "till.db").stat().st_size


def test_one_that_fails_does_not_stop_the_others(
    tmp_path: Path, make_repo: MakeRepo, sources: list[pb.Files]
) -> None:
    repo = make_repo()
    events: list[pb.Event] = []
    with pytest.raises(pb.Incomplete) as caught:
        repo.backup([sources[0], _Breaking(tmp_path / "tier-1", tier=1), sources[2]], progress=events.append)
    assert caught.value.result is not None
    datasets: Mapping[str, Any] = caught.value.result.datasets
    assert [(name, found.complete) for name, found in datasets.items()] == [
        ("tier-0", True),
        ("tier-1", False),
        ("tier-2", True),
    ]
    failed = [event.dataset for event in events if event.finding and event.finding.code == "dataset-failed"]
    assert failed == ["tier-1"]
    assert sorted(snapshot.dataset for snapshot in repo.snapshots()) == ["tier-0", "tier-2"]
    _all_restore(repo, tmp_path, "out")


@posix
def test_a_database_that_somebody_wrote_past_its_locks_is_not_committed(
    tmp_path: Path, make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "till.db")
    real = sqlite_view.SQLiteView.read_into

    def read_into(self: sqlite_view.SQLiteView, offset: int, buffer: memoryview) -> int:
        os.utime(path, ns=(1, 1))
        return real(self, offset, buffer)

    monkeypatch.setattr(sqlite_view.SQLiteView, "read_into", read_into)
    repo = make_repo()
    with pytest.raises(pb.Incomplete, match=r"1 of 1 datasets not backed up: till\."):
        repo.backup([pb.SQLite(path)])
    assert repo.snapshots() == []


@posix
def test_a_database_that_cannot_be_looked_at_in_the_end_does_not_stop_the_others(
    tmp_path: Path, make_repo: MakeRepo, sources: list[pb.Files], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "till.db")
    real = sqlite_view.SQLiteView.check

    def check(self: sqlite_view.SQLiteView) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fstat", _stale)
            real(self)

    monkeypatch.setattr(sqlite_view.SQLiteView, "check", check)
    repo = make_repo()
    with pytest.raises(pb.Incomplete, match=r"1 of 2 datasets not backed up: till\."):
        repo.backup([pb.SQLite(path, tier=0), sources[1]])
    assert [snapshot.dataset for snapshot in repo.snapshots()] == ["tier-1"]


def _stale(*_: object) -> None:
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def test_chunks_that_were_spilled_are_remembered(
    tmp_path: Path, make_repo: MakeRepo, sources: list[pb.Files], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when so few came after them that alone they would not be worth a cache."""
    monkeypatch.setattr("pharmabackup.engine.index.SPILL_ROWS", 8)
    repo = make_repo()
    repo.backup(sources)
    folder = repo._unlocked.state / "index"
    assert list(folder.glob("*.rows"))
    assert (folder / "cache").exists()
