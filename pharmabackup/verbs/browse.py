"""Looking into a snapshot without restoring it: names, one file, one table."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, Literal, cast

from pharmabackup import clock
from pharmabackup.engine.reading import SnapshotReader
from pharmabackup.errors import InvalidInput, NotFound, StorageFailed
from pharmabackup.format.manifest import Entry as Named
from pharmabackup.format.manifest import EntryKind
from pharmabackup.patterns import compile_patterns
from pharmabackup.results import Entry

SHOWN: dict[EntryKind, Literal["file", "folder", "link"]] = {
    EntryKind.FILE: "file",
    EntryKind.UNREAD: "file",
    EntryKind.FOLDER: "folder",
    EntryKind.LINK: "link",
}
COPY_SIZE = 4 << 20


def shown(entry: Named) -> Entry:
    return Entry(
        path=entry.path.decode("utf-8", "surrogateescape"),
        size=entry.size,
        modified=clock.from_ns(entry.mtime),
        kind=SHOWN.get(entry.kind, "file"),
    )


def glob(reader: SnapshotReader, pattern: str) -> Iterator[Entry]:
    """Entries whose path matches, in path order."""
    matches = compile_patterns([pattern])
    for folder in reader.entries():
        for entry in folder:
            if entry.path and matches(entry.path):
                yield shown(entry)


def raw_path(path: str) -> bytes:
    """A path as the manifest has it: from the dataset's root, with / between."""
    text = path.replace("\\", "/") if os.sep == "\\" else path
    return text.strip("/").encode("utf-8", "surrogateescape")


def content_entry(reader: SnapshotReader, path: str) -> Named:
    """The entry that holds a file's content. NotFound, InvalidInput."""
    entry = reader.find(raw_path(path))
    if entry is not None and entry.same_file is not None:
        entry = reader.find(entry.same_file)
    if entry is None:
        raise NotFound(f"There is no {path} in this snapshot.", kind="path", remedy="List what there is with glob().")
    if entry.kind == EntryKind.UNREAD:
        raise NotFound(
            f"{path} could not be read when this snapshot was made, so its content is not here.",
            kind="path",
            remedy="Take it from an earlier snapshot.",
        )
    if entry.kind != EntryKind.FILE:
        raise InvalidInput(f"{path} is no file.", remedy="Give the path of a file.")
    return entry


class SnapshotFile(io.RawIOBase):
    """One file of a snapshot: fetches and verifies the blocks of what is read. One thread uses it."""

    def __init__(self, reader: SnapshotReader, entry: Named) -> None:
        self._reader = reader
        self._entry = entry
        self._position = 0
        self._extents = entry.extents

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._entry.size}[whence]
        if base + offset < 0:
            raise ValueError("a position before the beginning of the file")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer)).cast("B")
        length = max(0, min(len(view), self._entry.size - self._position))
        if length:
            view[:length] = self._read(self._position, length)
            self._position += length
        return length

    def _read(self, offset: int, length: int) -> bytes:
        if self._extents is None:
            return self._reader.read(self._entry.start + offset, length)
        out, stored = bytearray(length), self._entry.start
        for at, size in self._extents:
            start, end = max(at, offset), min(at + size, offset + length)
            if start < end:
                out[start - offset : end - offset] = self._reader.read(stored + start - at, end - start)
            stored += size
        return bytes(out)


def open_file(reader: SnapshotReader, path: str) -> BinaryIO:
    return io.BufferedReader(SnapshotFile(reader, content_entry(reader, path)), buffer_size=1 << 17)


def open_database(reader: SnapshotReader) -> BinaryIO:
    """The one file of a database's snapshot. NotFound."""
    return cast(BinaryIO, SnapshotFile(reader, _database(reader)))


def _database(reader: SnapshotReader) -> Named:
    entry = next((entry for folder in reader.entries() for entry in folder if entry.kind == EntryKind.FILE), None)
    if entry is None:
        raise NotFound("This snapshot holds no database.", kind="path", remedy="Choose another snapshot.")
    return entry


def table(reader: SnapshotReader, name: str) -> Iterator[dict[str, object]]:
    """The rows of a table of a SQLite snapshot, through a private copy that is gone afterwards."""
    import sqlite3

    entry = _database(reader)
    with tempfile.TemporaryDirectory(prefix="pharmabackup-") as folder:
        path = Path(folder) / "database"
        try:
            _copy(reader, entry, path)
        except OSError as error:
            raise StorageFailed(
                f"The database cannot be copied to {tempfile.gettempdir()} to look into it: {error.strerror}.",
                kind="full",
                remedy="Free some space there, or restore the database to a larger disk.",
                location=tempfile.gettempdir(),
            ) from error
        with closing(
            # whoever goes on, or gives up, may be another thread, such as the garbage collector's
            sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True, check_same_thread=False)
        ) as database:
            database.row_factory = sqlite3.Row
            database.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
            known = {
                row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
            }
            if os.name == "posix":
                path.unlink()  # it stays open; whatever happens from here on, nothing is left
            if name not in known:
                raise NotFound(
                    f"There is no table {name} in this database.",
                    kind="path",
                    remedy=f"It has {', '.join(sorted(known)) or 'no tables'}.",
                )
            quoted = '"' + name.replace('"', '""') + '"'
            for row in database.execute(f"SELECT * FROM {quoted}"):  # noqa: S608  (one of the names just listed)
                yield dict(row)


def _copy(reader: SnapshotReader, entry: Named, path: Path) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with open(descriptor, "wb") as out, io.BufferedReader(SnapshotFile(reader, entry)) as source:
        while data := source.read(COPY_SIZE):
            out.write(data)
