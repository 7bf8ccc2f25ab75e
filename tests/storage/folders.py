"""What is tried on each server of a folder tree: cases that inherit from the suites, and places in it."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.errors import Conflict, NotFound, StorageFailed
from pharmabackup.storage import connect, remote
from pharmabackup.storage.remote_folder import OURS, STALE_NS
from pharmabackup.testing.storage import StorageConformance
from pharmabackup.testing.storage_faults import StorageFaults

WITHIN = (0, 20, 300, 900, 1500, 4000, 20_000, 150_000, 299_000)  # bytes of 300,000, and of what leads up to them


def fresh() -> str:
    """A folder that nobody has used."""
    return secrets.token_hex(8)


class OnServer(StorageConformance):
    """`real`: a server, with `options` and a `where` that gives a URL of a folder."""

    rounds = 8
    kills = 3
    many = 200

    def where(self, folder, port=None):
        return self.real.url(folder, port)

    def make(self):
        self.url = self.where(fresh())
        storage = connect(self.url, storage_options=self.real.options, create=True)
        assert list(storage.list("")) == []  # speaks to the server, and so makes the folder
        return storage

    def reopen(self):
        return partial(connect, self.url, storage_options=self.real.options)


class BehindALine(StorageFaults):
    offsets = WITHIN

    def where(self, folder, port=None):
        return self.real.url(folder, port)

    def options(self, port):
        return self.real.options

    @property
    def server(self):
        return ("127.0.0.1", self.real.port)

    def make(self, port):
        return connect(self.where(fresh(), port), storage_options=self.options(port), create=True)


class Promises:
    """What every folder tree keeps, tried on `real`, whose folders lie in `disk`."""

    @pytest.fixture
    def hasty(self, monkeypatch):
        """No waiting for what will not come."""
        for name, seconds in (("CONNECT_S", 5.0), ("SILENCE_S", 5.0), ("PATIENCE_S", 0.5)):
            monkeypatch.setattr(remote, name, seconds)

    @pytest.fixture
    def folder(self):
        return fresh()

    @pytest.fixture
    def storage(self, folder):
        storage = connect(self.where(folder), storage_options=self.real.options, create=True)
        yield storage
        storage.close()

    def where(self, folder, port=None):
        return self.real.url(folder, port)

    def test_an_object_of_an_own_lost_answer_is_ones_own(self, storage, monkeypatch):
        real = type(storage)._give_name
        tries = []

        def lost(self, client, path, name):
            tries.append(name)
            real(self, client, path, name)
            if len(tries) == 1:
                raise ConnectionResetError

        storage.put_new("b", b"so that all that is made once is made")
        monkeypatch.setattr(type(storage), "_give_name", lost)
        assert storage.put_new("a", b"x").size == 1
        assert tries == ["a", "a"]
        with pytest.raises(Conflict):
            storage.put_new("a", b"x")

    def test_the_same_bytes_of_somebody_else_are_not_ones_own(self, folder, storage, monkeypatch):
        """The line fails before the first try is named, and meanwhile another creates the same."""
        real = type(storage)._give_name
        other = connect(self.where(folder), storage_options=self.real.options)
        tries = []

        def overtaken(self, client, path, name):
            tries.append(name)
            if len(tries) == 1:
                other.put_new("a", b"x")
                raise ConnectionResetError
            real(self, client, path, name)

        monkeypatch.setattr(type(storage), "_give_name", overtaken)
        with pytest.raises(Conflict):
            storage.put_new("a", b"x")
        assert tries == ["a", "a", "a"]
        other.close()

    def test_nothing_is_left_of_uploads_that_came_to_nothing(self, disk, folder, storage, monkeypatch):
        real, tries = type(storage)._give_name, []

        def fails_once(self, client, path, name):
            tries.append(name)
            if len(tries) == 1:
                raise ConnectionResetError
            real(self, client, path, name)

        monkeypatch.setattr(type(storage), "_give_name", fails_once)
        storage.put_new("a", b"x")
        if storage.capabilities.exclusive_create:
            with pytest.raises(Conflict):
                storage.put_new("a", b"y")
        assert os.listdir(disk / folder / ".uploads") == []

    def test_old_files_of_dead_processes_are_removed_and_no_others(self, disk, folder, storage):
        uploads = disk / folder / ".uploads"
        list(storage.list(""))  # connects, and makes the folder
        old, new, local = uploads / f"{'0' * 32}-{'1' * 8}", uploads / f"{'0' * 32}-{'2' * 8}", uploads / "host-1.0"
        assert OURS.fullmatch(old.name)
        for path in (old, new, local):
            path.write_bytes(b"x")
        for path in (old, local):
            os.utime(path, ns=(path.stat().st_mtime_ns - STALE_NS - 60 * 10**9,) * 2)
        storage.put_new("a", b"x")
        assert sorted(os.listdir(uploads)) == sorted([new.name, local.name])
        assert [item.name for item in storage.list("")] == ["a"]

    def test_a_place_may_be_the_root_itself(self, disk):
        name = f"root-{fresh()}"
        storage = connect(self.where(""), storage_options=self.real.options, create=True)
        storage.put_new(f"{name}/a", b"x")
        assert (disk / name / "a").read_bytes() == b"x"
        assert [item.name for item in storage.list(name)] == [f"{name}/a"]
        assert f"{name}/a" in {item.name for item in storage.list("")}
        assert storage.delete([f"{name}/a"]) == {f"{name}/a": None}
        storage.close()

    def test_what_others_put_there_is_not_listed(self, disk, folder, storage):
        storage.put_new("a/b", b"x")
        for name in ("README.txt", ".hidden", "a/B", "a/.b"):
            (disk / folder / name).write_bytes(b"x")
        (disk / folder / "Folder").mkdir()
        assert [item.name for item in storage.list("")] == ["a/b"]

    def test_a_folder_is_no_object_and_is_not_deleted(self, storage):
        storage.put_new("a/b/c", b"x")
        assert storage.delete(["a", "a/b"]) == {"a": None, "a/b": None}
        assert storage.get("a/b/c", limit=1) == b"x"

    @pytest.mark.parametrize("how", ["gone", "empty"])
    def test_a_folder_that_is_not_mounted_is_not_an_empty_one(self, disk, folder, storage, how):
        storage.put_new("a/b", b"x")
        os.rename(disk / folder, disk / f"{folder}-unmounted")
        if how == "empty":
            (disk / folder).mkdir()
        try:
            for attempt in (
                lambda: storage.get("a/b", limit=1),
                lambda: storage.info("a/b"),
                lambda: list(storage.list("")),
                lambda: list(storage.list("a")),
                lambda: storage.put_new("c", b"x"),
            ):
                with pytest.raises(StorageFailed, match="folder is") as caught:
                    attempt()
                assert caught.value.kind == "unreachable"
            result = storage.delete(["a/b"])["a/b"]
            assert isinstance(result, StorageFailed) and result.kind == "unreachable"
            assert how == "empty" or not (disk / folder).exists()
        finally:
            if how == "empty":
                (disk / folder).rmdir()
            os.rename(disk / f"{folder}-unmounted", disk / folder)
        assert storage.get("a/b", limit=1) == b"x"
        with pytest.raises(NotFound):
            storage.info("c")

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_a_forked_child_has_a_connection_of_its_own(self, storage):
        # In a process of its own: pytest's has threads.
        code = f"""
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads is what is tried
from pharmabackup.storage import connect
storage = connect({self.where(fresh())!r}, storage_options={self.real.options!r}, create=True)
storage.put_new("a", b"x" * 100_000)
held = storage._held
for _ in range(2):
    if not (child := os.fork()):
        ok = storage._held is None and storage.get("a", limit=1 << 20) == b"x" * 100_000 and storage._held is not held
        storage.close()
        os._exit(0 if ok else 1)
    assert storage.get("a", limit=1 << 20) == b"x" * 100_000
    assert os.waitpid(child, 0)[1] == 0
