"""Keyrings that were deleted, and such as somebody put there: a check tells them, though nobody signs a keyring."""

from __future__ import annotations

import os
import re
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
from pharmabackup.engine.keyrings import domain_of, seal_keyring
from pharmabackup.format.keys import CatalogueKey, Keyring, NamingKey, ReaderKey
from pharmabackup.verbs import check_keyrings
from tests.verbs.site import PASSPHRASE, stored
from tests.verbs.staff import Staff

MISSING, UNUSED = "keyring-missing", "keyring-unused"
DAMAGED, SWAPPED = "keyring-damaged", "keyring-swapped"
ALL = (MISSING, UNUSED, DAMAGED, SWAPPED)

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
    recipient = hashing.key_id(next(slot.recipient for slot in roster.slots if slot.name == "owner"))
    kept[0].unlink()
    assert _told(staff.repo, MISSING) == {}
    kept[-1].unlink()
    ((subject, (severity, _)),) = _told(staff.open("branch till"), MISSING).items()
    assert (subject, severity) == (f"keys/{folder.name}", "critical")
    for path in folder.iterdir():
        if recipient in path.read_bytes():
            path.unlink()
    ((_, (severity, message)),) = _told(staff.open("branch till"), MISSING).items()
    assert severity == "critical" and "3 of 3" in message
    with pytest.raises(pb.Damaged) as caught:  # and no older passphrase opens in its place
        staff.open("owner", key=CHANGED)
    assert caught.value.kind == "keys-missing"
    with pytest.raises(pb.WrongCredential):
        staff.open("owner", key=PASSPHRASE)


def test_one_in_the_place_of_another_is_told_to_whose_it_is(staff: Staff) -> None:
    """The number of keyrings is right; only who opens them can see that one has no keys of a generation."""
    till, owner = staff.open("till"), staff.repo._unlocked
    held = till._unlocked.keyring
    names = _folder(staff, "till")
    name = _swap(staff, names[-1], replace(held, signing=None, naming=(), catalogue=held.catalogue[:1]))
    assert _told(staff.repo, *ALL) == {}
    number = len(owner.roster.generations) - 1
    with pytest.raises(pb.Damaged) as caught:
        staff.open("till")
    assert caught.value.kind == "keys" and "'till'" in caught.value.message
    ((subject, (severity, message)),) = _told(till, *ALL).items()  # which was open before
    assert (subject, severity) == (name, "critical")
    assert f"No other keyring of 'till' has the keys of generation {number}" in message


def _folder(staff: Staff, who: str) -> list[str]:
    """The names of a slot's keyrings, the oldest first."""
    folder = f"keys/{_slot(staff, who).hex()}"
    return sorted(stored(staff.repo._unlocked.storage, folder), key=lambda name: (len(name), name))


def _swap(staff: Staff, name: str, false: Keyring) -> str:
    """Another keyring in the place of that one, by whoever may write and delete, and knows these keys."""
    slot = next(slot for slot in staff.repo._unlocked.roster.slots if slot.id == false.slot)
    path = Path(staff.repo.url) / name
    path.chmod(0o600)
    path.write_bytes(seal_keyring(false, int(path.name), slot.recipient))
    return name


SHORT: dict[str, tuple[str, int, Callable[[Keyring], dict[str, object]], str]] = {
    "reading keys of one generation": ("the desk", 3, lambda held: _of(held, 2, readers=()), "the keys to read of"),
    "the first, with all naming keys": ("the desk", 0, lambda held: _of(held, 0), "its signing key"),
    "a domain's naming key": ("the desk", 2, lambda held: _of(held, 1), "the naming key of 'branch'"),
    "all keys of the first": ("the auditor", 0, lambda held: _of(held, 0, readers=()), "its signing key"),
    "those of another generation": ("the supplier", 1, lambda held: _of(held, 2, readers=()), "generation 1"),
}


def _of(held: Keyring, number: int, **more: object) -> dict[str, object]:
    """What somebody is given with the keys of one generation."""
    one = [key for key in held.catalogue if key.generation == number]
    readers = [key for key in held.readers if key.generation == number]
    return {"signing": None, "naming": (), "catalogue": tuple(one), "readers": tuple(readers)} | more


