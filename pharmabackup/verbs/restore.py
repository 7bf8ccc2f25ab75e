"""Restore: the newest of each dataset, or what was chosen, tier by tier, each block fetched and verified once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pharmabackup.engine.grants import READERS
from pharmabackup.engine.history import Committed, History
from pharmabackup.engine.hold import held
from pharmabackup.engine.listing import Listing
from pharmabackup.engine.reading import BlockReader, SnapshotReader
from pharmabackup.engine.target import Target
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged, Incomplete, SourceFailed, StorageFailed
from pharmabackup.events import Finding, Progress
from pharmabackup.results import DatasetResult, Report
from pharmabackup.sources.base import Source
from pharmabackup.sources.sqlite import SQLite
from pharmabackup.verbs.findings import history_findings
from pharmabackup.verbs.reporter import Reporter
from pharmabackup.verbs.restore_choice import Into, Place, Selection, choose, choose_places, other_devices
from pharmabackup.verbs.restore_content import ContentRestorer
from pharmabackup.verbs.restore_dry import rehearsed
from pharmabackup.verbs.restore_into import loaded
from pharmabackup.verbs.restore_marker import Marker, marker_of, read_marker, write_marker
from pharmabackup.verbs.restore_outcome import Outcome, snapshot_incomplete
from pharmabackup.verbs.restore_salvage import Salvager


def restore(
    unlocked: Unlocked,
    blocks: BlockReader,
    history: History,
    listing: Listing | None,
    *,
    begun: Callable[[], object],
    show: Callable[[Committed], object],
    target: Path | None,
    before: int | None,
    only: Sequence[str],
    chosen: Sequence[Committed],
    into: Mapping[str, Source],
    overwrite: bool,
    dry_run: bool,
    progress: Progress | None,
    cancel: threading.Event | None,
) -> Report:
    """Incomplete when not all came back; Conflict, NotFound, Damaged, NotPermitted, InvalidInput.

    `begun` waits until it is recorded that this begins: before that nothing is handed out. `listing`: what there was
    when `blocks` was read.
    """
    if not unlocked.keyring.readers:
        raise unlocked.not_permitted("read", who=READERS)
    selection = Selection(only)
    snapshots = choose(history, before, chosen, selection)
    places = choose_places(snapshots, target, into, selection, overwrite)
    if history.vanished and not chosen:
        finding = history_findings(history, unlocked.storage.location)[-1]
        raise Damaged(
            finding.message,
            kind="history-forked",
            remedy="If you know why, name the snapshots to restore; otherwise restore from another location.",
            findings=(finding,),
        )
    reporter = Reporter("dry run" if dry_run else "restore", progress, cancel)
    for finding in history_findings(history, unlocked.storage.location):
        reporter.find(finding)
    for item in [] if chosen else snapshots:
        others = other_devices(history, item)
        if others:
            reporter.find(
                Finding(
                    code="several-devices",
                    severity="warning",
                    subject=item.snapshot.dataset,
                    message=f"{item.snapshot.dataset} is restored as {item.slot.name} backed it up last; "
                    f"{', '.join(others)} backed up a dataset of that name too.",
                    remedy="To restore another's, name its snapshot.",
                    location=unlocked.storage.location,
                )
            )
    if dry_run:
        begun()
        return rehearsed(blocks, snapshots, places, selection, reporter, show)
    reporter.total = sum(item.snapshot.size for item in snapshots) if selection.everything else None
    results: dict[str, DatasetResult] = {}
    unreadable: Damaged | None = None
    reporter.check_cancelled()
    readers = {item.transaction: SnapshotReader(blocks, item.snapshot) for item in snapshots}
    blocks.fetch_lists(sorted((item.snapshot for item in snapshots), key=lambda snapshot: snapshot.tier))
    begun()
    with held(unlocked, blocks, list(readers.values()), listing):
        for tier in sorted({item.snapshot.tier for item in snapshots}):
            whole = True
            for item in [item for item in snapshots if item.snapshot.tier == tier]:
                reporter.tier, reporter.dataset = tier, item.snapshot.dataset
                place, reader = places[item.snapshot.dataset], readers.pop(item.transaction)
                try:
                    if isinstance(place, Into):
                        outcome = loaded(reader, item, place.source, reporter, overwrite)
                    else:
                        outcome = _dataset(reader, item, place, selection, reporter, overwrite)
                except Damaged as error:  # others may come back all the same
                    unreadable = unreadable or error
                    outcome = Outcome(item, place.folder if isinstance(place, Place) else None, whole=False)
                    reporter.find(_lost_dataset(item, error))
                results[item.snapshot.dataset] = outcome.result(show(item), reporter)
                whole = whole and outcome.whole
                if outcome.whole:
                    reporter.tell("usable", f"{item.snapshot.dataset} is restored{_and_verified(place)}.")
            reporter.tell("tier", f"Tier {tier} is done." if whole else f"Tier {tier} did not come back whole.")
    for name, result in results.items():  # only now: until then the same call goes on where this one stopped
        if result.complete and isinstance(place := places[name], Place):
            marker_of(place.folder).unlink(missing_ok=True)
    report = reporter.report(results)
    if unreadable is not None and len(results) == 1:
        unreadable.findings = report.findings
        raise unreadable
    broken = [name for name, result in results.items() if not result.complete]
    if broken:
        raise Incomplete(
            f"Not everything came back: {', '.join(broken)}.",
            kind="restore",
            remedy="Look at the findings; restore what is missing from an earlier snapshot or another location.",
            findings=report.findings,
            result=report,
        )
    return report


def _and_verified(place: Place | Into) -> str:
    return " and verified" if isinstance(place, Place) else ""  # of a program only its word is known


def _lost_dataset(item: Committed, error: Damaged) -> Finding:
    return Finding(
        code="dataset-lost",
        severity="critical",
        subject=item.snapshot.dataset,
        message=f"{item.snapshot.dataset} did not come back: its list of names or blocks is damaged. {error.message}",
        remedy="Restore an earlier snapshot of it, or restore from another location.",
    )


def _dataset(
    reader: SnapshotReader, item: Committed, place: Place, selection: Selection, reporter: Reporter, overwrite: bool
) -> Outcome:
    """Restore one dataset. What is lost is a finding; what stops everything is raised."""
    reporter.tell("dataset", f"Restoring {item.snapshot.dataset}.")
    outcome = Outcome(item, place.folder)
    found_before = len(reporter.findings)
    before = read_marker(place.folder)
    marker = Marker(item.transaction, before.salvaged if before is not None else {})
    write_marker(place.folder, marker)
    target = Target(place.folder, merge=place.merge, sync=place.database is not None)
    salvager = Salvager(target, reporter, marker.salvaged, place.folder)
    restorer = ContentRestorer(reader, target, reporter, salvager)
    wanted = selection.filter(item.snapshot.dataset)
    try:
        restorer.run(wanted)
        if salvager.made != marker.salvaged:
            with suppress(StorageFailed):  # what was saved is then taken for somebody's the next time
                write_marker(place.folder, Marker(item.transaction, salvager.made))
        target.close()
        outcome.files, outcome.bytes = restorer.files, restorer.bytes
    except BaseException:
        target.abandon()
        raise
    for finding in target.findings:
        reporter.find(finding)
    if not item.snapshot.complete:
        reporter.find(snapshot_incomplete(item))
    outcome.whole = all(finding.severity != "critical" for finding in reporter.findings[found_before:])
    if outcome.whole and item.snapshot.source == SQLite.kind:
        top = [entry.path for entry in next(reader.entries(), []) if wanted is None or wanted.matches(entry.path)]
        names = [target.local(path) for path in top if path]
        _verify(item, place, names, outcome, reporter)
        if outcome.whole and place.database is not None:
            _move_database(place, os.fsdecode(names[0]), overwrite)
            outcome.path = place.database
    return outcome


def _verify(item: Committed, place: Place, names: list[bytes], outcome: Outcome, reporter: Reporter) -> None:
    """Ask the restored database itself whether it is whole: what came back, whatever else lies beside it."""
    try:
        rows = item.snapshot.facts.get("rows")
        count = list(rows) if isinstance(rows, dict) else []
        source = SQLite(place.folder / "database", name=item.snapshot.dataset, count=count)
        outcome.facts = source.verify(place.folder, names)
    except SourceFailed as error:
        outcome.whole = False
        reporter.find(
            Finding(
                code="check-failed",
                severity="critical",
                subject=item.snapshot.dataset,
                message=error.message,
                remedy="Restore an earlier snapshot of it, and keep this one to look at.",
            )
        )


def _move_database(place: Place, name: str, overwrite: bool) -> None:
    """The verified copy takes its place in one step; what a replaced database left beside itself goes first."""
    assert place.database is not None
    if overwrite:
        for tail in ("-wal", "-shm", "-journal"):
            place.database.with_name(place.database.name + tail).unlink(missing_ok=True)
    os.replace(place.folder / name, place.database)
    if not os.listdir(place.folder):  # what an earlier restore saved of it stays
        place.folder.rmdir()
