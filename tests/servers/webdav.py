"""WebDAV on this machine: rclone and wsgidav, which differ."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers.process import free_port, running

USER, PASSWORD = "till", "test-geheim"


@dataclass(frozen=True)
class WebdavServer:
    port: int
    served: Path

    @property
    def options(self) -> dict[str, object]:
        return {"username": USER, "password": PASSWORD}

    def url(self, folder: str, port: int | None = None) -> str:
        return f"webdav://127.0.0.1:{port or self.port}/{folder}"


def certificate(folder: Path, *more: str) -> tuple[Path, Path]:
    """Of 127.0.0.1 and `more` names, signed by itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed (Debian: openssl)")
    made, key = folder / "certificate.pem", folder / "key.pem"
    names = ",".join(["IP:127.0.0.1", *(f"DNS:{name}" for name in more)])
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", f"subjectAltName={names}", "-out", str(made), "-keyout", str(key)],
        check=True, capture_output=True,
    )  # fmt: skip
    return made, key


@contextmanager
def rclone(folder: Path, served: Path | None = None, *more: str, port: int | None = None) -> Iterator[WebdavServer]:
    program = shutil.which("rclone")
    if program is None:
        pytest.skip("rclone is not installed (Debian: rclone)")
    server = WebdavServer(port or free_port(), served or folder / "served")
    server.served.mkdir(exist_ok=True)
    command = [
        program, "serve", "webdav", str(server.served), "--addr", f"127.0.0.1:{server.port}",
        "--user", USER, "--pass", PASSWORD, "--config", "/dev/null",
        "--dir-cache-time", "0s",  # so that it sees what becomes of its disk
        *more,
    ]  # fmt: skip
    with running(command, server.port, folder):
        yield server


@contextmanager
def wsgidav(folder: Path, served: Path | None = None, *, digest: bool = False) -> Iterator[WebdavServer]:
    if importlib.util.find_spec("wsgidav") is None:
        pytest.skip("wsgidav is not installed")
    server = WebdavServer(free_port(), served or folder / "served")
    server.served.mkdir(exist_ok=True)
    config = {
        "host": "127.0.0.1",
        "port": server.port,
        "server": "cheroot",
        "provider_mapping": {"/": str(server.served)},
        "http_authenticator": {
            "domain_controller": None,
            "accept_basic": not digest,
            "accept_digest": digest,
            "default_to_digest": digest,
        },
        "simple_dc": {"user_mapping": {"*": {USER: {"password": PASSWORD}}}},
    }
    (folder / "wsgidav.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "wsgidav.server.server_cli", "--config", str(folder / "wsgidav.json")]
    with running(command, server.port, folder):
        yield server
