"""Shares of a check take turns, and add up; what they found keeps rules from letting the last whole snapshot go."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.engine.reading import SnapshotReader
from pharmabackup.engine.segments import read_segment
from pharmabackup.verbs import check, check_schedule
from pharmabackup.verbs.check_packs import PackFound, PackReading
from pharmabackup.verbs.check_schedule import Readings, known_damage, verified
from tests.verbs.site import DAY_NS, Site, Time, forget_all_but

MakeRepo = Callable[[], pb.Repository]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The packs that each check read."""
    found: list[set[str]] = []
    real = PackReading.read

    def noted(self: PackReading, packs: Any, look: Any = lambda: None) -> Any:
        found.append({ids.pack_name(self._index.blocks.packs[place]) for place in packs})
        assert len(packs) == len(found[-1]), "each once"
        return real(self, packs, look)

    monkeypatch.setattr(PackReading, "read", noted)
    return found


def _flip(repo: pb.Repository, name: str) -> None:
    path = Path(repo.url, name)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


def _packs(repo: pb.Repository) -> set[str]:
    return {info.name for info in repo._unlocked.storage.list("packs")}


def _damaged(report: pb.Report) -> set[str]:
    return {finding.subject for finding in report.findings if finding.code == "pack-damaged"}


def test_every_pack_comes_once_before_any_comes_again(repo: pb.Repository, read: list[set[str]]) -> None:
    packs = _packs(repo)
    while not read or set().union(*read) != packs:
        assert len(read) < 20
        assert sum(map(len, read)) == len(set().union(*read))
        repo.check(read_data=1 / 8)
        assert read[-1], "it reads nothing, and it has not come to all"
    assert len(read) > 2
    first = read[0]
    repo.check(read_data=1 / 8)
    assert (read[-2] | read[-1]) & first


def test_what_is_damaged_is_told_each_time_and_keeps_nobody_from_the_others(
    repo: pb.Repository, read: list[set[str]]
) -> None:
    one, *_, other = sorted(_packs(repo))
    _flip(repo, one)
    while one not in _damaged(repo.check(read_data=1 / 8)):
        assert len(read) < 20
    _flip(repo, other)
    found: set[str] = set()
    begun = len(read)
    while other not in found:
        found = _damaged(repo.check(read_data=1 / 8))
        assert one in found
        assert len(read) - begun < 20
    Path(repo.url, one).unlink()
    assert one not in _damaged(repo.check(read_data=1 / 8)), "what is not there is told as missing"


