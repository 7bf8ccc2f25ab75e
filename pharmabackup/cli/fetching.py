"""What a PostgreSQL server that recovers calls for each file of its log: this command line, as far as it counts."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from typing import TYPE_CHECKING

import click

import pharmabackup as pb
from pharmabackup.cli.settings import Settings

if TYPE_CHECKING:
    from pharmabackup.wal import Recovery


def recovered(
    settings: Settings,
    repository: pb.Repository,
    dataset: str,
    *,
    until: datetime | None,
    timeline: int | None,
    despite_damage: bool,
) -> Recovery:
    """A recovery whose server fetches what this command line would. UsageError."""
    from pharmabackup import wal  # other commands do not wait for what it needs

    who = settings.credential or os.environ.get("PHARMABACKUP_CREDENTIAL") or ""
    way, _, path = who.partition(":")
    if way != "keyfile" or not path:
        raise click.UsageError(
            "A server that recovers cannot be asked for a passphrase: give --credential keyfile:PATH, of a file that "
            "its account can read."
        )
    url = settings.url()
    words = [sys.executable, "-m", "pharmabackup", "wal-get", "--credential", f"keyfile:{os.path.abspath(path)}"]
    words += ["-r", url if "://" in url else os.path.abspath(url)]
    for key, value in settings.storage_option.items():
        words += ["--storage-option", f"{key}={value}"]
    if settings.state:
        words += ["--state", os.path.abspath(settings.state)]
    if settings.expected:
        words += ["--id", settings.expected]
    if despite_damage:
        words.append("--despite-damage")
    return wal.recovery(repository, dataset, [*words, dataset], until=until, timeline=timeline)
