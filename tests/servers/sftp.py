"""OpenSSH's sshd on this machine: it lets one key in, and serves whatever folder is asked for."""

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


@dataclass(frozen=True)
class SftpServer:
    port: int
    folder: Path

    @property
    def options(self) -> dict[str, object]:
        return {"client_keys": str(self.folder / "key"), "known_hosts": str(self.known_hosts(self.port))}

    def known_hosts(self, port: int) -> Path:
        """A file that knows this server's key, also behind another port of this machine."""
        path = self.folder / f"known_hosts.{port}"
        path.write_text(f"[127.0.0.1]:{port} {(self.folder / 'host.pub').read_text()}")
        return path

    def url(self, folder: object, port: int | None = None) -> str:
        return f"sftp://root@127.0.0.1:{port or self.port}{folder}"


def make_key(path: Path, passphrase: str = "") -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(path)], check=True)
    return path


@contextmanager
def sshd(folder: Path, port: int | None = None, *, sessions: int = 100) -> Iterator[SftpServer]:
    program = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
    if program is None or os.name == "nt" or os.geteuid() != 0:
        pytest.skip("sshd is not installed (Debian: openssh-server), or this is not root")
    os.makedirs("/run/sshd", exist_ok=True)
    if not (folder / "host").exists():
        make_key(folder / "host")
        make_key(folder / "key")
        shutil.copy(folder / "key.pub", folder / "authorized_keys")
    server = SftpServer(port or free_port(), folder)
    (folder / "sshd_config").write_text(
        f"Port {server.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile {folder}/pid\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nPasswordAuthentication no\nUsePAM no\nStrictModes no\n"
        f"PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\nMaxSessions {sessions}\nMaxStartups 100\n"
    )
    with running([program, "-D", "-e", "-f", str(folder / "sshd_config")], server.port, folder):
        yield server
