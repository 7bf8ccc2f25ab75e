"""Database servers of the tests' own, with the sample pharmacy in them."""

import os
import sqlite3
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar

sys.path.append(str(Path(__file__).resolve().parent.parent))
from tests.servers import mariadb, postgresql

ROWS = 500  # that go to a server at once
NOTE = "INSERT INTO written (note) VALUES (%s)"
Once = Callable[[int], None]


class Served(ABC):
    """A running server with the database pmr. `dump` writes to its standard output, `into_nothing` does not."""

    product: ClassVar[str]
    types: ClassVar[dict[str, str]]
    quote: ClassVar[str]
    serial: ClassVar[str]
    oldest: ClassVar[str]  # statement that touches a row of the stock
    note: ClassVar[str] = NOTE
    version: str
    url: str
    dump: list[str]
    into_nothing: list[str]
    environment: dict[str, str]

    @classmethod
    @abstractmethod
    def running(cls, folder: Path, memory: int | None = None) -> "AbstractContextManager[Served]":
        """Started with what it needs to keep its word (fsync). `memory`: of the machine, in bytes."""

    @abstractmethod
    def connect(self) -> Any:
        """A connection (DB-API 2) that commits each statement."""

    @abstractmethod
    def upsert(self, table: str, columns: Sequence[str], keys: Sequence[str]) -> str:
        """A statement that inserts a row or replaces it."""

    def load(self, path: Path) -> None:
        """All tables, their keys, and the indexes that the sample has."""
        with (
            closing(sqlite3.connect(path)) as database,
            closing(self.connect()) as to,
            closing(to.cursor()) as cursor,
        ):
            for name, columns, keys in tables(database):
                kinds = {column: self.types.get(kind.upper(), self.types["TEXT"]) for column, kind in columns}
                # A server that cannot have a text of any length as a key has a short one.
                kinds |= {key: self.key(kinds[key]) for key in keys}
                listed = ", ".join(f"{self.named(column)} {kind}" for column, kind in kinds.items())
                key = ", ".join(map(self.named, keys))
                cursor.execute(f"CREATE TABLE {self.named(name)} ({listed}, PRIMARY KEY ({key}))")
                insert = f"INSERT INTO {self.named(name)} VALUES ({', '.join(['%s'] * len(columns))})"
                rows = database.execute(f'SELECT * FROM "{name}"')
                cursor.execute("BEGIN")
                while some := rows.fetchmany(ROWS):
                    cursor.executemany(insert, some)
                cursor.execute("COMMIT")
                of_table = "SELECT sql FROM sqlite_master WHERE type = 'index' AND sql NOT NULL AND tbl_name = ?"
                for (statement,) in database.execute(of_table, (name,)):
                    cursor.execute(self.index(statement, kinds))

    def key(self, kind: str) -> str:
        return kind

    def index(self, statement: str, kinds: dict[str, str]) -> str:  # noqa: ARG002
        return statement

    def named(self, name: str) -> str:
        return f"{self.quote}{name}{self.quote}"

    def apply_day(self, before: Path, after: Path) -> None:
        """What changed between two states of the sample, in one transaction a table."""
        with (
            closing(sqlite3.connect(after)) as database,
            closing(self.connect()) as to,
            closing(to.cursor()) as cursor,
        ):
            database.execute("ATTACH ? AS before", (str(before),))
            for name, columns, keys in tables(database):
                key = ", ".join(keys)
                gone = database.execute(
                    f"SELECT {key} FROM before.{name} EXCEPT SELECT {key} FROM main.{name}"
                ).fetchall()
                new = database.execute(f"SELECT * FROM main.{name} EXCEPT SELECT * FROM before.{name}").fetchall()
                cursor.execute("BEGIN")
                if gone:
                    where = " AND ".join(f"{self.named(column)} = %s" for column in keys)
                    cursor.executemany(f"DELETE FROM {self.named(name)} WHERE {where}", gone)
                if new:
                    cursor.executemany(self.upsert(name, [column for column, _ in columns], keys), new)
                cursor.execute("COMMIT")

    def prepare_writer(self) -> None:
        with closing(self.connect()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(f"CREATE TABLE written (id {self.serial} PRIMARY KEY, note text)")

    @contextmanager
    def writer(self) -> Iterator[Once]:
        """What makes one transaction."""
        with closing(self.connect()) as connection, closing(connection.cursor()) as cursor:

            def once(number: int) -> None:
                cursor.execute("BEGIN")
                cursor.execute(self.note, (os.urandom(40).hex(),))
                cursor.execute(self.oldest, (number % 100,))
                cursor.execute("COMMIT")

            yield once


ServerOf = type[Served]


class Postgres(Served):
    product = "PostgreSQL"
    types: ClassVar = {"INTEGER": "bigint", "TEXT": "text", "REAL": "double precision", "BLOB": "bytea"}
    quote = '"'
    serial = "bigserial"
    oldest = (
        "UPDATE stock SET on_hand = on_hand + 1 WHERE product_code ="
        " (SELECT product_code FROM stock ORDER BY 1 LIMIT 1 OFFSET %s)"
    )

    def __init__(self, server: postgresql.PostgresServer) -> None:
        self._server = server
        self.version = f"PostgreSQL {server.bin.parent.name}"
        self.url = server.url("pmr")
        self.dump = ["pg_dump", "-Fc", "-Z0", "-d", "pmr"]
        self.into_nothing = [*self.dump, "--no-sync", "-f", os.devnull]
        self.environment = {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(server.port),
            "PGUSER": server.user,
            "PGPASSWORD": postgresql.PASSWORD,
            "PATH": f"{server.bin}{os.pathsep}{os.environ['PATH']}",
        }

    @classmethod
    @contextmanager
    def running(cls, folder: Path, memory: int | None = None) -> Iterator[Served]:  # noqa: ARG003
        with postgresql.postgres(folder, "-c", "fsync=on", "-c", "max_wal_size=4GB") as server:
            with server.connect() as connection:
                connection.execute("CREATE DATABASE pmr")
            yield cls(server)

    def connect(self) -> Any:
        return self._server.connect("pmr")

    def load(self, path: Path) -> None:
        super().load(path)
        with closing(self.connect()) as connection:
            connection.execute("VACUUM ANALYZE")

    def upsert(self, table: str, columns: Sequence[str], keys: Sequence[str]) -> str:
        change = ", ".join(f'"{column}" = excluded."{column}"' for column in columns if column not in keys)
        marks = ", ".join(["%s"] * len(columns))
        return f'INSERT INTO "{table}" VALUES ({marks}) ON CONFLICT ({", ".join(keys)}) DO UPDATE SET {change}'


class MariaDB(Served):
    product = "MariaDB"
    types: ClassVar = {"INTEGER": "bigint", "TEXT": "longtext", "REAL": "double", "BLOB": "longblob"}
    quote = "`"
    serial = "bigint AUTO_INCREMENT"
    oldest = (
        "UPDATE stock SET on_hand = on_hand + 1 WHERE product_code ="
        " (SELECT product_code FROM (SELECT product_code FROM stock ORDER BY 1 LIMIT 1 OFFSET %s) AS one)"
    )

    def __init__(self, server: mariadb.MariaServer, version: str) -> None:
        self._server = server
        self.version = f"MariaDB {version}"
        self.url = server.url("pmr")
        reach = ["--host=127.0.0.1", f"--port={server.port}", f"--user={server.user}"]
        plain = ["--single-transaction", "--quick", "--skip-dump-date", "--order-by-primary", "--hex-blob"]
        plain += ["--skip-extended-insert", "--no-autocommit"]  # as ours does
        self.dump = ["mariadb-dump", *reach, *plain, "pmr"]
        self.into_nothing = [*self.dump[:-1], f"--result-file={os.devnull}", self.dump[-1]]
        self.environment = {"MYSQL_PWD": mariadb.PASSWORD}

    @classmethod
    @contextmanager
    def running(cls, folder: Path, memory: int | None = None) -> Iterator[Served]:
        pool = 1 << 30 if memory is None else memory // 4
        options = (f"--innodb-buffer-pool-size={pool}", f"--innodb-log-file-size={min(1 << 30, pool)}")
        with mariadb.mariadb(folder, *options) as server:
            with closing(server.connect()) as connection, closing(connection.cursor()) as cursor:
                cursor.execute("CREATE DATABASE pmr CHARACTER SET utf8mb4")
                cursor.execute("SELECT version()")
                version = cursor.fetchone()[0].partition("-")[0]
            yield cls(server, version)

    def connect(self) -> Any:
        return self._server.connect("pmr")

    def key(self, kind: str) -> str:
        return "varchar(190)" if kind == "longtext" else kind

    def index(self, statement: str, kinds: dict[str, str]) -> str:
        head, _, columns = statement.removesuffix(")").partition("(")
        parts = [column.strip() for column in columns.split(",")]
        return f"{head}({', '.join(part + '(64)' * (kinds[part] == 'longtext') for part in parts)})"

    def upsert(self, table: str, columns: Sequence[str], keys: Sequence[str]) -> str:  # noqa: ARG002
        return f"REPLACE INTO `{table}` VALUES ({', '.join(['%s'] * len(columns))})"


class SQLite(Served):
    """The sample's own database: what is measured beside is sqlite3's .dump."""

    product = "SQLite"
    types: ClassVar = {}
    quote = '"'
    serial = "integer"
    oldest = (
        "UPDATE stock SET on_hand = on_hand + 1 WHERE product_code ="
        " (SELECT product_code FROM stock ORDER BY 1 LIMIT 1 OFFSET ?)"
    )
    note = NOTE.replace("%s", "?")

    def __init__(self) -> None:
        self.version = f"SQLite {sqlite3.sqlite_version}"
        self.environment = {}

    @classmethod
    @contextmanager
    def running(cls, folder: Path, memory: int | None = None) -> Iterator[Served]:  # noqa: ARG003
        yield cls()

    def load(self, path: Path) -> None:
        """It is there."""
        self.url = str(path)
        self.dump = ["sqlite3", "-readonly", str(path), ".dump"]
        self.into_nothing = ["sqlite3", "-readonly", "-cmd", f".output {os.devnull}", str(path), ".dump"]

    def apply_day(self, before: Path, after: Path) -> None:
        """The day was in this very database."""

    def connect(self) -> Any:
        connection = sqlite3.connect(self.url, isolation_level=None, timeout=60)
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def upsert(self, table: str, columns: Sequence[str], keys: Sequence[str]) -> str:
        raise NotImplementedError


def tables(database: sqlite3.Connection) -> Iterator[tuple[str, list[tuple[str, str]], list[str]]]:
    """Name, columns with their types, and the primary key."""
    names = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY rowid"
    for (name,) in database.execute(names).fetchall():
        columns = database.execute(f"PRAGMA table_info({name})").fetchall()
        keys = [column[1] for column in sorted(columns, key=lambda column: column[5]) if column[5]]
        yield name, [(column[1], column[2]) for column in columns], keys
