"""Who is enrolled, with which keys, and what becomes of a slot that is revoked: real credentials of every role."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import get_args
from unittest import mock

import pytest
from blake3 import blake3
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup.crypto import hashing
from pharmabackup.crypto.recipients import PrivateKey
from pharmabackup.engine import enrolment, garbage, opening
from pharmabackup.engine.carrying import copy_keys
from pharmabackup.engine.index import Index
from pharmabackup.engine.keyrings import domain_of
from pharmabackup.format.keys import NamingKey, ReaderKey, Role
from pharmabackup.storage.memory import MemoryStorage
from tests.verbs.crew import unchecked
from tests.verbs.faults import BusyStorage, near_and_far
from tests.verbs.site import PASSPHRASE, Site, Time, forget_all_but, open_at, prune, stored, twin
from tests.verbs.staff import Staff

ROLES: tuple[Role, ...] = get_args(Role)
MakeRepo = Callable[[], pb.Repository]


# ------------------------------------------------------------ what each holds


def test_each_role_holds_exactly_its_keys(staff: Staff) -> None:
    own = staff.repo._unlocked.keyring
    for role in ROLES:
        opened = staff.enrol(role, f"the {role}")
        keyring = opened._unlocked.keyring
        assert (opened.role, opened.slot) == (role, f"the {role}")
        assert keyring.naming == (own.naming if role in ("device", "restorer", "owner") else ())
        assert keyring.readers == (own.readers if role in ("restorer", "owner") else ())
        assert (keyring.catalogue, keyring.block_names) == (own.catalogue, own.block_names)
        assert keyring.signing not in (None, own.signing)
    assert [(slot.name, slot.role, slot.kind) for slot in staff.repo.slots()] == [
        ("owner", "owner", "passphrase"),
        *((f"the {role}", role, "recipient") for role in ROLES),
    ]
    told = {slot.name: slot.fingerprint for slot in staff.repo.slots()}
    assert all(told[name] == key.recipient.fingerprint for name, key in staff.keys.items())


def test_a_device_backs_up_and_a_restorer_brings_it_back(staff: Staff, site: Site, tmp_path: Path) -> None:
    till, reader = staff.enrol("device", "till-1"), staff.enrol("restorer", "the desk")
    assert till.snapshots()
    for _ in range(2):
        site.change()
        site.back_up(till)
    added = [snapshot.added for snapshot in till.snapshots()]
    assert max(added[:2]) < added[2]  # it found what the owner's backup had stored
    for forbidden in (
        lambda: till.restore(tmp_path / "out"),
        lambda: list(till.snapshot().glob()),
        lambda: till.snapshot().open("a"),
    ):
        with pytest.raises(pb.NotPermitted, match=r"may not read.*restorer or owner"):
            forbidden()
    assert not (tmp_path / "out").exists()
    site.all_restore(reader, tmp_path / "there")
    with pytest.raises(pb.NotPermitted, match=r"may not back up.*device or owner"):
        site.back_up(reader)


def test_a_repository_whose_owner_has_a_key_file(tmp_path: Path, site: Site) -> None:
    site.change()
    key = pb.KeyFile.create(tmp_path / "owner.key")
    with pb.Repository.create(tmp_path / "there", key, state_dir=tmp_path / "state") as repo:
        site.back_up(repo)
        repo.rotate(reason="to see")
        site.change()
        site.back_up(repo)
        with pytest.raises(pb.InvalidInput, match="opens with a key"):
            repo.change_passphrase(PASSPHRASE)
    with pb.Repository.open(tmp_path / "there", pb.KeyFile(tmp_path / "owner.key")) as repo:
        site.all_restore(repo, tmp_path / "out")
    with pytest.raises(pb.WrongCredential, match="This key does not open"):
        pb.Repository.open(tmp_path / "there", pb.KeyFile.create(tmp_path / "other.key"))
    with pytest.raises(pb.WrongCredential, match="passphrase does not open"):
        pb.Repository.open(tmp_path / "there", PASSPHRASE)


def test_keys_that_follow_reach_every_slot(staff: Staff, site: Site, tmp_path: Path) -> None:
    opened = {role: staff.enrol(role, f"the {role}") for role in ROLES}
    before = {role: repo._unlocked.keyring for role, repo in opened.items()}
    staff.repo.rotate(reason="to see")
    site.change()
    site.back_up(opened["device"])
    for role, repo in opened.items():
        assert len(repo.snapshots()) == 2
        keyring = repo._unlocked.keyring
        assert len(keyring.catalogue) == len(before[role].catalogue) + 1
        assert len(keyring.readers) == 2 * len(before[role].readers)
        assert (keyring.naming, keyring.signing) == (before[role].naming, before[role].signing)
        staff.open(f"the {role}").check()
    site.all_restore(opened["restorer"], tmp_path / "out")


# ------------------------------------------------------------ what a till knows of itself


def test_a_till_has_no_key_for_what_it_backed_up_itself(staff: Staff, site: Site, tmp_path: Path) -> None:
    """Also without the checks: not a byte comes out."""
    till = staff.enrol("device", "till-1")
    (site.root / "letter").write_bytes(b"Nobody Atall, 999 000 0000; " * 500)
    made = site.back_up(till)
    till.close()  # while it runs, it has the keys that it has just made
    till = staff.open("till-1")
    (own,) = (snapshot for snapshot in till.snapshots() if snapshot.id == made)
    with unchecked(till), pytest.raises((pb.Damaged, pb.Incomplete)):
        till.restore(tmp_path / "out", snapshots=[own])
    for path in tmp_path.rglob("*"):
        if path.is_file() and site.root not in path.parents:
            assert b"Nobody Atall" not in path.read_bytes()


# ------------------------------------------------------------ domains


def test_devices_of_two_domains_find_nothing_of_each_other(staff: Staff, site: Site, tmp_path: Path) -> None:
    first, second = staff.enrol("device", "till-1"), staff.enrol("device", "till-2", domain="branch")
    site.back_up(first)
    site.back_up(second)
    again = staff.enrol("device", "till-3", domain="branch")
    site.back_up(again)
    by_slot = {snapshot.device: snapshot.added for snapshot in staff.repo.snapshots()}
    assert by_slot["till-2"] > by_slot["owner"] * 0.9
    assert by_slot["till-1"] < 20_000 and by_slot["till-3"] < 20_000
    naming = [[key.domain for key in repo._unlocked.keyring.naming] for repo in (first, second, again)]
    domains = [domain.id for domain in staff.repo._unlocked.roster.domains]
    assert naming == [domains[:1], domains[1:], domains[1:]]
    site.all_restore(staff.repo, tmp_path / "out")


def test_who_holds_every_domains_key_learns_that_of_a_new_one(staff: Staff, tmp_path: Path, site: Site) -> None:
    reader, other = staff.enrol("restorer", "the desk"), staff.enrol("owner", "Jaya Patel")
    auditor = staff.enrol("auditor", "the auditor")
    site.back_up(staff.enrol("device", "till-2", domain="branch"))
    domains = [domain.id for domain in staff.repo._unlocked.roster.domains]
    for repo in (staff.repo, reader, other, staff.open("the desk"), staff.open("Jaya Patel")):
        repo._unlocked.renew()
        assert [key.domain for key in repo._unlocked.keyring.naming] == domains
        site.all_restore(repo, tmp_path / os.urandom(4).hex())
    auditor._unlocked.renew()
    assert auditor._unlocked.keyring.naming == ()
    staff.repo = other  # who did not found it enrols another device of it
    site.back_up(staff.enrol("device", "till-3", domain="branch"))


def test_a_naming_key_that_the_roster_does_not_prove_is_not_taken(staff: Staff) -> None:
    """Whoever may write to storage can seal a keyring to anybody's slot."""
    owner = staff.repo._unlocked
    till = staff.enrol("device", "till-2", domain="branch")
    branch = till._unlocked.keyring.naming[0].domain
    false = [NamingKey(branch, b"x" * 32), NamingKey(domain_of(b"y" * 32), b"y" * 32)]
    reader = staff.enrol("restorer", "the desk")._unlocked
    genuine = reader.keyring
    for naming in false:
        added = replace(genuine, signing=None, naming=(naming,))
        slot = next(slot for slot in owner.roster.slots if slot.name == "the desk")
        enrolment.put_keyring(owner, added, slot.recipient)
    reader.renew()
    assert reader.keyring == genuine
    assert staff.open("the desk")._unlocked.keyring == genuine


