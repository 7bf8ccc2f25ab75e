"""What a slot that is revoked has said of snapshots: what an owner saw counts, holds go on, nothing else does.

Whoever has its key cites the list of keys of before, so that neither time nor citation says when he signed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.clock import now_ns
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.format import wire
from pharmabackup.format.keys import ROSTER_MAX, Revoked
from pharmabackup.format.transaction import Carried, Carry, Mark
from pharmabackup.format.wire import Kind
from pharmabackup.verbs import keys
from tests.reader.reader import Reader
from tests.verbs.site import DAY_NS, PASSPHRASE, Site, Time, prune, stored
from tests.verbs.staff import Staff
from tests.verbs.test_contested import TWO_NAMES, Two, _criticals

MakeRepo = Callable[[], pb.Repository]
SECRET = "correct horse battery staple"


@contextmanager
def not_told() -> Iterator[None]:
    """Who signs now has not heard of a newer list of keys, or does as if he had not."""
    with mock.patch.multiple(Unlocked, renew=lambda _: None, renewed=lambda *_: False):
        yield


def sign(by: Unlocked, kind: Any, about: bytes | None, *transactions: bytes, name: str = "") -> bytes:
    """A mark, citing the list that its signer knows. Its id."""
    name = name or ids.mark_name(ids.new_id())
    with not_told():
        by.put(Kind.MARK, name, Mark(kind, b"".join(transactions), now_ns(), "settled", None, about))
    return ids.hex_tail(name) or b""


def read_at(time: Time) -> Any:
    """The independent reader has that time, too."""
    return mock.patch("tests.reader.records.time", SimpleNamespace(time_ns=lambda: now_ns() + time.ahead))


def void(repo: pb.Repository) -> set[str]:
    return {one.subject.removeprefix("marks/") for one in repo.check().findings if one.code == "mark-void"}


class Shop(Staff):
    """Five snapshots, a maintainer, and the oldest snapshot held by the owner."""

    def __init__(self, repo: pb.Repository, site: Site, time: Time, folder: Path) -> None:
        super().__init__(repo, folder)
        self.time = time
        for _ in range(5):
            site.change(size=400_000)
            site.back_up(repo)
        self.supplier = self.enrol("maintainer", "the supplier")._unlocked
        self.made = [bytes.fromhex(one.id) for one in reversed(repo.snapshots())]  # the oldest first
        self.hold(0)
        (held,) = load_history(repo._unlocked).said
        self.held = held.id

    def hold(self, number: int) -> None:
        self.repo.hold(self.repo.snapshot(id=self.made[number].hex()), reason="a dispute")

    def new_machine(self) -> pb.Repository:
        return self.open("owner", key=PASSPHRASE, state_dir=self.folder / f"new {len(self._opened)}")

    def standing(self) -> list[bytes]:
        """What is not forgotten after 15 days: on a new machine, and by the independent reader."""
        self.time.ahead += 15 * DAY_NS
        found = {bytes.fromhex(one.id) for one in self.new_machine().snapshots() if not one.forgotten}
        with read_at(self.time):
            assert {bytes.fromhex(one) for one in Reader(Path(self.repo.url), SECRET).snapshots()} == found
        return [made for made in self.made if made in found]


@pytest.fixture
def shop(make_repo: MakeRepo, site: Site, time: Time, tmp_path: Path) -> Iterator[Shop]:
    made = Shop(make_repo(), site, time, tmp_path)
    yield made
    made.close()


# ------------------------------------------------------------ more than a list can hold


def test_of_more_than_a_list_holds_the_newest_count(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pharmabackup.verbs.keys._most_accepted", lambda *_: 3)
    forgot = [sign(shop.supplier, "forget", None, made) for made in shop.made[:4] for _ in range(2)]
    newest = [said.id for said in load_history(shop.repo._unlocked).said if said.slot.name == "the supplier"][-3:]
    (told,) = shop.repo.revoke("the supplier", reason="stolen")
    assert (told.code, told.severity, told.subject) == ("revoked-in-part", "warning", "the supplier")
    assert "the newest 3" in told.message and "5 others" in told.message
    assert void(shop.repo) == {one.hex() for one in set(forgot) - set(newest)}


def test_of_more_snapshots_than_a_list_holds_those_before_the_newest_count(
    shop: Shop, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    till = shop.enrol("device", "till")
    made = {site.back_up(till) for _ in range(4)}
    monkeypatch.setattr("pharmabackup.verbs.keys._most_accepted", lambda *_: 1)
    (told,) = shop.repo.revoke("till", reason="stolen")
    assert told.code == "revoked-in-part" and "3 others" in told.message
    assert made <= {snapshot.id for snapshot in shop.repo.snapshots()}
    assert "snapshot-revoked" not in {finding.code for finding in shop.repo.check().findings}


def test_a_list_that_nobody_could_read_again_is_not_written(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parts have room for more than its whole."""
    many = bytes(32 * 530_000)
    monkeypatch.setattr("pharmabackup.verbs.keys._accepted", lambda *_: (many, 0))
    with pytest.raises(pb.InvalidInput, match="limits"):
        shop.repo.revoke("the supplier", reason="stolen")
    assert [slot.revoked for slot in shop.new_machine().slots()] == [None, None]


