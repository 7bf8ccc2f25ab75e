"""Commands about keys: slots, enrol, passphrase, rotate."""

from __future__ import annotations

import click

from pharmabackup.cli.acting import applied
from pharmabackup.cli.app import pharmabackup
from pharmabackup.cli.credentials import credential
from pharmabackup.cli.keeping import confirmed
from pharmabackup.cli.reports import local
from pharmabackup.cli.settings import Settings
from pharmabackup.results import sized

NEW = click.option("--new", "reference", default="ask", metavar="REF", help="Where the new passphrase is; ask.")


@pharmabackup.command()
@click.pass_obj
def slots(settings: Settings) -> None:
    """Who can open this repository."""
    with settings.open() as repository:
        found = repository.slots()
        own = repository.slot
    output = settings.output
    if not output.people:
        output.result({"slots": [slot.to_dict() for slot in found]})
        return
    columns = [("Name", False), ("Role", False), ("Opens with", False), ("Since", False), ("", False)]
    rows = []
    for slot in found:
        note = f"revoked {local(slot.revoked)}" if slot.revoked else "this one" if slot.name == own else ""
        rows.append([slot.name, slot.role, slot.kind, local(slot.created), note])
    output.table(columns, rows)


@pharmabackup.command()
@click.argument("role", type=click.Choice(["owner"]))
@click.argument("name", metavar="NAME")
@NEW
@click.pass_obj
def enrol(settings: Settings, role: str, name: str, reference: str) -> None:
    """Let one more passphrase open the repository. ROLE is owner."""
    assert role == "owner"
    with settings.open() as repository:
        repository.enrol("owner", credential(reference, settings.output.say, new=True, option="--new"), name=name)
    _done(settings, {"slot": name}, f"{name} can open this repository now.")


@pharmabackup.command()
@NEW
@click.pass_obj
def passphrase(settings: Settings, reference: str) -> None:
    """Change the passphrase that opened it."""
    with settings.open() as repository:
        repository.change_passphrase(credential(reference, settings.output.say, new=True, option="--new"))
        name = repository.slot
    _done(
        settings,
        {"slot": name},
        f"The passphrase of {name} is changed. If others know the old one, run rotate too: it makes new keys.",
    )


@pharmabackup.command()
@click.option("--reason", required=True, metavar="TEXT", help="Why; it is kept.")
@click.pass_obj
def rotate(settings: Settings, reason: str) -> None:
    """New keys for what is backed up from now on; all passphrases stay."""
    with settings.open() as repository:
        repository.rotate(reason=reason)
        own = repository.slot
    _done(
        settings, {"slot": own}, "What is backed up from now on is sealed to new keys; what is there keeps its own."
    )


@pharmabackup.command()
@click.option("--yes", is_flag=True, help="Do it without asking.")
@click.pass_obj
def reseal(settings: Settings, yes: bool) -> None:
    """Seal what is there with the newest keys, after rotate. Everything is read and written once."""
    output = settings.output
    with settings.open() as repository:
        proposal = repository.propose_reseal()
        if not output.people and not yes:
            output.result(proposal.to_dict())
            return
        if output.people:
            output.findings(proposal.findings)
        if output.people and not proposal.steps:
            if not proposal.findings:
                output.say("Everything is sealed with the newest keys.")
            return
        if output.people:
            for step in proposal.steps:
                output.line(step)
            if not yes and not confirmed(settings, "Do it?"):
                return
        report = applied(settings, repository, proposal)
    if not output.people:
        output.result(report.to_dict())
        return
    output.findings(report.findings)
    if not output.quiet:
        output.line(f"Sealed anew: {sized(report.bytes)}.")


def _done(settings: Settings, facts: dict[str, object], text: str) -> None:
    output = settings.output
    if not output.people:
        output.result(facts)
    elif not output.quiet:
        output.line(text)
