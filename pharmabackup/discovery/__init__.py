"""What is on this machine that a pharmacy would miss, and which of it no source backs up (docs/discovery.md)."""

from __future__ import annotations

import fnmatch
import os
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from pharmabackup.clock import from_ns, iso
from pharmabackup.discovery.disks import Seen, default_roots, look
from pharmabackup.discovery.processes import Running, own_addresses, running
from pharmabackup.errors import Cancelled, InvalidInput, SourceFailed
from pharmabackup.events import Finding, State, worst
from pharmabackup.sources.base import Source, StrPath
from pharmabackup.sources.files import Files

__all__ = ["Found", "Inventory", "Kind", "discover"]

Kind = Literal["postgresql", "mysql", "sqlserver", "firebird", "server", "sqlite", "access", "dbase", "folder"]
ADVICE: dict[Kind, str] = {
    "postgresql": "Back it up with pb.PostgreSQL (--postgresql).",
    "mysql": "Back it up with pb.MySQL (--mysql).",
    "sqlserver": "Back it up with pb.SQLServer (--sqlserver).",
    "firebird": "Back it up with pb.Command and gbak, and ignore it here (ignore, --ignore).",
    "server": "Back it up with pb.Command and its maker's program, and ignore it here (ignore, --ignore).",
    "sqlite": "Back it up with pb.SQLite (--sqlite).",
    "access": "Back it up with pb.Files (--files), while nobody has it open.",
    "dbase": "Back it up with pb.Files (--files), while nobody has it open.",
    "folder": "Back it up with pb.Files (--files).",
}
SERVED = ("postgresql", "mysql")  # whose data folders are known by how they look
LOCAL = frozenset({"", "localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A database, a server, or a folder of documents. `covered_by`: the sources that back it up, by name.

    `place`: a path, or HOST:PORT/DATABASE. `size` in bytes, of a folder that of the documents in it; None where
    only its server knows. `in_use`: a program has it open, as far as can be seen.
    """

    kind: Kind
    place: str
    size: int | None
    changed: datetime | None
    in_use: bool
    covered_by: tuple[str, ...]
    ignored: bool
    text: str

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, object]:
        facts: dict[str, object] = {name: getattr(self, name) for name in self.__slots__}
        return facts | {
            "changed": None if self.changed is None else iso(self.changed),
            "covered_by": list(self.covered_by),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What was found below `roots`, and what is wrong with how it is backed up."""

    roots: tuple[Path, ...]
    items: tuple[Found, ...]
    findings: tuple[Finding, ...]

    @property
    def state(self) -> State:
        return worst(self.findings)

    @property
    def uncovered(self) -> tuple[Found, ...]:
        return tuple(item for item in self.items if not item.covered_by and not item.ignored)

    def __str__(self) -> str:
        missing = len(self.uncovered)
        return (
            f"{len(self.items)} found, of which {missing or 'none'} {'is' if missing == 1 else 'are'} not backed up."
        )

    def to_dict(self) -> dict[str, object]:
        return {
            "state": self.state,
            "roots": [str(root) for root in self.roots],
            "items": [item.to_dict() for item in self.items],
            "findings": [finding.to_dict() for finding in self.findings],
        }


def discover(
    sources: Sequence[Source] = (),
    *,
    roots: Sequence[StrPath] = (),
    ignore: Sequence[str] = (),
    progress: Callable[[Path], object] | None = None,
    cancel: threading.Event | None = None,
) -> Inventory:
    """Look for databases, their servers, and folders of documents; and which of `sources` each is in.

    `roots`: folders to look through, by default all of this machine's own disks, without what belongs to the system
    and to programs. Nothing is changed, and of files no more is read than how they begin. Servers are asked for their
    databases only through `sources`. `ignore`: places that need no backup (`*` and `?` stand for anything).
    `progress` hears each folder. InvalidInput, Cancelled; Unsupported without the extra `discover`.
    """
    servers, whole = running(), not roots  # which says what to install, if that is missing
    looked_through = tuple(Path(os.path.abspath(root)) for root in roots or default_roots())
    for root in looked_through:
        if not root.is_dir():
            raise InvalidInput(f"{root} is no folder.", remedy="Name folders to look through.")
    found = _Looking(sources, ignore)
    found.servers(servers)

    def entered(folder: Path) -> None:
        if cancel is not None and cancel.is_set():
            raise Cancelled("The search was stopped.", remedy="Nothing was changed.")
        if progress is not None:
            progress(folder)

    for seen in look(looked_through, whole=whole, covered=found.covering, entered=entered):
        found.add(seen)
    return found.inventory(looked_through)


class _Looking:
    """One search: what was found, compared with the sources."""

    def __init__(self, sources: Sequence[Source], ignore: Sequence[str]) -> None:
        self._sources = sources
        self._ignore = ignore
        self._items: list[Found] = []
        self._findings: list[Finding] = []
        self._folders: dict[Path, str] = {}  # of servers that run: what serves there
        self._hidden: set[str] = set()  # kinds of servers that run, and whose files this user may not know

    def covering(self, path: Path) -> tuple[str, ...]:
        """The names of the sources that a file or folder is in."""
        return tuple(source.name for source in self._sources if source.covers(path))

    # ------------------------------------------------------------ servers

    def servers(self, found: Iterable[Running]) -> None:
        """Those that run here, and those that sources are of, with all their databases."""
        known: dict[tuple[Kind, str, int], dict[str, list[str]]] = {}
        own = LOCAL | own_addresses() | {socket.gethostname().lower()}
        for source in self._sources:
            try:
                served = source.served()
            except SourceFailed as error:
                self._tell(
                    "not-asked", source.name, f"{error.message} So what else is on it is not known.", error.remedy
                )
                continue
            if served is not None:
                host = "localhost" if served.host.startswith("/") or served.host.lower() in own else served.host
                databases = known.setdefault((served.product, host, served.port), {})
                for name in served.databases:
                    databases.setdefault(name, [])
                    if served.database in (None, name):
                        databases[name].append(source.name)
        for (kind, host, port), databases in sorted(known.items()):
            for name, names in sorted(databases.items()):
                place = f"{host}:{port}/{name}"
                self._found(kind, place, f"The database {name} on {host}:{port}", names, in_use=True)
        for each in found:
            if each.folder is not None:
                self._folders[each.folder] = each.title
            else:
                self._hidden.add(each.kind)
            asked = {port for kind, host, port in known if kind == each.kind and host == "localhost"}
            if asked & each.ports or (asked and not each.ports):
                continue
            place = f"localhost:{min(each.ports)}" if each.ports else each.program
            self._found(each.kind, place, f"{each.title} runs on this machine", [], in_use=True)

    # ------------------------------------------------------------ files

    def add(self, seen: Seen) -> None:
        """What was seen on a disk."""
        if seen.unreadable:
            self._tell(
                "not-looked-into",
                str(seen.path),
                f"{seen.path} could not be looked into.",
                "Run this as an administrator.",
                "info",
            )
            return
        serves = self._folders.get(Path(os.path.realpath(seen.path))) or (
            "a server" if seen.kind in SERVED and seen.in_use else ""
        )
        if serves:  # it is there as a server
            self._live(seen.path, f"the files of {serves[0].lower()}{serves[1:]}, which runs", ADVICE[seen.kind])
            return
        if seen.kind in SERVED and seen.kind in self._hidden:
            self._tell(
                "not-looked-into",
                str(seen.path),
                f"{seen.path} holds the files of a server; whether of one that runs cannot be seen by this account.",
                "Run this as an administrator.",
                "info",
            )
            return
        if seen.kind == "sqlite" and seen.in_use:
            self._live(seen.path, "an SQLite database that a program may have open", ADVICE["sqlite"])
        self._found(
            seen.kind,
            str(seen.path),
            f"{seen.path}: {seen.what}",
            seen.covered_by,
            size=seen.size,
            changed=from_ns(seen.changed),
            in_use=seen.in_use,
        )

    def _live(self, path: Path, what: str, remedy: str) -> None:
        for source in self._sources:
            if isinstance(source, Files) and source.covers(path):
                self._tell(
                    "copied-while-in-use",
                    source.name,
                    f"{source.name} holds {what}: {path} may be copied while it changes.",
                    f"{remedy} Then leave it out of {source.name} (exclude).",
                )

    # ------------------------------------------------------------

    def _found(
        self,
        kind: Kind,
        place: str,
        text: str,
        covered_by: Iterable[str],
        *,
        size: int | None = None,
        changed: datetime | None = None,
        in_use: bool = False,
    ) -> None:
        names = tuple(dict.fromkeys(covered_by))
        ignored = any(fnmatch.fnmatchcase(place, pattern) for pattern in self._ignore)
        self._items.append(
            Found(
                kind=kind, place=place, size=size or None, changed=changed, in_use=in_use, covered_by=names,
                ignored=ignored, text=text,
            )
        )  # fmt: skip
        if not names and not ignored:
            self._tell("not-covered", place, f"{text}, and no source backs it up.", ADVICE[kind])

    def _tell(
        self, code: str, subject: str, message: str, remedy: str, severity: Literal["info", "warning"] = "warning"
    ) -> None:
        self._findings.append(Finding(code=code, severity=severity, subject=subject, message=message, remedy=remedy))

    def inventory(self, roots: tuple[Path, ...]) -> Inventory:
        """All of it."""
        return Inventory(roots=roots, items=tuple(self._items), findings=tuple(self._findings))
