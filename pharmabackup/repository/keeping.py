"""What a repository keeps and lets go, and what can be mended: proposed first, then applied."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from pharmabackup.events import Progress
from pharmabackup.repository.opened import Opened, to_ns
from pharmabackup.results import Proposal, Report
from pharmabackup.retention import Keep
from pharmabackup.snapshot import Snapshot

if TYPE_CHECKING:
    from pharmabackup.repository import Repository
    from pharmabackup.sources.base import Source


class Keeping(Opened):
    """Forget, prune, repair and hold (docs/retention.md, docs/repair.md)."""

    def propose_forget(
        self, keep: Mapping[str, Keep] | None = None, *, snapshots: Sequence[Snapshot] = (), time_zone: str = "UTC"
    ) -> Proposal:
        """What would be forgotten: by these rules, by the owner's, or what is named. Nothing is changed.

        `keep` says of what as `[device/]dataset[:label]`, each a name or a pattern; the first that fits holds, and
        what none fits is kept. `time_zone`: where days begin. InvalidInput, Damaged, NotPermitted, StorageFailed.
        """
        from pharmabackup.verbs.forget import Wish, propose_forget

        names = tuple(snapshot.id for snapshot in snapshots)
        wish = Wish(None if keep is None else dict(keep), names, time_zone)
        return self._journal.unless_refused(
            "forget", lambda: propose_forget(self._unlocked, wish, blocks=self._fresh_blocks, shower=self._shower)
        )

    def propose_prune(self) -> Proposal:
        """What could be deleted since nothing needs it, and what that frees. NotPermitted, Unsupported, Damaged."""
        from pharmabackup.verbs.prune import propose_prune

        return self._journal.unless_refused("prune", lambda: propose_prune(self._unlocked, shower=self._shower))

    def propose_repair(
        self,
        *,
        replicas: Sequence[Repository] = (),
        sources: Sequence[Source] = (),
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> Proposal:
        """What is damaged, what of it can be mended, and what is lost. All packs are read; nothing is changed.

        `replicas`: the same repository elsewhere. `sources`: what may still have lost data, as it is backed up.
        InvalidInput, NotPermitted, Damaged, StorageFailed, Cancelled.
        """
        from pharmabackup.verbs.repair_proposal import propose_repair

        others = [replica._unlocked for replica in replicas]
        return self._journal.unless_refused(
            "repair",
            lambda: propose_repair(
                self._unlocked, others, sources, shower=self._shower, progress=progress, cancel=cancel
            ),
        )

    def apply(
        self, proposal: Proposal, *, progress: Progress | None = None, cancel: threading.Event | None = None
    ) -> Report:
        """Do exactly what was proposed. Conflict("proposal-stale") when that is no longer true; Incomplete."""
        from pharmabackup.verbs.apply import apply

        return self._journal.run(
            proposal.verb,
            lambda: apply(self._unlocked, proposal, blocks=self._fresh_blocks, progress=progress, cancel=cancel),
            facts={"proposed": len(proposal.snapshots)},
        )

    def recall(self, snapshot: Snapshot, *, reason: str) -> None:
        """Call a snapshot back that somebody said to forget, while it is there. NotFound, NotPermitted."""
        from pharmabackup.verbs.marks import recall

        self._journal.run(
            "recall",
            lambda: recall(self._unlocked, snapshot._committed, reason=reason),
            subject=snapshot.id,
            reason=reason,
        )

    def hold(self, snapshot: Snapshot, *, reason: str, until: datetime | None = None) -> None:
        """Keep a snapshot whatever the rules say, until then or until it is released. NotPermitted, InvalidInput."""
        from pharmabackup.verbs.marks import hold

        def run() -> None:
            end = None if until is None else to_ns(until)
            hold(self._unlocked, snapshot._committed, reason=reason, until=end)

        self._journal.run("hold", run, subject=snapshot.id, reason=reason)

    def release(self, snapshot: Snapshot, *, reason: str) -> None:
        """End the holds of a snapshot. NotFound, NotPermitted."""
        from pharmabackup.verbs.marks import release

        self._journal.run(
            "release",
            lambda: release(self._unlocked, snapshot._committed, reason=reason),
            subject=snapshot.id,
            reason=reason,
        )
