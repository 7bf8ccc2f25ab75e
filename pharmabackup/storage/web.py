"""Storages that are spoken to in plain HTTP requests, through httpx.

httpx reads answers with h11, which takes one only when its head ends as it should and its body is as long as was
announced; Python's own http.client takes a head that breaks off for a whole one. Redirects are not followed unless an
adapter does it: what they lead to must not get the credentials.
"""

from __future__ import annotations

import ssl
from abc import abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from json import JSONDecodeError
from typing import Any

import httpx

from pharmabackup.errors import Error, InvalidInput
from pharmabackup.storage import failures, remote
from pharmabackup.storage.body import Body
from pharmabackup.storage.ranges import content_range
from pharmabackup.storage.remote import RemoteStorage
from pharmabackup.storage.unlogged import unlogged_by

PIECE = 1 << 20  # bytes taken from an answer at a time
SENT = 1 << 16  # bytes given to the line at a time
POOL = 32  # connections kept open
ANSWER_MAX = 64 << 20  # bytes of a listing's page or an error: more is no answer

unlogged_by("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy")


class WebStorage(RemoteStorage[httpx.Client]):
    """`_authorize` and `_refused` are the adapter's. Its `base` is the server's address, without a `/` at its end."""

    def __init__(self, location: str, base: str, *, ca_bundle: str | None = None, verify: bool = True) -> None:
        try:
            if httpx.URL(base).scheme not in ("http", "https") or not httpx.URL(base).host:
                raise httpx.InvalidURL("no host")
        except httpx.InvalidURL:
            raise InvalidInput(
                f"The server's address for {location} is no URL.", remedy="Give it as https://host."
            ) from None
        self._base = base.rstrip("/")
        self._ca_bundle, self._verify = ca_bundle, verify
        super().__init__(location)

    @abstractmethod
    def _authorize(self, request: httpx.Request) -> None:
        """Give the request what shows who asks."""

    @abstractmethod
    def _refused(self, answer: httpx.Response) -> Error:
        """What an answer that is no success means; its body has been read. It may be of a HEAD, and have none."""

    def _connect(self) -> httpx.Client:
        return open_client(ca_bundle=self._ca_bundle, verify=self._verify)

    def _disconnect(self, client: httpx.Client) -> None:
        client.close()

    @contextmanager
    def _answer(
        self,
        client: httpx.Client,
        method: str,
        url: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | Iterable[bytes] | None = None,
        json: object = None,
        authorize: bool = True,
    ) -> Iterator[httpx.Response]:
        """The answer to one request, its body not yet read."""
        request = client.build_request(
            method,
            url,
            params=query or None,
            headers=dict(headers or {}),
            content=content,
            json=json,
        )
        if authorize:
            self._authorize(request)
        with closing(client.send(request, stream=True)) as answer:
            bodiless = method == "HEAD" or answer.status_code == 204 or answer.is_redirect
            if not bodiless and not announced(answer):
                raise failures.cut(self.location, "an answer")
            yield answer

    def _ask(self, client: httpx.Client, method: str, url: str, *, good: Iterable[int], **how: Any) -> httpx.Response:
        """The whole answer, when its status is one of `good`; otherwise it raises what `_refused` makes of it."""
        with self._answer(client, method, url, **how) as answer:
            self._take(answer)
        if answer.status_code not in good:
            raise self._refused(answer)
        return answer

    def _take(self, answer: httpx.Response) -> None:
        if int(answer.headers.get("content-length", 0)) > ANSWER_MAX:
            raise failures.unexpected(self.location, "an answer is too large")
        answer.read()

    def _ranged(
        self, client: httpx.Client, url: str, name: str, offset: int, length: int, **how: Any
    ) -> Generator[bytes, None, None]:
        """`_read` by a GET with a Range (RFC 9110, 14)."""
        headers = dict(how.pop("headers", {})) | {"Range": f"bytes={offset}-{offset + length - 1}"}
        with self._answer(client, "GET", url, headers=headers, **how) as answer:
            if answer.status_code == 416:
                return  # it ends before `offset`
            if answer.status_code not in (200, 206):
                self._take(answer)
                raise self._refused(answer)
            expected = int(answer.headers.get("content-length", -1))
            start, end, size = 0, expected, expected
            if answer.status_code == 206:
                start, end, size = content_range(answer.headers.get("content-range", ""))
            if start != offset or end != min(offset + length, size) or expected not in (-1, end - start):
                raise failures.cut(self.location, name)
            left = end - start
            for piece in answer.iter_raw(PIECE):
                left -= len(piece)
                if left < 0:
                    break
                yield piece
            if left:
                raise failures.cut(self.location, name)

    def _failure(self, error: Exception) -> Error:
        if isinstance(error, JSONDecodeError | UnicodeDecodeError | LookupError):
            return failures.unreachable(self.location, "an answer could not be read")
        return went_wrong(error, self.location)


def open_client(*, ca_bundle: str | None, verify: bool) -> httpx.Client:
    """`ca_bundle`: a file of certificates, beside none that the system trusts. InvalidInput when it has none."""
    trust: ssl.SSLContext | bool = verify
    if ca_bundle and verify:
        try:
            trust = ssl.create_default_context(cafile=ca_bundle)
        except OSError:
            raise InvalidInput(
                "The file of ca_bundle cannot be read, or has no certificates.",
                remedy="Check ca_bundle in storage_options.",
            ) from None
    return httpx.Client(
        timeout=httpx.Timeout(remote.SILENCE_S, connect=remote.CONNECT_S),
        limits=httpx.Limits(max_connections=POOL, max_keepalive_connections=POOL),
        verify=trust,
        follow_redirects=False,
        headers={"Accept-Encoding": "identity"},  # lengths and ranges are those of the object
    )


def went_wrong(error: Exception, location: str) -> Error:
    """What httpx raised, in our words."""
    if found := failures.from_line(error, location):
        return found
    match error:
        case httpx.TimeoutException():
            return failures.silent(location)
        case httpx.ProxyError():
            return failures.unreachable(location, "the proxy does not answer", "Check HTTPS_PROXY.")
        case httpx.TransportError() | httpx.DecodingError():
            return failures.unreachable(location)
    return failures.unexpected(location, type(error).__name__)


def pieces(body: Body) -> Iterator[bytes]:
    """The body, from where it stands."""
    while piece := body.read(SENT):
        yield piece


def announced(answer: httpx.Response) -> bool:
    """Whether the answer says how it ends: otherwise a line that breaks is taken for its end."""
    return "content-length" in answer.headers or "chunked" in answer.headers.get("transfer-encoding", "")
