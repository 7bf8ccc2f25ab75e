"""A server of its own for the tests: a process on a free port of this machine, ended by its process id."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

START_S = 60
_started: dict[int, subprocess.Popen[bytes]] = {}  # by the port that each listens on


def free_port(*, below: int = 65536) -> int:
    """A port on which nothing listens now; `below` it, for servers that use others counted from it."""
    while True:
        with socket.socket() as trial:
            trial.bind(("127.0.0.1", 0))
            port: int = trial.getsockname()[1]
        if port < below:
            return port


def listens(port: int) -> bool:
    with socket.socket() as trial:
        trial.settimeout(1)
        return trial.connect_ex(("127.0.0.1", port)) == 0


def kill(port: int) -> None:
    """Kill -9 the server that was started on that port, and all that it has started since (Linux)."""
    process = _started[port]
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    for child in map(int, children):  # sshd has a process for each connection
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def as_service(user: str, folder: Path, *paths: Path, reads_all: bool = False) -> list[str]:
    """What goes before the command of a server that must not run as root; its user gets these paths.

    `reads_all`: it may use what is root's alone, such as the interpreter of these tests.
    """
    if not (hasattr(os, "geteuid") and os.geteuid() == 0):
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("servers do not run as root, and setpriv is not installed (Debian: util-linux)")
    for above in [folder, *folder.parents]:
        if above.stat().st_mode & 0o001 == 0 and above.owner() == "root":
            above.chmod(above.stat().st_mode | 0o011)  # so that it comes to its folder
    for path in (folder, *paths):
        shutil.chown(path, user, user)
    powers = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"] if reads_all else []
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *powers]


@contextmanager
def running(
    command: Sequence[str],
    port: int,
    folder: Path,
    *,
    ready: Callable[[], bool] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """The server that `command` starts, once it listens on `port` and `ready` says so. Its output: `folder`/log."""
    with open(folder / "log", "ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | dict(environment or {}),
        )
    _started[port] = process
    try:
        end = time.monotonic() + START_S
        while not (listens(port) and (ready is None or ready())):
            said = (folder / "log").read_text(errors="replace")[-2000:]
            assert process.poll() is None, f"{command[0]} ended:\n{said}"
            assert time.monotonic() < end, f"{command[0]} did not start:\n{said}"
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
