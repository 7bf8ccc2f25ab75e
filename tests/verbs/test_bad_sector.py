"""A disk that can no longer read one place. The system's answer is made up: no disk here can be made to fail so."""

from __future__ import annotations

import builtins
import errno
import os
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup.engine import collection
from pharmabackup.format.wire import Kind
from pharmabackup.storage import local
from pharmabackup.storage.local import LocalStorage
from tests.verbs.ailing import Ward
from tests.verbs.site import DAY_NS, Time, prune


class BadSector:
    """Whoever reads that byte of a file gets an error. `gone`: and the whole disk is gone then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path, at: int, *, gone: bool = False) -> None:
        self._path, self._at, self._gone = path, at, gone
        self._patch = monkeypatch
        self._pread, self._open = os.pread, vars(local).get("open", builtins.open)
        monkeypatch.setattr(os, "pread", self.pread)
        monkeypatch.setattr(local, "open", self.open, raising=False)

    def pread(self, file: int, length: int, offset: int) -> bytes:
        if self._is_it(os.fstat(file)) and offset <= self._at < offset + length:
            raise self._error()
        return self._pread(file, length, offset)

    def open(self, path: str, *given: Any, **named: Any) -> Any:
        if self._is_it(os.stat(path)):
            raise self._error()
        return self._open(path, *given, **named)

    def _is_it(self, status: os.stat_result) -> bool:
        return self._path.exists() and os.path.samestat(status, self._path.stat())

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


def test_a_check_says_of_a_segment_what_to_do(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    (name, *_) = ward.names("index")
    BadSector(monkeypatch, ward.path / name, 0)
    (found,) = [item for item in ward.repo.check().findings if item.code == "index-damaged"]
    assert found.subject == name and "disk" in found.remedy and "delete" not in found.remedy


def test_a_restore_brings_back_what_is_around_it(ward: Ward, path: Path) -> None:
    hurt = set(ward.states) - ward.whole()
    assert 0 < len(hurt) < len(ward.states)


def test_a_repair_takes_what_is_there_from_a_replica(ward: Ward, replica: pb.Repository, path: Path) -> None:
    ward.mend(replicas=[replica])
    assert not path.exists()
    ward.all_is_well()


def test_a_segment_that_cannot_be_read_for_a_moment_stays(
    ward: Ward, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pack's own end is damaged, so that only this segment says what it holds."""
    name = ward.pack_of(Kind.DATA_BLOCK, part="large")
    ward.flip(name, ward.regions(name)["trailer"])
    ward.reopen()
    ward.repo.apply(ward.repo.propose_forget(snapshots=[ward.repo.snapshots("pmr")[-1]]))
    time.ahead += 15 * DAY_NS
    before, segments = ward.whole(), ward.names("index")
    kept = {snapshot.id for snapshot in ward.repo.snapshots() if not snapshot.forgotten}
    real, called = collection._replace_segments, list[bool]()

    def replace(*given: Any) -> set[bytes]:
        called.append(True)
        with pytest.MonkeyPatch.context() as patch:
            for segment in segments:
                BadSector(patch, ward.path / segment, 0)
            return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr("pharmabackup.engine.emptying.UNUSED_SHARE", 0.0)  # so that something goes
        patch.setattr(collection, "_replace_segments", replace)
        prune(ward.repo)
    assert called
    ward.reopen()
    assert set(segments) <= set(ward.names("index"))
    assert before & kept <= ward.whole()


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
