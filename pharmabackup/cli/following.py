"""Commands for what never stops: follow; and for a PostgreSQL server's log: wal, wal-get."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

import click

import pharmabackup as pb
from pharmabackup.cli.acting import run_verb
from pharmabackup.cli.app import pharmabackup
from pharmabackup.cli.codes import ABSENT, CRITICAL, OK
from pharmabackup.cli.output import Output
from pharmabackup.cli.reports import local
from pharmabackup.cli.settings import Settings, named, pairs
from pharmabackup.cli.sources import sources_of

GONE_S = 600  # a finding that was not heard of for so long, and comes again, is new


@pharmabackup.command()
@click.option(
    "--sqlite", "databases", metavar="[NAME=]PATH", multiple=True, help="An SQLite database, in use or not."
)
@click.option("--files", "folders", metavar="[NAME=]PATH", multiple=True, help="A folder and all that is in it.")
@click.option("--wal", "log", metavar="NAME=DATA", help="The log of the PostgreSQL server in DATA.")
@click.option("--spool", metavar="DIR", help="Where what is archived of a log is noted; with --wal.")
@click.option("--every", metavar="SECONDS", type=click.FloatRange(min=0, min_open=True), default=5.0, help="5.")
@click.option("--tier", "tiers", metavar="NAME=N", multiple=True, help="0 is backed up first, 5 last; 3.")
@click.option("--show-setting", is_flag=True, help="Print what the server has to be set to, and end.")
@click.pass_obj
def follow(
    settings: Settings,
    databases: tuple[str, ...],
    folders: tuple[str, ...],
    log: str | None,
    spool: str | None,
    every: float,
    tiers: tuple[str, ...],
    show_setting: bool,
) -> None:
    """Back up what has changed, again and again, until it is stopped."""
    numbers = pairs(tiers, "--tier", int)
    followed: list[pb.Source] = []
    if log is not None:
        name, data = named(log)
        if name is None:
            raise click.BadParameter("give it as NAME=DATA.", param_hint="--wal")
        if not spool:
            raise click.UsageError("Say where to note what is archived: --spool DIR.")
        source = pb.PostgreSQLWAL(data, spool=spool, name=name, tier=int(str(numbers.pop(name, 1))))
        followed.append(source)
        if show_setting:
            for line in source.settings:
                settings.output.line(line)
            return
    elif show_setting:
        raise click.UsageError("Say for which server: --wal NAME=DATA.")
    followed += sources_of({"files": folders, "sqlite": databases}, numbers)
    if not followed:
        raise click.UsageError("Say what to follow: --sqlite PATH, --wal NAME=DATA or --files PATH.")
    with settings.open() as repository:
        result = run_verb(
            settings,
            lambda progress, cancel: repository.follow(
                followed,
                every=timedelta(seconds=every),
                cancel=cancel,
                progress=_Findings(settings.output, progress) if settings.output.people else progress,
            ),
        )
    if not settings.output.people:
        settings.output.result(result.to_dict())
    elif not settings.output.quiet:
        settings.output.line(str(result))


class _Findings:
    """Shows what is wrong, too, and what stays so once: nobody sees a report of something that does not end."""

    def __init__(self, output: Output, shown: Callable[[pb.Event], object] | None) -> None:
        self._output = output
        self._shown = shown
        self._seen: dict[tuple[str, str], float] = {}  # when each was told last, here or by the library

    def __call__(self, event: pb.Event) -> None:
        if event.finding is not None:
            this, now = (event.finding.code, event.finding.message), time.monotonic()
            if now - self._seen.get(this, -GONE_S) >= GONE_S:
                self._output.stamped(str(event.finding))
            self._seen[this] = now
        if self._shown is not None:
            self._shown(event)


@pharmabackup.command("wal")
@click.argument("dataset")
@click.pass_obj
def wal(settings: Settings, dataset: str) -> int:
    """What is archived of a PostgreSQL server's log, and what is missing in it."""
    from pharmabackup import wal as log  # other commands do not wait for what it needs

    settings.judging = True
    with settings.open() as repository:
        found, missing = log.ranges(repository, dataset), log.gaps(repository, dataset)
    output = settings.output
    if not output.people:
        output.result(
            {name: [one.to_dict() for one in those] for name, those in (("ranges", found), ("gaps", missing))}
        )
        return CRITICAL if missing else OK
    columns = [("Server", False), ("From", False), ("To", False), ("Segments", True), ("Until", False)]
    rows = [
        [one.system, one.first, one.last, f"{one.segments:,}", local(one.until) if one.until else "MISSING"]
        for one in sorted([*found, *missing], key=lambda one: (one.system, one.first))
    ]
    output.table(columns, rows)
    if missing and not output.quiet:
        output.line("No restore goes past what is missing.")
    return CRITICAL if missing else OK


@pharmabackup.command("wal-get")
@click.argument("dataset")
@click.argument("name")
@click.argument("target")
@click.option("--despite-damage", is_flag=True, help="What cannot be read of the repository is not of this log.")
@click.pass_obj
def wal_get(settings: Settings, dataset: str, name: str, target: str, despite_damage: bool) -> int:
    """Fetch one file of a log, for a PostgreSQL server that recovers and has started this.

    It runs in the server's data folder. It ends with 4 where there is no such file.
    """
    from pharmabackup import wal as log

    with settings.open() as repository:
        found = log.fetch(
            repository,
            dataset,
            name,
            target,
            of=log.system("."),
            ahead=log.AHEAD,
            despite_damage=despite_damage,
        )
    return OK if found else ABSENT
