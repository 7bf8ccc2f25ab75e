"""AzureStorage and answers that Azurite does not give.

They are canned: written by hand in the form that Microsoft documents ("Blob service error codes", "List Blobs"), sent
by a server on this machine that knows nothing of Azure. They show what is made of an answer, not that Azure gives it.
"""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from pharmabackup.errors import NotFound, StorageFailed
from pharmabackup.storage import connect, remote
from tests.servers.canned import answer, canned, in_turn

DATA = bytes(range(256))
HEAD = {"Last-Modified": "Thu, 26 Nov 2026 19:00:00 GMT", "x-ms-meta-pharmabackupupload": "0" * 32}


def listed(name: str, size: int, kind: str) -> str:
    return (
        f"<Blob><Name>{name}</Name><Properties><Content-Length>{size}</Content-Length>"
        f"<Last-Modified>{HEAD['Last-Modified']}</Last-Modified><ResourceType>{kind}</ResourceType></Properties></Blob>"
    )


LISTING = (
    f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>{listed("p/packs", 0, "directory")}'
    f"{listed('p/packs/a', 256, 'file')}</Blobs><NextMarker/></EnumerationResults>"
).encode()


def refusal(code: str, status: int, **headers: str) -> bytes:
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    said = f"<Error><Code>{code}</Code><Message>geheim</Message></Error>".encode()
    return answer(status, {"x-ms-error-code": code, "Date": formatdate(usegmt=True)} | more, said)


@pytest.fixture(scope="module")
def server():
    with canned() as server:
        yield server


@pytest.fixture(scope="module")
def azure(server):
    options = {"account_name": "a", "account_key": "aaaa", "account_url": server.url}
    storage = connect("azure://container/p", storage_options=options)
    yield storage
    storage.close()


@pytest.fixture(autouse=True)
def anew(monkeypatch, server):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)
    server.requests.clear()


@pytest.mark.parametrize(
    ("code", "status", "kind", "match"),
    [
        ("AuthenticationFailed", 403, "storage-denied", "refused"),
        ("InvalidAuthenticationInfo", 401, "storage-denied", "have expired"),
        ("AuthorizationPermissionMismatch", 403, "storage-denied", "refused"),
        ("BlobImmutableDueToPolicy", 409, "locked", "before its time"),
        ("ContainerNotFound", 404, "unreachable", "no such container"),
    ],
)
def test_what_azure_refuses_is_said_at_once(server, azure, code, status, kind, match):
    server.respond = in_turn(refusal(code, status))
    for attempt in (
        lambda: azure.get("a", limit=1),
        lambda: list(azure.list("")),
        lambda: azure.put_new("a", b"x"),
        lambda: raised(azure.delete(["a"])["a"]),
    ):
        server.requests.clear()
        with pytest.raises(StorageFailed, match=match) as caught:
            attempt()
        assert caught.value.kind == kind and not caught.value.retryable
        assert "geheim" not in str(caught.value) and len(server.requests) == 1


def raised(error):
    if error is not None:
        raise error


def test_a_clock_that_is_wrong(server, azure):
    server.respond = in_turn(refusal("AuthenticationFailed", 403, Date=formatdate(time.time() + 3600, usegmt=True)))
    with pytest.raises(StorageFailed) as caught:
        azure.get("a", limit=1)
    assert caught.value.kind == "clock"


@pytest.mark.parametrize(
    ("code", "status"),
    [("ServerBusy", 503), ("OperationTimedOut", 500), ("InternalError", 500), ("Md5Mismatch", 400)],
)
def test_what_passes_is_asked_again(server, azure, code, status):
    server.respond = in_turn(refusal(code, status, Retry_After="0"), answer(201, HEAD))
    assert azure.put_new("a", b"x").size == 1
    assert [request.body for request in server.requests] == [b"x", b"x"]
    assert server.requests[1].headers["if-none-match"] == "*"


def test_a_storage_that_asks_for_an_hour_is_not_waited_for(server, azure):
    server.respond = in_turn(refusal("ServerBusy", 503, Retry_After="3600"))
    with pytest.raises(StorageFailed) as caught:
        azure.get("a", limit=1)
    assert caught.value.kind == "throttled" and caught.value.after == 3600 and len(server.requests) == 1


def test_folders_of_a_hierarchical_namespace_are_no_objects(server, azure):
    server.respond = in_turn(answer(200, {}, LISTING))
    assert [(item.name, item.size) for item in azure.list("")] == [("packs/a", 256)]
    server.respond = in_turn(answer(200, HEAD | {"x-ms-resource-type": "directory"}))
    with pytest.raises(NotFound):
        azure.info("packs")


WHOLE = {
    "get": (
        answer(206, HEAD | {"Content-Range": "bytes 0-255/256"}, DATA),
        lambda s: s.get_range("a", 0, 256) == DATA,
    ),
    "info": (answer(200, HEAD | {"Content-Length": "256"}), lambda s: s.info("a").size == 256),
    "list": (answer(200, {}, LISTING), lambda s: [each.size for each in s.list("")] == [256]),
    "delete": (answer(202), lambda s: s.delete(["a"]) == {"a": None}),
    "put": (answer(201, HEAD), lambda s: s.put_new("a", b"x").size == 1),
}


@pytest.mark.parametrize("what", list(WHOLE))
def test_an_answer_that_ends_without_a_word_at_any_byte_is_asked_for_again(server, azure, what):
    whole, is_right = WHOLE[what]
    for offset in range(len(whole)):
        server.respond = in_turn(whole[:offset], whole)
        server.requests.clear()
        assert is_right(azure), f"cut after {whole[:offset][-30:]!r}"
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    "said",
    [
        answer(206, HEAD | {"Content-Range": "bytes 1-255/256"}, DATA[1:]),
        answer(206, HEAD | {"Content-Range": "bytes 0-254/256"}, DATA[:255]),
        answer(206, HEAD | {"Content-Range": "bytes 0-255/256"}, DATA[:255]),
        answer(206, HEAD, DATA),
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-255/256\r\n\r\n" + DATA,
    ],
    ids=["begins later", "ends sooner", "shorter than it says", "does not say which", "says no length"],
)
def test_a_range_that_is_not_what_was_asked_for_is_not_taken(server, azure, said):
    server.respond = in_turn(said, answer(206, HEAD | {"Content-Range": "bytes 0-255/256"}, DATA))
    assert azure.get_range("a", 0, 256) == DATA
    assert len(server.requests) == 2


def test_a_listing_that_does_not_say_whether_it_goes_on_is_asked_for_again(server, azure):
    server.respond = in_turn(answer(200, {}, LISTING.replace(b"<NextMarker/>", b"")), answer(200, {}, LISTING))
    assert [item.name for item in azure.list("")] == ["packs/a"]
    assert len(server.requests) == 2
