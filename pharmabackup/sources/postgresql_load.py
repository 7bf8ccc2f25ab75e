"""Restoring a database into a PostgreSQL server: beside what is there, compared, and only then under its name."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pharmabackup.errors import SourceFailed
from pharmabackup.sources.base import Content
from pharmabackup.sources.postgresql_server import COLLATION, Server, Tools, count_rows, failed, major, one, trouble
from pharmabackup.sources.program import Program

if TYPE_CHECKING:
    from pharmabackup.sources.postgresql_server import Connection

LOAD_TIME = timedelta(hours=72)
NAME_MAX = 63  # bytes of a name (NAMEDATALEN)
MARK = "pharmabackup: being restored"  # the comment on a database that is
STATEMENT = re.compile(
    rb'(CREATE ROLE|ALTER ROLE|GRANT) ((?:"(?:[^"]|"")+"|[^\s";]+))(?: TO ((?:"(?:[^"]|"")+"|[^\s";]+)))?'
)
PROVIDERS = {
    "i": " LOCALE_PROVIDER icu ICU_LOCALE {}",
    "b": " LOCALE_PROVIDER builtin BUILTIN_LOCALE {}",
}
GLOBALS_MAX = 64 << 20


class Loading:
    """One restore. `connection`: to the server's own database. `owners`: what is restored belongs to whom it did."""

    def __init__(
        self,
        server: Server,
        tools: Tools,
        dataset: str,
        connection: Connection,
        content: Content,
        *,
        owners: bool,
    ) -> None:
        self._server = server
        self._tools = tools
        self._dataset = dataset
        self._connection = connection
        self._content = content
        self._owners = owners

    def roles(self, path: bytes) -> None:
        """Create the roles that this server lacks, and their memberships. Those that it has stay as they are."""
        if not self._content.has(path):
            return
        text = b"".join(self._content.read(path))[:GLOBALS_MAX]
        there = {str(row[0]) for row in self._connection.execute("SELECT rolname FROM pg_roles")}
        missing: set[bytes] = set()
        for line in text.split(b"\n"):
            found = STATEMENT.match(line)
            if found is None:
                continue
            what, first, second = found.groups()
            if what == b"CREATE ROLE" and _plain(first) not in there:
                missing.add(first)
            if (second if what == b"GRANT" else first) in missing:
                self._connection.execute(line)

    def database(self, path: bytes, *, overwrite: bool) -> Mapping[str, object]:
        """Load it beside what is there, count it, and give it its name. SourceFailed: nothing was replaced."""
        self._drop_leftovers()
        beside = self._free_name("restoring")
        self._create(beside)
        try:
            self._load(path, beside)
            rows = self._verified(beside)
            self._content.check()
        except BaseException:
            self._drop(beside)
            raise
        facts: dict[str, object] = {"database": self._server.database, "rows": rows}
        replaced = self._switch(beside, overwrite=overwrite)
        return facts | ({"replaced": replaced} if replaced else {})

    # ------------------------------------------------------------ steps

    def _create(self, name: str) -> None:
        """As the one that was dumped: with its encoding and, if this server has it, its collation."""
        from psycopg import errors, sql

        encoding, collation, types, provider, locale = (str(self._content.facts.get(name, "")) for name in COLLATION)
        make = sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}").format(
            sql.Identifier(name), *map(sql.Literal, (encoding, collation, types))
        )
        if provider in PROVIDERS:
            make += sql.SQL(PROVIDERS[provider]).format(sql.Literal(locale))
        elif major(self._connection) >= 15:
            make += sql.SQL(" LOCALE_PROVIDER libc")
        try:
            self._connection.execute(make)
        except (errors.WrongObjectType, errors.UndefinedObject, errors.InvalidParameterValue):
            # another system's names of collations
            raise SourceFailed(
                f"The server has no collation {locale or collation}, by which {self._dataset} is sorted.",
                kind="missing",
                remedy="Install that locale on the server, or restore to a folder and load the dump by hand.",
                dataset=self._dataset,
            ) from None
        self._connection.execute(
            sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), sql.Literal(MARK))
        )

    def _load(self, path: bytes, name: str) -> None:
        command = [
            self._tools.program("pg_restore", self._dataset),
            "--no-password",
            "--exit-on-error",
            *(() if self._owners else ("--no-owner", "--no-privileges")),
            self._server.named(name),
        ]
        with Program(
            command,
            dataset=self._dataset,
            seconds=LOAD_TIME.total_seconds(),
            env=self._server.environment(),
            feed=True,
            trouble=lambda code, errors: trouble("pg_restore", code, errors),
        ) as program:
            program.feed(self._content.read(path), self._content.check)
            program.finish(self._content.check)

    def _verified(self, name: str) -> dict[str, int]:
        """The rows of the counted tables, which have to be those of the backup; statistics for the planner."""
        expected = self._content.facts.get("rows")
        expected = expected if isinstance(expected, dict) else {}
        with self._server.connected(self._dataset, name) as connection:
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

    def _switch(self, beside: str, *, overwrite: bool) -> str | None:
        """Under its name in one transaction. What was there keeps another name, which is returned."""
        from psycopg import Error, sql

        name, replaced = self._server.database, None
        rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")
        try:
            with self._connection.transaction():
                if overwrite and self._exists(name):
                    replaced = self._free_name(f"before_{datetime.now(UTC):%Y%m%d_%H%M%S}", tail=False)
                    self._connection.execute(rename.format(sql.Identifier(name), sql.Identifier(replaced)))
                self._connection.execute(rename.format(sql.Identifier(beside), sql.Identifier(name)))
                self._connection.execute(sql.SQL("COMMENT ON DATABASE {} IS NULL").format(sql.Identifier(name)))
        except Error as error:
            why = failed(error.sqlstate, self._dataset)
            # it is whole, and may have taken hours: it stays
            self._connection.execute(sql.SQL("COMMENT ON DATABASE {} IS NULL").format(sql.Identifier(beside)))
            raise SourceFailed(
                f"{self._dataset} was restored as {beside}, which could not be renamed to {name}: {why.message}",
                kind=why.kind,
                remedy=f"Let programs close {name}, rename it and then {beside}, or drop {beside}.",
                dataset=self._dataset,
            ) from None
        return replaced

    # ------------------------------------------------------------ names

    def _free_name(self, what: str, *, tail: bool = True) -> str:
        end = f"_{what}_{secrets.token_hex(4)}" if tail else f"_{what}"
        stem = self._server.database.encode()[: NAME_MAX - len(end)].decode(errors="ignore")
        return stem + end

    def _exists(self, name: str) -> bool:
        return bool(one(self._connection, "SELECT count(*) FROM pg_database WHERE datname = %s", name)[0])

    def _drop_leftovers(self) -> None:
        """What restores that were killed have left, of this database: marked, and used by nobody."""
        stem = self._free_name("restoring")[: -len("00000000")]
        query: Any = (
            "SELECT datname FROM pg_database d WHERE starts_with(datname, %s)"
            " AND shobj_description(d.oid, 'pg_database') = %s"
            " AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.datname = d.datname)"
        )
        for (name,) in self._connection.execute(query, (stem, MARK)).fetchall():
            self._drop(str(name))

    def _drop(self, name: str) -> None:
        """Its programs were ended just now, and the server may not have noticed yet."""
        from psycopg import Error, errors, sql

        for _ in range(50):
            try:
                self._connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))
                return
            except errors.ObjectInUse:
                time.sleep(0.1)
            except Error:  # what failed before is told; the next restore drops it
                return


def _plain(identifier: bytes) -> str:
    """A name as SQL writes it, as the catalogue has it."""
    text = identifier.decode("utf-8", "surrogateescape")
    return text[1:-1].replace('""', '"') if text.startswith('"') else text
