"""discover: what on this machine is in no backup."""

from __future__ import annotations

import click

from pharmabackup.cli.app import pharmabackup
from pharmabackup.cli.codes import STATES
from pharmabackup.cli.reports import local
from pharmabackup.cli.settings import Settings
from pharmabackup.cli.sources import source_options, sources_of
from pharmabackup.results import sized


@pharmabackup.command()
@click.argument("roots", metavar="[FOLDER …]", nargs=-1)
@source_options
@click.option("--exclude", metavar="GLOB", multiple=True, help="What is left out of all folders.")
@click.option("--ignore", metavar="PLACE", multiple=True, help="What needs no backup; * stands for anything.")
@click.pass_obj
def discover(
    settings: Settings,
    /,
    roots: tuple[str, ...],
    exclude: tuple[str, ...],
    ignore: tuple[str, ...],
    **given: tuple[str, ...],
) -> int:
    """Find databases and documents on this machine, and which of them no source here backs up."""
    from pharmabackup.discovery import discover as search

    settings.judging = True
    sources = sources_of(given, {}, exclude)
    inventory = search(sources, roots=roots, ignore=ignore)
    output = settings.output
    if not output.people:
        output.result(inventory.to_dict())
        return STATES[inventory.state]
    output.findings(inventory.findings)
    if not output.quiet:
        columns = [("Kind", False), ("Place", False), ("Size", True), ("Changed", False), ("Backed up by", False)]
        rows = [
            [
                item.kind,
                item.place,
                "" if item.size is None else sized(item.size),
                "" if item.changed is None else local(item.changed),
                ", ".join(item.covered_by) or ("(ignored)" if item.ignored else "NOBODY"),
            ]
            for item in inventory.items
        ]
        if rows:
            output.table(columns, rows)
        output.line(str(inventory))
    return STATES[inventory.state]
