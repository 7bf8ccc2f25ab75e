"""Any other storage that fsspec reaches, and that can rename: `ftp://host/folder`, and what else is installed.

fsspec's calls promise little, so little is built on them: an object is written under a temporary name, its length
compared, and renamed. What has no rename of its own, where fsspec would copy and delete, is refused: an object would
show before it is whole. Nothing says that a rename never replaces, so that exclusive creation is not claimed. One
request is made at a time: few of these clients are safe in threads.
"""

from __future__ import annotations

import errno
import ftplib
import posixpath
from collections.abc import Generator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Self

import fsspec
from fsspec.implementations.ftp import FTPFileSystem
from fsspec.spec import AbstractFileSystem

from pharmabackup.errors import Error, InvalidInput, Unsupported
from pharmabackup.mutex import Mutex
from pharmabackup.storage import failures
from pharmabackup.storage.base import Capabilities, ObjectInfo, is_name
from pharmabackup.storage.body import Body
from pharmabackup.storage.remote import Created, Page, RemoteStorage, Stored

PENDING = ".uploads"  # the folder of temporary names, beside the objects
TIMES = ("mtime", "LastModified", "last_modified", "modified", "updated", "modify")
REFUSED = {
    "local": "fsspec's file system keeps nothing through a power cut",
    "ssh": "fsspec's file system believes any host",
}
PIECE = 4 << 20  # bytes that one read asks for


class StrictFTP(FTPFileSystem):  # type: ignore[misc]  # it has no types
    """fsspec's FTP, which leaves lines open, and whose `ls` takes any error for a folder that is not there."""

    def _connect(self) -> None:
        if "ftp" in vars(self):  # it connects anew after a read that ended early
            self.ftp.close()
        super()._connect()

    def ls(self, path: str, detail: bool = True, **_: object) -> list[Any]:
        path = self._strip_protocol(path)
        entries = []
        try:
            for name, facts in self.ftp.mlsd(path):
                if kind := {"file": "file", "dir": "directory"}.get(facts["type"].lower()):
                    full = f"{path.rstrip('/')}/{name}"
                    entries.append({**facts, "name": full, "type": kind, "size": int(facts.get("size", 0))})
        except ftplib.error_perm as error:
            if str(error)[:3] not in ("501", "550"):  # those are said of what is not there, and of other things
                raise
            raise FileNotFoundError(path) from None
        return entries if detail else [entry["name"] for entry in entries]


