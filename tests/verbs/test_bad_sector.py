"""A disk that can no longer read one place. The system's answer is made up: no disk here can be made to fail so."""

from __future__ import annotations

import builtins
import errno
import os
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup.format.wire import Kind
from pharmabackup.storage.local import LocalStorage
from tests.verbs.ailing import Ward


class BadSector:
    """Whoever reads that byte of a file gets an error. `gone`: and the whole disk is gone then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path, at: int, *, gone: bool = False) -> None:
        self._inode, self._at, self._gone = path.stat().st_ino, at, gone
        self._patch, self._root = monkeypatch, path
        self._pread = os.pread
        monkeypatch.setattr(os, "pread", self.pread)
        monkeypatch.setattr("pharmabackup.storage.local.open", self.open, raising=False)

    def pread(self, file: int, length: int, offset: int) -> bytes:
        if os.fstat(file).st_ino == self._inode and offset <= self._at < offset + length:
            raise self._error()
        return self._pread(file, length, offset)

    def open(self, path: str, *given: Any, **named: Any) -> Any:
        if os.stat(path).st_ino == self._inode:
            raise self._error()
        return builtins.open(path, *given, **named)

    def _error(self) -> OSError:
        if self._gone:
            self._patch.setattr(LocalStorage, "_look", self._not_there)
        return OSError(errno.EIO, os.strerror(errno.EIO))

    @staticmethod
    def _not_there(storage: LocalStorage) -> None:
        raise storage._gone()


@pytest.fixture
def path(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pack that has one."""
    name = ward.pack_of(Kind.DATA_BLOCK, part="large")
    BadSector(monkeypatch, ward.path / name, ward.regions(name)["data block"])
    return ward.path / name


def test_a_check_names_the_pack_and_goes_on(ward: Ward, path: Path) -> None:
    damaged = [item for item in ward.repo.check(read_data=1.0).findings if item.code == "pack-damaged"]
    assert [item.subject for item in damaged] == [path.relative_to(ward.path).as_posix()]


def test_a_restore_brings_back_what_is_around_it(ward: Ward, path: Path) -> None:
    hurt = set(ward.states) - ward.whole()
    assert 0 < len(hurt) < len(ward.states)


def test_a_repair_takes_what_is_there_from_a_replica(ward: Ward, replica: pb.Repository, path: Path) -> None:
    ward.mend(replicas=[replica])
    assert not path.exists()
    ward.all_is_well()


def test_a_disk_that_is_gone_is_not_a_bad_sector(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    name = ward.pack_of(Kind.DATA_BLOCK, part="large")
    BadSector(monkeypatch, ward.path / name, ward.regions(name)["data block"], gone=True)
    with pytest.raises(pb.StorageFailed) as caught:
        ward.repo.check(read_data=1.0)
    assert caught.value.kind == "unreachable"


def test_what_was_just_written_and_cannot_be_read_back_is_a_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage.create(tmp_path / "repository")
    storage.put_new("a", b"x")
    BadSector(monkeypatch, tmp_path / "repository" / "a", 0)
    with pytest.raises(pb.StorageFailed):
        storage.checksum("a")
