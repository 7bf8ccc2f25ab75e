"""Reports for people: what a verb did, dataset by dataset."""

from __future__ import annotations

from datetime import datetime, timedelta

from pharmabackup.cli.output import Output
from pharmabackup.results import DatasetResult, Report, sized

DONE = {
    "backup": "Backed up",
    "restore": "Restored",
    "dry run": "Would come back",
    "check": "Checked",
    "prune": "Freed",
    "reseal": "Sealed anew",
}


def show_report(output: Output, report: Report) -> None:
    """A table of datasets, then one line."""
    if report.datasets:
        backup = report.verb == "backup"
        columns = [("Dataset", False), ("Tier", True), ("Files", True), ("Size", True)]
        columns += [("Added", True), ("Snapshot", False)] if backup else [("Ready after", True), ("Where", False)]
        columns.append(("", False))
        output.table(columns, [_row(result, backup) for result in report.datasets.values()])
    added = sum(result.added for result in report.datasets.values())
    more = f", {sized(added)} added" if report.verb == "backup" else ""
    files = "" if report.verb in ("prune", "reseal") else f"{counted(report.files, 'file')}, "
    recorded = f" Recorded as audit {report.audit_id}." if report.audit_id else ""
    output.line(
        f"{DONE.get(report.verb, report.verb)}: {files}{sized(report.bytes)}{more}, in {lasted(report.duration)}."
        f"{recorded}"
    )


def _row(result: DatasetResult, backup: bool) -> list[str]:
    row = [result.name, str(result.tier), f"{result.files:,}", sized(result.bytes)]
    if backup:
        row += [sized(result.added), result.snapshot.id[:8] if result.snapshot else "none"]
    else:
        row += [lasted(result.usable_after) if result.usable_after else "-", str(result.path or "-")]
    return [*row, "" if result.complete else "NOT COMPLETE"]


def counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def lasted(duration: timedelta) -> str:
    """A duration for a person: 5 min 12 s."""
    seconds = duration.total_seconds()
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def local(moment: datetime) -> str:
    """A time on this machine's clock."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
