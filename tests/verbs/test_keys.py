"""Passphrases that are added and changed, and keys that are replaced: interrupted anywhere, nobody is locked out."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup.crypto import hashing
from pharmabackup.crypto.shares import split
from pharmabackup.engine import enrolment, opening
from pharmabackup.engine.index import Index
from pharmabackup.engine.keyrings import keyring_numbers
from pharmabackup.format.keys import NamingKey
from pharmabackup.storage.memory import MemoryStorage
from tests.verbs.faults import BusyStorage, Dead, DyingStorage, any_call
from tests.verbs.site import Site, stored

FIRST = pb.Passphrase("correct horse battery staple")
SECOND = pb.Passphrase("quite another passphrase")
THIRD = pb.Passphrase("yet another passphrase")
MakeRepo = Callable[[], pb.Repository]


@pytest.fixture
def repo(make_repo: MakeRepo, site: Site) -> pb.Repository:
    made = make_repo()
    site.change()
    site.back_up(made)
    return made


def _opens(place: Path, *passphrases: pb.Passphrase) -> None:
    for passphrase in passphrases:
        with pb.Repository.open(place, passphrase) as repo:
            repo.snapshot().glob()


def _refused(place: Path, passphrase: pb.Passphrase) -> None:
    with pytest.raises(pb.WrongCredential):
        pb.Repository.open(place, passphrase)


def test_one_more_passphrase(tmp_path: Path, repo: pb.Repository, site: Site) -> None:
    place = tmp_path / "repository-0"
    repo.enrol("owner", SECOND, name="Jaya Patel")
    assert [slot.name for slot in repo.slots()] == ["owner", "Jaya Patel"]
    with pb.Repository.open(place, SECOND) as other:
        assert (other.slot, other.role, other.id) == ("Jaya Patel", "owner", repo.id)
        site.change()
        site.back_up(other)
        site.all_restore(other, tmp_path / "out")
        other.enrol("owner", THIRD, name="locum")
    _opens(place, FIRST, SECOND, THIRD)
    site.all_restore(repo, tmp_path / "again")  # which was open all the time


def test_names_and_passphrases_are_checked(repo: pb.Repository) -> None:
    repo.enrol("owner", SECOND, name="Jaya Patel")
    before = stored(repo._unlocked.storage, "keys")
    with pytest.raises(pb.Conflict) as caught:
        repo.enrol("owner", THIRD, name="Jaya Patel")
    assert caught.value.kind == "name-taken"
    for name in ("", " x", "x" * 201):
        with pytest.raises(pb.InvalidInput):
            repo.enrol("owner", THIRD, name=name)
    with pytest.raises(pb.InvalidInput):
        repo.enrol("owner", pb.Passphrase("short"), name="x")
    with pytest.raises(pb.InvalidInput):
        repo.change_passphrase(pb.Passphrase("short"))
    with pytest.raises(pb.InvalidInput, match="no role"):
        repo.enrol("manager", THIRD, name="till-1")  # type: ignore[arg-type]
    with pytest.raises(pb.InvalidInput, match="of every domain"):
        repo.enrol("restorer", THIRD, name="till-1", domain="second")
    with pytest.raises(pb.InvalidInput, match="made by split_recovery"):
        repo.enrol("owner", pb.Shares(*split(bytes(32), bytes(1216), threshold=2, shares=2)), name="till-1")  # type: ignore[arg-type]
    with pytest.raises(pb.InvalidInput):
        repo.rotate(reason=" ")
    assert stored(repo._unlocked.storage, "keys") == before


def test_a_changed_passphrase_opens_and_the_old_one_does_not(tmp_path: Path, repo: pb.Repository, site: Site) -> None:
    place = tmp_path / "repository-0"
    repo.change_passphrase(SECOND)
    _opens(place, SECOND)
    _refused(place, FIRST)
    repo.change_passphrase(THIRD)
    _opens(place, THIRD)
    _refused(place, SECOND)
    site.change()
    site.back_up(repo)
    site.all_restore(repo, tmp_path / "out")


def test_new_keys_for_what_comes(tmp_path: Path, repo: pb.Repository, site: Site) -> None:
    place = tmp_path / "repository-0"
    repo.enrol("owner", SECOND, name="Jaya Patel")
    old = pb.Repository.open(place, SECOND)  # stays open, and does not hear of it
    before = _readers(repo)
    repo.rotate(reason="a laptop was lost")
    site.change()
    site.back_up(repo)
    after = _readers(repo)
    assert len(before) == 1 and len(after) == 2
    assert {hashing.key_id(generation.reader) for generation in repo._unlocked.roster.generations} == after
    site.all_restore(old, tmp_path / "old")  # learns the new keys when it meets them
    site.change()
    site.back_up(old)
    for passphrase in (FIRST, SECOND):
        with pb.Repository.open(place, passphrase, state_dir=tmp_path / "fresh") as again:
            site.all_restore(again, tmp_path / f"out-{again.slot}")
    changes = [(record.event, record.subject) for record in repo.audit() if record.event in ("enrol", "rotate")]
    assert changes == [("enrol", "Jaya Patel"), ("rotate", "generation 1")]


def _readers(repo: pb.Repository) -> set[bytes]:
    """Key ids of the public keys that transactions' keys are sealed to."""
    index = Index(repo._unlocked, chunks=False)
    index.load()
    return {wrap.recipient for wrapped in index.blocks.keys for wrap in wrapped.wraps}


