"""A storage that is turned back, hides something, or shows two people two histories: who can tell, and who cannot."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pytest
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.format.transaction import Fate
from pharmabackup.format.wire import Kind
from tests.verbs.site import PASSPHRASE, Site, stored
from tests.verbs.staff import Staff

MakeRepo = Callable[[], pb.Repository]
FORKED = "history-forked"


@pytest.fixture
def staff(make_repo: MakeRepo, site: Site, tmp_path: Path) -> Iterator[Staff]:
    """An owner, two snapshots, and yesterday's state of the storage beside it."""
    made = Staff(make_repo(), tmp_path)
    made.enrol("device", "till")
    for _ in range(2):
        site.change()
        site.back_up(made.repo)
    shutil.copytree(made.repo.url, tmp_path / "yesterday")
    yield made
    made.close()


def _turn_back(staff: Staff) -> None:
    """The very same files as yesterday, at the same place."""
    shutil.rmtree(staff.repo.url)
    shutil.copytree(staff.folder / "yesterday", staff.repo.url)


def _reopened(staff: Staff) -> pb.Repository:
    """On the owner's machine, which remembers."""
    staff.repo.close()
    staff.repo = pb.Repository.open(staff.repo.url, PASSPHRASE)
    return staff.repo


def _new_machine(staff: Staff, url: Path | None = None) -> pb.Repository:
    return pb.Repository.open(url or staff.repo.url, PASSPHRASE, state_dir=staff.folder / "new machine")


def _codes(report: pb.Report) -> set[str]:
    return {finding.code for finding in report.findings if finding.severity == "critical"} - {"same-device"}


def _subjects(report: pb.Report) -> set[str]:
    return {finding.subject for finding in report.findings if finding.code == FORKED}


def _stops(repo: pb.Repository, out: Path) -> None:
    """A restore stops until a person names what he wants; nothing is let go."""
    with pytest.raises(pb.Damaged) as caught:
        repo.restore(out)
    assert caught.value.kind == FORKED and "name the snapshots" in caught.value.remedy
    assert not out.exists()
    for propose in (repo.propose_prune, lambda: repo.propose_forget({"*": pb.Keep(last=1)})):
        with pytest.raises(pb.Damaged) as caught:
            propose()
        assert caught.value.kind == FORKED


# ------------------------------------------------------------ yesterday's state


def test_a_machine_that_remembers_tells_yesterdays_state(staff: Staff, site: Site, tmp_path: Path) -> None:
    site.change()
    hidden = ids.fate_name(bytes.fromhex(site.back_up(staff.repo)))
    _turn_back(staff)
    repo = _reopened(staff)
    _stops(repo, tmp_path / "out")
    for also in ({"audit-truncated"}, set()):  # the snapshots until the machine is made to forget; the log once
        site.change()
        report = repo.backup([pb.Files(site.root)])
        assert report.datasets["documents"].complete
        assert _codes(report) == {FORKED} | also and _subjects(report) == {hidden}
        report = repo.check()
        assert _codes(report) == {FORKED} and _subjects(report) == {hidden}
        repo = _reopened(staff)
    _stops(repo, tmp_path / "out")
    assert len(repo.snapshots()) == 4  # a list says nothing
    repo.restore(tmp_path / "out", snapshots=[repo.snapshot()])  # somebody has said which
    assert (tmp_path / "out" / "documents").exists()


def test_a_new_machine_cannot_know(staff: Staff, site: Site, tmp_path: Path) -> None:
    site.change()
    site.back_up(staff.repo)
    _turn_back(staff)
    with _new_machine(staff) as repo:
        assert _codes(repo.check()) == set()
        repo.restore(tmp_path / "out")
        assert len(repo.snapshots()) == 2


def test_any_role_that_saw_it_is_a_witness(staff: Staff, site: Site) -> None:
    auditor = staff.enrol("auditor", "the auditor")
    shutil.rmtree(staff.folder / "yesterday")
    shutil.copytree(staff.repo.url, staff.folder / "yesterday")
    site.change()
    site.back_up(staff.repo)
    auditor.check()
    _turn_back(staff)
    assert FORKED in _codes(staff.open("the auditor").check())