def _other_names(data: bytes, key: bytes) -> object:
    return blake3(bytes(data) + b"x", key=key)


@pytest.mark.parametrize(
    ("mover", "devices", "domain", "found"),
    [
        ("owner", 0, None, False),
        ("maintainer", 0, None, True),
        ("device", 1, "branch", False),
        ("device", 2, "branch", True),
        ("device", 1, None, True),  # an owner writes there too
    ],
)
def test_names_are_computed_again_where_a_signature_does_not_vouch_for_them(
    staff: Staff,
    site: Site,
    time: Time,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mover: str,
    devices: int,
    domain: str | None,
    found: bool,
) -> None:
    """A maintainer moved it unopened, or one of several devices wrote it, which may be a thief's."""
    writer = staff.repo
    for number in range(devices):
        writer = staff.enrol("device", f"till-{number}", domain=domain)
    with mock.patch("pharmabackup.engine.content_files.blake3", _other_names):
        site.change()
        poisoned = site.back_up(writer)
    if mover == "maintainer":
        carer = staff.enrol("maintainer", "the supplier")
        forget_all_but(carer, 1, time)
        monkeypatch.setattr(garbage, "choose_sparse", _choose_all)
        prune(carer)
    reader = staff.enrol("restorer", "the desk")
    snapshot = reader.snapshot(id=poisoned)
    if found:
        with pytest.raises(pb.Incomplete):
            reader.restore(tmp_path / "out", snapshots=[snapshot])
    else:
        reader.restore(tmp_path / "out", snapshots=[snapshot])


