"""Restoring a dataset into a source: a program, a server."""

from __future__ import annotations

from collections.abc import Iterator

from pharmabackup.engine.history import Committed
from pharmabackup.engine.reading import SnapshotReader
from pharmabackup.engine.streaming import stream
from pharmabackup.errors import Conflict, NotFound, SourceFailed, Unsupported
from pharmabackup.events import Finding
from pharmabackup.sources.base import Content, Source
from pharmabackup.verbs.browse import content_entry
from pharmabackup.verbs.reporter import Reporter
from pharmabackup.verbs.restore_outcome import Outcome, snapshot_incomplete


def loaded(reader: SnapshotReader, item: Committed, source: Source, reporter: Reporter, overwrite: bool) -> Outcome:
    """What the source makes of it. Damaged when not all could be read; then it has been told so."""
    reporter.tell("dataset", f"Restoring {item.snapshot.dataset}.")
    outcome = Outcome(item, None)
    try:
        outcome.facts = source.load(_Content(reader, item, reporter, outcome), overwrite=overwrite)
    except (SourceFailed, NotFound, Unsupported, Conflict) as error:
        outcome.whole = False
        reporter.find(
            Finding(
                code="load-failed",
                severity="critical",
                subject=item.snapshot.dataset,
                message=f"{item.snapshot.dataset} was not restored into the {source.kind}: {error.message}",
                remedy=error.remedy,
            )
        )
    if not item.snapshot.complete:
        reporter.find(snapshot_incomplete(item))
    return outcome


class _Content(Content):
    def __init__(self, reader: SnapshotReader, item: Committed, reporter: Reporter, outcome: Outcome) -> None:
        self.facts = item.snapshot.facts
        self._reader = reader
        self._reporter = reporter
        self._outcome = outcome

    def has(self, path: bytes) -> bool:
        return self._reader.find(path) is not None

    def read(self, path: bytes) -> Iterator[bytes | memoryview]:
        entry = content_entry(self._reader, path.decode("utf-8", "surrogateescape"))
        if entry.extents is not None:
            raise Unsupported("A file with holes is not given to a program.", remedy="Restore to a folder.")
        self._reporter.look()
        for piece in stream(self._reader, entry.start, entry.stored):
            yield piece
            self._outcome.bytes += len(piece)
            self._reporter.step(len(piece), 0)
            self._reporter.look()
        self._outcome.files += 1
        self._reporter.step(0, 1)

    def check(self) -> None:
        self._reporter.look()

    def finding(self, code: str, message: str, remedy: str) -> None:
        subject = self._outcome.committed.snapshot.dataset
        self._reporter.find(Finding(code=code, severity="warning", subject=subject, message=message, remedy=remedy))
