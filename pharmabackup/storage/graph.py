"""OneDrive and SharePoint through Microsoft Graph: `onedrive://DRIVE-ID/folder`, `sharepoint://HOST/SITE/LIBRARY/folder`.

A small object is one PUT, a larger one an upload session, both with `conflictBehavior=fail`: whatever shows has been
sent whole. Graph keeps no metadata of ours, so after a lost answer an object is known by its bytes. What is deleted
goes to the recycle bin, and takes room there until the site's rules empty it. Uploads and downloads go to addresses
that Graph gives; they hold a token, are asked without ours, and are neither kept nor shown.
Interface: https://learn.microsoft.com/graph/api/resources/driveitem
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from datetime import datetime
from typing import Any, Self
from urllib.parse import quote

import httpx

from pharmabackup.errors import Error, InvalidInput, NotFound
from pharmabackup.storage import entra, failures
from pharmabackup.storage.base import Capabilities, ObjectInfo, is_name
from pharmabackup.storage.body import Body
from pharmabackup.storage.options import Options
from pharmabackup.storage.remote import Created, Page, Stored
from pharmabackup.storage.web import WebStorage, pieces

SERVER = "https://graph.microsoft.com/v1.0"
SMALL = 4 << 20  # bytes that go in one PUT
PART = 32 * 320 * 1024  # bytes of one request of a session: a multiple of 320 KiB, at most 60 MiB
NO_REPLACING = {"@microsoft.graph.conflictBehavior": "fail"}
FIELDS = {"$select": "name,size,file,folder,lastModifiedDateTime"}

EXPIRED = frozenset({"InvalidAuthenticationToken", "unauthenticated", "CompactToken validation failed"})
FULL = frozenset({"quotaLimitReached", "insufficientStorage"})
THROTTLED = frozenset({"activityLimitReached", "tooManyRequests", "TooManyRequests"})


class GraphStorage(WebStorage):
    """The files below a folder of one drive, or of one library of a site.

    Options: `token` of whoever asks, an Entra ID application's `tenant_id`, `client_id` and `client_secret`, or
    whatever azure-identity finds. `endpoint_url` of a national cloud (with its version, `…/v1.0`), `ca_bundle` (a
    file of certificates), `verify` (false trusts any certificate).
    """

    options = Options(text=("token", "endpoint_url", "ca_bundle", *entra.OPTIONS), switches=("verify",))
    capabilities = Capabilities(exclusive_create=True, fresh_listing=False)  # nothing promises fresh ones
    lanes = 4  # it throttles soon

    def __init__(self, scheme: str, place: Sequence[str], folder: str, options: Mapping[str, object]) -> None:
        given = self.options.checked(scheme, options)
        location = f"{scheme}://{'/'.join([*place, folder])}".rstrip("/")
        server = given.text.get("endpoint_url") or SERVER
        self._token = given.text.get("token", "")
        origin = "/".join(server.split("/")[:3])
        self._tokens = None if self._token else entra.Tokens(location, f"{origin}/.default", given.text)
        self._place, self._folder = tuple(place), folder
        self._drive = place[0] if scheme == "onedrive" else ""
        super().__init__(
            location, server, ca_bundle=given.text.get("ca_bundle"), verify=given.switches.get("verify", True)
        )

    @classmethod
    def at(cls, url: str, options: Mapping[str, object], *, create: bool) -> Self:  # noqa: ARG003
        """The storage at `onedrive://DRIVE-ID/folder` or `sharepoint://HOST/SITE/LIBRARY/folder`. InvalidInput.

        A SITE below `/teams/` instead of `/sites/` is given as `teams:SITE`. Folders are made with the first object.
        """
        scheme, _, rest = url.partition("://")
        scheme = scheme.lower()
        parts = [part for part in rest.split("/") if part]
        needed = 1 if scheme == "onedrive" else 3
        if len(parts) < needed or any(sign in url for sign in "@?#"):
            form = "DRIVE-ID/folder" if scheme == "onedrive" else "HOST/SITE/LIBRARY/folder"
            raise InvalidInput(
                f"The URL is not of the form {scheme}://{form}.",
                remedy="Give all of its parts; the folder may be left out.",
            )
        return cls(scheme, parts[:needed], "/".join(parts[needed:]), options)

    # Requests

    def _put(self, client: httpx.Client, name: str, body: Body, mark: str) -> Created:  # noqa: ARG002
        try:
            item = self._small(client, name, body) if body.size <= SMALL else self._session(client, name, body)
        except _Taken:
            # Also said of a folder that two uploads make at the same time.
            try:
                self._head(client, name)
            except NotFound:
                raise failures.unreachable(self.location, "it made a folder for two at once") from None
            raise failures.exists(self.location, name) from None
        except _Absent:
            error = self._absence(client, name)
            gone = failures.unreachable(self.location, "the upload session ended")
            raise (gone if isinstance(error, NotFound) else error) from None
        return Created(_ns(item["lastModifiedDateTime"]))

    def _small(self, client: httpx.Client, name: str, body: Body) -> Any:
        return self._ask(
            client,
            "PUT",
            f"{self._item(client, name)}:/content",
            query=NO_REPLACING,
            headers={"Content-Length": str(body.size), "Content-Type": "application/octet-stream"},
            content=pieces(body),
            good=(200, 201),
        ).json()

    def _session(self, client: httpx.Client, name: str, body: Body) -> Any:
        where = self._ask(
            client,
            "POST",
            f"{self._item(client, name)}:/createUploadSession",
            json={"item": NO_REPLACING},
            good=(200, 201),
        ).json()["uploadUrl"]
        try:
            for start in range(0, body.size, PART):
                part = body.read(min(PART, body.size - start))
                end = start + len(part)
                answer = self._ask(
                    client,
                    "PUT",
                    where,
                    headers={"Content-Range": f"bytes {start}-{end - 1}/{body.size}"},
                    content=part,
                    authorize=False,
                    good=(200, 201) if end == body.size else (202,),
                )
            return answer.json()
        except Exception:
            try:
                self._ask(client, "DELETE", where, authorize=False, good=(204,))
            except Exception:  # noqa: BLE001, S110  (it ends by itself, too)
                pass
            raise

    def _read(self, client: httpx.Client, name: str, offset: int, length: int) -> Generator[bytes, None, None]:
        try:
            with self._answer(client, "GET", f"{self._item(client, name)}:/content") as answer:
                where = answer.headers.get("location")
                if answer.status_code != 302 or not where:
                    self._take(answer)
                    raise self._refused(answer)
            yield from self._ranged(client, where, name, offset, length, authorize=False)
        except _Absent:
            raise self._absence(client, name) from None

    def _head(self, client: httpx.Client, name: str) -> Stored:
        try:
            item = self._ask(client, "GET", self._item(client, name), query=FIELDS, good=(200,)).json()
        except _Absent:
            raise self._absence(client, name) from None
        if "file" not in item:
            raise failures.missing(self.location, name)
        return Stored(size=int(item["size"]), modified=_ns(item["lastModifiedDateTime"]))

    def _page(self, client: httpx.Client, prefix: str, at: object) -> Page:
        folder, link = at if isinstance(at, tuple) else (prefix, "")
        if link and not link.startswith(f"{self._base}/"):
            raise failures.unexpected(self.location, "a listing goes on at another address")
        how: dict[str, Any] = {} if link else {"query": FIELDS | {"$top": "1000"}}
        try:
            said = self._ask(client, "GET", link or self._children(client, folder), good=(200,), **how).json()
        except _Absent:
            error = self._absence(client, folder)
            if not isinstance(error, NotFound):
                raise error from None
            return Page([])
        items: list[ObjectInfo] = []
        more: list[object] = [(folder, said["@odata.nextLink"])] if said.get("@odata.nextLink") else []
        for item in said["value"]:
            name = f"{folder}/{item['name']}".lstrip("/")
            if not is_name(name):  # others put their own things into a folder
                continue
            if "folder" in item:
                more.append((name, ""))
            elif "file" in item:
                items.append(
                    ObjectInfo(name=name, size=int(item["size"]), modified=_ns(item["lastModifiedDateTime"]))
                )
        return Page(items, more)

    def _remove(self, client: httpx.Client, names: Sequence[str]) -> Mapping[str, Error | None]:
        return {name: self._removed(client, name) for name in names}

    def _removed(self, client: httpx.Client, name: str) -> Error | None:
        try:
            self._ask(client, "DELETE", self._item(client, name), good=(204,))
        except _Absent:
            error = self._absence(client, name)
            return None if isinstance(error, NotFound) else error
        except Error as error:
            return error
        return None

    # Where

    def _item(self, client: httpx.Client, name: str) -> str:
        path = "/".join(part for part in (self._folder, name) if part)
        root = f"{self._base}/drives/{quote(self._found(client), safe='!')}/root"
        return f"{root}:/{quote(path)}" if path else root

    def _children(self, client: httpx.Client, folder: str) -> str:
        item = self._item(client, folder)
        return f"{item}/children" if item.endswith("/root") else f"{item}:/children"

    def _found(self, client: httpx.Client) -> str:
        """The drive's id. A site's is asked for once."""
        if not self._drive:
            host, site, library = self._place
            kind, _, named = site.rpartition(":")
            path = f"{kind or 'sites'}/{quote(named)}"
            try:
                where = self._ask(client, "GET", f"{self._base}/sites/{host}:/{path}", good=(200,)).json()["id"]
                drives = self._ask(client, "GET", f"{self._base}/sites/{where}/drives", good=(200,)).json()["value"]
            except _Absent:
                raise failures.nowhere(self.location, "there is no such site") from None
            ids = [drive["id"] for drive in drives if drive["name"].casefold() == library.casefold()]
            if not ids:
                raise failures.nowhere(self.location, "the site has no such library")
            self._drive = str(ids[0])
        return self._drive

    def _absence(self, client: httpx.Client, name: str) -> Error:
        """A 404 does not say whether the file or the drive is missing."""
        try:
            drive = f"{self._base}/drives/{quote(self._found(client), safe='!')}"
            self._ask(client, "GET", drive, query={"$select": "id"}, good=(200,))
        except _Absent:
            return failures.nowhere(self.location, "there is no such drive")
        except Error as error:
            return error
        return failures.missing(self.location, name)

    # Who asks

    def _after_fork(self) -> None:
        super()._after_fork()
        if self._tokens is not None:
            self._tokens.after_fork()

    def _authorize(self, request: httpx.Request) -> None:
        token = self._tokens.current() if self._tokens is not None else self._token
        request.headers["Authorization"] = f"Bearer {token}"

    # What goes wrong

    def _refused(self, answer: httpx.Response) -> Error:
        code, status, wait = _code(answer), answer.status_code, answer.headers.get("retry-after")
        if status == 404:
            raise _Absent
        if status == 409 and code == "nameAlreadyExists":
            raise _Taken
        if code in FULL:
            return failures.full(self.location)
        if code in THROTTLED or status == 509:
            return failures.throttled(self.location, failures.seconds(wait))
        if status == 401 or code in EXPIRED:
            return failures.expired(self.location)
        if status in (409, 416, 423):  # a moment's: a lock, a session that lost count
            return failures.unreachable(self.location, "the file is in use there")
        return failures.from_status(status, self.location, wait)


class _Absent(Exception):
    """Graph said that something is not there."""


class _Taken(Exception):
    """Graph said that the name is in use."""


def _code(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["code"])
    except (ValueError, LookupError, TypeError):
        return ""


def _ns(time: str) -> int:
    return int(datetime.fromisoformat(time).timestamp() * 10**6) * 1000
