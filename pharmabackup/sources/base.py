"""What a source is, and what it talks to.

A source gives a stable view of its data; the view dumps itself into a sink, entry after entry in path order; the
same kind of source restores what a snapshot holds. `pharmabackup.sources` is public: vendors write their own.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pharmabackup.errors import InvalidInput, Unsupported
from pharmabackup.ids import DATASET_NAME

StrPath = str | os.PathLike[str]
TIERS = range(6)

# What entries are and what they may carry; the numbers and limits are those of docs/format.md.
FILE, FOLDER, LINK, FIFO, SOCKET, CHARACTER_DEVICE, BLOCK_DEVICE, UNREAD = range(8)
LINK_TARGET, SAME_FILE, EXTENTS, ATTRIBUTES = range(1, 5)
PATH_MAX = 1 << 16  # bytes, of an entry's whole path
NAME_MAX = 1 << 12
SIZE_MAX = 1 << 62


@dataclass(frozen=True, slots=True)
class Kept:
    """An entry of the dataset's last snapshot: what it was like, and where its content is."""

    row: bytes
    first_chunk: int
    chunks: int
    first_byte: int
    stored: int
    size: int
    extras: tuple[tuple[int, bytes], ...]


class PreviousFolder(ABC):
    """A folder of the dataset's last snapshot, or a part of it, from the cache on this machine."""

    rows: bytes  # what `Sink.folder` was given then

    @abstractmethod
    def entries(self) -> Mapping[bytes, Kept]:
        """By name; only files. There may be others than were asked for."""


@dataclass(slots=True)
class FolderColumns:
    """A folder's entries, or those of a part of it, sorted by name, as the manifest has them (docs/format.md)."""

    names: list[bytes] = field(default_factory=list)
    kinds: bytearray = field(default_factory=bytearray)
    modes: list[int] = field(default_factory=list)
    uids: list[int] = field(default_factory=list)
    gids: list[int] = field(default_factory=list)
    mtimes: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    chunks: list[int] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)
    extras: list[tuple[int, int, bytes]] = field(default_factory=list)  # entry, key, value


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A database server, as a source knows it: where it says that it listens, and all databases that it has.

    `database`: the one that the source is of; None: all.
    """

    product: Literal["postgresql", "mysql", "sqlserver"]
    host: str
    port: int
    databases: tuple[str, ...]
    database: str | None


class Sink(ABC):
    """Takes a dataset's content and entries, in order: first a folder's files' contents, then the folder."""

    repository: str = ""
    """The id of the one that it goes to: for a source that notes what is safe."""

    @abstractmethod
    def previous(self, path: bytes, names: Sequence[bytes]) -> PreviousFolder | None:
        """What the last snapshot has of these entries of a folder, which are all of it or one part, sorted.

        Ask in the order in which folders and their parts are dumped, ahead of that or not.
        """

    @abstractmethod
    def keep_folder(self, folder: PreviousFolder) -> None:
        """It is as it was, by its `rows`: its entries and their content are taken over without reading them."""

    @abstractmethod
    def keep_file(self, kept: Kept) -> None:
        """One file's content is as it was."""

    @abstractmethod
    def file(self, fd: int, size: int) -> tuple[int, int]:
        """Store an open file's content from its position to its end; (chunks, bytes). `size`: as expected.

        OSError when it cannot be read. Of a file of 16 KiB at most nothing has been stored then; larger ones go
        through `stream`.
        """

    @abstractmethod
    def stream(self, read_into: Callable[[memoryview], int], *, fine: bool = False) -> tuple[int, int]:
        """Store what `read_into` gives until it gives 0; (chunks, bytes).

        `fine`: it is cut into small pieces, for dumps in which single rows change from one time to the next.
        What was stored cannot be taken back: `read_into` ends early instead of raising what the dump survives.
        """

    @abstractmethod
    def pages(self, read_at: Callable[[int, memoryview], int], *, size: int, page_size: int) -> tuple[int, int]:
        """Store a database file, cut into its pages; (chunks, bytes). Several threads call `read_at` at once."""

    @abstractmethod
    def folder(self, path: bytes, columns: FolderColumns, rows: bytes) -> None:
        """The folder's entries, sorted, of a large one part after part. One without entries is handed over too.

        Folders come in the order of their paths, component by component. `rows` is kept on this machine and given
        back by `previous`; whoever compares it has to put into it which entries it is of. It ends in one row for
        each entry, all of the size that `Files` has, or `PreviousFolder.entries` must not be asked. Empty: nothing
        to compare. SourceFailed.
        """

    @abstractmethod
    def finding(
        self, code: str, path: bytes, message: str, remedy: str, *, severity: str = "warning", harms: bool = True
    ) -> None:
        """Something could not be read, or changed while it was read. Not `harms`: the snapshot is whole all the same.

        What is for information never harms.
        """

    @abstractmethod
    def check(self) -> None:
        """Report progress; raise Cancelled if the caller has asked for it, or why another dataset failed.

        Call it now and then. What it raises is not the source's, and is let through; so is what other calls raise.
        """


