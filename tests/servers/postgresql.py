"""A PostgreSQL server of the tests' own, on a free port of this machine: Debian's newest, never as root."""

from __future__ import annotations

import glob
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers.process import as_service, free_port, running

PASSWORD = "pass of the tests, with '\\ and %"


@dataclass(frozen=True)
class PostgresServer:
    port: int
    bin: Path
    data: Path
    user: str = "pharmacy"

    def url(self, database: str, user: str | None = None) -> str:
        return f"postgresql://{user or self.user}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres"):
        import psycopg

        return psycopg.connect(self.url(database), password=PASSWORD, autocommit=True)

    def databases(self) -> list[str]:
        with self.connect() as connection:
            query = "SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY 1"
            return [name for (name,) in connection.execute(query)]


def programs() -> Path:
    """The folder of the newest installed server's programs."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"), key=lambda path: int(path.split("/")[4]))
    if not found:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    return Path(found[-1]).parent


@contextmanager
def postgres(folder: Path, *options: str) -> Iterator[PostgresServer]:
    """With a superuser `pharmacy`, who needs a password."""
    where = programs()
    server = PostgresServer(free_port(), where, folder / "data")
    (folder / "password").write_text(PASSWORD + "\n")
    as_user = as_service("postgres", folder, folder / "password", reads_all=True)
    subprocess.run(
        [*as_user, str(where / "initdb"), "-D", str(server.data), "-U", server.user, "-A", "scram-sha-256",
         "--pwfile", str(folder / "password"), "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"],
        check=True, capture_output=True, cwd=folder,
    )  # fmt: skip
    with started(server, *options):
        yield server


@contextmanager
def started(server: PostgresServer, *options: str) -> Iterator[None]:
    """The server of a data folder that is there."""
    where, folder = server.bin, server.data.parent
    command = [
        *as_service("postgres", folder, reads_all=True), str(where / "postgres"), "-D", str(server.data),
        "-p", str(server.port), "-k", "", "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", *options,
    ]  # fmt: skip

    def ready() -> bool:
        return (
            subprocess.run(
                [str(where / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(server.port)], check=False
            ).returncode
            == 0
        )

    with running(command, server.port, folder, ready=ready):
        yield
