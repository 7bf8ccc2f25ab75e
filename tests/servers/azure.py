"""Azure Blob Storage on this machine: Azurite, which `tests/setup.sh` installs by npm."""

from __future__ import annotations

import base64
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pharmabackup.errors import StorageFailed
from pharmabackup.storage import connect
from tests.servers.process import free_port, running

MAIN = Path(__file__).parents[2] / "build/node/node_modules/azurite/dist/src/blob/main.js"
CONTAINER, ACCOUNT = "pharmacy", "testaccount"
HOST = f"{ACCOUNT}.blob.localhost"  # as Azure names accounts
KEY = base64.b64encode(b"a key of this test alone, no other").decode()


@dataclass(frozen=True)
class AzureServer:
    """With `certificate` it speaks TLS alone, and `HOST` has to be a name of this machine."""

    port: int
    certificate: Path | None = None

    @property
    def options(self) -> dict[str, object]:
        return self.options_at(self.port)

    def options_at(self, port: int) -> dict[str, object]:
        found: dict[str, object] = {"account_name": ACCOUNT, "account_key": KEY}
        if self.certificate is None:
            return found | {"account_url": f"http://127.0.0.1:{port}/{ACCOUNT}"}
        return found | {"account_url": f"https://{HOST}:{port}", "ca_bundle": str(self.certificate)}

    def ask(self, method: str, path: str, **how):
        """One signed request, through the adapter's own signing."""
        storage = connect(f"azure://{CONTAINER}", storage_options=self.options)
        try:
            return storage._ask(storage._client(), method, f"{storage._base}/{path}", **how)
        finally:
            storage.close()

    def has_container(self) -> bool:
        try:
            self.ask("PUT", CONTAINER, query={"restype": "container"}, good=(201, 409))
        except StorageFailed:
            return False
        return True


def fresh() -> str:
    """A place that nobody has used."""
    return f"azure://{CONTAINER}/{secrets.token_hex(8)}/repository"


@contextmanager
def azurite(folder: Path, *, tls: tuple[Path, Path] | None = None) -> Iterator[AzureServer]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    if not MAIN.exists():
        pytest.skip("Azurite is not installed: sh tests/setup.sh")
    server = AzureServer(free_port(), tls and tls[0])
    command = [
        node, str(MAIN), "--blobHost", "127.0.0.1", "--blobPort", str(server.port), "--inMemoryPersistence",
        "--silent", "--disableTelemetry", *(("--cert", str(tls[0]), "--key", str(tls[1])) if tls else ()),
    ]  # fmt: skip
    with running(
        command, server.port, folder, ready=server.has_container, environment={"AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
    ):
        yield server
