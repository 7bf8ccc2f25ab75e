"""A device copies what it backed up itself; what it brings displaces nothing (docs/format.md, §13.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.clock import now_ns
from pharmabackup.engine.historyreader import load_history
from pharmabackup.format.transaction import Carried, Carry, Fate, Mark
from pharmabackup.format.wire import Kind
from tests.reader.reader import Reader
from tests.verbs.site import Site, Time, forget_all_but, prune
from tests.verbs.test_contested import Two

MakeRepo = Callable[[], pb.Repository]


class Till(Two):
    """As there, and the till's own way into the replica."""

    def at_replica(self, name: str) -> pb.Repository:
        self.in_replica(name)
        return self._opened[-1]

    def carry(self, by: str, *items: Carried) -> str:
        """A carry that `by` signs, whatever is in it; its object's name."""
        transaction = ids.new_id()
        name = ids.fate_name(transaction)
        signer = self.two._unlocked if by == "the owner" else self.in_replica(by)
        signer.put(Kind.CARRY, name, Carry(transaction, bytes(32), items))
        return name

    def forged(self, transaction: bytes, by: str) -> Carried:
        """A snapshot that `by` signs under that number."""
        unlocked, name = self.open(by)._unlocked, ids.fate_name(transaction)
        root = self.folder / f"of {by}"
        root.mkdir(exist_ok=True)
        (root / "note").write_bytes(b"x")
        done = self._opened[-1].backup([pb.Files(root)]).datasets[root.name].snapshot
        assert done is not None
        own = load_history(unlocked).committed[bytes.fromhex(done.id)].snapshot
        fate = Fate(transaction, "commit", bytes(32), replace(own, dataset="documents", heads=()))
        return Carried(name, unlocked.seal(Kind.FATE, name, fate), False)


@pytest.fixture
def pair(make_repo: MakeRepo, site: Site, tmp_path: Path) -> Iterator[Till]:
    made = Till(make_repo(), tmp_path, site)
    yield made
    made.close()


def _ids(repo: pb.Repository) -> set[str]:
    return {snapshot.id for snapshot in repo.snapshots()}


def test_a_device_brings_its_own_and_goes_on_from_there(pair: Till, tmp_path: Path) -> None:
    """With no key that reads, and also after the owner replaced the keys."""
    pair.back_up()
    there = pair.at_replica("till")
    till = pair.open("till")
    assert till.copy(there).state == "ok"
    assert _ids(pair.new_machine()) == set(pair.site.states)
    pair.repo.rotate(reason="a yearly change")
    made = [pair.back_up().hex() for _ in range(2)]
    report = pair.open("till").copy(there)
    assert report.datasets[pair.site.root.name].snapshot is not None
    assert made[-1] == report.datasets[pair.site.root.name].snapshot.id
    pair.site.all_restore(pair.new_machine(), tmp_path / "out")
    reader = Reader(pair.there, "correct horse battery staple")
    assert set(reader.snapshots()) == set(pair.site.states)
    assert pair.open("till").copy(there).datasets == {}


def test_what_others_backed_up_and_said_is_left_to_who_may_bring_it(pair: Till, tmp_path: Path) -> None:
    pair.back_up()
    theirs = pair.site.back_up(pair.repo)
    pair.repo.hold(pair.repo.snapshot(id=theirs), reason="a claim")
    pair.open("till").copy(pair.at_replica("till"))
    assert _ids(pair.new_machine()) == set(pair.site.states) - {theirs}
    assert not list((pair.there / "marks").glob("*"))
    pair.repo.copy(pair.two)
    assert _ids(pair.new_machine()) == set(pair.site.states)
    assert not pair.repo.compare(pair.two).only_here
    pair.site.all_restore(pair.new_machine(), tmp_path / "out")


def test_a_prune_there_keeps_what_a_device_brought(pair: Till, time: Time, tmp_path: Path) -> None:
    for _ in range(3):
        pair.back_up()
    pair.open("till").copy(pair.at_replica("till"))
    two = pair.new_machine()
    forget_all_but(two, 1, time)
    prune(two)
    kept = [snapshot for snapshot in two.snapshots() if not snapshot.forgotten]
    assert len(kept) == 1
    pair.site.all_restore(pair.new_machine(), tmp_path / "out")


