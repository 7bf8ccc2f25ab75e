"""What came of the restore of one dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pharmabackup.engine.history import Committed
from pharmabackup.events import Finding
from pharmabackup.results import DatasetResult
from pharmabackup.verbs.reporter import Reporter


@dataclass(slots=True)
class Outcome:
    """`path`: where it lies now, if that is a place on this machine."""

    committed: Committed
    path: Path | None
    whole: bool = True
    bytes: int = 0
    files: int = 0
    facts: Mapping[str, object] | None = None

    def result(self, snapshot: object, reporter: Reporter) -> DatasetResult:
        record = self.committed.snapshot
        return DatasetResult(
            name=record.dataset,
            tier=record.tier,
            snapshot=snapshot,  # type: ignore[arg-type]
            complete=self.whole,
            bytes=self.bytes,
            files=self.files,
            usable_after=reporter.elapsed if self.whole else None,
            path=self.path,
            facts=self.facts or {},
        )


def snapshot_incomplete(item: Committed) -> Finding:
    return Finding(
        code="snapshot-incomplete",
        severity="warning",
        subject=item.snapshot.dataset,
        message=f"Some files of {item.snapshot.dataset} could not be read when it was backed up.",
        remedy="Take them from an earlier snapshot.",
    )