def test_however_many_are_revoked_their_hashes_fit_and_leave_room(shop: Shop) -> None:
    roster = shop.repo._unlocked.roster
    assert keys._most_accepted(roster, 1) == 65_536
    for _ in range(20):
        most = keys._most_accepted(roster, 2)
        assert most > 100
        old = roster.slots[-1]
        gone = [replace(old, id=os.urandom(16), revoked=Revoked(0, "stolen", bytes(32 * most))) for _ in range(2)]
        roster = replace(roster, slots=(*roster.slots, *gone))
    assert len(wire.encode(roster)) < ROSTER_MAX * 6 // 10


# ------------------------------------------------------------ what is signed afterwards


def test_to_release_and_forget_afterwards_lets_nothing_go(shop: Shop, site: Site, tmp_path: Path) -> None:
    shop.repo.revoke("the supplier", reason="stolen")
    released = sign(shop.supplier, "release", shop.held, shop.made[0])
    forgot = sign(shop.supplier, "forget", None, *shop.made)
    before = stored(shop.repo._unlocked.storage, "packs")
    assert shop.standing() == shop.made
    owner = shop.new_machine()
    prune(owner)
    assert set(before) <= set(stored(owner._unlocked.storage, "packs"))
    assert [one.held is not None for one in owner.snapshots()] == [False] * 4 + [True]
    assert void(owner) == {released.hex(), forgot.hex()}
    (told, _) = [one for one in owner.check().findings if one.code == "mark-void"]
    assert "'the supplier'" in told.message and "revoked" in told.message and "credential" in told.remedy
    for snapshot in owner.snapshots():
        owner.restore(tmp_path / "out" / snapshot.id, snapshots=[snapshot])


def test_what_an_owner_forgot_is_not_called_back_afterwards(shop: Shop) -> None:
    forgot = sign(shop.repo._unlocked, "forget", None, *shop.made[1:4])
    shop.repo.revoke("the supplier", reason="stolen")
    undone = sign(shop.supplier, "undo", forgot, *shop.made[1:4])
    assert shop.standing() == [shop.made[0], shop.made[4]]
    assert void(shop.repo) == {undone.hex()}


@pytest.mark.parametrize("first", ["owner", "thief"])
def test_afterwards_he_has_no_vote(shop: Shop, first: str) -> None:
    shop.repo.configure(forget_quorum=2)
    owner = shop.repo._unlocked
    shop.supplier.renew()
    shop.repo.revoke("the supplier", reason="stolen")
    begins, seconds = (owner, shop.supplier) if first == "owner" else (shop.supplier, owner)
    forgot = sign(begins, "forget", None, *shop.made[1:4])
    sign(seconds, "forget", forgot, *shop.made[1:4])
    assert shop.standing() == shop.made
    assert len(void(shop.repo)) == 1


def test_a_hold_goes_on_whenever_it_was_signed(shop: Shop) -> None:
    """What is kept too long is not lost; an owner releases it."""
    before = sign(shop.supplier, "hold", None, shop.made[1])
    shop.repo.revoke("the supplier", reason="left")
    sign(shop.supplier, "hold", None, shop.made[2])
    sign(shop.repo._unlocked, "forget", None, *shop.made[:4])
    assert shop.standing() == [*shop.made[:3], shop.made[4]]
    assert void(shop.repo) == set()
    sign(shop.repo._unlocked, "release", before, shop.made[1])
    assert shop.standing() == [shop.made[0], shop.made[2], shop.made[4]]


