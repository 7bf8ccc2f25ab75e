"""Google Cloud Storage: `gs://bucket/prefix`, in single requests of its JSON interface.

An object is one multipart upload with `ifGenerationMatch=0`; resumable ones are for what is larger than objects here
are. Its MD5 goes along, and the service refuses what arrived changed. Who asks is google-auth's to show.
Interface: https://cloud.google.com/storage/docs/json_api/v1
"""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Generator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Any, Self
from urllib.parse import quote

import google.auth
import google.auth.exceptions as raised
import httpx
from google.auth.transport.requests import Request
from google.oauth2.service_account import Credentials

from pharmabackup.errors import Error, InvalidInput, NotFound
from pharmabackup.mutex import Mutex
from pharmabackup.storage import failures, remote
from pharmabackup.storage.base import Capabilities, ObjectInfo, is_name
from pharmabackup.storage.body import Body
from pharmabackup.storage.options import Options
from pharmabackup.storage.remote import Created, Page, Stored
from pharmabackup.storage.web import WebStorage, pieces

MARK = "pharmabackup-upload"  # the metadata that tells whose an object is
SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
SERVER = "https://storage.googleapis.com"
THROTTLED = frozenset({"rateLimitExceeded", "userRateLimitExceeded"})
WHERE_CREDENTIALS = "Run gcloud auth application-default login, or name a service account's file as token."


