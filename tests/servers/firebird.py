"""A Firebird server of the tests' own, on a free port of this machine: Debian's, never as root."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers.process import as_service, free_port, running

USER, PASSWORD = "SYSDBA", "tests"


@dataclass(frozen=True)
class FirebirdServer:
    port: int
    folder: Path

    def name(self, database: str) -> str:
        """What its programs call a database."""
        return f"127.0.0.1/{self.port}:{self.folder / database}.fdb"

    def create(self, database: str) -> None:
        import firebird.driver

        firebird.driver.create_database(self.name(database), user=USER, password=PASSWORD).close()

    def connect(self, database: str):
        import firebird.driver

        return firebird.driver.connect(self.name(database), user=USER, password=PASSWORD)


@contextmanager
def firebird(folder: Path) -> Iterator[FirebirdServer]:
    """With its user SYSDBA."""
    program = shutil.which("firebird", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    roots = sorted(glob.glob("/usr/lib/*/firebird/*/plugins"))
    users = sorted(glob.glob("/var/lib/firebird/*/system/security*.fdb"))
    if program is None or not roots or not users:
        pytest.skip("Firebird is not installed (Debian: firebird3.0-server)")
    server = FirebirdServer(free_port(), folder)
    root = folder / "root"
    shutil.copytree(Path(roots[-1]).parent, root, symlinks=True)
    for name in ("firebird.conf", "databases.conf"):
        (root / name).unlink()
    security = folder / "security.fdb"
    shutil.copy(users[-1], security)
    (root / "databases.conf").touch()
    (root / "firebird.conf").write_text(
        f"RemoteServicePort = {server.port}\nRemoteBindAddress = 127.0.0.1\nSecurityDatabase = {security}\n"
        "AuthServer = Srp\nAuthClient = Srp\nUserManager = Srp\nServerMode = Super\n"
    )
    environment = {"FIREBIRD": str(root), "FIREBIRD_LOCK": str(folder)}
    as_user = as_service("firebird", folder, security)
    subprocess.run(
        [*as_user, "isql-fb", "-user", USER, str(security)],
        input=f"CREATE OR ALTER USER {USER} PASSWORD '{PASSWORD}'; COMMIT;".encode(),
        env=os.environ | environment,
        check=True,
        capture_output=True,
    )
    with running([*as_user, program, "-p", str(server.port)], server.port, folder, environment=environment):
        yield server
