"""Copy: to a replica by moving sealed packs, without a reading key; to another repository by reading and writing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pharmabackup.engine.history import Committed
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.reading import BlockReader
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Incomplete, InvalidInput
from pharmabackup.events import Finding, Progress
from pharmabackup.results import DatasetResult, Report, sized
from pharmabackup.verbs.copy_across import AcrossCopy
from pharmabackup.verbs.copy_plan import Outcome
from pharmabackup.verbs.copy_replica import ReplicaCopy
from pharmabackup.verbs.locks import lock_findings
from pharmabackup.verbs.reporter import Reporter

if TYPE_CHECKING:
    from pharmabackup.snapshot import Snapshot


def copy(
    source: Unlocked,
    blocks: BlockReader,
    target: Unlocked,
    *,
    chosen: Sequence[Committed] | None,
    shower: Callable[[], Callable[[Committed], Snapshot]],
    progress: Progress | None,
    cancel: threading.Event | None,
) -> Report:
    """Bring to the target what it lacks. Incomplete, Conflict, NotPermitted, StorageFailed, Cancelled."""
    if source.storage.location == target.storage.location:
        raise InvalidInput("A repository is not copied to itself.", remedy="Open another location to copy to.")
    wanted = None if chosen is None else {item.transaction for item in chosen}
    reporter = Reporter("copy", progress, cancel)
    for finding in lock_findings(target, lambda: load_history(target)):  # before anything there relies on it
        reporter.find(finding)
    if source.repository == target.repository:
        outcome = ReplicaCopy(source, blocks, target, reporter, wanted).run()
    else:
        outcome = AcrossCopy(source, blocks, target, reporter, wanted).run()
    return _report(reporter, outcome, shower, target.storage.location)


def _report(
    reporter: Reporter, outcome: Outcome, shower: Callable[[], Callable[[Committed], Snapshot]], location: str
) -> Report:
    results: dict[str, DatasetResult] = {}
    newest = {committed.snapshot.dataset: committed for committed, _ in outcome.done}
    show = shower() if newest else None
    for committed, added in outcome.done:
        record = committed.snapshot
        before = results.get(record.dataset)
        results[record.dataset] = DatasetResult(
            name=record.dataset,
            tier=record.tier,
            snapshot=show(newest[record.dataset]) if show else None,
            complete=True,
            bytes=record.size + (before.bytes if before else 0),
            files=record.files + (before.files if before else 0),
            added=added + (before.added if before else 0),
            facts={},
        )
    for committed, error in outcome.failed:
        record = committed.snapshot
        reporter.find(
            Finding(
                code="snapshot-not-copied",
                severity="critical",
                subject=committed.transaction.hex(),
                message=f"The snapshot {committed.transaction.hex()[:8]} of {record.dataset} was not copied: "
                f"{error.message}",
                remedy=error.remedy,
                location=location,
            )
        )
    report = reporter.report(results)
    if not any(finding.severity == "critical" for finding in report.findings):
        return report
    raise Incomplete(
        f"Not everything was copied, since not all of it can be read here, or it cannot count there. "
        f"Snapshots that were copied: {len(outcome.done)} ({sized(report.bytes)}).",
        kind="copy",
        remedy="Run check and propose_repair here, then copy again.",
        findings=report.findings,
        result=report,
    )
