"""Before a recovery key is needed: drill recovery-key, check-share, recovery-kit."""

from __future__ import annotations

import click

import pharmabackup as pb
from pharmabackup.cli.acting import run_verb
from pharmabackup.cli.app import pharmabackup
from pharmabackup.cli.codes import STATES
from pharmabackup.cli.credentials import one_share, shares
from pharmabackup.cli.reports import counted, lasted, local
from pharmabackup.cli.settings import Settings, Verb, without_secret
from pharmabackup.results import RecoveryDrill, sized


@pharmabackup.group()
def drill() -> None:
    """Prove that what is needed on the worst day works."""


@drill.command("recovery-key", cls=Verb)
@click.pass_obj
def recovery_key(settings: Settings) -> int:
    """Judge whether shares of the recovery key bring everything back. Nothing is restored.

    With --credential shares they open the repository themselves: no other key is needed. With another credential they
    are asked for after it, and a drill that fails is in the audit log of that one.
    """
    settings.judging = True
    url, who = settings.url(), settings.who()
    given = who if isinstance(who, pb.Shares) else shares()
    with settings.open_at(url, who) as repository:
        try:
            result = run_verb(
                settings,
                lambda progress, cancel: repository.drill_recovery_key(given, progress=progress, cancel=cancel),
            )
        except pb.Incomplete as error:
            assert isinstance(error.result, RecoveryDrill)
            result = error.result
    output = settings.output
    if not output.people:
        output.result(result.to_dict())
        return STATES[result.state]
    output.findings(result.findings)
    if not output.quiet:
        numbers = ", ".join(map(str, result.shares))
        verdict = "everything was proved" if result.state == "ok" else counted(len(result.findings), "finding")
        output.line(
            f"{result.state.upper()}: {verdict}; shares {numbers} of the recovery key {result.fingerprint}, any "
            f"{result.threshold} of which open; {counted(len(result.datasets), 'dataset')}, {sized(result.bytes)} "
            f"opened ({lasted(result.duration)})."
        )
    return STATES[result.state]


@pharmabackup.command("check-share")
@click.pass_obj
def check_share(settings: Settings) -> int:
    """Judge whether one share is undamaged and of the newest recovery key. No other is needed, nor a passphrase."""
    settings.judging = True
    url, options = without_secret(settings.url()), settings.storage_options()
    found = pb.Repository.check_share(url, one_share(), storage_options=options)
    output = settings.output
    if not output.people:
        output.result(found.to_dict())
        return STATES[found.state]
    if not output.quiet or not found.current:
        output.line(f"{found.state.upper()}: {found}")
        output.line(
            f"Compare with the recovery kit: recovery key {found.fingerprint}, repository {found.repository}."
        )
    return STATES[found.state]


@pharmabackup.command("recovery-kit")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option(
    "--holder", "holders", metavar="NAME", multiple=True, required=True, help="Who has share 1, 2 and so on."
)
@click.option("--threshold", type=int, default=2, metavar="K", help="So many shares open, as the key was split; 2.")
@click.option("--replica", "replicas", metavar="URL", multiple=True, help="The same repository in another place.")
@click.option("--name", default="", metavar="TEXT", help="Whose it is.")
@click.option("--contact", default="", metavar="TEXT", help="Whom to ring.")
@click.pass_obj
def recovery_kit(
    settings: Settings,
    file: str,
    holders: tuple[str, ...],
    threshold: int,
    replicas: tuple[str, ...],
    name: str,
    contact: str,
) -> None:
    """Write one page to be printed: what is backed up, where, who has shares, how to restore. No secret is on it."""
    from pharmabackup.report import Place, recovery_kit  # it needs an extra, which other commands do without

    options = list(settings.storage_options() or ())
    places = [Place(url=url, options=options) for url in (settings.url(), *map(without_secret, replicas))]
    with settings.open() as repository:
        recovery_kit(
            file, repository, holders=holders, threshold=threshold, places=places, name=name, contact=contact
        )
        (slot,) = (slot for slot in repository.slots() if slot.kind == "shares" and slot.revoked is None)
    output = settings.output
    if not output.people:
        output.result({"file": file, "fingerprint": slot.fingerprint})
    elif not output.quiet:
        output.line(f"Written: {file}, for the recovery key {slot.fingerprint} of {local(slot.created)}. Print it.")
