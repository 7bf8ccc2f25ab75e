"""What goes wrong on a line becomes our words, whichever client it went through."""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
import time
from email.utils import formatdate

import pytest

from pharmabackup.storage import failures

SECRET = "https://k:geheim@host/?sig=geheim"


class Wrapped(Exception):
    """As clients wrap what they met: as an attribute (urllib3, requests) or in a dict (botocore)."""

    def __init__(self, **inner):
        super().__init__(SECRET)
        self.__dict__.update(inner)


@pytest.mark.parametrize(
    ("error", "kind", "retryable"),
    [
        (socket.gaierror(socket.EAI_NONAME, SECRET), "unreachable", False),
        (socket.gaierror(socket.EAI_AGAIN, SECRET), "unreachable", True),
        (ssl.SSLCertVerificationError(SECRET), "unreachable", False),
        (ssl.SSLError(SECRET), "unreachable", False),
        (ssl.SSLEOFError(SECRET), "unreachable", True),
        (ConnectionRefusedError(SECRET), "unreachable", True),
        (ConnectionResetError(SECRET), "unreachable", True),
        (TimeoutError(SECRET), "timeout", True),
        (http.client.IncompleteRead(b""), "unreachable", True),
        (OSError(errno.EHOSTUNREACH, SECRET), "unreachable", True),
    ],
)
def test_what_a_socket_said_is_found_however_it_is_wrapped(error, kind, retryable):
    chained, grouped = Wrapped(), ExceptionGroup("all", [error])
    chained.__cause__ = Wrapped(reason=error)
    for outer in (error, Wrapped(reason=error), Wrapped(kwargs={"error": error}), Exception(error), chained, grouped):
        ours = failures.from_line(outer, "s3://b")
        assert (ours.kind, ours.retryable, ours.location) == (kind, retryable, "s3://b")
        assert "geheim" not in str(ours)


def test_what_no_socket_said_is_nothing():
    circle = Wrapped()
    circle.__cause__ = circle
    assert failures.from_line(circle, "s3://b") is None
    assert failures.from_line(ValueError("x"), "s3://b") is None


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (401, "storage-denied", False),
        (403, "storage-denied", False),
        (407, "unreachable", False),
        (408, "timeout", True),
        (413, "full", False),
        (507, "full", False),
        (429, "throttled", True),
        (503, "throttled", True),
        (500, "unreachable", True),
        (502, "unreachable", True),
        (504, "unreachable", True),
        (522, "unreachable", True),
        (418, "unreachable", False),
    ],
)
def test_a_status_says_what_kind_of_failure_it_is(status, kind, retryable):
    ours = failures.from_status(status, "s3://b")
    assert (ours.kind, ours.retryable) == (kind, retryable)


@pytest.mark.parametrize(
    ("said", "expected"), [(None, 0), ("", 0), ("7", 7), (" 7 ", 7), ("-7", 0), ("soon", 0), ("1e3", 0)]
)
def test_retry_after_in_seconds(said, expected):
    assert failures.seconds(said) == expected
    assert failures.from_status(429, "s3://b", said).after == expected


def test_retry_after_as_a_date():
    assert 50 < failures.seconds(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert failures.seconds(formatdate(time.time() - 60, usegmt=True)) == 0
    assert failures.seconds("Thu, 99 Nov 2026 20:00:00 GMT") == 0
