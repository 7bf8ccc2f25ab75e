"""A PostgreSQL server's settings that have it call `wal_command`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from pharmabackup.errors import InvalidInput
from pharmabackup.sources import wal_command

AHEAD = "pharmabackup-wal"  # a folder in a server's data folder, of what was fetched before it was asked for
SCRIPT = (sys.executable, "-I", "-S", os.path.abspath(wal_command.__file__))
# What a recovery goes to. A server refuses one of them empty behind another that is set.
TARGETS = ("recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time",
           "recovery_target_xid")  # fmt: skip
OF_A_RECOVERY = {*TARGETS, "archive_cleanup_command", "recovery_end_command", "recovery_target_action",
                 "recovery_target_inclusive", "recovery_target_timeline", "restore_command"}  # fmt: skip
NOTHING = "exit 1"  # a restore_command that has no file at all: what the backup brings is all there is


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """With which archived log a restored server goes on, and how far; `pharmabackup.wal.recovery` makes it.

    `timelines`: by server that the log is of, which of its lives; None: the newest. `until`: aware; None: to its end.
    """

    restore_command: str
    timelines: Mapping[str, int | None]
    until: datetime | None


def archive_command(spool: str) -> str:
    """Of a server whose log is archived. InvalidInput where a word cannot be quoted."""
    return f'{_quoted(*SCRIPT, "archive", spool)} "%p"'


def restore_command(fetching: Sequence[str]) -> str:
    """Of a server that recovers. `fetching`: the words of a command that calls `pharmabackup.wal.fetch`.

    A file's name and where it goes are put behind them. It is started in the data folder, by the server's account,
    and has to end with 4 where there is no such file. InvalidInput where a word cannot be quoted.

    A server takes 1 to 125 for "there is no such file", ends its recovery and opens. So 1 is only what our own
    command says by a code that no fault gives; all else stops it, also that the command could not be started.
    """
    command = f'{_quoted(*SCRIPT, "restore", AHEAD)} "%f" "%p" {_quoted(*fetching)} "%f" "%p"'
    absent = wal_command.NO_SUCH_FILE
    if os.name == "nt":
        checks = (
            f"if errorlevel {absent + 1} exit 200",
            f"if errorlevel {absent} exit 1",
            "if errorlevel 1 exit 200",
        )
        return " & ".join([command, *(f"({check})" for check in checks)])
    return f"{command}; code=$?; [ $code = 0 ] && exit 0; [ $code = {absent} ] && exit 1; exit 200"


def recovery_settings(recovery: Recovery | None, server: str) -> dict[str, str]:
    """All that a restored server needs to be told, so that it begins a timeline of its own."""
    if recovery is None:
        return {**dict.fromkeys(TARGETS, ""), "restore_command": NOTHING, "recovery_target_timeline": "current"}
    settings = {
        "restore_command": recovery.restore_command,
        "recovery_end_command": _quoted(*SCRIPT, "end", AHEAD),
        "recovery_target_timeline": str(recovery.timelines[server] or "latest"),
        "recovery_target_action": "promote",
    }
    if recovery.until is None:
        return settings | dict.fromkeys(TARGETS, "")
    return settings | {"recovery_target_time": recovery.until.isoformat(sep=" ")}


def without_recovery(configuration: str) -> str:
    """A server's own file of settings without those of an earlier recovery, which would count in the next."""
    kept = [line for line in configuration.rstrip("\n").split("\n") if _named(line) not in OF_A_RECOVERY]
    return "\n".join([*kept, ""])


def _named(line: str) -> str:
    return line.partition("=")[0].strip().lower()


def lines(settings: Mapping[str, str]) -> list[str]:
    """As a server's configuration file has them, in which a backslash begins an escape."""
    doubled = {name: value.replace("\\", "\\\\").replace("'", "''") for name, value in settings.items()}
    return [f"{name} = '{value}'" for name, value in doubled.items()]


def _quoted(*words: str) -> str:
    """For the server, which replaces what follows a %, and for its shell."""
    for word in words:
        if '"' in word or "\n" in word or "\0" in word or (os.name == "posix" and set(word) & set("$`\\")):
            raise InvalidInput(
                f"{word!r} cannot be part of a server's setting.", remedy="Use another name or folder."
            )
    return " ".join('"' + word.replace("%", "%%") + '"' for word in words)