def test_what_a_check_that_is_stopped_has_read_is_not_read_again(
    repo: pb.Repository, read: list[set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel, done = threading.Event(), list[str]()
    real = PackReading._read_pack

    def one(self: PackReading, reader: Any, pack: int, *rest: Any) -> Any:
        if len(done) >= 3:
            cancel.set()
            self._stop.wait(30)
        else:
            done.append(ids.pack_name(self._index.blocks.packs[pack]))
        return real(self, reader, pack, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(PackReading, "_read_pack", one)
        with pytest.raises(pb.Cancelled):
            repo.check(read_data=1.0, cancel=cancel)
    assert not any(known_damage(repo._unlocked)), "what was not read to its end is not damaged"
    repo.check(read_data=1 / 8)
    assert not read[-1] & set(done)


def test_a_power_cut_costs_a_minute(
    repo: pb.Repository, read: list[set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Readings.take

    def take(self: Readings, found: Any, packs: Any, *, now: bool) -> None:
        if not now:  # it does not come to its end
            real(self, found, packs, now=now)

    with monkeypatch.context() as patch:
        patch.setattr(Readings, "take", take)
        repo.check(read_data=1 / 4)
        repo.check(read_data=1 / 4)
        assert read[0] == read[1]
        patch.setattr(check_schedule, "SAVE_EVERY_NS", 0)
        repo.check(read_data=1 / 4)
    repo.check(read_data=1 / 4)
    assert not read[0] & read[-1]


def test_a_snapshot_is_verified_once_all_of_it_was_read(repo: pb.Repository, read: list[set[str]]) -> None:
    packs = _packs(repo)
    while not read or set().union(*read) != packs:
        assert len(read) < 20
        assert not all(snapshot.verified for snapshot in repo.snapshots())
        repo.check(read_data=1 / 8)
    assert all(snapshot.verified for snapshot in repo.snapshots())
    first = {snapshot.id: snapshot.verified for snapshot in repo.snapshots()}
    for _ in range(20):
        repo.check(read_data=1 / 8)
    again = {snapshot.id: snapshot.verified for snapshot in repo.snapshots()}
    assert all((again[name] or 0) > (first[name] or 0) for name in first)  # type: ignore[operator]


def test_it_is_said_again_once_all_of_it_was_read_again() -> None:
    """By the same slot; what was said by a clock that is ahead counts for nothing."""
    now = check_schedule.now_ns()

    def said(slot: bytes, time: int) -> Any:
        return SimpleNamespace(
            mark=SimpleNamespace(kind="verified", time=time), slot=SimpleNamespace(id=slot), transactions={b"t"}
        )

    history: Any = SimpleNamespace(said=[said(b"own", now - 9), said(b"other", now - 3)])
    assert verified(history, b"own", {b"t": now - 9, b"u": now - 20}) == [b"u"]
    assert verified(history, b"own", {b"t": now - 8}) == [b"t"]
    assert verified(history, b"other", {b"t": now - 8}) == []
    history.said.append(said(b"own", now + 10**15))
    assert verified(history, b"own", {b"t": now - 8}) == [b"t"]


@pytest.fixture
def two(make_repo: MakeRepo, site: Site, time: Time) -> pb.Repository:
    """Two snapshots, and nothing of the newer one's data is the older one's."""
    made = make_repo()
    for name in "xy":
        for path in site.root.iterdir():
            path.unlink()
        (site.root / name).write_bytes(name.encode() * 50_000)
        site.back_up(made)
    return made


def _newer_pack(repo: pb.Repository) -> str:
    return max(repo._unlocked.storage.list("packs"), key=lambda info: info.modified).name


@pytest.mark.parametrize("before", [False, True], ids=["never whole", "was verified"])
def test_the_last_good_snapshot_stays_when_the_newer_one_is_damaged(
    tmp_path: Path, two: pb.Repository, before: bool
) -> None:
    older = min(two.snapshots(), key=lambda snapshot: snapshot.time)
    assert [found.id for found in two.propose_forget({"*": pb.Keep(last=1)}).snapshots] == [older.id]
    if before:
        two.check(read_data=1.0)
    _flip(two, _newer_pack(two))
    for _ in range(8):
        two.check(read_data=0.5)
    proposal = two.propose_forget({"*": pb.Keep(last=1)})
    assert not proposal.snapshots
    assert "snapshots-damaged" in {finding.code for finding in proposal.findings}
    named = two.propose_forget(snapshots=[older])
    assert not named.snapshots
    assert "snapshot-stays" in {finding.code for finding in named.findings}
    two.restore(tmp_path / "out", snapshots=[older])


def test_the_last_good_snapshot_stays_when_a_pack_of_the_newer_one_is_missing(two: pb.Repository) -> None:
    Path(two.url, _newer_pack(two)).unlink()
    proposal = two.propose_forget({"*": pb.Keep(last=1)})
    assert not proposal.snapshots
    assert "snapshots-damaged" in {finding.code for finding in proposal.findings}


def test_a_check_that_finds_damage_makes_a_proposal_stale(two: pb.Repository) -> None:
    proposal = two.propose_forget({"*": pb.Keep(last=1)})
    assert proposal.snapshots
    _flip(two, _newer_pack(two))
    two.check(read_data=1.0)
    with pytest.raises(pb.Conflict) as stale:
        two.apply(proposal)
    assert stale.value.kind == "proposal-stale"


def test_the_last_good_snapshot_is_not_deleted_when_damage_is_found_after_it_was_forgotten(
    tmp_path: Path, two: pb.Repository, time: Time
) -> None:
    forget_all_but(two, 1, time)
    assert len(two.propose_prune().snapshots) == 1
    stale = two.propose_prune()
    _flip(two, _newer_pack(two))
    two.check(read_data=1.0)
    with pytest.raises(pb.Conflict):
        two.apply(stale)
    proposal = two.propose_prune()
    assert not proposal.snapshots
    assert "last-good-stays" in {finding.code for finding in proposal.findings}
    two.apply(proposal)
    (older,) = (snapshot for snapshot in two.snapshots() if snapshot.forgotten)
    two.restore(tmp_path / "out", snapshots=[older])


def test_when_all_are_damaged_as_much_stays_as_if_none_were(repo: pb.Repository) -> None:
    before = {snapshot.id for snapshot in repo.propose_forget({"*": pb.Keep(last=3)}).snapshots}
    for name in _packs(repo):
        _flip(repo, name)
    repo.check(read_data=1.0)
    after = {snapshot.id for snapshot in repo.propose_forget({"*": pb.Keep(last=3)}).snapshots}
    assert after <= before


def test_what_a_check_found_damaged_in_another_way_counts(
    two: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its packs are whole, and its recipe does not fit."""
    newer = max(two.snapshots(), key=lambda snapshot: snapshot.time)
    real = SnapshotReader.recipe

    def recipe(self: SnapshotReader) -> Any:
        if self.snapshot.sequence == newer._committed.snapshot.sequence:
            raise pb.Damaged("It does not fit.")
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(SnapshotReader, "recipe", recipe)
        two.check(read_data=1.0)
    assert not two.propose_forget({"*": pb.Keep(last=1)}).snapshots
    two.check()
    assert two.propose_forget({"*": pb.Keep(last=1)}).snapshots


def test_what_lies_about_a_sound_pack_verifies_nothing(repo: pb.Repository) -> None:
    """Of one pack that is named twice one reading was bad: neither it nor what relies on it counts as sound."""
    readings = Readings(repo._unlocked)
    pack = b"p" * 32
    for found in ({0: PackFound(), 1: PackFound("bad")}, {0: PackFound("bad"), 1: PackFound()}):
        readings.take(found, [pack, pack], now=True)
        assert readings.times([pack]) == [0]
        assert known_damage(repo._unlocked)[0] == {pack}


def test_a_clock_that_was_ahead_keeps_no_pack_from_its_turn(
    repo: pb.Repository, read: list[set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = check_schedule.now_ns
    with monkeypatch.context() as patch:
        for module in (check_schedule, check):
            patch.setattr(module, "now_ns", lambda: real() + 365 * DAY_NS)
        repo.check(read_data=1.0)
    first = {snapshot.id: snapshot.verified for snapshot in repo.snapshots()}
    read.clear()
    while set().union(*read) != _packs(repo):
        assert len(read) < 20
        repo.check(read_data=1 / 8)
    again = {snapshot.id: snapshot.verified for snapshot in repo.snapshots()}
    assert all((again[name] or 0) > (first[name] or 0) for name in first)  # type: ignore[operator]


def test_two_checks_at_once_take_nothing_from_each_other(repo: pb.Repository) -> None:
    """Neither what the other has read, nor what it has found damaged."""
    packs = [b"a" * 32, b"b" * 32]
    one, other = Readings(repo._unlocked), Readings(repo._unlocked)
    one.take({0: PackFound("bad")}, packs, now=True)
    other.take({1: PackFound()}, packs, now=True)
    assert known_damage(repo._unlocked)[0] == {packs[0]}
    first, second = Readings(repo._unlocked).times(packs)
    assert not first and second


def test_what_no_segment_names_is_not_missing(two: pb.Repository) -> None:
    """The older one's segment is lost, its packs are whole, and the newer one's pack is damaged."""
    newer = _newer_pack(two)
    Readings(two._unlocked).take({0: PackFound("bad")}, [ids.hex_tail(newer) or b""], now=True)
    for info in two._unlocked.storage.list("index"):
        segment = read_segment(two._unlocked, ids.hex_tail(info.name) or b"")
        if newer not in {ids.pack_name(entry.pack) for entry in segment.record.packs}:
            Path(two.url, info.name).unlink()
    assert not two.propose_forget({"*": pb.Keep(last=1)}).snapshots
