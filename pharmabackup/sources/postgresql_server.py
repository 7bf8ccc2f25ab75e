"""Talking to a PostgreSQL server: how it is reached, by us and by its own tools, and what its errors mean.

Error texts of a server may quote rows, so errors are told by their SQLSTATE alone
(https://www.postgresql.org/docs/current/errcodes-appendix.html).
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pharmabackup.errors import Error, InvalidInput, SourceFailed, Unsupported

if TYPE_CHECKING:
    import psycopg

    Connection = psycopg.Connection[tuple[Any, ...]]

CONNECT_S = 15
WELL_KNOWN = (
    r"C:\Program Files\PostgreSQL\*\bin"
    if sys.platform == "win32"
    else "/Library/PostgreSQL/*/bin"
    if sys.platform == "darwin"
    else "/usr/lib/postgresql/*/bin"
)
# What may stand behind the ? of a URL, by libpq's names, and the variable by which its tools are told
# (https://www.postgresql.org/docs/current/libpq-envars.html).
OPTIONS = {
    name: f"PG{name.upper()}"
    for name in (
        "sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "passfile", "channel_binding", "gssencmode",
        "krbsrvname", "target_session_attrs",
    )
} | {"channel_binding": "PGCHANNELBINDING", "target_session_attrs": "PGTARGETSESSIONATTRS"}  # fmt: skip

# By SQLSTATE or its class: kind, what happened, remedy. None is what libpq says before there is a server.
STATES: Mapping[str | None, tuple[str, str, str]] = {
    None: ("unreachable", "cannot be reached", "Check that PostgreSQL runs, and its host, port and firewall."),
    "28": ("login", "does not let this user in", "Check user, password, the database's name, and pg_hba.conf."),
    "3D": ("missing", "does not exist on its server", "Check its name."),
    "42501": ("permission", "may not be read by this user", "Grant it pg_read_all_data, or use its owner."),
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
    "57": ("unreachable", "was shut down, or broke the connection", "Wait until its server runs again."),
    "08": ("unreachable", "broke the connection", "Check that PostgreSQL runs, and the network."),
    "XX": ("damaged", "is damaged", "Look into the server's log, and restore an earlier backup."),
}


class Server:
    """A database, as `url` names it. InvalidInput."""

    def __init__(self, url: str, password: str | None) -> None:
        if "://" not in url:
            url = f"postgresql:///{url}"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise _bad_url("its port is no number") from None
        if parts.scheme not in ("postgresql", "postgres"):
            raise _bad_url("it does not begin with postgresql://")
        if parts.password is not None:
            raise InvalidInput(
                "A database's URL must not hold its password, since URLs are logged.",
                remedy="Give it as `password`, or keep it in a password file (~/.pgpass).",
            )
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        host = options.pop("host", None) or (unquote(parts.hostname) if parts.hostname else None)
        given = {"host": host, "port": options.pop("port", None) or port, "user": options.pop("user", parts.username)}
        if unknown := sorted(set(options) - set(OPTIONS)):
            raise _bad_url(f"{unknown[0]} is no option that is passed on")
        self.database = unquote(parts.path.removeprefix("/"))
        if not self.database or "/" in self.database or "\0" in url:
            raise _bad_url("it names no database")
        self._given = {name: str(value) for name, value in given.items() if value} | options
        self._password = password

    def environment(self) -> dict[str, str]:
        """For the server's own tools: what must not be on a command line, and messages in one language."""
        names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER"} | OPTIONS
        found = {names[name]: value for name, value in self._given.items()}
        if self._password is not None:
            found["PGPASSWORD"] = self._password
        return found | {"PGCONNECT_TIMEOUT": str(CONNECT_S), "LC_ALL": "C", "PGAPPNAME": "pharmabackup"}

    @contextmanager
    def connected(self, dataset: str, database: str | None = None) -> Iterator[Connection]:
        """A connection, each statement its own transaction. What fails within is SourceFailed."""
        try:
            import psycopg
        except ImportError:
            raise Unsupported(
                "Backing up PostgreSQL needs psycopg.", remedy='Run: pip install "pharmabackup[postgresql]".'
            ) from None
        with (
            told(dataset),
            psycopg.connect(
                dbname=database or self.database,
                password=self._password,
                connect_timeout=CONNECT_S,
                application_name="pharmabackup",
                autocommit=True,
                **self._given,  # type: ignore[arg-type]
            ) as connection,
        ):
            yield connection

    def named(self, database: str | None = None) -> str:
        """The argument that names a database, even if there is a = in its name."""
        quoted = (database or self.database).replace("\\", "\\\\").replace("'", "\\'")
        return f"--dbname=dbname='{quoted}'"


