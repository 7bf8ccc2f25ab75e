"""A base backup on its way to being a server's data folder: unpacked beside it, verified, then renamed."""

from __future__ import annotations

import os
import tarfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Self, cast

from pharmabackup.errors import SourceFailed, Unsupported
from pharmabackup.sources.base import Content
from pharmabackup.sources.data_folder import DataFolder
from pharmabackup.sources.postgresql_tools import Tools
from pharmabackup.sources.program import Program
from pharmabackup.sources.wal_settings import lines, without_recovery

PIECE = 1 << 20
AHEAD = 16  # pieces that were read and not written; files that are not synced
SYNCING = 4  # files at once
SECONDS = 24 * 3600


def refuse(facts: Mapping[str, object], tools: Tools, dataset: str) -> None:
    """Whether the version that is here can start it. Unsupported, SourceFailed."""
    version = int(str(facts.get("major", 0)))
    if not version:
        raise Unsupported("That is no backup of a whole PostgreSQL server.", remedy="Restore it to a folder.")
    _, found = tools.program("pg_verifybackup", version, dataset)
    if found != version:
        raise Unsupported(
            f"{dataset} is of PostgreSQL {version}, and only that version can start it; here is version {found}.",
            remedy=f"Install PostgreSQL {version}, or name its programs' folder as `tools`.",
        )


def runs(data: Path) -> bool:
    """Whether a server does, or may."""
    return (data / "postmaster.pid").exists()


def unpack(
    target: DataFolder,
    content: Content,
    name: bytes,
    tools: Tools,
    dataset: str,
    *,
    settings: Mapping[str, str],
    overwrite: bool,
) -> Mapping[str, object]:
    """Make the data folder; facts. `settings`: those of a recovery when the server starts. SourceFailed."""
    refuse(content.facts, tools, dataset)
    with target.fresh(content.check, overwrite=overwrite) as fresh:
        try:
            files = _extract(content, name, fresh, dataset)
        except tarfile.TarError as error:
            raise SourceFailed(
                "The backup is no whole tar file.",
                kind="damaged",
                remedy="Restore an earlier backup.",
                dataset=dataset,
            ) from error
        _verify(fresh, content, tools, dataset)
        _recover(fresh, settings)
    facts = {"data": str(target.path), "files": files, "verified": "pg_verifybackup"}
    return facts | ({"replaced": target.replaced.name} if target.replaced is not None else {})


def _extract(content: Content, name: bytes, fresh: Path, dataset: str) -> int:
    """How many files there are."""
    files = 0
    with ExitStack() as stack:
        pieces = content.read(name)
        if isinstance(pieces, Generator):
            stack.callback(pieces.close)
        stream = _Forward(pieces)
        tar = stack.enter_context(tarfile.open(fileobj=cast(IO[bytes], stream), mode="r:"))
        writing = stack.enter_context(_Writing())
        for member in tar:
            content.check()
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts or not (member.isdir() or member.isreg()):
                raise SourceFailed(
                    "The backup holds something that no server's folder has.",
                    kind="damaged",
                    remedy="Restore it to a folder and look into base.tar.",
                    dataset=dataset,
                )
            place = fresh.joinpath(*path.parts)
            if member.isdir():
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
                continue
            stream.seek(member.offset_data)
            writing.file(place, stream.pieces(member.size))
            files += 1
        while stream.some(PIECE):  # what fills its last block
            pass
    return files


class _Forward:
    """What is read piece after piece, as a file that is only read on."""

    def __init__(self, pieces: Iterator[bytes | memoryview]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")
        self._at = 0

    def some(self, size: int) -> memoryview:
        """Up to so many bytes; none at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return self._rest
            self._rest = memoryview(piece)
        found, self._rest = self._rest[:size], self._rest[size:]
        self._at += len(found)
        return found

    def pieces(self, size: int) -> Iterator[memoryview]:
        """So many bytes. tarfile.ReadError where there are fewer."""
        while size:
            found = self.some(size)
            if not found:
                raise tarfile.ReadError("it ends within a file")
            size -= len(found)
            yield found

    def read(self, size: int) -> bytes:
        found = []
        while size and (part := self.some(size)):
            found.append(part)
            size -= len(part)
        return b"".join(found)

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> int:
        if position < self._at:
            raise tarfile.ReadError("it cannot be read back")
        for _ in self.pieces(position - self._at):
            pass
        return self._at


class _Writing:
    """Writes files on a thread of its own, in their order, and has others sync them: each takes as long as reading.

    What goes wrong there is raised when the next is handed over, or at the end.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pharmabackup-writing")
        self._syncing = ThreadPoolExecutor(SYNCING, thread_name_prefix="pharmabackup-syncing")
        self._under_way: deque[Future[object]] = deque()
        self._synced: deque[Future[None]] = deque()
        self._descriptor = -1
        self._failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        try:
            while error is None and self._under_way:
                self._under_way.popleft().result()
            while error is None and self._synced:
                self._synced.popleft().result()
        finally:
            self._thread.shutdown(cancel_futures=True)
            self._syncing.shutdown()  # each closes its file
            if self._descriptor >= 0:
                os.close(self._descriptor)

    def file(self, place: Path, pieces: Iterator[memoryview]) -> None:
        """A new file, for this user alone."""
        first = next(pieces, memoryview(b""))
        second = next(pieces, None)
        self._do(self._begin, place, first, second is None)  # most are small
        while second is not None:
            piece, second = second, next(pieces, None)
            self._do(self._write, piece, second is None)

    def _do(self, job: Callable[..., object], *arguments: object) -> None:
        self._under_way.append(self._thread.submit(job, *arguments))
        while len(self._under_way) > AHEAD:
            self._under_way.popleft().result()

    def _begin(self, place: Path, piece: memoryview, last: bool) -> None:
        if self._failed:
            return
        self._descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        self._write(piece, last)

    def _write(self, piece: memoryview, last: bool) -> None:
        if self._failed:
            return
        try:
            while piece:
                piece = piece[os.write(self._descriptor, piece) :]
        except BaseException:
            self._failed = True  # what was handed over before anybody hears of it is not done
            raise
        if last:
            descriptor, self._descriptor = self._descriptor, -1
            self._synced.append(self._syncing.submit(_sync_and_close, descriptor))
            while len(self._synced) > AHEAD:
                self._synced.popleft().result()


def _sync_and_close(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _verify(fresh: Path, content: Content, tools: Tools, dataset: str) -> None:
    """Each file against the hashes that the server told of them, and that its WAL can be read. SourceFailed."""
    program, _ = tools.program("pg_verifybackup", int(str(content.facts["major"])), dataset)

    def wrong(_code: int, _errors: bytes) -> tuple[str, str, str]:
        return "damaged", "The files are not as the server had them.", "Restore an earlier backup, and look for why."

    with Program([program, "--exit-on-error", str(fresh)], dataset=dataset, seconds=SECONDS, trouble=wrong) as verify:
        output, buffer = verify.output(content.check), memoryview(bytearray(PIECE))
        while output(buffer):
            pass
        verify.finish(content.check)


def _recover(fresh: Path, settings: Mapping[str, str]) -> None:
    """What the server does when it starts for the first time."""
    path = fresh / "postgresql.auto.conf"
    own = without_recovery(path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else "")
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write("\n".join([own + "# For the recovery that pharmabackup has prepared.", *lines(settings), ""]))
    (fresh / "recovery.signal").touch(mode=0o600)
