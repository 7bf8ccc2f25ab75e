"""SQL over a database that lies in a backup: SQLite reads its pages through us, and fetches those that it needs.

The interface is SQLite's VFS (https://www.sqlite.org/vfs.html), by apsw. Nothing is written on disk: what sorting
needs goes into memory.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, BinaryIO
from uuid import uuid4

from pharmabackup.errors import Unsupported

if TYPE_CHECKING:
    import apsw

CACHE = 64 << 20  # bytes of pages that a connection keeps


def connect(file: BinaryIO) -> apsw.Connection:
    """A connection that can only read. It closes the file when it is closed. Unsupported; apsw.Error while it reads.

    What keeps a page from being read (Damaged, StorageFailed) is raised as itself.
    """
    try:
        import apsw
    except ImportError:
        raise Unsupported(
            "SQL in a backup needs apsw.", kind="extra-missing", remedy='Run: pip install "pharmabackup[sqlite]".'
        ) from None

    class File(apsw.VFSFile):
        def __init__(self) -> None:  # not SQLite's own file
            self._lock = threading.Lock()

        def xRead(self, amount: int, offset: int) -> bytes:
            with self._lock:
                file.seek(offset)
                return file.read(amount)

        def xFileSize(self) -> int:
            with self._lock:
                return file.seek(0, 2)

        def xClose(self) -> None:
            file.close()

        def xLock(self, level: int) -> None:
            """Nobody else is here."""

        def xUnlock(self, level: int) -> None:
            """Nobody else is here."""

        def xCheckReservedLock(self) -> bool:
            return False

        def xFileControl(self, op: int, ptr: int) -> bool:  # noqa: ARG002
            return False

        def xSectorSize(self) -> int:
            return 0

        def xDeviceCharacteristics(self) -> int:
            return apsw.SQLITE_IOCAP_IMMUTABLE

    class Backup(apsw.VFS):
        def __init__(self) -> None:
            self.name = f"pharmabackup-{uuid4().hex}"
            super().__init__(self.name, base="")

        def xOpen(self, name: object, flags: list[int]) -> apsw.VFSFile:  # noqa: ARG002
            if not flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
                raise apsw.CantOpenError  # what lies in a backup is no journal, and no file is made for sorting
            flags[1] = apsw.SQLITE_OPEN_READONLY
            return File()

        def xAccess(self, pathname: str, flags: int) -> bool:  # noqa: ARG002
            return False  # no journal lies beside it

        def xFullPathname(self, name: str) -> str:
            return name

    class Database(apsw.Connection):
        def __init__(self, vfs: Backup) -> None:
            flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
            super().__init__("file:/database?immutable=1", flags=flags, vfs=vfs.name)
            self.vfs = vfs  # it has to be there as long as this is

    connection = Database(Backup())
    connection.pragma("temp_store", "memory")
    connection.pragma("cache_size", -(CACHE >> 10))
    return connection
