"""Pruning: first which packs would go and what that frees, then exactly these, while backups go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pharmabackup import ids
from pharmabackup.clock import from_ns, iso
from pharmabackup.engine.collection import condemn, finish, storage_now
from pharmabackup.engine.garbage import Garbage, look_for_garbage
from pharmabackup.engine.grants import COLLECTORS
from pharmabackup.engine.history import Committed, History
from pharmabackup.engine.leftovers import Sizes, clear_hidden, delete_again, hidden_leftovers, listed_leftovers
from pharmabackup.engine.moving import Moved, move
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Conflict, Damaged, Incomplete, NotFound, StorageFailed
from pharmabackup.events import Finding, Progress
from pharmabackup.results import Proposal, Report, sized
from pharmabackup.verbs.hurt import last_good
from pharmabackup.verbs.proposals import left_damaged, stale
from pharmabackup.verbs.reporter import Reporter

if TYPE_CHECKING:
    from pharmabackup.snapshot import Snapshot

ATTEMPTS = 3  # when another collector is faster


@dataclass(frozen=True, slots=True)
class Wish:
    """What a proposal showed: snapshots that go for good, packs that go, and packs the blocks of which would move."""

    gone: frozenset[bytes]
    dead: frozenset[bytes]
    sparse: frozenset[bytes]


def propose_prune(unlocked: Unlocked, *, shower: Callable[[History], Callable[[Committed], Snapshot]]) -> Proposal:
    """Nothing is changed. NotPermitted, Unsupported, Damaged, StorageFailed."""
    _permit(unlocked)
    now = storage_now(unlocked)
    for left in reversed(range(ATTEMPTS)):
        try:
            garbage = look_for_garbage(unlocked, now, lambda: None)
            spared = last_good(unlocked, garbage.history, garbage.gone)
            if spared:
                garbage.index.close()
                rest = garbage.gone - {item.transaction for item in spared}
                garbage = look_for_garbage(unlocked, now, lambda: None, may_go=frozenset(rest))
            break
        except NotFound:  # a collection has deleted what was being read
            if not left:
                raise
    try:
        show, new = shower(garbage.history), garbage.gone - garbage.history.deleted
        return Proposal(
            verb="prune",
            repository=unlocked.repository.hex(),
            created=from_ns(now),
            not_before=from_ns(now),
            snapshots=tuple(show(item) for item in garbage.history.newest() if item.transaction in new),
            bytes_freed=garbage.freed,
            findings=(
                *_told(garbage, unlocked.storage.location),
                *_spared(spared, unlocked.storage.location),
                *_pending(unlocked, lambda: listed_leftovers(garbage) | hidden_leftovers(unlocked)),
            ),
            wish=Wish(frozenset(new), frozenset(garbage.dead), frozenset(garbage.sparse)),
        )
    finally:
        garbage.index.close()


def apply_prune(
    unlocked: Unlocked, proposal: Proposal, *, progress: Progress | None, cancel: threading.Event | None
) -> Report:
    """Conflict when something of it is needed now; Incomplete when a damaged pack was left.

    NotPermitted, Unsupported, Damaged, StorageFailed, Cancelled.
    """
    _permit(unlocked)
    assert isinstance(proposal.wish, Wish)
    pruning = _Pruning(unlocked, proposal.wish, Reporter("prune", progress, cancel))
    for left in reversed(range(ATTEMPTS)):
        try:
            if pruning.attempt():
                return pruning.report()
        except NotFound:  # another collection has deleted what this one was reading, or had written
            if not left:
                raise
        pruning.reporter.tell("retrying", "Another collection was faster; this one begins anew.")
    raise Conflict(
        "Other collections kept being faster.", kind="already-running", remedy="Run it again when they have ended."
    )


class _Pruning:
    def __init__(self, unlocked: Unlocked, wish: Wish, reporter: Reporter) -> None:
        self.reporter = reporter
        self._unlocked = unlocked
        self._wish = wish
        self._damaged: dict[bytes, Damaged] = {}
        self._refused: Sizes = {}

    def report(self) -> Report:
        """Incomplete when something that is damaged was left."""
        for finding in left_damaged(self._damaged, self._unlocked.storage.location):
            self.reporter.find(finding)
        report = self.reporter.report({})
        if not self._damaged:
            return report
        raise Incomplete(
            f"Not all was pruned. Packs that are damaged and were left: {len(self._damaged)}. All else was done.",
            kind="prune",
            remedy="Run check to see what is affected, mend it with propose_repair, and prune again.",
            findings=report.findings,
            result=report,
        )

    def attempt(self) -> bool:
        """One collection, from look to end. False: another was faster, or a thief spoilt it. Conflict, NotFound."""
        unlocked, look = self._unlocked, self.reporter.look
        now = storage_now(unlocked)
        finish(unlocked, now, look)
        roster = unlocked.roster_hash
        garbage = look_for_garbage(unlocked, now, look, may_go=self._wish.gone)
        try:
            if garbage.unfinished:
                return False
            moved = self._let_go(garbage)
        finally:
            garbage.index.close()
        if moved is None:
            return False
        refused = set[bytes]()
        deleted = finish(unlocked, now, look, proved=moved.proved, refused=refused)
        if deleted is None:
            return False
        self.reporter.bytes += max(0, sum(garbage.sizes.get(pack, 0) for pack in deleted) - moved.bytes)
        self._refused |= {ids.pack_name(pack): garbage.sizes[pack] for pack in refused & garbage.sizes.keys()}
        unlocked.renewed()
        find = clear_hidden if unlocked.roster_hash == roster else hidden_leftovers
        for finding in _pending(unlocked, lambda: self._refused | find(unlocked)):
            self.reporter.find(finding)
        return True

    def _let_go(self, garbage: Garbage) -> Moved | None:
        """Steps 2 and 3: what was moved; None when another collection was faster. Conflict."""
        unlocked, wish = self._unlocked, self._wish
        dead = wish.dead & set(garbage.sizes)  # what another collection has deleted is done
        if not (dead <= garbage.dead | garbage.left and wish.gone <= garbage.gone):
            raise stale("What was proposed is no longer true: something is needed that would go.")
        if last_good(unlocked, garbage.history, garbage.gone):
            raise stale("What was proposed is no longer true: a check found damaged what was to stay.")
        if garbage.left:
            if unlocked.renewed():  # what is deleted was judged by a list of keys in which a thief's word may count
                return None
            self._refused = delete_again(unlocked, listed_leftovers(garbage), self.reporter.look)
        moving = wish.sparse & set(garbage.sparse)  # what is whole again is only not worth the while
        moved = move(unlocked, garbage, moving, self.reporter.look)
        self._damaged = moved.damaged
        going = (dead & garbage.dead) | (wish.sparse & garbage.dead) | moved.emptied
        self.reporter.check_cancelled()
        return moved if not going or condemn(unlocked, garbage, going) else None


def _told(garbage: Garbage, location: str) -> Iterator[Finding]:
    """What would be done besides deleting."""
    if garbage.unfinished:
        yield Finding(
            code="collection-unfinished",
            severity="info",
            subject="collections",
            message="A prune was interrupted; it is finished first.",
            remedy="Nothing else to do.",
            location=location,
        )
    if garbage.small:
        yield Finding(
            code="packs-joined",
            severity="info",
            subject="packs",
            message=f"{len(garbage.small)} small packs are joined into larger ones.",
            remedy="Nothing to do.",
            location=location,
        )
    for who, size in sorted(garbage.waits.items()):
        yield Finding(
            code="prune-waits",
            severity="info",
            subject=who,
            message=f"{sized(size)} that nothing needs stay for now: {who!r} says that it reads or writes there.",
            remedy="Nothing, if it does: they go when it has ended, or after a day. If this is told day after day, "
            "find out what uses that credential, and revoke it.",
            location=location,
        )


def _pending(unlocked: Unlocked, find: Callable[[], Sizes]) -> Iterator[Finding]:
    """What deleted objects still take there. All else is done: trouble with telling that is told, and no more."""
    try:
        left = find()
        message = f"Objects that were deleted and still take room there: {len(left)}, {sized(sum(left.values()))}."
        remedy = (
            "Nothing to do: a prune lets go of them when the storage does. If they stay for longer than the lock, "
            "give the maintainer's credentials the right to delete versions (s3:DeleteObjectVersion)."
        )
    except StorageFailed as error:
        left, message = {"": 0}, f"It cannot be told what deleted objects still take there. {error.message}"
        remedy = (
            "Give the maintainer's credentials the rights to list and delete versions (s3:ListBucketVersions, "
            "s3:DeleteObjectVersion), or have a rule of the bucket do that."
        )
    if left:
        yield Finding(
            code="deletion-pending",
            severity="info",
            subject="packs",
            message=message,
            remedy=remedy,
            location=unlocked.storage.location,
        )


def _spared(snapshots: Iterable[Committed], location: str) -> Iterator[Finding]:
    for item in snapshots:
        what = f"The snapshot of {item.snapshot.dataset} of {iso(from_ns(item.snapshot.time))}"
        yield Finding(
            code="last-good-stays",
            severity="critical",
            subject=item.transaction.hex(),
            message=f"{what} is forgotten, but all that stay of that dataset and device are damaged. It was left.",
            remedy="Call it back with recall, and mend the others with propose_repair.",
            location=location,
        )


def _permit(unlocked: Unlocked) -> None:
    if unlocked.keyring.role not in COLLECTORS:
        raise unlocked.not_permitted("prune", who=COLLECTORS)
