"""Files: a folder and all that lies in it, or one file."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from pharmabackup.errors import InvalidInput, SourceFailed, Unsupported
from pharmabackup.patterns import compile_ancestors, compile_patterns
from pharmabackup.sources.base import Sink, Source, StrPath, View
from pharmabackup.sources.listing import WINDOWS, Listed, RootUnreadable, list_file
from pharmabackup.sources.tree import TreeDump
from pharmabackup.sources.trouble import reason
from pharmabackup.sources.vss import shadow_copy
from pharmabackup.sources.walk import Walk

Shadow = Callable[[str], AbstractContextManager[StrPath]]
"""Called with the folder, or file, when the view is taken. Entered, it gives the place where that is as it was at one
moment, with the same names, times and inode numbers, and stays so until it is left: when the dataset is committed or
has failed. SourceFailed says that it cannot."""


LOG = logging.getLogger("pharmabackup")


class Files(Source):
    """A folder, or one file, as it is while it is read: nothing is locked and nobody waits.

    So a file that is written meanwhile may be half old and half new, and has a finding. A live database has no
    business here: use `SQLite` or its like, and `exclude` its files. That is a must when this very process has
    an SQLite database open that lies in the folder: on POSIX, closing a file drops the locks that its process
    holds on it (https://sqlite.org/howtocorrupt.html, 2.2). The databases that `SQLite` sources of this process
    have open are known and spared that; others are not.

    `exclude` leaves out what matches, and does not enter such folders; `include`, when given, takes only files that
    match or lie in a folder that does (pharmabackup.patterns says what patterns are). File systems mounted in the
    folder are read too: what a user sees in a folder belongs to it, and a forgotten disk of scans is found missing
    too late. `one_file_system` names such folders and leaves out what lies in them, with an info finding. On
    Windows a mounted volume is named as a link, as junctions are: back it up as a dataset of its own.

    Names, kinds, modes, owners, times of last change, links' targets, hard links, holes and extended attributes
    are kept. FIFOs, sockets and devices are named, not read. What was not changed since the last snapshot is not
    read again: size, times of change, inode, owner, mode and number of links say so.

    `shadow`: a function that gives a snapshot of the folder while it is backed up; True: Windows' shadow copies, for
    an administrator.
    """

    kind = "files"

    def __init__(
        self,
        path: StrPath,
        *,
        name: str | None = None,
        tier: int = 3,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        one_file_system: bool = False,
        shadow: bool | Shadow = False,
    ) -> None:
        text = os.fspath(path)
        if not text or "\0" in text:
            raise InvalidInput("A path is empty or holds a zero byte.", remedy="Name the folder to back up.")
        self._path = os.path.abspath(text)
        own = os.path.basename(self._path)
        if name is None and not own:
            raise InvalidInput(f"{self._path} has no name of its own.", kind="name", remedy='Pass name="…".')
        super().__init__(own if name is None else name, tier)
        if shadow is True and not WINDOWS:
            raise Unsupported(
                "Windows' shadow copies exist on Windows only.",
                kind="operation",
                remedy="Leave out shadow=True, or give a function that makes a snapshot (docs/sources.md).",
            )
        self._shadow: Shadow | None = shadow if callable(shadow) else shadow_copy if shadow else None
        self._excluded = compile_patterns(exclude) if exclude else None
        self._included = compile_patterns(include, below=True) if include else None
        self._leads_on = compile_ancestors(include) if include else None
        self._one_file_system = one_file_system

    def location(self) -> Path:
        return Path(self._path)

    def covers(self, path: Path) -> bool:
        """By its place and the patterns; also whether it is on the same file system, where that counts."""
        own, there = os.path.normcase(self._path), os.path.normcase(path)
        if there != own and not there.startswith(os.path.join(own, "")):
            return False
        if self._excluded is not None or self._included is not None:
            parts = path.parts[len(Path(self._path).parts) :]
            leading = [os.fsencode("/".join(parts[:count])) for count in range(1, len(parts) + 1)]
            if self._excluded is not None and any(map(self._excluded, leading)):
                return False
            if self._included is not None and not self._included(leading[-1] if leading else b""):
                return False
        return not self._one_file_system or _device(path) == _device(self._path)

    def view(self, *, scratch: Path) -> AbstractContextManager[View]:  # noqa: ARG002
        return self._view()

    @contextmanager
    def _view(self) -> Iterator[View]:
        self._look(self._path)
        if self._shadow is None:
            yield _FilesView(self, self._path)
            return
        with self._snapshot(self._shadow) as place:
            self._look(place)
            yield _FilesView(self, place)

    @contextmanager
    def _snapshot(self, shadow: Shadow) -> Iterator[str]:
        """Where the hook has it. SourceFailed, whatever the hook raises; leaving it fails no backup that is whole."""
        try:
            entered = shadow(self._path)
            place = entered.__enter__()
        except SourceFailed:
            raise
        except Exception as error:
            raise self._no_snapshot(type(error).__name__) from error
        failed: BaseException | None = None
        try:
            if not isinstance(place, str | os.PathLike):
                raise self._no_snapshot("it gives no place")
            yield os.fspath(place)
        except BaseException as error:
            failed = error
            raise
        finally:
            try:
                entered.__exit__(type(failed) if failed else None, failed, failed.__traceback__ if failed else None)
            except Exception as error:  # noqa: BLE001
                if error is not failed:
                    LOG.warning("A snapshot of %s was not removed (%s).", self.name, type(error).__name__)

    def _no_snapshot(self, why: str) -> SourceFailed:
        return SourceFailed(
            f"No snapshot of {self._path} could be made ({why}).",
            kind="shadow",
            remedy="Look at the function that was given as shadow.",
            dataset=self.name,
        )

    def _look(self, path: str) -> None:
        """Whether it is there and can be read. SourceFailed."""
        try:
            status = os.stat(path)
            if stat.S_ISDIR(status.st_mode):
                os.scandir(path).close()
        except (OSError, ValueError) as error:
            raise self._failed(error) from error
        if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
            raise SourceFailed(
                f"{self._path} is neither a folder nor a file.",
                kind="not-a-file",
                remedy="Name a folder or a file.",
                dataset=self.name,
            )

    def dump(self, sink: Sink, place: str) -> None:
        """What `View.dump` does, with what lies at `place`. SourceFailed."""
        try:
            TreeDump(sink).run(self._folders(sink, place))
        except RootUnreadable as error:
            raise self._failed(error.cause) from error.cause

    def _folders(self, sink: Sink, place: str) -> Iterator[Listed]:
        if not os.path.isdir(place):
            return list_file(_extended(os.path.realpath(place)), sink)
        walk = Walk(
            _extended(place),
            sink,
            excluded=self._excluded,
            included=self._included,
            leads_on=self._leads_on,
            stay=self._one_file_system,
        )
        return walk.folders() if place == self._path else self._as_it_was(walk.folders(), sink)

    def _as_it_was(self, folders: Iterator[Listed], sink: Sink) -> Iterator[Listed]:
        """The same; a file system, or a subvolume, that is mounted in the folder is not in a snapshot of it."""
        device = _device(self._path)
        for listed in folders:
            here = os.path.join(os.fsencode(self._path), listed.path)
            if listed.path and not listed.names and not self._one_file_system and _device(here) not in (None, device):
                sink.finding(
                    "mount-not-in-snapshot",
                    listed.path,
                    "Another file system is mounted here, or a subvolume is, and the snapshot has nothing of it.",
                    "Back it up as a dataset of its own, with a snapshot of its own.",
                )
            yield listed

    def _failed(self, error: OSError | ValueError) -> SourceFailed:
        if isinstance(error, FileNotFoundError | NotADirectoryError | ValueError):
            message, kind, remedy = "does not exist", "missing", "Check its path, and whether its disk is connected."
        elif isinstance(error, PermissionError):
            message, kind = "may not be read", "permission"
            remedy = "Let the account that backs up read it, or run this as another one."
        else:
            message, kind = f"cannot be read ({reason(error)})", "tool-failed"
            remedy = "Check the disk that it is on."
        return SourceFailed(f"{self._path} {message}.", kind=kind, remedy=remedy, dataset=self.name)


class _FilesView(View):
    def __init__(self, files: Files, place: str) -> None:
        self._files = files
        self._place = place

    def dump(self, sink: Sink) -> Mapping[str, object]:
        self._files.dump(sink, self._place)
        return {}


def _device(path: StrPath | bytes) -> int | None:
    """Which file system it is on; of what is not there, nobody knows."""
    try:
        return os.lstat(path).st_dev
    except OSError:
        return None


def _extended(path: str) -> str:
    """On Windows, the form of a path that may be long, and whose names are taken as they are."""
    if not WINDOWS or path.startswith("\\\\?\\"):
        return path
    return "\\\\?\\UNC" + path[1:] if path.startswith("\\\\") else "\\\\?\\" + path