def _damaged(pair: Till, name: str) -> None:
    path = pair.there / name
    path.write_bytes(path.read_bytes()[:-1])


def _deleted(pair: Till, name: str) -> None:
    (pair.there / name).unlink()


def _is_there(pair: Till, name: str) -> None: ...


@pytest.mark.parametrize("state", [_is_there, _damaged, _deleted])
def test_a_carry_of_a_thief_takes_no_snapshots_place(pair: Till, state: Callable[[Till, str], None]) -> None:
    """Neither of what lies there as an object, nor of what was and is damaged or gone."""
    made = pair.site.back_up(pair.two)
    two = pair.two
    before = {item.hash for item in load_history(two._unlocked).committed.values()}
    assert len(before) == 1
    state(pair, f"snapshots/{made}")
    told = {finding.code for finding in two.check().findings}
    name = pair.carry("thief", pair.forged(bytes.fromhex(made), "thief"))
    history = load_history(two._unlocked)
    assert {item.hash for item in history.committed.values()} <= before  # this machine remembers what it has verified
    if state is not _deleted:  # a new machine cannot know that something was there
        known = {item.hash for item in load_history(pair.new_machine()._unlocked).committed.values()}
        assert known == (before if state is _is_there else set())
    again = two.check()
    assert told <= {finding.code for finding in again.findings}
    assert [finding for finding in again.findings if "thief" in finding.message]
    if state is not _deleted:  # nothing is let go there until it is settled
        assert set(history.contested) == {f"snapshots/{made}"}
        with pytest.raises(pb.Damaged, match="thief"):
            two.propose_prune()
    else:
        assert not history.contested
        assert [one for one in history.void if one.startswith(name)]


@pytest.mark.parametrize("first", ["the thief", "the owner"])
def test_whoever_comes_first_what_an_owner_brings_counts(pair: Till, tmp_path: Path, first: str) -> None:
    made = pair.back_up()
    name = ids.fate_name(made)
    genuine = Carried(name, (Path(pair.repo.url) / name).read_bytes(), False)
    carries = [("thief", pair.forged(made, "thief")), ("the owner", genuine)]
    for by, item in carries if first == "the thief" else reversed(carries):
        pair.carry(by, item)
    history = load_history(pair.new_machine()._unlocked)
    assert history.committed[made].slot.name == "till"
    assert set(history.contested) == {name}
    reader = Reader(pair.there, "correct horse battery staple")
    assert made.hex() in reader.snapshots()
    assert reader.contested == [name]


def test_a_device_brings_nobody_elses_snapshot_and_no_mark(pair: Till) -> None:
    """Genuine records, which somebody who may not bring them has copied out of the other place; nor its own hold."""
    theirs = pair.site.back_up(pair.repo)
    name, own = ids.mark_name(ids.new_id()), ids.mark_name(ids.new_id())
    hold = Mark("hold", bytes.fromhex(theirs), now_ns(), None, None, None)
    forget = Mark("forget", bytes.fromhex(theirs), now_ns(), None, None, None)
    items = [
        Carried(f"snapshots/{theirs}", (Path(pair.repo.url) / "snapshots" / theirs).read_bytes(), False),
        Carried(name, pair.repo._unlocked.seal(Kind.MARK, name, forget), False),
        Carried(own, pair.open("till")._unlocked.seal(Kind.MARK, own, hold), False),
    ]
    pair.carry("till", *items)
    history = load_history(pair.two._unlocked)
    assert (history.committed, history.said, history.damaged, history.contested) == ({}, [], {}, {})
    assert len([one for one in history.void if any(what in one for what in (theirs, name, own))]) == 3
    reader = Reader(pair.there, "correct horse battery staple")
    assert not reader.snapshots()
    assert len(reader.void) == 3


