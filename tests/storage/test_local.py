"""LocalStorage on the file systems that pharmacies have."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
import zlib
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from pharmabackup.errors import Conflict, InvalidInput, NotFound, StorageFailed, Unsupported
from pharmabackup.storage import local_os
from pharmabackup.storage.local import LocalStorage
from pharmabackup.storage.local_uploads import UPLOADS
from pharmabackup.testing.storage import StorageConformance, listed
from tests.storage.mounts import image

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks at open files through /proc")
MB = 1 << 20


class LocalConformance(StorageConformance):
    def make(self):
        return LocalStorage.create(self.path)

    def reopen(self):
        return partial(LocalStorage, self.path)


class TestFolder(LocalConformance):
    @pytest.fixture(autouse=True)
    def place(self, tmp_path):
        self.path = tmp_path / "repository"


class OnImage(LocalConformance):
    """One image for all tests: a folder a test."""

    rounds = 10
    kills = 5
    number = 0

    @pytest.fixture(scope="class")
    @classmethod
    def disk(cls):
        with image(cls.fs, 256 * MB) as disk:
            yield disk

    @pytest.fixture(autouse=True)
    def place(self, disk):
        type(self).number += 1
        self.path = disk / f"r{self.number}"

    def is_exclusive(self, storage):
        return True  # among the processes of one computer, also where the driver needs a lock for it


class TestExt4(OnImage):
    fs = "ext4"


class TestFat(OnImage):
    fs = "vfat"
    many = 50  # the FUSE driver slows down with the square


class TestExfat(OnImage):
    fs = "exfat"


def by(way, path):
    """A client that gives names in `way`, whatever better one there is."""
    storage = LocalStorage(path)
    storage._way = getattr(local_os, way)
    return storage


class ByWay(TestFolder):
    rounds = 100

    def make(self):
        LocalStorage.create(self.path)
        return by(self.way, self.path)

    def reopen(self):
        return partial(by, self.way, self.path)


@linux_only
class TestByRename(ByWay):
    way = "rename"


@linux_only
class TestByLock(ByWay):
    way = "rename_locked"


def uploads(storage):
    return sorted(set(os.listdir(Path(storage.location, UPLOADS))) - {"publish"})


class TestFindWay:
    """Which way is taken, by what the file system refuses."""

    def refuse(self, monkeypatch, *ways):
        def refused(*_):
            raise OSError(errno.EPERM, "refused")

        for way in ways:
            monkeypatch.setattr(local_os, way, refused)

    def test_link_first(self, storage):
        storage.put_new("a", b"x")
        assert storage._way is local_os.link

    @linux_only
    def test_then_rename(self, storage, monkeypatch):
        self.refuse(monkeypatch, "link")
        storage.put_new("a", b"x")
        assert storage._way is local_os.rename
        assert storage.capabilities.exclusive_create

    @linux_only
    def test_then_lock_which_is_exclusive_on_a_disk_only(self, storage, monkeypatch):
        self.refuse(monkeypatch, "link", "rename")
        storage.put_new("a", b"x")
        assert storage._way is local_os.rename_locked
        assert storage.capabilities.exclusive_create == local_os.is_disk(storage.location)
        monkeypatch.setattr("pharmabackup.storage.local.is_disk", lambda path: False)
        assert not storage.capabilities.exclusive_create

    def test_or_none(self, storage, monkeypatch):
        self.refuse(monkeypatch, "link", "rename", "rename_locked")
        with pytest.raises(Unsupported) as caught:
            storage.put_new("a", b"x")
        assert caught.value.kind == "capability"
        assert listed(storage) == {}

    def test_trying_leaves_nothing(self, storage):
        assert storage.capabilities.exclusive_create
        assert len(uploads(storage)) == 1  # its lock
        storage.close()
        assert uploads(storage) == []


def test_a_link_whose_answer_was_lost_is_no_conflict(storage, monkeypatch):
    storage.put_new("before", b"x")
    real = os.link

    def link(*names):
        real(*names)
        raise FileExistsError(errno.EEXIST, "asked twice")

    monkeypatch.setattr(os, "link", link)
    storage.put_new("a", b"x")
    assert storage.get("a", limit=1) == b"x"


# What stands in the way


@pytest.mark.parametrize("below", ["", "/deeper", "/deeper/still"])
def test_a_file_instead_of_a_folder(path, below):
    path.write_bytes(b"")
    with pytest.raises(InvalidInput, match="a repository is a folder"):
        LocalStorage.create(f"{path}{below}")


def test_opening_a_file(path):
    path.write_bytes(b"")
    with pytest.raises(InvalidInput, match="a repository is a folder"):
        LocalStorage(path)


def test_opening_what_is_not_there(path):
    with pytest.raises(StorageFailed) as caught:
        LocalStorage(path)
    assert caught.value.kind == "unreachable"


def test_creating_makes_the_folders_above_and_may_be_done_again(path):
    LocalStorage.create(path / "a" / "b").put_new("x", b"1")
    assert listed(LocalStorage.create(path / "a" / "b")) == {"x": 1}
    assert (path / "a" / "b").stat().st_mode & 0o777 == 0o700


@linux_only
def test_only_the_owner_may_read_objects(storage):
    storage.put_new("packs/aa/x", b"x")
    assert Path(storage.location, "packs/aa/x").stat().st_mode & 0o777 == 0o600
    assert Path(storage.location, "packs").stat().st_mode & 0o777 == 0o700


def test_an_object_where_a_folder_should_be(storage):
    storage.put_new("a", b"x")
    with pytest.raises(Conflict):
        storage.put_new("a/b", b"x")
    assert listed(storage) == {"a": 1}


def test_foreign_files_do_not_show(storage):
    for name in (".DS_Store", "Thumbs.db", "System Volume Information", "~lock"):
        Path(storage.location, name).write_bytes(b"x")
    assert listed(storage) == {}


def test_reading_a_folder_is_not_found(storage):
    storage.put_new("a/b", b"x")
    with pytest.raises(NotFound):
        storage.checksum("a")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="becoming another user needs root")
class TestAnotherUser:
    """Root may do everything, so that another user has to try."""

    @pytest.fixture
    def folder(self):
        folder = Path(tempfile.mkdtemp(prefix="pharmabackup-"))
        folder.chmod(0o755)
        yield folder
        shutil.rmtree(folder)

    @contextmanager
    def nobody(self):
        os.setegid(65534)
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)

    def denied(self, work):
        with pytest.raises(StorageFailed) as caught:
            work()
        assert (caught.value.kind, caught.value.retryable) == ("storage-denied", False)

    def test_writing_is_denied_and_reading_works(self, folder):
        LocalStorage(folder).put_new("a", b"x")
        (folder / "a").chmod(0o644)
        with self.nobody():
            storage = LocalStorage(folder)
            assert listed(storage) == {"a": 1}
            assert storage.get("a", limit=1) == b"x"
            assert not storage.capabilities.exclusive_create
            self.denied(lambda: storage.put_new("b", b"x"))
            self.denied(lambda: LocalStorage.create(folder / "new"))
            results = storage.delete(["a", "b"])
        assert [error and error.kind for error in results.values()] == ["storage-denied", None]
        assert listed(LocalStorage(folder)) == {"a": 1}

    def test_what_may_not_be_read_is_not_absent(self, folder):
        LocalStorage(folder).put_new("secret/a", b"x")
        LocalStorage(folder).put_new("b", b"x")
        with self.nobody():
            storage = LocalStorage(folder)
            self.denied(lambda: list(storage.list("")))
            self.denied(lambda: list(storage.list("secret")))
            self.denied(lambda: storage.get("secret/a", limit=1))
            self.denied(lambda: storage.get_range("b", 0, 1))
            self.denied(lambda: storage.info("secret/a"))
            self.denied(lambda: storage.checksum("b"))


@pytest.mark.parametrize("prefix", ["snapshots", "snapshots/ab", ""])
def test_a_file_where_a_folder_has_to_be_is_no_empty_folder(tmp_path: Path, prefix: str) -> None:
    storage = LocalStorage.create(tmp_path / "storage")
    if prefix:
        (tmp_path / "storage" / "snapshots").write_bytes(b"")
    else:
        shutil.rmtree(tmp_path / "storage")
        (tmp_path / "storage").write_bytes(b"")
    with pytest.raises(StorageFailed, match="has to be a folder") as caught:
        list(storage.list(prefix))
    assert not caught.value.retryable
    assert list(LocalStorage.create(tmp_path / "other").list("snapshots")) == []  # which is not there


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system cannot be told to forget")
@pytest.mark.parametrize(("size", "times"), [(100, 1), (2 << 20, 2)])
def test_reading_back_asks_the_disk_and_leaves_large_objects_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, times: int
) -> None:
    storage, told = LocalStorage.create(tmp_path / "storage"), []
    data = os.urandom(size)
    storage.put_new("packs/ab/x", data)
    monkeypatch.setattr("os.posix_fadvise", lambda *arguments: told.append(arguments[1:]))
    assert storage.checksum("packs/ab/x") == (size, zlib.crc32(data))
    assert told == [(0, 0, os.POSIX_FADV_DONTNEED)] * times


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system cannot be told to forget")
def test_a_file_system_that_cannot_forget_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr("os.posix_fadvise", refuse)
    storage = LocalStorage.create(tmp_path / "storage")
    storage.put_new("a", b"data")
    assert storage.checksum("a") == (4, zlib.crc32(b"data"))
