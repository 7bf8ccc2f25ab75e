"""PostgreSQL: one database of a running server, by its own programs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pharmabackup.errors import Conflict, InvalidInput, Unsupported
from pharmabackup.sources.base import Content, Served, Sink, Source, StrPath, View
from pharmabackup.sources.flat import put_bytes, put_files
from pharmabackup.sources.postgresql_load import ALL, Loading
from pharmabackup.sources.postgresql_roles import read_database, read_roles
from pharmabackup.sources.postgresql_server import (
    MAINTENANCE,
    Server,
    collation,
    count_rows,
    failed,
    major,
    one,
    resolved,
    told,
)
from pharmabackup.sources.postgresql_tools import SETS_TRANSACTION_TIMEOUT, SIGNS, Tools
from pharmabackup.sources.program import Program
from pharmabackup.sources.tools import trouble

if TYPE_CHECKING:
    from pharmabackup.sources.postgresql_server import Connection

DUMP, DATABASE, ROLES = b"database.dump", b"database.json", b"roles.json"
DUMP_TIME = timedelta(hours=24)
LOCK_WAIT_S = 10  # for a table that somebody changes the shape of, or empties
LOOKS = 5  # for tables that were made while others were locked
USERS_TABLES = (
    "SELECT nspname, relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
    " WHERE relkind IN ('r', 'p') AND relpersistence <> 't' AND nspname <> 'information_schema' AND nspname !~ '^pg_'"
    " AND NOT EXISTS (SELECT FROM pg_depend"  # an extension's
    " WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')"
)
CLIENTS = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = %s AND usesysid IS NOT NULL AND pid <> pg_backend_pid()"
    " AND coalesce(backend_type, 'client backend') = 'client backend'"  # not everybody sees that of others
)
STILL_OPEN_S = 3  # that the server may need to notice that a client has gone


class PostgreSQL(Source):
    """One database, as of the moment of the view. Rows are read and written meanwhile as ever.

    `url`: "pmr", or "postgresql://user@host:port/pmr?sslmode=verify-full", without a password. `roles`: the server's
    roles are in it too, and are created on a server that lacks them; without, who restores owns all. `tools`: the
    folder of pg_dump and pg_restore, which must be as new as the server. `count`: tables ("name" or "schema.name")
    whose rows are counted now, and again after a restore. Restored to a folder it is `database.dump`, which
    pg_restore reads, and JSON files of what that lacks.

    `only`, of what is restored into: tables ("name" or "schema.name") or schemas ("schema.*") whose rows come; all
    other tables are there and empty (docs/sources.md). It never takes another database's place.

    Restored into a server (`into=`), it is loaded beside what is there, compared, and then takes its name: with
    `overwrite` a database of that name is kept, renamed.
    """

    kind = "postgresql"

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        tier: int = 3,
        password: str | None = None,
        roles: bool = True,
        tools: StrPath | None = None,
        count: Sequence[str] = (),
        only: Sequence[str] = (),
    ) -> None:
        self._server = Server(url, password)
        super().__init__(self._server.database if name is None else name, tier)
        if isinstance(count, str):
            raise InvalidInput("The tables to count are a list, not one text.", remedy=f"Write [{count!r}].")
        self._roles = roles
        self._tools = Tools(tools)
        self._count = tuple(count)
        if isinstance(only, str):
            raise InvalidInput("The tables to restore are a list, not one text.", remedy=f"Write [{only!r}].")
        self._only = [_part(text) for text in only]

    def served(self) -> Served:
        return self._server.served(self.name)

    def view(self, *, scratch: Path) -> AbstractContextManager[View]:  # noqa: ARG002
        return self._view()

    @contextmanager
    def _view(self) -> Iterator[View]:
        if self._only:
            raise InvalidInput("A database is backed up whole.", remedy="Give `only` to restore a part of it.")
        with self._server.connected(self.name) as connection:
            server = major(connection)
            program, version = self._tools.program("pg_dump", server, self.name)
            snapshot = _snapshot(connection, self.name)
            yield _Database(self, connection, snapshot, program, {"major": server, "pg_dump": version})

    def prepare(self, facts: Mapping[str, object], *, overwrite: bool) -> None:
        database = self._server.database
        if database in MAINTENANCE:
            raise Unsupported(f"A server needs its database {database}.", remedy="Restore under another name.")
        with self._server.beside(self.name) as connection:
            server = major(connection)
            there = one(connection, "SELECT count(*) FROM pg_database WHERE datname = %s", database)[0]
            until = time.monotonic() + STILL_OPEN_S
            while (busy := one(connection, CLIENTS, database)[0]) and time.monotonic() < until:
                time.sleep(0.1)
        dumped, written = (int(str(facts.get(name, 0))) for name in ("major", "pg_dump"))
        if server < dumped:
            raise Unsupported(
                f"{self.name} is of PostgreSQL {dumped}, and this server is version {server}.",
                remedy=f"Restore into a server of version {dumped} or newer.",
            )
        _, version = self._tools.program("pg_restore", max(server, written), self.name)
        if version >= SETS_TRANSACTION_TIMEOUT > server:
            raise Unsupported(
                f"pg_restore {version} cannot restore into PostgreSQL {server}"
                + (f", and pg_dump {written} has written this." if written >= SETS_TRANSACTION_TIMEOUT else "."),
                remedy=f"Restore into a server of version {SETS_TRANSACTION_TIMEOUT} or newer."
                if written >= SETS_TRANSACTION_TIMEOUT
                else f"Install the client programs of PostgreSQL {server}.",
            )
        if there and (not overwrite or self._only):
            raise Conflict(
                f"A database {database} is there already and was not touched.",
                kind="target-not-empty",
                remedy="Choose another name, or pass overwrite=True: then it is kept, renamed."
                if not self._only
                else "Choose another name: a part of a database takes no other's place.",
            )
        if there and busy:
            raise Conflict(
                f"The database {database} is in use and cannot be replaced (connections: {busy}).",
                kind="in-use",
                remedy="Let them close it, or restore under another name.",
            )

    def load(self, content: Content, *, overwrite: bool) -> Mapping[str, object]:
        roles = b"".join(content.read(ROLES)) if self._roles and content.has(ROLES) else None
        loading = Loading(self._server, self._tools, self.name, content, owners=roles is not None, only=self._only)
        return loading.run(DUMP, json.loads(b"".join(content.read(DATABASE))), roles, overwrite=overwrite)


def _part(text: str) -> tuple[str, str]:
    """Schema and table; a * for all tables."""
    schema, dot, table = text.rpartition(".")
    if not table or (dot and not schema) or (table == ALL and not schema):
        raise InvalidInput(
            f"{text!r} is no table and no schema.", remedy='Write "name", "schema.name" or "schema.*".'
        )
    return schema or "public", table


def _snapshot(connection: Connection, dataset: str) -> str:
    """Begin a transaction in which all is of one moment, and export it.

    All tables are locked against being emptied or changed in shape before that: who reads an older snapshot of such
    a table finds nothing in it (https://www.postgresql.org/docs/current/mvcc-caveats.html).
    """
    from psycopg import errors, sql

    until = time.monotonic() + LOCK_WAIT_S
    for _ in range(LOOKS):
        wanted = sorted(set(connection.execute(USERS_TABLES).fetchall()))
        left = max(1, round(1000 * (until - time.monotonic())))
        connection.execute(f"SET lock_timeout = {left}")
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            if wanted:
                names = sql.SQL(", ").join(sql.Identifier(*name) for name in wanted)
                connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(names))
            (snapshot,) = one(connection, "SELECT pg_export_snapshot()")
            if set(connection.execute(USERS_TABLES).fetchall()) <= set(wanted):
                return str(snapshot)
        except (errors.UndefinedTable, errors.InvalidSchemaName):  # it went before it was locked
            pass
        connection.execute("ROLLBACK")
    raise failed("55P03", dataset)


class _Database(View):
    def __init__(
        self,
        source: PostgreSQL,
        connection: Connection,
        snapshot: str,
        program: str,
        versions: Mapping[str, int],
    ) -> None:
        self._source = source
        self._connection = connection
        self._snapshot = snapshot
        self._program = program
        self._versions = versions

    def dump(self, sink: Sink) -> Mapping[str, object]:
        source, connection = self._source, self._connection
        files = [(DUMP, *self._dumped(sink))]
        with told(source.name):
            files.append((DATABASE, *put_bytes(sink, json.dumps(read_database(connection), indent=1).encode())))
            if source._roles:
                files.append((ROLES, *put_bytes(sink, read_roles(connection))))
            facts = self._facts()
        put_files(sink, files)
        server, version = self._versions["major"], self._versions["pg_dump"]
        if version >= SETS_TRANSACTION_TIMEOUT > server:
            sink.finding(
                "newer-tools",
                DUMP,
                f"pg_dump {version} dumped a database of PostgreSQL {server}, which can take it back no more.",
                f"Install the client programs of PostgreSQL {server} and back up again.",
                severity="info",
            )
        return facts

    def _dumped(self, sink: Sink) -> tuple[int, int]:
        source = self._source
        command = [
            self._program,
            "--no-password",
            "--format=custom",
            "--compress=0",  # what is compressed shares nothing from day to day
            f"--snapshot={self._snapshot}",
            f"--lock-wait-timeout={LOCK_WAIT_S * 1000}",
            source._server.named(),
        ]
        with Program(
            command,
            dataset=source.name,
            seconds=DUMP_TIME.total_seconds(),
            env=source._server.environment(),
            trouble=lambda code, errors: trouble(SIGNS, "pg_dump", code, errors),
        ) as program:
            stored = sink.stream(program.output(sink.check), fine=True)
            program.finish(sink.check)
        return stored

    def _facts(self) -> dict[str, object]:
        """Asked in the snapshot of the dump: the counts are of the same moment."""
        connection, source = self._connection, self._source
        version, size = one(
            connection, "SELECT current_setting('server_version'), pg_database_size(current_database())"
        )
        return {
            "server": str(version),
            **self._versions,
            "size": int(size),
            **collation(connection),
            "rows": count_rows(connection, resolved(connection, source._count, source.name)),
        }