def test_who_has_read_before_learns_to_read_what_comes(tmp_path: Path, repo: pb.Repository, site: Site) -> None:
    with pb.Repository.open(tmp_path / "repository-0", FIRST) as reader:
        site.all_restore(reader, tmp_path / "one")
        repo.rotate(reason="a laptop was lost")
        site.change()
        site.back_up(repo)
        site.all_restore(reader, tmp_path / "two")


def test_who_stays_open_writes_for_the_new_keys(tmp_path: Path, repo: pb.Repository, site: Site) -> None:
    with pb.Repository.open(tmp_path / "repository-0", FIRST) as other:
        other.rotate(reason="a laptop was lost")
    site.change()
    site.back_up(repo)
    assert hashing.key_id(repo._unlocked.roster.generations[1].reader) in _readers(repo)


def test_new_keys_after_another_passphrase_and_the_other_way_round(
    tmp_path: Path, repo: pb.Repository, site: Site
) -> None:
    place = tmp_path / "repository-0"
    repo.enrol("owner", THIRD, name="Jaya Patel")
    repo.rotate(reason="one")
    repo.change_passphrase(SECOND)
    repo.rotate(reason="two")
    site.change()
    site.back_up(repo)
    for passphrase in (SECOND, THIRD):
        with pb.Repository.open(place, passphrase) as again:
            assert len(again._unlocked.keyring.catalogue) == len(again._unlocked.keyring.readers) == 3
            site.all_restore(again, tmp_path / f"out-{again.slot}")
    _refused(place, FIRST)


def test_keys_go_to_replicas(tmp_path: Path, repo: pb.Repository, site: Site) -> None:
    there = pb.Repository.create(tmp_path / "there", FIRST, replica_of=repo)
    repo.enrol("owner", SECOND, name="Jaya Patel")
    repo.rotate(reason="a laptop was lost")
    repo.copy(there)
    assert there._unlocked.roster == repo._unlocked.roster
    site.change()
    site.back_up(repo)
    repo.copy(there)
    site.all_restore(there, tmp_path / "out")
    with pb.Repository.open(tmp_path / "there", SECOND) as other:
        site.all_restore(other, tmp_path / "again")


