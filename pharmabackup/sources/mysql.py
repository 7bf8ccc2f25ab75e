"""MariaDB and MySQL: one database of a running server, by its own programs."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pharmabackup.errors import Conflict, InvalidInput, SourceFailed, Unsupported
from pharmabackup.sources.base import Content, Served, Sink, Source, StrPath, View
from pharmabackup.sources.flat import put_bytes, put_files
from pharmabackup.sources.mysql_load import DATABASE, EVENTS, PROGRAMS, Loading, target_not_empty, unknown_triggers
from pharmabackup.sources.mysql_rows import RowCount
from pharmabackup.sources.mysql_schema import CHARACTERS, Schema, patient, unseen
from pharmabackup.sources.mysql_server import SYSTEM, Server, Version, exists, failed, one, run, version, views
from pharmabackup.sources.mysql_tools import CLIENT, DUMP, Dumping, Tools
from pharmabackup.sources.program import Program

if TYPE_CHECKING:
    from pharmabackup.sources.mysql_server import Connection

DEFINER = re.compile(rb"DEFINER=(`(?:[^`]|``)*`@`[^`]*`)")
LOCKED = 1205
BEGIN_S = 60  # until a dump has begun
DUMP_TIME = timedelta(hours=24)
STILL_OPEN_S = 3  # that the server may need to notice that a client has gone
CLIENTS = "SELECT count(*) FROM information_schema.processlist WHERE db = %s AND id <> connection_id()"
REFERRING = (
    "SELECT constraint_schema FROM information_schema.referential_constraints"
    " WHERE unique_constraint_schema = %s AND constraint_schema <> %s"
)
SIZE = "SELECT coalesce(sum(data_length + index_length), 0) FROM information_schema.tables WHERE table_schema = %s"


class MySQL(Source):
    """One database of MariaDB or MySQL, as of the moment of the view. Rows are read and written meanwhile as ever.

    `url`: "pmr", or "mariadb://user@host:port/pmr?ssl-ca=/path/ca.pem", without a password. `tools`: the folder of
    mariadb-dump and mariadb, or of mysqldump and mysql. `count`: tables whose rows are counted now, and again after a
    restore. Restored to a folder it is `database.sql` (tables and rows), `programs.sql` (views, routines, triggers)
    and `events.sql`, which the server's client reads. Users and their rights are the server's, and not in it.

    `only`, of what is restored into: tables whose rows come; all others are there and empty, and events do not begin
    (docs/sources.md). It never takes another database's place.

    Restored into a server (`into=`), it is loaded beside what is there, compared, and all its tables take their
    places at once: with `overwrite` those that are there move to a database of their own.
    """

    kind = "mysql"

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        tier: int = 3,
        password: str | None = None,
        tools: StrPath | None = None,
        count: Sequence[str] = (),
        only: Sequence[str] = (),
    ) -> None:
        self._server = Server(url, password)
        super().__init__(self._server.database if name is None else name, tier)
        if isinstance(count, str):
            raise InvalidInput("The tables to count are a list, not one text.", remedy=f"Write [{count!r}].")
        self._tools = Tools(tools)
        self._count = tuple(count)
        if isinstance(only, str):
            raise InvalidInput("The tables to restore are a list, not one text.", remedy=f"Write [{only!r}].")
        self._only = tuple(only)

    def served(self) -> Served:
        return self._server.served(self.name)

    def view(self, *, scratch: Path) -> AbstractContextManager[View]:  # noqa: ARG002
        return self._view()

    @contextmanager
    def _view(self) -> Iterator[View]:
        if self._only:
            raise InvalidInput("A database is backed up whole.", remedy="Give `only` to restore a part of it.")
        with self._server.connected(self.name) as connection:
            view = _Database(self, connection, self._dumping(version(connection)))
            try:
                view.begin()
                yield view
            finally:
                view.close()

    def _dumping(self, server: Version) -> Dumping:
        program, own = self._tools.program(DUMP, server, self.name)
        return Dumping(self._server, server, program, own, self.name, DUMP_TIME.total_seconds())

    def prepare(self, facts: Mapping[str, object], *, overwrite: bool) -> None:
        database = self._server.database
        if database.lower() in SYSTEM:
            raise Unsupported(f"A server needs its database {database}.", remedy="Restore under another name.")
        with self._server.connected(self.name, None) as connection:
            server = version(connection)
            there = exists(connection, database) and not Schema.read(connection, database).empty
            referring = run(connection, REFERRING, database, database)
            until = time.monotonic() + STILL_OPEN_S
            while (busy := one(connection, CLIENTS, database)) and time.monotonic() < until:
                time.sleep(0.1)
        dumped = Version(
            facts.get("product") == "MariaDB", int(str(facts.get("major", 0))), int(str(facts.get("minor", 0)))
        )
        if server.mariadb != dumped.mariadb or server.numbers < dumped.numbers:
            raise Unsupported(
                f"{self.name} is of {dumped.product} {dumped}, and this server is {server.product} {server}.",
                remedy=f"Restore into {dumped.product} {dumped} or newer.",
            )
        self._tools.program(CLIENT, server, self.name)
        if there and (self._only or not overwrite):
            raise target_not_empty(database, part=bool(self._only))
        if there and referring:
            raise Conflict(
                f"Tables of the database {referring[0][0]} refer to {database}, and would then refer to what it had.",
                kind="in-use",
                remedy="Drop these foreign keys first and make them anew afterwards, or restore under another name.",
            )
        if there and busy:
            raise Conflict(
                f"The database {database} is in use and cannot be replaced (connections: {busy}).",
                kind="in-use",
                remedy="Let them close it, or restore under another name.",
            )

    def load(self, content: Content, *, overwrite: bool) -> Mapping[str, object]:
        with self._server.connected(self.name, None) as connection:
            server = version(connection)
        client, own = self._tools.program(CLIENT, server, self.name)
        dumping = self._dumping(server)
        return Loading(self._server, client, own.mariadb, dumping, self.name, content, self._only).run(
            overwrite=overwrite and not self._only
        )


class _Database(View):
    """The program's transaction has begun: it waits until its output is read.

    Read once more, it is started once more: what it gives then is of then.
    """

    def __init__(self, source: MySQL, connection: Connection, dumping: Dumping) -> None:
        self._source = source
        self._connection = connection
        self._dumping = dumping
        self._program: Program | None = None

    def begin(self) -> None:
        """Start the program, and wait until its transaction has begun: what it dumps comes after that."""
        source, database = self._source, self._source._server.database
        self._schema = schema = Schema.read(self._connection, database)
        if missing := sorted(set(source._count) - set(schema.tables)):
            raise SourceFailed(
                f"{missing[0]} cannot be counted in {source.name}: it is a view, or is not there.",
                kind="table-missing",
                remedy="Count tables.",
                dataset=source.name,
            )
        more = [f"--ignore-table={database}.{view}" for view in schema.views]
        if schema.versioned and self._dumping.keeps_history and not schema.by_transaction:
            more.append("--dump-history")
        with patient(self._connection):
            self._program = self._dumping.tables(more)
            try:
                self._program.read_until(_begun, seconds=BEGIN_S)
            except SourceFailed as error:
                raise failed(LOCKED, source.name) if error.kind == "timeout" else error from None

    def dump(self, sink: Sink) -> Mapping[str, object]:
        source, connection = self._source, self._connection
        if self._program is None:
            self.begin()
        program, self._program, schema = self._program, None, self._schema
        assert program is not None
        rows = RowCount(source._count)
        with program:
            tables = sink.stream(rows.through(program.output(sink.check)), fine=True)
            program.finish(sink.check)
        if rows.unseen:
            raise SourceFailed(
                f"The rows of {rows.unseen[0]} in {source.name} could not be counted: its dump has another form.",
                kind="tool-failed",
                remedy="Take the dump program that came with the server, or do not count that table.",
                dataset=source.name,
            )
        events = put_bytes(sink, self._dumping.events(sink.check))  # contents in the order of their names
        text = self._dumping.programs(schema.whole_views, sink.check)
        programs = put_bytes(sink, text)
        if set(views(connection, source._server.database)) != set(schema.views):
            raise SourceFailed(  # it may be among the tables now, and missing here
                f"A view of {source.name} was made or dropped while it was dumped.",
                kind="changed",
                remedy="Back up again when that is done.",
                dataset=source.name,
            )
        put_files(sink, [(DATABASE, *tables), (EVENTS, *events), (PROGRAMS, *programs)])
        if count := unknown_triggers(text):
            sink.finding(
                "trigger-unknown",
                PROGRAMS,
                f"{source.name}: triggers are written in a way that is not known ({count}). If they name their "
                "database, a restore into a server fails.",
                "Make them anew without their database's name, and try a restore.",
                harms=False,
            )
        for found in (*schema.findings(self._dumping.keeps_history), *unseen(connection, source._server.database)):
            code, message, remedy, severity = found
            sink.finding(code, DATABASE, f"{source.name}: {message}", remedy, severity=severity)
        server = version(connection)
        characters, collation = run(connection, CHARACTERS, source._server.database)[0]
        return {
            "product": server.product,
            "server": str(one(connection, "SELECT version()")),
            "major": server.major,
            "minor": server.minor,
            "dump": f"{self._dumping.version.product} {self._dumping.version}",
            "size": int(one(connection, SIZE, source._server.database)),
            "characters": str(characters),
            "collation": str(collation),
            "rows": rows.found,
            "definers": sorted({found.decode(errors="replace") for found in DEFINER.findall(text)}),
        }

    def close(self) -> None:
        if self._program is not None:
            self._program.end()


def _begun(head: bytes) -> bool:
    """What comes before is written before its transaction begins."""
    return b" structure for " in head or b"\n-- Dump completed" in head
