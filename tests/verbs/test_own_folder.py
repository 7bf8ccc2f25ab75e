"""What a slot keeps on a machine opens to no other slot, and what it believes no other can write."""

from __future__ import annotations

import copy
import hashlib
import os
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.clock import now_ns
from pharmabackup.engine import auditlocal, historycache, index
from pharmabackup.engine.auditlocal import Entry
from pharmabackup.engine.dataset import open_cache
from pharmabackup.engine.historycache import Remembered
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.format import wire
from pharmabackup.format.transaction import Mark
from pharmabackup.format.wire import Kind, Signed
from pharmabackup.verbs import check_schedule
from tests.verbs.site import PASSPHRASE, Site
from tests.verbs.staff import Staff


def _in_the_folder_of(own: Unlocked, keys: Unlocked) -> Unlocked:
    """Whoever has the keys of one slot and reaches the folder of another."""
    thief = copy.copy(keys)
    thief.state, thief.queue = own.state, own.queue
    return thief


def _opened(unlocked: Unlocked, dataset: str) -> dict[str, bool]:
    """What of all that a slot keeps can be read."""
    waiting = auditlocal.queued(unlocked)
    assert waiting
    return {
        "file cache": open_cache(unlocked, dataset).load() is not None,
        "history": bool(historycache.load(unlocked)),
        "index": index._read_cache(unlocked) is not None,
        "heads": bool(auditlocal.load(unlocked)),
        "verified": bool(auditlocal.load_verified(unlocked)),
        "queue": auditlocal.waiting(unlocked, waiting[0]) is not None,
        "schedule": bool(check_schedule._load(unlocked).packs),
    }


def test_what_a_slot_keeps_here_opens_to_no_other_slot(
    staff: Staff, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the names of files of its last snapshots. Both tills are of one domain, and hold its naming key."""
    monkeypatch.setattr(index, "CACHE_AFTER_SEGMENTS", 1)
    first, second = staff.enrol("device", "till-1"), staff.enrol("device", "till-2")
    for till in (first, second):
        site.change()
        site.back_up(till)
        till.check(read_data=1.0)
    own, other = first._unlocked, second._unlocked
    assert auditlocal.enqueue(own, Entry(now_ns(), "Sam Okafor", "trial", "done", "", None, {}))
    assert own.naming_key == other.naming_key
    assert not [what for what, there in _opened(own, site.root.name).items() if not there]
    for keys in (other, staff.repo._unlocked):
        assert not [what for what, there in _opened(_in_the_folder_of(own, keys), site.root.name).items() if there]


def test_nobody_without_a_signing_key_shares_one(staff: Staff) -> None:
    """Of a slot whose own keyring is damaged only those are left that others have sealed to it."""
    found = set()
    for name in ("till-1", "till-2"):
        unlocked = staff.enrol("device", name)._unlocked
        unlocked.keyring = replace(unlocked.keyring, signing=None)
        found.add(unlocked.purpose_key("history cache"))
    assert len(found) == 2


def test_what_a_slot_believes_no_other_can_write(staff: Staff, site: Site, tmp_path: Path) -> None:
    """What was verified here is not verified again: a till that was there once could make the owner's."""
    till = staff.enrol("device", "till-1")
    site.change()
    site.back_up(staff.repo)
    staff.repo.configure(forget_delay=timedelta(0))
    machine = tmp_path / "the owner's machine"
    with pb.Repository.open(staff.repo.url, PASSPHRASE, state_dir=machine) as owner:
        oldest, slot = owner.snapshots()[-1], owner._unlocked.slot.id
    till._unlocked.renew()
    for keys, forgotten in ((till._unlocked, False), (owner._unlocked, True)):
        thief = _in_the_folder_of(owner._unlocked, keys)
        mark = wire.encode(Mark("forget", bytes.fromhex(oldest.id), now_ns() - 10**9, None, None, None))
        signed = wire.encode(Signed(mark, slot, thief.roster.number, thief.roster_hash, bytes(64)))
        name, junk = ids.mark_name(ids.new_id()), os.urandom(500)
        thief.storage.put_new(name, junk)
        known = Remembered(hashlib.sha256(junk).digest(), signed, Kind.MARK)
        historycache.save(thief, {**historycache.load(thief), name: known})
        with pb.Repository.open(staff.repo.url, PASSPHRASE, state_dir=machine) as owner:
            found = {snapshot.id: snapshot.forgotten for snapshot in owner.snapshots()}
        assert found[oldest.id] == forgotten  # with the owner's own keys it would be believed
        thief.storage.delete([name])


def test_nothing_goes_into_a_chain_that_another_slot_left_here(staff: Staff, site: Site) -> None:
    first, second = staff.enrol("device", "till-1"), staff.enrol("device", "till-2")
    site.back_up(first)
    thief = _in_the_folder_of(first._unlocked, second._unlocked)
    assert auditlocal.enqueue(thief, Entry(now_ns(), "Sam Okafor", "restore", "done", "", "planted", {}))
    report = first.check()
    assert "planted" not in {record.reason for record in first.audit()}
    assert {finding.code for finding in report.findings} >= {"audit-queued"}  # it stays, and is counted


def test_what_waits_while_the_signing_key_cannot_be_read_is_delivered_once_it_can(
    staff: Staff, site: Site, tmp_path: Path
) -> None:
    """And what this machine remembers stays as it was."""
    auditor = staff.enrol("auditor", "the auditor")
    assert auditor.check().state == "ok"
    folder, slot = auditor._unlocked.state, auditor._unlocked.slot.id.hex()
    auditor.close()
    (first,) = (Path(staff.repo.url) / "keys" / slot).iterdir()
    staff.repo.rotate(reason="to see")  # gives him another keyring, without his signing key
    staff.open("the auditor").close()
    remembered = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    whole = first.read_bytes()
    first.chmod(0o600)
    first.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with staff.open("the auditor") as without:
        assert without._unlocked.keyring.signing is None
        told = {each.code: each for each in without.check().findings}
        assert told.keys() >= {"keyring-damaged", "audit-queued"} and "is whole again" in told["audit-queued"].remedy
    assert remembered == {path: path.read_bytes() for path in remembered}
    first.write_bytes(whole)
    with staff.open("the auditor") as again:
        before = [record.event for record in again.audit() if record.slot == "the auditor"].count("check")
        assert again.check().findings == ()
        assert [record.event for record in again.audit() if record.slot == "the auditor"].count("check") == before + 2


def test_whoever_damages_a_keyring_takes_no_key_from_who_has_it_open(staff: Staff, site: Site) -> None:
    """He learns newer lists of keys meanwhile; what this machine remembers stays, and opens."""
    site.change()
    site.back_up(staff.repo)
    restorer = staff.enrol("restorer", "the desk")
    restorer.snapshots()
    unlocked = restorer._unlocked
    (first,) = (Path(staff.repo.url) / "keys" / unlocked.slot.id.hex()).iterdir()
    whole = first.read_bytes()
    staff.repo.rotate(reason="to see")
    first.chmod(0o600)
    first.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    remembered = set(historycache.load(unlocked))
    assert "keyring-damaged" in {each.code for each in restorer.check().findings}
    assert unlocked.has_newest_keys and unlocked.keyring.signing
    assert remembered and remembered <= set(historycache.load(unlocked))
    restorer.close()
    first.write_bytes(whole)
    with staff.open("the desk") as again:
        assert remembered <= set(historycache.load(again._unlocked))
        assert "check" in {record.event for record in again.audit() if record.slot == "the desk"}
