"""Databases and documents on disks, by how they look."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from pharmabackup.discovery.processes import foreign_mounts
from pharmabackup.sources.listing import NAME_SURROGATE

FileKind = Literal["postgresql", "mysql", "sqlserver", "firebird", "sqlite", "access", "dbase", "folder"]
WINDOWS = sys.platform == "win32"
HEAD = 24  # bytes that tell a database's kind
DBASE = frozenset(bytes([byte]) for byte in b"\x03\x30\x31\x32\x43\x63\x83\x8b\xcb\xf5\xfb")  # how a table begins
# https://learn.microsoft.com/windows/win32/fileio/file-attribute-constants, and reparse-point-tags
RECALL_ON_OPEN, RECALL_ON_DATA_ACCESS = 0x40000, 0x400000
PAGE = 512  # all that are told by their first bytes are of whole pages of at least that size
DOCUMENTS = frozenset({
    ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".odt", ".ods", ".rtf", ".csv", ".tif", ".tiff", ".jpg", ".jpeg",
    ".heic", ".dcm", ".hl7", ".eml", ".msg", ".pst",
})  # fmt: skip
FEW = 10  # documents in a folder that is not worth naming
# No database, whatever they begin with: not opened.
NEVER = DOCUMENTS | {
    ".exe", ".dll", ".so", ".sys", ".msi", ".cab", ".iso", ".img", ".vhd", ".vhdx", ".vmdk", ".zip", ".7z",
    ".gz", ".xz", ".zst", ".bz2", ".mp3", ".mp4", ".png", ".gif", ".ttf", ".py", ".pyc", ".js", ".html", ".css",
    ".jar", ".log", ".txt", ".xml", ".json", ".deb", ".rpm", ".wim", ".etl", ".evtx", ".pak",
}  # fmt: skip
# Folders of programs and of the system, by name: never entered, or not on a whole machine; and by place, on that.
NOT_ENTERED = frozenset({
    "node_modules", "__pycache__", "site-packages", "dist-packages", ".git", ".hg", ".svn", ".venv", "$recycle.bin",
    ".trash", "lost+found", "winsxs", "system volume information",
})  # fmt: skip
CACHES = frozenset({"cache", "caches", "temp", "windows.old"})
SYSTEM = (
    ("Windows", "$WinREAgent", "Recovery", "PerfLogs", "ProgramData/Microsoft", "ProgramData/Package Cache",
     "Users/*/AppData/Local/Microsoft", "Users/*/AppData/Local/Packages", "Users/*/AppData/Local/Google",
     "Users/*/AppData/Local/ConnectedDevicesPlatform", "Users/*/AppData/Roaming/Mozilla",
     "Users/*/AppData/Roaming/Microsoft", "Users/*/AppData/LocalLow", "Program Files/WindowsApps",
     "Program Files/Microsoft Office*")
    if WINDOWS
    else ("proc", "sys", "dev", "run", "usr", "bin", "sbin", "lib*", "boot", "snap", "tmp", "etc", "var/tmp",
          "var/cache", "var/log", "var/lib/apt", "var/lib/dpkg", "var/lib/snapd", "var/lib/docker",
          "var/lib/containers", "System", "Library", "Applications", "private/var", "cores", "Users/*/Library")
)  # fmt: skip
# Folders that hold folders of several things: each of those is named by itself.
SHELVES = (
    ("Users", "Users/*", "ProgramData", "Program Files", "Program Files (x86)")
    if WINDOWS
    else ("home", "home/*", "root", "srv", "opt", "var", "var/lib", "mnt", "media", "media/*", "Users", "Users/*",
          "Users/Shared", "Volumes")
)  # fmt: skip
TITLES: Mapping[FileKind, str] = {
    "sqlite": "an SQLite database",
    "firebird": "a Firebird database",
    "access": "an Access database",
    "sqlserver": "a file of a Microsoft SQL Server that does not have it open",
    "dbase": "tables of dBase or FoxPro",
    "postgresql": "the files of a PostgreSQL server that does not run",
    "mysql": "the files of a MariaDB or MySQL server that does not run",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """A database's file or folder, or a folder of documents. `changed`: ns since 1970."""

    kind: FileKind
    path: Path
    what: str = ""
    size: int = 0
    changed: int = 0
    in_use: bool = False
    covered_by: tuple[str, ...] = ()
    unreadable: bool = False


