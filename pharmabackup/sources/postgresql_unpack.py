"""A base backup on its way to being a server's data folder: unpacked beside it, verified, then renamed."""

from __future__ import annotations

import errno
import io
import os
import shutil
import tarfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from pharmabackup.errors import Conflict, SourceFailed, Unsupported
from pharmabackup.sources.base import Content
from pharmabackup.sources.postgresql_tools import Tools
from pharmabackup.sources.program import Program
from pharmabackup.sources.trouble import reason
from pharmabackup.sources.wal_settings import lines, without_recovery

PIECE = 1 << 20
TAR_BUFFER = 64 << 10  # bytes; what is left of it is copied for each header
AHEAD = 16  # pieces, or beginnings or ends of files, that were read and not written
SECONDS = 24 * 3600


def refuse(target: Path, facts: Mapping[str, object], tools: Tools, dataset: str, *, overwrite: bool) -> None:
    """Whether it can be unpacked there. Conflict, Unsupported, SourceFailed."""
    version = int(str(facts.get("major", 0)))
    if not version:
        raise Unsupported("That is no backup of a whole PostgreSQL server.", remedy="Restore it to a folder.")
    _, found = tools.program("pg_verifybackup", version, dataset)
    if found != version:
        raise Unsupported(
            f"{dataset} is of PostgreSQL {version}, and only that version can start it; here is version {found}.",
            remedy=f"Install PostgreSQL {version}, or name its programs' folder as `tools`.",
        )
    fresh = _fresh(target)
    if _runs(target):
        raise Conflict(
            f"A server runs in {target}, or ended without cleaning up.",
            kind="in-use",
            remedy="Stop it; if there is none, remove postmaster.pid there.",
        )
    if fresh.exists():
        raise Conflict(
            f"A restore into {target} runs, or was killed: {fresh} is there.",
            kind="in-use",
            remedy=f"Wait for it; if none runs, remove that folder, and look for {target.name}.before-… beside it.",
        )
    if os.path.ismount(target):
        raise Conflict(
            f"{target} is where a disk is mounted, and cannot be replaced.",
            kind="target-not-empty",
            remedy="Restore into a folder in it, and have the server use that.",
        )
    if not overwrite and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Conflict(
            f"{target} is not empty and was not touched.",
            kind="target-not-empty",
            remedy="Choose another folder, or pass overwrite=True: then it is kept, renamed.",
        )
    if not target.parent.is_dir():
        raise SourceFailed(
            f"{target.parent} is not there.",
            kind="missing",
            remedy="Make that folder, for the server's account.",
            dataset=dataset,
        )
    if _administers() and os.stat(target.parent).st_uid == 0:
        raise SourceFailed(
            f"No server runs as root, and what is restored into {target.parent} would be root's.",
            kind="permission",
            remedy=f"Give that folder to the server's account, such as: chown postgres {target.parent}",
            dataset=dataset,
        )


def _fresh(target: Path) -> Path:
    """Where it is unpacked. It has one name, so that what a kill has left is seen."""
    return target.with_name(f"{target.name}.restoring")


