"""The audit log of a repository (docs/audit.md)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from pharmabackup.events import Progress
from pharmabackup.repository.opened import Opened, to_ns
from pharmabackup.results import AuditAnchor, AuditRecord, Report

if TYPE_CHECKING:
    from pharmabackup.repository import Repository


class AuditLog(Opened):
    """What was done here, by whom and why."""

    def audit(self, *, since: datetime | None = None) -> Iterator[AuditRecord]:
        """What everybody did here, by time; each slot's in the order of its chain. Damaged, StorageFailed."""
        from pharmabackup.verbs.audit import records

        return records(self._unlocked, None if since is None else to_ns(since))

    def record(self, event: str, facts: Mapping[str, object]) -> None:
        """Your own entry, such as a trial's. No patient data: everybody who can open this repository can read it.

        `facts`: what JSON has: text, numbers, true, false, none, and lists and mappings of these; a time as text.
        InvalidInput, which names the key of what is none of these; StorageFailed when neither storage nor this
        machine can keep it.
        """
        self._journal.record(event, facts)

    def audit_anchor(self) -> AuditAnchor:
        """The log as it is now, in a few lines to be kept elsewhere. Damaged, StorageFailed."""
        from pharmabackup.verbs.audit import anchor

        return anchor(self._unlocked)

    def audit_verify(
        self,
        *,
        anchors: Sequence[AuditAnchor] = (),
        replicas: Sequence[Repository] = (),
        progress: Progress | None = None,
        cancel: threading.Event | None = None,
    ) -> Report:
        """Whether the log is whole: nothing deleted, edited, moved, cut off or forked. Findings judge.

        `anchors`: what `audit_anchor` once gave of this place. `replicas`: other places, in case one is a copy of
        this one's folder. InvalidInput, StorageFailed, Cancelled.
        """
        from pharmabackup.verbs.audit import verify

        facts: dict[str, object] = {"anchors": len(anchors), "replicas": len(replicas)}
        others = [replica._unlocked for replica in replicas]

        def run() -> Report:
            report, facts["records"] = verify(
                self._unlocked, anchors=anchors, replicas=others, progress=progress, cancel=cancel
            )
            return report

        return self._journal.run("audit-verify", run, facts=facts)
