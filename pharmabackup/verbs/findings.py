"""Findings that several verbs make."""

from __future__ import annotations

from pharmabackup.engine.history import History
from pharmabackup.engine.target_layout import Layout
from pharmabackup.events import Finding
from pharmabackup.format.manifest import Entry

RANGES_TOLD = 20  # of one file
Ranges = list[tuple[int, int]]  # begin and end


def history_findings(history: History, location: str) -> list[Finding]:
    """What is wrong with a repository's history: it goes on, and says so."""
    found = [
        Finding(
            code="snapshot-damaged",
            severity="critical",
            subject=name,
            message=error.message,
            remedy="Run check. Restore that snapshot from another location.",
            location=location,
        )
        for name, error in sorted((history.damaged | history.void).items())
    ]
    if history.vanished:
        found.append(
            Finding(
                code="history-forked",
                severity="critical",
                subject=history.vanished[0],
                message=f"{len(history.vanished)} snapshots or marks that this machine has seen are gone.",
                remedy="Somebody deleted them or turned the storage back: find out who, and why.",
                location=location,
            )
        )
    return found


def in_file(entry: Entry, stored: Ranges) -> Ranges:
    """Stretches of a file's stored content as stretches of the file, in order: in a sparse one they lie elsewhere."""
    layout, found = Layout(entry.extents), Ranges()
    for begin, end in sorted(stored):
        for place, first, last in layout.spans(begin, end - begin):
            if found and found[-1][1] == place:
                found[-1] = found[-1][0], place + last - first
            else:
                found.append((place, place + last - first))
    return found


def told_ranges(ranges: Ranges) -> str:
    """Where in a file, in words: bytes 0-4,095 and 8,192-12,287."""
    told = [f"{begin:,}-{end - 1:,}" for begin, end in ranges[:RANGES_TOLD]]
    if len(ranges) > RANGES_TOLD:
        told.append(f"{len(ranges) - RANGES_TOLD:,} more places")
    return "bytes " + (" and ".join([", ".join(told[:-1]), told[-1]]) if len(told) > 1 else told[0])
