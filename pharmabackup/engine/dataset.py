"""One dataset on its way into a transaction: the sink that a source dumps into, and the snapshot that comes of it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import ge

from pharmabackup.crypto.hashing import derive
from pharmabackup.engine.content_files import FileContents
from pharmabackup.engine.content_pages import PageContents
from pharmabackup.engine.contents import Contents
from pharmabackup.engine.filecache import FileCache, FolderRecord, Remembered, RememberedFolder
from pharmabackup.engine.pieces import ManifestWriter, PieceWriter, put_recipe, put_table, refs
from pharmabackup.engine.previous import PreviousFolders
from pharmabackup.engine.transaction import Transaction
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import SourceFailed
from pharmabackup.events import Finding, Severity
from pharmabackup.format.manifest import ExtraField, Folder, FrameType, ManifestFinding, RecordOrder, frame
from pharmabackup.format.transaction import FindingCount, Refs
from pharmabackup.format.wire import TEXT_MAX, Kind
from pharmabackup.sources.base import FolderColumns, Kept, PreviousFolder, Sink
from pharmabackup.sources.parts import part_end
from pharmabackup.sources.rows import ROW_SIZE

RECORD_WEIGHT_MAX = 1 << 20  # bytes of additional fields
FINDINGS_MAX = 10_000  # of one snapshot; more are counted and not told one by one
FILE = 0
TELL_FILES = 64
TELL_BYTES = 1 << 20
STEP = Callable[[int, int], None]  # bytes, files


@dataclass(frozen=True, slots=True)
class Dumped:
    """What the snapshot's record needs to know about its content."""

    files: int
    size: int
    chunks: int
    table: Refs
    recipe: Refs
    manifest: Refs
    findings: tuple[FindingCount, ...]
    relied: frozenset[int]  # block numbers


@dataclass(slots=True)
class _Counts:
    files: int = 0
    size: int = 0
    chunks: int = 0
    stored: int = 0  # bytes of content
    findings: dict[tuple[str, str], int] = field(default_factory=dict)


