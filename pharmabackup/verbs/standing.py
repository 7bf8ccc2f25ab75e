"""What was said about a snapshot since it was committed, and what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pharmabackup.clock import now_ns
from pharmabackup.engine.grants import READERS
from pharmabackup.engine.history import History
from pharmabackup.events import Finding
from pharmabackup.format.transaction import Snapshot


@dataclass(frozen=True, slots=True)
class Standing:
    """What was said about a snapshot since it was committed. Times in nanoseconds since 1970."""

    held: str | None = None
    forget_at: int | None = None  # from then on it may be collected
    forgotten: bool = False
    verified: int | None = None


NOTHING = Standing()


def standings(history: History) -> Mapping[bytes, Standing]:
    """By transaction, of those about which something was said."""
    now = now_ns()
    holds, forgets, gone = history.holds(now), history.forgets(), history.gone(now)
    verified: dict[bytes, int] = {}
    for said in history.said:  # in the order of their times
        if said.mark.kind == "verified" and said.slot.role in READERS:  # others verify bytes alone
            verified.update(dict.fromkeys(said.transactions, said.time))
    return {
        transaction: Standing(
            held=holds[transaction][-1].mark.reason or "held" if transaction in holds else None,
            forget_at=forgets.get(transaction),
            forgotten=transaction in gone,
            verified=verified.get(transaction),
        )
        for transaction in {*holds, *forgets, *verified, *gone}
    }


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
