"""Sealing what is there with the newest keys: first how much that is, then that, while backups go on."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from pharmabackup import ids
from pharmabackup.clock import from_ns
from pharmabackup.engine.collection import condemn, finish, move, require_exclusive, storage_now
from pharmabackup.engine.garbage import Garbage, look_for_garbage
from pharmabackup.engine.resealing import Resealing, packs_with_old_keys
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Conflict, NotFound
from pharmabackup.events import Finding, Progress
from pharmabackup.results import Proposal, Report, sized
from pharmabackup.verbs.reporter import Reporter

ATTEMPTS = 3  # when another collector is faster
BATCH_BYTES = 1 << 30  # of packs that are replaced at a time: so much is there twice meanwhile


@dataclass(frozen=True, slots=True)
class Wish:
    """The packs that a proposal showed."""

    packs: frozenset[bytes]


def propose_reseal(unlocked: Unlocked) -> Proposal:
    """Nothing is changed. NotPermitted, Unsupported, Damaged, StorageFailed."""
    _permit(unlocked)
    unlocked.renew()
    now = storage_now(unlocked)
    garbage = _look(unlocked, now, Reporter("reseal", None, None))
    try:
        packs, busy = packs_with_old_keys(unlocked, garbage)
        size = sum(garbage.sizes[pack] for pack in packs)
        steps = (f"{len(packs):,} packs, {sized(size)}, are read and sealed with the newest keys.",) if packs else ()
        return Proposal(
            verb="reseal",
            created=from_ns(now),
            not_before=from_ns(now),
            snapshots=(),
            bytes_freed=0,
            findings=_in_use(unlocked, busy),
            steps=steps,
            wish=Wish(frozenset(packs)),
        )
    finally:
        garbage.index.close()


def apply_reseal(
    unlocked: Unlocked, proposal: Proposal, *, progress: Progress | None, cancel: threading.Event | None
) -> Report:
    """Conflict when other collectors keep being faster; NotPermitted, Damaged, StorageFailed, Cancelled.

    Stopped, what was sealed anew stays so, and the next one goes on.
    """
    _permit(unlocked)
    assert isinstance(proposal.wish, Wish)
    reporter = Reporter("reseal", progress, cancel)
    left, attempts = set(proposal.wish.packs), ATTEMPTS
    while left:
        reporter.check_cancelled()
        try:
            done = _batch(unlocked, left, reporter)
        except NotFound:  # a collection has deleted what was being read
            done = None
        if done is None:
            attempts -= 1
            if not attempts:
                raise Conflict(
                    "Other collections kept being faster.",
                    kind="already-running",
                    remedy="Run it again when they have ended.",
                )
            reporter.tell("retrying", "Another collection was faster; this one goes on from what is there.")
            continue
        left -= done
        attempts = ATTEMPTS
    return reporter.report({})


def _batch(unlocked: Unlocked, wanted: set[bytes], reporter: Reporter) -> set[bytes] | None:
    """One collection: the packs of `wanted` that are seen to; None: another one was faster. NotFound."""
    now = storage_now(unlocked)
    finish(unlocked, now, reporter.look)
    garbage = _look(unlocked, now, reporter)
    try:
        if garbage.unfinished:
            return None
        old, busy = packs_with_old_keys(unlocked, garbage)
        chosen = _some(garbage, sorted(wanted & set(old)))
        if not chosen:
            for finding in _in_use(unlocked, wanted & busy):
                reporter.find(finding)
            return set(wanted)  # nothing living is in the others any more
        garbage.sparse = {pack: old[pack] for pack in chosen}
        moved = move(unlocked, garbage, chosen, reporter.look, anew=Resealing(unlocked))
        for pack, error in sorted(moved.damaged.items()):
            reporter.find(
                Finding(
                    code="pack-damaged",
                    severity="critical",
                    subject=ids.pack_name(pack),
                    message=f"{error.message} It was left where it is.",
                    remedy="Run check, and propose_repair.",
                    location=unlocked.storage.location,
                )
            )
        reporter.check_cancelled()
        if moved.emptied and not condemn(unlocked, garbage, moved.emptied):
            return None
    finally:
        garbage.index.close()
    finish(unlocked, now, reporter.look, proved=moved.proved)
    reporter.bytes += moved.bytes
    return set(chosen)


def _in_use(unlocked: Unlocked, packs: set[bytes]) -> tuple[Finding, ...]:
    if not packs:
        return ()
    return (
        Finding(
            code="packs-in-use",
            severity="warning",
            subject="packs",
            message=f"{len(packs):,} packs with older keys cannot be replaced now: somebody may need them.",
            remedy="Seal again when that has ended; after one that died, a day later.",
            location=unlocked.storage.location,
        ),
    )


def _look(unlocked: Unlocked, now: int, reporter: Reporter) -> Garbage:
    for left in reversed(range(ATTEMPTS)):
        try:
            return look_for_garbage(unlocked, now, reporter.look, may_go=frozenset())
        except NotFound:  # a collection has deleted what was being read
            if not left:
                raise
    raise AssertionError


def _some(garbage: Garbage, packs: Iterable[bytes]) -> list[bytes]:
    found: list[bytes] = []
    size = 0
    for pack in packs:
        if found and size + garbage.sizes[pack] > BATCH_BYTES:
            break
        found.append(pack)
        size += garbage.sizes[pack]
    return found


def _permit(unlocked: Unlocked) -> None:
    if unlocked.keyring.role != "owner":
        raise unlocked.not_permitted("seal with new keys")
    require_exclusive(unlocked)
