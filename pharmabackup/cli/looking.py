"""Commands that look inside: snapshots, ls, cat, table."""

from __future__ import annotations

import base64
import codecs
import csv
import io
import re
import sys
from collections.abc import Mapping

import click

import pharmabackup as pb
from pharmabackup.cli.app import pharmabackup
from pharmabackup.cli.output import Output, harmless
from pharmabackup.cli.reports import local
from pharmabackup.cli.settings import Settings, moment
from pharmabackup.results import Entry, sized

PIECE = 3 << 18  # bytes; a multiple of three, so that pieces of base64 join
ID_PREFIX = re.compile(r"[0-9a-fA-F]{2,32}")


@pharmabackup.command()
@click.argument("dataset", required=False)
@click.pass_obj
def snapshots(settings: Settings, dataset: str | None) -> None:
    """List snapshots, newest first."""
    with settings.open() as repository:
        found = repository.snapshots(dataset)
    output = settings.output
    if not output.people:
        output.result({"snapshots": [snapshot.to_dict() for snapshot in found]})
        return
    if not found:
        output.say(
            f"There is no snapshot of {dataset} here." if dataset is not None else "There is no snapshot here yet."
        )
        return
    columns = [("Id", False), ("Time", False), ("Dataset", False), ("Tier", True), ("Files", True)]
    columns += [("Size", True), ("Added", True), ("", False), ("Reason", False)]
    output.table(columns, [_row(snapshot) for snapshot in found])


def _row(snapshot: pb.Snapshot) -> list[str]:
    marks = {
        "not complete": not snapshot.complete,
        "forgotten": snapshot.forgotten,
        f"to be forgotten on {local(snapshot.forget_at)}" if snapshot.forget_at else "": (
            snapshot.forget_at is not None and not snapshot.forgotten
        ),
        "held": snapshot.held is not None,
        "verified": snapshot.verified is not None,
    }
    return [
        snapshot.id[:8],
        local(snapshot.time),
        snapshot.dataset,
        str(snapshot.tier),
        f"{snapshot.files:,}",
        sized(snapshot.size),
        sized(snapshot.added),
        ", ".join(text for text, true in marks.items() if true),
        snapshot.reason or "",
    ]


def chosen(repository: pb.Repository, what: str) -> pb.Snapshot:
    """The snapshot that WHAT names: a dataset's name first, since it may look like any of the others."""
    try:
        return repository.snapshot(what)
    except pb.NotFound:
        dataset, at, time = what.rpartition("@")
        before = moment(time) if at else None
        if before is not None:
            return repository.snapshot(dataset or None, before=before)
        if ID_PREFIX.fullmatch(what):
            return repository.snapshot(id=what)
        raise


@pharmabackup.command()
@click.argument("what")
@click.argument("glob", default="**")
@click.pass_obj
def ls(settings: Settings, what: str, glob: str) -> None:
    """List the files of a snapshot that match GLOB."""
    output = settings.output
    with settings.open() as repository:
        snapshot = chosen(repository, what)
        if not output.people:
            output.begin({"snapshot": snapshot.id}, "entries")
            for entry in snapshot.glob(glob):
                output.add(_facts(entry))
            output.end()
            return
        for entry in snapshot.glob(glob):
            path = entry.path + ("/" if entry.kind == "folder" else "")
            size = f"{entry.size:,}" if entry.kind == "file" else entry.kind
            output.line(f"{size:>15}  {local(entry.modified)}  {path}")


def _facts(entry: Entry) -> Mapping[str, object]:
    """An entry's facts; a name that is not UTF-8 is there a second time, byte for byte."""
    facts = entry.to_dict()
    raw = entry.path.encode("utf-8", "surrogateescape")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        facts["path_base64"] = base64.b64encode(raw).decode("ascii")
    return facts


@pharmabackup.command()
@click.argument("what")
@click.argument("path")
@click.pass_obj
def cat(settings: Settings, what: str, path: str) -> None:
    """Write one file of a snapshot to stdout, as it is."""
    output = settings.output
    with settings.open() as repository:
        snapshot = chosen(repository, what)
        with snapshot.open(path) as source:
            if output.people:
                _copy(output, source)
                return
            facts = {"snapshot": snapshot.id, "path": path, "encoding": "base64"}
            output.begin(facts, "content", opening='"', closing='"')
            while piece := source.read(PIECE):
                output.add_base64(piece)
            output.end()


def _copy(output: Output, source: io.BufferedIOBase | object) -> None:
    """Bytes as they are; at a terminal as text that cannot steer it."""
    assert isinstance(source, io.BufferedIOBase)
    terminal = sys.stdout.isatty()
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    output.flush()
    while piece := source.read(PIECE):
        if terminal:
            lines = decoder.decode(piece).replace("\r\n", "\n").split("\n")
            output.write("\n".join("\t".join(map(harmless, line.split("\t"))) for line in lines))
        else:
            output.raw(piece)


@pharmabackup.command()
@click.argument("what")
@click.argument("table")
@click.pass_obj
def table(settings: Settings, what: str, table: str) -> None:
    """Write a database's table to stdout, as CSV.

    It is in UTF-8; values that are bytes are written as hex.
    """
    output = settings.output
    with settings.open() as repository:
        snapshot = chosen(repository, what)
        rows = snapshot.table(table)
        if not output.people:
            first = next(rows, None)  # what cannot be read is known before the document begins
            output.begin({"snapshot": snapshot.id, "table": table}, "rows")
            if first is not None:
                output.add(first)
                for row in rows:
                    output.add(row)
            output.end()
            return
        terminal = sys.stdout.isatty()
        for number, row in enumerate(rows):
            if number == 0:
                output.raw(_csv(list(row), terminal))
            output.raw(_csv(list(row.values()), terminal))


def _csv(values: list[object], terminal: bool) -> bytes:
    cells = [value.hex() if isinstance(value, bytes) else value for value in values]
    if terminal:
        cells = [harmless(cell) if isinstance(cell, str) else cell for cell in cells]
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue().encode("utf-8", "surrogateescape")
