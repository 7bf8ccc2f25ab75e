"""Keyrings that somebody puts there who may write to the storage and has no key: they lock no passphrase out."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import msgspec
import pytest
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.crypto import hashing, recipients
from pharmabackup.engine import enrolment, passphrase_tries
from pharmabackup.engine.carrying import copy_keys
from pharmabackup.engine.keyrings import Opener, keyring_numbers, read_whole, seal_keyring
from pharmabackup.format import wire
from pharmabackup.format.keys import Argon2id, NamingKey, ReaderKey, SealedKeyring, Slot
from pharmabackup.format.wire import Kind
from pharmabackup.storage.local import LocalStorage
from pharmabackup.verbs.check_keyrings import keyring_findings
from tests.verbs.site import Site, stored
from tests.verbs.test_keys import FIRST, SECOND, THIRD, MakeRepo

FALSE = [64, 1, 4]  # of a setting, as a keyring named one before the roster did
Form = Callable[[bytes, int, bytes], list[object]]
FORMS: dict[str, Form] = {
    "that name a setting": lambda slot, number, key_id: [
        slot,
        number,
        [os.urandom(16), *FALSE],
        key_id,
        os.urandom(2000),
    ],
    "that name the recipient": lambda slot, number, key_id: [slot, number, key_id, os.urandom(2000)],
}


@pytest.fixture
def repo(make_repo: MakeRepo, site: Site) -> pb.Repository:
    made = make_repo()
    made.enrol("owner", SECOND, name="Jaya Patel")
    site.change()
    site.back_up(made)
    return made


def _plant(repo: pb.Repository, slot: bytes, recipient: bytes, form: Form) -> Path:
    numbers = keyring_numbers(repo._unlocked.storage).get(slot.hex(), [])
    number = min(numbers, default=1) - 1  # the oldest with a slot's recipient was asked for its setting
    number = number if number >= 0 else max(numbers) + 1
    path = Path(repo.url) / ids.keyring_name(slot, number)
    path.parent.mkdir(exist_ok=True)
    record = form(slot, number, hashing.key_id(recipient))
    path.write_bytes(wire.header(Kind.KEYRING) + msgspec.msgpack.encode(record))
    return path


def _slots(repo: pb.Repository) -> tuple[Slot, ...]:
    return repo._unlocked.roster.slots


def _opens(repo: pb.Repository, site: Site, out: Path, *passphrases: pb.Passphrase) -> None:
    for number, passphrase in enumerate(passphrases):
        state = out / f"state-{number}"
        with pb.Repository.open(repo.url, passphrase, state_dir=state) as again:
            for snapshot in again.snapshots():
                restored = {name: snapshot.open(name).read() for name in site.states[snapshot.id]}
                assert restored == site.states[snapshot.id]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("removed", [False, True], ids=["there", "removed"])
def test_planted_before_each_of_three_rotations(
    repo: pb.Repository, site: Site, tmp_path: Path, form: str, removed: bool
) -> None:
    """A setting was taken from a keyring of the slot, and three were tried: also when they were gone again."""
    planted = []
    for number in range(3):
        planted += [_plant(repo, slot.id, slot.recipient, FORMS[form]) for slot in _slots(repo)]
        repo.rotate(reason=f"number {number}")
        site.change()
        site.back_up(repo)
    for path in planted if removed else ():
        path.unlink()
    _opens(repo, site, tmp_path, FIRST, SECOND)
    repo.change_passphrase(THIRD)
    _opens(repo, site, tmp_path / "changed", THIRD)


@pytest.mark.parametrize("form", FORMS)
def test_66_of_made_up_slots(
    repo: pb.Repository, site: Site, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client tries 64 settings. Now it does so with those that owners have signed, and reads none of the others."""
    planted = {_plant(repo, number.to_bytes(16), _slots(repo)[0].recipient, FORMS[form]) for number in range(66)}
    stretched, read, get = list[Argon2id](), set[str](), LocalStorage.get

    def noted_get(self: LocalStorage, name: str, *, limit: int) -> bytes:
        read.add(name)
        return get(self, name, limit=limit)

    monkeypatch.setattr(LocalStorage, "get", noted_get)
    real = Opener.of_passphrase

    def noted(passphrase: pb.Passphrase, setting: Argon2id) -> Opener:
        stretched.append(setting)
        return real(passphrase, setting)

    monkeypatch.setattr(Opener, "of_passphrase", noted)
    _opens(repo, site, tmp_path, FIRST, SECOND)
    first, second = (slot.argon2id for slot in _slots(repo))
    assert stretched == [first, first, second]
    assert {name.partition("/")[0] for name in read} >= {"keys", "roster"}
    assert not {path.relative_to(repo.url).as_posix() for path in planted} & read
    stretched.clear()
    with pytest.raises(pb.WrongCredential):
        pb.Repository.open(repo.url, THIRD)
    assert stretched == [first, second]


