"""Database servers that run on this machine: by the names of their programs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pharmabackup.errors import Unsupported

if TYPE_CHECKING:
    import psutil

ServerKind = Literal["postgresql", "mysql", "sqlserver", "firebird", "server"]
# By the name of the program, without ".exe": what it is.
PROGRAMS: Mapping[str, tuple[ServerKind, str]] = {
    "postgres": ("postgresql", "A PostgreSQL server"),
    "postmaster": ("postgresql", "A PostgreSQL server"),
    "mariadbd": ("mysql", "A MariaDB server"),
    "mysqld": ("mysql", "A MySQL or MariaDB server"),
    "sqlservr": ("sqlserver", "A Microsoft SQL Server"),
    "firebird": ("firebird", "A Firebird server"),
    "fbserver": ("firebird", "A Firebird server"),
    "fb_inet_server": ("firebird", "A Firebird server"),
    "mongod": ("server", "A MongoDB server"),
    "oracle": ("server", "An Oracle database"),
    "db2sysc": ("server", "A Db2 server"),
    "w3dbsmgr": ("server", "A Pervasive (Btrieve) engine"),
    "mkded": ("server", "A Pervasive (Btrieve) engine"),
    "iris": ("server", "An InterSystems IRIS or Caché server"),
    "cache": ("server", "An InterSystems IRIS or Caché server"),
    **{f"dbsrv{version}": ("server", "A SQL Anywhere server") for version in range(9, 18)},
    **{f"dbeng{version}": ("server", "A SQL Anywhere server") for version in range(9, 18)},
}


@dataclass(frozen=True, slots=True)
class Running:
    """A server. `port`: where it listens, `folder`: its files, where this user may see that."""

    kind: ServerKind
    title: str
    program: str
    port: int | None
    folder: Path | None


def running() -> list[Running]:
    """Those that run. Unsupported without the extra `discover`."""
    try:
        import psutil
    except ImportError:
        raise Unsupported(
            "Looking through a machine needs psutil.",
            kind="extra-missing",
            remedy='Run: pip install "pharmabackup[discover]".',
        ) from None
    found = []
    for process in psutil.process_iter(["name", "pid", "ppid"]):
        with suppress(psutil.Error):
            name = _name(process)
            if (
                name in PROGRAMS and _name(psutil.Process(process.ppid())) != name
            ):  # a server's processes have its name
                kind, title = PROGRAMS[name]
                found.append(Running(kind, title, name, _port(process), _folder(process)))
    return sorted(found, key=lambda each: (each.kind, each.port or 0, each.program))


def _name(process: psutil.Process) -> str:
    return process.name().lower().removesuffix(".exe")


def _port(process: psutil.Process) -> int | None:
    import psutil

    ports: list[int] = []
    with suppress(psutil.Error):
        ports = [
            line.laddr.port
            for line in process.net_connections("inet")
            if line.status == psutil.CONN_LISTEN and line.laddr
        ]
    return min(ports, default=None)


def _folder(process: psutil.Process) -> Path | None:
    """Those servers whose files are known by how they look work in the folder that has them."""
    import psutil

    with suppress(psutil.Error, OSError):
        return Path(os.path.realpath(process.cwd()))
    return None


def foreign_mounts() -> Iterator[str]:
    """Where file systems are mounted that are not this machine's own, or hold no files of people's."""
    import psutil

    own = {part.mountpoint for part in psutil.disk_partitions(all=False)}
    for part in psutil.disk_partitions(all=True):
        if part.mountpoint not in own and part.mountpoint != os.path.abspath(os.sep):
            yield part.mountpoint
