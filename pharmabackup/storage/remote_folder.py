"""What folder trees behind a line have in common (SFTP, SMB, WebDAV): how an object there becomes whole or absent.

An object is sent to a file of its own in `.uploads/`, whole and flushed, then it gets its name in one step that never
replaces. A try whose answer was lost never sends to the same file again, since the server may still work on the old
request; and whether it succeeded is told by that file: the step that names an object takes it away, or leaves it the
same file under two names. Files that nobody came back to are removed when they are old by the server's own clock;
where one is removed too early after all, its upload is tried again.

A file that is missing is an answer only while the storage's own folder is there: a disk that is not mounted on the
server leaves nothing, or an empty folder.
"""

from __future__ import annotations

import re
import secrets
from abc import abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from posixpath import dirname
from typing import cast
from weakref import WeakKeyDictionary
from zlib import crc32

from pharmabackup.errors import Error, StorageFailed
from pharmabackup.storage import failures
from pharmabackup.storage.base import Capabilities, ObjectInfo, is_name
from pharmabackup.storage.body import Body
from pharmabackup.storage.local_uploads import UPLOADS
from pharmabackup.storage.remote import Client, Created, Page, RemoteStorage, Stored
from pharmabackup.storage.unlogged import unlogged

OURS = re.compile(
    r"[0-9a-f]{32}-[0-9a-f]{8}"
)  # a file in UPLOADS that this module made; others have theirs there, too
STALE_NS = 86_400 * 10**9  # an upload of one object takes minutes
FOLDERS_TOGETHER = 32  # whose listings one request of the base asks for


class Absent(Exception):
    """Nothing is there; or something on the way to it is no folder."""


class Taken(Exception):
    """There is something of that name already."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or folder. `modified`: the server's clock, ns since 1970 UTC."""

    name: str
    is_folder: bool
    size: int
    modified: int


@dataclass(slots=True)
class _Sending:
    """The files of one upload, one a try: those begun, and those that were asked to become the object."""

    begun: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


