"""S3Storage and answers that no server here gives by itself.

They are canned: written by hand in the form that AWS documents (Amazon S3 API Reference, "Error responses"), and sent
by a server on this machine that knows nothing of S3. They show what is made of an answer, not that AWS gives it.
"""

from __future__ import annotations

import gc
import os
from datetime import UTC, datetime

import pytest

from pharmabackup.errors import Conflict, StorageFailed
from pharmabackup.storage import connect, remote
from pharmabackup.storage.base import ObjectInfo
from pharmabackup.storage.s3 import MARK
from tests.servers.canned import Request, answer, canned, in_turn

NIGHTLY = os.environ.get("PHARMABACKUP_PROFILE") == "nightly"
DATE = {"Date": "Thu, 26 Nov 2026 20:00:00 GMT"}
LISTING = (
    b'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>b</Name><Prefix>p/</Prefix><KeyCount>1</KeyCount>'
    b"<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated><Contents><Key>p/a</Key><Size>300000</Size>"
    b"<LastModified>2026-11-26T20:00:00.000Z</LastModified></Contents></ListBucketResult>"
)
DELETED = b"<DeleteResult><Deleted><Key>p/a</Key></Deleted></DeleteResult>"
DATA = bytes(range(256)) * 4
HEAD = DATE | {"Last-Modified": "Thu, 26 Nov 2026 19:00:00 GMT", f"x-amz-meta-{MARK}": "0" * 32}


def refusal(code: str, status: int, **headers: str) -> bytes:
    body = f"<Error><Code>{code}</Code><Message>geheim</Message><RequestId>1</RequestId></Error>".encode()
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return answer(status, DATE | {"Content-Type": "application/xml"} | more, body)


@pytest.fixture(scope="module")
def server():
    with canned() as server:
        yield server


@pytest.fixture(scope="module")
def s3(server):
    options = {"endpoint_url": server.url, "key": "k", "secret": "s", "region": "us-east-1"}
    storage = connect("s3://b/p", storage_options=options)
    yield storage
    storage.close()


@pytest.fixture(autouse=True)
def anew(monkeypatch, server):
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)
    server.requests.clear()


ATTEMPTS = [
    lambda storage: storage.get("a", limit=1),
    lambda storage: list(storage.list("")),
    lambda storage: storage.put_new("a", b"x"),
    lambda storage: raised(storage.delete(["a"])["a"]),
]


def raised(error):
    if error is not None:
        raise error


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=["get", "list", "put", "delete"])
@pytest.mark.parametrize(
    ("code", "status", "kind", "match"),
    [
        ("ExpiredToken", 400, "storage-denied", "have expired"),
        ("RequestTimeTooSkewed", 403, "clock", "clock"),
        ("AccessDenied", 403, "storage-denied", "refused"),
        ("QuotaExceeded", 403, "full", "full"),
        ("NoSuchBucket", 404, "unreachable", "no such bucket"),
    ],
)
def test_what_aws_refuses_is_said_at_once(server, s3, code, status, kind, match, attempt):
    server.respond = in_turn(refusal(code, status))
    with pytest.raises(StorageFailed, match=match) as caught:
        attempt(s3)
    assert caught.value.kind == kind and not caught.value.retryable
    assert "geheim" not in str(caught.value)
    assert len(server.requests) == 1


def test_a_storage_that_asks_for_an_hour_is_not_waited_for(server, s3):
    server.respond = in_turn(refusal("SlowDown", 503, Retry_After="3600"))
    with pytest.raises(StorageFailed) as caught:
        s3.get("a", limit=1)
    assert caught.value.kind == "throttled" and caught.value.after == 3600
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", ["SlowDown", "InternalError", "ConditionalRequestConflict", "OperationAborted"])
def test_what_passes_is_asked_again(server, s3, code):
    server.respond = in_turn(refusal(code, 503, Retry_After="0"), answer(200, DATE | {"ETag": '"x"'}))
    assert s3.put_new("a", b"x").size == 1
    assert len(server.requests) == 2
    assert server.requests[1].body == b"x" and server.requests[1].headers["if-none-match"] == "*"


@pytest.mark.filterwarnings("ignore:tzname G:dateutil.parser.UnknownTimezoneWarning")
def test_a_date_that_was_cut_is_no_time(server, s3):
    """The object is there; its own time is asked for."""
    head = {"Content-Length": "1"} | HEAD

    def respond(request: Request) -> bytes:
        if request.method == "HEAD":
            return answer(200, head | {f"x-amz-meta-{MARK}": mark(server.requests[0])})
        return (
            answer(200, {"Date": DATE["Date"].removesuffix("MT")})
            if len(server.requests) == 1
            else refusal("PreconditionFailed", 412)
        )

    server.respond = respond
    assert s3.put_new("a", b"x").modified == LAST_MODIFIED


def mark(request: Request) -> str:
    return request.headers[f"x-amz-meta-{MARK}"]


def test_what_somebody_else_made_is_a_conflict(server, s3):
    server.respond = in_turn(refusal("PreconditionFailed", 412), answer(200, {"Content-Length": "1"} | HEAD))
    with pytest.raises(Conflict):
        s3.put_new("a", b"x")


LAST_MODIFIED = int(datetime(2026, 11, 26, 19, tzinfo=UTC).timestamp()) * 10**9


def told(info: ObjectInfo) -> bool:
    return (info.size, info.modified) == (300_000, LAST_MODIFIED)


RANGED = HEAD | {"Content-Range": f"bytes 0-{len(DATA) - 1}/{len(DATA)}", "Content-Type": "x/y"}
WHOLE = {
    "get": (answer(206, RANGED, DATA), lambda s3: s3.get_range("a", 0, len(DATA)) == DATA),
    # Content-Length first: the digits of one that ends an answer cannot be told from a shorter number.
    "info": (answer(200, {"Content-Length": "300000"} | HEAD), lambda s3: told(s3.info("a"))),
    "list": (answer(200, DATE, LISTING), lambda s3: [each.size for each in s3.list("")] == [300_000]),
    "delete": (answer(200, DATE, DELETED), lambda s3: s3.delete(["a"]) == {"a": None}),
}


# botocore forgets an answer that it cannot parse: its socket is closed when Python comes to it, and no sooner.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:tzname G:dateutil.parser.UnknownTimezoneWarning")
@pytest.mark.parametrize("what", list(WHOLE))
def test_an_answer_that_ends_without_a_word_at_any_byte_is_asked_for_again(server, s3, what):
    whole, is_right = WHOLE[what]
    for offset in range(0, len(whole), 1 if NIGHTLY else 7):
        server.respond = in_turn(whole[:offset], whole)
        server.requests.clear()
        assert is_right(s3), f"cut after {whole[:offset][-30:]!r}"
        # Of a HEAD's answer, what follows its last line that is needed may be missing.
        assert len(server.requests) == 2 or what == "info"
    gc.collect()  # here, and not in a test that has no part in it


def test_an_answer_to_head_without_a_length_is_asked_for_again(server, s3):
    head = answer(200, {"Content-Length": "300000"} | HEAD)
    server.respond = in_turn(head.replace(b"Content-Length: 300000\r\n", b""), head)
    assert s3.info("a").size == 300_000
    assert len(server.requests) == 2