def _choose_all(
    garbage: garbage.Garbage, unused: dict[bytes, int], content: dict[bytes, int], kept: dict[bytes, list[int]]
) -> None:
    garbage.sparse.update({pack: sorted(kept[pack]) for pack in unused})


# ------------------------------------------------------------ revoked


def test_a_revoked_device_opens_nothing_and_what_it_backed_up_stays(staff: Staff, site: Site, tmp_path: Path) -> None:
    till = staff.enrol("device", "till-1")
    for _ in range(3):
        site.change()
        site.back_up(till)
    staff.repo.revoke("till-1", reason="stolen")
    with pytest.raises(pb.WrongCredential, match="revoked \\(stolen\\)"):
        staff.open("till-1")
    assert len(staff.repo.snapshots()) == 4
    site.all_restore(staff.repo, tmp_path / "out")
    assert [slot.revoked is not None for slot in staff.repo.slots()] == [False, True]
    assert len(staff.repo._unlocked.roster.generations) == 2  # it knew the catalogue key
    for again, kind in (("till-1", "revoked"), ("owner", "own-slot")):
        with pytest.raises(pb.Conflict) as caught:
            staff.repo.revoke(again, reason="stolen")
        assert caught.value.kind == kind
    with pytest.raises(pb.NotFound):
        staff.repo.revoke("till-7", reason="stolen")
    with pytest.raises(pb.InvalidInput):
        staff.repo.revoke("till-1", reason=" ")


def test_what_a_thief_signs_later_does_not_count(staff: Staff, site: Site, tmp_path: Path) -> None:
    """He has the till running with all its keys, and goes on citing the list in which it was enrolled."""
    till = staff.enrol("device", "till-1")
    site.change()
    site.back_up(till)
    staff.repo.revoke("till-1", reason="stolen")
    unlocked = till._unlocked
    with mock.patch.multiple(unlocked.__class__, renew=lambda _: None, renewed=lambda *_: False):
        site.change()
        site.back_up(till)
        later = till.snapshots()[0].id
        till.hold(till.snapshots()[-1], reason="to keep it for ever")  # more stays, until an owner releases it
    del site.states[later]
    staff.repo.release(staff.repo.snapshots()[-1], reason="a thief's")
    assert later not in {snapshot.id for snapshot in staff.repo.snapshots()}
    findings = staff.repo.check().findings
    assert {finding.code for finding in findings} >= {"snapshot-revoked"}
    assert "till-1" in next(finding.message for finding in findings if finding.code == "snapshot-revoked")
    for snapshot in staff.repo.snapshots():
        staff.repo.restore(tmp_path / snapshot.id, snapshots=[snapshot])


