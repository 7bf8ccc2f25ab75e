"""MariaDB's and MySQL's own programs: which one of them fits a server, and what their error output means."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

from pharmabackup.errors import SourceFailed
from pharmabackup.sources.mysql_server import Server, Version
from pharmabackup.sources.program import PIECE, Look, Program
from pharmabackup.sources.tools import Signs, candidates, says, trouble

WELL_KNOWN = {
    "win32": (
        r"C:\Program Files\MariaDB *\bin",
        r"C:\Program Files\MySQL\MySQL Server *\bin",
        r"C:\Program Files\MySQL\MySQL Workbench *",
    ),
    "darwin": ("/opt/homebrew/opt/mariadb*/bin", "/opt/homebrew/opt/mysql*/bin", "/usr/local/mysql/bin"),
}.get(sys.platform, ("/usr/bin", "/usr/local/mysql/bin"))
DUMP, CLIENT = ("mariadb-dump", "mysqldump"), ("mariadb", "mysql")

RIGHTS = "this user may not do that with all of it"
GRANT = "Grant it SELECT, SHOW VIEW, TRIGGER and EVENT on the database, or use another user."
ROUTINES = "Let it see routines: SELECT on mysql.proc, SHOW CREATE ROUTINE or SHOW_ROUTINE."
SIGNS: Signs = (
    (b"Access denied for user", "login", "the server does not let this user in, or not to all of it", GRANT),
    (b"command denied", "permission", RIGHTS, GRANT),
    (b"insufficient privileges", "permission", RIGHTS, ROUTINES),
    (b"Access denied; you need", "permission", RIGHTS, "Restore as a user who may create for others (SET USER)."),
    (b"Table definition has changed", "changed", "somebody emptied a table or changed its shape", "Back up again."),
    (b"Couldn't find table", "changed", "a table went while it was read", "Back up again."),
    (b"specified as a definer", "missing", "a user to whom a view or routine of it belongs is not on the server",
     "Create the users that the snapshot's facts name as definers, and restore again."),
    (b"doesn't exist", "missing", "something that it names is not there", "If it was a backup, back up again; if a "
     "restore, look which other databases its views name."),
    (b"max_allowed_packet", "too-large", "a row is larger than the server takes", "Raise its max_allowed_packet."),
    (b"' is full", "full", "the server has no room for a table", "Free some space there."),
    (b"No space left", "full", "its server's disk is full", "Free some space there."),
    (b"Unknown collation", "missing", "the server does not know a collation of it", "Restore into a newer server."),
    (
        b"Lost connection",
        "unreachable",
        "the server ended, or would not wait until more was read",
        "Look into its log; if it runs, set net_write_timeout = 86400 there, and try again.",
    ),
    (b"server has gone away", "unreachable", "the server ended", "Look into its log, and try again."),
    (b"Too many connections", "busy", "the server has no connection left", "Try again later."),
    (b"Can't connect", "unreachable", "the server cannot be reached", "Check that it runs."),
)  # fmt: skip


class Tools:
    """Where the server's programs are: in the folder that was given, on the path, or where installers put them."""

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self._folder = folder
        self._found: dict[tuple[tuple[str, ...], Version], tuple[str, Version]] = {}

    def program(self, names: tuple[str, ...], server: Version, dataset: str) -> tuple[str, Version]:
        """The one of the server's own version, or the newest of its maker, or of the other. SourceFailed: none."""
        key = names, server
        if key not in self._found:
            there = [
                (path, _version(says(path))) for name in names for path in candidates(name, self._folder, WELL_KNOWN)
            ]
            known = [(path, version) for path, version in there if version is not None]
            if not known:
                raise _missing(names, server.product, dataset)
            self._found[key] = max(
                known, key=lambda found: (found[1] == server, found[1].mariadb == server.mariadb, found[1].numbers)
            )
        return self._found[key]

    def helper(self, name: str, of: str, dataset: str) -> str:
        """A program that tells no version of its own: the one that came with another. SourceFailed: none."""
        own = os.path.dirname(of)
        for path in [*candidates(name, own, ()), *candidates(name, self._folder, WELL_KNOWN)]:
            return path
        raise _missing([name], "MariaDB", dataset)


def _missing(names: Sequence[str], product: str, dataset: str) -> SourceFailed:
    return SourceFailed(
        f"{' or '.join(names)} is not installed, or not where it was looked for.",
        kind="tool-missing",
        remedy=f"Install {product}'s programs, or name their folder as `tools`.",
        dataset=dataset,
    )


def _version(said: bytes) -> Version | None:
    """MariaDB's programs have a number of their own before that of the server that they came with."""
    mariadb = re.search(rb"(\d+)\.(\d+)\.\d+-MariaDB", said)
    # Before 8 MySQL's have two, as well.
    mysql = re.search(rb"Distrib (\d+)\.(\d+)", said) or re.search(rb"Ver (\d+)\.(\d+)", said)
    found = mariadb or mysql
    return None if found is None else Version(mariadb is not None, int(found[1]), int(found[2]))


class Dumping:
    """The dump programs' three uses, of one database."""

    def __init__(
        self, server: Server, on: Version, program: str, version: Version, dataset: str, seconds: float
    ) -> None:
        """`on`: the server's version; `version`: the program's."""
        self.version = version
        self._on = on
        self._server = server
        self._program = program
        self._dataset = dataset
        self._seconds = seconds

    @property
    def keeps_history(self) -> bool:
        """Whether it can dump the past rows of system-versioned tables, and the server take them back."""
        return all(each.mariadb and each.numbers >= (10, 11) for each in (self.version, self._on))

    def tables(self, more: Sequence[str]) -> Program:
        """Running: tables and rows, in one transaction. A row is a line: what changes in it moves nothing else."""
        return self._started(
            [
                "--opt",
                "--skip-add-locks",  # which a sequence in a column's default does not survive
                "--comments",
                "--order-by-primary",
                "--hex-blob",
                "--skip-extended-insert",
                "--no-autocommit",
                "--skip-triggers",
                *more,
            ],
            self._server.database,
        )

    def programs(self, views: Sequence[str], look: Look) -> bytes:
        """Routines, triggers, and these views. They are small."""
        bare = ["--no-data", "--skip-comments"]
        text = self._all([*bare, "--no-create-info", "--routines", "--triggers"], look)
        return text + (self._all([*bare, "--skip-triggers"], look, *views) if views else b"")

    def events(self, look: Look) -> bytes:
        return self._all(["--no-data", "--no-create-info", "--skip-comments", "--skip-triggers", "--events"], look)

    def _all(self, arguments: Sequence[str], look: Look, *tables: str) -> bytes:
        found, buffer = bytearray(), memoryview(bytearray(PIECE))
        with self._started(arguments, self._server.database, *tables) as program:
            read_into = program.output(look)
            while size := read_into(buffer):
                found += buffer[:size]
            program.finish(look)
        return bytes(found)

    def _started(self, arguments: Sequence[str], *names: str) -> Program:
        mysql8 = not self.version.mariadb and self.version.major >= 8
        return Program(
            [
                self._program,
                *self._server.arguments(mariadb=self.version.mariadb),
                "--single-transaction",
                "--quick",
                "--skip-dump-date",
                "--no-tablespaces",
                *([] if self.version.mariadb else ["--set-gtid-purged=OFF"]),
                *(["--column-statistics=0"] if mysql8 else []),
                *arguments,
                "--",
                *names,
            ],
            dataset=self._dataset,
            seconds=self._seconds,
            env=self._server.environment(),
            trouble=lambda code, errors: trouble(SIGNS, os.path.basename(self._program), code, errors),
        )