# ------------------------------------------------------------ what an owner saw


def test_what_he_said_before_stays_said(shop: Shop) -> None:
    """Also as a vote of two, and for who has never seen the repository."""
    forgot = sign(shop.supplier, "forget", None, *shop.made[:4])
    sign(shop.supplier, "undo", forgot, shop.made[3])
    sign(shop.supplier, "release", shop.held, shop.made[0])
    shop.repo.configure(forget_quorum=2)
    sign(shop.repo._unlocked, "forget", forgot, *shop.made[:3])
    shop.repo.revoke("the supplier", reason="left")
    assert shop.standing() == shop.made[3:]
    assert void(shop.repo) == set()
    prune(shop.repo)
    assert shop.standing() == shop.made[3:]


def test_an_accepted_forget_is_called_back_by_an_owner(shop: Shop) -> None:
    sign(shop.supplier, "forget", None, *shop.made[:4])
    shop.repo.revoke("the supplier", reason="stolen")
    shop.repo.recall(shop.repo.snapshot(id=shop.made[2].hex()), reason="it was the thief")
    assert shop.standing() == [shop.made[0], shop.made[2], shop.made[4]]


@pytest.mark.parametrize("seen", [True, False])
def test_a_mark_that_is_damaged_then_counts_where_this_machine_has_seen_it(shop: Shop, seen: bool) -> None:
    forgot = sign(shop.supplier, "forget", None, *shop.made[1:4])
    path = Path(shop.repo.url) / ids.mark_name(forgot)
    whole = path.read_bytes()
    if seen:
        shop.repo.snapshots()
        shop.enrol("auditor", "the auditor")  # so that all is read once more
    path.write_bytes(b"x" * 2000)
    shop.repo.revoke("the supplier", reason="left")
    path.unlink()
    path.write_bytes(whole)
    assert shop.standing() == ([shop.made[0], shop.made[4]] if seen else shop.made)


@pytest.mark.parametrize("given", [True, False])
def test_what_he_said_in_a_replica_counts_if_it_was_looked_at(shop: Shop, tmp_path: Path, given: bool) -> None:
    two = pb.Repository.create(tmp_path / "two", PASSPHRASE, replica_of=shop.repo, state_dir=tmp_path / "at two")
    shop._opened.append(two)
    shop.repo.copy(two)
    there = pb.Repository.open(two.url, shop.keys["the supplier"], state_dir=tmp_path / "his")
    shop._opened.append(there)
    sign(there._unlocked, "forget", None, *shop.made[1:4])
    shop.repo.revoke("the supplier", reason="left", replicas=[two] if given else [])
    shop.repo.copy(two)
    shop.time.ahead += 15 * DAY_NS
    assert sum(one.forgotten for one in two.snapshots()) == (3 if given else 0)


# ------------------------------------------------------------ names that are free in a replica


@pytest.fixture
def pair(make_repo: MakeRepo, site: Site, tmp_path: Path) -> Iterator[Two]:
    made = Two(make_repo(), tmp_path, site)
    made.enrol("owner", "the partner")
    yield made
    made.close()


