"""What storages with versions and locks have in common: S3's Object Lock, Azure's immutability policies.

A lock belongs to a version of an object, not to its name: nobody can delete or change that version before the lock
ends, but a deletion still hides the name, and another version may be put before it. So an attacker who has these
credentials can hide everything and destroy nothing, and `as_of` reads what was there at a time before him
(docs/design/014-locks.md).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pharmabackup import ids
from pharmabackup.clock import from_ns, iso, now_ns
from pharmabackup.errors import Error, StorageFailed, Unsupported
from pharmabackup.storage import failures
from pharmabackup.storage.base import ObjectInfo, Upload, checked
from pharmabackup.storage.remote import Client, RemoteStorage

SECOND = 10**9
CLEAR_AT_ONCE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of an object, by the storage's clock. `deleted`: it says that there is none from then on."""

    name: str
    id: str
    modified: int
    size: int = 0
    newest: bool = False
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Versions:
    """One answer of a listing of versions; those of one name follow each other, in whichever order."""

    items: Sequence[Version]
    more: object = None  # what to ask for next


class LockingStorage(RemoteStorage[Client]):
    """Objects that can be locked, in a place that keeps versions. `immutable`: see `Storage`."""

    def __init__(self, location: str, *where: Any, immutable: int = 0, as_of: int | None = None, **how: Any) -> None:
        self._wanted = immutable  # by its options
        self._demanded = 0  # by the repository's owner
        self._lockable: bool | None = None  # None: not asked yet
        self._as_of = as_of
        self._then: Mapping[str, Version] = {}  # what was there at that time; read when a client is made
        super().__init__(location if as_of is None else f"{location} as of {iso(from_ns(as_of))}", *where, **how)

    # What an adapter does besides: one request each

    @abstractmethod
    def _keep(self, client: Client, name: str, until: int) -> None:
        """Lock until `until` at least. What is locked for longer stays so. `failures.missing`."""

    @abstractmethod
    def _kept(self, client: Client, name: str) -> int:
        """Until when; 0: not at all. `failures.missing`."""

    @abstractmethod
    def _versions(self, client: Client, prefix: str, at: object) -> Versions:
        """Part of all versions of the objects whose names begin with `prefix`. `at`: None, or an answer's `more`."""

    @abstractmethod
    def _forget(self, client: Client, versions: Sequence[Version]) -> Sequence[Error | None]:
        """Delete up to CLEAR_AT_ONCE versions; a result for each, in order. What was not there is None."""

    @abstractmethod
    def _can_lock(self, client: Client) -> bool:
        """Whether the place keeps what is locked."""

    # What everybody gets from it

    @property
    def immutable(self) -> int:
        return max(self._wanted, self._demanded)

    def can_lock(self) -> bool:
        if self._lockable is None:
            self._lockable = self._call(lambda client, _: self._can_lock(client))
        return self._lockable

    def lock_for(self, period: int, *, assumed: bool) -> None:
        self._demanded = 0
        if period and self._as_of is None:
            try:
                possible = self.can_lock()
            except StorageFailed as error:
                if error.kind != "storage-denied":
                    raise
                possible = assumed
            self._demanded = period if possible else 0

    def keep(self, names: Sequence[str], *, until: int) -> Mapping[str, Error | None]:
        def one(name: str) -> Error | None:
            if self._as_of is not None:
                return self._past()
            try:
                self._call(lambda client, _: self._keep(client, name, until))
            except Error as error:
                return error
            return None

        return self._of_each(names, one)

    def kept_until(self, name: str) -> int:
        return self._call(lambda client, _: self._kept(client, checked(name)))

    def leftovers(self, folder: str) -> Iterator[ObjectInfo]:
        for name, versions in self._by_name(f"{checked(folder)}/"):
            there = list(versions)
            if not any(version.newest and not version.deleted for version in there):
                modified = max(each.modified for each in there)
                yield ObjectInfo(name=name, size=sum(each.size for each in there), modified=modified)

    def clear(self, names: Sequence[str]) -> Mapping[str, Error | None]:
        if self._as_of is not None:
            return dict.fromkeys(names, self._past())
        wanted = {checked(name) for name in names}
        results: dict[str, Error | None] = dict.fromkeys(wanted)
        going: dict[str, list[Version]] = {}
        for folder in sorted({name.partition("/")[0] for name in wanted}):
            for name, versions in self._by_name(folder):
                if name in wanted:
                    going[name] = list(versions)
        # What says that an object is deleted goes last: without it the version before would be there again.
        for deleted in (False, True):
            versions = [
                version
                for name, own in going.items()
                for version in own
                if version.deleted == deleted and results[name] is None
            ]
            for start in range(0, len(versions), CLEAR_AT_ONCE):
                share = versions[start : start + CLEAR_AT_ONCE]
                told = self._call(lambda client, _, share=share: self._forget(client, share))  # type: ignore[misc]
                for version, error in zip(share, told, strict=True):
                    results[version.name] = results[version.name] or error
        return results

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return super().list(prefix) if self._as_of is None else self._list_then(f"{prefix}/" if prefix else "")

    def upload(self) -> Upload:
        if self._as_of is not None:
            raise self._past()
        return super().upload()

    def delete(self, names: Sequence[str]) -> Mapping[str, Error | None]:
        if self._as_of is not None:
            return dict.fromkeys(names, self._past())
        return super().delete(names)

    # How

    def _lock_until(self, name: str) -> int:
        """Until when a new object is to be locked, in whole seconds; 0: it is not."""
        if not self.immutable or ids.is_passing(name):
            return 0
        return -(-(self._now() + self.locked_for) // SECOND) * SECOND

    def _now(self) -> int:
        """The storage's time: that of this computer, where the storage refuses whoever's clock is wrong."""
        return now_ns()

    def _take_past(self, client: Client) -> None:
        """What was there at `as_of`; an adapter calls it when it has made a client."""
        if self._as_of is None or self._then:
            return
        found: dict[str, Version] = {}
        for name, versions in self._by_name("", lambda at: self._versions(client, "", at)):
            then = [each for each in versions if each.modified <= self._as_of]
            newest = max(then, key=lambda each: (each.modified, each.newest, each.deleted), default=None)
            if newest is not None and not newest.deleted:
                found[name] = newest
        self._then = found

    def _version_then(self, name: str) -> str | None:
        """The id of the version to read; None: the newest. `failures.missing`."""
        if self._as_of is None:
            return None
        if name not in self._then:
            raise failures.missing(self.location, name)
        return self._then[name].id

    def _list_then(self, prefix: str) -> Iterator[ObjectInfo]:
        self._call(lambda *_: None)  # makes a client
        for name, version in self._then.items():
            if name.startswith(prefix):
                yield ObjectInfo(name=name, size=version.size, modified=version.modified)

    def _by_name(
        self, prefix: str, ask: Callable[[Any], Versions] | None = None
    ) -> Iterator[tuple[str, Iterable[Version]]]:
        ask = ask or (lambda at: self._call(lambda client, _: self._versions(client, prefix, at)))

        def each() -> Iterator[Version]:
            at = None
            while True:
                answer = ask(at)
                yield from answer.items
                if (at := answer.more) is None:
                    return

        return ((name, versions) for name, versions in groupby(each(), lambda version: version.name))

    def _of_each(self, names: Sequence[str], do: Callable[[str], Error | None]) -> Mapping[str, Error | None]:
        each = [checked(name) for name in names]
        with ThreadPoolExecutor(self.lanes, "pharmabackup-keep") as pool:
            return dict(zip(each, pool.map(do, each), strict=True))

    def _past(self) -> Unsupported:
        return Unsupported(
            f"{self.location} is what was there then: it can be read, and not changed.",
            kind="operation",
            remedy="Leave as_of out to change what is there now.",
        )
