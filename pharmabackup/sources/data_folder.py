"""A folder that becomes a server's: all comes into one beside it, which takes its name when it is whole and safe."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pharmabackup.errors import Conflict, SourceFailed
from pharmabackup.sources.trouble import reason

SYNCING = 8  # files at once: a disk then makes many of them safe in one go
BATCH = 64  # files, each of which may be large


class DataFolder:
    """Where a server is restored to. `runs`: whether one does in such a folder, and `stop`: what to do then."""

    def __init__(self, path: Path, *, dataset: str, runs: Callable[[Path], bool], stop: str) -> None:
        self.path = path
        self.replaced: Path | None = None
        """What was there before, once it is restored."""
        self._dataset = dataset
        self._runs = runs
        self._stop = stop

    @property
    def _fresh(self) -> Path:
        """Where it comes together. It has one name, so that what a kill has left is seen."""
        return self.path.with_name(f"{self.path.name}.restoring")

    def refuse(self, *, overwrite: bool) -> None:
        """Whether it can be restored there. Conflict, SourceFailed."""
        path, parent = self.path, self.path.parent
        with self._told("looked into"):
            server_runs = self._runs(path)
        if server_runs:
            raise Conflict(f"A server runs in {path}.", kind="in-use", remedy=self._stop)
        if self._fresh.exists():
            raise Conflict(
                f"A restore into {path} runs, or was killed: {self._fresh} is there.",
                kind="in-use",
                remedy=f"Wait for it; if none runs, remove that folder, and look for {path.name}.before-… beside it.",
            )
        if os.path.ismount(path):
            raise Conflict(
                f"{path} is where a disk is mounted, and cannot be replaced.",
                kind="target-not-empty",
                remedy="Restore into a folder in it, and have the server use that.",
            )
        if not overwrite and path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise Conflict(
                f"{path} is not empty and was not touched.",
                kind="target-not-empty",
                remedy="Choose another folder, or pass overwrite=True: then it is kept, renamed.",
            )
        if not parent.is_dir():
            raise SourceFailed(
                f"{parent} is not there.",
                kind="missing",
                remedy="Make that folder, for the server's account.",
                dataset=self._dataset,
            )
        if _administers() and self._owner().st_uid == 0:
            raise SourceFailed(
                f"No server runs as root, and what is restored into {path} would be root's.",
                kind="permission",
                remedy=f"Make {path} as an empty folder of the server's account, or give that account {parent}.",
                dataset=self._dataset,
            )

    def _owner(self) -> os.stat_result:
        """Whose it becomes, where an administrator restores: whoever has the folder, else the one that it is in."""
        with suppress(OSError):
            status = os.stat(self.path)
            if status.st_uid != 0:
                return status
        return os.stat(self.path.parent)

    @contextmanager
    def fresh(self, look: Callable[[], None], *, overwrite: bool) -> Iterator[Path]:
        """A new folder to fill. Left without an error it is safe from a power cut, and takes its place.

        `look` is called now and then, and raises what stops it. Conflict, SourceFailed.
        """
        self.refuse(overwrite=overwrite)
        fresh = self._fresh
        with self._told("written"):
            fresh.mkdir(mode=0o700)
            made = os.lstat(fresh)
            try:
                yield fresh
                if not os.path.samestat(made, os.lstat(fresh)):
                    raise FileExistsError(errno.EEXIST, "somebody has put another folder there", str(fresh))
                if _administers():
                    _give(fresh, self._owner())
                _sync_all(fresh, look)
                self._switch(fresh)
            except _Stranded:
                raise
            except BaseException:
                shutil.rmtree(fresh, ignore_errors=True)
                raise
        with suppress(OSError):  # it is where it belongs; the system keeps that by itself, a little later
            _sync(self.path.parent)

    def _switch(self, fresh: Path) -> None:
        kept = None
        if self.path.exists():
            if self._runs(self.path):
                raise FileExistsError(errno.EEXIST, "a server was started there", str(self.path))
            if any(self.path.iterdir()):
                kept = self.path.with_name(f"{self.path.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
            elif os.name != "posix":  # elsewhere an empty folder is replaced by the rename itself
                self.path.rmdir()
        try:
            if kept is not None:
                self.path.rename(kept)
            fresh.rename(self.path)
        except BaseException:
            if kept is not None and kept.exists() and not self.path.exists():
                self._put_back(kept)
            raise
        self.replaced = kept

    def _put_back(self, kept: Path) -> None:
        try:
            kept.rename(self.path)
        except OSError:
            raise _Stranded(
                f"{self.path} was renamed to {kept.name}, and could not be renamed back; what was restored is "
                f"{self._fresh.name} beside it.",
                kind="tool-failed",
                remedy="Rename one of them by hand.",
                dataset=self._dataset,
            ) from None

    @contextmanager
    def _told(self, done: str) -> Iterator[None]:
        """What the disk reports within is SourceFailed."""
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            denied = isinstance(error, PermissionError)
            raise SourceFailed(
                f"{self.path} cannot be {done}: {reason(error)}.",
                kind="full" if full else "permission" if denied else "tool-failed",
                remedy="Free some space there." if full else "Check the folder, its disk and this user's rights.",
                dataset=self._dataset,
            ) from error


class _Stranded(SourceFailed):
    """Nothing has the name that it should: nothing is removed."""


def _sync_all(folder: Path, look: Callable[[], None]) -> None:
    """Make all that lies in it safe from a power cut."""
    folders, files = [], []
    for place, _, names in os.walk(folder):
        folders.append(Path(place))
        files += [Path(place, name) for name in names]
    with ThreadPoolExecutor(SYNCING, thread_name_prefix="pharmabackup-syncing") as threads:
        for each in (files, folders):
            for begin in range(0, len(each), BATCH):
                list(threads.map(_sync, each[begin : begin + BATCH]))
                look()


def _sync(path: Path) -> None:
    if os.name != "posix" and path.is_dir():
        return  # Windows keeps folders by itself
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _administers() -> bool:
    """Whether it is restored for another account."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _give(folder: Path, owner: os.stat_result) -> None:
    """The top comes last: until then the new owner can put nothing else into it."""
    for place, _, names in os.walk(folder, topdown=False):
        for path in (*(os.path.join(place, name) for name in names), place):
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
