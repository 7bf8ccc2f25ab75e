"""Two records under one name: who holds a device's key puts his own under the number of somebody else's, or his own.

In a replica that has a record from a copy alone, or has not been copied to yet, its name is free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.clock import now_ns
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.format.transaction import Carried, Carry, Fate, Mark
from pharmabackup.format.wire import Kind
from tests.reader.reader import Reader
from tests.verbs.site import PASSPHRASE, Site, Time, forget_all_but, prune, stored
from tests.verbs.staff import Staff

MakeRepo = Callable[[], pb.Repository]
TWO_NAMES = "record-contested"


class Two(Staff):
    """A till that backs up, another one, and a replica that both may write to."""

    def __init__(self, repo: pb.Repository, folder: Path, site: Site) -> None:
        super().__init__(repo, folder)
        self.site = site
        self.enrol("device", "till")
        self.enrol("device", "thief", domain="elsewhere")
        self.enrol("maintainer", "the supplier")
        self.there = folder / "replica"
        self.two = pb.Repository.create(self.there, PASSPHRASE, replica_of=repo, state_dir=folder / "state of two")
        self._opened.append(self.two)

    def back_up(self) -> bytes:
        self.site.change()
        return bytes.fromhex(self.site.back_up(self.open("till")))

    def in_replica(self, name: str) -> Unlocked:
        opened = pb.Repository.open(self.there, self.keys[name], state_dir=self.folder / f"{name} there")
        self._opened.append(opened)
        return opened._unlocked

    def plant(self, transaction: bytes, by: str) -> str:
        """Another snapshot under that number, which is whole: of an almost empty folder. The name of the object."""
        thief, name, root = self.in_replica(by), ids.fate_name(transaction), self.folder / "nothing much"
        root.mkdir()
        (root / "note").write_bytes(b"x")
        done = self._opened[-1].backup([pb.Files(root)]).datasets[root.name].snapshot
        assert done is not None
        own = load_history(thief).committed[bytes.fromhex(done.id)].snapshot
        (self.there / ids.fate_name(bytes.fromhex(done.id))).unlink()  # he need not have written that
        snapshot = replace(own, dataset="documents", reason="planted")
        thief.put(Kind.FATE, name, Fate(transaction, "commit", bytes(32), snapshot))
        return name

    def new_machine(self) -> pb.Repository:
        opened = pb.Repository.open(self.there, PASSPHRASE, state_dir=self.folder / f"new {len(self._opened)}")
        self._opened.append(opened)
        return opened


@pytest.fixture
def pair(make_repo: MakeRepo, site: Site, tmp_path: Path) -> Iterator[Two]:
    made = Two(make_repo(), tmp_path, site)
    yield made
    made.close()


def _criticals(report: pb.Report) -> dict[str, str]:
    found = [finding for finding in report.findings if finding.severity == "critical"]
    return {finding.code: finding.subject for finding in found if finding.code != "same-device"}


# ------------------------------------------------------------ before a copy brings it


@pytest.mark.parametrize("by", ["thief", "till"])
def test_what_has_a_snapshots_number_there_is_not_taken_for_it(pair: Two, tmp_path: Path, by: str) -> None:
    """The copy says so, by name, and so does whoever compares; nobody is told that it is there."""
    made = pair.back_up()
    name = pair.plant(made, by)
    for _ in range(2):
        with pytest.raises(pb.Incomplete) as caught:
            pair.repo.copy(pair.two)
        (finding,) = [one for one in caught.value.findings if one.code == "snapshot-not-copied"]
        assert (finding.severity, finding.subject, finding.location) == ("critical", made.hex(), pair.two.url)
        assert repr(by) in finding.message and "Revoke" in finding.remedy
        report = caught.value.result
        assert isinstance(report, pb.Report) and not report.datasets
    comparison = pair.repo.compare(pair.two)
    assert [one.id for one in comparison.only_here] == [one.id for one in comparison.only_there] == [made.hex()]
    with pytest.raises(pb.Incomplete):  # nor does what was damaged by it take the place of what is genuine
        pair.two.copy(pair.repo)
    assert [one.reason for one in pair.repo.snapshots()] == [None]
    (pair.there / name).unlink()  # a person has looked
    pair.repo.copy(pair.two)
    assert pair.repo.compare(pair.two).only_here == ()
    pair.site.all_restore(pair.new_machine(), tmp_path / "out")


def test_to_revoke_the_thief_brings_it(pair: Two, tmp_path: Path) -> None:
    """Also where the owner has accepted what the thief had there."""
    made = pair.back_up()
    pair.plant(made, "thief")
    with pytest.raises(pb.Incomplete):
        pair.repo.copy(pair.two)
    pair.repo.revoke("thief", reason="stolen", replicas=[pair.two])
    pair.repo.copy(pair.two)
    pair.site.all_restore(pair.new_machine(), tmp_path / "out")
    assert set(Reader(pair.there, "correct horse battery staple").snapshots()) == {made.hex()}


def test_what_was_forgotten_or_is_not_wanted_is_no_reason_to_complain(pair: Two) -> None:
    made, other = pair.back_up(), pair.back_up()
    pair.plant(made, "thief")
    pair.repo.copy(pair.two, snapshots=[pair.repo.snapshot(id=other.hex())])
    assert {one.reason for one in pair.two.snapshots()} == {None, "planted"}


# ------------------------------------------------------------ after it was copied


@pytest.mark.parametrize("by", ["thief", "till"])
def test_what_is_put_under_a_copied_snapshots_number_takes_nothing(pair: Two, tmp_path: Path, by: str) -> None:
    """What a device cannot do is forget. Else the next prune there would delete what the snapshot needs."""
    made = pair.back_up()
    pair.repo.copy(pair.two)
    packs = stored(pair.two._unlocked.storage, "packs")
    name = pair.plant(made, by)
    owner = pair.new_machine()
    assert [(one.id, one.device, one.reason) for one in owner.snapshots()] == [(made.hex(), "till", None)]
    owner.restore(tmp_path / "out")
    found = {path.name: path.read_bytes() for path in (tmp_path / "out" / "documents").iterdir()}
    assert found == pair.site.states[made.hex()]
    assert _criticals(owner.check()) == {TWO_NAMES: name}
    reader = Reader(pair.there, "correct horse battery staple")
    assert reader.contested == [name] and len(reader.restore(made.hex())) == len(found) + 1
    for deed in (owner.propose_prune, lambda: owner.propose_forget({"*": pb.Keep(last=1)})):
        with pytest.raises(pb.Damaged, match=f"{name}.*{by}") as caught:
            deed()
        assert caught.value.kind == TWO_NAMES and "revoke" in caught.value.remedy
    (pair.there / name).unlink()
    pair.site.all_restore(owner, tmp_path / "later")
    prune(owner)
    assert set(packs) <= set(stored(owner._unlocked.storage, "packs"))


def test_to_revoke_the_thief_settles_it(pair: Two, tmp_path: Path) -> None:
    made = pair.back_up()
    pair.repo.copy(pair.two)
    pair.plant(made, "thief")
    pair.repo.revoke("thief", reason="stolen", replicas=[pair.two])
    pair.repo.copy(pair.two)
    owner = pair.new_machine()
    prune(owner)
    pair.site.all_restore(owner, tmp_path / "out")


@pytest.mark.parametrize("revoked", [False, True])
def test_a_carry_of_a_revoked_slot_takes_no_ones_place(pair: Two, tmp_path: Path, revoked: bool) -> None:
    """Whoever holds a maintainer's key as well: only while that counts, when he may destroy anyway."""
    made = pair.back_up()
    supplier, till = pair.open("the supplier")._unlocked, pair.open("till")._unlocked
    name, carrier = ids.fate_name(made), ids.new_id()
    fate = till.get(Kind.FATE, name, Fate).record
    assert fate.snapshot is not None
    false = till.seal(Kind.FATE, name, replace(fate, snapshot=replace(fate.snapshot, reason="planted")))
    carry = Carry(carrier, bytes(32), (Carried(name, false, False),))
    supplier.put(Kind.CARRY, ids.fate_name(carrier), carry)
    if revoked:
        pair.repo.revoke("the supplier", reason="stolen")
    assert [one.reason for one in pair.repo.snapshots()] == [None if revoked else "planted"]
    assert _criticals(pair.repo.check()) == {TWO_NAMES: name}
    reader = Reader(Path(pair.repo.url), "correct horse battery staple")
    assert [one.reason for one in reader.snapshots().values()] == [None if revoked else "planted"]


