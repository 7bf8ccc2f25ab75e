"""What goes wrong on a line, in words that say what to do: the same ones for every networked adapter.

Nothing that a client or a server said is repeated here: an exception's text may hold a URL with a password or a
signature in it, a header, or a key. `retryable` says that another try may help; within a call the storage makes it
itself (remote.py), and after the call a service may.
"""

from __future__ import annotations

import email.utils
import errno
import http.client
import socket
import ssl
import time
from collections import deque
from collections.abc import Iterator

from pharmabackup.errors import Conflict, Damaged, NotFound, StorageFailed

UNAVAILABLE = frozenset({500, 502, 503, 504, 520, 521, 522, 523, 524})  # those from 520: a proxy lost its server
LATER = "Check the network and the server, and run it again."


class Throttled(StorageFailed):
    """The storage asks to wait: `after` seconds, 0 when it did not say how long."""

    default_kind = "throttled"
    after: float = 0.0


def missing(location: str, name: str) -> NotFound:
    return NotFound(f"{location} has no object {name}.", kind="object", remedy="Run check to see what that means.")


def exists(location: str, name: str) -> Conflict:
    return Conflict(
        f"{location} has an object {name} already.",
        kind="object-exists",
        remedy="Look at what it is before going on.",
    )


def damaged(location: str, name: str, how: str) -> Damaged:
    return Damaged(
        f"The object {name} in {location} {how}.",
        kind="object",
        remedy="Run check to see what is affected, and restore from another location.",
    )


def denied(
    location: str, what: str = "refused these credentials or what they asked for", remedy: str = ""
) -> StorageFailed:
    return StorageFailed(
        f"{location} {what}.",
        kind="storage-denied",
        remedy=remedy or "Check the credentials in storage_options, and that they may read and write there.",
        location=location,
    )


def locked(location: str) -> StorageFailed:
    return StorageFailed(
        f"{location} does not let go of this before its time.",
        kind="locked",
        remedy="Wait until its retention ends; a prune after that deletes it.",
        location=location,
    )


def no_credentials(location: str, remedy: str) -> StorageFailed:
    return StorageFailed(
        f"No credentials were found for {location}.", kind="storage-denied", remedy=remedy, location=location
    )


def expired(location: str) -> StorageFailed:
    return denied(
        location, "says that these credentials have expired", "Renew them (log in again), and run it again."
    )


def wrong_clock(location: str) -> StorageFailed:
    return StorageFailed(
        f"The clock of this computer and that of {location} differ by too much.",
        kind="clock",
        remedy="Set this computer's clock, best by network time, and run it again.",
        location=location,
    )


def nowhere(location: str, what: str, remedy: str = "Check the URL.") -> StorageFailed:
    """The place itself, a bucket or a share, is not there."""
    return StorageFailed(f"{location}: {what}.", kind="unreachable", remedy=remedy, location=location)


def full(location: str) -> StorageFailed:
    return StorageFailed(
        f"{location} is full, or its quota is used up.",
        kind="full",
        remedy="Free some space there or have the quota raised; what was stored before is unharmed.",
        location=location,
    )


def throttled(location: str, after: float = 0.0) -> Throttled:
    error = Throttled(
        f"{location} takes no more requests for now.",
        remedy="Run it again later, or with a lower bandwidth limit.",
        retryable=True,
        location=location,
    )
    error.after = after
    return error


def silent(location: str) -> StorageFailed:
    return StorageFailed(
        f"{location} did not answer in time.", kind="timeout", remedy=LATER, retryable=True, location=location
    )


def unreachable(location: str, how: str = "the connection was lost", remedy: str = LATER) -> StorageFailed:
    """A trouble of the line or of the server that may pass."""
    return StorageFailed(f"{location}: {how}.", kind="unreachable", remedy=remedy, retryable=True, location=location)


def cut(location: str, name: str) -> StorageFailed:
    """Fewer bytes came than the answer announced, or it announced nothing."""
    return unreachable(location, f"the answer broke off while {name} was read")


def lost_write(location: str, name: str) -> StorageFailed:
    return StorageFailed(
        f"{location} said that it had stored {name}, and holds something else.",
        kind="lost-write",
        remedy="Do not trust this storage before its provider has explained that: use another location.",
        location=location,
    )


def unexpected(location: str, what: str) -> StorageFailed:
    """An answer that this library does not know. `what` is a code or the name of a class, never a text."""
    return StorageFailed(
        f"{location} cannot be used: {what}.",
        kind="unreachable",
        remedy="Check the URL and storage_options; if they are right, report this as a fault.",
        location=location,
    )


def from_status(status: int, location: str, retry_after: str | None = None) -> StorageFailed:
    """An HTTP status (RFC 9110) that is neither success nor "not found" nor a failed precondition."""
    match status:
        case 401 | 403:
            return denied(location)
        case 407:
            return nowhere(
                location, "the proxy wants credentials", "Give the proxy's in HTTPS_PROXY, or ask who runs it."
            )
        case 408:
            return silent(location)
        case 413 | 507:
            return full(location)
        case 429 | 503:
            return throttled(location, seconds(retry_after))
        case _ if status in UNAVAILABLE:
            return unreachable(location, f"the server failed (HTTP status {status})")
    return unexpected(location, f"HTTP status {status}")


def seconds(retry_after: str | None) -> float:
    """What a Retry-After header says (RFC 9110, 10.2.3): seconds or a date; 0 for none, or what nobody can read."""
    if not retry_after:
        return 0.0
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def from_line(error: BaseException, location: str) -> StorageFailed | None:
    """Whatever client it went through: what the sockets beneath it said. None if they said nothing."""
    for cause in _causes(error):
        match cause:
            case socket.gaierror(errno=socket.EAI_NONAME):
                return nowhere(
                    location, "its host is not known", "Check the host in the URL, and this computer's network."
                )
            case socket.gaierror():
                return unreachable(location, "its host could not be looked up")
            case ssl.SSLCertVerificationError():
                return nowhere(
                    location,
                    "its certificate is not trusted",
                    "Check the host and this computer's clock, or name the CA's certificates in storage_options.",
                )
            case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
                return unreachable(location)
            case ssl.SSLError():
                return nowhere(location, "it does not speak TLS as it should", "Check the port, and https or http.")
            case ConnectionRefusedError():
                return unreachable(
                    location, "nothing listens there", "Check host and port, and that the server runs."
                )
            case TimeoutError():
                return silent(location)
            case ConnectionError() | http.client.IncompleteRead() | http.client.BadStatusLine() | EOFError():
                return unreachable(location)
            case OSError(errno=errno.EHOSTUNREACH | errno.ENETUNREACH | errno.EHOSTDOWN | errno.ENETDOWN):
                return unreachable(location, "there is no way to its host")
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """`error` and all that clients wrap: as cause, as context, as attribute or as argument. The outermost first."""
    seen: set[int] = set()
    waiting = deque([error])
    while waiting:
        at = waiting.popleft()
        if id(at) in seen:
            continue
        seen.add(id(at))
        yield at
        inner = [
            at.__cause__,
            at.__context__,
            getattr(at, "reason", None),
            getattr(at, "original_error", None),
            *at.args,
        ]
        if isinstance(at, BaseExceptionGroup):
            inner += at.exceptions
        if isinstance(kwargs := getattr(at, "kwargs", None), dict):  # botocore's
            inner += kwargs.values()
        waiting += [each for each in inner if isinstance(each, BaseException)]
