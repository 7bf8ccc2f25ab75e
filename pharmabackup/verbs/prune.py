"""Pruning: first which packs would go and what that frees, then exactly these, while backups go on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pharmabackup import ids
from pharmabackup.clock import from_ns, now_ns
from pharmabackup.engine.collection import condemn, finish, move, require_exclusive, storage_now
from pharmabackup.engine.garbage import Garbage, look_for_garbage
from pharmabackup.engine.history import Committed, History
from pharmabackup.engine.unlocked import COLLECTORS, Unlocked
from pharmabackup.errors import Conflict, NotFound
from pharmabackup.events import Finding, Progress
from pharmabackup.results import Proposal, Report
from pharmabackup.verbs.reporter import Reporter

if TYPE_CHECKING:
    from pharmabackup.snapshot import Snapshot

ATTEMPTS = 3  # when another collector is faster


@dataclass(frozen=True, slots=True)
class Packs:
    """What a proposal was made from: the packs that would go, and the blocks of which would move."""

    dead: frozenset[bytes]
    sparse: frozenset[bytes]


def propose_prune(unlocked: Unlocked, *, shower: Callable[[History], Callable[[Committed], Snapshot]]) -> Proposal:
    """Nothing is changed. NotPermitted, Unsupported, Damaged, StorageFailed."""
    _permit(unlocked)
    now = now_ns()
    garbage = look_for_garbage(unlocked, now, lambda: None)
    try:
        show = shower(garbage.history)
        return Proposal(
            verb="prune",
            created=from_ns(now),
            not_before=from_ns(now),
            snapshots=tuple(show(item) for item in garbage.history.newest() if item.transaction in garbage.gone),
            bytes_freed=garbage.freed,
            findings=(),
            wish=Packs(frozenset(garbage.dead), frozenset(garbage.sparse)),
        )
    finally:
        garbage.index.close()


def apply_prune(
    unlocked: Unlocked, proposal: Proposal, *, progress: Progress | None, cancel: threading.Event | None
) -> Report:
    """Conflict when one of the packs is needed now; NotPermitted, Unsupported, Damaged, StorageFailed, Cancelled."""
    _permit(unlocked)
    reporter = Reporter("prune", progress, cancel)
    wish = proposal.wish
    assert isinstance(wish, Packs)
    for _ in range(ATTEMPTS):
        now = storage_now(unlocked)
        try:
            finish(unlocked, now, reporter.look)
            if _collect(unlocked, now, wish, reporter):
                finish(unlocked, now, reporter.look)
                return reporter.report({})
        except NotFound:
            pass  # another collection has deleted what this one was reading, or had written
        reporter.tell("retrying", "Another collection was faster; this one begins anew.")
    raise Conflict(
        "Other collections kept being faster.", kind="already-running", remedy="Run it again when they have ended."
    )


def _collect(unlocked: Unlocked, now: int, wish: Packs, reporter: Reporter) -> bool:
    """Steps 1 to 3. False: another collector was faster. Conflict, NotFound."""
    garbage = look_for_garbage(unlocked, now, reporter.look)
    try:
        return _let_go(unlocked, garbage, wish, reporter)
    finally:
        garbage.index.close()


def _let_go(unlocked: Unlocked, garbage: Garbage, wish: Packs, reporter: Reporter) -> bool:
    dead = wish.dead & set(garbage.sizes)  # what another collection has deleted is done
    if not dead <= garbage.dead:
        raise Conflict(
            "What was proposed is no longer true: something is needed that would go.",
            kind="proposal-stale",
            remedy="Look at a new proposal, and apply that.",
        )
    moving = wish.sparse & set(garbage.sparse)  # if nothing is dead there any more, it is only not worth the while
    moved = move(unlocked, garbage, moving, reporter.look)
    for pack, error in sorted(moved.damaged.items()):
        reporter.find(
            Finding(
                code="pack-damaged",
                severity="critical",
                subject=ids.pack_name(pack),
                message=f"{error.message} It was left where it is.",
                remedy="Run check to see what is affected, and restore from another location.",
                location=unlocked.storage.location,
            )
        )
    going = dead | (wish.sparse & garbage.dead) | moved.emptied
    if not going:
        return True
    reporter.check_cancelled()
    if not condemn(unlocked, garbage, going):
        return False
    reporter.bytes += sum(garbage.sizes[pack] for pack in going) - moved.bytes
    return True


def _permit(unlocked: Unlocked) -> None:
    if unlocked.keyring.role not in COLLECTORS:
        raise unlocked.not_permitted("prune")
    require_exclusive(unlocked)