# ------------------------------------------------------------ what was said


def _hold(pair: Two, made: bytes) -> str:
    pair.repo.hold(pair.repo.snapshot(id=made.hex()), reason="a dispute")
    (name,) = stored(pair.repo._unlocked.storage, "marks")
    return name


def _false_mark(pair: Two, name: str, made: bytes, kind: Any = "verified") -> None:
    pair.in_replica("thief").put(Kind.MARK, name, Mark(kind, made, now_ns(), None, None, None))


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_put_under_a_holds_number_ends_no_hold(pair: Two, time: Time, tmp_path: Path, when: str) -> None:
    """A device may say that it has verified something. Said under a hold's number, it would end that in a replica."""
    made, _ = pair.back_up(), pair.back_up()
    name = _hold(pair, made)
    if when == "after":
        pair.repo.copy(pair.two)
        _false_mark(pair, name, made)
        assert [one.held is not None for one in pair.new_machine().snapshots()] == [False, True]
        assert _criticals(pair.two.check()) == {TWO_NAMES: name}
        assert Reader(pair.there, "correct horse battery staple").stored[name].record.kind == "hold"
    else:
        _false_mark(pair, name, made)
        forget_all_but(pair.repo, 1, time)  # which is held, and stays
        pair.repo.release(pair.repo.snapshots()[1], reason="settled")
        with pytest.raises(pb.Incomplete) as caught:
            pair.repo.copy(pair.two)
        (finding,) = [one for one in caught.value.findings if one.code == "mark-not-copied"]
        assert (finding.severity, finding.subject) == ("critical", name) and "'thief'" in finding.message
        assert {said.mark.kind for said in load_history(pair.two._unlocked).said} == {"verified"}  # no release
        return
    with pytest.raises(pb.Damaged, match=name):
        pair.two.propose_prune()
    pair.repo.revoke("thief", reason="stolen")
    pair.repo.copy(pair.two)
    prune(pair.two)
    assert [one.held is not None for one in pair.two.snapshots()] == [False, True]
    pair.site.all_restore(pair.two, tmp_path / "out")


