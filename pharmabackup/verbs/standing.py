"""What was said about a snapshot since it was committed, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass

from pharmabackup.clock import now_ns
from pharmabackup.engine.history import Committed, History
from pharmabackup.events import Finding
from pharmabackup.format.transaction import Snapshot

READERS = ("restorer", "owner")  # those who can read content: others verify bytes alone


@dataclass(frozen=True, slots=True)
class Standing:
    """What was said about a snapshot since it was committed. `verified`: nanoseconds since 1970."""

    held: str | None
    forgotten: bool
    verified: int | None


def standing(history: History, committed: Committed) -> Standing:
    about = [
        item
        for item in history.said
        if any(
            item.mark.transactions[i : i + 16] == committed.transaction
            for i in range(0, len(item.mark.transactions), 16)
        )
    ]
    held: str | None = None
    verified: int | None = None
    released = {said.mark.about for said in history.said if said.mark.kind == "release"}
    now = now_ns()
    for said in about:  # in the order of their times
        mark = said.mark
        if mark.kind == "hold" and said.id not in released and (mark.until is None or mark.until > now):
            held = mark.reason or "held"
        elif mark.kind == "verified" and said.slot.role in READERS:
            verified = mark.time
    return Standing(held, committed.transaction in history.forgotten(), verified)


def counted_findings(snapshot: Snapshot) -> tuple[Finding, ...]:
    """A snapshot's findings by code; the names of the files are in its manifest, for those who may read it."""
    return tuple(
        Finding(
            code=item.code,
            severity=item.severity,
            subject=snapshot.dataset,
            message=f"{item.count:,} times {item.code} in {snapshot.dataset}.",
            remedy="The report of that backup names each path; back up again once it is mended.",
        )
        for item in snapshot.findings
    )