def test_a_state_folder_that_is_deleted_is_how_a_person_says_otherwise(
    staff: Staff, site: Site, tmp_path: Path
) -> None:
    site.change()
    site.back_up(staff.repo)
    _turn_back(staff)
    repo = _reopened(staff)
    _stops(repo, tmp_path / "out")
    shutil.rmtree(repo._unlocked.state)
    _reopened(staff).restore(tmp_path / "out")


# ------------------------------------------------------------ one thing is hidden


@pytest.mark.parametrize("which", ["newest", "older"])
def test_what_a_later_snapshot_names_is_missed_by_anybody(staff: Staff, site: Site, which: str) -> None:
    """The newest of a device is named by none of its others."""
    snapshot = staff.repo.snapshots()[0 if which == "newest" else -1]
    name = ids.fate_name(bytes.fromhex(snapshot.id))
    staff.repo._unlocked.storage.delete([name])
    with _new_machine(staff) as repo:
        assert _subjects(repo.check()) == (set() if which == "newest" else {name})
    assert _subjects(_reopened(staff).check()) == {name}


def test_another_record_in_its_place_is_told(staff: Staff, site: Site, tmp_path: Path) -> None:
    """A stolen device and its storage together: the same transaction, signed once more, with other words."""
    unlocked, snapshot = staff.repo._unlocked, staff.repo.snapshots()[0]
    name = ids.fate_name(bytes.fromhex(snapshot.id))
    staff.repo.check()
    fate = unlocked.get(Kind.FATE, name, Fate).record
    assert fate.snapshot is not None
    unlocked.storage.delete([name])
    unlocked.put(Kind.FATE, name, replace(fate, snapshot=replace(fate.snapshot, reason="another")))
    for _ in range(2):
        assert _subjects(staff.repo.check()) == {name}
    staff.repo.enrol("auditor", pb.KeyFile.create(tmp_path / "k").recipient, name="x")  # all is read once more
    assert _subjects(_reopened(staff).backup([pb.Files(site.root)])) == {name}


# ------------------------------------------------------------ the list of keys


def test_a_list_of_keys_that_is_turned_back_is_told(staff: Staff, site: Site, tmp_path: Path) -> None:
    """Otherwise the thief's till would be in again, and backups would be sealed with keys that he knows."""
    before = set(stored(staff.repo._unlocked.storage, "roster"))
    staff.repo.revoke("till", reason="stolen")
    with pytest.raises(pb.WrongCredential):
        staff.open("till")
    gone = set(stored(staff.repo._unlocked.storage, "roster")) - before
    _turn_back(staff)
    repo = _reopened(staff)
    report = repo.backup([pb.Files(site.root)])
    assert _codes(report) == {FORKED, "audit-truncated"} and _subjects(report) == {min(gone)}
    assert FORKED in _codes(repo.check())
    _stops(repo, tmp_path / "out")
    assert staff.open("till").role == "device"  # it has seen no newer list: a till that was off cannot know


@pytest.mark.parametrize("change", ["new keys", "a device more", "other rules"])
def test_a_list_that_others_cite_is_missed_by_anybody(staff: Staff, site: Site, tmp_path: Path, change: str) -> None:
    """Though what cites it may be sealed under keys that no list has which is here."""
    storage = staff.repo._unlocked.storage
    staff.enrol("device", "other till")
    before = set(stored(storage, "roster"))
    if change == "new keys":
        staff.repo.rotate(reason="somebody left")
    elif change == "a device more":
        staff.enrol("device", "till-2")
    else:
        staff.repo.configure(forget_delay=timedelta(days=20))
    cites = ids.fate_name(bytes.fromhex(site.back_up(staff.open("till"))))
    gone = set(stored(storage, "roster")) - before
    storage.delete(sorted(gone))
    keys = stored(storage, "keys")
    with _new_machine(staff) as repo:
        _stops(repo, tmp_path / "out")
        report = repo.check()
        assert _subjects(report) == {max(gone)} and cites in {finding.subject for finding in report.findings}
        told = next(finding for finding in report.findings if finding.code == FORKED)
        assert f"'till', which signed {cites}, has seen {max(gone)}" in told.message
        site.change()
        report = repo.backup([pb.Files(site.root)])
        assert report.datasets["documents"].complete and _subjects(report) == {max(gone)}
        _changes_nothing(repo, tmp_path)
        repo.restore(tmp_path / "out", snapshots=[repo.snapshot()])  # somebody has said which
    assert (set(stored(storage, "roster")), stored(storage, "keys")) == (before, keys)


