"""PostgreSQL's own programs: which one of them fits a server, and what their error output means."""

from __future__ import annotations

import os
import re
import sys

from pharmabackup.errors import SourceFailed
from pharmabackup.sources.tools import Signs, candidates, says

WELL_KNOWN = {
    "win32": (r"C:\Program Files\PostgreSQL\*\bin",),
    "darwin": (
        "/Library/PostgreSQL/*/bin",
        "/Applications/Postgres.app/Contents/Versions/*/bin",
        "/opt/homebrew/opt/postgresql@*/bin",
        "/opt/homebrew/opt/libpq/bin",
    ),
}.get(sys.platform, ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin"))
SETS_TRANSACTION_TIMEOUT = 17  # its pg_restore begins with a setting that servers before it refuse

RIGHTS = "this user may not do that with all of it"
SIGNS: Signs = (
    (b"server version mismatch", "tool-too-old", "it is older than the server", "Install the server's own version."),
    (b"permission denied", "permission", RIGHTS, "Use the owner, grant that, or restore with roles=False."),
    (b"must be owner", "permission", RIGHTS, "Use the owner, grant that, or restore with roles=False."),
    (b"must be member of role", "permission", RIGHTS, "Use the owner, grant that, or restore with roles=False."),
    (b"must be able to SET ROLE", "permission", RIGHTS, "Use the owner, grant that, or restore with roles=False."),
    (b"statement timeout", "locked", "somebody changes a table's shape", "Let that finish, and back up again."),
    (b"No space left", "full", "its server's disk is full", "Free some space there."),
    (b"server closed the connection", "unreachable", "the server ended", "Look into its log, and try again."),
    (b"password authentication failed", "login", "the password is wrong", "Check it, and the password file."),
    (b"too many clients", "busy", "the server has no connection left", "Try again later."),
    (b"connection to server", "unreachable", "the server cannot be reached", "Check that PostgreSQL runs."),
    (b"invalid snapshot identifier", "changed", "the moment that was to be read has passed", "Back up again."),
)


class Tools:
    """Where the server's programs are: in the folder that was given, on the path, or where installers put them."""

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self._folder = folder
        self._found: dict[tuple[str, int], tuple[str, int]] = {}

    def program(self, name: str, server: int, dataset: str) -> tuple[str, int]:
        """The program for a server of that version, and its own: the same if it is there, else the next newer one.

        SourceFailed where none is installed, or all are older.
        """
        if (name, server) not in self._found:
            there = {path: self._version(path) for path in self._candidates(name)}
            known = sorted((version, path) for path, version in there.items() if version)
            if not known:
                raise SourceFailed(
                    f"{name} is not installed, or not where it was looked for.",
                    kind="tool-missing",
                    remedy="Install PostgreSQL's client programs, or name their folder as `tools`.",
                    dataset=dataset,
                )
            fitting = [(version, path) for version, path in known if version >= server]
            if not fitting:
                raise SourceFailed(
                    f"{name} is older than PostgreSQL {server}, which it has to work with.",
                    kind="tool-too-old",
                    remedy=f"Install the client programs of PostgreSQL {server}, or name their folder as `tools`.",
                    dataset=dataset,
                )
            version, path = fitting[0]
            self._found[name, server] = path, version
        return self._found[name, server]

    def _candidates(self, name: str) -> list[str]:
        # Debian's wrapper is another version for each cluster that it is told of.
        found = candidates(name, self._folder, WELL_KNOWN)
        return [path for path in found if "pg_wrapper" not in os.path.realpath(path)]

    @staticmethod
    def _version(path: str) -> int:
        """Its major version; 0 where it does not run."""
        numbers = re.findall(rb"\) (\d+)", says(path))
        return int(numbers[0]) if numbers else 0
