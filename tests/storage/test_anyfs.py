"""FsspecStorage on an FTP server, through fsspec's own file system."""

from __future__ import annotations

import ftplib
import os
import secrets
from contextlib import ExitStack
from functools import partial

import pytest
from fsspec.implementations.ftp import FTPFileSystem

from pharmabackup.errors import Conflict, InvalidInput, StorageFailed, Unsupported
from pharmabackup.storage import connect, remote
from pharmabackup.storage.anyfs import StrictFTP
from pharmabackup.storage.probe import probe
from pharmabackup.testing.storage import StorageConformance
from pharmabackup.testing.storage_faults import StorageFaults
from tests.servers.ftp import ftp


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ftp(tmp_path_factory.mktemp("ftp")) as server:
        yield server


class TestFTP(StorageConformance):
    kills = 4
    many = 50

    @pytest.fixture(autouse=True)
    def place(self, server):
        self.server = server

    def make(self):
        self.url = f"{self.server.url}/{secrets.token_hex(8)}"
        storage = connect(self.url, storage_options=self.server.options, create=True)
        assert list(storage.list("")) == []  # the folder is made with the first use
        return storage

    def reopen(self):
        return partial(connect, self.url, storage_options=self.server.options)


@pytest.mark.skipif(os.environ.get("PHARMABACKUP_PROFILE") != "nightly", reason="it takes minutes: make nightly")
class TestFTPBehindALine(StorageFaults):
    """The line of commands alone breaks: bytes and listings take others, to ports that the server names."""

    offsets = (0, 20, 200, 400, 700, 1500)
    small_offsets = tuple(range(0, 600, 47))

    @pytest.fixture(autouse=True)
    def place(self, server):
        self.server = ("127.0.0.1", server.port)
        self.options = server.options

    def make(self, port):
        url = f"ftp://127.0.0.1:{port}/{secrets.token_hex(8)}"
        storage = connect(url, storage_options=self.options | {"timeout": 2}, create=True)
        assert list(storage.list("")) == []
        return storage


@pytest.fixture
def connected(server):
    with ExitStack() as stack:

        def connected(folder="", options=None, create=True):
            url = f"{server.url}/{folder or secrets.token_hex(8)}"
            storage = connect(url, storage_options=server.options | (options or {}), create=create)
            stack.callback(storage.close)
            return storage

        yield connected


def test_what_is_there_is_not_replaced_when_no_other_writes(connected):
    storage = connected()
    storage.put_new("a", b"first")
    with pytest.raises(Conflict):
        storage.put_new("a", b"other")
    assert storage.get("a", limit=9) == b"first"


def test_it_does_not_claim_what_nothing_promises(connected):
    found = probe(connected())
    assert not found.exclusive_create and found.fresh_listing


def test_an_upload_that_breaks_off_does_not_show(connected, monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE_S", -1.0)
    storage = connected()
    storage.put_new("a/a", b"x")

    def half(self, path, value, **_):
        FTPFileSystem.open(self, path, "wb").write(value[: len(value) // 2])
        real = self.open(path, "wb")
        real.write(value[: len(value) // 2])
        real.close()

    monkeypatch.setattr(FTPFileSystem, "pipe_file", half)
    with pytest.raises(StorageFailed, match="broke off"):
        storage.put_new("a/b", bytes(1000))
    assert [item.name for item in storage.list("")] == ["a/a"]


def test_a_part_of_another_length_is_not_taken(connected, monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE_S", -1.0)
    storage = connected()
    storage.put_new("a", bytes(1000))
    monkeypatch.setattr(FTPFileSystem, "cat_file", lambda *_, **__: bytes(1000))  # as some ignore start and end
    with pytest.raises(StorageFailed, match="part of a file"):
        storage.get_range("a", 10, 10)
    monkeypatch.setattr(FTPFileSystem, "cat_file", lambda *_, **__: b"")
    with pytest.raises(StorageFailed, match="broke off"):
        storage.get_range("a", 10, 10)


def test_a_line_that_it_leaves_for_another_is_closed(server):
    fs = StrictFTP("127.0.0.1", server.port, **server.options, skip_instance_cache=True)
    left = fs.ftp
    fs._connect()  # as its file does after a read that ended early
    assert left.sock is None and fs.ftp is not left and fs.exists("/")


ATTEMPTS = [
    lambda storage: storage.info("a/b"),
    lambda storage: list(storage.list("")),
    lambda storage: list(storage.list("a")),
    lambda storage: storage.get("a/b", limit=1),
    lambda storage: storage.put_new("a/b", b"other"),
    lambda storage: raised(storage.delete(["a/b"])["a/b"]),
]


def raised(error):
    if error is not None:
        raise error


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=["info", "list", "list below", "get", "put", "delete"])
@pytest.mark.parametrize("said", ["450 geheim", "550 geheim"], ids=["busy", "not there"])
@pytest.mark.parametrize("times", [1, 100])
def test_an_error_is_no_absence_though_fsspec_says_so(connected, monkeypatch, attempt, said, times):
    monkeypatch.setattr(remote, "PATIENCE_S", -1.0)
    storage = connected()
    storage.put_new("a/b", b"x")
    real, left = ftplib.FTP.mlsd, [said] * times

    def failing(self, *args):
        if left:
            error = ftplib.error_temp if left.pop().startswith("4") else ftplib.error_perm
            raise error(said)
        return real(self, *args)

    with monkeypatch.context() as broken:
        broken.setattr(ftplib.FTP, "mlsd", failing)
        with pytest.raises(StorageFailed) as caught:
            attempt(storage)
    assert "geheim" not in str(caught.value)
    assert [item.name for item in storage.list("")] == ["a/b"]


def test_a_folder_that_is_not_there_is_no_empty_storage(connected):
    storage = connected("nowhere", create=False)
    for attempt in (lambda: storage.info("a"), lambda: list(storage.list("")), lambda: storage.get("a", limit=1)):
        with pytest.raises(StorageFailed, match="not there"):
            attempt()


def test_a_wrong_password_is_said_to_be_wrong(connected):
    storage = connected(options={"password": "geheim"})
    with pytest.raises(StorageFailed) as caught:
        storage.get("a", limit=1)
    assert caught.value.kind == "storage-denied" and "geheim" not in str(caught.value)


def test_options_that_it_does_not_take(connected, server):
    with pytest.raises(InvalidInput, match="storage_options"):
        connect(f"{server.url}/x", storage_options={"port": 1, "host": "geheim"}).get("a", limit=1)


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("nosuch://bucket", "fsspec knows none"),
        ("zip://archive", "cannot rename"),
        ("simplecache::s3://bucket", "fsspec knows none"),
        ("local:///tmp/x", "power cut"),
        ("ssh://host/x", "believes any host"),
    ],
)
def test_what_cannot_be_stored_at(url, match):
    with pytest.raises(Unsupported, match=match) as caught:
        connect(url)
    assert caught.value.kind == "capability"
