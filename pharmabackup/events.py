"""What a caller hears: events while a verb runs, and findings about what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from pharmabackup.clock import iso

Severity = Literal["info", "warning", "critical"]
State = Literal["ok", "warning", "critical", "unknown"]
EventKind = Literal[
    "started",
    "progress",
    "dataset",
    "usable",
    "tier",
    "waiting",
    "retrying",
    "finding",
    "committed",
    "finished",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One shape for everything that is wrong, wherever it was found. `code` is stable; see docs/findings.md."""

    code: str
    severity: Severity
    subject: str
    message: str
    remedy: str
    location: str | None = None

    def __str__(self) -> str:
        return f"{self.severity}: {self.message} {self.remedy}".strip()

    def to_dict(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something happened. `text` is a plain sentence that is safe to log; only `path` may hold a file name."""

    kind: EventKind
    verb: str
    time: datetime
    text: str
    dataset: str | None = None
    tier: int | None = None
    location: str | None = None
    finding: Finding | None = None
    path: str | None = None
    bytes_done: int = 0
    bytes_total: int | None = None
    files_done: int = 0
    remaining: timedelta | None = None

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, object]:
        facts: dict[str, object] = {name: getattr(self, name) for name in self.__slots__}
        facts["time"] = iso(self.time)
        facts["finding"] = self.finding.to_dict() if self.finding else None
        facts["remaining"] = self.remaining.total_seconds() if self.remaining else None
        return facts


Progress = Callable[[Event], object]


def worst(findings: tuple[Finding, ...]) -> State:
    """The state that a set of findings amounts to."""
    severities = {finding.severity for finding in findings}
    return "critical" if "critical" in severities else "warning" if "warning" in severities else "ok"