@dataclass(slots=True)
class _Documents:
    """Those below a folder that is named: that no source has, and that one has."""

    files: int = 0
    size: int = 0
    changed: int = 0
    covered: int = 0
    covered_size: int = 0
    covered_by: dict[str, None] = field(default_factory=dict)

    def add(self, status: os.stat_result, sources: tuple[str, ...]) -> None:
        self.changed = max(self.changed, status.st_mtime_ns)
        if sources:
            self.covered += 1
            self.covered_size += status.st_size
            self.covered_by.update(dict.fromkeys(sources))
        else:
            self.files += 1
            self.size += status.st_size

    def seen(self, path: Path) -> Seen:
        """What is in no backup, if anything is; else that all is."""
        if not self.files:
            what = f"{self.covered:,} documents"
            return Seen("folder", path, what, self.covered_size, self.changed, covered_by=tuple(self.covered_by))
        what = f"{self.files:,} documents" + (", beside others that are backed up" if self.covered else "")
        return Seen("folder", path, what, self.size, self.changed)


def default_roots() -> list[Path]:
    """All of this machine's own disks."""
    if not WINDOWS:
        return [Path("/")]
    import psutil

    return [Path(part.mountpoint) for part in psutil.disk_partitions(all=False) if "fixed" in part.opts]


def look(
    roots: Sequence[Path],
    *,
    whole: bool,
    covered: Callable[[Path], tuple[str, ...]],
    entered: Callable[[Path], None],
) -> Iterator[Seen]:
    """What lies below these folders. `whole`: they are disks; what belongs to the system is left out."""
    foreign = {os.path.normcase(mount) for mount in foreign_mounts()}
    for root in roots:
        yield from _Search(root, whole, foreign, covered, entered).run()


class _Search:
    def __init__(
        self,
        root: Path,
        whole: bool,
        foreign: set[str],
        covered: Callable[[Path], tuple[str, ...]],
        entered: Callable[[Path], None],
    ) -> None:
        self._root = root
        self._whole = whole
        self._foreign = foreign
        self._covered = covered
        self._entered = entered
        self._folders: dict[Path, _Documents] = {}

    def run(self) -> Iterator[Seen]:
        left = [(self._root, self._root)]  # a folder, and the one that it is named by
        while left:
            folder, named = left.pop()
            self._entered(folder)
            try:
                entries = _entries(folder)
            except FileNotFoundError:
                continue
            except OSError:
                yield Seen("folder", folder, unreadable=True)
                continue
            names = {entry.name.lower() for entry, _ in entries}
            if kind := _server(names):
                changed = max(status.st_mtime_ns for _, status in entries)
                yield self._seen(kind, folder, 0, changed, in_use="postmaster.pid" in names)
                continue
            yield from self._files(folder, named, names, entries)
            shelf = self._is_shelf(folder)
            for entry, status in reversed(entries):
                below = Path(entry.path)
                if stat.S_ISDIR(status.st_mode) and not _leads_away(status) and not self._is_left_out(below):
                    left.append((below, below if shelf else named))
        for path, documents in sorted(self._folders.items()):
            if documents.files + documents.covered >= FEW:
                yield documents.seen(path)

    def _files(
        self, folder: Path, named: Path, names: set[str], entries: Sequence[tuple[os.DirEntry[str], os.stat_result]]
    ) -> Iterator[Seen]:
        files = [(entry, status) for entry, status in entries if stat.S_ISREG(status.st_mode)]
        tables = [status for entry, status in files if _is_table(entry, status)]
        if tables:
            yield self._seen(
                "dbase", folder, sum(each.st_size for each in tables), max(each.st_mtime_ns for each in tables)
            )
        for entry, status in files:
            if _suffix(entry.name) in DOCUMENTS:
                self._folders.setdefault(named, _Documents()).add(status, self._covered(Path(entry.path)))
            elif kind := _kind(entry, status):
                log = {f"{entry.name.lower()}{end}" for end in ("-wal", "-journal")}
                in_use = kind == "sqlite" and bool(log & names)
                yield self._seen(kind, Path(entry.path), status.st_size, status.st_mtime_ns, in_use=in_use)

    def _seen(self, kind: FileKind, path: Path, size: int, changed: int, *, in_use: bool = False) -> Seen:
        return Seen(kind, path, TITLES[kind], size, changed, in_use, self._covered(path))

    def _is_shelf(self, folder: Path) -> bool:
        return folder == self._root or (self._whole and _is_one_of(folder.relative_to(self._root), SHELVES))

    def _is_left_out(self, folder: Path) -> bool:
        return (
            folder.name.lower() in NOT_ENTERED
            or (self._whole and (folder.name.lower() in CACHES or folder.name.startswith(".")))
            or os.path.normcase(folder) in self._foreign
            or (self._whole and _is_one_of(folder.relative_to(self._root), SYSTEM))
        )


