"""Keyrings that were deleted, and such as somebody put there: a check tells them, though nobody signs a keyring."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.crypto import hashing
from pharmabackup.crypto.recipients import PrivateKey
from pharmabackup.crypto.signatures import SigningKey
from pharmabackup.engine import enrolment
from pharmabackup.engine.keyrings import Way, domain_of
from pharmabackup.format.keys import CatalogueKey, NamingKey, ReaderKey
from pharmabackup.verbs import check_keyrings
from tests.verbs.site import PASSPHRASE, stored
from tests.verbs.test_enrol import Staff

MISSING, UNUSED = "keyring-missing", "keyring-unused"


CHANGED = pb.Passphrase("another horse battery staple")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Staff:
    """A slot of every role, keys that were replaced, a domain that was founded, a passphrase that was changed."""
    base = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pharmabackup.crypto.passphrases.MEMORY_KIB", 64)
        patch.setattr("pharmabackup.crypto.passphrases.ITERATIONS", 1)
        made = Staff(pb.Repository.create(base / "repository", PASSPHRASE, state_dir=base / "state"), base)
        made.enrol("device", "till")
        made.enrol("restorer", "the desk")
        made.enrol("auditor", "the auditor")
        made.enrol("maintainer", "the supplier")
        made.repo.rotate(reason="to see")
        made.enrol("owner", "Jaya Patel")
        made.enrol("device", "branch till", domain="branch")
        made.repo.change_passphrase(CHANGED)
        made.repo.split_recovery()
        made.repo.rotate(reason="to see")
        made.repo.split_recovery()
        made.close()
        made.repo.close()
    return made


@pytest.fixture
def staff(built: Staff, tmp_path: Path, cheap_kdf: None) -> Iterator[Staff]:
    """A copy of it."""
    shutil.copytree(built.repo.url, tmp_path / "repository")
    made = Staff(pb.Repository.open(tmp_path / "repository", CHANGED), tmp_path)
    made.keys = built.keys
    yield made
    made.close()
    made.repo.close()


def _told(repo: pb.Repository, *codes: str) -> dict[str, tuple[str, str]]:
    return {
        finding.subject: (finding.severity, finding.message)
        for finding in repo.check().findings
        if finding.code in codes
    }


def _slot(staff: Staff, name: str) -> bytes:
    return next(slot.id for slot in staff.repo._unlocked.roster.slots if slot.name == name)


def test_nothing_is_told_where_all_are_there(staff: Staff, tmp_path: Path) -> None:
    names = ("till", "the desk", "the auditor", "the supplier", "Jaya Patel", "branch till")
    for repo in (staff.repo, *map(staff.open, names)):
        assert {finding.code for finding in repo.check().findings} == set()
    with pb.Repository.create(tmp_path / "replica", CHANGED, replica_of=staff.repo, state_dir=tmp_path / "s") as two:
        staff.repo.copy(two)
        assert {finding.code for finding in two.check().findings} == set()


@pytest.mark.parametrize("which", ["all", "first", "last"])
@pytest.mark.parametrize("who", ["till", "the desk", "the auditor", "the supplier", "Jaya Patel", "recovery 2"])
def test_keyrings_that_were_deleted_are_told_to_everybody(staff: Staff, who: str, which: str) -> None:
    """The list tells how often keys were given to each slot since it opens as it does."""
    folder = Path(staff.repo.url) / "keys" / _slot(staff, who).hex()
    kept = sorted(folder.iterdir(), key=lambda path: int(path.name))
    gone = {"all": kept, "first": kept[:1], "last": kept[-1:]}[which]
    if len(kept) == 1 and which != "all":
        gone = kept
    for path in gone:
        path.unlink()
    for repo in (staff.repo, staff.open("branch till")):
        ((subject, (severity, message)),) = _told(repo, MISSING).items()
        assert (subject, severity) == (f"keys/{folder.name}", "critical")
        assert f"Of '{who}' {len(gone)} of {len(kept)} keyrings" in message


def test_a_passphrases_own_keyrings_are_told(staff: Staff) -> None:
    """Older ones, which the passphrase of before opened, are nobody's loss."""
    folder = Path(staff.repo.url) / "keys" / _slot(staff, "owner").hex()
    kept = sorted(folder.iterdir(), key=lambda path: int(path.name))
    roster = staff.repo._unlocked.roster
    recipient = hashing.key_id(next(slot.recipient for slot in roster.slots if slot.name == "owner") or b"")
    kept[0].unlink()
    assert _told(staff.repo, MISSING) == {}
    kept[-1].unlink()
    ((subject, (severity, _)),) = _told(staff.open("branch till"), MISSING).items()
    assert (subject, severity) == (f"keys/{folder.name}", "critical")
    for path in folder.iterdir():
        if recipient in path.read_bytes():
            path.unlink()
    ((_, (severity, message)),) = _told(staff.open("branch till"), MISSING).items()
    assert severity == "warning" and "that of before" in message  # as if the change had been interrupted


