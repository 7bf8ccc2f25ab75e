"""A repository of somebody else's making at the place of one's own: its keys fit, its id does not (security.md)."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.engine import opening
from pharmabackup.engine.keyrings import Way
from pharmabackup.engine.roster import found
from pharmabackup.format.repository import encode_repository
from pharmabackup.storage.local import LocalStorage
from pharmabackup.storage.probe import probe
from tests.verbs.site import PASSPHRASE

KEY_DIGITS = 16


def _objects(where: Path) -> dict[str, bytes]:
    return {str(path.relative_to(where)): path.read_bytes() for path in where.rglob("*") if path.is_file()}


def _counterfeit(where: Path) -> str:
    """What whoever has the storage can make with no key, out of what stands in clear in the list of keys. Its id."""
    with pb.Repository.open(where, PASSPHRASE, state_dir=where.parent / "of nobody") as repo:
        slot = repo._unlocked.slot  # read off the list of keys, as anybody can
    shutil.rmtree(where)
    where.mkdir()
    storage = LocalStorage(where)
    founding = found(Way(slot.credential, slot.recipient, slot.argon2id))
    storage.put_new(ids.roster_name(0), founding.roster)
    storage.put_new(founding.keyring_name, founding.keyring)
    storage.put_new("repository", encode_repository(opening._record(founding.repository, probe(storage))))
    return founding.repository.hex()


@pytest.fixture
def where(tmp_path: Path, cheap_kdf: None) -> Path:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "records").write_bytes(b"of patients")
    place = tmp_path / "place"
    pb.Repository.create(place, PASSPHRASE, state_dir=tmp_path / "owner").close()
    return place


def _open(where: Path, machine: str, **more: str) -> pb.Repository:
    return pb.Repository.open(where, PASSPHRASE, state_dir=where.parent / machine, **more)  # type: ignore[arg-type]


def test_a_machine_that_was_there_is_told_before_anything_is_written(where: Path) -> None:
    with _open(where, "till") as repo:
        own = repo.id
    other = _counterfeit(where)
    before = _objects(where)
    for _ in range(2):
        with pytest.raises(pb.Damaged, match="there is another repository") as caught:
            _open(where, "till")
        assert caught.value.kind == "another-repository"
        assert own[:KEY_DIGITS] in caught.value.message
        assert other not in caught.value.message
    assert _objects(where) == before


def test_a_new_machine_is_told_when_it_says_which_it_expects(where: Path) -> None:
    with _open(where, "owner") as repo:
        own = repo.id
    with _open(where, "new", repository=own[:KEY_DIGITS].upper()) as repo:
        assert repo.id == own
    _counterfeit(where)
    with pytest.raises(pb.Damaged) as caught:
        _open(where, "newer", repository=own)
    assert caught.value.kind == "another-repository"


def test_without_that_a_new_machine_cannot_know(where: Path) -> None:
    other = _counterfeit(where)
    with _open(where, "new") as repo:
        assert repo.id == other


@pytest.mark.parametrize("text", ["", "0123", "x" * 64, "0" * 65])
def test_an_expectation_that_proves_little_is_refused(where: Path, text: str) -> None:
    with pytest.raises(pb.InvalidInput, match="64 hexadecimal digits"):
        _open(where, "new", repository=text)


def test_a_person_can_say_that_it_was_meant(where: Path) -> None:
    """Once: after that the place is the new one's, and the old one there would be told."""
    aside = where.with_name("aside")
    with _open(where, "till") as repo:
        repo.backup([pb.Files(where.parent / "site")])
    shutil.copytree(where, aside)
    other = _counterfeit(where)
    _open(where, "till", repository=other).close()
    with _open(where, "till") as repo:
        assert repo.id == other
    shutil.rmtree(where)
    os.rename(aside, where)
    with pytest.raises(pb.Damaged):
        _open(where, "till")


def test_what_cannot_be_looked_up_is_not_taken_for_a_first_time(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _open(where, "till") as repo:
        own = repo.id
    _counterfeit(where)
    real = os.listdir

    def fails(path: os.PathLike[str]) -> list[str]:
        if os.fspath(path) == os.fspath(where.parent / "till"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", fails)
        with pytest.raises(pb.StorageFailed, match="which repository was where") as caught:
            _open(where, "till")
        assert caught.value.kind == "state-folder" and "repository=" in caught.value.remedy
        with pytest.raises(pb.Damaged):
            _open(where, "till", repository=own)  # whoever says which it is is not stopped by that


def test_whoever_creates_one_anew_there_meant_it(where: Path) -> None:
    _open(where, "owner").close()
    shutil.rmtree(where)
    with pb.Repository.create(where, PASSPHRASE, state_dir=where.parent / "owner") as repo:
        made = repo.id
    with _open(where, "owner") as repo:
        assert repo.id == made


def test_a_replica_elsewhere_is_the_same_repository(where: Path) -> None:
    replica = where.with_name("replica")
    with _open(where, "owner") as repo:
        pb.Repository.create(replica, PASSPHRASE, replica_of=repo, state_dir=where.parent / "owner").close()
        with _open(replica, "owner", repository=repo.id) as other:
            assert other.id == repo.id
