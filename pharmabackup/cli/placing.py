"""Commands about places: copy, compare, eject."""

from __future__ import annotations

import click

import pharmabackup as pb
from pharmabackup.cli.acting import run_verb
from pharmabackup.cli.app import pharmabackup
from pharmabackup.cli.credentials import credential
from pharmabackup.cli.reports import counted, lasted, local
from pharmabackup.cli.settings import Settings, without_secret
from pharmabackup.results import sized

OTHER = click.option("--to-credential", metavar="REF", help="Who you are there, if not the same as here.")


def _other(settings: Settings, to: str, reference: str | None, who: pb.Credential) -> pb.Repository:
    there = credential(reference, settings.output.say, option="--to-credential") if reference else who
    return settings.open_other(to, there)


@pharmabackup.command()
@click.argument("to", metavar="URL")
@click.argument("named", metavar="[ID]...", nargs=-1)
@click.option("--create", is_flag=True, help="Make a replica there first: the same repository at another place.")
@OTHER
@click.pass_obj
def copy(settings: Settings, to: str, named: tuple[str, ...], create: bool, to_credential: str | None) -> None:
    """Bring to another place what it lacks.

    To a replica sealed packs are moved as they are. To another repository everything is read here and sealed anew
    there. Stopped and run again, it goes on from what is there.
    """
    who = settings.who()
    url = settings.url()
    with settings.open_at(url, who) as here:
        if create:
            there = pb.Repository.create(
                without_secret(to),
                who,
                replica_of=here,
                state_dir=settings.state,
                actor=settings.actor,
                reason=settings.reason,
            )
        else:
            there = _other(settings, to, to_credential, who)
        with there:
            chosen = [here.snapshot(id=text) for text in named] or None
            report = run_verb(
                settings,
                lambda progress, cancel: here.copy(there, snapshots=chosen, progress=progress, cancel=cancel),
            )
            newest = {dataset: result.snapshot for dataset, result in report.datasets.items()}
    output = settings.output
    if not output.people:
        output.result(report.to_dict())
        return
    output.findings(report.findings)
    if output.quiet:
        return
    if not newest:
        output.line("Nothing to copy: all of it is there.")
        return
    columns = [("Dataset", False), ("Newest there", False), ("Id", False)]
    rows = [[name, local(one.time), one.id[:8]] for name, one in newest.items() if one is not None]
    output.table(columns, rows)
    output.line(f"Copied: {sized(report.bytes)} in {lasted(report.duration)}.")


@pharmabackup.command()
@click.argument("to", metavar="URL")
@OTHER
@click.pass_obj
def compare(settings: Settings, to: str, to_credential: str | None) -> None:
    """What one of two replicas holds and the other lacks."""
    who = settings.who()
    url = settings.url()
    with (
        settings.open_at(url, who) as here,
        _other(settings, to, to_credential, who) as there,
    ):
        found = here.compare(there)
    output = settings.output
    if not output.people:
        output.result(found.to_dict())
        return
    rows = [["here", one.id[:8], local(one.time), one.dataset] for one in found.only_here]
    rows += [["there", one.id[:8], local(one.time), one.dataset] for one in found.only_there]
    if rows:
        output.table([("Only", False), ("Id", False), ("Time", False), ("Dataset", False)], rows)
    if output.quiet:
        return
    if not rows:
        output.line("Both hold the same snapshots.")
    else:
        count = counted(len(found.only_here), "snapshot")
        output.line(f"A copy from here to there would bring {count}, {sized(found.bytes_to_copy)}.")


@pharmabackup.command()
@click.pass_obj
def eject(settings: Settings) -> None:
    """Make the disk with the repository safe to unplug."""
    url = settings.url()
    settings.open().close(eject=True)
    output = settings.output
    if not output.people:
        output.result({"url": url, "ejected": True})
    elif not output.quiet:
        output.line(f"{url} can be unplugged now.")
