"""How a running verb tells what it does and hears that it should stop."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta

from pharmabackup.clock import from_ns, now_ns
from pharmabackup.errors import Cancelled
from pharmabackup.events import Event, EventKind, Finding, Progress, worst
from pharmabackup.results import DatasetResult, Report, sized

BETWEEN_PROGRESS_S = 0.1
BETWEEN_LOOKS = 32  # steps between looks at the clock: a step may be one small file


class Reporter:
    """Events on the calling thread, at most ten a second of the frequent kind; counters that never go back."""

    def __init__(self, verb: str, progress: Progress | None, cancel: threading.Event | None) -> None:
        self.verb = verb
        self.findings: list[Finding] = []
        self.bytes = 0
        self.files = 0
        self.total: int | None = None
        self.dataset: str | None = None
        self.tier: int | None = None
        self._progress = progress
        self._cancel = cancel
        self._last = 0.0
        self._steps = 0
        self._started_ns = now_ns()
        self._began = time.monotonic()
        self.tell("started", f"{verb} begins.")

    @property
    def started(self) -> datetime:
        return from_ns(self._started_ns)

    @property
    def elapsed(self) -> timedelta:
        return timedelta(seconds=time.monotonic() - self._began)

    def tell(self, kind: EventKind, text: str, *, finding: Finding | None = None, path: str | None = None) -> None:
        """Send one event now."""
        if self._progress is None:
            return
        remaining = None
        if self.total and self.bytes:
            left = max(0, self.total - self.bytes)
            remaining = timedelta(seconds=round(self.elapsed.total_seconds() * left / self.bytes))
        self._progress(
            Event(
                kind=kind,
                verb=self.verb,
                time=from_ns(now_ns()),
                text=text,
                dataset=self.dataset,
                tier=self.tier,
                finding=finding,
                path=path,
                bytes_done=self.bytes,
                bytes_total=self.total,
                files_done=self.files,
                remaining=remaining,
            )
        )

    def step(self, size: int, files: int) -> None:
        """So much more is done. Raises Cancelled when the caller asked for it."""
        self.bytes += size
        self.files += files
        self._steps += 1
        if (size or files) and self._steps < BETWEEN_LOOKS and size < 1 << 18:  # nothing: who waits looks each time
            return
        self._steps = 0
        self.look()

    def look(self) -> None:
        """Stop if asked to; report progress if it is time."""
        self.check_cancelled()
        now = time.monotonic()
        if self._progress is not None and now - self._last >= BETWEEN_PROGRESS_S:
            self._last = now
            self.tell("progress", f"{sized(self.bytes)} done, {self.files:,} files.")

    def check_cancelled(self) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled(
                f"The {self.verb} was stopped.", remedy="Nothing was lost. Run it again to go on from here."
            )

    def find(self, finding: Finding) -> None:
        """Note something that is wrong, and say so."""
        self.findings.append(finding)
        self.tell("finding", finding.message if finding.subject == "" else finding.code, finding=finding)

    def report(self, datasets: dict[str, DatasetResult]) -> Report:
        """The end: the last event, and the result."""
        findings = tuple(self.findings)
        self.dataset = self.tier = None
        seconds = self.elapsed.total_seconds()
        self.tell("finished", f"{self.verb} ended after {seconds:.1f} s: {sized(self.bytes)}, {self.files:,} files.")
        return Report(
            verb=self.verb,
            state=worst(findings),
            started=self.started,
            duration=self.elapsed,
            bytes=self.bytes,
            files=self.files,
            datasets=datasets,
            findings=findings,
        )
