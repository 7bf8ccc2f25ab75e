"""A sink that remembers what it was given, as an engine would, and can be asked what the tree was."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pharmabackup.format.manifest import Entry, ExtraField, Folder, Frame, FrameType, entries
from pharmabackup.sources.base import FolderColumns, Kept, PreviousFolder, Sink, Source
from pharmabackup.sources.rows import ROW_SIZE

CHUNK = 4096
COUNTED_ONLY = 64 << 20  # larger contents are counted, not remembered


@dataclass
class Remembered(PreviousFolder):
    """A folder of the last dump, or a part of it, with what the cache of the engine would know of it."""

    path: bytes
    rows: bytes
    columns: FolderColumns
    first: int  # of its contents
    contents: list[bytes]
    decoded: list[Entry]

    def entries(self) -> Mapping[bytes, Kept]:
        if not self.rows:
            return {}
        n, kept, chunk = len(self.decoded), {}, self.first
        rows = self.rows[len(self.rows) - n * ROW_SIZE :]
        for i, entry in enumerate(self.decoded):
            if entry.kind == 0:
                row = rows[i * ROW_SIZE : (i + 1) * ROW_SIZE]
                extras = tuple(entry.extras.items())
                name = self.columns.names[i]
                kept[name] = Kept(row, chunk, entry.chunks, 0, entry.stored, entry.size, extras)
            chunk += entry.stored > 0
        return kept


class Together(PreviousFolder):
    """What several parts hold."""

    rows = b""

    def __init__(self, parts: list[Remembered]) -> None:
        self._parts = parts

    def entries(self) -> Mapping[bytes, Kept]:
        return {name: kept for part in self._parts for name, kept in part.entries().items()}


@dataclass
class Recorder(Sink):
    """`before` is the recorder of the last dump. `hook` is called with the path of what happens next."""

    before: Recorder | None = None
    hook: Callable[[str, bytes], None] = lambda what, path: None
    parts: list[Remembered] = field(default_factory=list)  # of all folders, in order
    findings: list[tuple[str, bytes, str]] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    counted: int = 0
    kept_folders: int = 0
    kept_files: int = 0
    read_files: int = 0
    checks: int = 0
    asked: list[tuple[bytes, list[bytes]]] = field(default_factory=list)
    _from: int = 0

    @property
    def folders(self) -> dict[bytes, Remembered]:
        """By path; of a large folder the last part."""
        return {part.path: part for part in self.parts}

    def previous(self, path: bytes, names: Sequence[bytes]) -> PreviousFolder | None:
        assert all(follows(path, names, *other) for other in self.asked[-1:]), "asked out of order"
        self.asked.append((path, list(names)))
        known = [part for part in self.before.parts if part.path == path] if self.before is not None else []
        for part in known:
            if len(known) == 1 or part.columns.names == list(names):
                return part
        return Together(known) if known else None

    def keep_folder(self, folder: PreviousFolder) -> None:
        assert isinstance(folder, Remembered)
        assert self._from == len(self.contents)
        self.kept_folders += 1
        self.contents += folder.contents
        self._put(folder.path, folder.columns, folder.rows)

    def keep_file(self, kept: Kept) -> None:
        assert self.before is not None
        self.kept_files += 1
        if kept.stored:
            self.contents.append(self.before.contents[kept.first_chunk])
            assert len(self.contents[-1]) == kept.stored

    def file(self, fd: int, size: int) -> tuple[int, int]:
        path = b""
        with suppress(OSError):
            path = os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))
        self.hook("file", path)
        return self._take(lambda view: os.readv(fd, (view,)))

    def stream(self, read_into: Callable[[memoryview], int], *, fine: bool = False) -> tuple[int, int]:
        self.hook("stream", b"")
        return self._take(read_into)

    def _take(self, read: Callable[[memoryview], int]) -> tuple[int, int]:
        self.read_files += 1
        data, total, buffer = bytearray(), 0, memoryview(bytearray(1 << 20))
        while got := read(buffer):
            assert got <= len(buffer)
            total += got
            if total <= COUNTED_ONLY:
                data += buffer[:got]
            self.hook("read", b"")
        if total > COUNTED_ONLY:
            self.counted += total
            data = bytearray(b"counted")
        if total:
            self.contents.append(bytes(data))
        return -(-total // CHUNK), total

    def pages(self, read_at: Callable[[int, memoryview], int], *, size: int, page_size: int) -> tuple[int, int]:
        data = memoryview(bytearray(size))
        for offset in range(0, size, 64 << 10):
            part = data[offset : offset + (64 << 10)]
            assert read_at(offset, part) == len(part)
        if size:
            self.contents.append(bytes(data))
        return -(-size // page_size) if size else 0, size

    def folder(self, path: bytes, columns: FolderColumns, rows: bytes) -> None:
        self.hook("folder", path)
        assert not rows or len(rows) >= len(columns.names) * ROW_SIZE
        self._put(path, columns, rows)

    def _put(self, path: bytes, columns: FolderColumns, rows: bytes) -> None:
        last = [(part.path, part.columns.names) for part in self.parts[-1:]]
        assert all(follows(path, columns.names, *other) for other in last), "folders out of order"
        decoded = decode(path, columns)
        mine, self._from, first = self.contents[self._from :], len(self.contents), self._from
        stored = [size for size in columns.stored if size]
        assert [len(data) for data in mine if data != b"counted"] == [s for s in stored if s <= COUNTED_ONLY]
        assert len(mine) == len(stored)
        self.parts.append(Remembered(path, rows, columns, first, mine, decoded))

    def finding(
        self, code: str, path: bytes, message: str, remedy: str, *, severity: str = "warning", harms: bool = True
    ) -> None:
        assert message.endswith(".")
        assert remedy.endswith(".")
        self.findings.append((code, path, severity))

    def check(self) -> None:
        self.checks += 1
        self.hook("check", b"")

    # ------------------------------------------------------------ what came of it

    def tree(self) -> dict[bytes, Entry]:
        return {entry.path: entry for part in self.parts for entry in part.decoded}

    def codes(self) -> list[tuple[str, bytes]]:
        return sorted((code, path) for code, path, _ in self.findings)

    def content(self, path: bytes) -> bytes:
        """A file's bytes as a restore would make them."""
        entry = self.tree()[path]
        if entry.same_file is not None:
            return self.content(entry.same_file)
        folder, _, name = path.rpartition(b"/")
        record = next(part for part in self.parts if part.path == folder and name in part.columns.names)
        place = record.columns.names.index(name)
        if not entry.stored:
            return bytes(entry.size)
        data = record.contents[sum(1 for stored in record.columns.stored[:place] if stored)]
        if entry.extents is None:
            return data
        whole, at = bytearray(entry.size), 0
        for offset, length in entry.extents:
            whole[offset : offset + length] = data[at : at + length]
            at += length
        return bytes(whole)


