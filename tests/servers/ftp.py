"""An FTP server on this machine: pyftpdlib, whose rename replaces what is there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers.process import free_port, running

USER, PASSWORD = "pharmacy", "a password of this test"


@dataclass(frozen=True)
class FTPServer:
    port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"ftp://127.0.0.1:{self.port}"

    @property
    def options(self) -> dict[str, object]:
        return {"username": USER, "password": PASSWORD}


@contextmanager
def ftp(folder: Path) -> Iterator[FTPServer]:
    pytest.importorskip("pyftpdlib")
    (folder / "files").mkdir()
    server = FTPServer(free_port(), folder / "files")
    command = [
        sys.executable, "-m", "pyftpdlib", "-i", "127.0.0.1", "-p", str(server.port), "-w", "-d", str(server.folder),
        "-u", USER, "-P", PASSWORD,
    ]  # fmt: skip
    with running(command, server.port, folder):
        yield server
