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
    "ntdbsmgr": ("server", "A Pervasive (Btrieve) engine"),
    "ntdbsmgr64": ("server", "A Pervasive (Btrieve) engine"),
    "zenengnsvc": ("server", "A Zen (Btrieve) engine"),
    "irisdb": ("server", "An InterSystems IRIS server"),
    "cache": ("server", "An InterSystems Caché server"),
    **{f"dbsrv{version}": ("server", "A SQL Anywhere server") for version in range(9, 18)},
    **{f"dbeng{version}": ("server", "A SQL Anywhere server") for version in range(9, 18)},
}


@dataclass(frozen=True, slots=True)
class Running:
    """A server. `ports`: where it listens, `folder`: its files; none where this user may not see that."""

    kind: ServerKind
    title: str
    program: str
    ports: frozenset[int]
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
            if name in PROGRAMS and _parent(process) != name:  # a server's processes have its name
                kind, title = PROGRAMS[name]
                found.append(Running(kind, title, name, _ports(process), _folder(process)))
    return sorted(found, key=lambda each: (each.kind, sorted(each.ports), each.program))


def _name(process: psutil.Process) -> str:
    name = process.name().lower().removesuffix(".exe")
    return "oracle" if name.startswith("ora_pmon") else name


def _parent(process: psutil.Process) -> str | None:
    """Its name; what started a server may be gone."""
    import psutil

    try:
        parent = process.parent()
        return None if parent is None else _name(parent)
    except psutil.Error:
        return None


def _ports(process: psutil.Process) -> frozenset[int]:
    import psutil

    ports: list[int] = []
    with suppress(psutil.AccessDenied):  # one that has ended meanwhile is none
        ports = [
            line.laddr.port
            for line in process.net_connections("inet")
            if line.status == psutil.CONN_LISTEN and line.laddr
        ]
    return frozenset(ports)


def _folder(process: psutil.Process) -> Path | None:
    """Those servers whose files are known by how they look work in the folder that has them."""
    import psutil

    with suppress(psutil.AccessDenied, PermissionError):
        return Path(os.path.realpath(process.cwd()))
    return None


def own_addresses() -> set[str]:
    """By which this machine is reached."""
    import psutil

    return {one.address.partition("%")[0] for card in psutil.net_if_addrs().values() for one in card}


def foreign_mounts() -> Iterator[str]:
    """Where file systems are mounted that are not this machine's own, or hold no files of people's."""
    import psutil

    own = {part.mountpoint for part in psutil.disk_partitions(all=False)}
    for part in psutil.disk_partitions(all=True):
        if part.mountpoint not in own and part.mountpoint != os.path.abspath(os.sep):
            yield part.mountpoint
