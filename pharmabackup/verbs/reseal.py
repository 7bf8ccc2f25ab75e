"""Sealing what is there with the newest keys: first how much that is, then that, while backups go on."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from pharmabackup.clock import from_ns
from pharmabackup.engine.collection import condemn, finish, storage_now
from pharmabackup.engine.garbage import Garbage, look_for_garbage
from pharmabackup.engine.historyreader import sound_history
from pharmabackup.engine.index import Index
from pharmabackup.engine.moving import move
from pharmabackup.engine.reading import BlockReader
from pharmabackup.engine.resealing import Resealing, packs_with_old_keys
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Conflict, Damaged, Incomplete, NotFound
from pharmabackup.events import Finding, Progress
from pharmabackup.results import Proposal, Report, sized
from pharmabackup.verbs.hurt import lacking
from pharmabackup.verbs.proposals import left_damaged, stale
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
            repository=unlocked.repository.hex(),
            created=from_ns(now),
            not_before=from_ns(now),
            snapshots=(),
            bytes_freed=0,
            findings=(*_in_use(unlocked, busy), *_over(unlocked, garbage)),
            steps=steps,
            wish=Wish(frozenset(packs)),
        )
    finally:
        garbage.index.close()


def apply_reseal(
    unlocked: Unlocked, proposal: Proposal, *, progress: Progress | None, cancel: threading.Event | None
) -> Report:
    """Conflict when nothing of it is to be done any more, or other collectors keep being faster; Incomplete when a
    pack could not be replaced; NotPermitted, Damaged, StorageFailed, Cancelled.

    Stopped, what was sealed anew stays so, and the next one goes on.
    """
    _permit(unlocked)
    assert isinstance(proposal.wish, Wish)
    work = _Resealing(unlocked, proposal.wish.packs, Reporter("reseal", progress, cancel))
    attempts = ATTEMPTS
    while work.left:
        work.reporter.check_cancelled()
        try:
            done = work.batch()
        except NotFound:  # a collection has deleted what was being read
            done = False
        attempts = ATTEMPTS if done else attempts - 1
        if not attempts:
            raise Conflict(
                "Other collections kept being faster.",
                kind="already-running",
                remedy="Run it again when they have ended.",
            )
        if not done:
            work.reporter.tell("retrying", "Another collection was faster; this one goes on from what is there.")
    return work.report()


class _Resealing:
    """`left`: packs of the proposal that are not seen to yet."""

    def __init__(self, unlocked: Unlocked, packs: Iterable[bytes], reporter: Reporter) -> None:
        self.reporter = reporter
        self.left = set(packs)
        self._unlocked = unlocked
        self._begun = False  # whether a pack of the proposal was there to be replaced
        self._busy: set[bytes] = set()
        self._damaged: dict[bytes, Damaged] = {}

    def batch(self) -> bool:
        """One collection. False: another was faster, or a thief spoilt it. Conflict, NotFound."""
        unlocked, reporter = self._unlocked, self.reporter
        now = storage_now(unlocked)
        finish(unlocked, now, reporter.look)
        garbage = _look(unlocked, now, reporter)
        try:
            if garbage.unfinished:
                return False
            old, busy = packs_with_old_keys(unlocked, garbage)
            chosen = _some(garbage, sorted(self.left & set(old)))
            if not chosen:  # nothing living is in the others any more
                self._busy = self.left & busy
                if not (self._begun or self._busy):
                    raise stale("What was proposed is no longer true: nothing of it is to be sealed anew.")
                self.left.clear()
                return True
            self._begun = True
            garbage.sparse = {pack: old[pack] for pack in chosen}
            moved = move(unlocked, garbage, chosen, reporter.look, anew=Resealing(unlocked))
            reporter.check_cancelled()
            if moved.emptied and not condemn(unlocked, garbage, moved.emptied):
                return False
        finally:
            garbage.index.close()
        self._damaged |= moved.damaged
        if finish(unlocked, now, reporter.look, proved=moved.proved) is None:
            return False
        reporter.bytes += moved.bytes
        self.left.difference_update(chosen)
        return True

    def report(self) -> Report:
        """Incomplete when packs are left that older keys open."""
        location = self._unlocked.storage.location
        for finding in (*left_damaged(self._damaged, location), *_in_use(self._unlocked, self._busy)):
            self.reporter.find(finding)
        report = self.reporter.report({})
        if not (self._damaged or self._busy):
            return report
        raise Incomplete(
            "Not all was sealed with the newest keys. Packs that were left: "
            f"{len(self._damaged)} damaged, {len(self._busy)} in use. All others were.",
            kind="reseal",
            remedy="Mend with propose_repair what is damaged, and seal again; a day later what somebody uses.",
            findings=report.findings,
            result=report,
        )


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


def _over(unlocked: Unlocked, garbage: Garbage) -> tuple[Finding, ...]:
    return tuple(
        Finding(
            code="forgotten-lost",
            severity="info",
            subject=who.hex(),
            message="A snapshot that is forgotten, and whose time is over, lacks something. It goes for good.",
            remedy="Nothing to do: a prune would have deleted it.",
            location=unlocked.storage.location,
        )
        for who in sorted(garbage.gone - garbage.history.deleted)
    )


def _look(unlocked: Unlocked, now: int, reporter: Reporter) -> Garbage:
    """Nothing goes for good but snapshots that are forgotten and cannot be restored any more."""
    lost = frozenset[bytes]()
    for left in reversed(range(ATTEMPTS)):
        try:
            return look_for_garbage(unlocked, now, reporter.look, may_go=lost)
        except Damaged:
            before, lost = lost, _lost(unlocked, now)
            if not left or lost <= before:
                raise
        except NotFound:  # a collection has deleted what was being read
            if not left:
                raise
    raise AssertionError


def _lost(unlocked: Unlocked, now: int) -> frozenset[bytes]:
    """Snapshots whose time is over and that lack something: a repair lets that go, since nobody needs them."""
    history = sound_history(unlocked)
    over = history.gone(now) - history.deleted
    blocks = BlockReader(unlocked, Index(unlocked, chunks=False))
    blocks.refresh(seen=blocks.index)
    try:
        return lacking(blocks, (history.committed[who] for who in over if who in history.committed))
    finally:
        blocks.index.close()


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
