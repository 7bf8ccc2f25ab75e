"""Looking through sources for what storage has lost: a dump that keeps the chunks that are wanted, and nothing else.

It is cut as a backup is, by the same code. What is found is kept sealed, under a key that is nowhere else, in a file
without a name: a block is made anew when all its chunks are there.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from blake3 import blake3

from pharmabackup import compression
from pharmabackup.crypto.hashing import derive
from pharmabackup.crypto.sealing import SealingKey
from pharmabackup.engine.blocks import BLOCK_TARGET, TRAILER_ROOM, BlockWriter, Buffer, damaged_block
from pharmabackup.engine.content_files import FileContents
from pharmabackup.engine.content_pages import PageContents
from pharmabackup.engine.contents import Contents
from pharmabackup.engine.dataset import folder_frames
from pharmabackup.engine.grants import WRITERS
from pharmabackup.engine.index import Index
from pharmabackup.engine.packs import block_id
from pharmabackup.engine.pieces import ManifestWriter
from pharmabackup.engine.reading import NAME_KEYS, chunk_names
from pharmabackup.engine.taking import Taken
from pharmabackup.engine.transaction import cutter
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import SourceFailed
from pharmabackup.format import block as layout
from pharmabackup.format import wire
from pharmabackup.format.pack import NAME_SIZE, WrappedKey
from pharmabackup.format.recipe import Runs
from pharmabackup.format.wire import Kind
from pharmabackup.sources.base import FolderColumns, Kept, PreviousFolder, Sink, Source

WANTED_MAX = 1 << 18  # chunks looked for at a time; for more, the sources are read again
ELSEWHERE = (0, 0)  # where a chunk lies that is not wanted: no matter


@dataclass(frozen=True, slots=True)
class Sought:
    """A block that is lost, and the names of its chunks."""

    id: bytes
    kind: int
    names: bytes

    @property
    def chunks(self) -> list[bytes]:
        return [self.names[at : at + NAME_SIZE] for at in range(0, len(self.names), NAME_SIZE)]


class Hunt:
    """Lost blocks of one domain, and the sources that may still have them."""

    def __init__(
        self,
        unlocked: Unlocked,
        domain: bytes,
        sources: Sequence[Source],
        look: Callable[[], None],
        failed: Callable[[Source, SourceFailed], None],
    ) -> None:
        """`failed` is told of each source that could not be read to its end; others may have what is lost.

        NotPermitted when this credential cannot name chunks of that domain.
        """
        naming = naming_key(unlocked, domain)
        if naming is None:
            raise unlocked.not_permitted("back up", who=WRITERS)
        self._failed = failed
        self._unlocked = unlocked
        self._domain = domain
        self._naming = naming
        self._sources = sources
        self._look = look

    def found(self, blocks: Sequence[Sought]) -> set[bytes]:
        """Those of which the sources have every chunk."""
        whole: set[bytes] = set()
        for some in _batches(blocks):
            wanted = _Wanted(some, None)
            self._read(wanted)
            whole.update(block.id for block in some if all(name in wanted.seen for name in block.chunks))
        return whole

    def blocks(self, blocks: Sequence[Sought]) -> Iterator[Taken]:
        """The same blocks made anew, under a key of their own."""
        session = os.urandom(32)
        wrapped, key = self._unlocked.wrap(session), SealingKey(session)
        for some in _batches(blocks):
            with _Pile() as pile:
                wanted = _Wanted(some, pile)
                self._read(wanted)
                for block in some:
                    if all(name in wanted.seen for name in block.chunks):
                        yield self._made(block, [pile.get(name) for name in block.chunks], key, wrapped)

    def _read(self, wanted: _Wanted) -> None:
        with tempfile.TemporaryDirectory(prefix="pharmabackup-") as scratch:
            for source in self._sources:
                before = set(wanted.seen)
                try:
                    with source.view(scratch=Path(scratch)) as view:
                        sink = _HuntingSink(self._unlocked, self._naming, wanted, self._look)
                        view.dump(sink)
                        sink.finish()
                except SourceFailed as error:
                    wanted.seen = before  # what it handed over last was not kept
                    self._failed(source, error)

    def _made(self, block: Sought, chunks: list[bytes], key: SealingKey, wrapped: WrappedKey) -> Taken:
        lengths = wire.little(array("I", map(len, chunks))).tobytes()
        content = b"".join(chunks) + layout.trailer(lengths)
        names = chunk_names(block.kind, self._naming, content)
        if block_id(self._unlocked.keyring.block_names, block.kind, names) != block.id:
            raise damaged_block("it was read again from its source, and is another one")  # a fault of memory
        plain = compression.compress(content, compression.FILES_LEVEL, checksum=True)
        context = wire.block_context(self._unlocked.repository, Kind(block.kind), wrapped.key_id, block.id)
        return Taken(block.id, block.kind, self._domain, names, key.seal(plain, context), wrapped)


def naming_key(unlocked: Unlocked, domain: bytes) -> bytes | None:
    """What chunks of a domain are named with, if this credential may."""
    return next((item.key for item in unlocked.keyring.naming if item.domain == domain), None)


def _batches(blocks: Sequence[Sought]) -> Iterator[list[Sought]]:
    some: list[Sought] = []
    chunks = 0
    for block in blocks:
        if some and chunks + len(block.names) // NAME_SIZE > WANTED_MAX:
            yield some
            some, chunks = [], 0
        some.append(block)
        chunks += len(block.names) // NAME_SIZE
    if some:
        yield some


class _Pile:
    """Chunks on disk, sealed, in a file that nobody else can find and that is gone with this process."""

    def __init__(self) -> None:
        self._key = SealingKey(os.urandom(32))
        self._places: dict[bytes, tuple[int, int]] = {}
        self._file = tempfile.TemporaryFile(prefix="pharmabackup-")  # noqa: SIM115  (closed on exit)
        self._end = 0

    def put(self, name: bytes, data: memoryview) -> None:
        sealed = self._key.seal(data, name)
        self._file.seek(self._end)
        self._file.write(sealed)
        self._places[name] = self._end, len(sealed)
        self._end += len(sealed)

    def get(self, name: bytes) -> bytes:
        place, size = self._places[name]
        self._file.seek(place)
        return self._key.open(self._file.read(size), name)

    def __enter__(self) -> _Pile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class _Wanted:
    """Stands where a backup has its index and its blocks: what is not wanted is there already, the rest is kept."""

    def __init__(self, blocks: Sequence[Sought], pile: _Pile | None) -> None:
        self.target = BLOCK_TARGET
        self.seen: set[bytes] = set()
        self._wanted = {name for block in blocks for name in block.chunks}
        self._pile = pile

    def is_new(self, name: bytes) -> bool:
        """Whether it is to be kept now."""
        if name not in self._wanted or name in self.seen:
            return False
        self.seen.add(name)
        return self._pile is not None

    # as an index

    def take_one(self, name: bytes, number: int, ordinal: int) -> tuple[int, int] | None:  # noqa: ARG002
        return None if self.is_new(name) else ELSEWHERE

    def take(
        self,
        names: list[bytes],
        number: int,  # noqa: ARG002
        ordinal: int,  # noqa: ARG002
        *,
        renew: set[int],  # noqa: ARG002
        prefer: set[int],  # noqa: ARG002
    ) -> list[tuple[int, int] | None]:
        return [None if self.is_new(name) else ELSEWHERE for name in names]

    # as a writer of blocks

    def begin(self, kind: Kind, level: int) -> Buffer:
        buffer = Buffer(self.target + TRAILER_ROOM)
        buffer.kind, buffer.level = kind, level
        return buffer

    def finish_block(self, buffer: Buffer) -> None:
        at = 0
        for name, length in zip(buffer.names, buffer.lengths, strict=True):
            self.keep(name, buffer.content[at : at + length])
            at += length

    def keep(self, name: bytes, data: memoryview) -> None:
        if self._pile is not None:
            self._pile.put(name, data)


class _NoRuns(Runs):
    """Where chunks lay is asked of nobody, and one run for each of them would fill the memory."""

    def add(self, block: int, first: int, count: int, size: int) -> None:
        pass


class _HuntingSink(Sink):
    """Takes a source's dump as a backup does, and stores nothing of it but what is wanted."""

    def __init__(self, unlocked: Unlocked, naming: bytes, wanted: _Wanted, look: Callable[[], None]) -> None:
        self._wanted = wanted
        self._look = look
        names, extents = derive("data names", naming), derive("extents", naming)
        # With nothing remembered, these ask of an index and of a writer of blocks only what `_Wanted` answers.
        index, blocks = cast(Index, wanted), cast(BlockWriter, wanted)
        self._contents = Contents(index=index, blocks=blocks, remembered=None)
        self._contents.runs = _NoRuns()
        cut = cutter(unlocked, naming)
        wanted.target = max(BLOCK_TARGET, cut.maximum)
        self._files = FileContents(self._contents, index=index, naming_key=names, cutter=cut)
        self._pages = PageContents(self._contents, index=index, naming_key=names, extent_key=extents)
        self._manifest = ManifestWriter(self._piece)
        self._manifest_key = derive(NAME_KEYS[Kind.MANIFEST_BLOCK], naming)

    def previous(self, path: bytes, names: Sequence[bytes]) -> PreviousFolder | None:  # noqa: ARG002
        return None  # everything is read

    def keep_folder(self, folder: PreviousFolder) -> None:
        raise AssertionError(folder)

    def keep_file(self, kept: Kept) -> None:
        raise AssertionError(kept)

    def file(self, fd: int, size: int) -> tuple[int, int]:
        self._look()
        return self._files.file(fd, size)

    def stream(self, read_into: Callable[[memoryview], int], *, fine: bool = False) -> tuple[int, int]:
        def read(view: memoryview) -> int:
            self._look()
            return read_into(view)

        return self._files.stream(read, fine=fine)

    def pages(self, read_at: Callable[[int, memoryview], int], *, size: int, page_size: int) -> tuple[int, int]:
        return self._pages.pages(read_at, size=size, page_size=page_size, step=lambda _: self._look())

    def folder(self, path: bytes, columns: FolderColumns, rows: bytes) -> None:  # noqa: ARG002
        for data in folder_frames(path, columns):
            self._manifest.add(data, path)

    def finding(
        self, code: str, path: bytes, message: str, remedy: str, *, severity: str = "warning", harms: bool = True
    ) -> None:
        """What cannot be read now is not found, that is all."""

    def check(self) -> None:
        self._look()

    def finish(self) -> None:
        """Everything was dumped."""
        self._contents.finish()
        self._manifest.flush()

    def _piece(self, data: bytes) -> None:
        name = blake3(data, key=self._manifest_key).digest()
        if self._wanted.is_new(name):
            self._wanted.keep(name, memoryview(data))
