"""PostgreSQL: one database of a running server, by its own programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pharmabackup.errors import Conflict, InvalidInput, SourceFailed, Unsupported
from pharmabackup.sources.base import Content, Sink, Source, StrPath, View
from pharmabackup.sources.flat import put_files
from pharmabackup.sources.postgresql_load import Loading
from pharmabackup.sources.postgresql_server import (
    Server,
    Tools,
    collation,
    count_rows,
    major,
    one,
    told,
    trouble,
)
from pharmabackup.sources.program import Program

if TYPE_CHECKING:
    from pharmabackup.sources.postgresql_server import Connection

DUMP, GLOBALS = b"database.dump", b"globals.sql"
DUMP_TIME = timedelta(hours=24)
LOCK_WAIT_S = 60  # for a table that somebody changes the shape of


class PostgreSQL(Source):
    """One database, as of the moment of the view. Writers are not held up: it is read in one snapshot of the server.

    `url`: "pmr", or "postgresql://user@host:port/pmr?sslmode=verify-full", without a password. `roles`: the server's
    roles are in it too, and are created on a server that lacks them; without, who restores owns all. `tools`: the
    folder of pg_dump and pg_restore, which must be as new as the server. `count`: tables ("name" or "schema.name")
    whose rows are counted now, and again after a restore. Restored to a folder it is `database.dump`, which
    pg_restore reads, and `globals.sql`.

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
    ) -> None:
        self._server = Server(url, password)
        super().__init__(self._server.database if name is None else name, tier)
        if isinstance(count, str):
            raise InvalidInput("The tables to count are a list, not one text.", remedy=f"Write [{count!r}].")
        self._roles = roles
        self._tools = Tools(tools)
        self._count = tuple(count)

    def view(self, *, scratch: Path) -> AbstractContextManager[View]:  # noqa: ARG002
        return self._view()

    @contextmanager
    def _view(self) -> Iterator[View]:
        tool = self._tools.version("pg_dump", self.name)
        with self._server.connected(self.name) as connection:
            # It is left open, and idle, until all is dumped.
            connection.execute("SET idle_in_transaction_session_timeout = 0")
            connection.execute("SET statement_timeout = 0")
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            (snapshot,) = one(connection, "SELECT pg_export_snapshot()")
            server = major(connection)
            if tool < server:
                raise _too_old("pg_dump", server, self.name)
            yield _Database(self, connection, str(snapshot), {"major": server, "pg_dump": tool})

    def prepare(self, facts: Mapping[str, object], *, overwrite: bool) -> None:
        tool = self._tools.version("pg_restore", self.name)
        with self._server.connected(self.name, "postgres") as connection:
            server = major(connection)
            there = one(connection, "SELECT count(*) FROM pg_database WHERE datname = %s", self._server.database)[0]
            busy = one(connection, "SELECT count(*) FROM pg_stat_activity WHERE datname = %s", self._server.database)
        dumped, written = (int(str(facts.get(name, 0))) for name in ("major", "pg_dump"))
        if server < dumped:
            raise Unsupported(
                f"{self.name} is of PostgreSQL {dumped}, and this server is version {server}.",
                remedy=f"Restore into a server of version {dumped} or newer.",
            )
        if tool < max(server, written):
            raise _too_old("pg_restore", max(server, written), self.name)
        if there and not overwrite:
            raise Conflict(
                f"A database {self._server.database} is there already and was not touched.",
                kind="target-not-empty",
                remedy="Choose another name, or pass overwrite=True: then it is kept, renamed.",
            )
        if there and busy[0]:
            raise Conflict(
                f"The database {self._server.database} is in use and cannot be replaced (connections: {busy[0]}).",
                kind="in-use",
                remedy="Let them close it, or restore under another name.",
            )

    def load(self, content: Content, *, overwrite: bool) -> Mapping[str, object]:
        with self._server.connected(self.name, "postgres") as connection:
            loading = Loading(self._server, self._tools, self.name, connection, content, owners=self._roles)
            if self._roles:
                loading.roles(GLOBALS)
            return loading.database(DUMP, overwrite=overwrite)


class _Database(View):
    def __init__(
        self, source: PostgreSQL, connection: Connection, snapshot: str, versions: Mapping[str, int]
    ) -> None:
        self._source = source
        self._versions = versions
        self._connection = connection
        self._snapshot = snapshot

    def dump(self, sink: Sink) -> Mapping[str, object]:
        source = self._source
        dumped = self._run(
            sink,
            "pg_dump",
            "--format=custom",
            "--compress=0",  # what is compressed shares nothing from day to day
            f"--snapshot={self._snapshot}",
            f"--lock-wait-timeout={LOCK_WAIT_S * 1000}",
            source._server.named(),
        )
        files = [(DUMP, *dumped)]
        with told(source.name):
            if source._roles:
                hidden = () if self._sees_passwords() else ("--no-role-passwords",)
                files.append((GLOBALS, *self._run(sink, "pg_dumpall", "--globals-only", "--no-tablespaces", *hidden)))
            facts = self._facts()
        put_files(sink, files)
        return facts

    def _run(self, sink: Sink, tool: str, *arguments: str) -> tuple[int, int]:
        source = self._source
        command = [source._tools.program(tool, source.name), "--no-password", *arguments]
        with Program(
            command,
            dataset=source.name,
            seconds=DUMP_TIME.total_seconds(),
            env=source._server.environment(),
            trouble=lambda code, errors: trouble(tool, code, errors),
        ) as program:
            stored = sink.stream(program.output(sink.check), fine=True)
            program.finish(sink.check)
        return stored

    def _sees_passwords(self) -> bool:
        return bool(one(self._connection, "SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT')")[0])

    def _facts(self) -> dict[str, object]:
        """Asked in the snapshot of the dump: the counts are of the same moment."""
        source = self._source
        version, size = one(
            self._connection, "SELECT current_setting('server_version'), pg_database_size(current_database())"
        )
        return {
            "server": str(version),
            **self._versions,
            "size": int(size),
            **collation(self._connection),
            "rows": count_rows(self._connection, source._count),
        }


def _too_old(tool: str, wanted: int, dataset: str) -> SourceFailed:
    return SourceFailed(
        f"{tool} is older than PostgreSQL {wanted}, which it has to work with.",
        kind="tool-too-old",
        remedy=f"Install the client programs of PostgreSQL {wanted}, or name their folder as `tools`.",
        dataset=dataset,
    )
