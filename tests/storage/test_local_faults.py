"""LocalStorage when disks vanish, fill up and fail, the power goes, and writers are killed."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import sys
from pathlib import Path

import pytest

from pharmabackup.errors import Conflict, StorageFailed
from pharmabackup.storage import local, local_os
from pharmabackup.storage.local import LocalStorage
from pharmabackup.storage.local_uploads import UPLOADS
from pharmabackup.testing.storage import listed
from tests.storage.mounts import image, tmpfs, unmount

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks at open files through /proc")
MB = 1 << 20


def uploads(storage):
    return sorted(set(os.listdir(Path(storage.location, UPLOADS))) - {"publish"})


def unreachable(work):
    with pytest.raises(StorageFailed) as caught:
        work()
    assert caught.value.kind == "unreachable"
    assert caught.value.remedy


class TestVanished:
    """A disk that was unplugged is not an empty disk."""

    def check(self, storage):
        for work in (
            lambda: storage.get("a/b", limit=1),
            lambda: storage.get_range("a/b", 0, 1),
            lambda: storage.info("a/b"),
            lambda: storage.checksum("a/b"),
            lambda: list(storage.list("")),
            lambda: list(storage.list("a")),
            lambda: storage.put_new("a/c", b"x"),
            lambda: storage.put_new("new/c", b"x"),
        ):
            unreachable(work)
        results = storage.delete(["a/b", "c"])
        assert [error.kind for error in results.values()] == ["unreachable"] * 2

    @pytest.mark.parametrize("written", [False, True])
    def test_the_folder_is_gone(self, path, written):
        LocalStorage.create(path).put_new("a/b", b"x")
        storage = LocalStorage(path)
        if written:
            storage.put_new("a/d", b"x")
        path.rename(path.with_name("away"))
        self.check(storage)
        assert not path.exists()

    @pytest.mark.parametrize("written", [False, True])
    def test_the_disk_is_gone_and_its_empty_mount_point_is_left(self, written):
        with tmpfs("2m") as disk:
            LocalStorage(disk).put_new("a/b", b"x")
            storage = LocalStorage(disk)
            if written:
                storage.put_new("a/d", b"x")
                storage._workspace = None  # its open lock would keep the disk mounted
            unmount(disk)
            self.check(storage)
            assert os.listdir(disk) == [], "something was written to the disk underneath"

    def test_during_an_upload(self, storage, path):
        with storage.upload() as upload:
            upload.write(b"x")
            path.rename(path.with_name("away"))
            unreachable(lambda: upload.publish("a"))
        assert not path.exists()

    def test_during_a_listing(self, storage, path):
        for name in ("a/1", "b/1", "c/1"):
            storage.put_new(name, b"x")
        listing = storage.list("")
        next(listing)
        path.rename(path.with_name("away"))
        unreachable(lambda: list(listing))

    def test_folders_that_someone_tidied_away_are_made_again(self, storage):
        storage.put_new("a/b/c", b"x")
        storage.delete(["a/b/c"])
        shutil.rmtree(Path(storage.location, "a"))
        storage.put_new("a/b/c", b"x")
        shutil.rmtree(Path(storage.location, UPLOADS))
        storage.put_new("a/b/d", b"x")
        assert set(listed(storage)) == {"a/b/c", "a/b/d"}


# A disk that fails


class TestFullDisk:
    def check(self, disk):
        storage = LocalStorage.create(disk / "repository")
        earlier = {f"packs/{number}": random.Random(number).randbytes(100_000) for number in range(5)}
        for name, data in earlier.items():
            storage.put_new(name, data)
        for size in (500_000, 20 * MB):
            with pytest.raises(StorageFailed) as caught, storage.upload() as upload:
                for number in range(50):
                    upload.write(bytes(size))
                    storage.put_new(f"more/{size}-{number}", bytes(size))
                upload.publish("too-much")
            assert (caught.value.kind, caught.value.retryable) == ("full", False)
            assert "Free some space" in str(caught.value)
            kept = [item for item in storage.list("more")]
            assert all(storage.get(item.name, limit=size) == bytes(size) for item in kept)
            storage.delete([item.name for item in kept])
        assert listed(storage) == {name: len(data) for name, data in earlier.items()}
        for name, data in earlier.items():
            assert storage.get(name, limit=len(data)) == data
        assert len(uploads(storage)) == 1, "the failed upload still takes space"
        storage.put_new("after", b"x" * 100_000)

    def test_tmpfs(self):
        with tmpfs("2m") as disk:
            self.check(disk)

    @pytest.mark.parametrize("fs", ["ext4", "vfat", "exfat"])
    def test_image(self, fs):
        with image(fs, 10 * MB) as disk:
            self.check(disk)


@pytest.mark.parametrize("call", ["fsync", "write", "link"])
def test_a_disk_error_publishes_nothing(storage, monkeypatch, call):
    storage.put_new("before", b"x")

    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, broken)
        unreachable(lambda: storage.put_new("a", b"x"))
    assert listed(storage) == {"before": 1}
    assert len(uploads(storage)) == 1


def test_a_disk_that_drops_bytes_is_found_out(storage, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:-1]) + 1)
    with pytest.raises(StorageFailed) as caught:
        storage.put_new("a", b"xyz")
    assert caught.value.kind == "lost-write"
    assert listed(storage) == {}


def test_a_share_that_may_come_back_is_worth_another_try(storage, monkeypatch):
    def stale(*_, **__):
        raise OSError(errno.ETIMEDOUT, "Connection timed out")

    monkeypatch.setattr(os, "scandir", stale)
    with pytest.raises(StorageFailed) as caught:
        list(storage.list(""))
    assert caught.value.retryable


# What a power cut finds


@linux_only
class TestOrder:
    """Bytes are on the disk before the object has a name; its name and folders before `publish` returns."""

    @pytest.fixture
    def calls(self, storage, monkeypatch):
        storage.upload().discard()
        assert storage.capabilities.exclusive_create  # found out before the recording begins
        calls = []

        def record(name, describe):
            real = getattr(os, name)

            def wrapper(*args, **more):
                calls.append((name, describe(*args)))
                return real(*args, **more)

            monkeypatch.setattr(os, name, wrapper)

        def shown(path):
            path = os.path.relpath(path, storage.location)
            return "temporary" if path.startswith(UPLOADS) else path

        def opened(file, *_):
            return shown(os.readlink(f"/proc/self/fd/{file}"))

        record("write", opened)
        record("fsync", opened)
        record("mkdir", lambda path, *_: shown(path))
        record("link", lambda _, path: shown(path))
        return calls

    def test_into_new_folders(self, storage, calls):
        storage.put_new("packs/ab/x", b"x")
        assert calls == [
            ("write", "temporary"),
            ("fsync", "temporary"),
            ("mkdir", "packs"),
            ("fsync", "."),
            ("mkdir", "packs/ab"),
            ("fsync", "packs"),
            ("link", "packs/ab/x"),
            ("fsync", "packs/ab"),
        ]

    def test_into_known_folders(self, storage, calls):
        storage.put_new("packs/ab/x", b"x")
        calls.clear()
        storage.put_new("packs/ab/y", b"x")
        assert calls == [
            ("write", "temporary"),
            ("fsync", "temporary"),
            ("link", "packs/ab/y"),
            ("fsync", "packs/ab"),
        ]

    def test_into_a_folder_that_another_client_may_not_have_synced_yet(self, storage, calls):
        os.mkdir(f"{storage.location}/packs")
        calls.clear()
        storage.put_new("packs/x", b"x")
        assert calls[2:] == [("mkdir", "packs"), ("fsync", "."), ("link", "packs/x"), ("fsync", "packs")]

    def test_who_finds_a_name_taken_makes_that_last_too(self, storage, calls):
        storage.put_new("packs/x", b"x")
        calls.clear()
        with pytest.raises(Conflict):
            storage.put_new("packs/x", b"x")
        assert calls[-2:] == [("link", "packs/x"), ("fsync", "packs")]

    def test_a_deletion_lasts_and_each_folder_is_synced_once(self, storage, calls):
        for name in ("a/1", "a/2", "b/1"):
            storage.put_new(name, b"x")
        calls.clear()
        storage.delete(["a/1", "a/2", "b/1"])
        assert sorted(calls) == [("fsync", "a"), ("fsync", "b")]

    @pytest.mark.parametrize("way", ["rename", "rename_locked"])
    def test_other_ways_keep_the_order(self, storage, calls, monkeypatch, way):
        real = getattr(local_os, way)
        storage._way = lambda source, target: (calls.append(("named", "")), real(source, target))
        storage.put_new("x", b"x")
        assert calls == [("write", "temporary"), ("fsync", "temporary"), ("named", ""), ("fsync", ".")]


# What a killed writer leaves


def write_and_wait(path, pipe):
    with LocalStorage(path).upload() as upload:
        upload.write(b"half")
        pipe.send("written")
        pipe.recv()
        upload.write(b" and half")
        upload.publish("a")
    pipe.send("published")


class TestRemains:
    @pytest.fixture
    def writer(self, storage):
        context = multiprocessing.get_context("spawn")
        pipe, other = context.Pipe()
        process = context.Process(target=write_and_wait, args=(storage.location, other))
        process.start()
        assert pipe.poll(60)
        assert pipe.recv() == "written"
        process.pipe = pipe
        yield process
        process.kill()
        process.join()
        pipe.close()
        other.close()

    def test_of_a_live_writer_are_not_touched(self, storage, writer):
        before = set(uploads(storage))
        assert len(before) == 2  # the file and its lock
        for _ in range(3):
            LocalStorage(storage.location).put_new(f"b/{_}", b"x")
        assert before <= set(uploads(storage))
        writer.pipe.send("go on")
        assert writer.pipe.poll(60)
        assert writer.pipe.recv() == "published"
        assert storage.get("a", limit=100) == b"half and half"

    def test_of_a_dead_writer_go(self, storage, writer):
        before = set(uploads(storage))
        writer.kill()
        writer.join()
        assert before <= set(uploads(storage))
        storage.put_new("b", b"x")
        assert not before & set(uploads(storage))
        assert listed(storage) == {"b": 1}

    def test_of_this_process_are_not_touched_by_another_client(self, storage):
        with storage.upload() as upload:
            upload.write(b"x")
            LocalStorage(storage.location).put_new("b", b"x")
            upload.publish("a")
        assert listed(storage) == {"a": 1, "b": 1}

    def test_of_an_upload_that_outlives_close_are_not_touched(self, storage):
        with storage.upload() as upload:
            upload.write(b"x")
            storage.close()
            LocalStorage(storage.location).put_new("b", b"x")
            upload.publish("a")
        assert listed(storage) == {"a": 1, "b": 1}
        del upload
        storage.close()
        assert uploads(storage) == []

    @pytest.mark.parametrize("disk", [True, False])
    def test_of_another_computer_go_only_where_its_lock_would_show(self, storage, monkeypatch, disk):
        monkeypatch.setattr("pharmabackup.storage.local_uploads.is_disk", lambda path: disk)
        folder = Path(storage.location, UPLOADS)
        folder.mkdir()
        for name in ("00000000-1234.lock", "00000000-1234.0"):
            (folder / name).write_bytes(b"x")
        storage.put_new("a", b"x")
        assert (folder / "00000000-1234.0").exists() != disk

    def test_without_locks_nothing_is_taken_for_dead(self, storage, monkeypatch):
        def refuse(file):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("pharmabackup.storage.local_uploads.try_lock", refuse)
        with storage.upload() as upload:
            upload.write(b"x")
            LocalStorage(storage.location).put_new("b", b"x")
            upload.publish("a")
        assert listed(storage) == {"a": 1, "b": 1}
        assert uploads(storage) == []

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_a_fork_writes_on_its_own_and_leaves_its_parents_alone(self, storage):
        storage.put_new("a", b"x")
        parents = uploads(storage)
        child = os.fork()
        if child == 0:
            storage.put_new("a-fork", b"x")
            storage.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert uploads(storage) == parents
        with storage.upload() as upload:
            upload.write(b"x")
            child = os.fork()
            if child == 0:
                storage.put_new("b", b"x")
                storage.close()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            LocalStorage(storage.location).put_new("c", b"x")
            upload.publish("d")
        assert set(listed(storage)) == {"a", "a-fork", "b", "c", "d"}


def test_of_many_that_are_deleted_together_each_has_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage.create(tmp_path / "there")
    names = [f"{number % 3}/{number}" for number in range(3 * local.DELETE_TOGETHER)]
    for name in names[::2]:  # the others are not there
        storage.put_new(name, b"x")
    real, refused = os.unlink, {names[10], names[80]}

    def unlink(path: str, **options: int) -> None:
        if any(path.endswith(f"/{name}") for name in refused):
            raise PermissionError(errno.EACCES, "no")
        real(path, **options)

    monkeypatch.setattr(os, "unlink", unlink)
    results = storage.delete(names)
    monkeypatch.undo()
    assert set(results) == set(names)
    assert {name for name, problem in results.items() if problem is not None} == refused
    assert {info.name for info in storage.list("")} == refused


@pytest.mark.parametrize("count", [1, 3 * local.DELETE_TOGETHER])
@pytest.mark.skipif(sys.platform == "win32", reason="a folder cannot be synced there")
def test_what_cannot_be_synced_is_not_called_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """After a power cut it may be there again."""
    storage = LocalStorage.create(tmp_path / "there")
    names = [f"{folder}/{number}" for folder in "ab" for number in range(count)]
    for name in names:
        storage.put_new(name, b"x")
    real, broken = os.fsync, os.stat(tmp_path / "there" / "a")

    def fsync(file: int) -> None:
        if os.path.samestat(os.fstat(file), broken):
            raise OSError(errno.EIO, "broken")
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    results = storage.delete(names)
    assert {name for name, problem in results.items() if problem is not None} == set(names[:count])
    assert {getattr(problem, "kind", None) for problem in results.values()} == {None, "unreachable"}


def test_many_are_not_deleted_from_a_disk_that_is_gone(tmp_path: Path) -> None:
    storage = LocalStorage.create(tmp_path / "there")
    names = [f"a/{number}" for number in range(2 * local.DELETE_TOGETHER)]
    for name in names:
        storage.put_new(name, b"x")
    (tmp_path / "there").rename(tmp_path / "unplugged")
    results = storage.delete(names)
    assert {getattr(problem, "kind", None) for problem in results.values()} == {"unreachable"}
    assert len(results) == len(names)


def test_a_disk_that_takes_no_more_files_is_told_from_a_full_one(tmp_path: Path) -> None:
    """As a folder of FAT32 does at 65,536 entries (Microsoft, FAT32 File System Specification, 6.5)."""
    error = OSError(errno.ENOSPC, "No space left on device")
    assert shutil.disk_usage(tmp_path).free > local_os.MUCH
    assert "has space left and takes no more files" in str(local_os.failed(error, str(tmp_path)))
    with tmpfs("2m") as small:
        assert str(local_os.failed(error, str(small))).startswith(f"{small} is full.")
