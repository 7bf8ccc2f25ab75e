"""The storage protocol: objects that are whole or absent.

An object is a name and bytes. It is created once and never rewritten. Every adapter keeps these promises,
and `pharmabackup.testing.storage` tests that it does:

- **Whole or absent.** Whatever happens while an object is written (a crash, a full disk, a dropped line), it
  is afterwards there with all its bytes, or not there at all.
- **Durable.** When `publish` or `put_new` returns, the object survives a power cut.
- **Exclusive**, where `capabilities.exclusive_create`: of several that create one name at once, one succeeds
  and all others get `Conflict("object-exists")`.
- **An error is never an absence.** `NotFound("object")` means that the storage said so. `Damaged("object")` means
  that an object ends too soon or is too large, `Damaged("object-unreadable")` that the storage is well and says that
  it cannot read this one. Everything else that goes wrong is `StorageFailed`.

Names are lower-case ASCII letters, digits and `-`, `.`, `_`, with `/` between folders.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from zlib import crc32

from pharmabackup.clock import now_ns
from pharmabackup.errors import Error, InvalidInput, Unsupported
from pharmabackup.storage.pace import Pace

Buffer = bytes | bytearray | memoryview

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*")
NAME_MAX = 200
READ_BACK = 1 << 20
UNREADABLE = "object-unreadable"  # the kind of an error that may be of a moment: nothing is let go for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a storage can do. Found by a probe when a repository is created, and recorded in it."""

    exclusive_create: bool
    fresh_listing: bool  # a listing begun after `publish` returned shows the object
    object_lock: bool = False  # what it stores cannot be deleted by anybody for a time


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """One listed object. `modified` is the storage's own clock, nanoseconds since 1970 UTC.

    `checksum`: where the answer to a write tells it, computed by the storage from what it has stored.
    """

    name: str
    size: int
    modified: int
    checksum: int | None = field(default=None, compare=False)  # CRC-32, as in `Storage.checksum`


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of an object, by the storage's clock. `deleted`: it says that there is none from then on."""

    name: str
    id: str
    modified: int
    size: int = 0
    newest: bool = False
    deleted: bool = False


