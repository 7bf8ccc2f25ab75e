"""Restoring a database into a PostgreSQL server: beside what is there, compared, and only then under its name."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pharmabackup.errors import Conflict, SourceFailed
from pharmabackup.sources.base import Content
from pharmabackup.sources.postgresql_roles import apply_to_database, create_roles
from pharmabackup.sources.postgresql_server import COLLATION, Server, count_rows, major, one
from pharmabackup.sources.postgresql_tools import SIGNS, Tools
from pharmabackup.sources.program import Program
from pharmabackup.sources.tools import trouble

if TYPE_CHECKING:
    from pharmabackup.sources.postgresql_server import Connection

ALL = "*"
PARTITIONS = (
    "SELECT nspname, relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid IN"
    " (WITH RECURSIVE below(part) AS (SELECT inhrelid FROM pg_inherits i JOIN pg_class p ON p.oid = inhparent"
    " JOIN pg_namespace s ON s.oid = p.relnamespace WHERE s.nspname = %s AND p.relname = %s"
    " UNION SELECT inhrelid FROM pg_inherits JOIN below ON inhparent = part) SELECT part FROM below)"
)
LOAD_TIME = timedelta(hours=72)
NAME_MAX = 63  # bytes of a name (NAMEDATALEN)
MARK = "pharmabackup: being restored as "  # the comment on a database that is, and under which name
PROVIDERS = {
    "i": " LOCALE_PROVIDER icu ICU_LOCALE {}",
    "b": " LOCALE_PROVIDER builtin BUILTIN_LOCALE {}",
}
DROP_S = 30  # for a server to end what a program began that was stopped
LEFTOVERS = "SELECT datname FROM pg_database d WHERE shobj_description(d.oid, 'pg_database') = %s"


class Loading:
    """One restore. `owners`: what is restored belongs to whom it did. `only`: tables whose rows come: schema, name.

    Each step has a connection of its own, since hours lie between them.
    """

    def __init__(
        self,
        server: Server,
        tools: Tools,
        dataset: str,
        content: Content,
        *,
        owners: bool,
        only: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._server = server
        self._tools = tools
        self._dataset = dataset
        self._content = content
        self._owners = owners
        self._only = only

    def run(
        self, dump: bytes, like: Mapping[str, Any], roles: bytes | None, *, overwrite: bool
    ) -> Mapping[str, object]:
        """Load it beside what is there, count it, and give it its name. SourceFailed: nothing was replaced."""
        with self._alone():
            with self._server.beside(self._dataset) as connection:
                version = major(connection)
                self._drop_leftovers(connection, version)
                if roles is not None:
                    create_roles(connection, roles)
            beside = self._free_name("restoring")
            try:
                with self._server.beside(self._dataset) as connection:
                    self._create(connection, beside, version)
                self._load(dump, beside, version)
                rows = self._verified(beside)
                self._content.check()
            except BaseException:
                self._drop(beside, version)
                raise
            if self._owners and not self._only:
                self._make_like(beside, like)
            replaced = self._switch(beside, str(like["comment"]), overwrite=overwrite and not self._only)
        facts: dict[str, object] = {"database": self._server.database, "rows": rows}
        return facts | ({"replaced": replaced} if replaced else {})

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One restore into a database at a time: the next drops what one that was killed has left."""
        with self._server.beside(self._dataset) as connection:
            query = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
            if not one(connection, query, f"pharmabackup restore {self._server.database}")[0]:
                raise Conflict(
                    f"Another restore into {self._server.database} is under way.",
                    kind="in-use",
                    remedy="Wait until it has ended.",
                )
            yield

    # ------------------------------------------------------------ steps

    def _create(self, connection: Connection, name: str, version: int) -> None:
        """As the one that was dumped: with its encoding and, if this server has it, its collation."""
        from psycopg import errors, sql

        encoding, collation, types, provider, locale = (str(self._content.facts.get(key, "")) for key in COLLATION)
        make = sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}").format(
            sql.Identifier(name), *map(sql.Literal, (encoding, collation, types))
        )
        if provider in PROVIDERS:
            make += sql.SQL(PROVIDERS[provider]).format(sql.Literal(locale))
        elif version >= 15:
            make += sql.SQL(" LOCALE_PROVIDER libc")
        try:
            connection.execute(make)
        except (errors.WrongObjectType, errors.UndefinedObject, errors.InvalidParameterValue):
            raise SourceFailed(  # another system's names of collations
                f"The server has no collation {locale or collation}, by which {self._dataset} is sorted.",
                kind="missing",
                remedy="Install that locale on the server, or restore to a folder and load the dump by hand.",
                dataset=self._dataset,
            ) from None
        self._comment(connection, name, MARK + self._server.database)

    def _load(self, path: bytes, name: str, version: int) -> None:
        written = int(str(self._content.facts.get("pg_dump", 0)))
        program, _ = self._tools.program("pg_restore", max(version, written), self._dataset)
        if not self._only:
            self._pass(program, path, name, [])
            return
        self._pass(program, path, name, ["--section=pre-data"])
        with self._server.connected(self._dataset, name) as connection:
            chosen = [one for part in self._only for one in self._with_partitions(connection, *part)]
        for schema in dict.fromkeys(schema for schema, _ in chosen):  # it knows no name of a table with its schema
            tables = [table for of, table in chosen if of == schema]
            named = [] if ALL in tables else [f"--table={table}" for table in tables]
            self._pass(program, path, name, ["--section=data", f"--schema={schema}", *named])

    def _with_partitions(self, connection: Connection, schema: str, table: str) -> list[tuple[str, str]]:
        """Where the rows of a table lie; all of a schema stays that. SourceFailed where it is not there."""
        query = "SELECT count(*) FROM pg_tables WHERE schemaname = %s AND (tablename = %s OR %s)"
        if not one(connection, query, schema, table, table == ALL)[0]:
            raise SourceFailed(
                f"There is no table {schema}.{table} in {self._dataset}.",
                kind="table-missing",
                remedy="Check its name; capital letters count.",
                dataset=self._dataset,
            )
        tables = [table]
        if table == ALL:
            query = "SELECT tablename FROM pg_tables WHERE schemaname = %s"
            tables = [str(name) for (name,) in connection.execute(query, (schema,)).fetchall()]
        parts = [part for name in tables for part in connection.execute(PARTITIONS, (schema, name)).fetchall()]
        return [(schema, table), *((str(of), str(part)) for of, part in parts if (of, table) != (schema, ALL))]

    def _pass(self, program: str, path: bytes, name: str, part: Sequence[str]) -> None:
        command = [
            program,
            "--no-password",
            "--exit-on-error",
            "--no-tablespaces",
            *(() if self._owners else ("--no-owner",)),
            *(() if self._owners and not part else ("--no-privileges",)),  # a part has no policies for rows
            *part,
            self._server.named(name),
        ]
        with Program(
            command,
            dataset=self._dataset,
            seconds=LOAD_TIME.total_seconds(),
            env=self._server.environment(),
            feed=True,
            trouble=lambda code, errors: trouble(SIGNS, "pg_restore", code, errors),
        ) as running:
            running.feed(self._content.read(path), self._content.check)
            running.finish(self._content.check, partly=bool(part))

    def _verified(self, name: str) -> dict[str, int]:
        """The rows of the counted tables, which have to be those of the backup; statistics for the planner."""
        expected = self._content.facts.get("rows")
        expected = expected if isinstance(expected, dict) else {}
        with self._server.connected(self._dataset, name) as connection:
            expected = {table: rows for table, rows in expected.items() if self._comes(table)}
            found = count_rows(connection, expected)
            connection.execute("ANALYZE")
        if wrong := [table for table, count in expected.items() if found[table] != count]:
            raise SourceFailed(
                f"{wrong[0]} has {found[wrong[0]]:,} rows in the restored {self._dataset}, and had "
                f"{expected[wrong[0]]:,} when it was backed up.",
                kind="damaged",
                remedy="Restore an earlier snapshot, and keep this one to look at.",
                dataset=self._dataset,
            )
        return found

    def _comes(self, table: str) -> bool:
        """Whether a table's rows do, by the name that it is counted under."""
        schema, _, name = table.rpartition(".")
        return not self._only or any(table in (name, ALL) for of, table in self._only if of == schema)

    def _make_like(self, name: str, like: Mapping[str, Any]) -> None:
        with self._server.beside(self._dataset) as connection:
            missed = apply_to_database(connection, name, like)
        if missed:
            self._content.finding(
                "not-restored",
                f"The database of {self._dataset!r} is whole, but not as it was in: {', '.join(missed)}.",
                "Look into database.json of the snapshot, and set it by hand.",
            )

    def _switch(self, beside: str, comment: str, *, overwrite: bool) -> str | None:
        """Under its name in one transaction. What was there keeps another name, which is returned."""
        from psycopg import sql

        name, replaced = self._server.database, None
        rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")
        try:
            with self._server.beside(self._dataset) as connection:
                self._comment(connection, beside, comment)  # it is whole, and may have taken hours: it stays
                with connection.transaction():
                    if overwrite and one(connection, "SELECT count(*) FROM pg_database WHERE datname = %s", name)[0]:
                        replaced = self._free_name(f"before_{datetime.now(UTC):%Y%m%d_%H%M%S}", tail=False)
                        connection.execute(rename.format(sql.Identifier(name), sql.Identifier(replaced)))
                    connection.execute(rename.format(sql.Identifier(beside), sql.Identifier(name)))
        except SourceFailed as why:
            raise SourceFailed(
                f"{self._dataset} was restored as {beside}, which could not be renamed to {name}: {why.message}",
                kind=why.kind,
                remedy=f"Let programs close {name}, rename it and then {beside}, or drop {beside}.",
                dataset=self._dataset,
            ) from None
        return replaced

    # ------------------------------------------------------------ names

    def _comment(self, connection: Connection, name: str, text: str) -> None:
        from psycopg import sql

        comment = sql.SQL("COMMENT ON DATABASE {} IS {}")
        connection.execute(comment.format(sql.Identifier(name), sql.Literal(text or None)))

    def _free_name(self, what: str, *, tail: bool = True) -> str:
        end = f"_{what}_{secrets.token_hex(4)}" if tail else f"_{what}"
        stem = self._server.database.encode()[: NAME_MAX - len(end)].decode(errors="ignore")
        return stem + end

    def _drop_leftovers(self, connection: Connection, version: int) -> None:
        """What restores that were killed have left, of this database: they are marked."""
        for (name,) in connection.execute(LEFTOVERS, (MARK + self._server.database,)).fetchall():
            self._drop(str(name), version)

    def _drop(self, name: str, version: int) -> None:
        """Also if a server process goes on with what a stopped program began. What cannot be dropped stays marked."""
        from psycopg import sql

        until = time.monotonic() + DROP_S
        drop = sql.SQL("DROP DATABASE IF EXISTS {}" + (" WITH (FORCE)" if version >= 13 else "")).format(
            sql.Identifier(name)
        )
        while True:
            try:
                with self._server.beside(self._dataset) as connection:
                    if version < 13:
                        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
                        connection.execute(end, (name,))
                    connection.execute(drop)
                return
            except SourceFailed as error:
                if error.kind != "in-use" or time.monotonic() > until:
                    return  # what failed before is told; the next restore drops it
                time.sleep(0.2)
