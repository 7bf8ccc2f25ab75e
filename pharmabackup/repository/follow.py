"""Backing up again and again: what has changed is in the repository seconds later."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from pharmabackup.clock import from_ns, now_ns
from pharmabackup.errors import Cancelled, Incomplete, InvalidInput, SourceFailed, StorageFailed
from pharmabackup.events import Event, Progress
from pharmabackup.results import Followed

if TYPE_CHECKING:
    from pharmabackup.repository import Repository
    from pharmabackup.sources.base import Source

LOOK_EVERY_S = 0.25
PATIENCE_S = 30.0  # between attempts, when one after the other fails


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
    pause, began = every.total_seconds(), now_ns()
    snapshots = failed = in_a_row = 0
    while not cancel.is_set():
        due = [source for source in sources if _changed(source)]
        if not due:
            cancel.wait(min(pause, LOOK_EVERY_S))
            continue
        started = time.monotonic()
        try:
            report = repository.backup(due, replicas=replicas, reason=reason, progress=progress, cancel=cancel)
        except Cancelled:
            break
        except (Incomplete, StorageFailed) as error:
            if isinstance(error, StorageFailed) and not error.retryable:
                raise
            if isinstance(error, Incomplete):
                made = [result for result in error.result.datasets.values() if result.snapshot is not None]
                snapshots += len(made)
            failed, in_a_row = failed + 1, in_a_row + 1
            if progress is not None:
                time_ = from_ns(now_ns())
                progress(
                    Event(kind="retrying", verb="follow", time=time_, text=f"{error.message} It is tried again.")
                )
        else:
            snapshots, in_a_row = snapshots + len(report.datasets), 0
        patience = min(PATIENCE_S, pause * 2**in_a_row) if in_a_row else pause
        cancel.wait(max(0.0, patience - (time.monotonic() - started)))
    return Followed(snapshots=snapshots, failed=failed, started=from_ns(began), duration=_since(began))


def _changed(source: Source) -> bool:
    try:
        return source.changed()
    except SourceFailed:  # its backup says so
        return True


def _since(began: int) -> timedelta:
    return timedelta(microseconds=(now_ns() - began) / 1000)