def _changes_nothing(repo: pb.Repository, folder: Path) -> None:
    key = pb.KeyFile.create(folder / "one more").recipient
    for deed in (
        lambda: repo.enrol("device", key, name="one more"),
        lambda: repo.enrol("device", key, name="one more", domain="another"),
        lambda: repo.revoke("other till", reason="stolen"),
        lambda: repo.rotate(reason="to see"),
        repo.split_recovery,
        lambda: repo.configure(forget_delay=timedelta(days=30)),
        lambda: repo.change_passphrase(pb.Passphrase("another horse battery staple")),
    ):
        with pytest.raises(pb.Damaged, match="list of who may do what") as caught:
            deed()
        assert caught.value.kind == FORKED


def _cite(unlocked: Unlocked, *, number: int = 99) -> str:
    """A snapshot of nothing that cites a list of its signer's own making."""
    transaction = ids.new_id()
    genuine = next(iter(load_history(unlocked).committed.values())).snapshot
    unlocked.roster = replace(unlocked.roster, number=number)
    unlocked.rosters = {**unlocked.rosters, number: b"x" * 32}
    fate = Fate(transaction, "commit", bytes(32), replace(genuine, heads=(), domain=unlocked.domain))
    unlocked.put(Kind.FATE, ids.fate_name(transaction), fate)
    return ids.fate_name(transaction)


@pytest.mark.parametrize("number", [1, 99])
def test_who_cites_a_list_of_his_own_making_is_told_and_can_be_revoked(
    staff: Staff, site: Site, tmp_path: Path, number: int
) -> None:
    """A device that was stolen can stop restores, as it can by naming a head that there never was; no longer than
    until it is revoked, which its word does not stop."""
    staff.enrol("device", "other till")
    name = _cite(staff.open("till")._unlocked, number=number)
    repo = _reopened(staff)
    _stops(repo, tmp_path / "out")
    _changes_nothing(repo, tmp_path)
    assert _subjects(repo.check()) == {ids.roster_name(number)}
    repo.revoke("till", reason="stolen")
    assert len(repo._unlocked.roster.generations) == 2
    report = repo.check()
    assert _subjects(report) == set() and {finding.subject for finding in report.findings} == {name}
    repo.restore(tmp_path / "out")


def test_thieves_who_vouch_for_each_other_are_revoked_in_one_call(staff: Staff, tmp_path: Path) -> None:
    """One by one, the word of each would stop the other's revocation. The word of who is not named still stops it."""
    for name in ("desk", "other till"):
        staff.enrol("device", name)
    for number, name in enumerate(("till", "desk"), 98):
        _cite(staff.open(name)._unlocked, number=number)
    repo = _reopened(staff)
    told = next(finding for finding in repo.check().findings if finding.code == FORKED)
    assert "'till'" in told.message and "'desk'" in told.message and "in one call" in told.remedy
    before = stored(repo._unlocked.storage, "roster")
    for name in ("till", "desk", "other till"):
        with pytest.raises(pb.Damaged, match="say that they have seen") as caught:
            repo.revoke(name, reason="stolen")
        for thief in {"till", "desk"} - {name}:
            assert repr(thief) in caught.value.message
        assert "in one call" in caught.value.remedy and stored(repo._unlocked.storage, "roster") == before
    repo.revoke("till", "desk", reason="stolen")
    assert {slot.name for slot in repo.slots() if slot.revoked} == {"till", "desk"}
    assert len(stored(repo._unlocked.storage, "roster")) == len(before) + 2  # both in one list, and new keys
    assert [record.subject for record in repo.audit() if record.event == "revoke"][-2:] == ["till", "desk"]
    repo.restore(tmp_path / "out")


