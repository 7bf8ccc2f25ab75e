"""When records came to a place, which rules and delays go by: nobody has one come later, or earlier, than it did."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.engine import carrying
from pharmabackup.engine.history import History
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.transaction import Attempt
from pharmabackup.format.transaction import Carried, Carry, Fate
from pharmabackup.format.wire import Kind
from pharmabackup.retention import LATE_NS
from pharmabackup.storage.base import ObjectInfo
from pharmabackup.storage.local import LocalStorage
from pharmabackup.verbs import copy_replica
from pharmabackup.verbs import keys as keys_module
from pharmabackup.verbs.copy_plan import _order
from tests.verbs.site import PASSPHRASE
from tests.verbs.staff import Staff

SECOND_NS = 10**9


@pytest.fixture
def repo(tmp_path: Path, make_repo: Any) -> pb.Repository:
    """Four snapshots, of which one was forgotten and called back."""
    made: pb.Repository = make_repo()
    (tmp_path / "documents").mkdir()
    for day in range(4):
        (tmp_path / "documents" / f"{day}").write_bytes(os.urandom(100))
        made.backup([pb.Files(tmp_path / "documents")])
    oldest = made.snapshots()[-1]
    made.apply(made.propose_forget(snapshots=[oldest]))
    made.recall(oldest, reason="a mistake")
    return made


def _seen(place: pb.Repository, folder: Path) -> History:
    """By a machine that was never there."""
    with pb.Repository.open(place.url, PASSPHRASE, state_dir=folder) as fresh:
        return load_history(fresh._unlocked)


def _times(history: History) -> dict[bytes, tuple[int, str]]:
    return {
        **{who: (item.came, item.way) for who, item in history.committed.items()},
        **{item.id: (item.time, item.mark.kind) for item in history.said},
    }


def _write_again(repo: pb.Repository, replica: pb.Repository, folder: str) -> int:
    """Without any key: the same bytes under the same names, which are free in a replica."""
    there, here = replica._unlocked.storage, repo._unlocked.storage
    names = [info.name for info in here.list(folder)]
    for name in names:
        there.put_new(name, here.get(name, limit=1 << 20))
    return len(names)


@pytest.mark.parametrize("folder", ["snapshots", "marks"])
def test_what_is_written_again_came_when_a_copy_brought_it(repo: pb.Repository, tmp_path: Path, folder: str) -> None:
    """Else a recall could be made to have come too late, and genuine snapshots to be a thief's."""
    with pb.Repository.create(tmp_path / "replica", PASSPHRASE, replica_of=repo) as replica:
        repo.copy(replica)
        before = _times(_seen(replica, tmp_path / "first"))
        assert {way for _, way in before.values()} >= {"copy", "forget", "undo"}
        assert _write_again(repo, replica, folder) >= 2
        after = _times(_seen(replica, tmp_path / "second"))
        later = {who for who, (_, what) in before.items() if what == "forget"}  # then it counts from later on
        assert {who: when for who, when in after.items() if who not in later} == {
            who: when for who, when in before.items() if who not in later
        }
        assert all(after[who] >= before[who] for who in later)


@pytest.mark.parametrize("who", ["a device", "an owner"])
def test_no_carry_has_what_is_here_come_before_it_was_made_or_be_gone(
    repo: pb.Repository, tmp_path: Path, make_repo: Any, who: str
) -> None:
    """Whoever may write to a share gives his own files any time; and clocks are set back."""
    staff = Staff(repo, tmp_path)
    till = staff.enrol("device", "till")
    till.backup([pb.Files(tmp_path / "documents", name="tills")])
    repo.hold(till.snapshot("tills"), reason="an incident")
    before, there = _times(_seen(repo, tmp_path / "first")), repo._unlocked.storage
    own, unlocked = (
        ("snapshots", "marks") if who == "an owner" else ("snapshots",),
        (till if who == "a device" else repo)._unlocked,
    )
    mine = {bytes.fromhex(snapshot.id) for snapshot in till.snapshots()} if who == "a device" else None
    names = [
        info.name for folder in own for info in there.list(folder) if mine is None or ids.id_of(info.name) in mine
    ]
    items = tuple(Carried(name, there.get(name, limit=1 << 20), True) for name in names)
    transaction = ids.new_id()
    unlocked.put(Kind.CARRY, ids.fate_name(transaction), Carry(transaction, bytes(32), items))
    carry = Path(repo.url) / ids.fate_name(transaction)
    carry.chmod(0o600)
    os.utime(carry, ns=(SECOND_NS, SECOND_NS))
    after = _seen(repo, tmp_path / "second")
    assert not after.absent and not after.forgotten()
    kept = {who: when for who, when in before.items() if when[1] not in ("hold", "undo")}
    assert kept.items() <= _times(after).items()
    staff.close()


