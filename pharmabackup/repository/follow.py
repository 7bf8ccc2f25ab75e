"""Backing up again and again: what has changed is in the repository seconds later."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from pharmabackup.clock import from_ns, now_ns
from pharmabackup.errors import Cancelled, Error, Incomplete, InvalidInput, SourceFailed, StorageFailed
from pharmabackup.events import Event, Progress
from pharmabackup.results import Followed
from pharmabackup.verbs.backup import check_sources

if TYPE_CHECKING:
    from pharmabackup.repository import Repository
    from pharmabackup.sources.base import Source

LOOK_EVERY_S = 0.25
PATIENCE_S = 30.0  # between attempts, when one after the other fails
DOUBLINGS = 16
AWAY = ("unreachable", "timeout", "throttled")  # what may pass by itself: a disk is plugged in again


class _Turns:
    """When each source may be backed up again: `pause` after it was begun, later and later while it fails."""

    def __init__(self, sources: Sequence[Source], pause: float) -> None:
        self._pause = pause
        self._failed = dict.fromkeys((source.name for source in sources), 0)
        self._due = dict.fromkeys(self._failed, 0.0)

    def due(self, sources: Sequence[Source]) -> list[Source]:
        now = time.monotonic()
        return [source for source in sources if self._due[source.name] <= now and _changed(source)]

    def begun(self, sources: Sequence[Source]) -> None:
        for source in sources:
            self._due[source.name] = time.monotonic() + self._pause

    def went(self, name: str, *, well: bool) -> None:
        self._failed[name] = 0 if well else min(self._failed[name] + 1, DOUBLINGS)
        if not well:
            longest = max(PATIENCE_S, self._pause)
            self._due[name] = time.monotonic() + min(longest, self._pause * 2 ** self._failed[name])


def follow(
    repository: Repository,
    sources: Sequence[Source],
    *,
    replicas: Sequence[Repository],
    every: timedelta,
    reason: str | None,
    progress: Progress | None,
    cancel: threading.Event,
) -> Followed:
    """What `Repository.follow` does."""
    if every <= timedelta(0):
        raise InvalidInput("The time between two backups has to be longer than nothing.", remedy="Say how often.")
    repository._journal.run(
        "follow", lambda: check_sources(repository._unlocked, sources), facts={"sources": len(sources)}
    )
    turns, began = _Turns(sources, every.total_seconds()), now_ns()
    snapshots = failed = 0
    while not cancel.is_set():
        due = turns.due(sources)
        if not due:
            cancel.wait(min(every.total_seconds(), LOOK_EVERY_S))
            continue
        turns.begun(due)
        try:
            report = repository.backup(due, replicas=replicas, reason=reason, progress=progress, cancel=cancel)
        except Cancelled:
            break
        except Incomplete as error:
            failed += 1
            report = error.result
            _tell(progress, error)
        except StorageFailed as error:
            if not error.retryable and error.kind not in AWAY:
                raise
            failed += 1
            for source in due:
                turns.went(source.name, well=False)
            _tell(progress, error)
            continue
        deaf = {finding.subject for finding in report.findings if finding.code == "not-acknowledged"}
        for name, result in report.datasets.items():
            turns.went(name, well=result.snapshot is not None and name not in deaf)
            snapshots += result.snapshot is not None
    return Followed(snapshots=snapshots, failed=failed, started=from_ns(began), duration=_since(began))


def _tell(progress: Progress | None, error: Error) -> None:
    if progress is not None:
        text = f"{error.message} It is tried again."
        progress(Event(kind="retrying", verb="follow", time=from_ns(now_ns()), text=text))


def _changed(source: Source) -> bool:
    try:
        return source.changed()
    except SourceFailed:  # its backup says so
        return True


def _since(began: int) -> timedelta:
    return timedelta(microseconds=(now_ns() - began) / 1000)