@pytest.mark.parametrize("who", ["nobody", "an auditor", "revoked", "another's name", "no slot", "not its seal"])
def test_what_anybody_could_put_there_stops_no_restore(staff: Staff, site: Site, tmp_path: Path, who: str) -> None:
    till, auditor = staff.open("till")._unlocked, staff.enrol("auditor", "the auditor")._unlocked
    name = ids.fate_name(ids.new_id())
    if who == "an auditor":
        auditor.keyring = replace(auditor.keyring, naming=till.keyring.naming)
        name = _cite(auditor)
    elif who == "nobody":
        staff.repo._unlocked.storage.put_new(name, b"x" * 2000)
    elif who == "revoked":
        staff.repo.revoke("till", reason="stolen")
        with mock.patch.multiple(Unlocked, renew=lambda _: None, renewed=lambda *_: False):
            name = _cite(till)
    else:
        if who == "no slot":
            till.keyring = replace(till.keyring, slot=ids.new_id())
        planted = Path(staff.repo.url) / _cite(till)
        data = planted.read_bytes()
        planted.unlink()
        if who == "not its seal":
            data = data[:-1] + bytes([data[-1] ^ 1])
            name = ids.fate_name(ids.hex_tail(planted.name) or b"")
        (Path(staff.repo.url) / name).write_bytes(data)
    repo = _reopened(staff)
    assert name in {finding.subject for finding in repo.check().findings}
    repo.restore(tmp_path / "out")
    repo.rotate(reason="to see")


def test_two_processes_of_one_machine_tell_nothing_of_each_others_lists(staff: Staff, site: Site) -> None:
    """One has seen a newer list than the other has read."""
    with pb.Repository.open(staff.repo.url, PASSPHRASE) as other:
        other.snapshots()
        staff.repo.rotate(reason="somebody left")
        staff.repo.snapshots()
        assert _codes(other.check()) == set()
        site.change()
        assert _codes(other.backup([pb.Files(site.root)])) == set()


# ------------------------------------------------------------ two histories


def test_two_who_see_two_histories_find_out_when_they_compare(staff: Staff, site: Site, tmp_path: Path) -> None:
    """Each alone sees nothing; a replica that only lags behind lacks snapshots and has none of its own."""
    site.change()
    here = site.back_up(staff.repo)
    with _new_machine(staff, tmp_path / "yesterday") as other:
        comparison = staff.repo.compare(other)
        assert ([it.id for it in comparison.only_here], comparison.only_there) == ([here], ())
        site.change()
        there = site.back_up(other)
        assert _codes(staff.repo.check()) == _codes(other.check()) == set()
        comparison = staff.repo.compare(other)
        assert [it.id for it in comparison.only_here] == [here]
        assert [it.id for it in comparison.only_there] == [there]


def test_two_who_see_two_histories_find_out_by_an_anchor(staff: Staff, site: Site, tmp_path: Path) -> None:
    """Which goes from one to the other past the storage: a view that lags, then one that a slot has gone on in."""
    staff.enrol("auditor", "the auditor").close()
    shutil.copytree(staff.repo.url, tmp_path / "shown to the auditor")
    site.change()
    site.back_up(staff.repo)
    anchor, name = staff.repo.audit_anchor(), f"audit/{staff.repo._unlocked.keyring.slot.hex()}/"

    def heard() -> list[tuple[str, str]]:
        where, key = tmp_path / "shown to the auditor", staff.keys["the auditor"]
        with pb.Repository.open(where, key, state_dir=tmp_path / "auditor") as other:
            assert not other.audit_verify().findings
            return [(found.code, found.subject) for found in other.audit_verify(anchors=[anchor]).findings]

    number = next(head.number for head in anchor.heads if head.slot == "owner")
    assert heard() == [("audit-truncated", f"{name}{number}")]
    with _new_machine(staff, tmp_path / "shown to the auditor") as there:
        for _ in range(2):
            site.change()
            site.back_up(there)
        back = there.audit_anchor()
    assert heard() == [("audit-forked", f"{name}{number}")]
    assert not staff.repo.audit_verify(anchors=[anchor]).findings
    site.change()
    site.back_up(staff.repo)
    assert ("audit-forked", "owner") in {
        (found.code, "owner" if found.subject.startswith(name) else "another")
        for found in staff.repo.audit_verify(anchors=[back]).findings
    }