def test_a_copy_keeps_the_order_where_times_are_whole_seconds(
    repo: pb.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two carries of one second could be read in either order."""
    pin, info = Attempt.pin, LocalStorage.info

    def coarse(found: ObjectInfo) -> ObjectInfo:
        return replace(found, modified=found.modified // SECOND_NS * SECOND_NS)

    def pinned(attempt: Attempt, *packs: Any) -> tuple[ObjectInfo, bytes]:
        made, digest = pin(attempt, *packs)
        return coarse(made), digest

    with pb.Repository.create(tmp_path / "replica", PASSPHRASE, replica_of=repo) as replica:
        monkeypatch.setattr(copy_replica, "GROUP_RECORDS", 2)
        monkeypatch.setattr(Attempt, "pin", pinned)
        monkeypatch.setattr(LocalStorage, "info", lambda storage, name: coarse(info(storage, name)))
        repo.copy(replica)
        seconds = [found.modified // SECOND_NS for found in replica._unlocked.storage.list("snapshots")]
        assert len(seconds) >= 3 and len(set(seconds)) == len(seconds)
        brought = sorted(load_history(replica._unlocked).committed.values(), key=lambda item: item.came)
        assert [item.snapshot.sequence for item in brought] == [0, 1, 2, 3]


def test_a_clock_that_stands_still_does_not_stop_a_copy(
    repo: pb.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrying, "TICK_S", 0.0)
    monkeypatch.setattr(copy_replica, "GROUP_RECORDS", 2)
    pin = Attempt.pin
    monkeypatch.setattr(Attempt, "pin", lambda *given: (replace(pin(*given)[0], modified=5), pin(*given)[1]))
    with pb.Repository.create(tmp_path / "replica", PASSPHRASE, replica_of=repo) as replica:
        repo.copy(replica)
        assert len(replica.snapshots()) == 4


def test_in_which_order_a_copy_brings_records() -> None:
    def item(came: int, *, way: str = "", time: int = 0) -> Any:
        return SimpleNamespace(came=came, way=way, order=(time, 0), snapshot=SimpleNamespace(time=time))

    first, second, third = item(5, way="copy"), item(9, way="copy"), item(3)
    device, to_come = item(4, way="device"), item(1, time=1 + LATE_NS + 1)
    assert sorted((to_come, device, third, second, first), key=_order) == [first, second, third, device, to_come]


def test_a_slots_own_snapshots_are_accepted_however_many_a_thief_adds(
    tmp_path: Path, make_repo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a revoked slot had written counts by what its heads name: the genuine one came before his."""
    monkeypatch.setattr(keys_module, "HEADS_MAX", 3)
    monkeypatch.setattr(keys_module, "ACCEPTED_NEWEST", 3)
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "first").write_bytes(b"x")
    staff = Staff(make_repo(), tmp_path)
    till = staff.enrol("device", "till")
    for _ in range(3):
        till.backup([pb.Files(tmp_path / "documents")])
    unlocked = till._unlocked
    newest = load_history(unlocked).newest()[0]
    for number in range(20):
        transaction = ids.new_id()
        snapshot = msgspec.structs.replace(
            newest.snapshot, time=newest.snapshot.time + number, sequence=10 + number, heads=()
        )
        unlocked.put(Kind.FATE, ids.fate_name(transaction), Fate(transaction, "commit", bytes(32), snapshot))
    accepted, left = keys_module._accepted([staff.repo._unlocked], unlocked.slot.id, 6)
    assert newest.hash in {accepted[start : start + 32] for start in range(0, len(accepted), 32)} and left > 0
    staff.close()
