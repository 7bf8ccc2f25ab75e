"""WebdavStorage on rclone and on wsgidav."""

from __future__ import annotations

import http.server
import threading
from contextlib import contextmanager

import pytest

from pharmabackup.errors import InvalidInput, StorageFailed
from pharmabackup.storage import connect, probe, remote
from tests.servers import webdav
from tests.storage.folders import BehindALine, OnServer, Promises, fills_up, fresh
from tests.storage.mounts import tmpfs


@pytest.fixture(scope="module")
def rclone(tmp_path_factory):
    with webdav.rclone(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="module")
def wsgidav(tmp_path_factory):
    with webdav.wsgidav(tmp_path_factory.mktemp("wsgidav")) as server:
        yield server


class _OnRclone:
    @pytest.fixture(autouse=True)
    def place(self, rclone):
        self.real = rclone

    @pytest.fixture
    def disk(self, rclone):
        return rclone.served


class _OnWsgidav:
    @pytest.fixture(autouse=True)
    def place(self, wsgidav):
        self.real = wsgidav

    @pytest.fixture
    def disk(self, wsgidav):
        return wsgidav.served


class TestRclone(_OnRclone, OnServer):
    pass


class TestWsgidav(_OnWsgidav, OnServer):
    pass


class TestRcloneBehindALine(_OnRclone, BehindALine):
    pass


class TestWsgidavBehindALine(_OnWsgidav, BehindALine):
    pass


class TestRclonePromises(_OnRclone, Promises):
    pass


class TestWsgidavPromises(_OnWsgidav, Promises):
    pass


@pytest.mark.parametrize("name", ["rclone", "wsgidav"])
def test_exclusive_creation_is_not_claimed_though_one_that_comes_later_is_refused(request, name):
    server = request.getfixturevalue(name)
    storage = connect(server.url(fresh()), storage_options=server.options, create=True)
    assert not probe.probe(storage).exclusive_create
    storage.put_new("a", b"x")
    with pytest.raises(Exception, match="has an object a already"):
        storage.put_new("a", b"y")
    assert storage.get("a", limit=1) == b"x"
    storage.close()


@pytest.mark.parametrize("name", ["rclone", "wsgidav"])
@pytest.mark.parametrize("wrong", [{"password": "geheim"}, {"username": "nobody"}])
def test_wrong_credentials_are_said_to_be_wrong(request, name, wrong):
    server = request.getfixturevalue(name)
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
    storage.close()


def test_a_server_that_wants_digests(tmp_path):
    with webdav.wsgidav(tmp_path, digest=True) as server:
        storage = connect(server.url("r"), storage_options=server.options, create=True)
        storage.put_new("a/b", bytes(5 << 20))
        assert storage.get("a/b", limit=5 << 20) == bytes(5 << 20)
        storage.close()
        storage = connect(server.url("r"), storage_options=server.options | {"password": "geheim"})
        with pytest.raises(StorageFailed) as caught:
            storage.get("a/b", limit=1)
        assert caught.value.kind == "storage-denied"
        storage.close()