class Upload(ABC):
    """Bytes on their way to becoming an object. One thread uses it; `discard` after `publish` does nothing."""

    @abstractmethod
    def write(self, data: Buffer) -> None:
        """Append. StorageFailed."""

    @abstractmethod
    def publish(self, name: str) -> ObjectInfo:
        """Make what was written the object `name`, durably. Conflict("object-exists"), StorageFailed."""

    @abstractmethod
    def discard(self) -> None:
        """Leave nothing behind. Never raises."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.discard()


class Storage(ABC):
    """One place that holds objects. Methods may be called from any thread at once."""

    location: str  # for messages: the URL without anything secret
    pace: Pace | None = None  # how fast uploads go; None: as fast as they can
    lanes: int = 1  # how many requests at once help; 1 where the storage is a local disk
    has_locks: bool = False  # places of this kind may be able to lock what is stored

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities: ...

    @abstractmethod
    def upload(self) -> Upload:
        """Begin an object whose name is not yet known."""

    @abstractmethod
    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`. NotFound("object"), Damaged("object") when it is shorter."""

    @abstractmethod
    def get(self, name: str, *, limit: int) -> bytes:
        """The whole object. NotFound("object"), Damaged("object") when it is larger than `limit` bytes."""

    @abstractmethod
    def info(self, name: str) -> ObjectInfo:
        """Its size and time. NotFound("object")."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects below the folder `prefix` ("" is all), in no order. Uploads under way do not show.

        Below an object there are none, or StorageFailed says that it is no folder.
        """

    @abstractmethod
    def delete(self, names: Sequence[str]) -> Mapping[str, Error | None]:
        """Delete each; a result per name. A name that was not there counts as deleted (None)."""

    def put_new(self, name: str, data: Buffer) -> ObjectInfo:
        """Create one object, durably. Conflict("object-exists"), StorageFailed."""
        with self.upload() as upload:
            upload.write(data)
            return upload.publish(name)

    def checksum(self, name: str) -> tuple[int, int]:
        """Length and CRC-32 (as in zlib) of what is stored, read back from the storage. NotFound("object").

        A CRC-32 is what storages compute themselves, so that not every adapter has to fetch what it has just sent.
        """
        size, done, checksum = self.info(name).size, 0, 0
        while done < size:
            piece = self.get_range(name, done, min(READ_BACK, size - done))
            checksum = crc32(piece, checksum)
            done += len(piece)
        return size, checksum

    @property
    def present(self) -> str:
        """`location` as it is now, where this is what was there at a time."""
        return self.location

    @property
    def read_only(self) -> bool:
        """Whether nothing can be changed there: what was there at a time is read."""
        return False

    def now(self) -> int:
        """The storage's time, ns since 1970 UTC; this computer's where the storage refuses who has a wrong clock."""
        return now_ns()

    # Locks, and older versions: of storages that keep such

    @property
    def immutable(self) -> int:
        """For how many ns nobody can delete what a snapshot relies on; 0: whoever may delete can at once."""
        return 0

    @property
    def locked_for(self) -> int:
        """How long what is stored is locked, ns: for half a period more, so that locks are renewed only so often."""
        return self.immutable * 3 // 2

    def can_lock(self) -> bool:
        """Whether the storage keeps what is locked from being deleted. StorageFailed."""
        return False

    def lock_for(self, period: int, *, assumed: bool) -> None:  # noqa: B027  (most storages lock nothing)
        """Lock what is stored from now on for so many ns at least, if the storage can; 0: as its options say.

        `assumed`: whether it can, where that cannot be asked. StorageFailed when it does not answer.
        """

    def versions(self, prefix: str) -> Iterator[Version]:  # noqa: ARG002
        """All versions of all objects whose names begin so, those of one name one after another. StorageFailed."""
        return iter(())

    def keep(self, versions: Sequence[Version], *, until: int) -> Sequence[Error | None]:  # noqa: ARG002
        """Let nobody delete these before `until` (ns since 1970 UTC, by the storage's clock); a result for each.

        What is kept for longer stays so. NotFound("object") is one of the results.
        """
        raise self._locks_nothing()

    def kept_until(self, versions: Sequence[Version]) -> Sequence[int | Error]:  # noqa: ARG002
        """Until when nobody can delete each, ns since 1970 UTC; 0: whoever may delete can now."""
        raise self._locks_nothing()

    def clear(self, versions: Sequence[Version]) -> Sequence[Error | None]:  # noqa: ARG002
        """Delete these versions for good; a result for each. What is locked is StorageFailed("locked")."""
        raise self._locks_nothing()

    def _locks_nothing(self) -> Unsupported:
        return Unsupported(
            f"{self.location} cannot keep what is stored from being deleted.",
            kind="capability",
            remedy="Use a storage with Object Lock or immutability policies.",
        )

    def local_root(self) -> str | None:
        """The folder on this machine that holds the objects, if there is one: for warnings alone."""
        return None

    def eject(self) -> None:
        """Make the disk safe to unplug; after `close`. StorageFailed("in-use"), Unsupported where there is none."""
        raise Unsupported(
            f"{self.location} is no disk that can be unplugged.",
            kind="capability",
            remedy="Leave eject out; there is nothing to wait for.",
        )

    def close(self) -> None:  # noqa: B027  (most adapters hold nothing open)
        """Let go of connections and files. The storage may be used again afterwards."""


def is_name(name: str) -> bool:
    """Whether it may name an object: others put their own things into a bucket."""
    return len(name) <= NAME_MAX and NAME.fullmatch(name) is not None


def checked(name: str) -> str:
    """`name`, if it may name an object. InvalidInput otherwise."""
    if not is_name(name):
        raise InvalidInput(f"{name!r} cannot name an object.", kind="name", remedy="Report this as a fault.")
    return name