@pytest.mark.parametrize("what", SHORT)
def test_one_that_was_swapped_for_one_with_fewer_keys_is_named(staff: Staff, what: str) -> None:
    who, at, fewer, lacks = SHORT[what]
    repo = staff.open(who)
    assert _told(repo, *ALL) == {}
    names = _folder(staff, who)
    _swap(staff, names[at], replace(repo._unlocked.keyring, **fewer(repo._unlocked.keyring)))
    told = _told(repo, *ALL)
    assert names[at] in told or any(names[at] in message for _, message in told.values())
    assert {severity for severity, _ in told.values()} == {"critical"}
    assert all(lacks in message for _, message in told.values())


@pytest.mark.parametrize("who", ["till", "the desk", "the auditor", "the supplier"])
@pytest.mark.parametrize("at", [0, -2])
def test_a_damaged_one_in_the_middle_is_critical_to_everybody(staff: Staff, who: str, at: int) -> None:
    """A newer one is whole, and has other keys."""
    name = _folder(staff, who)[at]
    (own, other) = staff.open(who), staff.open("branch till")
    path = Path(staff.repo.url) / name
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    ((subject, (severity, message)),) = _told(own, *ALL).items()
    assert (subject, severity) == (name, "critical")
    assert "No other keyring of" in message
    path.write_bytes(path.read_bytes()[:100])
    for repo in (own, other, staff.repo):
        ((subject, (severity, message)),) = _told(repo, *ALL).items()
        assert (subject, severity) == (name, "critical")


def test_a_damaged_one_that_nobody_needs_is_told_so(staff: Staff) -> None:
    """Who changes keys writes all that he holds; and what is sealed to a passphrase of before is nobody's loss."""
    name = _folder(staff, "owner")[-2]  # of the change of the passphrase, before the last rotation
    (Path(staff.repo.url) / name).write_bytes(b"x")
    assert {name: severity for name, (severity, _) in _told(staff.repo, *ALL).items()} == {name: "info"}


@pytest.mark.parametrize("how", ["of made-up slots", "sealed to nobody", "that do not open", "with other keys"])
def test_any_number_that_somebody_put_there_is_told_once(staff: Staff, how: str) -> None:
    owner = staff.repo._unlocked
    before = set(stored(owner.storage, "keys"))
    for number in range(66):
        keyring, recipient = owner.keyring, owner.slot.recipient
        if how == "of made-up slots":
            keyring = replace(keyring, slot=ids.new_id())
        elif how == "sealed to nobody":
            recipient = STRANGER
        elif how == "with other keys":
            keyring = replace(keyring, signing=SigningKey.generate().seed)
        data = seal_keyring(keyring, 5 + number, recipient)
        if how == "that do not open":
            data = data[:-1] + bytes([data[-1] ^ 1])
        name = ids.keyring_name(keyring.slot, 5 + number)
        owner.storage.put_new(name, data)
    planted = set(stored(owner.storage, "keys")) - before
    ((subject, (severity, message)),) = _told(staff.repo, *ALL).items()
    assert subject == ("keys" if how == "of made-up slots" else f"keys/{owner.slot.id.hex()}")
    assert severity == ("info" if how == "of made-up slots" else "warning")
    assert (
        "66 keyrings" in message
        and len(planted & set(re.findall("keys/[0-9a-f/]+", message))) == 20
        and "46 more" in message
    )


STRANGER = PrivateKey.generate().public.raw


def test_a_check_reads_each_keyring_once(staff: Staff, monkeypatch: pytest.MonkeyPatch) -> None:
    read, real = list[str](), check_keyrings.read_sealed

    def noted(storage: Any, slot: str, number: int) -> Any:
        read.append(f"keys/{slot}/{number}")
        return real(storage, slot, number)

    monkeypatch.setattr(check_keyrings, "read_sealed", noted)
    staff.repo.check()
    assert sorted(read) == sorted(stored(staff.repo._unlocked.storage, "keys"))


# ------------------------------------------------------------ what fits no list


FALSE: dict[str, Callable[[Staff], dict[str, object]]] = {
    "keys of a generation to come": lambda staff: _given(9, os.urandom(32), PrivateKey.generate().raw),
    "other keys of a generation": lambda staff: _given(2, os.urandom(32), PrivateKey.generate().raw),
    "the key of a domain to come": lambda staff: {"naming": (NamingKey(domain_of(b"y" * 32), b"y" * 32),)},
    "a domain's key": lambda staff: {"naming": (NamingKey(staff.repo._unlocked.domain, os.urandom(32)),)},
    "another signing key": lambda staff: {"signing": SigningKey.generate().seed},
    "another key to name blocks": lambda staff: {"block_names": os.urandom(32)},
    "another role": lambda staff: {"role": "owner"},
    "no keys to read": lambda staff: {"readers": ()},
}
TO_COME = set(list(FALSE)[:3])  # as a change of keys that was interrupted leaves them


