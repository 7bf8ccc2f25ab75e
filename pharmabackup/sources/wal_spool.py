"""What a PostgreSQL server may let go of: a mark for each file of its log that is safe.

`spool/repository` says whose it is: what is safe in one repository is not in another. `spool/SYSTEM/NAME` is a mark,
as `wal_command` compares it; that of a history file has its text below. Marks are on the disk before the server sees
them, or a power cut could leave an empty one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from pharmabackup.errors import SourceFailed
from pharmabackup.sources import wal_command, wal_names
from pharmabackup.sources.trouble import reason

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Spool:
    def __init__(self, folder: str, data: str, dataset: str) -> None:
        self.folder = folder
        self._data = data
        self._dataset = dataset
        self._owner = os.path.join(folder, "repository")

    def system(self) -> str:
        return wal_command.system(self._data)

    def _marked(self) -> str:
        """Where the marks are; of another cluster, they would be others'."""
        return os.path.join(self.folder, self.system())

    def make(self) -> None:
        """OSError; SourceFailed where somebody else could write into it, and have the server lose its log."""
        os.makedirs(self._marked(), mode=0o755, exist_ok=True)
        if os.name == "posix" and os.stat(self.folder).st_mode & OTHERS_WRITE:
            raise SourceFailed(
                f"Others can write into {self.folder}, and have the server throw away its log.",
                kind="permission",
                remedy=f"Run: chmod go-w {self.folder}",
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

    def _owned(self, repository: str) -> str:
        return f"{repository} {self._dataset}\n"

    def marks(self) -> dict[str, float]:
        """What is archived, as far as it is remembered here, and since when."""
        try:
            with os.scandir(self._marked()) as entries:
                return {
                    entry.name: entry.stat().st_mtime for entry in entries if wal_names.FILE.fullmatch(entry.name)
                }
        except FileNotFoundError:
            return {}

    def fits(self, name: str, status: os.stat_result) -> bool:
        """Whether it is the very file that is safe. One that cannot be read proves nothing."""
        digest = self.digest(name)
        return digest is not None and self._line(name) == wal_command.mark(digest, status)

    def digest(self, name: str) -> str | None:
        """The SHA-256 of the file of that name that is safe, if there is one."""
        found = self._line(name).partition(" ")[0]
        return found if len(found) == 64 else None

    def history(self, name: str) -> str:
        """The text of a history file that is safe."""
        return self._read(name).partition("\n")[2]

    def _line(self, name: str) -> str:
        line, newline, _ = self._read(name).partition("\n")
        return line + newline

    def _read(self, name: str) -> str:
        try:
            with open(os.path.join(self._marked(), name), encoding="utf-8", errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    # ------------------------------------------------------------ changing it

    def own(self, repository: str) -> None:
        self._write(self._owner, self._owned(repository))

    def note(self, name: str, mark: str, history: str) -> None:
        self._write(os.path.join(self._marked(), name), mark + history)

    def forget(self, name: str) -> None:
        os.unlink(os.path.join(self._marked(), name))

    @staticmethod
    def _write(path: str, text: str) -> None:
        fresh = f"{path}.{os.urandom(4).hex()}"
        with open(fresh, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(fresh, 0o644)  # the server's account reads it
        os.replace(fresh, path)
        if os.name == "posix":
            folder = os.open(os.path.dirname(path), os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    # ------------------------------------------------------------

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