def test_a_device_leaves_alone_what_another_domain_left_unfinished(pair: Till) -> None:
    (pair.folder / "other").mkdir()
    (pair.folder / "other" / "note").write_bytes(b"x" * 5000)
    pair.open("thief").backup([pb.Files(pair.folder / "other")])
    for pack in (Path(pair.repo.url) / "packs").rglob("*"):
        if pack.is_file():
            copied = pair.there / pack.relative_to(pair.repo.url)
            copied.parent.mkdir(parents=True, exist_ok=True)
            copied.write_bytes(pack.read_bytes())
    pair.back_up()
    pair.open("till").copy(pair.at_replica("till"))
    assert len(list((pair.there / "index").iterdir())) == 1


def test_what_is_put_under_a_copied_number_lets_nothing_go(pair: Till, time: Time) -> None:
    """A carry leaves the name itself free: whoever puts something there hides the snapshot, and is found out."""
    made = pair.back_up()
    pair.open("till").copy(pair.at_replica("till"))
    two = pair.new_machine()
    packs = len([path for path in (pair.there / "packs").rglob("*") if path.is_file()])
    thief = pair.in_replica("thief")
    forged = pair.forged(made, "thief")
    thief.storage.put_new(forged.name, forged.stored)
    assert "record-contested" in {finding.code for finding in two.check().findings}
    time.ahead += 30 * 86_400 * 10**9
    with pytest.raises(pb.Damaged, match="thief"):
        two.propose_prune()
    assert len([path for path in (pair.there / "packs").rglob("*") if path.is_file()]) == packs
    reader = Reader(pair.there, "correct horse battery staple")
    assert reader.contested == [forged.name]


def test_what_a_machine_remembers_comes_back_as_it_was(pair: Till) -> None:
    """What the till had backed up to the replica itself, in a place where that was deleted since."""
    there = pair.at_replica("till")
    made = pair.site.back_up(there)
    there.copy(pair.open("till"))
    two = pair.new_machine()
    assert _ids(two) == {made}
    (pair.there / f"snapshots/{made}").unlink()
    assert "history-forked" in {finding.code for finding in two.check().findings}
    pair.open("till").copy(pair.at_replica("till"))
    assert "history-forked" not in {finding.code for finding in two.check().findings}
    assert _ids(two) == {made}


def test_what_is_damaged_there_is_told_when_a_device_copies(pair: Till) -> None:
    there = pair.at_replica("till")
    made = pair.site.back_up(there)
    there.copy(pair.open("till"))
    _damaged(pair, f"snapshots/{made}")
    anew = pb.Repository.open(pair.there, pair.keys["till"], state_dir=pair.folder / "new till")
    with anew, pytest.raises(pb.Incomplete) as caught:
        pair.open("till").copy(anew)
    (finding,) = [one for one in caught.value.findings if one.code == "snapshot-not-copied"]
    assert finding.subject == made
    assert "maintainer or owner" in finding.message + finding.remedy


def test_a_device_does_not_mend_what_is_gone_there(pair: Till) -> None:
    """Its owner does: what a machine has seen and misses is not explained away by a device."""
    made = pair.back_up().hex()
    there = pair.at_replica("till")
    pair.open("till").copy(there)
    (carry,) = (pair.there / "snapshots").glob("*")
    two = pair.new_machine()
    assert _ids(two) == {made}
    carry.unlink()
    pair.open("till").copy(pair.at_replica("till"))
    assert "history-forked" in {finding.code for finding in two.check().findings}
    pair.repo.copy(pair.two)
    assert _ids(pair.new_machine()) == {made}


def test_a_revoked_device_brings_nothing_more(pair: Till) -> None:
    """Though it cites the list of keys from before; what it had brought stays, if the owner saw it there."""
    pair.back_up()
    pair.open("till").copy(pair.at_replica("till"))
    late = pair.forged(ids.new_id(), "till")
    transaction = ids.new_id()
    stale = pair.in_replica("till").seal(
        Kind.CARRY, ids.fate_name(transaction), Carry(transaction, bytes(32), (late,))
    )
    pair.repo.revoke("till", reason="stolen", replicas=[pair.two])
    pair.repo.copy(pair.two)
    (pair.there / ids.fate_name(transaction)).write_bytes(stale)
    assert _ids(pair.new_machine()) == _ids(pair.repo)
    assert late.name.removeprefix("snapshots/") not in _ids(pair.new_machine())
