"""The command that mends a repository: repair."""

from __future__ import annotations

from contextlib import ExitStack

import click

from pharmabackup.cli.acting import applied, run_verb
from pharmabackup.cli.app import pharmabackup
from pharmabackup.cli.codes import OK, WARNING
from pharmabackup.cli.keeping import confirmed
from pharmabackup.cli.settings import Settings
from pharmabackup.cli.sources import sources_of
from pharmabackup.results import Proposal, sized


@pharmabackup.command()
@click.option("--from", "replicas", metavar="URL", multiple=True, help="The same repository in another place.")
@click.option("--files", "folders", metavar="[NAME=]PATH", multiple=True, help="A folder that may have what is lost.")
@click.option("--sqlite", "databases", metavar="[NAME=]PATH", multiple=True, help="A database that may have it.")
@click.option("--exclude", metavar="GLOB", multiple=True, help="What was left out of the folders.")
@click.option("--yes", is_flag=True, help="Do it without asking.")
@click.pass_obj
def repair(
    settings: Settings,
    replicas: tuple[str, ...],
    folders: tuple[str, ...],
    databases: tuple[str, ...],
    exclude: tuple[str, ...],
    yes: bool,
) -> int:
    """Mend what is damaged, as far as that can be, and say what is lost. All data is read first."""
    sources = sources_of({"files": folders, "sqlite": databases}, {}, exclude)
    output = settings.output
    with ExitStack() as stack:
        who = settings.who()
        repository = stack.enter_context(settings.open_at(settings.url(), who))
        others = [stack.enter_context(settings.open_at(url, who)) for url in replicas]
        output.say("Reading everything that is there.")
        proposal = run_verb(
            settings,
            lambda progress, cancel: repository.propose_repair(
                replicas=others, sources=sources, progress=progress, cancel=cancel
            ),
        )
        if not _agreed(settings, proposal, yes=yes):
            return _code(proposal)
        report = applied(settings, repository, proposal)
    if not output.people:
        output.result(report.to_dict())
    elif not output.quiet:
        output.line(f"Repaired: {sized(report.bytes)} read and written.")
    return _code(proposal)


def _agreed(settings: Settings, proposal: Proposal, *, yes: bool) -> bool:
    """Show what would be done and what is lost; whether it is to be done."""
    output = settings.output
    if not output.people:
        if not yes:
            output.result(proposal.to_dict())
        return yes
    output.findings(proposal.findings)
    if not proposal.steps:
        output.say("There is nothing that could be mended." if proposal.findings else "There is nothing to repair.")
        return False
    for text in proposal.steps:
        output.line(text)
    for snapshot in proposal.snapshots:
        output.line(f"Whole again: {snapshot}")
    return yes or confirmed(settings, "Do this?")


def _code(proposal: Proposal) -> int:
    """Part is safe and part is not, where something is lost."""
    return WARNING if any(finding.severity == "critical" for finding in proposal.findings) else OK
