"""What a database of MariaDB or MySQL is made of, and what of it a dump does not hold as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pharmabackup.sources.mysql_server import DAYS_S, one, quoted, run, tables, version, views

if TYPE_CHECKING:
    from pharmabackup.sources.mysql_server import Connection

Found = tuple[str, str, str, str]
"""A finding: code, message, remedy, severity."""

CHARACTERS = (
    "SELECT default_character_set_name, default_collation_name FROM information_schema.schemata"
    " WHERE schema_name = %s"
)
UNSAFE = (  # tables whose rows are not of one moment in a transaction
    "SELECT table_name FROM information_schema.tables t JOIN information_schema.engines e ON e.engine = t.engine"
    " WHERE table_schema = %s AND table_type <> 'VIEW' AND coalesce(e.transactions, 'NO') <> 'YES' ORDER BY 1"
)
ROUNDED = (
    "SELECT DISTINCT c.table_name FROM information_schema.columns c JOIN information_schema.tables t"
    " ON t.table_schema = c.table_schema AND t.table_name = c.table_name"
    " WHERE c.table_schema = %s AND data_type = 'float' AND table_type <> 'VIEW' ORDER BY 1"
)
VERSIONED = (
    "SELECT table_name FROM information_schema.tables WHERE table_schema = %s AND table_type = 'SYSTEM VERSIONED'"
)
BY_TRANSACTION = (  # whose past rows no dump program can dump
    "SELECT table_name FROM information_schema.columns"
    " WHERE table_schema = %s AND generation_expression = 'ROW START' AND data_type = 'bigint'"
)
ROUTINES = "SELECT routine_type, routine_name FROM information_schema.routines WHERE routine_schema = %s"
EVENTS = "SELECT event_name FROM information_schema.events WHERE event_schema = %s"
TRIGGERS = "SELECT trigger_name FROM information_schema.triggers WHERE trigger_schema = %s"
NEEDED = ("SELECT", "SHOW VIEW", "TRIGGER", "EVENT")  # without which parts of a database are not even seen
GRANT = re.compile(r"GRANT (.+) ON (?:\*|`((?:[^`]|``)*)`)\.(?:\*|`((?:[^`]|``)*)`) TO ")
ALL = "ALL PRIVILEGES"
ROUTINE = "SHOW CREATE ROUTINE"


@dataclass(frozen=True, slots=True)
class Schema:
    """By name. `broken`: views that cannot be read; `unsafe`: tables without transactions."""

    tables: list[str]
    views: list[str]
    broken: list[str]
    unsafe: list[str]
    rounded: list[str]
    versioned: list[str]
    by_transaction: list[str]
    routines: list[tuple[str, str]]
    events: list[str]

    @classmethod
    def read(cls, connection: Connection, database: str) -> Schema:
        def names(query: str) -> list[str]:
            return [str(name) for (name,) in run(connection, query, database)]

        every = views(connection, database)
        return cls(
            tables=tables(connection, database),
            views=every,
            broken=[view for view in every if _broken(connection, database, view)],
            unsafe=names(UNSAFE),
            rounded=names(ROUNDED),
            versioned=names(VERSIONED),
            by_transaction=names(BY_TRANSACTION),
            events=names(EVENTS),
            routines=[(str(kind), str(name)) for kind, name in run(connection, ROUTINES, database)],
        )

    @property
    def empty(self) -> bool:
        return not (self.tables or self.views or self.routines or self.events)

    @property
    def whole_views(self) -> list[str]:
        return [view for view in self.views if view not in self.broken]

    def findings(self, keeps_history: bool) -> Iterator[Found]:
        """What a dump of it lacks, or changes."""
        if self.broken:
            yield (
                "view-broken",
                f"the view {_some(self.broken)} names what is there no more, and was left out.",
                "Mend or drop it.",
                "info",
            )
        if self.unsafe:
            yield (
                "no-transactions",
                f"rows of {_some(self.unsafe)} may be of several moments: such tables have no transactions.",
                "Change them: ALTER TABLE … ENGINE=InnoDB.",
                "warning",
            )
        if self.versioned and not (keeps_history and not self.by_transaction):
            yield (
                "history-left-out",
                f"past rows of {_some(self.versioned)} were left out.",
                "Take MariaDB 10.11 or newer and its programs; of tables versioned by transaction none can dump it.",
                "warning",
            )
        if self.rounded:
            yield (
                "rounded",
                f"FLOAT columns of {_some(self.rounded)} keep six digits in a dump.",
                "Where more count, change them to DOUBLE or DECIMAL.",
                "info",
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _broken(connection: Connection, database: str, view: str) -> bool:
    from pymysql import MySQLError

    try:
        run(connection, f"SHOW COLUMNS FROM {quoted(database, view)}")
    except MySQLError as error:
        if error.args[0] in (1356, 1146):
            return True
        raise
    return False


def unseen(connection: Connection, database: str) -> Iterator[Found]:
    """What this user may not see of a database, which is left out of dumps without a word."""
    held: set[str] = set()
    for (text,) in run(connection, "SHOW GRANTS"):
        if not (found := GRANT.match(str(text))):
            continue
        rights, of, table = set(found[1].split(", ")), found[2], found[3]
        if ALL in rights:
            rights |= {*NEEDED, ROUTINE}
        if table is None and of is None and rights & {"SELECT", "SHOW_ROUTINE"}:
            rights.add(ROUTINE)
        if table in (None, "proc") and of == "mysql" and "SELECT" in rights and version(connection).mariadb:
            held.add(ROUTINE)
        if table is None and (of is None or _like(of.replace("``", "`"), database)):
            held |= rights
    if missing := [right for right in (*NEEDED, ROUTINE) if right not in held]:
        yield (
            "unseen",
            f"its user may lack {', '.join(missing)} on the database; what it may not see is not in the backup.",
            f"Grant {', '.join(missing)} on {quoted(database)}.* to it; for routines before MariaDB 11.3 "
            "SELECT on mysql.proc, on MySQL SHOW_ROUTINE.",
            "warning",
        )


def _like(pattern: str, database: str) -> bool:
    """Whether a grant's pattern has this name."""
    parts = re.findall(r"\\.|.", pattern)
    special = {"%": ".*", "_": "."}
    return re.fullmatch("".join(special.get(part, re.escape(part[-1])) for part in parts), database) is not None


@contextmanager
def raised(connection: Connection, variable: str, value: int) -> Iterator[None]:
    """A value that connections take over from the server when they begin, if this user may set that."""
    from pymysql import MySQLError

    # Two of us at once would else put back each other's value.
    alone = one(connection, f"SELECT get_lock('pharmabackup {variable}', 30)")
    before = int(one(connection, f"SELECT @@global.{variable}"))
    changed = False
    try:
        if alone and before < value:
            with suppress(MySQLError):  # 1227: not this user; where that matters a program's trouble says so
                run(connection, f"SET GLOBAL {variable} = {value}")
                changed = True
        yield
    finally:
        with suppress(MySQLError):
            if changed:
                run(connection, f"SET GLOBAL {variable} = {before}")
            run(connection, f"SELECT release_lock('pharmabackup {variable}')")


def patient(connection: Connection) -> AbstractContextManager[None]:
    """Connections that begin within are not broken by a server that waits for a reader.

    A dump waits while a line is slow or its turn has not come; `net_write_timeout`, 60 s, is for all at once.
    """
    return raised(connection, "net_write_timeout", DAYS_S)
