"""What was proposed is done by the verb that proposed it, in the repository that it is about."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.events import Progress
from pharmabackup.results import Proposal, Report
from pharmabackup.verbs.proposals import stale

if TYPE_CHECKING:
    from pharmabackup.engine.reading import BlockReader


def apply(
    unlocked: Unlocked,
    proposal: Proposal,
    *,
    blocks: Callable[[], BlockReader],
    progress: Progress | None,
    cancel: threading.Event | None,
) -> Report:
    """`blocks`: a fresh one. Conflict, and what that verb raises. Only that one is imported: it takes a while."""
    if proposal.repository != unlocked.repository.hex():
        raise stale("What was proposed is about another repository.")
    if proposal.verb == "prune":
        from pharmabackup.verbs.prune import apply_prune

        return apply_prune(unlocked, proposal, progress=progress, cancel=cancel)
    if proposal.verb == "reseal":
        from pharmabackup.verbs.reseal import apply_reseal

        return apply_reseal(unlocked, proposal, progress=progress, cancel=cancel)
    if proposal.verb == "repair":
        from pharmabackup.verbs.repair import apply_repair

        return apply_repair(unlocked, proposal, progress=progress, cancel=cancel)
    from pharmabackup.verbs.forget import apply_forget

    return apply_forget(unlocked, proposal, blocks=blocks, progress=progress, cancel=cancel)
