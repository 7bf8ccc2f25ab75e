"""Talking to a PostgreSQL server: how it is reached, by us and by its own tools, and what its errors mean.

Error texts of a server may quote rows. None is repeated: what happened is told by its SQLSTATE
(https://www.postgresql.org/docs/current/errcodes-appendix.html), and where there is none, by a few known words.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pharmabackup.errors import SourceFailed, Unsupported
from pharmabackup.sources.address import address, bad_address
from pharmabackup.sources.base import Served

if TYPE_CHECKING:
    import psycopg

    Connection = psycopg.Connection[tuple[Any, ...]]

CONNECT_S = 15
MAINTENANCE = ("postgres", "template1")  # databases that a server has, to be connected to while others are made
# Connections wait for hours beside a dump or restore. What lies between must not take them for dead.
KEEPALIVES = {"keepalives": 1, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
# No limit of the server's or of the user's ends what takes its time; by the version that has it.
LIMITS = {
    "idle_in_transaction_session_timeout": 0,
    "idle_session_timeout": 14,
    "transaction_timeout": 17,
}
# What may stand behind the ? of a URL, by libpq's names, and the variable by which its tools are told
# (https://www.postgresql.org/docs/current/libpq-envars.html).
OPTIONS = {
    "channel_binding": "PGCHANNELBINDING",
    "gssencmode": "PGGSSENCMODE",
    "krbsrvname": "PGKRBSRVNAME",
    "passfile": "PGPASSFILE",
    "sslcert": "PGSSLCERT",
    "sslcrl": "PGSSLCRL",
    "sslkey": "PGSSLKEY",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
}
SCHEMES = ("postgresql", "postgres")
DATABASES = "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> ALL(%s) ORDER BY 1"

UNREACHABLE = ("unreachable", "cannot be reached", "Check that PostgreSQL runs, and its host, port and firewall.")
LOGIN = ("login", "does not let this user in", "Check user, password, the database's name, and pg_hba.conf.")
# By SQLSTATE or its class: kind, what happened, remedy.
STATES: Mapping[str, tuple[str, str, str]] = {
    "28": LOGIN,
    "3D": ("missing", "does not exist on its server", "Check its name."),
    "42501": ("permission", "may not be read, or not be changed, by this user", "Use its owner, or grant that."),
    "42P01": ("table-missing", "lacks a table that is to be counted", "Check whether it is the right database."),
    "42704": (
        "missing",
        "needs something that its server does not have",
        "Create it there, or restore without roles.",
    ),
    "53100": ("full", "has no room on its server", "Free some space there."),
    "53": ("busy", "is refused by its server, which is short of connections or memory", "Try again later."),
    "55006": ("in-use", "is in use", "Let other programs close it, or restore under another name."),
    "55": ("locked", "is locked by another program", "Let that program finish, or close it."),
    "57014": ("cancelled", "was not waited for: somebody or a limit of the server ended that", "Raise that limit."),
    "57": ("unreachable", "was shut down, or broke the connection", "Wait until its server runs again."),
    "08": ("unreachable", "broke the connection", "Check that PostgreSQL runs, and the network."),
    "XX": ("damaged", "is damaged", "Look into the server's log, and restore an earlier backup."),
}
# Whoever was not let in learns no SQLSTATE. FATAL is FATAL in most languages; the rest is English.
REFUSALS = (
    ("does not exist", STATES["3D"], "database"),
    ("too many", STATES["53"], ""),
    ("remaining connection slots", STATES["53"], ""),
    ("starting up", STATES["57"], ""),
    ("shutting down", STATES["57"], ""),
    ("", LOGIN, ""),
)


class Server:
    """A database, as `url` names it. InvalidInput."""

    def __init__(self, url: str, password: str | None) -> None:
        found = address(url, schemes=SCHEMES, product="PostgreSQL", kept="a password file (~/.pgpass)")
        options = found.options
        host, user = options.pop("host", None) or found.host, options.pop("user", None) or found.user
        given = {"host": host, "port": options.pop("port", None) or found.port, "user": user}
        if unknown := sorted(set(options) - set(OPTIONS)):
            raise bad_address(f"{unknown[0]} is no option that is passed on", SCHEMES[0], "PostgreSQL")
        self.database = found.database
        self._given = {name: str(value) for name, value in given.items() if value} | options
        self._password = password
        self._beside: str | None = None  # the database that this user may connect to while others are made

    def environment(self) -> dict[str, str]:
        """For the server's own tools: what must not be on a command line, and messages in one language."""
        names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER"} | OPTIONS
        found = {names[name]: value for name, value in self._given.items()}
        if self._password is not None:
            found["PGPASSWORD"] = self._password
        return found | {"PGCONNECT_TIMEOUT": str(CONNECT_S), "LC_ALL": "C", "PGAPPNAME": "pharmabackup"}

    def served(self, dataset: str, *, whole: bool = False) -> Served:
        """The server and its databases, without those that PostgreSQL brings itself. SourceFailed."""
        with self.connected(dataset) as connection:
            port = int(one(connection, "SELECT current_setting('port')")[0])
            names = connection.execute(DATABASES, [list(MAINTENANCE)]).fetchall()
        return Served(
            product="postgresql",
            host=self._given.get("host") or os.environ.get("PGHOST") or "localhost",
            port=port,
            databases=tuple(str(name) for (name,) in names),
            database=None if whole else self.database,
        )

    @contextmanager
    def connected(self, dataset: str, database: str | None = None) -> Iterator[Connection]:
        """A connection, each statement its own transaction. What fails within is SourceFailed, closing never."""
        with told(dataset):
            connection = self._connect(database or self.database)
            try:
                connection.execute("SET statement_timeout = 0")
                version = major(connection)
                for name, since in LIMITS.items():
                    if version >= since:
                        connection.execute(f"SET {name} = 0")
                connection.execute("SET row_security = off")  # or there would be rows missing without a word
                connection.execute("SET datestyle = 'ISO, YMD'")
                yield connection
            finally:
                connection.close()

    @contextmanager
    def beside(self, dataset: str) -> Iterator[Connection]:
        """A connection to another database of the server, from which this one can be made and renamed."""
        if self._beside is None:
            first, other = MAINTENANCE
            try:
                with self.connected(dataset, first):
                    self._beside = first
            except SourceFailed as error:
                if error.kind not in ("missing", "permission", "login"):
                    raise
                self._beside = other
        with self.connected(dataset, self._beside) as connection:
            yield connection

    def _connect(self, database: str) -> Connection:
        try:
            import psycopg
        except ImportError:
            raise Unsupported(
                "Backing up PostgreSQL needs psycopg.", remedy='Run: pip install "pharmabackup[postgresql]".'
            ) from None
        return psycopg.connect(
            dbname=database,
            password=self._password,
            connect_timeout=CONNECT_S,
            application_name="pharmabackup",
            client_encoding="utf8",  # a database that has none would give bytes
            autocommit=True,
            **KEEPALIVES,  # type: ignore[arg-type]
            **self._given,  # type: ignore[arg-type]
        )

    def named(self, database: str | None = None) -> str:
        """The argument that names a database, even if there is a = in its name."""
        quoted = (database or self.database).replace("\\", "\\\\").replace("'", "\\'")
        return f"--dbname=dbname='{quoted}'"


