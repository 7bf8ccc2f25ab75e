"""The folder through which a SQL Server gives its backup, and takes one; patients' data, while it is read."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pharmabackup.errors import SourceFailed
from pharmabackup.sources.base import Sink
from pharmabackup.sources.sqlserver_server import text
from pharmabackup.sources.trouble import reason

if TYPE_CHECKING:
    from pharmabackup.sources.sqlserver_server import Session

INSTANCE = "SELECT CAST(@@SERVERNAME AS nvarchar(256))"


class Staging:
    """A folder of the server's machine."""

    def __init__(self, folder: str | os.PathLike[str], database: str, dataset: str) -> None:
        self.folder = Path(os.path.abspath(folder))
        self._database = database
        self._dataset = dataset

    def look(self) -> None:
        """Whether it is there. SourceFailed."""
        if not self.folder.is_dir():
            raise self._failed("is not there")

    def file(self, session: Session) -> Path:
        """A name that nobody has, in a folder that the server sees too. What we left there before goes. SourceFailed.

        Nobody else is at such files now: one backup or restore of a database at a time.
        """
        own = f"{session.one(INSTANCE)}\0{self._database}".lower()
        prefix = f"pharmabackup-{hashlib.sha256(own.encode()).hexdigest()[:16]}-"
        probe = self.folder / f"{prefix}{secrets.token_hex(8)}.probe"
        try:
            for left in self.folder.glob(f"{prefix}*"):
                left.unlink()
            _new(probe).close()
        except OSError as error:
            raise self._failed(f"cannot be written to ({reason(error)})") from None
        try:
            session.run(f"RESTORE LABELONLY FROM DISK = {text(str(probe))}")
        except SourceFailed as error:
            if error.kind == "permission":  # it is another machine's folder, or may not be read
                raise
        finally:
            self.remove(probe)
        return self.folder / f"{prefix}{secrets.token_hex(8)}.bak"

    def remove(self, file: Path) -> None:
        """SourceFailed where it stays."""
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise self._failed(f"keeps the backup, which cannot be deleted ({reason(error)})") from None

    def write(self, file: Path, pieces: Iterable[bytes | memoryview]) -> None:
        """SourceFailed."""
        try:
            with _new(file) as to:
                for piece in pieces:
                    to.write(piece)
        except OSError as error:
            raise self._failed(f"cannot be written to ({reason(error)})") from None

    def read(self, file: Path, sink: Sink) -> tuple[int, int]:
        """Store it; (chunks, bytes). SourceFailed."""
        try:
            source = open(file, "rb", buffering=0)  # noqa: SIM115  (closed below)
        except OSError as error:
            raise self._failed(f"has the backup, which cannot be read ({reason(error)})") from None
        failed: list[OSError] = []

        def read_into(view: memoryview) -> int:
            try:
                return source.readinto(view) or 0
            except OSError as error:  # what was stored cannot be taken back: it ends early, and is refused
                failed.append(error)
                return 0

        with source:
            size = os.fstat(source.fileno()).st_size
            chunks, stored = sink.stream(read_into, fine=True)
        if failed or stored != size:
            raise self._failed("has the backup, of which a part could not be read")
        return chunks, stored

    def _failed(self, what: str) -> SourceFailed:
        return SourceFailed(
            f"The staging folder {self.folder} {what}.",
            kind="permission",
            remedy="Name a folder of the server's machine, with room for the database, that the account of the SQL "
            "Server service and this one may write to.",
            dataset=self._dataset,
        )


def _new(path: Path) -> BinaryIO:
    """For this account, and the group that the folder gives it. OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, 0o660), "wb")