def test_tls_and_whom_it_trusts(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE_S", 0.5)
    made, key = webdav.certificate(tmp_path)
    with webdav.rclone(tmp_path, None, "--cert", str(made), "--key", str(key)) as server:
        url = server.url("r").replace("webdav:", "webdavs:")
        for trusts in ({"ca_bundle": str(made)}, {"verify": "false"}):
            storage = connect(url, storage_options=server.options | trusts, create=True)
            name = next(iter(trusts)).replace("_", "-")
            storage.put_new(name, b"x")
            assert storage.get(name, limit=1) == b"x"
            storage.close()
        storage = connect(url, storage_options=server.options)
        with pytest.raises(StorageFailed, match="certificate is not trusted") as caught:
            storage.get("a", limit=1)
        assert not caught.value.retryable
        storage = connect(url, storage_options=server.options | {"ca_bundle": str(tmp_path / "no")})
        with pytest.raises(InvalidInput, match="ca_bundle"):
            storage.get("a", limit=1)
        storage = connect(server.url("r"), storage_options=server.options)
        with pytest.raises(StorageFailed):
            storage.get("a", limit=1)
        storage.close()


def test_a_full_disk(tmp_path):
    with tmpfs("4m") as disk, webdav.wsgidav(tmp_path, disk) as server:
        storage = connect(server.url("r"), storage_options=server.options, create=True)
        fills_up(storage, disk)
        storage.close()


@contextmanager
def answering(*answers):
    """A server that gives these answers in turn: status, headers, body."""
    left = list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, body = left.pop(0) if left else (404, {}, b"")
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_PROPFIND = do_MKCOL = do_MOVE = do_DELETE = answer

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        storage = connect(f"webdav://127.0.0.1:{server.server_port}/x")
        try:
            yield storage
        finally:
            storage.close()
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [(401, "storage-denied", False), (403, "storage-denied", False), (405, "unreachable", False),
     (507, "full", False), (413, "full", False), (302, "unreachable", False)],
)  # fmt: skip
def test_what_a_status_means(status, kind, retryable):
    with answering((status, {}, b"")) as storage, pytest.raises(StorageFailed) as caught:
        list(storage.list(""))
    assert (caught.value.kind, caught.value.retryable) == (kind, retryable)


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [(206, {"Content-Range": "bytes 1-2/9"}, b"xx"), (206, {}, b"xx"), (206, {"Content-Range": "bytes 0-0/9"}, b"x")],
)
def test_a_part_that_is_not_the_one_that_was_asked_for_is_not_taken(status, headers, body, monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE_S", -1.0)
    with answering((status, headers, body)) as storage, pytest.raises(StorageFailed):
        storage.get_range("a", 0, 2)


def described(kind: bytes) -> bytes:
    return (
        b'<multistatus xmlns="DAV:"><response><href>/x</href><propstat><prop><resourcetype>'
        + kind
        + b"</resourcetype><getcontentlength>1</getcontentlength>"
        b"<getlastmodified>Thu, 26 Nov 2026 12:00:00 GMT</getlastmodified></prop>"
        b"<status>HTTP/1.1 200 OK</status></propstat></response></multistatus>"
    )


@pytest.mark.parametrize("again", [201, 403])
def test_a_folder_that_another_made_while_its_absence_was_told(again):
    answers = [
        (201, {}, b""),  # PUT
        (207, {}, described(b"")),
        (403, {}, b""),  # MOVE: rclone, where there is no folder
        (404, {}, b""),  # no object either
        (207, {}, described(b"<collection/>")),  # but the folder
        (again, {}, b""),
    ]
    if again == 403:  # it is what it means after all
        answers += answers[3:5]
    with answering(*answers) as storage:
        if again == 201:
            assert storage.put_new("a/b", b"x").size == 1
        else:
            with pytest.raises(StorageFailed) as caught:
                storage.put_new("a/b", b"x")
            assert caught.value.kind == "storage-denied"


@pytest.mark.parametrize(
    "text",
    [
        b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><x>&b;</x>',
        b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>',
    ],
)
def test_a_listing_with_entities_is_refused(text):
    with answering((207, {}, text)) as storage, pytest.raises(StorageFailed, match="no plain XML"):
        list(storage.list(""))


@pytest.mark.parametrize(
    ("url", "options", "match"),
    [
        ("webdavs://host/x", {"sekret": "hunter2"}, "no option sekret.*ca_bundle"),
        ("webdavs://host/x", {"verify": "hunter2"}, "switch"),
        ("webdav://host/x", {"username": "me", "password": "hunter2"}, "others can read"),
        ("webdavs://me@host/x", {}, "not of the form"),
        ("webdavs://me:hunter2@host/x", {}, "holds a password"),
        ("webdavs:///x", {}, "not of the form"),
        ("webdavs://host/x?hunter2", {}, "not of the form"),
    ],
)
def test_urls_and_options_are_checked(url, options, match):
    with pytest.raises(InvalidInput, match=match) as caught:
        connect(url, storage_options=options)
    assert "hunter2" not in str(caught.value)


def test_a_password_may_be_sent_in_clear_where_that_is_said():
    connect("webdav://host/x", storage_options={"username": "me", "password": "x", "cleartext": "true"})