# ------------------------------------------------------------ what a revoked slot signs under an accepted number


def _replace(pair: Two, made: bytes, place: Path) -> str:
    """The thief of the till has its key, and writes where the record lies or lay."""
    name = ids.fate_name(made)
    till = pb.Repository.open(place, pair.keys["till"], state_dir=pair.folder / "the thief's")
    pair._opened.append(till)
    genuine = load_history(till._unlocked).committed[made].snapshot
    fate = Fate(made, "commit", bytes(32), replace(genuine, reason="planted"))
    pair.repo.revoke("till", reason="stolen", replicas=[pair.two])
    pair.repo.copy(pair.two)
    (place / name).unlink(missing_ok=True)
    (place / name).write_bytes(till._unlocked.seal(Kind.FATE, name, fate))
    return name


def test_an_accepted_number_is_no_pass_for_another_snapshot(pair: Two, tmp_path: Path) -> None:
    """Where he may delete, or the storage is his: the owner accepted what he saw, not its number."""
    made = pair.back_up()
    name = _replace(pair, made, Path(pair.repo.url))
    owner = pair.repo = pb.Repository.open(pair.repo.url, PASSPHRASE, state_dir=tmp_path / "new")
    assert owner.snapshots() == []
    found = {finding.subject: finding.code for finding in owner.check().findings}
    assert found[name] == "snapshot-revoked"
    assert Reader(Path(owner.url), "correct horse battery staple").revoked == {made.hex()}
    pair.two.copy(owner)
    assert [one.reason for one in owner.snapshots()] == [None]
    pair.site.all_restore(owner, tmp_path / "out")


def test_an_accepted_snapshot_that_was_copied_stays_it(pair: Two, tmp_path: Path) -> None:
    """In a replica that has it from a copy alone nobody has to delete anything to put another before it."""
    made = pair.back_up()
    pair.repo.copy(pair.two)
    _replace(pair, made, pair.there)
    owner = pair.new_machine()
    assert [one.reason for one in owner.snapshots()] == [None]
    prune(owner)
    pair.site.all_restore(owner, tmp_path / "out")
    assert [one.reason for one in Reader(pair.there, "correct horse battery staple").snapshots().values()] == [None]


def test_what_was_damaged_when_it_was_revoked_counts_where_it_is_whole(pair: Two, tmp_path: Path) -> None:
    """Its hash is what this machine has seen."""
    made = pair.back_up()
    pair.repo.snapshots()
    pair.repo.copy(pair.two)
    (Path(pair.repo.url) / ids.fate_name(made)).write_bytes(b"x" * 2000)
    pair.enrol("auditor", "the auditor")
    assert pair.repo.snapshots() == []  # all was read once more
    pair.repo.revoke("till", reason="stolen")
    with pytest.raises(pb.Incomplete, match="not all of it can be read here"):
        pair.repo.copy(pair.two)
    assert [one.id for one in pair.new_machine().snapshots()] == [made.hex()]
