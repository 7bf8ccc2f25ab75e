"""Restoring a database into MariaDB or MySQL: beside what is there, compared, and then all its tables at once."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING

from pharmabackup.errors import Conflict, SourceFailed
from pharmabackup.sources.base import Content
from pharmabackup.sources.mysql_rows import joined, only_of
from pharmabackup.sources.mysql_schema import CHARACTERS, TRIGGERS, Schema, raised
from pharmabackup.sources.mysql_schema import EVENTS as EVENTS_OF
from pharmabackup.sources.mysql_server import Server, count_rows, exists, one, quoted, run, tables, told
from pharmabackup.sources.mysql_tools import SIGNS, Dumping
from pharmabackup.sources.program import Program
from pharmabackup.sources.tools import trouble

if TYPE_CHECKING:
    from pharmabackup.sources.mysql_server import Connection

DATABASE, EVENTS, PROGRAMS = b"database.sql", b"events.sql", b"programs.sql"
PACKET = 1 << 30  # bytes of a statement, at most
LOAD_TIME = timedelta(hours=72)
END_S = 60  # for a connection that is stopped
NAME_MAX = 64  # characters of a name
KEPT = "pharmabackup programs"  # a table of texts, in a database of what was replaced
PART = 1 << 20  # bytes of text in a row of it
MARK = "pharmabackup is restoring"  # a table in a database that is being loaded, until it is whole
NEW = "CREATE DATABASE {} CHARACTER SET {} COLLATE {}"
WORD = re.compile(r"\w+")
ALTER = re.compile(rb"^ALTER DATABASE `(?:[^`]|``)+` CHARACTER SET", re.MULTILINE)
_NAME = rb'(?:`(?:[^`]|``)+`|"(?:[^"]|"")+"|[\w$\x80-\xff]+)'
_GAP = rb"(?:\s|/\*.*?\*/)"
# A trigger may have been made with its database's name before its own and its table's, and is written down so.
TRIGGER = re.compile(
    rb"^(/\*!50003 CREATE\*/ (?:/\*!50017 DEFINER=.*?\*/ )?/\*!50003 TRIGGER%(gap)b+"
    rb"(?:IF%(gap)b+NOT%(gap)b+EXISTS%(gap)b+)?)"
    rb"(?:%(name)b%(gap)b*\.%(gap)b*)?"
    rb"(%(name)b%(gap)b+(?:BEFORE|AFTER)%(gap)b+(?:INSERT|UPDATE|DELETE)%(gap)b+ON%(gap)b+)"
    rb"(?:%(name)b%(gap)b*\.%(gap)b*)?(?=%(name)b)" % {b"gap": _GAP, b"name": _NAME},
    re.MULTILINE | re.IGNORECASE,
)
ANY_TRIGGER = re.compile(rb"^/\*!50003 CREATE\*/ .*/\*!50003 TRIGGER", re.MULTILINE)
OLD_TABLES = b"/*M!100000 SET SESSION innodb_strict_mode = 0 */;\n"  # which a newer server would refuse


class Loading:
    """One restore. Each step has a connection of its own, since hours lie between them."""

    def __init__(
        self,
        server: Server,
        client: str,
        mariadb: bool,
        dumping: Dumping,
        dataset: str,
        content: Content,
        only: Sequence[str],
    ) -> None:
        """`client`: the program that runs statements, and whether it is MariaDB's. `only`: whose rows come."""
        self._server = server
        self._client = client
        self._mariadb = mariadb
        self._dumping = dumping
        self._dataset = dataset
        self._content = content
        self._only = only
        self._look = content.check
        self._texts_in = KEPT

    def run(self, *, overwrite: bool) -> Mapping[str, object]:
        """Load it beside what is there, compare, give it its place. SourceFailed says what was replaced, if any."""
        with self._alone():
            with self._connected() as connection:
                self._drop_leftovers(connection)
                beside = self._free_name(f"restoring_{secrets.token_hex(4)}")
                run(connection, self._new(beside))
                run(connection, f"CREATE TABLE {quoted(beside, MARK)} (a int)")
            try:
                with self._connected() as connection, raised(connection, "max_allowed_packet", PACKET):
                    # Rows are twice as long in a dump as they were in the server.
                    rows_of = self._content.read(DATABASE)
                    parts = only_of(rows_of, self._only) if self._only else rows_of
                    self._execute(chain([OLD_TABLES], joined(parts)), beside)
                rows = self._verified(beside)
                programs, events = (b"".join(self._content.read(path)) for path in (PROGRAMS, EVENTS))
                self._execute([_aimed(programs, beside)], beside)  # else a mistake in them would come too late
                self._look()
                replaced = self._switch(beside, programs, overwrite=overwrite)
            finally:
                with suppress(SourceFailed), self._connected() as connection:
                    run(connection, f"DROP DATABASE IF EXISTS {quoted(beside)}")
            if not self._only:
                self._begin_events(events)
        facts: dict[str, object] = {"database": self._server.database, "rows": rows}
        return facts | ({"replaced": replaced} if replaced else {})

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One restore into a database at a time: the next drops what one that was killed has left."""
        name = "pharmabackup " + hashlib.sha256(self._server.database.lower().encode()).hexdigest()[:32]
        with self._connected() as connection:
            if not one(connection, "SELECT get_lock(%s, 0)", name):
                raise Conflict(
                    f"Another restore into {self._server.database} is under way.",
                    kind="in-use",
                    remedy="Wait until it has ended.",
                )
            yield

    def _connected(self) -> AbstractContextManager[Connection]:
        return self._server.connected(self._dataset, None)

    # ------------------------------------------------------------ beside

    def _new(self, name: str) -> str:
        """With the character set of the one that was dumped."""
        given = [str(self._content.facts.get(key, "")) for key in ("characters", "collation")]
        if not all(map(WORD.fullmatch, given)):
            raise SourceFailed(
                f"The backup of {self._dataset} does not say which character set it has.",
                kind="damaged",
                remedy="Restore to a folder, and load database.sql by hand.",
                dataset=self._dataset,
            )
        return NEW.format(quoted(name), *given)

    def _execute(
        self, pieces: Iterable[bytes | memoryview], database: str, *, look: Callable[[], None] | None = None
    ) -> None:
        look = look or self._look
        command = [
            self._client,
            *self._server.arguments(mariadb=self._mariadb),
            "--batch",
            "--comments",  # else those within triggers are taken out, and what follows them is lost
            "--binary-mode",  # no commands of the client's own in what is data
            "--local-infile=0",
            f"--database={database}",
        ]
        with Program(
            command,
            dataset=self._dataset,
            seconds=LOAD_TIME.total_seconds(),
            env=self._server.environment(),
            feed=True,
            trouble=lambda code, errors: trouble(SIGNS, "The client", code, errors),
        ) as running:
            running.feed(pieces, look)
            running.finish(look)

    def _verified(self, database: str) -> dict[str, int]:
        """The server's own check of each table, and the counted rows, which must be those of the backup."""
        expected = self._content.facts.get("rows")
        expected = expected if isinstance(expected, dict) else {}
        if self._only:
            expected = {table: count for table, count in expected.items() if table in self._only}
        with self._connected() as connection:
            there = tables(connection, database)
            if missing := sorted(set(self._only) - set(there)):
                raise SourceFailed(
                    f"There is no table {missing[0]} in the backup of {self._dataset}.",
                    kind="table-missing",
                    remedy="Check its name; large and small letters count.",
                    dataset=self._dataset,
                )
            for table in there:
                self._look()
                for _, _, kind, _ in run(connection, f"CHECK TABLE {quoted(database, table)}"):
                    if str(kind).lower() == "error":
                        raise self._damaged(f"{table} does not pass the server's own check")
            found = count_rows(connection, database, expected)
        if wrong := [table for table, count in expected.items() if found[table] != count]:
            raise self._damaged(
                f"{wrong[0]} has {found[wrong[0]]:,} rows in the restored {self._dataset}, and had "
                f"{expected[wrong[0]]:,} when it was backed up"
            )
        return found

    def _damaged(self, what: str) -> SourceFailed:
        return SourceFailed(
            f"{what}.",
            kind="damaged",
            remedy="Restore an earlier snapshot, and keep this one to look at.",
            dataset=self._dataset,
        )

    # ------------------------------------------------------------ its place

    def _switch(self, beside: str, programs: bytes, *, overwrite: bool) -> str | None:
        """All tables at once. What was there keeps another name, which is returned. Nothing is cancelled now."""
        name, replaced = self._server.database, None
        with self._connected() as connection:
            if not exists(connection, name):
                run(connection, self._new(name))
            old, new = Schema.read(connection, name), Schema.read(connection, beside)
            moves = [(beside, name, table) for table in new.tables if table != MARK]
            if not old.empty:
                if not overwrite:  # it came while this was loaded
                    raise target_not_empty(name)
                replaced = self._kept(connection, old)
                moves[:0] = [(name, replaced, table) for table in old.tables]
            self._drop_programs(connection, beside, new)
            number = one(connection, "SELECT connection_id()")
            try:
                self._drop_programs(connection, name, old)  # tables with triggers do not move
                if moves:
                    steps = ", ".join(f"{quoted(a, table)} TO {quoted(b, table)}" for a, b, table in moves)
                    run(connection, f"RENAME TABLE {steps}")
            except BaseException:
                if replaced is not None:
                    self._put_back(number, replaced)
                raise
        try:
            with self._connected() as connection:
                run(connection, self._new(name).replace("CREATE", "ALTER", 1))
            self._execute([_aimed(programs, name)], name, look=_nothing)
        except SourceFailed as why:
            raise self._failed(
                f"The tables of {self._dataset} came back as {name}, but not its views and triggers: {why.message}",
                "Load programs.sql of the snapshot by hand"
                + (f"; what was there before is in {replaced}." if replaced else "."),
            ) from None
        if replaced is not None:
            self._revive(replaced, old)
        return replaced

    def _kept(self, connection: Connection, old: Schema) -> str:
        """A database for what is replaced, with the texts of its programs: from now on they are nowhere else."""
        name = self._server.database
        self._texts_in = KEPT + "_" * (KEPT in old.tables)
        replaced = self._free_name(f"before_{datetime.now(UTC):%Y%m%d_%H%M%S}")
        text = self._dumping.programs(old.whole_views, self._look) + self._dumping.events(self._look)
        characters, collation = run(connection, CHARACTERS, name)[0]
        run(connection, NEW.format(quoted(replaced), characters, collation))
        try:
            table = quoted(replaced, self._texts_in)
            run(connection, f"CREATE TABLE {table} (number int PRIMARY KEY, text longblob)")
            insert = f"INSERT INTO {table.replace('%', '%%')} VALUES (%s, %s)"  # noqa: S608
            for number, at in enumerate(range(0, len(text), PART)):
                run(connection, insert, number, text[at : at + PART])
            for number, view in enumerate(old.broken, 1):  # they cannot be made again
                ((_, text_of, *_),) = run(connection, f"SHOW CREATE VIEW {quoted(name, view)}")
                run(connection, insert, -number, str(text_of).encode())
        except BaseException:
            run(connection, f"DROP DATABASE {quoted(replaced)}")  # nothing was moved yet
            raise
        return replaced

    def _revive(self, replaced: str, old: Schema) -> None:
        """The views, routines and triggers of what was replaced, and its events, which act no more."""
        try:
            self._execute([_aimed(self._texts(replaced), replaced)], replaced, look=_nothing)
            with self._connected() as connection:
                for (event,) in run(connection, EVENTS_OF, replaced):
                    run(connection, f"ALTER EVENT {quoted(replaced, str(event))} DISABLE")
                if not old.broken:
                    run(connection, f"DROP TABLE {quoted(replaced, self._texts_in)}")
        except SourceFailed as why:
            self._content.finding(
                "not-restored",
                f"{self._dataset} is restored. Of what was there before, all tables are in {replaced}, and not all "
                f"views, routines and triggers could be made there: {why.message}",
                f"Their texts are in its table {self._texts_in!r}.",
            )

    def _texts(self, replaced: str) -> bytes:
        with self._connected() as connection:
            query = f"SELECT text FROM {quoted(replaced, self._texts_in)} WHERE number >= 0 ORDER BY number"  # noqa: S608
            return b"".join(text for (text,) in run(connection, query))

    def _put_back(self, number: int, replaced: str) -> None:
        """After an error: as it was, if nothing was moved; SourceFailed if that cannot be, or all was moved.

        `number`: the connection that moved tables. It may still be at it, though we have lost it.
        """
        name = self._server.database
        try:
            self._ended(number)
            with self._connected() as connection:
                moved = set(tables(connection, replaced)) - {self._texts_in}
            if not moved:
                self._execute([self._texts(replaced)], name, look=_nothing)
                with self._connected() as connection:
                    run(connection, f"DROP DATABASE {quoted(replaced)}")
                return
            why = f"tables were moved to {replaced}, and then the server reported an error"
        except SourceFailed as error:
            why = error.message
        raise self._failed(
            f"The views, routines, triggers and events of {name} were dropped, and not made again: {why}",
            f"Look which tables are in {name} and which in {replaced}; the texts of what was dropped are in the "
            f"table {self._texts_in!r} there, what was to be restored is in the snapshot.",
        )

    def _ended(self, number: int) -> None:
        """Until the server has no such connection any more."""
        until = time.monotonic() + END_S
        with self._connected() as connection:
            while run(connection, "SELECT 1 FROM information_schema.processlist WHERE id = %s", number):
                with suppress(SourceFailed), told(self._dataset):
                    run(connection, f"KILL {number}")
                if time.monotonic() > until:
                    raise self._failed("the connection that moves tables does not end", "Look into the server's log.")
                time.sleep(0.1)

    def _failed(self, what: str, remedy: str) -> SourceFailed:
        return SourceFailed(
            what if what.endswith(".") else f"{what}.", kind="tool-failed", remedy=remedy, dataset=self._dataset
        )

    def _drop_programs(self, connection: Connection, database: str, schema: Schema) -> None:
        for (trigger,) in run(connection, TRIGGERS, database):
            run(connection, f"DROP TRIGGER {quoted(database, str(trigger))}")
        for view in schema.views:
            run(connection, f"DROP VIEW {quoted(database, view)}")
        for kind, routine in schema.routines:
            mode = "ORACLE" if kind.startswith("PACKAGE") else ""
            run(connection, f"SET SESSION sql_mode = '{mode}'")
            run(connection, f"DROP {kind} IF EXISTS {quoted(database, routine)}")
        run(connection, "SET SESSION sql_mode = ''")
        for event in schema.events:
            run(connection, f"DROP EVENT {quoted(database, event)}")

    def _begin_events(self, events: bytes) -> None:
        """Last of all: they act by themselves."""
        try:
            self._execute([_aimed(events, self._server.database)], self._server.database, look=_nothing)
        except SourceFailed as error:
            self._content.finding(
                "not-restored",
                f"The database of {self._dataset!r} is whole, but its events were not begun: {error.message}",
                "Load events.sql of the snapshot by hand.",
            )

    # ------------------------------------------------------------ names

    def _free_name(self, what: str) -> str:
        return self._server.database[: NAME_MAX - len(what) - 1] + f"_{what}"

    def _drop_leftovers(self, connection: Connection) -> None:
        """What restores that were killed have left, of this database: they are marked."""
        stem = self._free_name("restoring_" + "0" * 8).removesuffix("0" * 8)
        query = "SELECT table_schema FROM information_schema.tables WHERE table_name = %s"
        for (found,) in run(connection, query, MARK):
            if re.fullmatch(re.escape(stem) + "[0-9a-f]{8}", str(found), re.IGNORECASE):
                run(connection, f"DROP DATABASE {quoted(str(found))}")


def _nothing() -> None:
    """What looks for a cancel where none may come between."""


def _aimed(programs: bytes, database: str) -> bytes:
    """Triggers are of the database that they are loaded into, whatever it is called.

    So are routines of another collation than their database's, which set that for a moment, by the name that it had.
    """
    there = b"ALTER DATABASE " + quoted(database).encode() + b" CHARACTER SET"
    return TRIGGER.sub(rb"\1\2", ALTER.sub(lambda _: there, programs))


def unknown_triggers(programs: bytes) -> int:
    """How many triggers are written in a way that is not known here."""
    return len(ANY_TRIGGER.findall(programs)) - len(TRIGGER.findall(programs))


def target_not_empty(database: str, *, part: bool = False) -> Conflict:
    """`part`: of the database that is restored only a part comes, which replaces none."""
    other = "" if part else ", or pass overwrite=True: then its tables are kept in another database"
    return Conflict(
        f"A database {database} is there already and was not touched.",
        kind="target-not-empty",
        remedy=f"Choose another name{other}.",
    )