class DatasetSink(Sink):
    """Takes a source's dump. `step` hears of progress, and raises what stops it."""

    def __init__(
        self,
        unlocked: Unlocked,
        transaction: Transaction,
        dataset: str,
        remembered: Remembered | None,
        step: STEP,
        *,
        memory: str = "",
    ) -> None:
        """`memory`: under which name this machine remembers it; its own."""
        index, blocks = transaction.index, transaction.blocks
        names = unlocked.naming_key
        self.repository = unlocked.repository.hex()
        self.contents = contents = Contents(index=index, blocks=blocks, remembered=remembered)
        naming, extents = derive("data names", names), derive("extents", names)
        self._files = FileContents(contents, index=index, naming_key=naming, cutter=transaction.cutter)
        self._pages = PageContents(contents, index=index, naming_key=naming, extent_key=extents)
        self.cache = open_cache(unlocked, memory or dataset)
        self._dataset = dataset
        self.told: list[Finding] = []
        self.complete = True
        self._transaction = transaction
        self._manifest_pieces = PieceWriter(index, blocks, Kind.MANIFEST_BLOCK, derive("manifest names", names))
        self._recipe_pieces = PieceWriter(index, blocks, Kind.RECIPE_BLOCK, derive("recipe names", names))
        self._manifest = ManifestWriter(self._manifest_pieces.put)
        self._order = RecordOrder()
        self._counts = _Counts()
        self._untold_files = self._untold_bytes = 0
        self._finding_frames: list[bytes] = []
        self._step = step
        usable = remembered if self.contents.remembers else None
        self._previous = PreviousFolders(iter(()) if usable is None else usable.folders(ROW_SIZE))
        self._page_size = 0

    # ------------------------------------------------------------ what was

    def previous(self, path: bytes, names: Sequence[bytes]) -> PreviousFolder | None:
        return self._previous.find(path, names)

    def keep_folder(self, folder: PreviousFolder) -> None:
        assert isinstance(folder, RememberedFolder)
        self.contents.keep(folder.first_chunk, folder.record.chunks, folder.first_byte, folder.record.size)
        record = folder.record
        self._follows(record.path, record.last, record.last)
        self._manifest.add(record.frames, record.path)
        self._remember(record)
        self._done(record.size, record.files)

    def keep_file(self, kept: Kept) -> None:
        self.contents.keep(kept.first_chunk, kept.chunks, kept.first_byte, kept.stored)
        self._done(kept.stored)

    # ------------------------------------------------------------ content

    def file(self, fd: int, size: int) -> tuple[int, int]:
        chunks, stored = self._files.file(fd, size)
        self._done(stored)
        return chunks, stored

    def stream(self, read_into: Callable[[memoryview], int], *, fine: bool = False) -> tuple[int, int]:
        told = 0

        def read(view: memoryview) -> int:
            nonlocal told
            got = read_into(view)
            told += got
            self._step(got, 0)
            self._transaction.checkpoint()
            return got

        chunks, stored = self._files.stream(read, fine=fine)
        self._step(stored - told, 1)
        return chunks, stored

    def pages(self, read_at: Callable[[int, memoryview], int], *, size: int, page_size: int) -> tuple[int, int]:
        self._page_size = page_size
        found = self._pages.pages(read_at, size=size, page_size=page_size, step=self._pages_done)
        self._step(0, 1)
        return found

    def _pages_done(self, size: int) -> None:
        self._step(size, 0)
        self._transaction.checkpoint()

    # ------------------------------------------------------------ names

    def folder(self, path: bytes, columns: FolderColumns, rows: bytes) -> None:
        frames = folder_frames(path, columns)
        n = len(columns.names)
        names = columns.names
        if any(map(ge, names, islice(names, 1, None))):
            raise self._inconsistent()
        first, last = (names[0], names[-1]) if n else (b"", b"")
        self._follows(path, first, last)
        for data in frames:
            self._manifest.add(data, path)
        files, logical = columns.kinds.count(FILE), sum(columns.sizes)
        stored = sum(columns.stored)
        self._remember(FolderRecord(path, last, rows, b"".join(frames), sum(columns.chunks), stored, files, logical))

    def _follows(self, path: bytes, first: bytes, last: bytes) -> None:
        """Whoever dumps keeps the order, or nobody could restore it. SourceFailed."""
        if not self._order.takes(path, first, last):
            raise self._inconsistent()

    def _inconsistent(self) -> SourceFailed:
        return SourceFailed(
            "Its names and its content do not fit together, so it could not be restored.",
            kind="inconsistent",
            remedy="Back it up again; if that fails too, report it as a fault of this software.",
            dataset=self._dataset,
        )

    def _remember(self, record: FolderRecord) -> None:
        self.cache.add(record)
        self._counts.files += record.files
        self._counts.size += record.logical
        self._counts.chunks += record.chunks
        self._counts.stored += record.size

    def finding(
        self, code: str, path: bytes, message: str, remedy: str, *, severity: str = "warning", harms: bool = True
    ) -> None:
        counts = self._counts.findings
        counts[code, severity] = counts.get((code, severity), 0) + 1
        if harms and severity != "info":
            self.complete = False
        if len(self.told) < FINDINGS_MAX:
            subject = path.decode("utf-8", "backslashreplace")
            self.told.append(
                Finding(
                    code=code,
                    severity=_severity(severity),
                    subject=subject,
                    message=message,
                    remedy=remedy,
                )
            )
            self._finding_frames.append(
                frame(FrameType.FINDING, ManifestFinding(code, severity, path, message[:TEXT_MAX], remedy[:TEXT_MAX]))
            )

    def check(self) -> None:
        self._tell()
        self._transaction.checkpoint()

    def _done(self, size: int, files: int = 1) -> None:
        """So much more. Progress hears of several files at once: a call for each would cost as much as opening it."""
        self._untold_files += files
        self._untold_bytes += size
        if self._untold_files >= TELL_FILES or self._untold_bytes >= TELL_BYTES:
            self._tell()

    def _tell(self) -> None:
        size, files = self._untold_bytes, self._untold_files
        self._untold_bytes = self._untold_files = 0
        self._step(size, files)

    # ------------------------------------------------------------ the end

    def finish(self) -> Dumped:
        """Everything was dumped: close blocks, write manifest, recipe and table."""
        contents, index = self.contents, self._transaction.index
        self._tell()
        contents.finish()
        self._manifest.flush()
        if self._finding_frames:
            self._manifest.add(b"".join(self._finding_frames), b"")
            self._manifest.flush()
        self._manifest_pieces.finish()
        manifest_places = self._manifest_pieces.take_places()
        runs, table = contents.runs, contents.table
        if (sum(runs.count), sum(runs.sizes)) != (self._counts.chunks, self._counts.stored):
            raise self._inconsistent()
        used = set(runs.block)
        put_recipe(self._recipe_pieces, runs)
        recipe_places = self._recipe_pieces.take_places()
        self.table_ids = table.ids(used, index)
        put_table(self._recipe_pieces, self.table_ids)
        table_places = self._recipe_pieces.take_places()
        self._recipe_pieces.finish()
        relied = {table.numbers[slot] for slot in used}
        relied.update(number for number, _ in manifest_places + recipe_places + table_places)
        return Dumped(
            files=self._counts.files,
            size=self._counts.size,
            chunks=contents.total_chunks,
            table=refs(index, table_places),
            recipe=refs(index, recipe_places),
            manifest=refs(index, manifest_places),
            findings=tuple(
                FindingCount(code, _severity(severity), count)
                for (code, severity), count in sorted(self._counts.findings.items())
            ),
            relied=frozenset(relied),
        )

    def remember(self) -> None:
        """The snapshot is committed: next time, what has not changed is not read."""
        self.cache.save(
            transaction=self._transaction.id,
            table=self.table_ids,
            ages=self.contents.table.ages[: len(self.table_ids) // 32],
            runs=self.contents.runs,
            extents=bytes(self._pages.extents),
            page_size=self._page_size,
        )


def open_cache(unlocked: Unlocked, dataset: str) -> FileCache:
    """This machine's memory of a dataset. Its file's name says nothing about the dataset's."""
    key = unlocked.purpose_key("file cache")
    return FileCache(unlocked.state, key, derive("dataset", key + dataset.encode()))


def _severity(text: str) -> Severity:
    return "critical" if text == "critical" else "info" if text == "info" else "warning"


def _record_ends(names: list[bytes], weights: dict[int, int]) -> Iterator[int]:
    """Where a folder's records end: where parts do, so that one more file changes one record.

    `weights`: bytes of the entries' additional fields, which may be so large that a record has to end before.
    """
    start = 0
    while start < len(names):
        end, weight = part_end(names, start), 0
        for i in sorted(entry for entry in weights if start <= entry < end):
            weight += weights[i]
            if weight >= RECORD_WEIGHT_MAX:
                end = i + 1
                break
        yield end
        start = end


def folder_frames(path: bytes, columns: FolderColumns) -> list[bytes]:
    """A folder's records, or those of a part of it, as the manifest has them."""
    frames: list[bytes] = []
    start, weights = 0, dict[int, int]()
    for entry, _, value in columns.extras:
        weights[entry] = weights.get(entry, 0) + len(value)
    for end in _record_ends(columns.names, weights):
        frames.append(_folder_frame(path, columns, start, end))
        start = end
    return frames or [_folder_frame(path, columns, 0, 0)]


def _folder_frame(path: bytes, columns: FolderColumns, start: int, end: int) -> bytes:
    n = end - start
    extras = tuple(
        ExtraField(entry - start, key, value) for entry, key, value in columns.extras if start <= entry < end
    )
    chunks = columns.chunks[start:end]
    body = Folder(
        path=path,
        names=b"\0".join(columns.names[start:end]),
        kinds=bytes(columns.kinds[start:end]),
        modes=struct.pack(f"<{n}I", *columns.modes[start:end]),
        uids=struct.pack(f"<{n}I", *columns.uids[start:end]),
        gids=struct.pack(f"<{n}I", *columns.gids[start:end]),
        mtimes=struct.pack(f"<{n}q", *columns.mtimes[start:end]),
        sizes=struct.pack(f"<{n}Q", *columns.sizes[start:end]),
        chunks=struct.pack(f"<{n}I", *chunks),
        extras=extras,
    )
    return frame(FrameType.FOLDER, body, size=sum(columns.stored[start:end]), chunks=sum(chunks))