def _administers() -> bool:
    """Whether it is restored for another account: that which has the folder's parent."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _runs(target: Path) -> bool:
    return (target / "postmaster.pid").exists()


def unpack(
    target: Path,
    content: Content,
    name: bytes,
    tools: Tools,
    dataset: str,
    *,
    settings: Mapping[str, str],
    overwrite: bool,
) -> Mapping[str, object]:
    """Make the data folder; facts. `settings`: those of a recovery when the server starts. SourceFailed."""
    refuse(target, content.facts, tools, dataset, overwrite=overwrite)
    fresh = _fresh(target)
    try:
        fresh.mkdir(mode=0o700)
    except OSError as error:
        raise _failed(error, target, dataset) from error
    try:
        try:
            files = _extract(content, name, fresh, dataset)
            _verify(fresh, content, tools, dataset)
            _recover(fresh, settings)
            _own(fresh, target.parent)
            kept = _switch(fresh, target)
        except tarfile.TarError as error:
            raise SourceFailed(
                "The backup is no whole tar file.",
                kind="damaged",
                remedy="Restore an earlier backup.",
                dataset=dataset,
            ) from error
        except OSError as error:
            raise _failed(error, target, dataset) from error
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    with suppress(OSError):  # it is where it belongs; the system keeps that by itself, a little later
        _sync(target.parent)
    facts = {"data": str(target), "files": files, "verified": "pg_verifybackup"}
    return facts | ({"replaced": kept.name} if kept is not None else {})


def _extract(content: Content, name: bytes, fresh: Path, dataset: str) -> int:
    """How many files there are, all of them safe from a power cut."""
    folders, files = [fresh], 0
    with ExitStack() as stack:
        pieces = content.read(name)
        if isinstance(pieces, Generator):
            stack.callback(pieces.close)
        stream = io.BufferedReader(_Pieces(pieces), PIECE)
        tar = stack.enter_context(tarfile.open(fileobj=stream, mode="r|", bufsize=TAR_BUFFER))
        writing = stack.enter_context(_Writing())
        for member in tar:
            content.check()
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts or not (member.isdir() or member.isfile()):
                raise SourceFailed(
                    "The backup holds something that no server's folder has.",
                    kind="damaged",
                    remedy="Restore it to a folder and look into base.tar.",
                    dataset=dataset,
                )
            place = fresh.joinpath(*path.parts)
            if member.isdir():
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
                folders.append(place)
                continue
            source = tar.extractfile(member)
            assert source is not None, "it is a file"
            with source:
                writing.file(place, iter(partial(source.read, PIECE), b""))
            files += 1
        while stream.read(PIECE):  # what fills its last block
            pass
    for folder in folders:
        _sync(folder)
    return files


class _Writing:
    """Writes files on a thread of its own, in their order: as much time goes into that as into reading them.

    What goes wrong there is raised when the next is handed over, or at the end.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pharmabackup-writing")
        self._under_way: deque[Future[object]] = deque()
        self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        try:
            while error is None and self._under_way:
                self._under_way.popleft().result()
        finally:
            self._thread.shutdown(cancel_futures=True)
            if self._descriptor >= 0:
                os.close(self._descriptor)

    def file(self, place: Path, pieces: Iterator[bytes]) -> None:
        """A new file, for this user alone, and safe from a power cut."""
        self._do(self._begin, place)
        for piece in pieces:
            self._do(self._write, piece)
        self._do(self._end)

    def _do(self, job: Callable[..., object], *arguments: object) -> None:
        self._under_way.append(self._thread.submit(job, *arguments))
        while len(self._under_way) > AHEAD:
            self._under_way.popleft().result()

    def _begin(self, place: Path) -> None:
        self._descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)

    def _write(self, piece: bytes) -> None:
        left = memoryview(piece)
        while left:
            left = left[os.write(self._descriptor, left) :]

    def _end(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _Pieces(io.RawIOBase):
    """What is read piece after piece, as a file."""

    def __init__(self, pieces: Iterator[bytes | memoryview]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, view: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        size = min(len(view), len(self._rest))
        view[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


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
        file.flush()
        os.fsync(file.fileno())
    (fresh / "recovery.signal").touch(mode=0o600)
    _sync(fresh)


def _own(fresh: Path, parent: Path) -> None:
    """An administrator restores for the account that has the folder."""
    if not _administers():
        return
    status = os.stat(parent)
    for folder, _, files in os.walk(fresh):
        for path in (folder, *(os.path.join(folder, name) for name in files)):
            os.chown(path, status.st_uid, status.st_gid)


def _switch(fresh: Path, target: Path) -> Path | None:
    """Give it its name; what had that before, if it held anything."""
    kept = None
    if target.exists():
        if _runs(target):
            raise FileExistsError(errno.EEXIST, "a server was started there", str(target))
        if any(target.iterdir()):
            kept = target.with_name(f"{target.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
            target.rename(kept)
        else:
            target.rmdir()
    try:
        fresh.rename(target)
    except OSError:
        if kept is not None:
            kept.rename(target)
        raise
    return kept


def _sync(folder: Path) -> None:
    if os.name != "posix":
        return  # Windows keeps folders by itself
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failed(error: OSError, target: Path, dataset: str) -> SourceFailed:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return SourceFailed(
        f"{target} cannot be written: {reason(error)}.",
        kind="full" if full else "permission" if isinstance(error, PermissionError) else "tool-failed",
        remedy="Free some space there." if full else "Check the folder, its disk and this user's rights.",
        dataset=dataset,
    )
