"""PostgreSQL's own programs: which one of them fits a server, and what their error output means."""

from __future__ import annotations

import glob
import os
import re
import subprocess
import sys

from pharmabackup.errors import SourceFailed
from pharmabackup.sources.program import NO_WINDOW

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
# What is in an error output: kind, what happened, remedy. English, as programs are told to speak; servers may not.
SIGNS = (
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


def trouble(tool: str, code: int, errors: bytes) -> tuple[str, str, str] | None:
    """What a tool's error output means, by what these programs say; none of it is repeated."""
    for sign, kind, what, remedy in SIGNS:
        if sign in errors:
            return kind, f"{tool} ended with code {code}: {what}.", remedy
    return None


class Tools:
    """Where the server's programs are: in the folder that was given, on the path, or where installers put them."""

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self._folder = None if folder is None else os.path.abspath(folder)
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
        if self._folder is not None:
            folders = [self._folder]
        else:
            on_path = os.environ.get("PATH", "").split(os.pathsep)
            folders = [*(found for pattern in WELL_KNOWN for found in sorted(glob.glob(pattern))), *on_path]
        file = f"{name}.exe" if sys.platform == "win32" else name
        # Not `which`: on Windows it finds what lies in the current folder first.
        paths = (os.path.join(folder, file) for folder in folders if os.path.isabs(folder))
        found = (path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK))
        # Debian's wrapper is another version for each cluster that it is told of.
        return [path for path in dict.fromkeys(found) if "pg_wrapper" not in os.path.realpath(path)]

    @staticmethod
    def _version(path: str) -> int:
        """Its major version; 0 where it does not run."""
        try:
            said = subprocess.run(
                [path, "--version"], capture_output=True, timeout=60, check=True, creationflags=NO_WINDOW
            ).stdout
        except (OSError, subprocess.SubprocessError):
            return 0
        numbers = re.findall(rb"\) (\d+)", said)
        return int(numbers[0]) if numbers else 0
