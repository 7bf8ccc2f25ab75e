"""One backup to several places: packs go on while it runs, then each place gets a copy of what it lacks.

See docs/design/013-several-places.md for why that is the copy's own protocol.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import SimpleQueue

from pharmabackup.engine.carrying import send_pack
from pharmabackup.engine.packs import Sent
from pharmabackup.engine.segments import write_segment
from pharmabackup.engine.transaction import SEGMENT_PACKS
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Cancelled, Error, Incomplete, InvalidInput, NotFound
from pharmabackup.events import Finding, worst
from pharmabackup.format.index import PackEntry
from pharmabackup.results import Report


@dataclass(frozen=True, slots=True)
class Place:
    """Another place of the repository that is backed up to, and what brings it all that it lacks."""

    unlocked: Unlocked
    copy: Callable[[], Report]


def spread(first: Unlocked, places: Sequence[Place], backup: Callable[[Sent], Report]) -> Report:
    """Back up to the first place and bring it all to the others. InvalidInput; what `backup` raises.

    Trouble of another place is a finding in the report: what is backed up is safe in the first. What a backup had
    committed before it failed is brought to the others, too; one that was cancelled ends at once.
    """
    _check(first, places)
    followers = [_Follower(first, place) for place in places]

    def sent(entry: PackEntry) -> None:
        for follower in followers:
            follower.send(entry)

    failed: Incomplete | None = None
    try:
        try:
            report = backup(sent)
        except Incomplete as error:
            report, failed = error.result, error
        for follower in followers:
            follower.end()
    except BaseException as error:
        for follower in followers:
            follower.end(gives_up=isinstance(error, Cancelled) or not isinstance(error, Error))
        raise
    finally:
        for follower in followers:
            follower.join()
    told = [finding for follower in followers for finding in follower.result()]
    findings = (*report.findings, *(finding for finding in told if finding not in report.findings))
    report = replace(report, findings=findings, state=worst(findings))
    if failed is not None:
        raise Incomplete(failed.message, kind=failed.kind, remedy=failed.remedy, findings=findings, result=report)
    return report


def _check(first: Unlocked, places: Sequence[Place]) -> None:
    locations = [first.storage.location, *(place.unlocked.storage.location for place in places)]
    for place in places:
        if place.unlocked.repository != first.repository:
            raise InvalidInput(
                f"{place.unlocked.storage.location} is no replica of {first.storage.location}.",
                remedy="Make one there with replica_of; to another repository, copy after the backup.",
            )
    if len(set(locations)) < len(locations):
        raise InvalidInput("One place was given twice.", remedy="Give each other place once, and not the first.")


class _GivenUp(Exception):
    """The backup came to nothing: nothing more is sent."""


class _Follower:
    """One other place, with a thread of its own. What comes of it there is kept until it is asked for."""

    def __init__(self, first: Unlocked, place: Place) -> None:
        self._first = first
        self._place = place
        self._packs: SimpleQueue[PackEntry | None] = SimpleQueue()
        self._gives_up = False
        self._copied: Report | None = None
        self._trouble: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="pharmabackup-follow", daemon=True)
        self._thread.start()

    def send(self, entry: PackEntry) -> None:
        self._packs.put(entry)

    def end(self, *, gives_up: bool = False) -> None:
        """No more packs come: now the copy, or nothing more."""
        self._gives_up = gives_up
        self._packs.put(None)

    def join(self) -> None:
        self._thread.join()

    def result(self) -> tuple[Finding, ...]:
        """After `join`: what the copy told, and what went wrong with it."""
        if self._copied is not None:
            return self._copied.findings
        trouble, location = self._trouble, self._place.unlocked.storage.location
        told = trouble if isinstance(trouble, Error) else Error(f"there was a fault ({type(trouble).__name__}).")
        behind = Finding(
            code="location-behind",
            severity="warning",
            subject=location,
            message=f"Not everything came to {location}: {told.message}",
            remedy=f"{told.remedy} The next backup or copy brings what is missing there.".lstrip(),
            location=location,
        )
        return *told.findings, behind

    def _run(self) -> None:
        try:
            self._follow()
            if not self._gives_up:
                self._copied = self._place.copy()
        except BaseException as error:  # noqa: BLE001  (carried over to the thread that asks)
            self._trouble = error

    def _follow(self) -> None:
        """Send packs until there are no more. From one on that finds no place there, they are left to the copy."""
        there, sending, unindexed = self._place.unlocked, True, list[PackEntry]()
        while (entry := self._packs.get()) is not None:
            if not sending or self._first.roster_hash != there.roster_hash:  # lists of keys come before packs
                continue
            try:
                if send_pack(self._first.storage, there.storage, entry.pack, entry.size, self._step):
                    unindexed.append(entry)
                if len(unindexed) == SEGMENT_PACKS:
                    write_segment(there, unindexed)
                    unindexed = []
            except NotFound:  # of an attempt that a collection overtook, which let it go
                continue
            except Error:
                sending = False
        if unindexed and not self._gives_up:
            with suppress(Error):  # the copy reads these packs' directories, then
                write_segment(there, unindexed)

    def _step(self, size: int) -> None:  # noqa: ARG002
        if self._gives_up:
            raise _GivenUp