@contextmanager
def told(dataset: str) -> Iterator[None]:
    """What a server reports within is told as SourceFailed."""
    try:
        import psycopg
    except ImportError:
        yield  # whoever connects says so
        return
    try:
        yield
    except psycopg.Error as error:
        raise failed(error.sqlstate, dataset, str(error)) from None


def failed(state: str | None, dataset: str, text: str = "") -> SourceFailed:
    """What a server or the way to it reported. Of `text` only known words count, where there is no state."""
    if state is None and "FATAL" in text:
        known = next(found for sign, found, other in REFUSALS if sign in text and other in text)
    elif state is None:
        known = UNREACHABLE
    else:
        known = STATES.get(state) or STATES.get(state[:2]) or (
            "tool-failed", "could not be read or written", "Look into the server's log.",
        )  # fmt: skip
    kind, what, remedy = known
    said = "" if state is None else f" ({state})"
    return SourceFailed(f"The database of {dataset!r} {what}{said}.", kind=kind, remedy=remedy, dataset=dataset)


# ---------------------------------------------------------------- questions


def one(connection: Connection, query: Any, *values: object) -> tuple[Any, ...]:
    """The only row of an answer."""
    row = connection.execute(query, values or None).fetchone()
    assert row is not None, "these questions have answers"
    return row


def major(connection: Connection) -> int:
    """The server's major version."""
    return int(one(connection, "SELECT current_setting('server_version_num')::int")[0]) // 10_000


COLLATION = ("encoding", "collation", "character_types", "provider", "locale")
OF_DATABASE = "FROM pg_database WHERE datname = current_database()"
LOCALE = "SELECT pg_encoding_to_char(encoding), datcollate, datctype, "


def collation(connection: Connection) -> dict[str, str]:
    """How this database sorts, and which letters it knows. `locale`: where that is not the C library's."""
    version = major(connection)
    if version < 15:
        row = one(connection, f"{LOCALE} 'c', '' {OF_DATABASE}")
    elif version < 17:
        row = one(connection, f"{LOCALE} datlocprovider, daticulocale {OF_DATABASE}")
    else:
        row = one(connection, f"{LOCALE} datlocprovider, datlocale {OF_DATABASE}")
    return {name: str(value or "") for name, value in zip(COLLATION, row, strict=True)}


TABLE = (
    "SELECT nspname, relkind IN ('r', 'p') AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass"
    " AND objid = c.oid AND deptype = 'e') FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
    " WHERE c.oid = %s::regclass"
)


def resolved(connection: Connection, tables: Iterable[str], dataset: str) -> list[str]:
    """ "schema.name" of tables that may be named without their schema, as this user finds them."""
    found = []
    for table in tables:
        quoted = ".".join('"' + part.replace('"', '""') + '"' for part in table.split(".", 1))
        schema, counts = one(connection, TABLE, quoted)
        if not counts:  # their rows may be others after a restore, though all is well
            raise SourceFailed(
                f"{table} cannot be counted in {dataset}: it is a view, or no table of the database's own.",
                kind="table-missing",
                remedy="Count tables.",
                dataset=dataset,
            )
        found.append(table if "." in table else f"{schema}.{table}")
    return found


def count_rows(connection: Connection, tables: Iterable[str]) -> dict[str, int]:
    """By table, "schema.name"."""
    from psycopg import sql

    found = {}
    for table in tables:
        name = sql.Identifier(*table.split(".", 1))
        found[table] = int(one(connection, sql.SQL("SELECT count(*) FROM {}").format(name))[0])
    return found