class View(ABC):
    """A source's data at one moment."""

    holds_back: bool = False
    """Whether a program keeps what it could let go of, and more and more of it, until `committed`."""

    @abstractmethod
    def dump(self, sink: Sink) -> Mapping[str, object]:
        """Put everything into the sink; facts about it (rows counted, versions). SourceFailed.

        What is wrong with the data has to be found here: the snapshot is committed before the view is closed, and
        others may be read before that.
        """

    def committed(self) -> None:  # noqa: B027  (few have somebody to tell)
        """The snapshot of what was dumped last is safe in the storage. The view is closed already. SourceFailed."""


class Content(ABC):
    """What a snapshot holds, for a source that it is restored into."""

    facts: Mapping[str, object]  # those that its dump gave

    @abstractmethod
    def has(self, path: bytes) -> bool:
        """Whether there is such a file."""

    @abstractmethod
    def read(self, path: bytes) -> Iterator[bytes | memoryview]:
        """A file's content, piece after piece. NotFound, Damaged: then nothing may be taken for whole."""

    @abstractmethod
    def check(self) -> None:
        """Report progress; raise Cancelled if the caller has asked for it. Call it while nothing can be read."""

    @abstractmethod
    def finding(self, code: str, message: str, remedy: str) -> None:
        """What is restored is whole, and something about it is not as it was: a warning."""


class Source(ABC):
    """A dataset: it has a name and a tier (0 first … 5 last), and knows how to dump and to be restored into."""

    kind: str = "source"

    def __init__(self, name: str, tier: int) -> None:
        if not re.fullmatch(DATASET_NAME, name):
            raise InvalidInput(
                f"{name!r} cannot be a dataset's name.", kind="name", remedy="Use letters, digits, spaces, - and _."
            )
        if tier not in TIERS:
            raise InvalidInput(f"There is no tier {tier}.", remedy="Tiers are 0 (first) to 5 (last).")
        self.name = name
        self.tier = tier

    @abstractmethod
    def view(self, *, scratch: Path) -> AbstractContextManager[View]:
        """A stable view. `scratch`: a folder for what cannot be avoided on disk; private, emptied. SourceFailed."""

    def location(self) -> Path | None:
        """Where the data lies on this machine, if it does: a repository inside it is refused."""
        return None

    def covers(self, path: Path) -> bool:  # noqa: ARG002
        """Whether this file or folder is backed up by it."""
        return False

    def served(self) -> Served | None:
        """The database server that it is of, if it is of one, which is asked. SourceFailed."""
        return None

    def changed(self) -> bool:
        """Whether there may be something that the last view lacked. Asked every second or so. SourceFailed."""
        return True

    def prepare(self, facts: Mapping[str, object], *, overwrite: bool) -> None:  # noqa: ARG002
        """Before anything is restored: whether `load` can be, of a snapshot with these facts.

        Conflict, Unsupported, SourceFailed.
        """
        raise Unsupported(f"Nothing can be restored into a {self.kind}.", remedy="Restore to a folder.")

    def load(self, content: Content, *, overwrite: bool) -> Mapping[str, object]:
        """Restore into what this is a source of, after `prepare`; facts. SourceFailed.

        What was there stays as it was until all has come and was verified, as far as its program can do that.
        """
        raise NotImplementedError

    def verify(self, restored: Path, entries: Sequence[bytes]) -> Mapping[str, object]:  # noqa: ARG002
        """Questions to a restored dataset; facts. SourceFailed when it is not whole."""
        return {}
