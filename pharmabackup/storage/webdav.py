"""WebDAV (RFC 4918): `webdavs://host/path`, and `webdav://` without TLS, through httpx.

An object is PUT under a name of its own, since servers keep what came of a PUT that was cut off, looked at, and then
MOVEd with `Overwrite: F`. Exclusive creation is not claimed: servers look whether a name is taken, and then move.
A password is sent over TLS, to this computer itself, or where the option `cleartext` allows it, and nowhere else.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from posixpath import dirname
from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit

import defusedxml.ElementTree
import httpx
from defusedxml import DefusedXmlException

from pharmabackup.errors import Error, InvalidInput, StorageFailed
from pharmabackup.storage import failures
from pharmabackup.storage.body import Body
from pharmabackup.storage.options import Options
from pharmabackup.storage.ranges import content_range
from pharmabackup.storage.remote_folder import Absent, Entry, RemoteFolder, Taken
from pharmabackup.storage.web import open_client, went_wrong

PIECE = 1 << 20  # bytes read or sent at a time
LISTING_MAX = 256 << 20  # bytes of one folder's listing
HTTP = {"webdav": "http", "webdavs": "https"}
WANTED = (
    b'<?xml version="1.0" encoding="utf-8"?><propfind xmlns="DAV:"><prop>'
    b"<resourcetype/><getcontentlength/><getlastmodified/></prop></propfind>"
)
ROOM = (
    b'<?xml version="1.0" encoding="utf-8"?><propfind xmlns="DAV:"><prop><quota-available-bytes/></prop></propfind>'
)


class WebdavStorage(RemoteFolder[httpx.Client]):
    """The objects below `path` on `host`.

    `username` and `password`; `ca_bundle` (a file of certificates), `verify` (false trusts any certificate) and
    `cleartext` (true sends the password without TLS, too).
    """

    options = Options(text=("username", "password", "ca_bundle"), switches=("verify", "cleartext"))

    def __init__(self, url: str, options: Mapping[str, object], *, create: bool) -> None:
        given = self.options.checked("WebDAV", options)
        self._text, self._switches = given.text, given.switches
        parts = urlsplit(url)
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.username or parts.query or parts.fragment:
            raise InvalidInput(
                f"The URL is not of the form {parts.scheme}://host/path.",
                remedy="Give the host and a folder there; username and password go into storage_options.",
            )
        place = f"[{host}]" if ":" in host else host
        place += f":{port}" if port else ""
        self._server = f"{HTTP[parts.scheme.lower()]}://{place}"
        self._root = quote(unquote(parts.path).strip("/"))
        in_clear = parts.scheme.lower() == "webdav" and not self._switches.get("cleartext")
        if in_clear and self._text.get("password") and not _is_this_computer(host):
            raise InvalidInput(
                f"A password for {parts.scheme}://{place} would be sent where others can read it.",
                remedy="Use webdavs://, or set cleartext in storage_options if nobody else is on that network.",
            )
        super().__init__(f"{parts.scheme.lower()}://{place}/{self._root}".rstrip("/"), create=create)

    @classmethod
    def at(cls, url: str, options: Mapping[str, object], *, create: bool) -> Self:
        """The storage at `webdav://host[:port]/path` or `webdavs://`. InvalidInput."""
        return cls(url, options, create=create)

    # The connection

    def _open(self) -> httpx.Client:
        client = open_client(ca_bundle=self._text.get("ca_bundle"), verify=self._switches.get("verify", True))
        try:
            self._log_in(client)
        except BaseException:
            client.close()
            raise
        return client

    def _log_in(self, client: httpx.Client) -> None:
        """Find out which of its ways the server wants: no body is sent twice then."""
        if not self._text.get("username"):
            return
        user, password = self._text["username"], self._text.get("password", "")
        answer = client.request("PROPFIND", self._url(""), content=WANTED, headers={"Depth": "0"})
        offered = " ".join(answer.headers.get_list("www-authenticate")).lower()
        if answer.status_code != 401 or "basic" in offered:
            client.auth = httpx.BasicAuth(user, password)
        elif "digest" in offered:
            client.auth = httpx.DigestAuth(user, password)
        else:
            raise failures.denied(self.location, "wants to be logged in to in a way that is not known here")

    def _disconnect(self, client: httpx.Client) -> None:
        client.close()

    # One request each

    def _url(self, path: str) -> str:
        return f"{self._server}/{'/'.join(part for part in (self._root, quote(path)) if part)}"

    def _folder_url(self, path: str) -> str:
        return f"{self._url(path).rstrip('/')}/"

    def _make_root(self, client: httpx.Client) -> None:
        parts = self._root.split("/") if self._root else []
        for count in range(len(parts)):
            self._make(client, f"{self._server}/{'/'.join(parts[: count + 1])}/")

    def _make_folder(self, client: httpx.Client, path: str) -> None:
        self._make(client, self._folder_url(path))

    def _make(self, client: httpx.Client, url: str) -> None:
        answer = client.request("MKCOL", url)
        if answer.status_code in (404, 409):
            raise Absent
        if answer.status_code not in (200, 201, 204):
            # 405 says that it is there (RFC 4918, 9.3.1); some refuse the folders above with another status.
            try:
                if self._found(client, url).is_folder:
                    return
            except Absent:
                pass
            raise self._from(answer)

    def _send(self, client: httpx.Client, path: str, body: Body) -> Entry:
        answer = client.put(
            self._url(path),
            content=_Pieces(body),
            headers={"Content-Length": str(body.size), "Content-Type": "application/octet-stream"},
        )
        if answer.status_code in (404, 409):
            raise Absent
        if answer.status_code not in (200, 201, 204):
            if answer.status_code != 507 and self._is_full(client, body):
                raise failures.full(self.location)
            raise self._from(answer)
        return self._entry(client, path)

    def _is_full(self, client: httpx.Client, body: Body) -> bool:
        """Servers say "not allowed" or "internal error" for it; some say how much room there is (RFC 4331)."""
        with suppress(httpx.HTTPError, StorageFailed, Absent, ValueError):
            for response in self._multistatus(client, self._folder_url(""), "0", ROOM):
                if room := response.findtext(".//{DAV:}quota-available-bytes"):
                    return int(room) < body.size
        return False

    def _give_name(self, client: httpx.Client, path: str, name: str) -> None:
        headers = {"Destination": self._url(name), "Overwrite": "F"}
        for _ in range(2):
            answer = client.request("MOVE", self._url(path), headers=headers)
            match answer.status_code:
                case 201:
                    return
                case 204:  # one that was there and is replaced (RFC 4918, 9.9.4)
                    raise failures.unexpected(self.location, "it replaces what it was told not to")
                case 412:
                    raise Taken
                case 404 | 409:
                    raise Absent
            with suppress(Absent):
                self._entry(client, name)
                raise Taken
            # rclone says 403 where the folder is not there: once more, if another has made it meanwhile.
            self._entry(client, dirname(name))
        raise self._from(answer)

    def _entry(self, client: httpx.Client, path: str) -> Entry:
        return self._found(client, self._url(path))

    def _found(self, client: httpx.Client, url: str) -> Entry:
        for response in self._multistatus(client, url, "0", WANTED):
            return self._described(response)
        raise failures.cut(self.location, "a listing")

    def _entries(self, client: httpx.Client, path: str) -> Iterable[Entry]:
        url = self._folder_url(path)
        asked = _path_of(url)
        found: list[Entry] = []
        is_folder = False
        for response in self._multistatus(client, url, "1", WANTED):
            entry = self._described(response)
            if _path_of(response.findtext("{DAV:}href") or "") == asked:
                is_folder = entry.is_folder
            else:
                found.append(entry)
        if not is_folder:
            raise Absent
        return found

    def _multistatus(self, client: httpx.Client, url: str, depth: str, wanted: bytes) -> list[Any]:
        """The responses of a PROPFIND. Absent."""
        headers = {"Depth": depth, "Content-Type": "application/xml; charset=utf-8"}
        with client.stream("PROPFIND", url, content=wanted, headers=headers) as answer:
            if answer.status_code in (404, 409):
                raise Absent
            if answer.status_code != 207:
                raise self._from(answer)
            text = bytearray()
            for piece in answer.iter_raw():
                text += piece
                if len(text) > LISTING_MAX:
                    raise failures.unexpected(self.location, "a listing is too large")
        try:
            root = defusedxml.ElementTree.fromstring(bytes(text), forbid_dtd=True)
        except defusedxml.ElementTree.ParseError:
            raise failures.cut(self.location, "a listing") from None
        except DefusedXmlException:
            raise failures.unexpected(self.location, "a listing is no plain XML") from None
        return list(root.findall("{DAV:}response"))

    def _described(self, response: Any) -> Entry:
        """One resource of a multistatus. Absent where it says so of this one."""
        status = response.findtext("{DAV:}status") or ""
        if " 404" in status:
            raise Absent
        path = _path_of(response.findtext("{DAV:}href") or "")
        size = modified = None
        is_folder = False
        for properties in response.findall("{DAV:}propstat"):
            if " 200" not in (properties.findtext("{DAV:}status") or ""):
                continue
            size = properties.findtext(".//{DAV:}getcontentlength") or size
            modified = properties.findtext(".//{DAV:}getlastmodified") or modified
            is_folder = is_folder or properties.find(".//{DAV:}resourcetype/{DAV:}collection") is not None
        try:
            return Entry(
                name=path.rpartition("/")[2],
                is_folder=is_folder,
                size=0 if is_folder else int(size or ""),
                modified=0 if is_folder else int(parsedate_to_datetime(modified or "").timestamp()) * 10**9,
            )
        except (ValueError, OverflowError):
            raise failures.unexpected(self.location, "it does not say how large or how old its files are") from None

    def _pieces(self, client: httpx.Client, path: str, offset: int, length: int) -> Generator[bytes, None, None]:
        wanted = {"Range": f"bytes={offset}-{offset + length - 1}"}
        with client.stream("GET", self._url(path), headers=wanted) as answer:
            said = answer.headers.get("content-length")
            match answer.status_code:
                case 416:
                    return  # it ends before `offset`
                case 404 | 409:
                    raise Absent
                case 200 if said == "0":  # there are no ranges of nothing
                    if self._entry(client, path).is_folder:
                        raise Absent
                    return
                case 206:
                    pass
                case _:
                    with suppress(StorageFailed):
                        if self._entry(client, path).is_folder:
                            raise Absent
                    if answer.status_code == 200:
                        raise failures.unexpected(self.location, "it does not send parts of files")
                    raise self._from(answer)
            start, end, size = content_range(answer.headers.get("content-range", ""))
            if start != offset or end != min(offset + length, size) or said not in (None, str(end - start)):
                raise failures.cut(self.location, path)
            left = end - start
            for piece in answer.iter_raw(PIECE):
                left -= len(piece)
                yield piece
            if left:
                raise failures.cut(self.location, path)

    def _unlink(self, client: httpx.Client, path: str) -> None:
        if self._entry(client, path).is_folder:  # DELETE takes a folder with all that is in it
            raise Absent
        answer = client.delete(self._url(path))
        if answer.status_code in (404, 410):
            raise Absent
        if answer.status_code not in (200, 204):
            raise self._from(answer)

    # What goes wrong

    def _from(self, answer: httpx.Response) -> StorageFailed:
        match answer.status_code:
            case 301 | 302 | 303 | 307 | 308:
                return failures.nowhere(
                    self.location, "the server says that it is elsewhere", "Give the URL that a browser ends up at."
                )
            case 405 | 501:
                return failures.unexpected(
                    self.location, f"the server does not do WebDAV there (HTTP status {answer.status_code})"
                )
            case 423:
                return failures.unreachable(self.location, "somebody has locked a file there")
        return failures.from_status(answer.status_code, self.location, answer.headers.get("retry-after"))

    def _failure(self, error: Exception) -> Error:
        return went_wrong(error, self.location)


class _Pieces(httpx.SyncByteStream):
    """A body that can be sent more than once: a login may have to be said again."""

    def __init__(self, body: Body) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        self._body.seek(0)
        while piece := self._body.read(PIECE):
            yield piece


def _path_of(href: str) -> str:
    return unquote(urlsplit(href).path).strip("/")


def _is_this_computer(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