class GoogleStorage(WebStorage):
    """The objects below `prefix` in `bucket`.

    Options: `token`: the file of a service account, or "anon", which shows nobody (a public bucket); without it,
    whatever google-auth finds. `endpoint_url` of another server than Google's own, `ca_bundle` (a file of
    certificates), `verify` (false trusts any certificate).
    """

    options = Options(text=("token", "endpoint_url", "ca_bundle"), switches=("verify",))
    capabilities = Capabilities(exclusive_create=True, fresh_listing=True)

    def __init__(self, bucket: str, prefix: str, options: Mapping[str, object]) -> None:
        given = self.options.checked("gs", options)
        self._bucket, self._below = bucket, f"{prefix}/" if prefix else ""
        self._token = given.text.get("token", "")
        self._credentials: Any = None
        self._credentials_lock = Mutex()
        emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")  # as for Google's own clients
        if emulator and "://" not in emulator:
            emulator = f"http://{emulator}"
        super().__init__(
            f"gs://{bucket}/{prefix}".rstrip("/"),
            given.text.get("endpoint_url") or emulator or SERVER,
            ca_bundle=given.text.get("ca_bundle"),
            verify=given.switches.get("verify", True),
        )
        self._objects = f"{self._base}/storage/v1/b/{quote(bucket, safe='')}/o"

    @classmethod
    def at(cls, url: str, options: Mapping[str, object], *, create: bool) -> Self:  # noqa: ARG003
        """The storage at `gs://bucket/prefix`. Buckets are made by whoever pays for them. InvalidInput."""
        bucket, _, prefix = url.partition("://")[2].partition("/")
        if not bucket or any(sign in url for sign in "@?#"):
            raise InvalidInput(
                "The URL is not of the form gs://bucket/prefix.", remedy="Give the bucket, then a prefix if you like."
            )
        return cls(bucket, prefix.strip("/"), options)

    # Requests

    def _put(self, client: httpx.Client, name: str, body: Body, mark: str) -> Created:
        digest = base64.b64encode(body.md5()).decode()
        said = {
            "name": self._below + name,
            "md5Hash": digest,
            "metadata": {MARK: mark},
        }
        boundary = secrets.token_hex(16)  # nobody can have put it into the body
        before = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{json.dumps(said)}\r\n"
            f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
        ).encode()
        after = f"\r\n--{boundary}--\r\n".encode()
        answer = self._answer(
            client,
            "POST",
            f"{self._base}/upload{self._objects.removeprefix(self._base)}",
            query={"uploadType": "multipart", "ifGenerationMatch": "0", "fields": "timeCreated,md5Hash"},
            headers={
                "Content-Type": f"multipart/related; boundary={boundary}",
                "Content-Length": str(len(before) + body.size + len(after)),
            },
            content=chain((before,), pieces(body), (after,)),
        )
        with answer as got:
            self._take(got)
        if got.status_code == 412:
            raise failures.exists(self.location, name)
        if got.status_code != 200:
            raise self._refused(got)
        made = got.json()  # the hash is the service's own: https://cloud.google.com/storage/docs/hashes-etags
        return Created(_ns(made["timeCreated"]), made.get("md5Hash") == digest)

    def _read(self, client: httpx.Client, name: str, offset: int, length: int) -> Generator[bytes, None, None]:
        try:
            yield from self._ranged(client, self._object(name), name, offset, length, query={"alt": "media"})
        except _Absent:
            raise self._absence(client, name) from None

    def _head(self, client: httpx.Client, name: str) -> Stored:
        query = {"fields": "size,timeCreated,metadata"}
        try:
            said = self._ask(client, "GET", self._object(name), query=query, good=(200,)).json()
        except _Absent:
            raise self._absence(client, name) from None
        return Stored(
            size=int(said["size"]), modified=_ns(said["timeCreated"]), mark=said.get("metadata", {}).get(MARK, "")
        )

    def _page(self, client: httpx.Client, prefix: str, at: object) -> Page:
        query = {
            "prefix": self._below + (f"{prefix}/" if prefix else ""),
            "maxResults": "1000",
            "fields": "kind,nextPageToken,items(name,size,timeCreated)",
        }
        if at is not None:
            query["pageToken"] = str(at)
        said = self._listed(client, query)
        items = []
        for entry in said.get("items", ()):
            name = entry["name"].removeprefix(self._below)
            if is_name(name):  # others put their own things into a bucket
                items.append(ObjectInfo(name=name, size=int(entry["size"]), modified=_ns(entry["timeCreated"])))
        return Page(items, [said["nextPageToken"]] if said.get("nextPageToken") else [])

    def _remove(self, client: httpx.Client, names: Sequence[str]) -> Mapping[str, Error | None]:
        return {name: self._removed(client, name) for name in names}

    def _removed(self, client: httpx.Client, name: str) -> Error | None:
        try:
            self._ask(client, "DELETE", self._object(name), good=(200, 204))
        except _Absent:
            error = self._absence(client, name)
            return None if isinstance(error, NotFound) else error
        except Error as error:
            return error
        return None

    def _listed(self, client: httpx.Client, query: Mapping[str, str]) -> dict[str, Any]:
        try:
            said: dict[str, Any] = self._ask(client, "GET", self._objects, query=query, good=(200,)).json()
        except _Absent:
            raise failures.nowhere(
                self.location, "there is no such bucket", "Check the URL, or create the bucket."
            ) from None
        if said.get("kind") != "storage#objects":
            raise failures.cut(self.location, "a listing")
        return said

    def _absence(self, client: httpx.Client, name: str) -> Error:
        """A 404 does not say whether the object or the bucket is missing: a listing does."""
        try:
            self._listed(client, {"maxResults": "1", "prefix": self._below, "fields": "kind"})
        except Error as error:
            return error
        return failures.missing(self.location, name)

    def _object(self, name: str) -> str:
        return f"{self._objects}/{quote(self._below + name, safe='')}"

    # Who asks

    def _after_fork(self) -> None:
        super()._after_fork()
        remote.inherited.append(self._credentials)
        self._credentials = None

    def _authorize(self, request: httpx.Request) -> None:
        if self._token == "anon":  # noqa: S105  (a word, as gcsfs has it)
            return
        with self._credentials_lock.own:  # one refresh at a time
            if self._credentials is None:
                self._credentials = self._found()
            self._credentials.before_request(Request(), request.method, str(request.url), request.headers)

    def _found(self) -> Any:
        if not self._token:
            return google.auth.default(scopes=[SCOPE])[0]
        try:
            return Credentials.from_service_account_file(self._token, scopes=[SCOPE])  # type: ignore[no-untyped-call]
        except (OSError, ValueError, raised.MalformedError):
            raise InvalidInput(
                "The file that token names is no service account's.",
                remedy="Check its path; name others in GOOGLE_APPLICATION_CREDENTIALS.",
            ) from None

    # What goes wrong

    def _refused(self, answer: httpx.Response) -> Error:
        status, wait = answer.status_code, answer.headers.get("retry-after")
        if status == 404:
            raise _Absent
        reason = _reason(answer)
        if status == 401:
            return failures.expired(self.location)
        if reason in THROTTLED:
            return failures.throttled(self.location, failures.seconds(wait))
        if status == 403 and reason in ("retentionPolicyNotMet", "objectUnderActiveHold"):
            return failures.locked(self.location)
        if status == 400 and "hash" in answer.text.lower():
            return failures.unreachable(self.location, "what was sent arrived changed")
        return failures.from_status(status, self.location, wait)

    def _failure(self, error: Exception) -> Error:
        match error:
            case raised.DefaultCredentialsError():
                return failures.no_credentials(self.location, WHERE_CREDENTIALS)
            case raised.RefreshError():
                if found := failures.from_line(error, self.location):
                    return found
                return failures.expired(self.location)
            case raised.TransportError():
                return failures.from_line(error, self.location) or failures.unreachable(self.location)
        return super()._failure(error)


class _Absent(Exception):
    """The service said that something is not there."""


def _reason(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["errors"][0]["reason"])
    except (ValueError, LookupError, TypeError):
        return ""


def _ns(time: str) -> int:
    return int(datetime.fromisoformat(time).timestamp() * 10**6) * 1000
