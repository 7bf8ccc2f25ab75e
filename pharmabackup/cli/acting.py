"""Commands that write or judge: init, backup, restore, check."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

import click

import pharmabackup as pb
from pharmabackup.cli.app import pharmabackup
from pharmabackup.cli.codes import OK, STATES, WARNING
from pharmabackup.cli.fetching import recovered
from pharmabackup.cli.progress import shown
from pharmabackup.cli.reports import counted, lasted, show_report
from pharmabackup.cli.settings import Settings, Share, Time, pairs
from pharmabackup.cli.sources import source_options, sources_of, sqlserver
from pharmabackup.cli.stopping import Stopping
from pharmabackup.results import Proposal, Report, sized

if TYPE_CHECKING:
    from pharmabackup.wal import Recovery

T = TypeVar("T")


@pharmabackup.command()
@click.pass_obj
def init(settings: Settings) -> None:
    """Create a repository, with a passphrase for its owner."""
    url = settings.url()
    credential = settings.who(new=True)
    with pb.Repository.create(
        url,
        credential,
        storage_options=settings.storage_options(),
        state_dir=settings.state,
        actor=settings.actor,
        reason=settings.reason,
    ) as repository:
        facts: dict[str, object] = {
            "id": repository.id,
            "url": repository.url,
            "role": repository.role,
            "slot": repository.slot,
            "capabilities": dict(repository.capabilities),
        }
        safe = repository.capabilities.get("exclusive-create", False)
    output = settings.output
    if not output.people:
        output.result(facts)
    elif not output.quiet:
        output.line(f"Created the repository {str(facts['id'])[:8]} in {url}.")
        output.line(f"Safe beside other writers: {'yes' if safe else 'no, back up to it from one computer only'}.")
        output.line("Keep the passphrase in two safe places: without it nobody can read the backups, ever.")


@pharmabackup.command()
@source_options
@click.option(
    "--tier", "tiers", metavar="NAME=N", multiple=True, help="0 is backed up and restored first, 5 last; 3."
)
@click.option("--exclude", metavar="GLOB", multiple=True, help="What to leave out of all folders.")
@click.option("--shadow", is_flag=True, help="Read folders from Windows' shadow copies; for an administrator.")
@click.option("--also", "others", metavar="URL", multiple=True, help="A replica that gets it too, meanwhile.")
@click.option("--reason", metavar="TEXT", help="Why; it is kept with the snapshots.")
@click.pass_obj
def backup(
    settings: Settings,
    /,
    tiers: tuple[str, ...],
    exclude: tuple[str, ...],
    shadow: bool,
    others: tuple[str, ...],
    reason: str | None,
    **given: tuple[str, ...],
) -> int:
    """Make one snapshot of each folder and database."""
    sources = sources_of(given, pairs(tiers, "--tier", int), exclude, shadow=shadow)
    if not sources:
        raise click.UsageError("Say what to back up: --files PATH, --sqlite PATH, --postgresql URL or --mysql URL.")
    who, away = settings.who(), False
    with ExitStack() as stack:
        repository = stack.enter_context(settings.open_at(settings.url(), who))
        replicas = []
        for url in others:
            try:
                replicas.append(stack.enter_context(settings.open_other(url, who)))
            except pb.Error as error:  # the first place takes the backup; this one catches up when it is well again
                settings.output.say(f"{url} is left out: {error}")
                away = True
        report = run_verb(
            settings,
            lambda progress, cancel: repository.backup(
                sources, replicas=replicas, reason=reason, progress=progress, cancel=cancel
            ),
        )
    _show(settings, report)
    away |= any(finding.code == "location-behind" for finding in report.findings)
    return WARNING if away else OK


@pharmabackup.command()
@click.argument("target", required=False)
@click.option("--only", metavar="NAME|GLOB", multiple=True, help='A dataset, or paths in one: "documents/sops/**".')
@click.option("--before", type=Time(), metavar="TIME", help="The newest from before that time.")
@click.option("--into", metavar="NAME=URL", multiple=True, help="Load a dataset there, not into TARGET.")
@click.option("--table", "tables", metavar="NAME", multiple=True, help="Of PostgreSQL or MariaDB, only its rows.")
@click.option(
    "--until", type=Time(), metavar="TIME", help="A PostgreSQL server's files, and then its log until then."
)
@click.option("--wal", "log", metavar="NAME", help="The archived log that such a server goes on with, to its end.")
@click.option("--timeline", type=int, metavar="N", help="Which of the server's lives; by default that of --until.")
@click.option("--despite-damage", is_flag=True, help="What cannot be read of the repository is not of that log.")
@click.option("--dry-run", is_flag=True, help="Only look: what would come back, and what would be in its way.")
@click.option("--overwrite", is_flag=True, help="Replace what is there; what is right already is not written again.")
@click.pass_obj
def restore(
    settings: Settings,
    target: str | None,
    only: tuple[str, ...],
    before: datetime | None,
    into: tuple[str, ...],
    tables: tuple[str, ...],
    until: datetime | None,
    log: str | None,
    timeline: int | None,
    despite_damage: bool,
    dry_run: bool,
    overwrite: bool,
) -> int:
    """Bring back the newest of everything, tier by tier."""
    places = pairs(into, "--into")
    if until is not None and log is None:
        raise click.UsageError("Say which archived log leads there: --wal NAME.")
    if log is not None and not places:
        raise click.UsageError("A server's log is for a server: --into NAME=DATA.")
    before = before or until
    if target == "":  # a shell variable that was not set must not mean this very folder
        raise click.UsageError("The target folder's name is empty.")
    if target is None and not places:
        raise click.UsageError("Say where to restore to: a folder, or --into NAME=URL.")
    with settings.open() as repository:
        recovery = None
        if log is not None:
            recovery = recovered(
                settings, repository, log, until=until, timeline=timeline, despite_damage=despite_damage
            )
        loaded = _loaded(repository, places, before, recovery, tables)
        if log is not None and not any(isinstance(source, pb.PostgreSQLCluster) for source in loaded.values()):
            raise click.UsageError("--wal and --until are for a whole PostgreSQL server, and none is restored.")
        if tables and sum(isinstance(source, pb.PostgreSQL | pb.MySQL) for source in loaded.values()) != 1:
            raise click.UsageError("--table is for one PostgreSQL or MariaDB database: --into NAME=URL.")
        report = run_verb(
            settings,
            lambda progress, cancel: repository.restore(
                target,
                before=before,
                only=only,
                into=loaded,
                overwrite=overwrite,
                dry_run=dry_run,
                progress=progress,
                cancel=cancel,
            ),
        )
    _show(settings, report)
    return STATES[report.state] if dry_run else OK


def _loaded(
    repository: pb.Repository,
    places: Mapping[str, object],
    before: datetime | None,
    recovery: Recovery | None,
    tables: Sequence[str],
) -> dict[str, pb.Source]:
    """What each dataset is loaded into: a source of the kind that it was backed up from."""
    found: dict[str, pb.Source] = {}
    for name, place in places.items():
        kind = repository.snapshot(name, before=before).kind
        if kind == "sqlite":
            found[name] = pb.SQLite(str(place), name=name)
        elif kind == "files":
            found[name] = pb.Files(str(place), name=name)
        elif kind == "postgresql":
            found[name] = pb.PostgreSQL(str(place), name=name, only=tables)
        elif kind == "mysql":
            found[name] = pb.MySQL(str(place), name=name, only=tables)
        elif kind == "postgresql-cluster":
            found[name] = pb.PostgreSQLCluster(data=str(place), name=name, recovery=recovery)
        elif kind == "sqlserver":
            found[name] = sqlserver(str(place), name)
        elif kind == "mariadb-instance":
            found[name] = pb.MariaDBInstance(data=str(place), name=name)
        else:
            raise pb.Unsupported(f"{name} ({kind}) cannot be loaded anywhere.", remedy="Restore it to a folder.")
    return found


@pharmabackup.command()
@click.option(
    "--read-data", type=Share(), default="0%", metavar="SHARE", help="Read that share of the data: 5%, 100%."
)
@click.pass_obj
def check(settings: Settings, read_data: float) -> int:
    """Judge whether all is there, unharmed, and can be restored."""
    settings.judging = True
    with settings.open() as repository:
        report = run_verb(
            settings,
            lambda progress, cancel: repository.check(read_data=read_data, progress=progress, cancel=cancel),
        )
    output = settings.output
    if not output.people:
        output.result(report.to_dict())
    else:
        output.findings(report.findings)
        if not output.quiet:
            how = f"{sized(report.bytes)} read" if read_data else "structure only; --read-data 5% reads data too"
            verdict = "nothing is wrong" if report.state == "ok" else counted(len(report.findings), "finding")
            output.line(f"{report.state.upper()}: {verdict} ({how}, {lasted(report.duration)}).")
    return STATES[report.state]


# ------------------------------------------------------------ all of them


def run_verb(settings: Settings, verb: Callable[[Callable[[pb.Event], object] | None, threading.Event], T]) -> T:
    """A verb with its progress shown, that ends in good order when asked to stop."""
    with Stopping(quiet=settings.output.quiet or not settings.output.people) as stopping:
        if settings.as_events:
            stopping.watch_stdin()
        with shown(settings.output) as progress:
            return verb(progress, stopping.cancel)


def applied(settings: Settings, repository: pb.Repository, proposal: Proposal) -> Report:
    """What was proposed, done as any verb is."""
    return run_verb(settings, lambda progress, cancel: repository.apply(proposal, progress=progress, cancel=cancel))


def _show(settings: Settings, report: Report) -> None:
    output = settings.output
    if not output.people:
        output.result(report.to_dict())
        return
    output.findings(report.findings)
    if not output.quiet:
        show_report(output, report)
