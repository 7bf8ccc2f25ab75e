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
from pharmabackup.errors import Error, Incomplete, InvalidInput
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

    Trouble of another place is a finding in the report: what is backed up is safe in the first.
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
    except BaseException:
        for follower in followers:
            follower.give_up()
        raise
    for follower in followers:
        follower.end()
    findings = (*report.findings, *(finding for follower in followers for finding in follower.result()))
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


class _Follower:
    """One other place, with a thread of its own. What goes wrong there is kept until it is asked for."""

    def __init__(self, first: Unlocked, place: Place) -> None:
        self._first = first
        self._place = place
        self._packs: SimpleQueue[PackEntry | None] = SimpleQueue()
        self._given_up = False
        self._trouble: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="pharmabackup-follow", daemon=True)
        self._thread.start()

    def send(self, entry: PackEntry) -> None:
        self._packs.put(entry)

    def end(self) -> None:
        """No more packs come: now the copy."""
        self._packs.put(None)

    def give_up(self) -> None:
        """The backup came to nothing: nor does anything else go there. Waits for the pack that is under way."""
        self._given_up = True
        self.end()
        self._thread.join()

    def result(self) -> list[Finding]:
        """Waits for the copy. What had gone wrong with it."""
        self._thread.join()
        trouble, location = self._trouble, self._place.unlocked.storage.location
        if trouble is None:
            return []
        if not isinstance(trouble, Error):
            raise trouble
        behind = Finding(
            code="location-behind",
            severity="warning",
            subject=location,
            message=f"Not everything came to {location}: {trouble.message}",
            remedy=f"{trouble.remedy} The next backup or copy brings what is missing there.".lstrip(),
            location=location,
        )
        return [*trouble.findings, behind]

    def _run(self) -> None:
        try:
            self._follow()
            if not self._given_up:
                self._place.copy()
        except BaseException as error:  # noqa: BLE001  (carried over to the thread that asks)
            self._trouble = error

    def _follow(self) -> None:
        """Send packs until there are no more. From one on that finds no place there, they are left to the copy."""
        there = self._place.unlocked
        sending, unindexed = self._first.roster_hash == there.roster_hash, list[PackEntry]()  # else keys come first
        while (entry := self._packs.get()) is not None:
            if not sending or self._given_up:
                continue
            try:
                if send_pack(self._first.storage, there.storage, entry.pack, entry.size):
                    unindexed.append(entry)
                if len(unindexed) == SEGMENT_PACKS:
                    write_segment(there, unindexed)
                    unindexed = []
            except Error:
                sending = False
        if unindexed and not self._given_up:
            with suppress(Error):  # the copy reads these packs' directories, then
                write_segment(there, unindexed)