class RemoteFolder(RemoteStorage[Client]):
    """Objects as files below a folder of a server. Paths in hooks are relative to it, "" is the folder itself.

    Hooks raise Absent and Taken; whatever else their client raises goes through `_failure`.
    """

    remove_together = 8
    leaves_file = False  # `_give_name` gives the file a second name, and the first one is to be removed

    def __init__(self, location: str, *, create: bool) -> None:
        self._to_make = create
        self._is_tidy = False
        self._lasting: set[str] = set()  # folders whose own names are known to survive a power cut
        self._sendings: WeakKeyDictionary[Body, _Sending] = WeakKeyDictionary()
        self._exclusive: bool | None = None
        super().__init__(location)

    # What an adapter does

    @abstractmethod
    def _open(self) -> Client:
        """A client that is connected and allowed in."""

    @abstractmethod
    def _make_root(self, client: Client) -> None:
        """Make the storage's own folder, with those above it. Nothing happens if it is there."""

    @abstractmethod
    def _make_folder(self, client: Client, path: str) -> None:
        """Make one. Nothing happens if it is there. Absent when the one above is not."""

    @abstractmethod
    def _send(self, client: Client, path: str, body: Body) -> Entry:
        """Write a new file, whole and flushed; what the server then says that it has. Absent: no such folder."""

    @abstractmethod
    def _give_name(self, client: Client, path: str, name: str) -> None:
        """Make the file the object, in one step. Taken, Absent (the file, or the folder that it goes to)."""

    def _is_same(self, client: Client, path: str, name: str) -> bool:  # noqa: ARG002
        """Whether both are names of one file, where `_give_name` can leave that behind."""
        return False

    @abstractmethod
    def _entry(self, client: Client, path: str) -> Entry:
        """Absent."""

    @abstractmethod
    def _entries(self, client: Client, path: str) -> Iterable[Entry]:
        """What is in a folder. Absent, also when it is no folder."""

    @abstractmethod
    def _pieces(self, client: Client, path: str, offset: int, length: int) -> Generator[bytes, None, None]:
        """As `_read`. Absent, also when it is a folder."""

    @abstractmethod
    def _unlink(self, client: Client, path: str) -> None:
        """Remove a file. Absent, also when it is a folder."""

    def _sync_folders(self, client: Client, paths: Sequence[str]) -> None:
        """Make what was last named or removed in them survive a power cut, where one can ask for that.

        Absent, when all others are done, if one is not there.
        """

    def _can_exclude(self, client: Client) -> bool:  # noqa: ARG002
        """Whether of several that name one object at once, one wins."""
        return False

    # What the base gets from it

    @property
    def capabilities(self) -> Capabilities:
        if self._exclusive is None:
            self._exclusive = self._call(lambda client, _: self._can_exclude(client))
        return Capabilities(exclusive_create=self._exclusive, fresh_listing=True)

    def _connect(self) -> Client:
        client = self._open()
        if self._to_make:
            try:
                self._make_root(client)
                self._make_folder(client, UPLOADS)
            except BaseException:
                self._disconnect(client)
                raise
            self._to_make = False
        return client

    def _put(self, client: Client, name: str, body: Body, mark: str) -> Created:
        sending = self._sendings.setdefault(body, _Sending())
        path = f"{UPLOADS}/{mark}-{secrets.token_hex(4)}"
        sending.begun.append(path)
        try:
            sent = self._send_here(client, path, body)
            if sent.size != body.size:
                raise failures.lost_write(self.location, name)
            sending.asked.append(path)
            try:
                self._place(client, path, name)
            except Taken:
                is_own = any(self._became(client, each, name, body) for each in sending.asked)
            else:
                is_own = True
                if not self.leaves_file:
                    sending.begun.remove(path)
            self._make_last(client, name)  # also what another has just placed: whoever asked goes on from it
            if not is_own:
                raise failures.exists(self.location, name)
        except Exception as error:
            ours = error if isinstance(error, Error) else self._failure(error)
            if not (isinstance(ours, StorageFailed) and ours.retryable):
                self._clear(client, sending.begun)
            if ours is error:
                raise
            raise ours from None
        self._clear(client, sending.begun)
        self._tidy(client, sent.modified)
        return Created(sent.modified)

    def _read(self, client: Client, name: str, offset: int, length: int) -> Generator[bytes, None, None]:
        try:
            yield from self._pieces(client, name, offset, length)
        except Absent:
            self._look(client)
            raise failures.missing(self.location, name) from None

    def _head(self, client: Client, name: str) -> Stored:
        try:
            entry = self._entry(client, name)
            if entry.is_folder:
                raise Absent
        except Absent:
            self._look(client)
            raise failures.missing(self.location, name) from None
        # "": whose an object is was settled when it was placed.
        return Stored(size=entry.size, modified=entry.modified, mark="")

    def _page(self, client: Client, prefix: str, at: object) -> Page:
        folders = [prefix] if at is None else cast(Sequence[str], at)

        def entries(folder: str) -> list[Entry] | None:
            with unlogged(), suppress(Absent):  # it may be another thread
                return list(self._entries(client, folder))
            return None

        with ThreadPoolExecutor(self.lanes, "pharmabackup-list") as pool:  # of no threads until one is needed
            found = list((map if len(folders) < 2 else pool.map)(entries, folders))
        if None in found or (folders == [""] and not found[0]):
            self._look(client)
        items: list[ObjectInfo] = []
        below: list[str] = []
        for folder, inside in zip(folders, found, strict=True):
            for entry in inside or ():
                name = f"{folder}/{entry.name}" if folder else entry.name
                if not is_name(name):
                    continue  # others put their own things there
                if entry.is_folder:
                    below.append(name)
                else:
                    items.append(ObjectInfo(name=name, size=entry.size, modified=entry.modified))
        starts = range(0, len(below), FOLDERS_TOGETHER)
        return Page(items, [below[start : start + FOLDERS_TOGETHER] for start in starts])

    def _remove(self, client: Client, names: Sequence[str]) -> Mapping[str, Error | None]:
        results: dict[str, Error | None] = {}
        absent = False
        for name in names:
            try:
                self._unlink(client, name)
            except Absent:
                absent = True
            except Exception as error:  # noqa: BLE001  (each has a result of its own)
                results[name] = error if isinstance(error, Error) else self._failure(error)
                continue
            results[name] = None
        with suppress(Absent):  # a folder that is not there holds no name that could come back
            self._sync_folders(client, list({dirname(name) for name, error in results.items() if error is None}))
        if absent:
            self._look(client)
        return results

    # How

    def _look(self, client: Client) -> None:
        """StorageFailed("unreachable") if the storage's own folder is not there."""
        try:
            if self._entry(client, UPLOADS).is_folder:
                return
        except Absent:
            pass
        try:
            if any(True for _ in self._entries(client, "")):
                return
            what = "its folder is empty, as when a disk is not mounted there"
        except Absent:
            what = "its folder is not there"
        raise failures.nowhere(self.location, what, "Mount the disk on the server, or check the URL.")

    def _send_here(self, client: Client, path: str, body: Body) -> Entry:
        try:
            return self._send(client, path, body)
        except Absent:  # someone cleared `.uploads` away, or nobody has written here yet
            self._look(client)
            self._make_folder(client, UPLOADS)
            body.seek(0)
            return self._send(client, path, body)

    def _place(self, client: Client, path: str, name: str) -> None:
        try:
            self._give_name(client, path, name)
            return
        except Absent:
            pass
        self._make_above(client, _above(name))
        try:
            self._give_name(client, path, name)
        except Absent:  # the next try finds out whether it was cleared away, or named after all
            raise failures.unreachable(self.location, f"what was sent for {name} is gone") from None

    def _make_above(self, client: Client, folders: Sequence[str]) -> None:
        """The innermost, which comes last; those above it only where they are not there."""
        if not folders:
            return
        try:
            self._make_folder(client, folders[-1])
        except Absent:
            if len(folders) == 1:
                raise
            self._make_above(client, folders[:-1])
            self._make_folder(client, folders[-1])

    def _became(self, client: Client, path: str, name: str, body: Body) -> bool:
        """Whether this file of ours is the object."""
        try:
            self._entry(client, path)
        except Absent:  # named; or cleared away, while somebody else named the same
            with suppress(Absent):
                return self._holds(client, name, body)
            return False
        return self._is_same(client, path, name)

    def _holds(self, client: Client, name: str, body: Body) -> bool:
        size, check = self._entry(client, name).size, 0
        if size == body.size and size:
            with closing(self._pieces(client, name, 0, size)) as coming:
                for piece in coming:
                    check = crc32(piece, check)
        return (size, check) == (body.size, body.crc32)

    def _make_last(self, client: Client, name: str) -> None:
        new = [each for each in _above(name) if each not in self._lasting]
        self._sync_folders(client, list(dict.fromkeys((dirname(name), *map(dirname, new)))))
        self._lasting.update(new)

    def _clear(self, client: Client, paths: list[str]) -> None:
        """Remove files of tries that came to nothing. A courtesy: old ones are removed anyway."""
        while paths:
            with suppress(Exception):
                self._unlink(client, paths.pop())

    def _tidy(self, client: Client, now: int) -> None:
        """Remove what others never came back to; once a process. `now` by the server's clock."""
        if self._is_tidy:
            return
        self._is_tidy = True
        with suppress(Exception):
            for entry in self._entries(client, UPLOADS):
                if OURS.fullmatch(entry.name) and not entry.is_folder and entry.modified < now - STALE_NS:
                    self._unlink(client, f"{UPLOADS}/{entry.name}")


def _above(name: str) -> list[str]:
    """The folders that an object is in, the outermost first."""
    parts = name.split("/")[:-1]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]
