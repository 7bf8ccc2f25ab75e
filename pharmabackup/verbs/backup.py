"""Back up: one stable view of all sources, then dataset after dataset, each committed by itself, tier by tier."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from datetime import timedelta
from pathlib import Path

from pharmabackup import ids
from pharmabackup.clock import steady_ns
from pharmabackup.engine.grants import WRITERS
from pharmabackup.engine.history import Committed
from pharmabackup.engine.index import Index
from pharmabackup.engine.packs import Sending, Sent
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Incomplete, InvalidInput, SourceFailed
from pharmabackup.events import Progress
from pharmabackup.format.wire import TEXT_MAX
from pharmabackup.results import Report
from pharmabackup.sources.base import Source
from pharmabackup.verbs.backup_run import Cut, Run
from pharmabackup.verbs.pause import Pause
from pharmabackup.verbs.reporter import Reporter


def backup(
    unlocked: Unlocked,
    sources: Sequence[Source],
    *,
    show: Callable[[Committed], object],
    reason: str | None,
    freeze: AbstractContextManager[object] | None,
    freeze_timeout: timedelta,
    progress: Progress | None,
    cancel: threading.Event | None,
    sent: Sent | None = None,
) -> Report:
    """One snapshot of each source; `sent` hears of each pack. Incomplete, InvalidInput, StorageFailed, Cancelled."""
    check_sources(unlocked, sources)
    if reason is not None and len(reason) > TEXT_MAX:
        raise InvalidInput(
            f"The reason is longer than {TEXT_MAX:,} characters.", remedy="Say it in a sentence or two."
        )
    pause = None if freeze is None else Pause(freeze, freeze_timeout)
    reporter = Reporter("backup", progress, cancel)
    ordered = sorted(sources, key=lambda source: source.tier)
    index = Index(unlocked)
    try:
        with ExitStack() as everything:
            scratch = _scratch(everything)
            sending = everything.enter_context(Sending(unlocked.storage.lanes, sent))
            cuts = _take_views(ordered, everything, scratch, pause)
            if pause is not None and pause.ended_early:
                reporter.find(pause.finding())
            run = Run(unlocked, index, reporter, ids.new_id(), reason, show, sending)
            run.prepare(ordered)
            try:
                run.datasets(cuts)
            finally:
                run.remember()
            if unlocked.storage.lanes > 1:  # elsewhere it was looked for after each
                run.look_for_revocation()
            run.tell_sources()
            index.save()
    finally:
        index.close()
    return _whole(run.result())


def _whole(report: Report) -> Report:
    """The report. Incomplete when a dataset is missing or not whole."""
    failed = [name for name, result in report.datasets.items() if result.snapshot is None]
    partial = [name for name, result in report.datasets.items() if not result.complete and name not in failed]
    if not failed and not partial:
        return report
    total = len(report.datasets)
    parts = []
    if failed:
        parts.append(f"{len(failed)} of {total} datasets not backed up: {', '.join(failed)}.")
    if partial:
        parts.append(f"Parts of {', '.join(partial)} could not be read and are not in the backup.")
    safe = total - len(failed) - len(partial)
    if safe:
        parts.append(f"The other {safe} are safe." if safe > 1 else "The other one is safe.")
    raise Incomplete(
        " ".join(parts),
        kind="backup",
        remedy="Look at the findings, mend what they name, and back up again.",
        findings=report.findings,
        result=report,
    )


def _scratch(everything: ExitStack) -> Path:
    """A private folder for what sources cannot avoid to have on disk. Without one, those that need it say so."""
    try:
        return Path(everything.enter_context(tempfile.TemporaryDirectory(prefix="pharmabackup-")))
    except OSError:
        return Path(tempfile.gettempdir())


def check_sources(unlocked: Unlocked, sources: Sequence[Source]) -> None:
    """What cannot be is refused before anything is written."""
    if unlocked.keyring.role not in WRITERS:
        raise unlocked.not_permitted("back up", who=WRITERS)
    if not sources:
        raise InvalidInput("There is nothing to back up.", remedy="Give at least one source.")
    names: set[str] = set()
    root = unlocked.storage.local_root()
    for source in sources:
        if not isinstance(source, Source):
            raise InvalidInput(f"{source!r} is no source.", remedy="Give pb.Files(...), pb.SQLite(...) or another.")
        if source.name.casefold() in names:
            raise InvalidInput(
                f"Two sources have the name {source.name!r}.", kind="name", remedy="Give one of them another name=."
            )
        names.add(source.name.casefold())
        location = source.location()
        if root is None or location is None:
            continue
        inside = os.path.realpath(root)
        outside = os.path.realpath(location)
        if os.path.commonpath([inside, outside]) in (inside, outside) and _same_drive(inside, outside):
            raise InvalidInput(
                f"The repository and the source {source.name!r} lie inside one another.",
                remedy="Choose a repository folder that is on another disk, outside of what is backed up.",
            )


def _same_drive(one: str, other: str) -> bool:
    return os.path.splitdrive(one)[0].casefold() == os.path.splitdrive(other)[0].casefold()


def _take_views(sources: Sequence[Source], everything: ExitStack, scratch: Path, pause: Pause | None) -> list[Cut]:
    """All views within the caller's pause, so that they are of one instant."""
    cuts = []
    with pause or nullcontext():
        for source in sources:
            stack = everything.enter_context(ExitStack())
            steady = steady_ns()
            try:
                view = stack.enter_context(source.view(scratch=scratch))
                cuts.append(Cut(source, view, None, steady, stack))
            except SourceFailed as error:
                cuts.append(Cut(source, None, error, steady, stack))
    return cuts