def _given(number: int, catalogue: bytes, reader: bytes) -> dict[str, object]:
    return {"catalogue": (CatalogueKey(number, catalogue),), "readers": (ReaderKey(number, reader),)}


@pytest.mark.parametrize("what", FALSE)
def test_a_keyring_that_fits_no_list_is_told_to_whose_it_is(staff: Staff, what: str) -> None:
    """Whoever may write can seal one to any slot; nobody uses it, and its owner hears of it."""
    owner, desk = staff.repo._unlocked, staff.open("the desk")
    before = set(stored(owner.storage, "keys"))
    added = _of(desk._unlocked.keyring, 2)
    false = replace(desk._unlocked.keyring, **{**added, **FALSE[what](staff)})
    enrolment.put_keyring(owner, false, desk._unlocked.opener.recipient)
    (planted,) = set(stored(owner.storage, "keys")) - before
    ((subject, (severity, _)),) = _told(staff.open("the desk"), *ALL).items()
    assert (subject, severity) == (planted, "info" if what in TO_COME else "warning")
    assert _told(staff.repo, *ALL) == {}  # he cannot look into it


@pytest.mark.parametrize("how", ["of nobody", "to somebody else", "junk that says it is his"])
def test_a_keyring_that_is_nobodys_is_told_to_everybody(staff: Staff, how: str) -> None:
    owner = staff.repo._unlocked
    before = set(stored(owner.storage, "keys"))
    keyring, recipient = owner.keyring, owner.slot.recipient
    if how == "of nobody":
        keyring = replace(keyring, slot=ids.new_id())
    elif how == "to somebody else":
        recipient = STRANGER
    if how == "junk that says it is his":
        with mock.patch("pharmabackup.crypto.recipients.PublicKey.seal", lambda *_: b"x" * 3000):
            enrolment.put_keyring(owner, keyring, recipient)
    else:
        enrolment.put_keyring(owner, keyring, recipient)
    (planted,) = set(stored(owner.storage, "keys")) - before
    told = ("info" if how == "of nobody" else "warning",)
    found = _told(staff.repo, *ALL)
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


# ------------------------------------------------------------ who lacks keys passes none on

PASSING: dict[str, Callable[[pb.Repository], object]] = {
    "enrol": lambda repo: repo.enrol("owner", pb.Passphrase("a fourth passphrase"), name="fourth"),
    "split": lambda repo: repo.split_recovery(),
    "revoke who has them": lambda repo: repo.revoke("Jaya Patel", reason="has left"),
    "change the passphrase": lambda repo: repo.change_passphrase(pb.Passphrase("a fourth passphrase")),
}
HARMLESS: dict[str, Callable[[pb.Repository], object]] = {
    "rotate": lambda repo: repo.rotate(reason="a laptop was lost"),
    "revoke who reads nothing": lambda repo: repo.revoke("till", reason="stolen"),
}


@pytest.mark.parametrize("what", PASSING)
def test_who_lacks_keys_passes_none_on(staff: Staff, what: str) -> None:
    """Nor revokes who has them: what he lacks would be lost for ever. It is said what to bring back."""
    staff.repo.rotate(reason="to see")
    staff.repo.rotate(reason="to see")
    folder = Path(staff.repo.url) / "keys" / _slot(staff, "owner").hex()
    own = staff.repo._unlocked
    whole = sorted(folder.iterdir(), key=lambda path: int(path.name))
    saved = {path: path.read_bytes() for path in whole}
    for path in whole:
        path.unlink()
    lesser = replace(own.keyring, catalogue=own.keyring.catalogue[1:], readers=own.keyring.readers[1:])
    enrolment.put_keyring(own, lesser, own.slot.recipient)
    before = set(stored(own.storage, "keys")), set(stored(own.storage, "roster"))
    with pb.Repository.open(staff.repo.url, CHANGED, state_dir=staff.folder / "again") as repo:
        with pytest.raises(pb.Damaged) as caught:
            PASSING[what](repo)
        assert "the keys of generation 0 and the keys to read of generation 0" in caught.value.message
        assert f"keys/{folder.name}" in caught.value.remedy
        assert before == (set(stored(own.storage, "keys")), set(stored(own.storage, "roster")))
        for harmless in HARMLESS.values():
            harmless(repo)
    for path, data in saved.items():
        path.write_bytes(data)
    with pb.Repository.open(staff.repo.url, CHANGED, state_dir=staff.folder / "whole") as repo:
        PASSING[what](repo)
