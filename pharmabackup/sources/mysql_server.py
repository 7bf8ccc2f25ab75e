"""Talking to a MariaDB or MySQL server: how it is reached, by us and by its own tools, and what its errors mean.

Error texts of a server may quote rows. None is repeated: what happened is told by its number
(https://mariadb.com/kb/en/mariadb-error-code-reference/).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pharmabackup.errors import SourceFailed, Unsupported
from pharmabackup.sources.address import address, bad_address
from pharmabackup.sources.base import Served

if TYPE_CHECKING:
    import pymysql

    Connection = pymysql.connections.Connection[pymysql.cursors.Cursor]

CONNECT_S = 15
LOCK_WAIT_S = 60  # for a table that somebody reads or changes
DAYS_S = 7 * 86_400  # connections wait for hours beside a dump or restore
PORT = 3306
SCHEMES = ("mysql", "mariadb")
OPTIONS = ("socket", "ssl-ca", "ssl-cert", "ssl-key")
SYSTEM = frozenset({"mysql", "information_schema", "performance_schema", "sys"})
SOCKETS = ("/run/mysqld/mysqld.sock", "/var/lib/mysql/mysql.sock", "/tmp/mysql.sock")  # noqa: S108

LOGIN = ("login", "does not let this user in", "Check user, password, host, and the user's rights.")
MISSING = ("missing", "does not exist on its server", "Check its name.")
RIGHTS = ("permission", "may not be read, or not be changed, by this user", "Use another user, or grant that.")
GONE = ("unreachable", "broke the connection", "Check that its server runs, and the network.")
LOCKED = ("locked", "is locked by another program", "Let that program finish, or close it.")
DEFINITION = (
    "changed",
    "has a table that somebody emptied or changed in shape while it was read",
    "Back up again when that is done.",
)
# By number: kind, what happened, remedy.
ERRORS: Mapping[int, tuple[str, str, str]] = {
    1021: ("full", "has no room on its server", "Free some space there."),
    1114: ("full", "has no room on its server", "Free some space there, or raise the limit of its tablespace."),
    1040: ("busy", "is refused by its server, which has no connection left", "Try again later."),
    1203: ("busy", "is refused by its server, which has no connection left", "Try again later."),
    1044: RIGHTS, 1142: RIGHTS, 1143: RIGHTS, 1227: RIGHTS, 1370: RIGHTS, 1419: RIGHTS,
    1045: LOGIN, 1698: LOGIN, 1130: LOGIN, 1820: LOGIN, 1862: LOGIN, 2059: LOGIN,
    1049: MISSING,
    1146: ("table-missing", "lacks a table that is to be read", "Check whether it is the right database."),
    1205: LOCKED, 1213: LOCKED,
    1412: DEFINITION,
    1030: ("damaged", "cannot be read by its server", "Look into the server's log, and restore an earlier backup."),
    1034: ("damaged", "is damaged", "Look into the server's log, and restore an earlier backup."),
    1273: ("missing", "is sorted by a collation that its server does not know", "Restore into a newer server."),
    2003: ("unreachable", "cannot be reached", "Check that its server runs, and its host, port and firewall."),
    1053: GONE, 2006: GONE, 2013: GONE, 0: GONE,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Version:
    """A server's or a program's. `mariadb`: it is MariaDB's, whose numbers are others than MySQL's."""

    mariadb: bool
    major: int
    minor: int

    @property
    def product(self) -> str:
        return "MariaDB" if self.mariadb else "MySQL"

    @property
    def numbers(self) -> tuple[int, int]:
        return self.major, self.minor

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


class Server:
    """A database, as `url` names it, or the `whole` server. InvalidInput."""

    def __init__(self, url: str, password: str | None, *, whole: bool = False) -> None:
        found = address(url, schemes=SCHEMES, product="MariaDB or MySQL", kept="MYSQL_PWD", whole=whole)
        if unknown := sorted(set(found.options) - set(OPTIONS)):
            raise bad_address(f"{unknown[0]} is no option that is passed on", SCHEMES[0], "MariaDB or MySQL")
        self.database = found.database
        self._user = found.user
        self._password = password
        self._options = found.options
        self._host, self._port = found.host or "localhost", found.port
        # "localhost" is a socket to the clients of MySQL, unless a port is given.
        wanted = sys.platform != "win32" and self._host == "localhost" and self._port is None
        known = next(filter(os.path.exists, SOCKETS), None) if wanted else None
        self._socket = found.options.get("socket") or known

    def arguments(self, *, mariadb: bool) -> list[str]:
        """For the server's clients: where it is, and how to talk. Nothing in it is secret."""
        return [*self.reached(mariadb=mariadb), "--default-character-set=utf8mb4", "--max-allowed-packet=1G"]

    def reached(self, *, mariadb: bool) -> list[str]:
        """For any tool of it: where it is.

        Option files are not read: one of them may hold `where`, `databases` or `force`.
        """
        where = (
            [f"--socket={self._socket}", "--protocol=socket"]
            if self._socket
            else [f"--host={self._host}", f"--port={self._port or PORT}", "--protocol=tcp"]
        )
        if self._user is not None:
            where.append(f"--user={self._user}")
        secure = [f"--{name}={self._options[name]}" for name in OPTIONS[1:] if name in self._options]
        if "ssl-ca" in self._options:
            secure += ["--ssl", "--ssl-verify-server-cert"] if mariadb else ["--ssl-mode=VERIFY_IDENTITY"]
        return ["--no-defaults", *where, *secure]

    def environment(self) -> dict[str, str]:
        """For these tools: what must not be on a command line, and messages in one language."""
        options = {"MYSQL_TEST_LOGIN_FILE": os.devnull}  # else MySQL's read ~/.mylogin.cnf
        return {"LC_ALL": "C"} | options | ({} if self._password is None else {"MYSQL_PWD": self._password})

    def served(self, dataset: str, *, whole: bool = False) -> Served:
        """The server and its databases, without its own; others only as far as this user sees them. SourceFailed."""
        with self.connected(dataset, None) as connection:
            port = int(one(connection, "SELECT @@port"))
            names = [str(name) for (name,) in run(connection, "SHOW DATABASES")]
        return Served(
            product="mysql",
            host="localhost" if self._socket else self._host,
            port=port,
            databases=tuple(sorted(name for name in names if name.lower() not in SYSTEM)),
            database=None if whole else self.database,
        )

    @contextmanager
    def connected(self, dataset: str, database: str | None = "") -> Iterator[Connection]:
        """A connection, each statement its own transaction; None: to no database. What fails is SourceFailed."""
        with told(dataset):
            connection = self._connect(self.database if database == "" else database, dataset)
            try:
                run(
                    connection,
                    f"SET SESSION wait_timeout = {DAYS_S}, lock_wait_timeout = {LOCK_WAIT_S}, sql_mode = ''",
                )
                if version(connection).mariadb:
                    run(connection, "SET SESSION max_statement_time = 0")
                yield connection
            finally:
                with suppress(Exception):  # what failed before is told
                    connection.close()

    def _connect(self, database: str | None, dataset: str) -> Connection:
        try:
            import pymysql
        except ImportError:
            raise Unsupported(
                "Backing up MariaDB or MySQL needs PyMySQL.", remedy='Run: pip install "pharmabackup[mysql]".'
            ) from None
        given: dict[str, Any] = {}
        if "ssl-ca" in self._options:
            given |= {"ssl_verify_cert": True, "ssl_verify_identity": True}
        given |= {name.replace("-", "_"): self._options[name] for name in OPTIONS[1:] if name in self._options}
        given |= {"unix_socket": self._socket} if self._socket else {"host": self._host, "port": self._port or PORT}
        if self._user is not None:
            given["user"] = self._user
        password = self._password if self._password is not None else os.environ.get("MYSQL_PWD")
        if password is not None:
            given["password"] = password
        try:
            return pymysql.connect(
                database=database, charset="utf8mb4", autocommit=True, connect_timeout=CONNECT_S, **given
            )
        except (OSError, ValueError, RuntimeError):  # a certificate that is not there, a method of login it lacks
            raise SourceFailed(
                f"The database of {dataset!r} cannot be connected to: a certificate cannot be read, or its way of "
                "login is none that this program knows.",
                kind="login",
                remedy="Check ssl-ca, ssl-cert and ssl-key, and how the server lets this user in.",
                dataset=dataset,
            ) from None


