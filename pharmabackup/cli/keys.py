"""Commands about keys: key, slots, enrol, revoke, split-recovery, passphrase, rotate, reseal."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import click

import pharmabackup as pb
from pharmabackup.cli.acting import applied
from pharmabackup.cli.app import pharmabackup
from pharmabackup.cli.credentials import credential
from pharmabackup.cli.keeping import confirmed
from pharmabackup.cli.reports import local
from pharmabackup.cli.settings import Settings, Verb
from pharmabackup.results import sized

FILE_MAX = 1 << 16
WORDS = 8  # on a line
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
    columns = [("Name", False), ("Role", False), ("Opens with", False), ("Fingerprint", False), ("Since", False)]
    columns.append(("", False))
    rows = []
    for slot in found:
        note = f"revoked {local(slot.revoked)}" if slot.revoked else "this one" if slot.name == own else ""
        rows.append([slot.name, slot.role, slot.kind, slot.fingerprint, local(slot.created), note])
    output.table(columns, rows)


@pharmabackup.group()
def key() -> None:
    """Key files, and keys in the system's vault."""


@key.command(cls=Verb)
@click.argument("place", metavar="PATH|vault:SERVICE/NAME")
@click.pass_obj
def new(settings: Settings, place: str) -> None:
    """Make a key. Its public half, in PATH.pub, is what an owner enrols."""
    where = place.removeprefix("vault:")
    made: pb.KeyFile | pb.Vault
    if where == place:
        made = pb.KeyFile.create(place)
    elif "/" in where:
        service, _, name = where.partition("/")
        made = pb.Vault.create(service, name)
    else:
        raise click.UsageError("An entry of the vault is vault:SERVICE/NAME.")
    recipient = made.recipient
    facts = {"fingerprint": recipient.fingerprint, "recipient": str(recipient)}
    _done(settings, facts, f"A new key: {place}. Its fingerprint: {recipient.fingerprint}")
    if settings.output.people and where != place:  # there is no file beside it
        for line in str(recipient).splitlines():
            settings.output.line(line)


@key.command(cls=Verb)
@click.argument("place", metavar="PATH|vault:SERVICE/NAME")
@click.pass_obj
def show(settings: Settings, place: str) -> None:
    """The fingerprint of a key, or of its public half, to compare by phone."""
    recipient = _recipient(settings, place)
    facts = {"fingerprint": recipient.fingerprint, "recipient": str(recipient)}
    _done(settings, facts, recipient.fingerprint)


def _recipient(settings: Settings, place: str) -> pb.Recipient:
    """What a file holds, be it the secret or the public half, or an entry of the vault."""
    if place.startswith("vault:"):
        who = credential(place, settings.output.say, option="the place")
        assert isinstance(who, pb.Vault)
        return who.recipient
    if place.endswith(".pub"):
        return _public(place)
    return pb.KeyFile(place).recipient


def _public(path: str) -> pb.Recipient:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return pb.Recipient(file.read(FILE_MAX))
    except OSError as error:
        raise pb.NotFound(
            f"{path} cannot be read: {error.strerror}.", remedy="Give the file that was made beside the key."
        ) from None


@pharmabackup.command()
@click.argument("role", type=click.Choice(["device", "restorer", "auditor", "maintainer", "owner"]))
@click.argument("name", metavar="NAME")
@click.option("--recipient", metavar="FILE.pub", help="The public half of a key: no secret has to travel.")
@click.option(
    "--new", "reference", metavar="REF", help="Where the new credential is; asked for when there is neither."
)
@click.option("--domain", metavar="NAME", help="Of a device: the devices that trust each other's chunks.")
@click.pass_obj
def enrol(
    settings: Settings, role: Any, name: str, recipient: str | None, reference: str | None, domain: str | None
) -> None:
    """Let one more credential in, with the keys of its role alone.

    \b
    device      backs up, and can read nothing of what is there
    restorer    reads and restores
    auditor     checks, without seeing contents or names of files
    maintainer  forgets, prunes, repairs and copies, without seeing them
    owner       everything
    """
    if recipient and reference:
        raise click.UsageError("Give --recipient or --new.")
    with settings.open() as repository:
        who: Any = (
            _public(recipient)
            if recipient
            else credential(reference or "ask", settings.output.say, new=True, option="--new")
        )
        repository.enrol(role, who, name=name, domain=domain)
        (slot,) = (slot for slot in repository.slots() if slot.name == name)
    compare = f" Compare its fingerprint by phone: {slot.fingerprint}." if recipient else ""
    _done(settings, {"slot": name, "fingerprint": slot.fingerprint}, f"{name} can open this repository now.{compare}")


@pharmabackup.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--reason", required=True, metavar="TEXT", help="Why; it is kept.")
@click.option("--replica", "urls", metavar="URL", multiple=True, help="Where it has backed up to directly.")
@click.pass_obj
def revoke(settings: Settings, names: tuple[str, ...], reason: str, urls: tuple[str, ...]) -> None:
    """Shut slots out: they open nothing any more, and what they sign does not count. New keys are made."""
    with ExitStack() as opened:
        repository = opened.enter_context(settings.open())
        who = settings.who() if urls else None
        replicas = [opened.enter_context(settings.open_at(url, who)) for url in urls if who is not None]
        found = repository.revoke(*names, reason=reason, replicas=replicas)
    told = " ".join(f"{name} is revoked; what it has backed up stays." for name in names)
    facts: dict[str, object] = {"slot": names[0]} if len(names) == 1 else {"slots": list(names)}
    if found and not settings.output.people:
        facts["findings"] = [finding.to_dict() for finding in found]
    settings.output.findings(found)
    _done(settings, facts, f"{told} Take access to the storage away, too.")


@pharmabackup.command("split-recovery")
@click.option("--threshold", type=int, default=2, metavar="K", help="So many shares open; 2.")
@click.option("--shares", type=int, default=3, metavar="N", help="So many there are; 3.")
@click.pass_obj
def split_recovery(settings: Settings, threshold: int, shares: int) -> None:
    """Make a recovery key, in shares that different people keep. They are shown once, and replace older ones."""
    with settings.open() as repository:
        made = repository.split_recovery(threshold=threshold, shares=shares)
    output = settings.output
    if not output.people:
        output.result({"threshold": threshold, "shares": list(made)})
        return
    for number, share in enumerate(made, 1):
        output.line(f"Share {number} of {shares}, of which {threshold} open:")
        words = share.split()
        for start in range(0, len(words), WORDS):
            output.line("  " + " ".join(words[start : start + WORDS]))
        output.line("")
    output.say("Write each down, and give each to another person. They are not shown again.")
    output.say("Recovery kits that were printed before are outdated: print one with recovery-kit.")


@pharmabackup.command()
@NEW
@click.pass_obj
def passphrase(settings: Settings, reference: str) -> None:
    """Change the passphrase that opened it."""
    with settings.open() as repository:
        new: Any = credential(reference, settings.output.say, new=True, option="--new")
        repository.change_passphrase(new)
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


def _done(settings: Settings, facts: Mapping[str, object], text: str) -> None:
    output = settings.output
    if not output.people:
        output.result(dict(facts))
    elif not output.quiet:
        output.line(text)