class FsspecStorage(RemoteStorage[Any]):
    """The files below `path`. `options` are the file system's own, as fsspec takes them."""

    capabilities = Capabilities(exclusive_create=False, fresh_listing=True)
    lanes = 1
    one_line = True

    def __init__(
        self, kind: type[AbstractFileSystem], url: str, options: Mapping[str, object], *, create: bool
    ) -> None:
        self._kind, self._url, self._options, self._create = kind, url, dict(options), create
        self._one = Mutex()  # at a time
        self._root = ""
        scheme, _, rest = url.partition("://")
        super().__init__(f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}".rstrip("/"))

    @classmethod
    def at(cls, url: str, options: Mapping[str, object], *, create: bool) -> Self:
        """Unsupported when nothing knows the scheme, its client is missing, or it cannot rename."""
        scheme = url.partition("://")[0].lower()
        if why := REFUSED.get(scheme):
            raise Unsupported(
                f"This version cannot store at {scheme}:// URLs: {why}.",
                kind="capability",
                remedy="Give a folder, or a URL of a storage that docs/storage.md names.",
            )
        try:
            kind = StrictFTP if scheme == "ftp" else fsspec.get_filesystem_class(scheme)
        except ValueError:
            raise Unsupported(
                f"This version cannot store at {scheme}:// URLs, and fsspec knows none.",
                kind="capability",
                remedy="Give a folder, or a URL of a storage that docs/storage.md names.",
            ) from None
        except ImportError:
            raise Unsupported(
                f"The client for {scheme}:// URLs is not installed.",
                kind="capability",
                remedy=f"Install fsspec's file system for {scheme}; its documentation names the package.",
            ) from None
        if kind.mv is AbstractFileSystem.mv:
            raise Unsupported(
                f"fsspec's file system for {scheme}:// cannot rename, and objects would show before they are whole.",
                kind="capability",
                remedy="Give a folder, or a URL of another storage.",
            )
        return cls(kind, url, options, create=create)

    def _connect(self) -> Any:
        try:
            fs = self._kind(
                **self._kind._get_kwargs_from_urls(self._url),
                **self._options,
                skip_instance_cache=True,
                use_listings_cache=False,
            )
        except TypeError:
            raise InvalidInput(
                f"{self.location} does not take these storage_options: {', '.join(sorted(self._options))}.",
                remedy="Give those that fsspec's file system takes.",
            ) from None
        self._root = str(self._kind._strip_protocol(self._url))
        if self._create:
            _made(fs, self._root)
        return fs

    # Requests

    def _put(self, client: Any, name: str, body: Body, mark: str) -> Created:
        with self._one.own:
            path, pending = self._path(name), self._path(f"{PENDING}/{mark}")
            if self._entry(client, name) is not None:
                raise failures.exists(self.location, name)
            for folder in (posixpath.dirname(path), posixpath.dirname(pending)):
                _made(client, folder)
            try:
                client.pipe_file(pending, body.read())
                if client.info(pending)["size"] != body.size:
                    raise failures.cut(self.location, name)
                client.mv(pending, path)
            except BaseException:
                try:
                    client.rm_file(pending)
                except Exception:  # noqa: BLE001, S110  (nothing lists it)
                    pass
                raise
        return Created()

    def _read(self, client: Any, name: str, offset: int, length: int) -> Generator[bytes, None, None]:
        size = self._head(client, name).size
        end = min(offset + length, size)
        while offset < end:
            upto = min(offset + PIECE, end)
            with self._one.own:
                piece = client.cat_file(self._path(name), start=offset, end=upto)
            if len(piece) > upto - offset:
                raise failures.unexpected(self.location, "it cannot read a part of a file")
            if len(piece) < upto - offset:
                raise failures.cut(self.location, name)
            offset = upto
            yield piece

    def _head(self, client: Any, name: str) -> Stored:
        with self._one.own:
            entry = self._entry(client, name)
        if entry is None or entry["type"] != "file":
            raise failures.missing(self.location, name)
        return Stored(size=int(entry["size"]), modified=self._time(entry))

    def _page(self, client: Any, prefix: str, at: object) -> Page:
        folder = prefix if at is None else str(at)
        with self._one.own:
            if folder and (self._entry(client, folder) or {"type": ""})["type"] != "directory":
                return Page([])
            entries = self._listed(client, folder)
        items, more = [], []
        for entry in entries:
            name = f"{folder}/{_last(entry)}".lstrip("/")
            if not is_name(name):  # others may put their own things there
                continue
            if entry["type"] == "directory":
                more.append(name)
            elif entry["type"] == "file":
                items.append(ObjectInfo(name=name, size=int(entry["size"]), modified=self._time(entry)))
        return Page(items, more)

    def _remove(self, client: Any, names: Sequence[str]) -> Mapping[str, Error | None]:
        results: dict[str, Error | None] = {}
        for name in names:
            with self._one.own:
                if (self._entry(client, name) or {"type": ""})["type"] == "file":
                    client.rm_file(self._path(name))
            results[name] = None
        return results

    # What is there

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _entry(self, client: Any, name: str) -> Mapping[str, Any] | None:
        """What is at `name`. That there is nothing has to be seen from the top: some say so for any error."""
        try:
            entry: Mapping[str, Any] = client.info(self._path(name))
        except FileNotFoundError:
            folder = ""
            *parents, last = name.split("/")
            for parent in parents:
                if {_last(entry): entry["type"] for entry in self._listed(client, folder)}.get(parent) != "directory":
                    return None
                folder = f"{folder}/{parent}".lstrip("/")
            if last not in map(_last, self._listed(client, folder)):
                return None
            raise failures.unreachable(self.location, "it gives two answers at once") from None
        return entry

    def _listed(self, client: Any, folder: str) -> Sequence[Mapping[str, Any]]:
        try:
            entries: Sequence[Mapping[str, Any]] = client.ls(self._path(folder).rstrip("/") or "/", detail=True)
        except FileNotFoundError:
            if folder:
                raise failures.unreachable(self.location, "it gives two answers at once") from None
            raise failures.nowhere(self.location, "its folder is not there", "Check the URL.") from None
        return entries

    def _time(self, entry: Mapping[str, Any]) -> int:
        for key in TIMES:
            match entry.get(key):
                case datetime() as time:
                    return _ns(time)
                case int() | float() as seconds:
                    return int(seconds * 10**9)
                case str() as text:
                    try:
                        return _ns(
                            datetime.fromisoformat(text[:8] + "T" + text[8:] if text[:14].isdecimal() else text)
                        )
                    except ValueError:
                        continue
        raise Unsupported(
            f"{self.location} does not say when a file was written.",
            kind="capability",
            remedy="Use another location: nothing could be forgotten there in time.",
        )

    # What goes wrong

    def _failure(self, error: Exception) -> Error:
        if found := failures.from_line(error, self.location):
            return found
        match error:
            case ftplib.error_perm() if str(error)[:3] in ("530", "532"):
                return failures.denied(self.location)
            case ftplib.error_perm() if str(error)[:3] == "552":
                return failures.full(self.location)
            case ftplib.error_perm() if str(error)[:3] in ("500", "502", "504"):
                return failures.unexpected(self.location, "it knows no MLSD (RFC 3659)")
            case ftplib.error_perm() | PermissionError():
                return failures.denied(self.location)
            case ftplib.Error():
                return failures.unreachable(self.location)
            case OSError(errno=errno.ENOSPC | errno.EDQUOT):
                return failures.full(self.location)
        return failures.unexpected(self.location, type(error).__name__)


def _made(fs: Any, folder: str) -> None:
    try:
        fs.makedirs(folder, exist_ok=True)
    except Exception:
        if not fs.isdir(folder):  # somebody else made it at the same time
            raise


def _last(entry: Mapping[str, Any]) -> str:
    return posixpath.basename(str(entry["name"]).rstrip("/"))


def _ns(time: datetime) -> int:
    return int((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 10**6) * 1000
