"""Findings that several verbs make."""

from __future__ import annotations

from pharmabackup.clock import from_ns, iso
from pharmabackup.engine.history import History
from pharmabackup.events import Finding
from pharmabackup.retention import AHEAD_NS


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


def clock_findings(history: History, now: int, location: str) -> list[Finding]:
    """Snapshots whose time lies in the future. `now`: by the storage's clock, or else this machine's."""
    ahead = [item for item in history.newest() if item.snapshot.time > now + AHEAD_NS]
    if not ahead:
        return []
    return [
        Finding(
            code="time-ahead",
            severity="warning",
            subject=ahead[-1].transaction.hex(),
            message=f"{len(ahead)} snapshots have a time that lies in the future, up to "
            f"{iso(from_ns(ahead[0].snapshot.time))}: a clock was wrong, or is.",
            remedy="Set the clocks of the storage and of this machine right. Until then these and later snapshots "
            "share one time, and rules let none of them go.",
            location=location,
        )
    ]