def _dies_before_its_roster(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(enrolment, "change_roster", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            act()


def test_keys_that_a_replica_has_and_nobody_uses_are_in_nobodys_way(
    tmp_path: Path, repo: pb.Repository, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = pb.Repository.create(tmp_path / "there", FIRST, replica_of=repo)
    _dies_before_its_roster(monkeypatch, lambda: there.rotate(reason="a laptop was lost"))
    repo.rotate(reason="a laptop was lost")
    repo.copy(there)
    with pb.Repository.open(tmp_path / "there", FIRST) as again:
        site.all_restore(again, tmp_path / "out")


def test_an_enrolment_that_died_is_done_again(
    tmp_path: Path, repo: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        _dies_before_its_roster(monkeypatch, lambda: repo.enrol("owner", SECOND, name="Jaya Patel"))
    _refused(tmp_path / "repository-0", SECOND)
    repo.enrol("owner", SECOND, name="Jaya Patel")
    _opens(tmp_path / "repository-0", FIRST, SECOND)


@pytest.mark.parametrize("how", ["names", "signs", "garbage"])
def test_a_keyring_that_somebody_put_there_locks_nobody_out(
    tmp_path: Path, repo: pb.Repository, site: Site, how: str
) -> None:
    """Whoever may write to the storage knows from the roster whom to seal to."""
    repo.enrol("owner", SECOND, name="Jaya Patel")
    unlocked = repo._unlocked
    keyring = replace(
        enrolment.NextGeneration.make().keyring(unlocked, unlocked.slot, 1),
        block_names=os.urandom(32),
        signing=os.urandom(32) if how == "signs" else None,
    )
    before = set(stored(unlocked.storage, "keys"))
    enrolment.put_keyring(unlocked, keyring, unlocked.slot.recipient)
    if how == "garbage":
        (name,) = set(stored(unlocked.storage, "keys")) - before
        path = tmp_path / "repository-0" / name
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    with pb.Repository.open(tmp_path / "repository-0", FIRST) as again:
        site.change()
        site.back_up(again)
        again.rotate(reason="a laptop was lost")
    with pb.Repository.open(tmp_path / "repository-0", SECOND) as other:
        site.all_restore(other, tmp_path / "out")
        assert other.check(read_data=1.0).findings == ()


def test_a_repair_brings_keys_with_their_roster(tmp_path: Path, repo: pb.Repository, site: Site) -> None:
    there = pb.Repository.create(tmp_path / "there", FIRST, replica_of=repo)
    there.rotate(reason="a laptop was lost")
    repo.apply(repo.propose_repair(replicas=[there]))
    with pb.Repository.open(tmp_path / "repository-0", FIRST) as again:
        assert len(again._unlocked.roster.generations) == 2
        site.all_restore(again, tmp_path / "out")


def test_who_has_the_old_keyring_alone_is_told(
    tmp_path: Path, repo: pb.Repository, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its passphrase was changed by another process, and the keys after that."""
    with pb.Repository.open(tmp_path / "repository-0", FIRST) as other:
        other.change_passphrase(SECOND)
        other.rotate(reason="a laptop was lost")
        site.change()
        site.back_up(other)
    with pytest.raises(pb.WrongCredential, match="Open it again"):
        repo.snapshots()


# What may be said after what was interrupted, or of what somebody put there.
LEFT = {("keyring-unused", "warning")}


class Place:
    """A repository in memory with two passphrases, to be copied for each try."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
        self.storage = MemoryStorage("base")
        self._monkeypatch = monkeypatch
        self._tmp_path = tmp_path
        self._number = 0
        self.use(self.storage)
        with pb.Repository.create("memory://x", FIRST) as repo:
            repo.enrol("owner", THIRD, name="Jaya Patel")
            repo.enrol("device", pb.KeyFile.create(tmp_path / "till.key"), name="till-1")
            site.change(size=3000)
            site.back_up(repo)
        self.newcomer = pb.KeyFile.create(tmp_path / "newcomer.key").recipient

    def use(self, storage: object) -> None:
        self._monkeypatch.setattr(opening, "connect", lambda *_, **__: storage)

    def twin(self) -> MemoryStorage:
        twin = MemoryStorage("twin")
        for info in self.storage.list(""):
            twin.put_new(info.name, self.storage.get(info.name, limit=1 << 30))
        return twin

    def open(self, storage: object, passphrase: pb.Passphrase) -> pb.Repository:
        self.use(storage)
        self._number += 1
        return pb.Repository.open("memory://x", passphrase, state_dir=self._tmp_path / f"state-{self._number}")

    def all_is_well(self, storage: MemoryStorage, site: Site, *passphrases: pb.Passphrase) -> int:
        """How many of these open; each that does reads everything, writes, and can do all again."""
        opened = 0
        for passphrase in passphrases:
            try:
                repo = self.open(storage, passphrase)
            except pb.WrongCredential:
                continue
            with repo:
                opened += 1
                site.back_up(repo)
                told = {(finding.code, finding.severity) for finding in repo.check().findings}
                assert {one for one in told if one[1] != "info"} <= LEFT
                domains = {domain.id for domain in repo._unlocked.roster.domains}
                assert {key.domain for key in repo._unlocked.keyring.naming} == domains
                for snapshot in repo.snapshots():
                    assert snapshot.open("a").read() == site.states[snapshot.id]["a"]
        return opened


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, site: Site) -> Place:
    return Place(tmp_path, monkeypatch, site)


ACTS: dict[str, Callable[[pb.Repository, Place], object]] = {
    "enrol": lambda repo, _: repo.enrol("owner", SECOND, name="new"),
    "change": lambda repo, _: repo.change_passphrase(SECOND),
    "rotate": lambda repo, _: repo.rotate(reason="a laptop was lost"),
    "domain": lambda repo, place: repo.enrol("device", place.newcomer, name="till-2", domain="branch"),
    "revoke": lambda repo, _: repo.revoke("till-1", reason="stolen"),
    "split": lambda repo, _: repo.split_recovery(),
}
OPEN = {"enrol": [FIRST, SECOND], "change": [SECOND]}  # afterwards; else the first


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("act", ACTS)
def test_it_dies_at_any_call(place: Place, site: Site, act: str, after: bool) -> None:
    for dies_at in any_call():
        inner = place.twin()
        storage = DyingStorage(inner)
        with place.open(storage, FIRST) as repo:
            storage.arm(dies_at, after=after)
            try:
                ACTS[act](repo, place)
                died = False
            except Dead:
                died = True
        assert place.all_is_well(inner, site, THIRD) == 1
        opened = place.all_is_well(inner, site, FIRST, SECOND)
        assert opened >= 1 if act != "change" else opened == 1
        with place.open(inner, THIRD) as repo:
            repo.rotate(reason="again")  # for all of them, whatever was interrupted
        assert place.all_is_well(inner, site, FIRST, SECOND, THIRD) >= 2
        if not died:
            return


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_keys_come_before_what_needs_them_wherever_a_copy_dies(place: Place, site: Site, after: bool) -> None:
    replica = MemoryStorage("replica")
    with place.open(place.storage, FIRST) as repo:
        place.use(replica)
        with pb.Repository.create("memory://replica", FIRST, replica_of=repo) as there:
            repo.copy(there)
        repo.rotate(reason="a laptop was lost")
    for dies_at in any_call():
        inner = MemoryStorage("twin")
        for info in replica.list(""):
            inner.put_new(info.name, replica.get(info.name, limit=1 << 30))
        storage = DyingStorage(inner)
        with place.open(place.storage, FIRST) as repo, place.open(storage, FIRST) as there:
            storage.arm(dies_at, after=after)
            try:
                repo.copy(there)
                died = False
            except Dead:
                died = True
        assert place.all_is_well(inner, site, FIRST, THIRD) == 2
        if not died:
            return


@pytest.mark.parametrize(
    ("act", "other"),
    [
        *itertools.product(("enrol", "change", "rotate"), repeat=2),
        *itertools.product(("domain", "split"), ("enrol", "rotate", "domain")),
        *[(act, "domain") for act in ("enrol", "rotate", "revoke")],
        ("revoke", "rotate"),
    ],
)
def test_another_owner_does_something_between_any_two_calls(place: Place, site: Site, act: str, other: str) -> None:
    others: dict[str, Callable[[pb.Repository], None]] = {
        "enrol": lambda repo: repo.enrol("owner", pb.Passphrase("a fourth passphrase"), name="fourth"),
        "change": lambda repo: repo.change_passphrase(pb.Passphrase("a fourth passphrase")),
        "rotate": lambda repo: repo.rotate(reason="too"),
        "domain": lambda repo: repo.enrol("device", place.newcomer, name="till-3", domain="branch"),
    }
    for at in any_call():
        inner = place.twin()

        def meanwhile(inner: MemoryStorage = inner) -> None:
            with place.open(inner, THIRD) as repo:
                try:
                    others[other](repo)
                except pb.Conflict as conflict:
                    assert conflict.kind == "already-running"

        storage = BusyStorage(inner, meanwhile)
        with place.open(storage, FIRST) as repo:
            storage.interrupt(at)
            opens = [FIRST]
            try:
                ACTS[act](repo, place)
                opens = OPEN.get(act, opens)
            except pb.Conflict as conflict:
                assert conflict.kind == "already-running"
        assert place.all_is_well(inner, site, THIRD, pb.Passphrase("a fourth passphrase")) >= 1
        assert place.all_is_well(inner, site, *opens) == len(opens)
        if not storage.interrupted:
            return


def test_keyrings_are_listed_as_often_for_many_slots_as_for_two(place: Place) -> None:
    """Each listing is a request to the storage, and there may be four thousand slots."""
    listings = []
    for more in (0, 5):
        storage = DyingStorage(place.twin())
        with place.open(storage, FIRST) as repo:
            for number in range(more):
                repo.enrol("owner", pb.Passphrase(f"a horse battery of {number}"), name=f"owner {number}")
            storage.log.clear()
            repo.rotate(reason="a laptop was lost")
            listings.append(storage.log.count("list keys"))
    assert listings[0] == listings[1] > 0


def test_nobody_is_sealed_to_on_the_word_of_a_keyring(place: Place, site: Site) -> None:
    """Who may write to storage could put a keyring of his own there: the owner goes by the signed list."""
    storage = place.twin()
    with place.open(storage, FIRST) as repo:
        unlocked = repo._unlocked
        slot = next(slot for slot in unlocked.roster.slots if slot.name == "Jaya Patel")
        mine = enrolment.NextGeneration.make()
        keyring = mine.keyring(unlocked, slot, 0)
        enrolment.put_keyring(unlocked, keyring, mine.reader.public.raw)
        repo.rotate(reason="a laptop was lost")
        names = [name for name in stored(storage, "keys") if slot.id.hex() in name]
        assert len(names) == len(keyring_numbers(storage)[slot.id.hex()]) == 3
    assert place.all_is_well(storage, site, THIRD) == 1


@pytest.mark.parametrize("signing", [None, b"x" * 32], ids=["only adds", "with a signing key"])
def test_what_anybody_could_seal_to_a_slot_is_not_believed(place: Place, site: Site, signing: bytes | None) -> None:
    """Who may write to storage reads in the roster whom to seal to."""
    storage = place.twin()
    repo = place.open(storage, FIRST)
    before = repo._unlocked.keyring
    false = replace(
        before,
        signing=signing,
        naming=(NamingKey(before.naming[0].domain, b"y" * 32), NamingKey(b"z" * 16, b"z" * 32)),
        block_names=b"x" * 32,
    )
    enrolment.put_keyring(repo._unlocked, false, repo._unlocked.slot.recipient)
    site.back_up(repo)
    for opened in (repo, place.open(storage, FIRST)):
        opened._unlocked.renew()
        keyring = opened._unlocked.keyring
        assert (keyring.signing, keyring.naming) == (before.signing, before.naming)
        assert keyring.block_names == before.block_names
    assert place.all_is_well(storage, site, FIRST, THIRD) == 2


def test_two_owners_rotate_at_once(tmp_path: Path, repo: pb.Repository, site: Site) -> None:
    repo.enrol("owner", SECOND, name="Jaya Patel")
    kinds: list[str] = []

    def run(passphrase: pb.Passphrase) -> None:
        with pb.Repository.open(tmp_path / "repository-0", passphrase, state_dir=tmp_path / "x") as one:
            try:
                one.rotate(reason="at once")
                kinds.append("done")
            except pb.Conflict as conflict:
                kinds.append(conflict.kind)

    threads = [threading.Thread(target=run, args=(passphrase,)) for passphrase in (FIRST, SECOND)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "done" in kinds and set(kinds) <= {"done", "already-running"}
    for passphrase in (FIRST, SECOND):
        with pb.Repository.open(tmp_path / "repository-0", passphrase) as again:
            site.change()
            site.back_up(again)
            site.all_restore(again, tmp_path / f"out-{again.slot}")


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def test_who_has_rotated_needs_no_older_keyring(tmp_path: Path, repo: pb.Repository, site: Site) -> None:
    repo.rotate(reason="a laptop was lost")
    (first,) = (tmp_path / "repository-0" / "keys").rglob("0")
    _flip(first)
    with pb.Repository.open(tmp_path / "repository-0", FIRST, state_dir=tmp_path / "fresh") as again:
        site.change()
        site.back_up(again)
        again.restore(tmp_path / "out")
        told = {(finding.code, finding.subject.rpartition("/")[2]) for finding in again.check().findings}
        assert told == {("keyring-damaged", "0")}


def test_what_another_owner_gave_a_slot_is_not_enough_for_it(tmp_path: Path, repo: pb.Repository, site: Site) -> None:
    place = tmp_path / "repository-0"
    (first,) = (place / "keys").rglob("0")
    repo.enrol("owner", SECOND, name="Jaya Patel")
    with pb.Repository.open(place, SECOND) as other:
        other.rotate(reason="a laptop was lost")
    _flip(first)
    with pytest.raises(pb.Damaged) as caught:
        pb.Repository.open(place, FIRST, state_dir=tmp_path / "fresh")
    assert caught.value.kind == "keys"
    assert first.parent.name in caught.value.remedy
    _opens(place, SECOND)


def test_a_damaged_list_of_keys_is_named(tmp_path: Path, repo: pb.Repository) -> None:
    repo.rotate(reason="a laptop was lost")
    _flip(tmp_path / "repository-0" / "roster" / "1")
    with pytest.raises(pb.Damaged) as caught:
        pb.Repository.open(tmp_path / "repository-0", FIRST, state_dir=tmp_path / "fresh")
    assert "roster/1" in caught.value.message and "roster/1" in caught.value.remedy
