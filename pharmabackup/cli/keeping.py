"""Commands about what is kept: forget, prune, recall, hold, release."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Any

import click

import pharmabackup as pb
from pharmabackup.cli.acting import applied
from pharmabackup.cli.app import pharmabackup
from pharmabackup.cli.reports import counted, local
from pharmabackup.cli.settings import Duration, Settings, Time
from pharmabackup.results import Proposal, sized

COUNT = click.IntRange(min=0)


@pharmabackup.command()
@click.argument("named", metavar="[ID]...", nargs=-1)
@click.option(
    "--dataset",
    "datasets",
    metavar="[DEVICE/]NAME[:LABEL]",
    multiple=True,
    help="What the rules are for, with * and ? if need be; all.",
)
@click.option("--keep-last", "last", type=COUNT, metavar="N", help="The newest N.")
@click.option("--keep-within", "within", type=Duration(), metavar="30d", help="All that are no older than that.")
@click.option("--keep-hourly", "hourly", type=COUNT, metavar="N", help="The newest of each of the last N hours.")
@click.option("--keep-daily", "daily", type=COUNT, metavar="N", help="The newest of each of the last N days.")
@click.option("--keep-weekly", "weekly", type=COUNT, metavar="N", help="The newest of each of the last N weeks.")
@click.option("--keep-monthly", "monthly", type=COUNT, metavar="N", help="The newest of each of the last N months.")
@click.option("--keep-yearly", "yearly", type=COUNT, metavar="N", help="The newest of each of the last N years.")
@click.option("--time-zone", default="UTC", metavar="NAME", help="Where days begin, such as Europe/London; UTC.")
@click.option("--yes", is_flag=True, help="Do it without asking.")
@click.pass_obj
def forget(
    settings: Settings,
    /,
    named: tuple[str, ...],
    datasets: tuple[str, ...],
    time_zone: str,
    yes: bool,
    **rules: Any,
) -> None:
    """Forget the snapshots that rules do not keep, or those that are named.

    Without rules and names, the owner's rules hold. The newest, the newest whole, the last verified and held
    snapshots always stay.
    """
    given = {name: value for name, value in rules.items() if value is not None}
    if datasets and not given:
        raise click.UsageError("Say how much to keep of them: --keep-daily 7 and so on.")
    keep = {dataset: pb.Keep(**given) for dataset in datasets or ("*",)} if given else None
    with settings.open() as repository:
        snapshots = [repository.snapshot(id=text) for text in named]
        proposal = repository.propose_forget(keep, snapshots=snapshots, time_zone=time_zone)
        if not _agreed(settings, proposal, yes=yes):
            return
        report = applied(settings, repository, proposal)
    output = settings.output
    if not output.people:
        output.result(report.to_dict())
    elif not output.quiet:
        output.line(f"Forgotten: {counted(len(proposal.snapshots), 'snapshot')}.")


def _agreed(settings: Settings, proposal: Proposal, *, yes: bool) -> bool:
    """Show what would be done; whether it is to be done."""
    output = settings.output
    if not output.people:
        if not yes:
            output.result(proposal.to_dict())
        return yes
    output.findings(proposal.findings)
    if not proposal.snapshots:
        output.say("There is nothing to forget.")
        return False
    columns = [("Id", False), ("Time", False), ("Dataset", False), ("Device", False), ("Size", True)]
    output.table(columns, [[s.id[:8], local(s.time), s.dataset, s.device, sized(s.size)] for s in proposal.snapshots])
    when = proposal.not_before
    until = f"They can be called back until {local(when)}." if when else "Others have to agree before that counts."
    output.line(
        f"{counted(len(proposal.snapshots), 'snapshot')} would be forgotten, which frees "
        f"{sized(proposal.bytes_freed)} once they are pruned. {until}"
    )
    return yes or confirmed(settings, "Forget them?")


def confirmed(settings: Settings, question: str) -> bool:
    """Ask whoever sits there; nobody does where there is no terminal."""
    if sys.stdin.isatty():
        return click.confirm(question, err=True)
    settings.output.say("Nothing was done. Add --yes to do it.")
    return False


@pharmabackup.command()
@click.option("--yes", is_flag=True, help="Do it without asking.")
@click.pass_obj
def prune(settings: Settings, yes: bool) -> None:
    """Delete what no snapshot needs any more. Backups may go on meanwhile."""
    output = settings.output
    with settings.open() as repository:
        proposal = repository.propose_prune()
        if not output.people and not yes:
            output.result(proposal.to_dict())
            return
        if output.people:
            output.findings(proposal.findings)
        if output.people and not proposal.bytes_freed and not proposal.findings:
            output.say("There is nothing to delete.")
            return
        if output.people:
            output.line(
                f"{sized(proposal.bytes_freed)} would be freed; {counted(len(proposal.snapshots), 'snapshot')} that "
                "were forgotten cannot be called back then."
            )
            if not yes and not confirmed(settings, "Delete it?"):
                return
        report = applied(settings, repository, proposal)
    if not output.people:
        output.result(report.to_dict())
        return
    output.findings(report.findings)
    if not output.quiet:
        output.line(f"Freed: {sized(report.bytes)}.")


@pharmabackup.command()
@click.argument("named", metavar="ID")
@click.option("--reason", required=True, metavar="TEXT", help="Why; it is kept.")
@click.pass_obj
def recall(settings: Settings, named: str, reason: str) -> None:
    """Call back a snapshot that was to be forgotten."""
    with settings.open() as repository:
        snapshot = repository.snapshot(id=named)
        repository.recall(snapshot, reason=reason)
    _said(settings, snapshot, "is called back")


@pharmabackup.command()
@click.argument("named", metavar="ID")
@click.option("--reason", required=True, metavar="TEXT", help="Why; it is kept.")
@click.option("--until", type=Time(), metavar="TIME", help="When the hold ends by itself.")
@click.pass_obj
def hold(settings: Settings, named: str, reason: str, until: datetime | None) -> None:
    """Keep a snapshot whatever the rules say."""
    with settings.open() as repository:
        snapshot = repository.snapshot(id=named)
        repository.hold(snapshot, reason=reason, until=until)
    _said(settings, snapshot, "is held")


@pharmabackup.command()
@click.argument("named", metavar="ID")
@click.option("--reason", required=True, metavar="TEXT", help="Why; it is kept.")
@click.pass_obj
def release(settings: Settings, named: str, reason: str) -> None:
    """End the holds of a snapshot."""
    with settings.open() as repository:
        snapshot = repository.snapshot(id=named)
        repository.release(snapshot, reason=reason)
    _said(settings, snapshot, "is held no more")


def _said(settings: Settings, snapshot: pb.Snapshot, what: str) -> None:
    output = settings.output
    if not output.people:
        output.result({"snapshot": snapshot.id})
    elif not output.quiet:
        output.line(f"The snapshot {snapshot.id[:8]} of {snapshot.dataset} {what}.")