@near_and_far
def test_a_device_that_is_revoked_while_it_backs_up_hears_of_it(
    make_repo: MakeRepo, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lanes: int
) -> None:
    """At whichever call: what it calls safe counts."""
    repo, key = make_repo(), pb.KeyFile.create(tmp_path / "till.key")
    repo.enrol("device", key, name="till-1")
    site.change(size=3000)
    base, told = MemoryStorage("base"), set[tuple[bool, bool]]()
    for info in repo._unlocked.storage.list(""):
        base.put_new(info.name, repo._unlocked.storage.get(info.name, limit=1 << 30))
    for at in range(1000):
        inner = twin(base)

        def revoke(inner: MemoryStorage = inner, at: int = at) -> None:
            with open_at(monkeypatch, inner, tmp_path / f"owner-{at}") as own:
                own.revoke("till-1", reason="stolen")

        storage = BusyStorage(inner, revoke, lanes=lanes)
        monkeypatch.setattr(opening, "connect", lambda *_, storage=storage, **__: storage)
        with pb.Repository.open("memory://x", key, state_dir=tmp_path / f"till-{at}") as till:
            storage.interrupt(at)
            try:
                done = till.backup([pb.Files(site.root)]).datasets[site.root.name].snapshot
            except pb.WrongCredential as error:
                assert error.kind == "revoked"
                done = None
        if not storage.interrupted:
            break
        with open_at(monkeypatch, inner, tmp_path / f"after-{at}") as after:
            counts = {snapshot.id for snapshot in after.snapshots()}
        assert done is None or done.id in counts
        told.add((done is not None, bool(counts)))
    assert done is not None and told >= {(False, True), (False, False)}


def test_nobody_relies_anew_on_what_a_revoked_device_stored(staff: Staff, site: Site) -> None:
    till = staff.enrol("device", "till-1")
    for name in "xy":
        (site.root / name).write_bytes(os.urandom(300_000))
    site.back_up(till)
    known = {name for name in stored(staff.repo._unlocked.storage, "packs")}
    heir = staff.enrol("device", "till-2")
    site.back_up(heir)
    assert heir.snapshots()[0].added < 20_000
    assert len(set(stored(staff.repo._unlocked.storage, "packs")) - known) <= 1
    staff.repo.revoke("till-1", reason="stolen")
    site.back_up(heir)
    assert heir.snapshots()[0].added > 600_000
    site.back_up(heir)
    assert heir.snapshots()[0].added < 20_000


def test_what_it_backed_up_elsewhere_stays_when_that_is_said(staff: Staff, site: Site, tmp_path: Path) -> None:
    till = staff.enrol("device", "till-1")
    url = tmp_path / "replica"
    with pb.Repository.create(url, PASSPHRASE, replica_of=staff.repo, state_dir=tmp_path / "s") as replica:
        with pb.Repository.open(url, staff.keys["till-1"], state_dir=tmp_path / "t") as there:
            site.change()
            own = site.back_up(there)
        site.change()
        site.back_up(till)
        staff.repo.revoke("till-1", reason="stolen", replicas=[replica])
        staff.repo.copy(replica)
        assert own in {snapshot.id for snapshot in replica.snapshots()}
        assert len(replica.snapshots()) == 3
        site.all_restore(replica, tmp_path / "out")


# ------------------------------------------------------------ what could shut others out


