"""SmbStorage on Samba."""

from __future__ import annotations

import pytest

from pharmabackup.errors import InvalidInput, StorageFailed
from pharmabackup.storage import connect
from tests.servers import smb
from tests.storage.folders import BehindALine, OnServer, Promises, fills_up, fresh, syncs_in_order
from tests.storage.mounts import image, tmpfs


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with smb.samba(tmp_path_factory.mktemp("samba")) as server:
        yield server


class _OnSamba:
    @pytest.fixture(autouse=True)
    def place(self, server):
        self.real = server

    @pytest.fixture
    def disk(self, server):
        return server.share


class TestSamba(_OnSamba, OnServer):
    def test_it_claims_exclusive_creation(self, storage):
        assert storage.capabilities.exclusive_create


class TestSambaBehindALine(_OnSamba, BehindALine):
    pass


class TestPromises(_OnSamba, Promises):
    pass


def test_what_is_stored_was_synced(server, tmp_path):
    storage = connect(server.url(fresh()), storage_options=server.options, create=True)
    syncs_in_order(storage, tmp_path)
    storage.close()


def test_a_full_disk(tmp_path):
    with tmpfs("4m") as disk, smb.samba(tmp_path, disk) as server:
        storage = connect(server.url("r"), storage_options=server.options, create=True)
        fills_up(storage, disk)
        storage.close()


def test_a_file_system_without_links(tmp_path):
    with image("exfat", 16 << 20) as disk, smb.samba(tmp_path, disk) as server:
        storage = connect(server.url("r"), storage_options=server.options, create=True)
        assert not storage.capabilities.exclusive_create
        storage.put_new("a/b", b"x")
        with pytest.raises(Exception, match="has an object a/b already"):
            storage.put_new("a/b", b"y")
        assert storage.get("a/b", limit=1) == b"x"
        storage.close()


@pytest.mark.parametrize("wrong", [{"password": "geheim"}, {"username": "nobody"}])
def test_wrong_credentials_are_said_to_be_wrong(server, wrong):
    storage = connect(server.url(fresh()), storage_options=server.options | wrong)
    for attempt in (
        lambda: storage.get("a", limit=1),
        lambda: list(storage.list("")),
        lambda: storage.put_new("a", b"x"),
    ):
        with pytest.raises(StorageFailed) as caught:
            attempt()
        assert caught.value.kind == "storage-denied" and not caught.value.retryable
        assert "geheim" not in str(caught.value) and "geheim" not in repr(caught.value.__cause__)
    assert storage.delete(["a"])["a"].kind == "storage-denied"


def test_no_credentials_at_all(server, tmp_path, monkeypatch):
    monkeypatch.setenv("KRB5CCNAME", str(tmp_path / "none"))
    storage = connect(server.url("r"))
    with pytest.raises(StorageFailed) as caught:
        storage.get("a", limit=1)
    assert caught.value.kind == "storage-denied" and "username" in caught.value.remedy


def test_a_server_that_cannot_encrypt_is_refused_unless_that_is_said(tmp_path):
    with smb.samba(tmp_path, encrypt="off") as server:
        storage = connect(server.url("r"), storage_options=server.options, create=True)
        with pytest.raises(StorageFailed, match="cannot encrypt") as caught:
            storage.put_new("a", b"x")
        assert not caught.value.retryable
        storage = connect(server.url("r"), storage_options=server.options | {"encrypt": "no"}, create=True)
        storage.put_new("a", b"x")
        storage.close()


def test_a_server_that_wants_nothing_else_than_encryption(tmp_path):
    with smb.samba(tmp_path, encrypt="required") as server:
        storage = connect(server.url("r"), storage_options=server.options, create=True)
        storage.put_new("a", b"x")
        storage.close()


def test_a_share_that_may_only_be_read(server):
    folder = fresh()
    storage = connect(server.url(folder), storage_options=server.options, create=True)
    storage.put_new("a", b"x")
    reader = connect(server.url(folder).replace("/backup/", "/readable/"), storage_options=server.options)
    assert reader.get("a", limit=1) == b"x"
    with pytest.raises(StorageFailed) as caught:
        reader.put_new("b", b"x")
    assert caught.value.kind == "storage-denied"
    assert reader.delete(["a"])["a"].kind == "storage-denied"
    assert storage.get("a", limit=1) == b"x"
    storage.close()
    reader.close()


def test_a_share_that_is_not_there_is_not_an_empty_one(server):
    storage = connect(server.url("x").replace("/backup/", "/nothing/"), storage_options=server.options)
    for attempt in (lambda: storage.get("a", limit=1), lambda: list(storage.list(""))):
        with pytest.raises(StorageFailed, match="no such share") as caught:
            attempt()
        assert caught.value.kind == "unreachable" and not caught.value.retryable


@pytest.mark.parametrize(
    ("url", "options", "match"),
    [
        ("smb://host/share", {"sekret": "hunter2"}, "no option sekret.*encrypt"),
        ("smb://host/share", {"encrypt": "hunter2"}, "switch"),
        ("smb://host", {}, "not of the form"),
        ("smb:///share", {}, "not of the form"),
        ("smb://me@host/share", {}, "not of the form"),
        ("smb://me:hunter2@host/share", {}, "holds a password"),
        ("smb://host:hunter2/share", {}, "not of the form"),
    ],
)
def test_urls_and_options_are_checked(url, options, match):
    with pytest.raises(InvalidInput, match=match) as caught:
        connect(url, storage_options=options)
    assert "hunter2" not in str(caught.value)
