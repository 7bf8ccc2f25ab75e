"""Azure Blob Storage: `azure://container/prefix`, in single requests of its REST interface.

An object is one Put Blob with `If-None-Match: *`, which takes up to 5,000 MiB; objects here are some tens of MB. Its
MD5 goes along, and the service refuses what arrived changed. Requests are plain ones, since azure-storage-blob tries
downloads again by itself, three times, whatever its retry policy is told. The names of options are adlfs's.
Interface: https://learn.microsoft.com/rest/api/storageservices/blob-service-rest-api
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import re
import time
from collections.abc import Generator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import formatdate, parsedate_to_datetime
from typing import Self
from urllib.parse import parse_qsl, quote
from xml.etree import ElementTree

import httpx

from pharmabackup.clock import now_ns
from pharmabackup.errors import Error, InvalidInput
from pharmabackup.storage import entra, failures
from pharmabackup.storage.base import Capabilities, ObjectInfo, Version, is_name
from pharmabackup.storage.body import Body
from pharmabackup.storage.locking import LockingStorage, Versions
from pharmabackup.storage.options import Options
from pharmabackup.storage.remote import Created, Page, Stored
from pharmabackup.storage.web import WebStorage, pieces

VERSION = "2021-12-02"  # of the interface: the first with what is used here is older
MARK = "x-ms-meta-pharmabackupupload"  # the metadata that tells whose an object is; its name takes no `-`
FROM_ENVIRONMENT = {
    "account_name": "AZURE_STORAGE_ACCOUNT_NAME",
    "account_key": "AZURE_STORAGE_ACCOUNT_KEY",
    "connection_string": "AZURE_STORAGE_CONNECTION_STRING",
    "sas_token": "AZURE_STORAGE_SAS_TOKEN",
}
PLACE = re.compile(r"([a-z0-9$][a-z0-9-]{1,62})(?:@([a-z0-9]{3,24})\.(?:blob|dfs)\.core\.windows\.net)?")
SKEW_S = 14 * 60  # a request's time may differ from the service's by 15 minutes
SIGNED = (
    "content-encoding", "content-language", "content-length", "content-md5", "content-type", "date",
    "if-modified-since", "if-match", "if-none-match", "if-unmodified-since", "range",
)  # fmt: skip

EXISTS = frozenset({"BlobAlreadyExists", "ConditionNotMet", "UnauthorizedBlobOverwrite"})
CHANGED = frozenset({"Md5Mismatch"})
PASSING = frozenset({"InternalError", "OperationTimedOut", "ContainerBeingDeleted", "LeaseIdMissing"})
IMMUTABLE = frozenset({"BlobImmutableDueToPolicy", "BlobImmutableDueToLegalHold"})


class AzureStorage(LockingStorage[httpx.Client], WebStorage):
    """The blobs below `prefix` in `container`.

    Options: `account_name`; `account_key`, `sas_token`, `connection_string`, or an Entra ID identity: `tenant_id`,
    `client_id` and `client_secret`, or whatever azure-identity finds. `account_url` of another server than Azure's
    own, `ca_bundle` (a file of certificates), `verify` (false trusts any certificate). `immutable` (35d) locks what
    is stored; `lock_mode` is locked, which nobody can end, or unlocked. `as_of` reads what was there then.
    """

    options = Options(
        text=(
            "account_name", "account_key", "sas_token", "connection_string", "account_url", "ca_bundle", "lock_mode",
            *entra.OPTIONS,
        ),
        switches=("verify",),
        periods=("immutable",),
        moments=("as_of",),
    )  # fmt: skip
    capabilities = Capabilities(exclusive_create=True, fresh_listing=True)

    def __init__(self, container: str, prefix: str, options: Mapping[str, object], *, account: str = "") -> None:
        given = self.options.checked("azure", options)
        location = f"azure://{container}/{prefix}".rstrip("/")
        text = _known(given.text, account)
        if not text.get("account_url"):
            raise InvalidInput(
                "The name of the storage account is missing.",
                remedy="Give account_name in storage_options, or set AZURE_STORAGE_ACCOUNT_NAME.",
            )
        self._account = text.get("account_name", "")
        self._sas = text.get("sas_token", "").removeprefix("?")
        self._key = b""
        self._tokens: entra.Tokens | None = None
        if account_key := text.get("account_key"):
            try:
                self._key = base64.b64decode(account_key, validate=True)
            except binascii.Error:
                raise InvalidInput("The account_key is not as Azure gives them.", remedy="Copy it again.") from None
        elif not self._sas:
            self._tokens = entra.Tokens(location, "https://storage.azure.com/.default", text)
        self._container, self._below = container, f"{prefix}/" if prefix else ""
        self._lock_mode = text.get("lock_mode", "locked").capitalize()
        if self._lock_mode not in ("Locked", "Unlocked"):
            raise InvalidInput("There is no such lock_mode.", remedy="Give locked or unlocked.")
        self._ahead = 0  # ns by which the service's clock is ahead of this computer's
        super().__init__(
            location,
            text["account_url"],
            immutable=given.periods.get("immutable", 0),
            as_of=given.moments.get("as_of"),
            ca_bundle=text.get("ca_bundle"),
            verify=given.switches.get("verify", True),
        )

    @classmethod
    def at(cls, url: str, options: Mapping[str, object], *, create: bool) -> Self:  # noqa: ARG003
        """The storage at `azure://container/prefix`, `az://` or `abfs://`, the last also with `@ACCOUNT.dfs…`.

        Containers are made by whoever pays for them. InvalidInput.
        """
        place, _, prefix = url.partition("://")[2].partition("/")
        found = PLACE.fullmatch(place)
        if not found or any(sign in url for sign in "?#"):
            raise InvalidInput(
                "The URL is not of the form azure://container/prefix.",
                remedy="Give the container, then a prefix if you like.",
            )
        return cls(found[1], prefix.strip("/"), options, account=found[2] or "")

    # Requests

    def _take(self, answer: httpx.Response) -> None:
        if (date := _ns(answer.headers.get("date"))) is not None:
            self._ahead = date - now_ns()
        super()._take(answer)

    def _put(self, client: httpx.Client, name: str, body: Body, mark: str) -> Created:
        digest = base64.b64encode(body.md5()).decode()
        headers = {
            "x-ms-blob-type": "BlockBlob",
            MARK: mark,
            "If-None-Match": "*",
            "Content-Length": str(body.size),
            "Content-MD5": digest,
            "Content-Type": "application/octet-stream",
        }
        if until := self._lock_until(name):
            headers |= self._policy(until)
        answer = self._answer(client, "PUT", self._blob(name), headers=headers, content=pieces(body))
        with answer as said:
            self._take(said)
        if said.status_code in (409, 412) and _code(said) in EXISTS:
            raise failures.exists(self.location, name)
        if said.status_code != 201:
            raise self._refused(said)
        # which the service computes anew: https://learn.microsoft.com/rest/api/storageservices/put-blob
        proved = said.headers.get("content-md5") == digest
        return Created(_ns(said.headers.get("last-modified")), proved)

    def _read(self, client: httpx.Client, name: str, offset: int, length: int) -> Generator[bytes, None, None]:
        try:
            yield from self._ranged(client, self._blob(name), name, offset, length)
        except _Absent:
            raise failures.missing(self.location, name) from None

    def _head(self, client: httpx.Client, name: str) -> Stored:
        try:
            headers = self._ask(client, "HEAD", self._blob(name), good=(200,)).headers
        except _Absent:
            raise failures.missing(self.location, name) from None
        if headers.get("x-ms-resource-type") == "directory":  # of a hierarchical namespace
            raise failures.missing(self.location, name)
        modified = _ns(headers.get("last-modified"))
        if modified is None or "content-length" not in headers:
            raise failures.cut(self.location, name)
        return Stored(size=int(headers["content-length"]), modified=modified, mark=headers.get(MARK, ""))

    def _page(self, client: httpx.Client, prefix: str, at: object) -> Page:
        blobs, more = self._blobs(client, f"{prefix}/" if prefix else "", at)
        items = [ObjectInfo(name=each.name, size=each.size, modified=each.modified) for each in blobs]
        return Page(items, [more] if more else [])

    def _versions(self, client: httpx.Client, prefix: str, at: object) -> Versions:
        return Versions(*self._blobs(client, prefix, at, include="versions"))

    def _blobs(
        self, client: httpx.Client, prefix: str, at: object, **query: str
    ) -> tuple[Sequence[Version], str | None]:
        query |= {"restype": "container", "comp": "list", "prefix": self._below + prefix, "maxresults": "5000"}
        if at is not None:
            query["marker"] = str(at)
        answer = self._ask(client, "GET", f"{self._base}/{self._container}", query=query, good=(200,))
        root = ElementTree.fromstring(answer.content)  # noqa: S314  (expat bounds what entities grow to)
        after = root.find("NextMarker")
        if after is None:
            raise failures.cut(self.location, "a listing")
        items = []
        for blob in root.iterfind("Blobs/Blob"):
            name = (blob.findtext("Name") or "").removeprefix(self._below)
            if is_name(name) and blob.findtext("Properties/ResourceType") != "directory":  # others put things there
                items.append(
                    Version(
                        name=name,
                        id=blob.findtext("VersionId") or "",
                        modified=_ns(blob.findtext("Properties/Last-Modified")) or 0,
                        size=int(blob.findtext("Properties/Content-Length") or ""),
                        newest=blob.findtext("IsCurrentVersion") == "true",
                    )
                )
        return items, after.text or None

    def _remove(self, client: httpx.Client, names: Sequence[str]) -> Mapping[str, Error | None]:
        return {name: self._deleted(client, self._blob(name)) for name in names}

    def _deleted(self, client: httpx.Client, blob: str, query: Mapping[str, str] | None = None) -> Error | None:
        try:
            self._ask(client, "DELETE", blob, query=query, good=(202,))
        except _Absent:
            return None
        except Error as error:
            return error
        return None

    def _plain(self, name: str) -> str:
        return f"{self._base}/{self._container}/{quote(self._below + name)}"

    def _blob(self, name: str) -> str:
        version = self._version_then(name)
        return self._plain(name) + ("" if version is None else f"?versionid={quote(version, safe='')}")

    # Locks and versions

    def _can_lock(self, client: httpx.Client) -> bool:
        place = f"{self._base}/{self._container}"
        answer = self._ask(client, "HEAD", place, query={"restype": "container"}, good=(200,))
        return bool(answer.headers.get("x-ms-immutable-storage-with-versioning-enabled") == "true")

    def _policy(self, until: int) -> dict[str, str]:
        return {
            "x-ms-immutability-policy-until-date": formatdate(-(-until // 10**9), usegmt=True),
            "x-ms-immutability-policy-mode": self._lock_mode,
        }

    def _keep(self, client: httpx.Client, version: Version, until: int) -> None:
        query = {"comp": "immutabilityPolicies", **_of(version)}
        headers = self._policy(until) | {"Content-Length": "0"}
        try:
            if self._lock_mode == "Unlocked" and self._kept(client, version) >= until:
                return  # such a policy could be made shorter
            self._ask(client, "PUT", self._plain(version.name), query=query, headers=headers, good=(200,))
        except _Absent:
            raise failures.missing(self.location, version.name) from None
        except Error as error:
            # A policy cannot be shortened: then it is there for longer already.
            if error.kind != "locked" or self._kept(client, version) < until:
                raise

    def _kept(self, client: httpx.Client, version: Version) -> int:
        query = _of(version)
        try:
            answer = self._ask(client, "HEAD", self._plain(version.name), query=query, good=(200,))
        except _Absent:
            raise failures.missing(self.location, version.name) from None
        return _ns(answer.headers.get("x-ms-immutability-policy-until-date")) or 0

    def _forget(self, client: httpx.Client, versions: Sequence[Version]) -> Sequence[Error | None]:
        return [self._deleted(client, self._plain(each.name), _of(each)) for each in versions]

    def now(self) -> int:
        return now_ns() + self._ahead

    # Who asks

    def _after_fork(self) -> None:
        super()._after_fork()
        if self._tokens is not None:
            self._tokens.after_fork()

    def _authorize(self, request: httpx.Request) -> None:
        request.headers["x-ms-version"] = VERSION
        request.headers["x-ms-date"] = formatdate(usegmt=True)
        if self._tokens is not None:
            request.headers["Authorization"] = f"Bearer {self._tokens.current()}"
        elif self._key:
            digest = hmac.digest(self._key, self._to_sign(request).encode(), "sha256")
            request.headers["Authorization"] = f"SharedKey {self._account}:{base64.b64encode(digest).decode()}"
        else:
            query = request.url.query.decode()
            request.url = request.url.copy_with(query=(f"{query}&{self._sas}" if query else self._sas).encode())

    def _to_sign(self, request: httpx.Request) -> str:
        """The text that an account's key signs.

        Source: https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key
        """
        lines = [request.method]
        for name in SIGNED:
            value = request.headers.get(name, "")
            lines.append("" if name == "content-length" and value == "0" else value)
        own = sorted((name.lower(), value) for name, value in request.headers.items() if name.startswith("x-ms-"))
        lines += [f"{name}:{value.strip()}" for name, value in own]
        lines.append(f"/{self._account}{request.url.raw_path.decode().partition('?')[0]}")
        query = parse_qsl(request.url.query.decode(), keep_blank_values=True)
        return "\n".join(lines + [f"{name.lower()}:{value}" for name, value in sorted(query)])

    # What goes wrong

    def _refused(self, answer: httpx.Response) -> Error:
        code, status = _code(answer), answer.status_code
        if code in ("ContainerNotFound", "ContainerDisabled"):
            return failures.nowhere(
                self.location, "there is no such container", "Check the URL, or create the container."
            )
        if status == 404 and code in ("BlobNotFound", "ResourceNotFound"):
            raise _Absent
        if status == 404:
            return failures.unexpected(self.location, code or "HTTP status 404")
        if status == 403 and code == "AuthenticationFailed" and _seconds_off(answer) > SKEW_S:
            return failures.wrong_clock(self.location)
        if status == 403 and self._sas and _has_expired(self._sas):
            return failures.expired(self.location)
        if code == "InvalidAuthenticationInfo":  # a token that has expired in between
            return failures.expired(self.location)
        if code in IMMUTABLE:
            return failures.locked(self.location)
        if code in CHANGED:
            return failures.unreachable(self.location, "what was sent arrived changed")
        if code in PASSING:
            return failures.unreachable(self.location, f"the server failed ({code})")
        return failures.from_status(status, self.location, answer.headers.get("retry-after"))

    def _failure(self, error: Exception) -> Error:
        if isinstance(error, ElementTree.ParseError):
            return failures.unreachable(self.location, "an answer could not be read")
        return super()._failure(error)


class _Absent(Exception):
    """The service said that there is no such blob."""


def _known(given: Mapping[str, str], account: str) -> dict[str, str]:
    """What was given; without any credentials in it, what the environment has; what a connection string says."""
    text = dict(given)
    if account:
        text.setdefault("account_name", account)
    if not any(text.get(name) for name in (*FROM_ENVIRONMENT, *entra.OPTIONS) if name != "account_name"):
        for name, variable in FROM_ENVIRONMENT.items():
            if value := os.environ.get(variable):
                text.setdefault(name, value)
    parts = dict(part.split("=", 1) for part in text.get("connection_string", "").split(";") if "=" in part)
    for name, part in (
        ("account_name", "AccountName"),
        ("account_key", "AccountKey"),
        ("sas_token", "SharedAccessSignature"),
        ("account_url", "BlobEndpoint"),
    ):
        if part in parts:
            text.setdefault(name, parts[part])
    if text.get("account_name") and not text.get("account_url"):
        scheme, suffix = parts.get("DefaultEndpointsProtocol", "https"), parts.get("EndpointSuffix")
        text["account_url"] = f"{scheme}://{text['account_name']}.blob.{suffix or 'core.windows.net'}"
    return text


def _of(version: Version) -> dict[str, str]:
    """How a version is asked for. One from before the container kept versions has no id, and is the blob itself."""
    return {"versionid": version.id} if version.id else {}


def _code(answer: httpx.Response) -> str:
    return str(answer.headers.get("x-ms-error-code", ""))


def _ns(date: str | None) -> int | None:
    return int(parsedate_to_datetime(date).timestamp()) * 10**9 if date else None


def _seconds_off(answer: httpx.Response) -> float:
    """How far this computer's clock is from the service's."""
    date = _ns(answer.headers.get("date"))
    return abs(time.time() - date / 10**9) if date is not None else 0.0


def _has_expired(sas: str) -> bool:
    try:
        until = datetime.fromisoformat(dict(parse_qsl(sas)).get("se", ""))
    except ValueError:
        return False
    return (until if until.tzinfo else until.replace(tzinfo=UTC)) < datetime.now(UTC)