def follows(path: bytes, names: Sequence[bytes], other: bytes, others: Sequence[bytes]) -> bool:
    """Whether these are entries of a folder that comes after the other one, or of its next part."""
    mine, before = (where.split(b"/") if where else [] for where in (path, other))
    return mine > before or (mine == before and list(names[:1]) > list(others[-1:]))


def decode(path: bytes, columns: FolderColumns) -> list[Entry]:
    """The entries, as the format's own reader has them: it checks names, order and sizes."""
    n = len(columns.names)

    def column(code: str, values: Iterable[int]) -> bytes:
        return struct.pack(f"<{n}{code}", *values)

    assert columns.extras == sorted(columns.extras)
    record = Folder(
        path=path,
        names=b"\0".join(columns.names),
        kinds=bytes(columns.kinds),
        modes=column("I", columns.modes),
        uids=column("I", columns.uids),
        gids=column("I", columns.gids),
        mtimes=column("q", columns.mtimes),
        sizes=column("Q", columns.sizes),
        chunks=column("I", columns.chunks),
        extras=tuple(ExtraField(*extra) for extra in columns.extras),
    )
    frame = Frame(FrameType.FOLDER, sum(columns.stored), sum(columns.chunks), memoryview(b""))
    found = entries(record, frame, 0)
    assert [entry.stored for entry in found] == columns.stored
    return found


def dump(source: Source, before: Recorder | None = None, **options: object) -> Recorder:
    recorder = Recorder(before, **options)  # type: ignore[arg-type]
    with source.view(scratch=Path("/nonexistent")) as view:
        view.dump(recorder)
    return recorder


def check_same(recorder: Recorder, root: Path) -> None:
    """That what was recorded is what lies there: by names, kinds, metadata and content."""
    expected = {b""}
    for folder, names, files in os.walk(os.fsencode(root)):
        below = os.path.relpath(folder, os.fsencode(root))
        expected |= {name if below == b"." else below + b"/" + name for name in names + files}
    tree = recorder.tree()
    assert set(tree) == expected
    first: dict[int, bytes] = {}
    for path, entry in tree.items():
        place = os.path.join(os.fsencode(root), path)
        status = os.lstat(place)
        kinds = {stat.S_IFREG: 0, stat.S_IFDIR: 1, stat.S_IFLNK: 2, stat.S_IFIFO: 3, stat.S_IFSOCK: 4}
        assert entry.kind == kinds[stat.S_IFMT(status.st_mode)]
        assert (entry.mode, entry.uid, entry.gid) == (status.st_mode & 0o7777, status.st_uid, status.st_gid)
        assert entry.mtime == status.st_mtime_ns
        attributes = [] if not hasattr(os, "listxattr") else sorted(os.listxattr(place, follow_symlinks=False))
        if entry.kind == 0:
            assert entry.size == status.st_size
            assert recorder.content(path) == Path(os.fsdecode(place)).read_bytes()
            assert entry.same_file == first.get(status.st_ino)
            if status.st_nlink > 1:
                first.setdefault(status.st_ino, path)
        elif entry.kind == 2:
            assert entry.link_target == os.readlink(place)
            assert entry.size == 0
        if entry.same_file is None:
            assert entry.attributes == [
                (os.fsencode(name), os.getxattr(place, name, follow_symlinks=False)) for name in attributes
            ]