@pytest.mark.parametrize("text", ["x" * 1001, "\udc80", " "])
def test_what_nobody_could_read_again_is_refused(staff: Staff, text: str) -> None:
    """A list that cannot be read would shut everybody out."""
    staff.enrol("device", "till-1")
    before = stored(staff.repo._unlocked.storage, "")
    for deed in (
        lambda: staff.repo.revoke("till-1", reason=text),
        lambda: staff.repo.rotate(reason=text),
        lambda: staff.repo.enrol("device", staff.keys["till-1"], name=text),
        lambda: staff.repo.enrol("device", staff.keys["till-1"], name="till-2", domain=text),
    ):
        with pytest.raises(pb.InvalidInput):
            deed()
    assert stored(staff.repo._unlocked.storage, "") == before


def test_a_list_beyond_the_formats_limits_is_not_written(staff: Staff, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pharmabackup.verbs.keys.REASON_MAX", 1 << 20)
    staff.enrol("device", "till-1")
    before = stored(staff.repo._unlocked.storage, "roster")
    with pytest.raises(pb.InvalidInput, match="outside the format's limits"):
        staff.repo.revoke("till-1", reason="x" * 5000)
    assert stored(staff.repo._unlocked.storage, "roster") == before
    assert staff.open("till-1").role == "device"


def test_reader_keys_that_somebody_put_there_are_not_taken(staff: Staff, site: Site, tmp_path: Path) -> None:
    """A thousand of them would leave no room for the next genuine one."""
    owner = staff.repo._unlocked
    pairs = [PrivateKey.generate().raw for _ in range(999)]
    false = replace(
        owner.keyring, signing=None, readers=tuple(ReaderKey(number, raw) for number, raw in enumerate(pairs))
    )
    enrolment.put_keyring(owner, false, owner.slot.recipient)
    for number in range(2):
        staff.repo.rotate(reason="to see")
        assert len(owner.keyring.readers) == number + 2
    with pb.Repository.open(staff.repo.url, PASSPHRASE, state_dir=tmp_path / "other") as again:
        assert len(again._unlocked.keyring.readers) == 3
        for snapshot in again.snapshots():
            assert {name: snapshot.open(name).read() for name in site.states[snapshot.id]} == site.states[snapshot.id]


def test_a_keyring_under_a_key_files_slot_locks_no_passphrase_out(staff: Staff, tmp_path: Path) -> None:
    """Sealed to the passphrase's own public key, by whoever may write."""
    owner = staff.repo._unlocked
    number = 0
    while number < 2 or min(slot.id for slot in owner.roster.slots) == owner.slot.id:
        staff.enrol("auditor", f"auditor {number}")
        number += 1
    for slot in owner.roster.slots[1:]:
        enrolment.put_keyring(owner, replace(owner.keyring, slot=slot.id), owner.slot.recipient)
    with pb.Repository.open(staff.repo.url, PASSPHRASE, state_dir=tmp_path / "other") as again:
        assert again.slot == "owner"
    assert staff.open("auditor 1").role == "auditor"


@pytest.mark.parametrize("knows", ["an open process", "the machine"])
def test_a_list_that_was_turned_back_is_told_before_keys_are_sealed(staff: Staff, knows: str) -> None:
    """Else new keys were sealed to the thief, whom the list of before still has."""
    staff.enrol("device", "till-1")
    before = {path: path.read_bytes() for path in (Path(staff.repo.url) / "roster").iterdir()}
    staff.repo.revoke("till-1", reason="stolen")
    for path in (Path(staff.repo.url) / "roster").iterdir():
        if path not in before:
            path.unlink()
    repo = staff.repo
    if knows == "the machine":
        repo = staff.open("owner", key=PASSPHRASE, state_dir=repo._unlocked.state.parent)
    else:
        shutil.rmtree(repo._unlocked.state)
    keys = stored(repo._unlocked.storage, "keys")
    with pytest.raises(pb.Damaged) as caught:
        repo.rotate(reason="to see")
    assert caught.value.kind == "history-forked"
    assert len(stored(repo._unlocked.storage, "roster")) == len(before)
    assert stored(repo._unlocked.storage, "keys") == keys


# ------------------------------------------------------------ what stays in a replica


def test_what_a_replica_has_stays_though_it_lags(staff: Staff, site: Site, time: Time, tmp_path: Path) -> None:
    """The list comes there before the newest snapshots, and the copy may end in between, for good."""
    till, url = staff.enrol("device", "till-1"), tmp_path / "replica"
    with pb.Repository.create(url, PASSPHRASE, replica_of=staff.repo, state_dir=tmp_path / "s") as replica:
        for _ in range(2):
            site.change()
            site.back_up(till)
        staff.repo.copy(replica)
        site.change()
        last = site.back_up(till)
        staff.repo.revoke("till-1", reason="stolen")
        copy_keys(staff.repo._unlocked, replica._unlocked.storage)
        replica._unlocked.renew()
        assert len(replica.snapshots()) == 3
        prune(replica)
        del site.states[last]
        site.all_restore(replica, tmp_path / "out")


def test_a_snapshot_that_is_damaged_takes_none_before_it_along(staff: Staff, site: Site, tmp_path: Path) -> None:
    till = staff.enrol("device", "till-1")
    for _ in range(3):
        site.change()
        site.back_up(till)
    newest = till.snapshots()[0].id
    staff.repo.revoke("till-1", reason="stolen")
    (Path(staff.repo.url) / "snapshots" / newest).write_bytes(b"x" * 2000)
    with pb.Repository.open(staff.repo.url, PASSPHRASE, state_dir=tmp_path / "new") as again:
        assert len(again.snapshots()) == 3


# ------------------------------------------------------------ recovery


def test_shares_open_as_an_owner_also_after_keys_were_replaced(staff: Staff, site: Site, tmp_path: Path) -> None:
    shares = staff.repo.split_recovery(threshold=2, shares=3)
    assert [len(share.split()) for share in shares] == [33] * 3
    staff.repo.rotate(reason="somebody left")
    site.change()
    site.back_up(staff.repo)
    site.back_up(staff.enrol("device", "till-2", domain="branch"))
    for pair in (shares[:2], shares[1:], (shares[2].upper(), f"  {shares[0]}\n")):
        opened = staff.open("the safe", key=pb.Shares(*pair))
        assert (opened.role, opened.slot) == ("owner", "recovery")
        site.all_restore(opened, tmp_path / os.urandom(4).hex())
    opened.enrol("owner", pb.Passphrase("a passphrase for the day after"), name="after the fire")
    site.change()
    site.back_up(opened)


def test_any_three_of_five_shares_open_and_no_two(staff: Staff, site: Site) -> None:
    shares = staff.repo.split_recovery(threshold=3, shares=5)
    for three in combinations(shares, 3):
        with staff.open("the safe", key=pb.Shares(*three)) as opened:
            assert (opened.role, opened.slot) == ("owner", "recovery")
            snapshot = opened.snapshot()
            assert {name: snapshot.open(name).read() for name in site.states[snapshot.id]} == site.states[snapshot.id]
    for two in combinations(shares, 2):
        with pytest.raises(pb.WrongCredential, match="takes 3 of these shares; given: 2"):
            pb.Shares(*two)


def test_shares_that_were_split_anew_replace_the_old(staff: Staff, site: Site, tmp_path: Path) -> None:
    old, new = staff.repo.split_recovery(), staff.repo.split_recovery(threshold=3, shares=5)
    with pytest.raises(pb.WrongCredential, match="split anew"):
        staff.open("old", key=pb.Shares(*old[:2]))
    opened = staff.open("new", key=pb.Shares(*new[1:4]))
    assert opened.slot == "recovery 2"
    assert len(opened._unlocked.roster.generations) == 2  # the old shares know the keys of before
    site.all_restore(opened, tmp_path / "out")
    assert hashing.key_id(staff.repo._unlocked.roster.recovery or b"") in {
        wrap.recipient for wrapped in _wraps(opened, site) for wrap in wrapped
    }


def _wraps(repo: pb.Repository, site: Site) -> list[tuple[object, ...]]:
    site.change()
    site.back_up(repo)
    index = Index(repo._unlocked, chunks=False)
    index.load()
    return [wrapped.wraps for wrapped in index.blocks.keys]


def test_shares_that_are_wrong_say_which(staff: Staff) -> None:
    one, two, three = staff.repo.split_recovery()
    other, _, _ = staff.repo.split_recovery()
    wrong = two.split()
    wrong[7] = "academic" if wrong[7] != "academic" else "acid"
    for shares, words in {
        (one,): "takes 2 of these shares; given: 1",
        (one, one): "there twice",
        (one, " ".join(wrong)): "Share 2 is not as it was written down",
        (one, three + " acid"): "Share 2 is not as it was written down",
        (one, other): "not of one key",
        (): "takes 2",
    }.items():
        few = words.startswith("takes")
        with pytest.raises(pb.WrongCredential if few else pb.InvalidInput, match=words) as caught:
            pb.Shares(*shares)
        assert caught.value.kind == ("too-few-shares" if few else "shares")
        assert one.split()[5] not in str(caught.value)
    assert one.split()[5] not in repr(pb.Shares(one, two))
    for threshold, count in ((1, 3), (4, 3), (2, 17)):
        with pytest.raises(pb.InvalidInput):
            staff.repo.split_recovery(threshold=threshold, shares=count)


# ------------------------------------------------------------ the texts and files


def test_a_key_file_is_for_its_user_alone(tmp_path: Path) -> None:
    key = pb.KeyFile.create(tmp_path / "till.key")
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "till.key").stat().st_mode) == 0o600
    public = (tmp_path / "till.key.pub").read_text()
    assert pb.Recipient(public) == key.recipient == pb.KeyFile(tmp_path / "till.key").recipient
    assert len(public) < 1750
    before = (tmp_path / "till.key").read_bytes()
    for taken in ("till.key", "till"):
        (tmp_path / "till.pub").touch()
        with pytest.raises(pb.Conflict) as caught:
            pb.KeyFile.create(tmp_path / taken)
        assert caught.value.kind == "key-exists"
    assert (tmp_path / "till.key").read_bytes() == before
    assert not (tmp_path / "till").exists()
    with pytest.raises(pb.NotFound, match="no key file"):
        pb.KeyFile(tmp_path / "none").recipient  # noqa: B018
    with pytest.raises(pb.StorageFailed, match="cannot be used"):
        pb.KeyFile.create(tmp_path / "no" / "folder")


