"""GoogleStorage on fake-gcs-server, and on answers that it does not give.

The latter are canned: written by hand in the form that Google documents ("HTTP status and error codes for JSON") and
sent by a server on this machine that knows nothing of Cloud Storage. fake-gcs-server asks nobody for credentials:
that they are shown, and what is made of a refusal, is tested with canned answers alone.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from functools import partial

import google.auth.exceptions
import google.oauth2.credentials
import pytest

from pharmabackup.errors import Conflict, InvalidInput, NotFound, StorageFailed
from pharmabackup.storage import connect, remote
from pharmabackup.storage import gcs as module
from pharmabackup.testing.storage import StorageConformance
from pharmabackup.testing.storage_faults import StorageFaults
from tests.servers.canned import answer, canned, in_turn
from tests.servers.gcs import fresh


class TestFakeGCS(StorageConformance):
    rounds = 10
    kills = 4

    @pytest.fixture(autouse=True)
    def place(self, fake_gcs):
        self.options = fake_gcs.options

    def make(self):
        self.url = fresh()
        return connect(self.url, storage_options=self.options, create=True)

    def reopen(self):
        return partial(connect, self.url, storage_options=self.options)


class TestFakeGCSBehindALine(StorageFaults):
    @pytest.fixture(autouse=True)
    def place(self, fake_gcs):
        self.server = ("127.0.0.1", fake_gcs.port)
        self.options = fake_gcs.options

    def make(self, port):
        return connect(fresh(), storage_options=self.options | {"endpoint_url": f"http://127.0.0.1:{port}"})


@pytest.fixture
def connected():
    """`connect`, and all that it gave is closed in the end."""
    with ExitStack() as stack:

        def connected(options, url=""):
            storage = connect(url or fresh(), storage_options=options)
            stack.callback(storage.close)
            return storage

        yield connected


@pytest.fixture
def storage(fake_gcs, connected):
    return connected(fake_gcs.options)


def test_a_bucket_that_is_not_there_is_no_empty_storage(fake_gcs, connected):
    storage = connected(fake_gcs.options, "gs://nowhere-at-all/x")
    for attempt in (
        lambda: storage.get("a", limit=1),
        lambda: storage.info("a"),
        lambda: raised(storage.delete(["a"])["a"]),
    ):
        with pytest.raises(StorageFailed, match="no such bucket"):
            attempt()


def test_an_object_of_an_own_lost_answer_is_ones_own(storage, monkeypatch):
    real = type(storage)._put
    tries = []

    def lost(self, client, name, body, mark):
        real(self, client, name, body, mark)
        if not tries:
            tries.append(name)
            raise ConnectionResetError

    monkeypatch.setattr(type(storage), "_put", lost)
    assert storage.put_new("a", b"x").size == 1
    with pytest.raises(Conflict):
        storage.put_new("a", b"x")


def test_what_lies_beside_and_what_others_put_there_is_not_listed(fake_gcs, storage):
    storage.put_new("a/b", b"x")
    below = storage.location.split("/", 3)[3]
    for key in (f"{below}-2/a/b", f"{below}/README.txt", f"{below}/a/B"):
        fake_gcs.put(key)
    assert [item.name for item in storage.list("")] == ["a/b"]
    with pytest.raises(NotFound):
        storage.get("b", limit=1)


@pytest.mark.parametrize("options", [{"sekret": "geheim"}, {"endpoint_url": "geheim"}, {"verify": "geheim"}])
def test_options_are_checked(options):
    with pytest.raises(InvalidInput) as caught:
        connect("gs://bucket/x", storage_options=options)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("url", ["gs://", "gs:///x", "gcs://b/x?a=geheim", "gs://geheim@b/x"])
def test_urls_are_checked(url):
    with pytest.raises(InvalidInput) as caught:
        connect(url)
    assert "geheim" not in str(caught.value)


# Canned answers


def refusal(reason: str, status: int, **headers: str) -> bytes:
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    said = {"error": {"code": status, "message": "geheim", "errors": [{"domain": "global", "reason": reason}]}}
    return answer(status, {"Content-Type": "application/json"} | more, json.dumps(said).encode())


OBJECT = {"size": "256", "timeCreated": "2026-11-26T20:00:00.123Z", "metadata": {module.MARK: "0" * 32}}
DATA = bytes(range(256))


def said(what: object) -> bytes:
    return answer(200, {"Content-Type": "application/json"}, json.dumps(what).encode())


@pytest.fixture(scope="module")
def server():
    with canned() as server:
        yield server


@pytest.fixture
def answered(server, connected, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)
    server.requests.clear()
    return connected({"token": "anon", "endpoint_url": server.url}, "gs://b/p")


def raised(error):
    if error is not None:
        raise error


@pytest.mark.parametrize(
    ("reason", "status", "kind", "match"),
    [
        ("authError", 401, "storage-denied", "have expired"),
        ("forbidden", 403, "storage-denied", "refused"),
        ("retentionPolicyNotMet", 403, "locked", "before its time"),
    ],
)
def test_what_google_refuses_is_said_at_once(server, answered, reason, status, kind, match):
    server.respond = in_turn(refusal(reason, status))
    for attempt in (
        lambda: answered.get("a", limit=1),
        lambda: list(answered.list("")),
        lambda: answered.put_new("a", b"x"),
        lambda: raised(answered.delete(["a"])["a"]),
    ):
        server.requests.clear()
        with pytest.raises(StorageFailed, match=match) as caught:
            attempt()
        assert caught.value.kind == kind and not caught.value.retryable
        assert "geheim" not in str(caught.value) and len(server.requests) == 1


@pytest.mark.parametrize(
    ("reason", "status"),
    [("rateLimitExceeded", 429), ("userRateLimitExceeded", 403), ("backendError", 503), ("x", 500)],
)
def test_what_passes_is_asked_again(server, answered, reason, status):
    server.respond = in_turn(refusal(reason, status, Retry_After="0"), said(OBJECT))
    assert answered.put_new("a", b"x").size == 1
    assert len(server.requests) == 2
    assert "ifGenerationMatch=0" in server.requests[1].target


def test_what_arrived_changed_is_sent_again(server, answered):
    bad = {"error": {"code": 400, "message": "Provided MD5 hash ... doesn't match calculated MD5 hash"}}
    server.respond = in_turn(answer(400, {}, json.dumps(bad).encode()), said(OBJECT))
    assert answered.put_new("a", b"hello").size == 5
    assert b"XUFAKrxLKna5cZ2REBfFkg==" in server.requests[1].body  # the MD5 of "hello"


WHOLE = {
    "get": (answer(206, {"Content-Range": "bytes 0-255/256"}, DATA), lambda s: s.get_range("a", 0, 256) == DATA),
    "info": (said(OBJECT), lambda s: s.info("a").size == 256),
    "list": (
        said({"kind": "storage#objects", "items": [{"name": "p/a"} | OBJECT]}),
        lambda s: [each.size for each in s.list("")] == [256],
    ),
    "delete": (answer(200), lambda s: s.delete(["a"]) == {"a": None}),
    "put": (said(OBJECT), lambda s: s.put_new("a", b"x").size == 1),
}


@pytest.mark.parametrize("what", list(WHOLE))
def test_an_answer_that_ends_without_a_word_at_any_byte_is_asked_for_again(server, answered, what):
    whole, is_right = WHOLE[what]
    for offset in range(len(whole)):
        server.respond = in_turn(whole[:offset], whole)
        server.requests.clear()
        assert is_right(answered), f"cut after {whole[:offset][-30:]!r}"
        assert len(server.requests) == 2


def test_a_listing_that_is_none_is_asked_for_again(server, answered):
    server.respond = in_turn(said({}), said({"kind": "storage#objects"}))
    assert list(answered.list("")) == []
    assert len(server.requests) == 2


def test_a_listing_of_several_pages(server, answered):
    pages = [{"kind": "storage#objects", "items": [{"name": f"p/{n}"} | OBJECT]} for n in "abc"]
    for number in (0, 1):
        pages[number]["nextPageToken"] = f"next-{number}"
    server.respond = in_turn(*map(said, pages))
    assert [item.name for item in answered.list("")] == ["a", "b", "c"]
    assert ["pageToken=next-1" in request.target for request in server.requests] == [False, False, True]


def test_who_asks_is_shown(server, connected, monkeypatch):
    monkeypatch.setattr(
        "google.auth.default", lambda **_: (google.oauth2.credentials.Credentials("geheim"), "project")
    )
    storage = connected({"endpoint_url": server.url}, "gs://b/p")
    server.respond = in_turn(said(OBJECT))
    assert storage.info("a").size == 256
    assert server.requests[-1].headers["authorization"] == "Bearer geheim"


def test_no_credentials(connected, monkeypatch):
    def none(**_):
        raise google.auth.exceptions.DefaultCredentialsError("geheim")

    monkeypatch.setattr("google.auth.default", none)
    with pytest.raises(StorageFailed) as caught:
        connected({}, "gs://b/p").get("a", limit=1)
    assert caught.value.kind == "storage-denied" and "gcloud" in caught.value.remedy


def test_a_file_without_credentials(connected, tmp_path):
    (tmp_path / "token.json").write_text("{}")
    with pytest.raises(InvalidInput, match="token"):
        connected({"token": str(tmp_path / "token.json")}, "gs://b/p").get("a", limit=1)
