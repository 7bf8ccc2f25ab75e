"""What storages with versions and locks have in common: S3's Object Lock, Azure's immutability policies.

A lock belongs to a version of an object, not to its name: nobody can delete or change that version before the lock
ends, but a deletion still hides the name, and another version may be put before it. So an attacker who has these
credentials can hide everything and destroy nothing, and `as_of` reads what was there at a time before him
(docs/design/014-locks.md).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

from pharmabackup import ids
from pharmabackup.clock import from_ns, iso
from pharmabackup.errors import Error, StorageFailed, Unsupported
from pharmabackup.mutex import Mutex
from pharmabackup.storage import failures
from pharmabackup.storage.base import ObjectInfo, Upload, Version, checked
from pharmabackup.storage.remote import Client, RemoteStorage

SECOND = 10**9
NO_VERSION = ("", "null")  # ids where a place keeps no versions

One = TypeVar("One")


@dataclass(frozen=True, slots=True)
class Versions:
    """One answer of a listing of versions; those of one name follow each other, in whichever order."""

    items: Sequence[Version]
    more: object = None  # what to ask for next


class LockingStorage(RemoteStorage[Client]):
    """Objects that can be locked, in a place that keeps versions. `immutable`: see `Storage`."""

    has_locks = True

    def __init__(self, location: str, *where: Any, immutable: int = 0, as_of: int | None = None, **how: Any) -> None:
        self._wanted = immutable  # by its options
        self._demanded = 0  # by the repository's owner
        self._lockable: bool | None = None  # None: not asked yet
        self._as_of = as_of
        self._then: Mapping[str, Version] | None = None  # what was there at that time
        self._then_lock = Mutex()
        self._present = location
        super().__init__(location if as_of is None else f"{location} as of {iso(from_ns(as_of))}", *where, **how)

    # What an adapter does besides: one request each

    @abstractmethod
    def _can_lock(self, client: Client) -> bool:
        """Whether the place keeps what is locked."""

    @abstractmethod
    def _keep(self, client: Client, version: Version, until: int) -> None:
        """Lock until `until` at least. What is locked for longer stays so. `failures.missing`."""

    @abstractmethod
    def _kept(self, client: Client, version: Version) -> int:
        """Until when; 0: not at all. `failures.missing`."""

    @abstractmethod
    def _versions(self, client: Client, prefix: str, at: object) -> Versions:
        """Part of all versions of the objects whose names begin with `prefix`. `at`: None, or an answer's `more`."""

    @abstractmethod
    def _forget(self, client: Client, versions: Sequence[Version]) -> Sequence[Error | None]:
        """Delete up to `remove_together` versions; a result for each, in order. What was not there is None."""

    # What everybody gets from it

    @property
    def present(self) -> str:
        return self._present

    @property
    def read_only(self) -> bool:
        return self._as_of is not None

    @property
    def immutable(self) -> int:
        return 0 if self.read_only else max(self._wanted, self._demanded)

    def can_lock(self) -> bool:
        if self._lockable is None:
            self._lockable = self._call(lambda client, _: self._can_lock(client))
        return self._lockable

    def lock_for(self, period: int, *, assumed: bool) -> None:
        demanded = period
        if period and not self.read_only:
            try:
                demanded = period if self.can_lock() else 0
            except StorageFailed as error:
                if error.retryable:
                    raise
                self._lockable = assumed
                demanded = period if assumed else 0
        self._demanded = demanded  # at once: other threads may be putting objects

    def versions(self, prefix: str) -> Iterator[Version]:
        at: object = None
        while True:
            answer = self._call(lambda client, _, at=at: self._versions(client, prefix, at))  # type: ignore[misc]
            yield from answer.items
            if (at := answer.more) is None:
                return

    def keep(self, versions: Sequence[Version], *, until: int) -> Sequence[Error | None]:
        return self._each(versions, lambda version: self._told(lambda client: self._keep(client, version, until)))

    def kept_until(self, versions: Sequence[Version]) -> Sequence[int | Error]:
        def until(version: Version) -> int | Error:
            try:
                return self._call(lambda client, _: self._kept(client, version))
            except Error as error:
                return error

        return self._each(versions, until)

    def clear(self, versions: Sequence[Version]) -> Sequence[Error | None]:
        if self.read_only:
            return [self._past() for _ in versions]
        together = self.remove_together
        shares = [versions[start : start + together] for start in range(0, len(versions), together)]
        return [error for told in self._each(shares, self._cleared) for error in told]

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        if not self.read_only:
            return super().list(prefix)
        below = f"{checked(prefix)}/" if prefix else ""
        there = (version for name, version in self._past_objects().items() if name.startswith(below))
        return (ObjectInfo(name=each.name, size=each.size, modified=each.modified) for each in there)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        self._past_objects()
        return super().get_range(name, offset, length)

    def get(self, name: str, *, limit: int) -> bytes:
        self._past_objects()
        return super().get(name, limit=limit)

    def info(self, name: str) -> ObjectInfo:
        self._past_objects()
        return super().info(name)

    def checksum(self, name: str) -> tuple[int, int]:
        self._past_objects()
        return super().checksum(name)

    def upload(self) -> Upload:
        if self.read_only:
            raise self._past()
        return super().upload()

    def delete(self, names: Sequence[str]) -> Mapping[str, Error | None]:
        if self.read_only:
            return dict.fromkeys(names, self._past())
        return super().delete(names)

    # How

    def _lock_until(self, name: str) -> int:
        """Until when a new object is to be locked, in whole seconds; 0: it is not."""
        if not self.immutable or ids.is_passing(name):
            return 0
        return -(-(self.now() + self.locked_for) // SECOND) * SECOND

    def _past_objects(self) -> Mapping[str, Version]:
        """By name, what was there at `as_of`; it is read once."""
        if self._as_of is None:
            return {}
        with self._then_lock.own:
            if self._then is None:
                found: dict[str, Version] = {}
                versioned = plain = False  # whether there are objects with versions, and without
                for name, versions in groupby(self.versions(""), lambda version: version.name):
                    each = [*versions]
                    real = any(version.id not in NO_VERSION for version in each)  # others are from before versions
                    versioned, plain = versioned or real, plain or not real
                    then = [version for version in each if version.modified <= self._as_of]
                    newest = max(then, key=lambda one: (one.modified, one.newest, one.deleted), default=None)
                    if newest is not None and not newest.deleted:
                        found[name] = newest
                if plain and not versioned:
                    raise Unsupported(
                        f"{self.location} keeps no versions, so that what was there before cannot be read.",
                        kind="capability",
                        remedy="Leave as_of out, or ask another location.",
                    )
                self._then = found
            return self._then

    def _version_then(self, name: str) -> str | None:
        """The id of the version to read; None: the newest. `failures.missing`."""
        if self._as_of is None:
            return None
        if self._then is None or name not in self._then:
            raise failures.missing(self.location, name)
        return self._then[name].id or None  # Azure's objects of before versions have none

    def _told(self, do: Callable[[Client], None]) -> Error | None:
        if self.read_only:
            return self._past()
        try:
            self._call(lambda client, _: do(client))
        except Error as error:
            return error
        return None

    def _cleared(self, versions: Sequence[Version]) -> Sequence[Error | None]:
        results: dict[Version, Error | None] = dict.fromkeys(versions, _UNASKED)

        def forget(client: Client) -> None:
            left = [version for version, error in results.items() if _may_pass(error)]
            results.update(zip(left, self._forget(client, left), strict=True))
            for error in results.values():
                if error is not None and _may_pass(error):
                    raise error

        failed = self._told(forget)
        return [failed if error is _UNASKED else error for error in results.values()]

    def _each(self, items: Sequence[One], do: Callable[[One], Any]) -> Sequence[Any]:
        with ThreadPoolExecutor(self.lanes, "pharmabackup-versions") as pool:
            return [*pool.map(do, items)]

    def _past(self) -> Unsupported:
        return Unsupported(
            f"{self.location} is what was there then: it can be read, and not changed.",
            kind="operation",
            remedy="Leave as_of out to change what is there now.",
        )


_UNASKED = StorageFailed("not asked yet", retryable=True)


def _may_pass(error: Error | None) -> bool:
    return isinstance(error, StorageFailed) and error.retryable