def test_a_fingerprint_is_that_of_the_key(tmp_path: Path) -> None:
    """80 bits of its SHA-256, in the alphabet that Douglas Crockford described."""
    import hashlib

    recipient = pb.KeyFile.create(tmp_path / "k").recipient
    number = int.from_bytes(hashlib.sha256(recipient.raw).digest()[:10])
    letters = ""
    for _ in range(16):
        number, rest = divmod(number, 32)
        letters = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"[rest] + letters
    assert recipient.fingerprint.replace("-", "") == letters
    assert [len(group) for group in recipient.fingerprint.split("-")] == [4] * 4


def test_a_text_that_was_changed_anywhere_is_refused(tmp_path: Path) -> None:
    key = pb.KeyFile.create(tmp_path / "k")
    public, secret = str(key.recipient), (tmp_path / "k").read_text()
    assert pb.Recipient("\r\n  " + public.replace("\n", "\r\n\r\n")) == key.recipient  # what an e-mail makes of it
    for at in [*range(45), 700, len(public) - 2]:
        changed = public[:at] + ("B" if public[at] != "B" else "C") + public[at + 1 :]
        with pytest.raises(pb.InvalidInput):
            assert pb.Recipient(changed) == key.recipient  # white space may change
            raise pb.InvalidInput
    for at in range(len(secret) - 1):
        (tmp_path / "k").write_text(secret[:at] + ("B" if secret[at] != "B" else "C") + secret[at + 1 :])
        with pytest.raises(pb.InvalidInput) as caught:
            assert key.recipient == pb.Recipient(public)
            raise pb.InvalidInput
        assert secret.split("\n")[2][:10] not in str(caught.value)
