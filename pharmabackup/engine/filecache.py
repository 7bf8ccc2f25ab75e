"""What this machine remembers of a dataset's last snapshot, so that what has not changed is not read.

Two sealed files a dataset: `state` (which snapshot, its recipe, hashes of a database's extents) and `folders`
(one record a folder, or a part of a large one, in the order of the dump, read in step with it so that memory stays
small).
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterator
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import msgspec

from pharmabackup.crypto.sealing import NotAuthentic, SealingKey
from pharmabackup.engine.localfiles import replace
from pharmabackup.errors import Damaged
from pharmabackup.format import wire
from pharmabackup.format.manifest import Entry, decode_folder, entries, read_frames
from pharmabackup.format.recipe import Runs
from pharmabackup.sources.base import Kept, PreviousFolder

VERSION = 4
FRAME_TARGET = 1 << 20
LENGTH = struct.Struct("<I")


class FolderRecord(msgspec.Struct, array_like=True):
    path: bytes
    last: bytes  # name; empty when it has none
    rows: bytes
    frames: bytes  # of the manifest
    chunks: int
    size: int  # of content in the recipe's stream
    files: int
    logical: int  # bytes of all files, holes counted


class _State(msgspec.Struct, array_like=True):
    version: int
    transaction: bytes
    folders: str
    table: bytes
    ages: bytes
    block: bytes
    first: bytes
    count: bytes
    sizes: bytes
    extents: bytes
    page_size: int


class RememberedFolder(PreviousFolder):
    """A folder as it was, or a part of it, and where its content begins in the last recipe."""

    def __init__(self, record: FolderRecord, first_chunk: int, first_byte: int, row_size: int) -> None:
        self.path = record.path
        self.last = record.last
        self.rows = record.rows
        self.record = record
        self.first_chunk = first_chunk
        self.first_byte = first_byte
        self._row_size = row_size

    def _manifest_entries(self) -> list[Entry]:
        found: list[Entry] = []
        start = self.first_byte
        for frame in read_frames((self.record.frames,)):
            found += entries(decode_folder(frame), frame, start)
            start += frame.size
        return found

    def entries(self) -> dict[bytes, Kept]:
        try:
            known = self._manifest_entries()
        except Damaged:
            return {}
        rows = self.rows[len(self.rows) - len(known) * self._row_size :] if self.rows else b""
        if not rows:
            return {}
        kept, chunk = {}, self.first_chunk
        for i, entry in enumerate(known):
            if entry.kind == 0:
                kept[entry.path.rpartition(b"/")[2]] = Kept(
                    rows[i * self._row_size : (i + 1) * self._row_size],
                    chunk,
                    entry.chunks,
                    entry.start,
                    entry.stored,
                    entry.size,
                    tuple(entry.extras.items()),
                )
            chunk += entry.chunks
        return kept


class Remembered:
    """The last snapshot of a dataset, as this machine remembers it."""

    def __init__(self, folder: Path, key: SealingKey, state: _State) -> None:
        self.transaction = state.transaction
        self.table = [state.table[i : i + 32] for i in range(0, len(state.table), 32)]
        self.ages = array("H")  # of the table's blocks: see `Table`
        self.runs = Runs()
        for column, data in (
            (self.ages, state.ages),
            (self.runs.block, state.block),
            (self.runs.first, state.first),
            (self.runs.count, state.count),
            (self.runs.sizes, state.sizes),
        ):
            column.frombytes(data)
        self.extents = state.extents
        self.page_size = state.page_size
        self._path = folder / state.folders
        self._key = key
        self._file: BinaryIO | None = None

    def folders(self, row_size: int) -> Iterator[RememberedFolder]:
        """All folders in the order of the dump; fewer when the cache is damaged."""
        chunk = byte = 0
        name = self._path.name.encode()
        try:
            with open(self._path, "rb") as file:
                self._file = file
                number = 0
                while head := file.read(LENGTH.size):
                    sealed = file.read(LENGTH.unpack(head)[0])
                    data = self._key.open(sealed, name + LENGTH.pack(number))
                    for record in wire.decoder(list[FolderRecord]).decode(data):
                        yield RememberedFolder(record, chunk, byte, row_size)
                        chunk += record.chunks
                        byte += record.size
                    number += 1
        except (OSError, NotAuthentic, msgspec.MsgspecError, ValueError, struct.error, Damaged):
            return

    def close(self) -> None:
        """No more folders are asked for: Windows does not remove a file that is open."""
        if self._file is not None:
            self._file.close()


class FileCache:
    """One dataset's place in the state folder. Whatever goes wrong here costs one full read, nothing else."""

    def __init__(self, state: Path, key: bytes, dataset_key: bytes) -> None:
        self._folder = state / "datasets" / dataset_key.hex()[:32]
        self._key = SealingKey(key)
        self._name = f"{os.urandom(8).hex()}.folders"
        self._pending: list[FolderRecord] = []
        self._pending_size = 0
        self._number = 0
        self._broken = False

    def load(self) -> Remembered | None:
        try:
            data = self._key.open((self._folder / "state").read_bytes(), b"file cache")
            state = wire.decoder(_State).decode(data)
            if state.version != VERSION:
                return None
            return Remembered(self._folder, self._key, state)
        except (OSError, NotAuthentic, msgspec.MsgspecError, ValueError):
            return None

    def add(self, record: FolderRecord) -> None:
        self._pending.append(record)
        self._pending_size += len(record.rows) + len(record.frames)
        if self._pending_size >= FRAME_TARGET:
            self._flush()

    def _flush(self) -> None:
        if self._broken:
            self._pending, self._pending_size = [], 0
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with open(self._folder / self._name, "ab") as file:
                context = self._name.encode() + LENGTH.pack(self._number)
                sealed = self._key.seal(msgspec.msgpack.encode(self._pending), context)
                file.write(LENGTH.pack(len(sealed)) + sealed)
        except OSError:
            self._broken = True
        self._number += 1
        self._pending, self._pending_size = [], 0

    def save(
        self,
        *,
        transaction: bytes,
        table: bytes,
        ages: array[int],
        runs: Runs,
        extents: bytes,
        page_size: int,
    ) -> None:
        """The snapshot is committed: remember it, and forget the one before."""
        self._flush()
        try:
            if not self._broken:
                state = _State(
                    version=VERSION,
                    transaction=transaction,
                    folders=self._name,
                    table=table,
                    ages=ages.tobytes(),
                    block=runs.block.tobytes(),
                    first=runs.first.tobytes(),
                    count=runs.count.tobytes(),
                    sizes=runs.sizes.tobytes(),
                    extents=extents,
                    page_size=page_size,
                )
                replace(self._folder / "state", self._key.seal(msgspec.msgpack.encode(state), b"file cache"))
            others = [
                file for file in self._folder.iterdir() if file.name not in ("state", self._name) or self._broken
            ]
        except OSError:
            return
        for file in others:
            with suppress(OSError):  # another process has it open; the next backup tries again
                file.unlink(missing_ok=True)

    def discard(self) -> None:
        """The snapshot was not committed."""
        try:
            (self._folder / self._name).unlink(missing_ok=True)
        except OSError:
            return


def cumulative(column: array[int]) -> array[int]:
    """0 and then the running totals."""
    return array("Q", accumulate(column, initial=0))
