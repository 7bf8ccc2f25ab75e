"""What a restore would do, and what would be in its way: no content is read, and nothing written but a record."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pharmabackup.engine.history import Committed
from pharmabackup.engine.reading import BlockReader, SnapshotReader
from pharmabackup.errors import Damaged
from pharmabackup.events import Finding
from pharmabackup.results import DatasetResult, Report, sized
from pharmabackup.verbs.reporter import Reporter
from pharmabackup.verbs.restore_choice import Into, Place, Selection
from pharmabackup.verbs.restore_outcome import Outcome, snapshot_incomplete

FILE = 0


def rehearsed(
    blocks: BlockReader,
    snapshots: Sequence[Committed],
    places: Mapping[str, Place | Into],
    selection: Selection,
    reporter: Reporter,
    show: Callable[[Committed], object],
) -> Report:
    """Each dataset with the files and bytes that would come back, and where. `places` were looked at already."""
    results: dict[str, DatasetResult] = {}
    wanted: dict[Path, int] = {}  # bytes, by an existing folder of the disk that they would go to
    for item in sorted(snapshots, key=lambda one: one.snapshot.tier):
        name, place = item.snapshot.dataset, places[item.snapshot.dataset]
        reporter.tier, reporter.dataset = item.snapshot.tier, name
        reporter.check_cancelled()
        folder = place.folder if isinstance(place, Place) else None
        outcome = Outcome(item, (place.database or folder) if isinstance(place, Place) else None)
        try:
            _look(SnapshotReader(blocks, item.snapshot), item, selection, outcome)
        except Damaged as error:
            outcome.whole = False
            reporter.find(_would_fail(item, error))
        if not item.snapshot.complete:
            reporter.find(snapshot_incomplete(item))
        reporter.step(outcome.bytes, outcome.files)
        results[name] = replace(outcome.result(show(item), reporter), usable_after=None)
        if folder is not None:
            disk = next(one for one in (folder, *folder.parents) if one.exists())
            wanted[disk] = wanted.get(disk, 0) + outcome.bytes
    for finding in _room(wanted):
        reporter.find(finding)
    return reporter.report(results)


def _look(reader: SnapshotReader, item: Committed, selection: Selection, outcome: Outcome) -> None:
    """Whether all blocks are there, as far as the index knows, and what would come back. Damaged."""
    table, domain = reader.blocks.index.blocks, item.snapshot.domain
    missing = sum(table.find(block, domain) is None for block in reader.relied())
    filtered = selection.filter(item.snapshot.dataset)
    if filtered is None:
        outcome.files, outcome.bytes = item.snapshot.files, item.snapshot.size
    else:
        for folder in reader.entries():
            files = [entry for entry in folder if entry.kind == FILE and filtered.matches(entry.path)]
            outcome.files += len(files)
            outcome.bytes += sum(entry.size for entry in files)
    if missing:
        raise Damaged(
            f"{missing} of its blocks are in no pack that is here.",
            kind="block",
            remedy="Run check, and repair.",
        )


def _would_fail(item: Committed, error: Damaged) -> Finding:
    return Finding(
        code="would-not-come-back",
        severity="critical",
        subject=item.snapshot.dataset,
        message=f"{item.snapshot.dataset} would not come back whole: {error.message}",
        remedy="Run check, and repair; restore an earlier snapshot of it, or from another location.",
    )


def _room(wanted: Mapping[Path, int]) -> list[Finding]:
    """Disks on which there is less than would go there."""
    found, disks = [], dict[int, tuple[Path, int]]()
    for folder, size in wanted.items():
        with suppress(OSError):
            device = os.stat(folder).st_dev
            first, before = disks.get(device, (folder, 0))
            disks[device] = first, before + size
    for folder, size in disks.values():
        with suppress(OSError):
            free = shutil.disk_usage(folder).free
            if free < size:
                found.append(
                    Finding(
                        code="too-little-room",
                        severity="warning",
                        subject=str(folder),
                        message=f"{sized(size)} would go to the disk of {folder}, which has {sized(free)} free.",
                        remedy="Free some space, or restore elsewhere. What would be replaced there is not counted.",
                    )
                )
    return found