@pytest.mark.parametrize("kind", ["verified", "hold"])
def test_a_stolen_device_ends_no_hold_of_who_has_left(pair: Two, time: Time, tmp_path: Path, kind: str) -> None:
    """Who is revoked since was not always: the hold holds, and who put something under its name is named."""
    made = [pair.back_up() for _ in range(3)]
    partner = pair.open("the partner")
    partner.hold(partner.snapshot(id=made[0].hex()), reason="a dispute")
    pair.repo.revoke("the partner", reason="left")
    pair.repo.copy(pair.two)
    (held,) = load_history(pair.repo._unlocked).said
    name = ids.mark_name(held.id)
    sign(pair.in_replica("thief"), kind, None, made[1], name=name)
    owner = pair.new_machine()
    assert owner.snapshot(id=made[0].hex()).held == "a dispute"
    assert _criticals(owner.check()) == {TWO_NAMES: name}
    reader = Reader(pair.there, SECRET)
    assert reader.contested == [name]
    with pytest.raises(pb.Damaged, match=r"thief.*the partner") as caught:
        owner.propose_prune()
    assert caught.value.kind == TWO_NAMES
    pair.repo.revoke("thief", reason="stolen")
    pair.repo.copy(pair.two)
    sign(owner._unlocked, "forget", None, *made[:2])
    time.ahead += 15 * DAY_NS
    owner = pair.new_machine()
    prune(owner)
    left = [made[0], made[2]] if kind == "verified" else made
    assert {bytes.fromhex(one.id) for one in owner.snapshots() if not one.forgotten} == set(left)
    with read_at(time):
        assert {bytes.fromhex(one) for one in Reader(pair.there, SECRET).snapshots()} == set(left)


def test_a_stolen_device_ends_no_recall_of_who_has_left(pair: Two, time: Time) -> None:
    made = [pair.back_up() for _ in range(3)]
    partner = pair.open("the partner")
    forgot = sign(pair.repo._unlocked, "forget", None, *made[:2])
    undone = sign(partner._unlocked, "undo", forgot, made[0])
    pair.repo.revoke("the partner", reason="left")
    pair.repo.copy(pair.two)
    name = ids.mark_name(undone)
    sign(pair.in_replica("thief"), "verified", None, made[1], name=name)
    time.ahead += 15 * DAY_NS
    owner = pair.new_machine()
    assert [one.forgotten for one in owner.snapshots()] == [False, True, False]
    assert _criticals(owner.check()) == {TWO_NAMES: name}
    with read_at(time):
        reader = Reader(pair.there, SECRET)
        assert (set(reader.snapshots()), reader.contested) == ({made[0].hex(), made[2].hex()}, [name])


@pytest.mark.parametrize("by", ["device", "maintainer"])
def test_what_a_copy_brings_ends_no_hold_of_who_has_left(pair: Two, by: str) -> None:
    """A hold of a stolen device, long over, or what he may not say at all: a carry of somebody honest brings it."""
    made = [pair.back_up() for _ in range(2)]
    partner, supplier = pair.open("the partner"), pair.open("the supplier")._unlocked
    partner.hold(partner.snapshot(id=made[0].hex()), reason="a dispute")
    pair.repo.revoke("the partner", reason="left")
    supplier.renew()
    (held,) = load_history(pair.repo._unlocked).said
    name, carrier = ids.mark_name(held.id), ids.new_id()
    thief = pair.open("thief")._unlocked if by == "device" else supplier
    kind: Any = "hold" if by == "device" else "release"
    false = thief.seal(Kind.MARK, name, Mark(kind, made[1], now_ns(), None, 1, None))
    supplier.put(Kind.CARRY, ids.fate_name(carrier), Carry(carrier, bytes(32), (Carried(name, false, False),)))
    assert pair.repo.snapshot(id=made[0].hex()).held == "a dispute"
    assert {one.mark.kind for one in load_history(pair.repo._unlocked).said} == {"hold"}
    reader = Reader(Path(pair.repo.url), SECRET)
    assert {one.mark.transactions for one in reader.said} >= {made[0]}


def test_a_mark_that_may_not_be_made_takes_no_ones_place(pair: Two) -> None:
    """Brought by a copy, a device's forget does not count, and what it lies upon does."""
    made = [pair.back_up() for _ in range(2)]
    supplier, thief = pair.open("the supplier")._unlocked, pair.open("thief")._unlocked
    pair.repo.hold(pair.repo.snapshot(id=made[0].hex()), reason="a dispute")
    (held,) = load_history(pair.repo._unlocked).said
    name, carrier = ids.mark_name(held.id), ids.new_id()
    false = thief.seal(Kind.MARK, name, Mark("forget", made[1], now_ns(), None, None, None))
    supplier.put(Kind.CARRY, ids.fate_name(carrier), Carry(carrier, bytes(32), (Carried(name, false, False),)))
    assert pair.repo.snapshot(id=made[0].hex()).held == "a dispute"
    assert void(pair.repo) == {held.id.hex()}
