"""What a PostgreSQL server may let go of: a mark for each file of its log that is safe.

`spool/repository` says whose it is: what is safe in one repository is not in another. In `spool/SYSTEM`, NAME is a
mark, as `wal_command` compares it; that of a history file has its text below. A mark that is old goes, and leaves a
line in `archived`, by which another file of that name is known; `runs` are all segments that ever were safe. All are
on the disk before the server sees them, or a power cut could leave an empty mark.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from pharmabackup.errors import SourceFailed
from pharmabackup.sources import wal_command, wal_names
from pharmabackup.sources.trouble import reason

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
DIGEST = 64  # hexadecimal digits


class Marks:
    """Those of one server."""

    def __init__(self, folder: str, system: str) -> None:
        self.system = system
        self._folder = os.path.join(folder, system)
        self._archived = os.path.join(self._folder, "archived")
        self._runs = os.path.join(self._folder, "runs")
        self._old: dict[str, str] | None = None  # digests of files whose marks have gone

    def names(self) -> dict[str, float]:
        """Of which files there are marks, and since when."""
        try:
            with os.scandir(self._folder) as entries:
                return {one.name: one.stat().st_mtime for one in entries if wal_names.FILE.fullmatch(one.name)}
        except FileNotFoundError:
            return {}

    def fits(self, name: str, status: os.stat_result) -> bool:
        """Whether it is the very file that is safe. A mark that cannot be read proves nothing."""
        line, newline, _ = self._read(name).partition("\n")
        digest = line.partition(" ")[0]
        return len(digest) == DIGEST and line + newline == wal_command.mark(digest, status)

    def digest(self, name: str) -> str | None:
        """The SHA-256 of the file of that name that is or was safe, as far as it is known."""
        found = self._read(name).partition("\n")[0].partition(" ")[0]
        if len(found) == DIGEST:
            return found
        if self._old is None:
            lines = (line.partition(" ") for line in self._lines(self._archived))
            self._old = {known: digest for known, _, digest in lines if len(digest) == DIGEST}
        return self._old.get(name)

    def history(self, name: str) -> str:
        """The text of a history file that is safe."""
        return self._read(name).partition("\n")[2]

    def runs(self) -> list[wal_names.Run]:
        """All segments that ever were safe."""
        lines = (line.split() for line in self._lines(self._runs))
        return [(words[0], words[1]) for words in lines if len(words) == 2 and all(map(wal_names.is_segment, words))]

    def note(self, name: str, mark: str, history: str) -> None:
        write(os.path.join(self._folder, name), mark + history)

    def note_runs(self, runs: Iterable[wal_names.Run]) -> None:
        write(self._runs, "".join(f"{first} {last}\n" for first, last in runs))

    def forget(self, names: Iterable[str]) -> None:
        """They stay known by their digests, which are safe before the marks go."""
        gone = {name: digest for name in names if (digest := self.digest(name))}
        if not gone:
            return
        with open(self._archived, "a", encoding="utf-8", newline="\n") as file:
            file.write("\n" + "".join(f"{name} {digest}\n" for name, digest in gone.items()))  # one may be torn
            file.flush()
            os.fsync(file.fileno())
        for name in gone:
            with suppress(FileNotFoundError):  # another process does the same
                os.unlink(os.path.join(self._folder, name))

    def _read(self, name: str) -> str:
        try:
            with open(os.path.join(self._folder, name), encoding="utf-8", errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    @staticmethod
    def _lines(path: str) -> Iterator[str]:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                for line in file:
                    yield line.rstrip("\n")
        except FileNotFoundError:
            return


class Spool:
    def __init__(self, folder: str, data: str, dataset: str) -> None:
        self.folder = folder
        self._data = data
        self._dataset = dataset
        self._owner = os.path.join(folder, "repository")

    def marks(self) -> Marks:
        """Those of the server whose data folder it is now. OSError."""
        return Marks(self.folder, wal_command.system(self._data))

    def make(self) -> None:
        """OSError; SourceFailed where somebody else could write into it, and have the server lose its log."""
        os.makedirs(os.path.dirname(self.folder), exist_ok=True)
        for folder in (self.folder, os.path.join(self.folder, wal_command.system(self._data))):
            if not os.path.isdir(folder):
                os.mkdir(folder, 0o755)
            status = os.stat(folder)
            if os.name == "posix" and (status.st_mode & OTHERS_WRITE or status.st_uid not in (0, os.geteuid())):
                raise SourceFailed(
                    f"Others can write into {folder}, and have the server throw away its log.",
                    kind="permission",
                    remedy="Let it be this account's, and run: chmod go-w on it.",
                    dataset=self._dataset,
                )

    def check(self, repository: str) -> None:
        """Whether what is noted here is of that repository and dataset. OSError; SourceFailed where it is not."""
        try:
            with open(self._owner, encoding="utf-8") as file:
                owner = file.read()
        except FileNotFoundError:
            return
        if owner and owner != self._owned(repository):
            raise SourceFailed(
                f"What is noted in {self.folder} is safe in another repository, or in another dataset.",
                kind="conflict",
                remedy="Give each a spool of its own.",
                dataset=self._dataset,
            )

    def own(self, repository: str) -> None:
        if not os.path.exists(self._owner):
            write(self._owner, self._owned(repository))

    def _owned(self, repository: str) -> str:
        return f"{repository} {self._dataset}\n"

    @contextmanager
    def told(self) -> Iterator[None]:
        """What goes wrong with the server's folder, or with this one, is told as SourceFailed."""
        try:
            yield
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> SourceFailed:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            what, kind, remedy = "is not there", "missing", "Check that it is the data folder of a PostgreSQL server."
        elif isinstance(error, PermissionError):
            what, kind = "may not be read or written", "permission"
            remedy = "Run this as the server's account, which also has to own the spool."
        else:
            what, kind, remedy = f"cannot be used ({reason(error)})", "tool-failed", "Check the disk that it is on."
        where = error.filename or self.folder
        return SourceFailed(f"{where} {what}.", kind=kind, remedy=remedy, dataset=self._dataset)


def write(path: str, text: str) -> None:
    """Whole, and safe from a power cut, before anybody sees it; the server's account can read it."""
    fresh = f"{path}.{os.urandom(4).hex()}"
    with open(fresh, "x", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(fresh, 0o644)
    os.replace(fresh, path)
    if os.name == "posix":
        folder = os.open(os.path.dirname(path), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
