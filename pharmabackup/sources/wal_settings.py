"""A PostgreSQL server's settings that have it call `wal_command`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from pharmabackup.errors import InvalidInput
from pharmabackup.sources import wal_command

AHEAD = "pharmabackup-wal"  # a folder in a server's data folder, of what was fetched before it was asked for
SCRIPT = (sys.executable, "-I", "-S", os.path.abspath(wal_command.__file__))


def archive_command(spool: str) -> str:
    """Of a server whose WAL is archived. InvalidInput where a word cannot be quoted."""
    return f'{_quoted(*SCRIPT, "archive", spool)} "%p"'


def restore_command(fetching: Sequence[str]) -> str:
    """Of a server that recovers. `fetching`: the words of a command that calls `pharmabackup.wal.fetch`.

    A file's name and where it goes are put behind them. It is started in the data folder, by the server's account,
    and has to end with 4 where there is no such file. InvalidInput where a word cannot be quoted.
    """
    return f'{_quoted(*SCRIPT, "restore", AHEAD)} "%f" "%p" {_quoted(*fetching)} "%f" "%p"'


def recovery_end_command() -> str:
    """Of one that has recovered: what was fetched ahead and not needed goes."""
    return _quoted(*SCRIPT, "end", AHEAD)


def _quoted(*words: str) -> str:
    """For the server, which replaces what follows a %, and for its shell."""
    for word in words:
        if '"' in word or "\n" in word or "\0" in word or (os.name == "posix" and set(word) & set("$`\\")):
            raise InvalidInput(
                f"{word!r} cannot be part of a server's setting.", remedy="Use another name or folder."
            )
    return " ".join('"' + word.replace("%", "%%") + '"' for word in words)
