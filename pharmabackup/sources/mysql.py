"""MariaDB and MySQL: one database of a running server, by its own programs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pharmabackup.errors import Conflict, InvalidInput, SourceFailed, Unsupported
from pharmabackup.sources.base import Content, Sink, Source, StrPath, View
from pharmabackup.sources.flat import put_bytes, put_files
from pharmabackup.sources.mysql_load import DATABASE, EVENTS, PROGRAMS, Loading
from pharmabackup.sources.mysql_rows import RowCount
from pharmabackup.sources.mysql_schema import Schema, patient, unseen
from pharmabackup.sources.mysql_server import SYSTEM, Server, Version, exists, one, run, version
from pharmabackup.sources.mysql_tools import CLIENT, DUMP, Dumping, Tools
from pharmabackup.sources.program import Program

if TYPE_CHECKING:
    from pharmabackup.sources.mysql_server import Connection

BEGIN_S = 60  # until a dump has begun
DUMP_TIME = timedelta(hours=24)
STILL_OPEN_S = 3  # that the server may need to notice that a client has gone
CLIENTS = "SELECT count(*) FROM information_schema.processlist WHERE db = %s AND id <> connection_id()"
SIZE = "SELECT coalesce(sum(data_length + index_length), 0) FROM information_schema.tables WHERE table_schema = %s"
CHARACTERS = (
    "SELECT default_character_set_name, default_collation_name FROM information_schema.schemata"
    " WHERE schema_name = %s"
)


class MySQL(Source):
    """One database of MariaDB or MySQL, as of the moment of the view. Rows are read and written meanwhile as ever.

    `url`: "pmr", or "mariadb://user@host:port/pmr?ssl-ca=/path/ca.pem", without a password. `tools`: the folder of
    mariadb-dump and mariadb, or of mysqldump and mysql. `count`: tables whose rows are counted now, and again after a
    restore. Restored to a folder it is `database.sql` (tables and rows), `programs.sql` (views, routines, triggers)
    and `events.sql`, which the server's client reads. Users and their rights are the server's, and not in it.

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
    ) -> None:
        self._server = Server(url, password)
        super().__init__(self._server.database if name is None else name, tier)
        if isinstance(count, str):
            raise InvalidInput("The tables to count are a list, not one text.", remedy=f"Write [{count!r}].")
        self._tools = Tools(tools)
        self._count = tuple(count)

    def view(self, *, scratch: Path) -> AbstractContextManager[View]:  # noqa: ARG002
        return self._view()

    @contextmanager
    def _view(self) -> Iterator[View]:
        with self._server.connected(self.name) as connection:
            schema = Schema.read(connection, self._server.database)
            if missing := sorted(set(self._count) - set(schema.tables)):
                raise SourceFailed(
                    f"{missing[0]} cannot be counted in {self.name}: it is a view, or is not there.",
                    kind="table-missing",
                    remedy="Count tables.",
                    dataset=self.name,
                )
            dumping = self._dumping(version(connection))
            view = _Database(self, connection, schema, dumping)
            try:
                view.begin()
                yield view
            finally:
                view.close()

    def _dumping(self, server: Version) -> Dumping:
        program, own = self._tools.program(DUMP, server, self.name)
        return Dumping(self._server, program, own, self.name, DUMP_TIME.total_seconds())

    def prepare(self, facts: Mapping[str, object], *, overwrite: bool) -> None:
        database = self._server.database
        if database in SYSTEM:
            raise Unsupported(f"A server needs its database {database}.", remedy="Restore under another name.")
        with self._server.connected(self.name, None) as connection:
            server = version(connection)
            there = exists(connection, database) and not Schema.read(connection, database).empty
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
        if there and not overwrite:
            raise Conflict(
                f"A database {database} is there already and was not touched.",
                kind="target-not-empty",
                remedy="Choose another name, or pass overwrite=True: then its tables are kept in another database.",
            )
        if there and busy:
            raise Conflict(
                f"The database {database} is in use and cannot be replaced (connections: {busy}).",
                kind="in-use",
                remedy="Let them close it, or restore under another name.",
            )

    def load(self, content: Content, *, overwrite: bool) -> Mapping[str, object]:  # noqa: ARG002  (what is there is kept)
        with self._server.connected(self.name, None) as connection:
            server = version(connection)
        client, own = self._tools.program(CLIENT, server, self.name)
        return Loading(self._server, client, own.mariadb, self._dumping(server), self.name, content).run()


class _Database(View):
    """The program's transaction has begun: it waits until its output is read.

    Read once more, it is started once more: what it gives then is of then.
    """

    def __init__(self, source: MySQL, connection: Connection, schema: Schema, dumping: Dumping) -> None:
        self._source = source
        self._connection = connection
        self._schema = schema
        self._dumping = dumping
        self._program: Program | None = None

    def begin(self) -> None:
        """Start the program, and wait until its transaction has begun: what it dumps comes after that."""
        more = [f"--ignore-table={self._source._server.database}.{view}" for view in self._schema.views]
        if self._schema.versioned and self._dumping.keeps_history:
            more.append("--dump-history")
        with patient(self._connection):
            self._program = self._dumping.tables(more)
            self._program.read_until(_begun, seconds=BEGIN_S)

    def dump(self, sink: Sink) -> Mapping[str, object]:
        source, connection, schema = self._source, self._connection, self._schema
        if self._program is None:
            self.begin()
        program, self._program = self._program, None
        assert program is not None
        rows = RowCount(source._count)
        with program:
            tables = sink.stream(rows.through(program.output(sink.check)), fine=True)
            program.finish(sink.check)
        events = put_bytes(sink, self._dumping.events(sink.check))  # contents in the order of their names
        programs = put_bytes(sink, self._dumping.programs(schema.whole_views, sink.check))
        put_files(sink, [(DATABASE, *tables), (EVENTS, *events), (PROGRAMS, *programs)])
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
        }

    def close(self) -> None:
        if self._program is not None:
            self._program.end()


def _begun(head: bytes) -> bool:
    """What comes before is written before its transaction begins."""
    return b" structure for " in head or b"\n-- Dump completed" in head
