"""Talking to a Microsoft SQL Server, by pymssql; and what its errors mean.

Error texts of a server may quote rows. None is repeated: what happened is told by its number
(https://learn.microsoft.com/sql/relational-databases/errors-events/database-engine-events-and-errors).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from pharmabackup.errors import InvalidInput, SourceFailed, Unsupported

if TYPE_CHECKING:
    import pymssql

    Connection = pymssql.Connection

LOGIN_S = 15
LOOK_EVERY_S = 0.2
NAME_MAX = 128  # characters of a database's name
SYSTEM = frozenset({"master", "model", "msdb", "tempdb"})

LOGIN = ("login", "is not open to this user", "Check user and password, and the rights of its login.")
RIGHTS = (
    "permission",
    "may not be backed up or restored by this user",
    "Make it a member of db_backupoperator to back up, and of dbcreator to restore.",
)
STAGING = (
    "permission",
    "could not be written to, or read from, the staging folder",
    "Let the account of the SQL Server service, and this one, write there; it is a folder of the server's machine.",
)
IN_USE = ("in-use", "is in use", "Let other programs close it, or restore under another name.")
FULL = ("full", "has no room on its server's disk", "Free some space there.")
LOST = ("unreachable", "lost its server", "Check that it runs, and the network.")
UNREACHABLE = (
    "unreachable",
    "is on a server that cannot be reached",
    "Check that it runs, that its TCP/IP is on (SQL Server Configuration Manager), its name and port.",
)
DAMAGED = ("damaged", "has pages or a backup that are damaged", "Look into the server's log, and run DBCC CHECKDB.")
# By number: kind, what happened, remedy.
ERRORS: Mapping[int, tuple[str, str, str]] = {
    18456: LOGIN, 18452: LOGIN, 18470: LOGIN, 18488: LOGIN, 4060: LOGIN, 916: LOGIN,
    262: RIGHTS, 229: RIGHTS, 297: RIGHTS, 15247: RIGHTS, 3110: RIGHTS,
    911: ("missing", "does not exist on its server", "Check its name."),
    208: ("table-missing", "lacks a table that is to be counted", "Check its name; write schema.table."),
    927: ("in-use", "is being restored", "Wait until that has ended."),
    942: ("in-use", "is offline", "Bring it online."),
    3101: IN_USE, 5030: IN_USE, 5061: IN_USE, 5064: IN_USE, 5070: IN_USE,
    3201: STAGING, 3202: STAGING,
    300: ("permission", "is on a server that does not tell this user so", "GRANT VIEW SERVER STATE to it."),
    1827: ("full", "is larger than this edition of SQL Server allows", "Restore into another edition."),
    9002: ("full", "has a log that is full", "Back up its log, or give it more room."),
    1105: FULL, 3257: FULL,
    3169: ("newer", "is of a newer SQL Server", "Restore into that version or a newer one."),
    33111: ("missing", "is encrypted by a certificate that its server lacks", "Restore that certificate first."),
    3043: DAMAGED, 3189: DAMAGED, 3203: DAMAGED, 3183: DAMAGED, 3241: DAMAGED, 3242: DAMAGED,
    823: DAMAGED, 824: DAMAGED, 8939: DAMAGED,
    20002: UNREACHABLE, 20009: UNREACHABLE,
    20003: ("unreachable", "is on a server that does not answer", "Check that it runs, and the network."),
    20004: LOST, 20006: LOST, 20047: LOST,
}  # fmt: skip


DAMAGED_AT_ALL = 8939  # of the many numbers that DBCC CHECKDB reports


class Server:
    """A server and how it is entered: by user and password, or as the Windows account that this runs as."""

    def __init__(self, server: str, user: str | None, password: str | None) -> None:
        if not server or "\0" in server or ";" in server:
            raise InvalidInput("That is no name of a SQL Server.", remedy='Write ".", "HOST", "HOST\\INSTANCE".')
        if password is not None and user is None:
            raise InvalidInput("A password needs a user.", remedy="Give both, or neither for the Windows account.")
        host, _, port = server.partition(",")
        self.host = "localhost" if host in (".", "(local)") else host.replace(".\\", "localhost\\", 1)
        self._port = port.strip()
        self._user = user
        self._password = password

    @contextmanager
    def connected(self, dataset: str) -> Iterator[Session]:
        """A session in no database, each statement its own transaction. SourceFailed."""
        try:
            import pymssql
        except ImportError:
            raise Unsupported(
                "Backing up SQL Server needs pymssql.",
                kind="extra-missing",
                remedy='Run: pip install "pharmabackup[sqlserver]".',
            ) from None
        given: dict[str, Any] = {"port": self._port} if self._port else {}
        password = self._password if self._password is not None else os.environ.get("SQLCMDPASSWORD")
        if self._user is not None:
            given |= {"user": self._user, "password": password or ""}
        with _told(dataset, pymssql.Error):
            connection = pymssql.connect(
                self.host, database="master", autocommit=True, login_timeout=LOGIN_S, appname="pharmabackup", **given
            )
        try:
            yield Session(connection, dataset, pymssql.Error)
        finally:
            with suppress(Exception):  # what failed before is told
                connection.close()

    def waited_for(self, dataset: str, statement: str, look: Callable[[], None]) -> list[tuple[Any, ...]]:
        """The rows of what takes long; `look` may raise what stops it, and the server is told to. SourceFailed."""
        with self.connected(dataset) as session:
            number = int(session.one("SELECT @@SPID"))
            with ThreadPoolExecutor(1, thread_name_prefix="pharmabackup-sqlserver") as thread:
                running = thread.submit(session.run, statement)
                try:
                    while not running.done():
                        wait([running], LOOK_EVERY_S)
                        look()
                except BaseException:
                    if not running.done():  # who may not do this waits for its end
                        with suppress(Exception), self.connected(dataset) as other:
                            other.run(f"KILL {number}")
                    raise
            return running.result()


class Session:
    """One connection. What the server reports is SourceFailed."""

    def __init__(self, connection: Connection, dataset: str, errors: type[Exception]) -> None:
        self._connection = connection
        self._dataset = dataset
        self._errors = errors

    def run(self, statement: str, *values: str) -> list[tuple[Any, ...]]:
        """All rows of the last answer that has some. It goes on until all of its answers were asked for."""
        rows: list[tuple[Any, ...]] = []
        with _told(self._dataset, self._errors), self._connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            while True:
                if cursor.description is not None:
                    rows = list(cursor.fetchall())
                if not cursor.nextset():
                    break
        return rows

    def one(self, query: str, *values: str) -> Any:
        """The only value of an answer; None where there is none."""
        rows = self.run(query, *values)
        return rows[0][0] if rows else None


@contextmanager
def _told(dataset: str, errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        first = error.args[0] if error.args else 0
        number = first[0] if isinstance(first, tuple) and first else first
        raise failed(number if isinstance(number, int) else 0, dataset) from None


def failed(number: int, dataset: str) -> SourceFailed:
    """What a server, or the way to it, reported with this number."""
    kind, what, remedy = ERRORS.get(
        number, ("tool-failed", "could not be backed up or restored", "Look into the server's log.")
    )
    said = f" ({number})" if number else ""
    return SourceFailed(f"The database of {dataset!r} {what}{said}.", kind=kind, remedy=remedy, dataset=dataset)


def quoted(name: str) -> str:
    """A name."""
    return "[" + name.replace("]", "]]") + "]"


def text(value: str) -> str:
    """A text, for statements that take no values beside them."""
    return "N'" + value.replace("'", "''") + "'"
