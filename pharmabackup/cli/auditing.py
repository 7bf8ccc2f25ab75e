"""The audit log: audit, audit verify, audit export, audit anchor."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import click

import pharmabackup as pb
from pharmabackup.cli.acting import run_verb
from pharmabackup.cli.app import pharmabackup
from pharmabackup.cli.codes import STATES
from pharmabackup.cli.output import document, jsonable
from pharmabackup.cli.reports import counted, lasted, local
from pharmabackup.cli.settings import Settings, Time, Verbs
from pharmabackup.results import AuditAnchor, AuditRecord
from pharmabackup.wholefile import write_whole

COLUMNS = ("id", "time", "slot", "actor", "event", "outcome", "subject", "reason", "facts")
FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the beginning of a formula (https://owasp.org/www-community/attacks/CSV_Injection)."""
SINCE = click.option("--since", type=Time(), metavar="TIME", help="From that time on.")


@pharmabackup.group(cls=Verbs, invoke_without_command=True)
@SINCE
@click.pass_context
def audit(context: click.Context, since: datetime | None) -> None:
    """Who did what: the audit log, the oldest first."""
    settings: Settings = context.obj
    if context.invoked_subcommand is not None:
        if since is not None:
            raise click.UsageError("Give --since after the name of the command that it is for.")
        return
    settings.begin()
    output = settings.output
    with settings.open() as repository:
        if not output.people:
            output.begin({}, "records")
            for record in repository.audit(since=since):
                output.add(record.to_dict())
            output.end()
            return
        for record in repository.audit(since=since):
            output.line(_line(record))


def _line(record: AuditRecord) -> str:
    who = f"{record.slot}, {record.actor}" if record.actor else record.slot
    what = f"{record.event} {record.subject}".strip()
    line = f"{local(record.time)}  {record.id:<14}  {who:<20}  {what}: {record.outcome}"
    return f"{line}  ({record.reason})" if record.reason else line


@audit.command()
@click.option("--anchor", "anchors", metavar="FILE", multiple=True, help="What `audit anchor` wrote once.")
@click.option("--replica", "replicas", metavar="URL", multiple=True, help="The same repository in another place.")
@click.pass_obj
def verify(settings: Settings, anchors: tuple[str, ...], replicas: tuple[str, ...]) -> int:
    """Judge whether the log is whole: nothing deleted, edited, moved, cut off or forked."""
    settings.judging = True
    given = [_anchor(path) for path in anchors]
    with ExitStack() as stack:
        who = settings.who()
        repository = stack.enter_context(settings.open_at(settings.url(), who))
        others = [stack.enter_context(settings.open_at(url, who)) for url in replicas]
        report = run_verb(
            settings,
            lambda progress, cancel: repository.audit_verify(
                anchors=given, replicas=others, progress=progress, cancel=cancel
            ),
        )
    output = settings.output
    if not output.people:
        output.result(report.to_dict())
        return STATES[report.state]
    output.findings(report.findings)
    if not output.quiet:
        verdict = "the log is whole" if report.state == "ok" else counted(len(report.findings), "finding")
        output.line(f"{report.state.upper()}: {verdict} ({lasted(report.duration)}).")
    return STATES[report.state]


def _anchor(path: str) -> AuditAnchor:
    """NotFound, InvalidInput."""
    try:
        return AuditAnchor.from_dict(json.loads(Path(path).read_text("utf-8")))
    except OSError as error:
        raise pb.NotFound(f"{path} cannot be read: {error.strerror}.", remedy="Give the anchor's file.") from None
    except ValueError as error:
        if isinstance(error, pb.InvalidInput):
            raise
        raise pb.InvalidInput(
            f"{path} is no anchor of an audit log.", kind="anchor", remedy="Give what audit anchor wrote."
        ) from None


@audit.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@click.pass_obj
def anchor(settings: Settings, file: str | None) -> None:
    """Write the last record's number and hash of each slot, to be kept elsewhere: to FILE, or for an e-mail.

    FILE is a new one: an older anchor says what a newer one cannot.
    """
    if file is not None and os.path.lexists(file):
        raise pb.Conflict(f"{file} exists.", kind="exists", remedy="Give another file, and keep the older anchor.")
    with settings.open() as repository:
        found = repository.audit_anchor()
    text = json.dumps(jsonable(found.to_dict()), indent=1)
    output = settings.output
    if file is None and not output.people:
        output.result(found.to_dict())
        return
    if file is None:
        output.write(text + "\n")
        return
    write_whole(file, [text + "\n"])
    if not output.people:
        output.result({"file": file, "heads": len(found.heads)})
    elif not output.quiet:
        output.line(f"Anchored: {counted(len(found.heads), 'chain')}. Keep {file} where this storage does not reach.")


@audit.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@SINCE
@click.option("--csv", "as_csv", is_flag=True, help="CSV instead of one JSON object a line.")
@click.pass_obj
def export(settings: Settings, file: str | None, since: datetime | None, as_csv: bool) -> None:
    """Write the log as JSON Lines, or as CSV, to FILE or to stdout."""
    output = settings.output
    if file is None and not output.people:
        raise click.UsageError("What is exported goes to stdout, as it is: leave out --json, or give a FILE.")
    with settings.open() as repository:
        records = repository.audit(since=since)
        lines = _csv(records) if as_csv else (document(record.to_dict()) + "\n" for record in records)
        if file is None:
            for line in lines:
                output.raw(line.encode("utf-8", "replace"))
            return
        count = write_whole(file, lines) - as_csv
    if not output.people:
        output.result({"file": file, "records": count})
    elif not output.quiet:
        output.line(f"Exported: {counted(count, 'record')}.")


def _csv(records: Iterable[AuditRecord]) -> Iterator[str]:
    yield _row(dict(zip(COLUMNS, COLUMNS, strict=True)))
    for record in records:
        facts = record.to_dict()
        yield _row(facts | {"facts": document(facts["facts"])})


def _row(facts: Mapping[str, object]) -> str:
    cells = ["" if facts[column] is None else str(facts[column]) for column in COLUMNS]
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow([f"'{c}" if c.startswith(FORMULAS) else c for c in cells])
    return line.getvalue()