@contextmanager
def told(dataset: str) -> Iterator[None]:
    """What a server reports within is told as SourceFailed, by its code."""
    import psycopg

    try:
        yield
    except psycopg.OperationalError as error:
        # Whoever was not let in learns no code. "FATAL" stays FATAL in most languages.
        refused = error.sqlstate is None and "FATAL" in str(error)
        missing = refused and "database" in str(error) and "does not exist" in str(error)
        raise failed("3D000" if missing else "28000" if refused else error.sqlstate, dataset) from None
    except psycopg.Error as error:
        raise failed(error.sqlstate, dataset) from None


def failed(state: str | None, dataset: str) -> SourceFailed:
    """What a server or the way to it reported."""
    known = STATES.get(state) or STATES.get(None if state is None else state[:2])
    kind, what, remedy = known or ("tool-failed", "could not be read or written", "Look into the server's log.")
    said = "" if state is None else f" ({state})"
    return SourceFailed(f"The database of {dataset!r} {what}{said}.", kind=kind, remedy=remedy, dataset=dataset)


def _bad_url(why: str) -> Error:
    return InvalidInput(
        f"That is no address of a PostgreSQL database: {why}.",
        remedy='Write "pmr" or "postgresql://user@host:5432/pmr".',
    )


def trouble(tool: str, code: int, errors: bytes) -> tuple[str, str, str] | None:
    """What a tool's error output means, by what these programs say in English; none of it is repeated."""
    for sign, kind, what, remedy in SIGNS:
        if sign in errors:
            return kind, f"{tool} ended with code {code}: {what}.", remedy
    return None


SIGNS = (
    (b"server version mismatch", "tool-too-old", "it is older than the server", "Install the server's own version."),
    (
        b"permission denied",
        "permission",
        "this user may not read all",
        "Grant it pg_read_all_data, or use its owner.",
    ),
    (b"LOCK TABLE", "locked", "somebody changes a table's shape", "Let that finish, and back up again."),
    (b"No space left", "full", "its server's disk is full", "Free some space there."),
    (b"server closed the connection", "unreachable", "the server ended", "Look into its log, and back up again."),
    (b"connection to server", "unreachable", "the server cannot be reached", "Check that PostgreSQL runs."),
    (b"snapshot", "changed", "the moment that was to be read has passed", "Back up again."),
)


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


def count_rows(connection: Connection, tables: Iterable[str]) -> dict[str, int]:
    """By table, as named: "name" or "schema.name"."""
    from psycopg import sql

    found = {}
    for table in tables:
        name = sql.Identifier(*table.split(".", 1))
        found[table] = int(one(connection, sql.SQL("SELECT count(*) FROM {}").format(name))[0])
    return found


class Tools:
    """Where the server's programs are: the folder that was given, the path, or the newest version's own folder."""

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self._folder = None if folder is None else os.fspath(folder)

    def program(self, name: str, dataset: str) -> str:
        """SourceFailed where it is not installed."""
        found = shutil.which(name, path=self._folder)
        if found is None and self._folder is None:
            for place in sorted(glob.glob(WELL_KNOWN), key=_version_in, reverse=True):
                found = found or shutil.which(name, path=place)
        if found is None:
            raise SourceFailed(
                f"{name} is not installed, or not where it was looked for.",
                kind="tool-missing",
                remedy="Install PostgreSQL's client programs, or name their folder as `tools`.",
                dataset=dataset,
            )
        return found

    def version(self, name: str, dataset: str) -> int:
        """Its major version. SourceFailed."""
        program = self.program(name, dataset)
        try:
            said = subprocess.run([program, "--version"], capture_output=True, timeout=60, check=True).stdout
            return int(re.findall(rb"(\d+)(?:\.|devel|beta|rc|\s|$)", said)[0])
        except (OSError, subprocess.SubprocessError, IndexError) as error:
            raise SourceFailed(
                f"{name} does not say its version ({type(error).__name__}).",
                remedy="Install PostgreSQL's client programs anew, or name their folder as `tools`.",
                dataset=dataset,
            ) from None


def _version_in(folder: str) -> int:
    numbers = re.findall(r"\d+", Path(folder).parent.name)
    return int(numbers[0]) if numbers else 0
