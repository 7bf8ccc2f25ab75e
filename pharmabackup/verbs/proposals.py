"""What verbs in two steps share: a proposal that is not true any more, and packs that could not be emptied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pharmabackup import ids
from pharmabackup.errors import Conflict, Damaged
from pharmabackup.events import Finding


def stale(what: str) -> Conflict:
    """`what`: a sentence that says why it cannot be applied."""
    return Conflict(what, kind="proposal-stale", remedy="Look at a new proposal, and apply that.")


def left_damaged(damaged: Mapping[bytes, Damaged], location: str) -> Iterator[Finding]:
    """Packs that could not be moved, since a damaged one is not given a new, sound name."""
    for pack, error in sorted(damaged.items()):
        yield Finding(
            code="pack-damaged",
            severity="critical",
            subject=ids.pack_name(pack),
            message=f"{error.message} It was left where it is.",
            remedy="Run check to see what is affected, and mend it with propose_repair.",
            location=location,
        )