def _is_one_of(path: Path, patterns: Sequence[str]) -> bool:
    parts = path.parts
    return any(
        len(wanted) == len(parts) and all(map(fnmatch, parts, wanted))
        for wanted in (pattern.split("/") for pattern in patterns)
    )


def _leads_away(status: os.stat_result) -> bool:
    """A junction, or a volume that is mounted there (Windows); what a cloud keeps there does not."""
    return bool(getattr(status, "st_reparse_tag", 0) & NAME_SURROGATE)


def _is_away(status: os.stat_result) -> bool:
    """A file that a cloud would have to fetch if it was opened (Windows)."""
    return bool(getattr(status, "st_file_attributes", 0) & (RECALL_ON_OPEN | RECALL_ON_DATA_ACCESS))


def _entries(folder: Path) -> list[tuple[os.DirEntry[str], os.stat_result]]:
    """By name; what goes meanwhile is not there. OSError: of the folder."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                found.append((entry, entry.stat(follow_symlinks=False)))
    return sorted(found, key=lambda each: each[0].name)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _server(names: set[str]) -> Literal["postgresql", "mysql"] | None:
    """Whose data folder it is that has such files."""
    if {"pg_version", "global", "base"} <= names:
        return "postgresql"
    return "mysql" if {"ibdata1", "mysql"} <= names else None


def _is_table(entry: os.DirEntry[str], status: os.stat_result) -> bool:
    return (
        _suffix(entry.name) == ".dbf" and status.st_size > HEAD and not _is_away(status) and _head(entry)[:1] in DBASE
    )


def _kind(entry: os.DirEntry[str], status: os.stat_result) -> FileKind | None:
    suffix = _suffix(entry.name)
    if suffix in NEVER or not status.st_size or status.st_size % PAGE or _is_away(status):
        return None
    head = _head(entry)
    if head.startswith(b"SQLite format 3\0"):
        return "sqlite"
    if head[4:19] in (b"Standard Jet DB", b"Standard ACE DB"):
        return "access"
    if suffix in (".fdb", ".gdb", ".ib") and head[:1] == b"\1":  # a header page
        return "firebird"
    return "sqlserver" if suffix in (".mdf", ".ndf") and head[:2] == b"\1\x0f" else None


def _head(entry: os.DirEntry[str]) -> bytes:
    """Nothing where it cannot be read."""
    try:
        with open(entry.path, "rb", buffering=0) as file:
            return file.read(HEAD) or b""
    except OSError:
        return b""
