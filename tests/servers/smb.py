"""Samba on this machine: one share, one account."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers.process import free_port, running

PASSWORD = "test-geheim"


@dataclass(frozen=True)
class SmbServer:
    port: int
    share: Path

    @property
    def options(self) -> dict[str, object]:
        return {"username": "root", "password": PASSWORD}

    def url(self, folder: str, port: int | None = None) -> str:
        return f"smb://127.0.0.1:{port or self.port}/backup/{folder}"


@contextmanager
def samba(folder: Path, share: Path | None = None, *, encrypt: str = "default") -> Iterator[SmbServer]:
    program = shutil.which("smbd") or shutil.which("smbd", path="/usr/sbin")
    if program is None or os.geteuid() != 0:
        pytest.skip("smbd is not installed (Debian: samba), or this is not root")
    server = SmbServer(free_port(), share or folder / "share")
    server.share.mkdir(exist_ok=True)
    own = "".join(
        f"{name} = {folder}/{name.split()[0]}\n"
        for name in (
            "private dir",
            "lock directory",
            "state directory",
            "cache directory",
            "pid directory",
            "ncalrpc dir",
        )
    )
    (folder / "smb.conf").write_text(
        "[global]\nserver role = standalone server\ninterfaces = 127.0.0.1/8\nbind interfaces only = yes\n"
        f"smb ports = {server.port}\ndisable netbios = yes\nserver min protocol = SMB3_00\n{own}"
        f"passdb backend = tdbsam:{folder}/passdb.tdb\nload printers = no\ndisable spoolss = yes\n"
        f"server smb encrypt = {encrypt}\n"
        f"[backup]\npath = {server.share}\nread only = no\nvalid users = root\n"
        f"[readable]\npath = {server.share}\nread only = yes\nvalid users = root\n"
    )
    for line in own.splitlines():
        os.makedirs(line.split(" = ")[1], exist_ok=True)
    subprocess.run(
        ["smbpasswd", "-c", str(folder / "smb.conf"), "-s", "-a", "root"],
        input=f"{PASSWORD}\n{PASSWORD}\n", text=True, check=True, capture_output=True,
    )  # fmt: skip
    # A process group of its own: when it ends it sends a signal to all of its group.
    command = [program, "--foreground", "-s", str(folder / "smb.conf"), "--debug-stdout"]
    with running(command, server.port, folder):
        yield server