def test_no_more_passphrases_are_enrolled_than_are_tried(
    repo: pb.Repository, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pharmabackup.verbs.keys.PASSPHRASES_MAX", 3)
    monkeypatch.setattr(passphrase_tries, "PASSPHRASES_MAX", 3)
    repo.enrol("owner", THIRD, name="third")
    fourth = pb.Passphrase("a fourth passphrase")
    with pytest.raises(pb.Conflict) as caught:
        repo.enrol("owner", fourth, name="fourth")
    assert caught.value.kind == "too-many-passphrases"
    repo.enrol("auditor", pb.KeyFile.create(tmp_path / "key"), name="a key is not tried")
    repo.revoke("third", reason="has left")
    repo.enrol("owner", fourth, name="fourth")
    _opens(repo, site, tmp_path, FIRST, SECOND, fourth)
    with pytest.raises(pb.WrongCredential, match="does not open"):  # revoked ones come last
        pb.Repository.open(repo.url, THIRD)


def test_who_was_revoked_and_enrolled_anew_opens(repo: pb.Repository, site: Site, tmp_path: Path) -> None:
    repo.enrol("owner", THIRD, name="third")
    repo.revoke("third", reason="has left")
    with pytest.raises(pb.WrongCredential) as caught:
        pb.Repository.open(repo.url, THIRD)
    assert caught.value.kind == "revoked"
    repo.enrol("owner", THIRD, name="is back")
    _opens(repo, site, tmp_path, THIRD)


def test_a_passphrase_of_before_opens_nothing_whatever_is_deleted(repo: pb.Repository, tmp_path: Path) -> None:
    """Not even without the keyring of the new one: only the list says which opens."""
    repo.change_passphrase(THIRD)
    (newest, *_) = sorted(keyring_numbers(repo._unlocked.storage)[_slots(repo)[0].id.hex()], reverse=True)
    (Path(repo.url) / ids.keyring_name(_slots(repo)[0].id, newest)).unlink()
    with pytest.raises(pb.WrongCredential):
        pb.Repository.open(repo.url, FIRST)
    with pytest.raises(pb.Damaged) as caught:
        pb.Repository.open(repo.url, THIRD)
    assert caught.value.kind == "keys-missing" and "'owner'" in caught.value.message


AFTER: dict[str, Callable[[pb.Repository], object]] = {
    "another passphrase": lambda repo: repo.change_passphrase(pb.Passphrase("a fourth passphrase")),
    "new keys": lambda repo: repo.rotate(reason="a laptop was lost"),
    "one more": lambda repo: repo.enrol("owner", pb.Passphrase("a fourth passphrase"), name="fourth"),
    "shares": lambda repo: repo.split_recovery(),
    "rules": lambda repo: repo.configure(reason_required=True),
}


@pytest.mark.parametrize("what", AFTER)
def test_what_is_open_with_the_passphrase_of_before_changes_nothing(repo: pb.Repository, what: str) -> None:
    """It would pass on fewer keys than the slot was given since; or it would write a list, and then not learn it."""
    with pb.Repository.open(repo.url, FIRST) as other:
        repo.change_passphrase(THIRD)
        before = {name for folder in ("keys", "roster") for name in stored(repo._unlocked.storage, folder)}
        with pytest.raises(pb.WrongCredential) as caught:
            AFTER[what](other)
    assert caught.value.kind == "passphrase-changed"
    assert {name for folder in ("keys", "roster") for name in stored(repo._unlocked.storage, folder)} == before


def test_of_a_thousand_readers_keys_of_one_generation_none_is_tried(
    repo: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To compute a public half takes a thousand times as long as to read that there is one: nobody writes two."""
    unlocked = repo._unlocked
    false = tuple(ReaderKey(0, os.urandom(96)) for _ in range(1000))
    many = replace(unlocked.keyring, signing=None, naming=(), readers=false)
    with pytest.raises(pb.InvalidInput):
        enrolment.put_keyring(unlocked, many, unlocked.slot.recipient)
    with mock.patch.object(enrolment, "_check_whole"):
        enrolment.put_keyring(unlocked, many, unlocked.slot.recipient)
    made = list[bytes]()
    real = recipients.PrivateKey.__init__

    def noted(self: recipients.PrivateKey, raw: bytes) -> None:
        made.append(raw)
        real(self, raw)

    monkeypatch.setattr(recipients.PrivateKey, "__init__", noted)
    unlocked.renew()
    assert "keyring-damaged" in {finding.code for finding in repo.check().findings}
    assert not set(made) & {key.key for key in false}
    assert len(unlocked.keyring.readers) == 1


def _large(repo: pb.Repository, mebibytes: int) -> None:
    """Two that are sealed to whom the list says, with as many keys as fit, for one that does not open."""
    unlocked, slot = repo._unlocked, repo._unlocked.slot
    readers = tuple(ReaderKey(number, os.urandom(96)) for number in range(1000, 2000))
    naming = tuple(NamingKey(os.urandom(16), os.urandom(32)) for _ in range(4000))
    full = replace(unlocked.keyring, signing=None, readers=readers, naming=naming)
    numbers = range(1, mebibytes + 1)
    for number in numbers:
        path = Path(repo.url) / ids.keyring_name(slot.id, number)
        if number % 3:
            path.write_bytes(seal_keyring(full, number, slot.recipient))
        else:
            junk = SealedKeyring(slot.id, number, hashing.key_id(slot.recipient), os.urandom(1 << 20))
            path.write_bytes(wire.header(Kind.KEYRING) + wire.encode(junk))


@pytest.mark.parametrize("verb", ["open", "check"])
def test_no_memory_is_taken_that_grows_with_what_was_planted(repo: pb.Repository, verb: str) -> None:
    """Of up to 1 MiB each: one is looked at after another."""
    peaks = []
    for many in (3, 30):
        _large(repo, many)
        tracemalloc.start()
        if verb == "open":
            pb.Repository.open(repo.url, FIRST).close()
            repo._unlocked.renew()
        else:
            assert {finding.code for finding in keyring_findings(repo._unlocked)} == {
                "keyring-damaged",
                "keyring-unused",
            }
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2_000_000


def test_a_copy_takes_no_memory_that_grows_with_what_was_planted(repo: pb.Repository, tmp_path: Path) -> None:
    """What says that it is another slot's may be, and comes."""
    second, there = _slots(repo)[1], pb.Repository.create(tmp_path / "there", FIRST, replica_of=repo)
    for number in range(1, 31):
        junk = SealedKeyring(second.id, number, hashing.key_id(second.recipient), os.urandom(1 << 20))
        path = Path(repo.url) / ids.keyring_name(second.id, number)
        path.write_bytes(wire.header(Kind.KEYRING) + wire.encode(junk))
    with there:
        tracemalloc.start()
        assert copy_keys(repo._unlocked, there._unlocked.storage) == []
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(keyring_numbers(there._unlocked.storage)[second.id.hex()]) == 31
    assert peak < 10_000_000


def test_what_is_given_with_a_new_domain_is_of_the_newest_generation(repo: pb.Repository, tmp_path: Path) -> None:
    """Whatever the order in which this owner's keyrings lie: copied from another place, a later one may be older."""
    repo.rotate(reason="a laptop was lost")
    unlocked = repo._unlocked
    own = unlocked.keyring
    for path in (Path(repo.url) / "keys" / own.slot.hex()).iterdir():
        path.unlink()
    whole = replace(own, catalogue=own.catalogue[:1], readers=own.readers[:1])
    later = replace(own, signing=None, naming=(), catalogue=own.catalogue[1:], readers=own.readers[1:])
    for number, keyring in enumerate((later, whole)):
        path = Path(repo.url) / ids.keyring_name(own.slot, number)
        path.write_bytes(seal_keyring(keyring, number, unlocked.slot.recipient))
    with pb.Repository.open(repo.url, FIRST) as again:
        assert [key.generation for key in again._unlocked.keyring.catalogue] == [0, 1]
        again.enrol("device", pb.KeyFile.create(tmp_path / "key").recipient, name="till", domain="branch")
    with pb.Repository.open(repo.url, SECOND, state_dir=tmp_path / "second") as other:
        assert {finding.code for finding in other.check().findings} == set()
        second, slot = other._unlocked, other._unlocked.keyring.slot.hex()
        sealed = read_whole(second.storage, slot, keyring_numbers(second.storage)[slot], [])
        opened = list(second.opener.open_all(second.repository, sealed, []))
    assert [key.generation for key in (*opened[0].catalogue, *opened[0].readers)] == [1, 1]