assert storage._held is held
storage.close()
"""
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

    def test_a_repository_from_first_backup_to_restore(self, tmp_path, folder):
        url, options = self.where(folder), self.real.options
        who = pb.Passphrase("correct horse battery staple")
        data = tmp_path / "data"
        data.mkdir()
        (data / "a").write_bytes(os.urandom(3 << 20))
        with pb.Repository.create(url, who, storage_options=options, state_dir=tmp_path / "state") as repo:
            repo.backup([pb.Files(data, name="data")])
        with pb.Repository.open(url, who, storage_options=options, state_dir=tmp_path / "elsewhere") as repo:
            assert repo.check(read_data=1.0).findings == ()
            repo.restore(tmp_path / "restored")
            assert (tmp_path / "restored" / "data" / "a").read_bytes() == (data / "a").read_bytes()


def syncs_in_order(storage, folder: Path) -> None:
    """The server syncs the file, then names it, then syncs the folders: the calls of its processes, by strace."""
    if shutil.which("strace") is None:
        pytest.skip("strace is missing (Debian: strace)")
    storage.put_new("a/b", b"so that it is connected")
    trace = folder / "trace"
    command = ["strace", "-f", "-y", "-e", "trace=fsync,link,linkat", "-o", str(trace)]
    tracer = subprocess.Popen(
        [*command, *(part for process in _descendants(os.getpid()) for part in ("-p", process))],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert "attached" in tracer.stderr.readline(), "strace may not look at other processes here"
        time.sleep(1)  # it attaches to one after the other
        storage.put_new("c/d", b"x")
    finally:
        tracer.terminate()
        tracer.communicate()
    calls = re.findall(r"(fsync|link|linkat)\((.*)\) += 0", trace.read_text())
    seen = [call for call in calls if "/weed." not in call[1]]  # the log of another server of this session
    assert [name.removesuffix("at") for name, _ in seen] == ["fsync", "link", "fsync", "fsync"], seen
    assert ".uploads/" in seen[0][1] and seen[2][1].endswith("/c>") and not seen[3][1].endswith("/c>")


def _descendants(process: int | str) -> list[str]:
    found: list[str] = []
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in children.read_text().split():
            found += [child, *_descendants(child)]
    return found


def fills_up(storage, disk: Path) -> None:
    """A disk that has no room: nothing is half there, and once there is room it goes on."""
    storage.put_new("a", bytes(1000))
    (disk / "ballast").write_bytes(bytes(1 << 20))
    for size in (5 << 20, 40 << 20):
        with pytest.raises(StorageFailed) as caught:
            storage.put_new("b", bytes(size))
        assert caught.value.kind == "full" and not caught.value.retryable
    assert [item.name for item in storage.list("")] == ["a"]
    (disk / "ballast").unlink()
    storage.put_new("b", bytes(1 << 20))
    assert {item.name for item in storage.list("")} == {"a", "b"}
    assert storage.get("a", limit=1000) == bytes(1000)