@contextmanager
def told(dataset: str) -> Iterator[None]:
    """What a server reports within is told as SourceFailed."""
    try:
        import pymysql
    except ImportError:
        yield  # whoever connects says so
        return
    try:
        yield
    except pymysql.MySQLError as error:
        code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
        raise failed(code, dataset) from None


def failed(code: int, dataset: str) -> SourceFailed:
    """What a server, or the way to it, reported with this number."""
    kind, what, remedy = ERRORS.get(
        code, ("tool-failed", "could not be read or written", "Look into the server's log.")
    )
    said = f" ({code})" if code else ""
    return SourceFailed(f"The database of {dataset!r} {what}{said}.", kind=kind, remedy=remedy, dataset=dataset)


# ---------------------------------------------------------------- questions


def run(connection: Connection, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """All rows of an answer; none where there is no answer."""
    with connection.cursor() as cursor:
        cursor.execute(statement, values or None)
        return list(cursor.fetchall())


def one(connection: Connection, query: str, *values: object) -> Any:
    """The only value of an answer."""
    return run(connection, query, *values)[0][0]


def version(connection: Connection) -> Version:
    """The server's."""
    said = str(one(connection, "SELECT version()"))
    numbers = re.findall(r"\d+", said)
    return Version("mariadb" in said.lower(), int(numbers[0]), int(numbers[1]))


def quoted(*names: str) -> str:
    """A name, with the database before it or not."""
    return ".".join("`" + name.replace("`", "``") + "`" for name in names)


def exists(connection: Connection, database: str) -> bool:
    return bool(run(connection, "SELECT 1 FROM information_schema.schemata WHERE schema_name = %s", database))


TABLES = (
    "SELECT table_name FROM information_schema.tables WHERE table_schema = %s AND table_type {} 'VIEW' ORDER BY 1"
)


def tables(connection: Connection, database: str) -> list[str]:
    """Tables and sequences."""
    return [str(name) for (name,) in run(connection, TABLES.format("<>"), database)]


def views(connection: Connection, database: str) -> list[str]:
    return [str(name) for (name,) in run(connection, TABLES.format("="), database)]


def count_rows(connection: Connection, database: str, names: Iterable[str]) -> dict[str, int]:
    """By table."""
    return {
        name: int(one(connection, f"SELECT count(*) FROM {quoted(database, name)}"))  # noqa: S608
        for name in names
    }