def test_one_in_the_place_of_another_is_told_to_whose_it_is(staff: Staff) -> None:
    """The number of keyrings is right; only who opens them can see that one has no keys of a generation."""
    till = staff.open("till")
    folder = Path(staff.repo.url) / "keys" / _slot(staff, "till").hex()
    last = max(folder.iterdir(), key=lambda path: int(path.name))
    last.unlink()
    owner = staff.repo._unlocked
    again = replace(till._unlocked.keyring, signing=None, naming=(), catalogue=till._unlocked.keyring.catalogue[:1])
    enrolment.put_keyring(owner, again, Way("recipient", till._unlocked.opener.recipient))
    assert _told(staff.repo, MISSING) == {}
    number = len(owner.roster.generations) - 1
    with pytest.raises(pb.WrongCredential):
        staff.open("till")
    ((subject, (severity, message)),) = _told(_with_keys(till, number), MISSING).items()
    assert (subject, severity) == (f"keys/{folder.name}", "critical")
    assert f"No keyring of 'till' has the keys of generation {number}" in message


def _with_keys(repo: pb.Repository, number: int) -> pb.Repository:
    """As if it had been opened before, and had forgotten the newest keys."""
    unlocked = repo._unlocked
    unlocked.keyring = replace(unlocked.keyring, catalogue=unlocked.keyring.catalogue[:number])
    return repo


# ------------------------------------------------------------ what fits no list


FALSE: dict[str, Callable[[Staff], dict[str, object]]] = {
    "keys of a generation to come": lambda staff: {"catalogue": (CatalogueKey(9, os.urandom(32)),)},
    "keys to read what comes": lambda staff: {"readers": (ReaderKey(9, PrivateKey.generate().raw),)},
    "other keys of a generation": lambda staff: {"catalogue": (CatalogueKey(1, os.urandom(32)),)},
    "a domain's key": lambda staff: {"naming": (NamingKey(staff.repo._unlocked.domain, os.urandom(32)),)},
    "a domain that there is not": lambda staff: {"naming": (NamingKey(domain_of(b"y" * 32), b"y" * 32),)},
    "another signing key": lambda staff: {"signing": SigningKey.generate().seed},
    "another key to name blocks": lambda staff: {"block_names": os.urandom(32)},
    "another role": lambda staff: {"role": "owner"},
}
FOREIGN = {"a domain's key", "another signing key", "another key to name blocks", "another role"}


@pytest.mark.parametrize("what", FALSE)
def test_a_keyring_that_fits_no_list_is_told_to_whose_it_is(staff: Staff, what: str) -> None:
    """Whoever may write can seal one to any slot; nobody uses it, and its owner hears of it."""
    owner, desk = staff.repo._unlocked, staff.open("the desk")
    before = set(stored(owner.storage, "keys"))
    false = replace(desk._unlocked.keyring, **{"signing": None, "naming": (), **FALSE[what](staff)})
    enrolment.put_keyring(owner, false, Way("recipient", desk._unlocked.opener.recipient))
    (planted,) = set(stored(owner.storage, "keys")) - before
    ((subject, (severity, _)),) = _told(staff.open("the desk"), MISSING, UNUSED).items()
    assert (subject, severity) == (planted, "warning" if what in FOREIGN else "info")
    assert _told(staff.repo, MISSING, UNUSED) == {}  # he cannot look into it


@pytest.mark.parametrize("how", ["of nobody", "to somebody else", "as a key's", "junk that says it is his"])
def test_a_keyring_that_is_nobodys_is_told_to_everybody(staff: Staff, how: str) -> None:
    owner = staff.repo._unlocked
    before = set(stored(owner.storage, "keys"))
    way = enrolment.way_to(owner, owner.slot)
    stranger = PrivateKey.generate().public.raw
    keyring = owner.keyring
    if how == "of nobody":
        keyring = replace(keyring, slot=ids.new_id())
    elif how == "to somebody else":
        way = Way("passphrase", stranger, way.setting)
    elif how == "as a key's":
        way = Way("recipient", way.recipient)
    if how == "junk that says it is his":
        with mock.patch("pharmabackup.crypto.recipients.PublicKey.seal", lambda *_: b"x" * 3000):
            enrolment.put_keyring(owner, keyring, way)
    else:
        enrolment.put_keyring(owner, keyring, way)
    (planted,) = set(stored(owner.storage, "keys")) - before
    told = ("info" if how == "of nobody" else "warning",)
    found = _told(staff.repo, MISSING, UNUSED, "keyring-damaged")
    assert [(name, severity) for name, (severity, _) in found.items()] == [(planted, *told)]
    if how != "junk that says it is his":
        assert set(_told(staff.open("till"), MISSING, UNUSED)) == {planted}


def test_a_change_of_keys_that_was_interrupted_is_told(staff: Staff) -> None:
    with mock.patch("pharmabackup.verbs.keys.enrolment.change_roster", side_effect=OSError), pytest.raises(OSError):
        staff.repo.rotate(reason="to see")
    for repo in (staff.repo, staff.open("the desk")):
        assert [severity for severity, _ in _told(repo, MISSING, UNUSED).values()] == ["info"]


def test_beside_a_change_of_keys_nothing_is_told(staff: Staff, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are replaced just before a check, which knows the older ones, reads the lists of keys."""
    other = pb.Repository.open(staff.repo.url, CHANGED)
    real, done = check_keyrings.read_rosters, list[bool]()

    def read(*given: Any) -> Any:
        if not done:
            done.append(True)
            other.rotate(reason="at the same time")
        return real(*given)

    monkeypatch.setattr(check_keyrings, "read_rosters", read)
    assert not _told(staff.repo, MISSING, UNUSED)
    assert done
    other.close()
