"""A MariaDB server of the tests' own, on a free port of this machine: Debian's, never as root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers.process import as_service, free_port, running

PASSWORD = "pass of the tests, with '\\ and %"


@dataclass(frozen=True)
class MariaServer:
    port: int
    socket: Path
    data: Path
    user: str = "pharmacy"

    def url(self, database: str, user: str | None = None) -> str:
        return f"mariadb://{user or self.user}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str | None = None):
        import pymysql

        return pymysql.connect(
            host="127.0.0.1", port=self.port, user=self.user, password=PASSWORD, database=database, autocommit=True,
            charset="utf8mb4",
        )  # fmt: skip

    def databases(self) -> list[str]:
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT schema_name FROM information_schema.schemata ORDER BY 1")
            own = {"mysql", "information_schema", "performance_schema", "sys"}
            return [name for (name,) in cursor.fetchall() if name not in own]


@contextmanager
def mariadb(folder: Path, *options: str) -> Iterator[MariaServer]:
    """A new one, with a user `pharmacy`, who may do all and needs a password."""
    server = MariaServer(free_port(), folder / "s", folder / "data")
    _program()
    as_user = as_service("mysql", folder)
    quoted = PASSWORD.replace("\\", "\\\\").replace("'", "\\'")
    first = folder / "first.sql"
    first.write_text(
        f"CREATE USER IF NOT EXISTS '{server.user}'@'127.0.0.1' IDENTIFIED BY '{quoted}';\n"
        f"GRANT ALL PRIVILEGES ON *.* TO '{server.user}'@'127.0.0.1' WITH GRANT OPTION;\n"
        f"CREATE USER IF NOT EXISTS '{server.user}'@'localhost' IDENTIFIED BY '{quoted}';\n"
        f"GRANT ALL PRIVILEGES ON *.* TO '{server.user}'@'localhost' WITH GRANT OPTION;\n"
    )
    subprocess.run(
        [*as_user, "mariadb-install-db", "--no-defaults", f"--datadir={server.data}", "--skip-test-db",
         "--auth-root-authentication-method=normal", *options],
        check=True, capture_output=True, cwd=folder,
    )  # fmt: skip
    with started(server, folder, f"--init-file={first}", *options):
        yield server


@contextmanager
def started(server: MariaServer, folder: Path, *options: str) -> Iterator[None]:
    """With the data folder that it has. `folder`: of the server's account, for what it writes beside that."""
    command = [
        *as_service("mysql", folder), _program(), "--no-defaults", f"--datadir={server.data}",
        f"--port={server.port}", f"--socket={server.socket}", "--bind-address=127.0.0.1", "--skip-name-resolve",
        f"--pid-file={folder / 'pid'}", *options,
    ]  # fmt: skip

    def ready() -> bool:
        import pymysql

        try:
            server.connect().close()
        except pymysql.MySQLError:
            return False
        return True

    with running(command, server.port, folder, ready=ready):
        yield


def _program() -> str:
    program = shutil.which("mariadbd", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if program is None:
        pytest.skip("MariaDB is not installed (Debian: mariadb-server)")
    return program
