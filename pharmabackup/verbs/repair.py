"""Repair: first what is damaged, what of it can be mended and what is lost; then exactly that, beside backups.

Nothing is mended in place. Blocks that are still whole, that a replica has, or that can be made anew from their
source go into new packs; damaged packs are let go by a collection, which asks once more whether something needs them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from pharmabackup.engine.collection import condemn, finish, storage_now
from pharmabackup.engine.creating import create
from pharmabackup.engine.elsewhere import keys_elsewhere
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.index import Index
from pharmabackup.engine.moving import publish
from pharmabackup.engine.reading import BlockReader
from pharmabackup.engine.taking import Taken, put_away
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Conflict, NotFound, Unsupported
from pharmabackup.events import Progress
from pharmabackup.results import Proposal, Report
from pharmabackup.verbs.copy_replica import ReplicaCopy
from pharmabackup.verbs.proposals import stale
from pharmabackup.verbs.repair_look import Look
from pharmabackup.verbs.repair_wish import ATTEMPTS, Block, Wish, permit
from pharmabackup.verbs.reporter import Reporter


def apply_repair(
    unlocked: Unlocked, proposal: Proposal, *, progress: Progress | None, cancel: threading.Event | None
) -> Report:
    """Conflict when what was shown cannot be done any more, NotPermitted, Damaged, StorageFailed, Cancelled."""
    permit(unlocked)
    assert isinstance(proposal.wish, Wish)
    if proposal.wish.bereft and proposal.steps:
        raise Conflict(
            "This proposal comes from another process, and has lost the replicas and sources that it was made with.",
            kind="proposal-stale",
            remedy="Propose the repair again with them, and apply that.",
        )
    repairing = _Repairing(unlocked, proposal.wish, Reporter("repair", progress, cancel))
    for left in reversed(range(ATTEMPTS)):
        try:
            if not proposal.steps or repairing.attempt():
                for finding in proposal.findings:
                    if finding not in repairing.reporter.findings:
                        repairing.reporter.find(finding)
                return repairing.reporter.report({})
        except NotFound:  # a collector has deleted what was being read
            if not left:
                raise
        repairing.reporter.tell("retrying", "A collection was faster; this repair begins anew.")
    raise Conflict(
        "Other collections kept being faster.", kind="already-running", remedy="Run it again when they have ended."
    )


class _Repairing:
    def __init__(self, unlocked: Unlocked, wish: Wish, reporter: Reporter) -> None:
        self.reporter = reporter
        self._unlocked = unlocked
        self._wish = wish

    def attempt(self) -> bool:
        """From the look to the end. False: another was faster, or a thief spoilt it. Conflict, NotFound."""
        unlocked, wish = self._unlocked, self._wish
        if wish.objects:
            self._copy_keys()
            if any(name.startswith("roster/") for name in wish.objects):
                return True
        if wish.records:
            self._carry_records()
            return True
        now = self._now()
        if now is not None:
            finish(unlocked, now, self.reporter.look)
        look = Look(unlocked, wish.replicas, self.reporter)
        try:
            if look.garbage.unfinished:
                return False
            look.read(wish.damaged)
            goes_on = self._mend(look)
        finally:
            look.close()
        return goes_on and (now is None or finish(unlocked, now, self.reporter.look) is not None)

    def _now(self) -> int | None:
        """The storage's time; None where nothing can be let go, and nothing is to be. Unsupported, StorageFailed."""
        try:
            return storage_now(self._unlocked)
        except Unsupported:
            if self._wish.going or self._wish.segments:
                raise
            return None

    def _copy_keys(self) -> None:
        """The very bytes: keyrings are sealed, rosters are signed, and neither is ever written anew."""
        wished = {*self._wish.objects}
        for name, data in keys_elsewhere(self._unlocked, self._wish.replicas).objects.items():
            if name in wished:
                create(self._unlocked.storage, name, data)
        if wished - {info.name for folder in ("keys", "roster") for info in self._unlocked.storage.list(folder)}:
            raise _stale("a keyring or list of keys that a replica had is not to be had any more")

    def _carry_records(self) -> None:
        """With what they need, and nothing else. Conflict when one is not to be had any more."""
        chosen, marks = self._wish.snapshots, self._wish.marks
        for replica in self._wish.replicas:
            blocks = BlockReader(replica, Index(replica, chunks=False))
            ReplicaCopy(replica, blocks, self._unlocked, self.reporter, chosen, only_marks=marks, anew=True).run()
        history = load_history(self._unlocked, anew=True)
        if self._wish.records & {*history.damaged, *history.vanished}:
            raise _stale("a record that a replica had is not to be had any more")

    def _mend(self, look: Look) -> bool:
        """New packs and segments, then step 3 of a collection; whether no other collection was faster. Conflict."""
        unlocked, wish, garbage = self._unlocked, self._wish, look.garbage
        going = {pack for pack in wish.going if pack in garbage.sizes}
        if not going <= set(look.found) | garbage.unreadable:
            raise _stale("a pack that was damaged is whole now")
        entries = list(look.entries())
        done = set[Block]()
        wanted = {block for block in wish.blocks if block in look.needed and not look.stays(block)}
        new, size = put_away(unlocked, self._blocks(look, wanted, done))
        publish(unlocked, entries + new)
        self.reporter.bytes += size
        if done != wanted:
            failed = [finding.message for finding in self.reporter.findings if finding.code == "dataset-failed"]
            raise _stale(" ".join([f"{len(wanted - done)} blocks are not to be had any more.", *failed]))
        lost = {block for block in look.needed if not look.stays(block)} - done
        going &= look.condemnable(lost)
        segments = wish.segments & set(garbage.index.changed)
        if not going and not segments:
            return True
        self.reporter.check_cancelled()
        return condemn(unlocked, garbage, going)

    def _blocks(self, look: Look, wanted: set[Block], done: set[Block]) -> Iterator[Taken]:
        """What goes into new packs: whole here or in a replica, or made anew."""
        for block in look.in_order(wanted):
            self.reporter.look()
            found = look.take(block)
            if found is not None:
                done.add(block)
                yield found[0]
        for hunt, domain, sought in look.hunts((wanted - done) & self._wish.made, self._wish.sources):
            for taken in hunt.blocks(sought):
                done.add((domain, taken.id))
                yield taken


def _stale(why: str) -> Conflict:
    return stale(f"What was proposed is no longer true: {why.rstrip('.')}.")
