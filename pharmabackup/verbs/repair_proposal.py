"""What a repair would do, and what stays lost: nothing is changed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pharmabackup import ids
from pharmabackup.clock import from_ns, now_ns
from pharmabackup.engine.collection import storage_now
from pharmabackup.engine.elsewhere import keys_elsewhere, records_elsewhere
from pharmabackup.engine.grants import WRITERS
from pharmabackup.engine.history import Committed, History
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.reading import SnapshotReader
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import InvalidInput, NotFound, Unsupported
from pharmabackup.events import Finding, Progress, Severity
from pharmabackup.results import Proposal
from pharmabackup.sources.base import Source
from pharmabackup.verbs.findings import history_findings
from pharmabackup.verbs.repair_look import Look
from pharmabackup.verbs.repair_lost import Losses
from pharmabackup.verbs.repair_wish import (
    ATTEMPTS,
    Block,
    Wish,
    counted,
    key_findings,
    keyrings_told,
    keys_first,
    permit,
    records_first,
)
from pharmabackup.verbs.reporter import Reporter

if TYPE_CHECKING:
    from pharmabackup.snapshot import Snapshot


def propose_repair(
    unlocked: Unlocked,
    replicas: Sequence[Unlocked],
    sources: Sequence[Source],
    *,
    shower: Callable[[History], Callable[[Committed], Snapshot]],
    progress: Progress | None,
    cancel: threading.Event | None,
) -> Proposal:
    """Nothing is changed. All packs are read. NotPermitted, InvalidInput, Damaged, StorageFailed, Cancelled."""
    permit(unlocked)
    if sources and not unlocked.keyring.naming:  # before hours of reading
        raise unlocked.not_permitted("back up", who=WRITERS)
    for replica in replicas:
        if replica.repository != unlocked.repository:
            raise InvalidInput(
                f"{replica.storage.location} holds another repository, not a replica of this one.",
                remedy="Give a copy of this very repository.",
            )
    given, reporter = Wish(replicas=tuple(replicas), sources=tuple(sources)), Reporter("repair", progress, cancel)
    keys = keys_elsewhere(unlocked, replicas)
    reporter.findings += key_findings(unlocked, keys.refused)
    if any(name.startswith("roster/") for name in keys.objects):
        return keys_first(unlocked, replace(given, objects=frozenset(keys.objects)), reporter.findings)
    for left in reversed(range(ATTEMPTS)):
        try:
            look = Look(unlocked, replicas, reporter)
            break
        except NotFound:  # a collection has deleted what was being read
            if not left:
                raise
    try:
        history, there = look.garbage.history, [(replica, load_history(replica)) for replica in replicas]
        records = records_elsewhere(unlocked, history, there)
        known = frozenset(record.name for record in records if record.known)
        if known:
            return records_first(unlocked, history, there, replace(given, records=known), reporter.findings)
        look.read()
        given = replace(given, objects=frozenset(keys.objects))
        proposal = _Proposing(unlocked, look, given, shower, reporter, len(records)).proposal()
        reporter.tell("finished", "Everything was looked at.")
        return proposal
    finally:
        look.close()


class _Proposing:
    def __init__(
        self,
        unlocked: Unlocked,
        look: Look,
        given: Wish,
        shower: Callable[[History], Callable[[Committed], Snapshot]],
        reporter: Reporter,
        elsewhere: int,
    ) -> None:
        self._unlocked = unlocked
        self._look = look
        self._given = given
        self._show = shower(look.garbage.history)
        self._reporter = reporter
        self._elsewhere = elsewhere
        self._steps: list[str] = []

    def proposal(self) -> Proposal:
        look, garbage = self._look, self._look.garbage
        homeless = {block for block in look.needed if not look.stays(block)}
        moved, copied = self._taken(homeless)
        lost = homeless - moved - set(copied)
        made = self._made(lost)
        lost -= made
        going, segments = look.condemnable(lost), set(garbage.index.changed)
        if (going or segments) and not _may_collect(self._unlocked):
            going, segments = set(), set()
        wish = replace(
            self._given,
            segments=frozenset(segments),
            damaged=frozenset(look.found),
            blocks=frozenset(moved | set(copied) | made),
            made=frozenset(made),
            going=frozenset(going),
        )
        whole_again = self._losses(lost, set(copied) | made)
        freed = sum(garbage.sizes[pack] for pack in self._deleted(wish, lost))
        self._say(wish, moved, copied, lost)
        self._judge(wish)
        moment = from_ns(now_ns())
        return Proposal(
            verb="repair",
            repository=self._unlocked.repository.hex(),
            created=moment,
            not_before=moment,
            snapshots=tuple(self._show(item) for item in whole_again),
            bytes_freed=freed,
            findings=tuple(self._reporter.findings),
            steps=tuple(self._steps),
            wish=wish,
        )

    def _taken(self, homeless: set[Block]) -> tuple[set[Block], dict[Block, str]]:
        """Blocks that are whole in damaged packs, and those that a replica has, with its location. All are proved."""
        moved, copied = set[Block](), dict[Block, str]()
        for block in self._look.in_order(homeless):
            self._look.tell()
            found = self._look.take(block)
            if found is not None and found[1] is self._look.here:
                moved.add(block)
            elif found is not None:
                copied[block] = found[1].location
        return moved, copied

    def _made(self, lost: set[Block]) -> set[Block]:
        made: set[Block] = set()
        for hunt, domain, sought in self._look.hunts(lost, self._given.sources):
            made |= {(domain, block) for block in hunt.found(sought)}
        return made

    def _losses(self, lost: set[Block], regained: set[Block]) -> list[Committed]:
        """Say what stays lost; the snapshots that will be whole again."""
        look, history = self._look, self._look.garbage.history
        whole: list[Committed] = []
        if not (lost or regained or look.blind):
            return whole
        lost_of, regained_of = _by_domain(lost), _by_domain(regained)
        losses = Losses(
            look.reader,
            self._unlocked.storage.location,
            bool(self._unlocked.keyring.readers),
            look.tell,
            history.forgotten(),
        )
        for item in history.newest():
            if item.transaction in look.garbage.gone:
                continue
            if item.transaction in look.blind:
                losses.list_lost(item)
                continue
            relied = SnapshotReader(look.reader, item.snapshot).relied()
            mine = lost_of.get(item.snapshot.domain, set()) & relied
            if mine:
                losses.some_lost(item, relied, mine)
            elif not relied.isdisjoint(regained_of.get(item.snapshot.domain, ())):
                whole.append(item)
        self._reporter.findings += losses.findings
        return whole

    def _deleted(self, wish: Wish, lost: set[Block]) -> set[bytes]:
        """Of the packs that are condemned, those that will not stay for what is lost in them."""
        return set(wish.going) - self._look.holding(lost)

    def _say(self, wish: Wish, moved: set[Block], copied: dict[Block, str], lost: set[Block]) -> None:
        """What would be done, in sentences."""
        say = self._steps.append
        self._steps += keyrings_told(wish)
        if self._look.garbage.unfinished:
            say("A collection that was interrupted is finished.")
        unnamed = self._look.nameable()
        if unnamed:
            say(f"{counted(len(unnamed), 'pack')} named in the index again.")
        if moved:
            say(f"{counted(len(moved), 'block')} moved out of damaged packs, as they are sealed, into new ones.")
        for location in sorted(set(copied.values())):
            count = sum(place == location for place in copied.values())
            say(f"{counted(count, 'block')} taken from {location}.")
        if wish.made:
            say(f"{counted(len(wish.made), 'block')} made anew from the sources.")
        deleted = self._deleted(wish, lost)
        if deleted:
            say(f"{counted(len(deleted), 'damaged pack')} deleted, once nothing needs what is in them any more.")
        if set(wish.going) - deleted:
            packs = counted(len(set(wish.going) - deleted), "damaged pack")
            say(f"{packs} left in place, and no backup relies on it any more.")
        if wish.segments:
            say(f"{counted(len(wish.segments), 'damaged index segment')} deleted: the packs say what they said.")

    def _judge(self, wish: Wish) -> None:
        """What is damaged and stays so."""
        look, location = self._look, self._unlocked.storage.location
        for pack in sorted({*look.found, *look.garbage.unreadable} - set(wish.going)):
            self._find("pack-damaged", "warning", ids.pack_name(pack), f"{look.described(pack)} It stays.")
        self._reporter.findings += history_findings(look.garbage.history, location)
        if not look.sound_history and (look.found or look.garbage.unreadable):
            self._find(
                "repair-held-back",
                "warning",
                "snapshots",
                "Damaged packs are not let go while something that was said or committed cannot be read; until then "
                "later backups may rely on what is lost in them.",
                "Give a replica that has them, and repair again.",
            )
        if self._elsewhere:
            self._find(
                "record-elsewhere",
                "info",
                "snapshots",
                f"Replicas have {self._elsewhere:,} snapshots and marks that are not here; copy brings them.",
                "Copy from that replica, if they should be here.",
            )

    def _find(
        self, code: str, severity: Severity, subject: str, message: str, remedy: str = "Run check to see more."
    ) -> None:
        self._reporter.findings.append(
            Finding(
                code=code,
                severity=severity,
                subject=subject,
                message=message,
                remedy=remedy,
                location=self._unlocked.storage.location,
            )
        )


def _by_domain(blocks: set[Block]) -> dict[bytes, set[bytes]]:
    found: dict[bytes, set[bytes]] = {}
    for domain, block in blocks:
        found.setdefault(domain, set()).add(block)
    return found


def _may_collect(unlocked: Unlocked) -> bool:
    """Where two collectors could not be told apart, nothing is deleted: what was mended is there all the same."""
    try:
        storage_now(unlocked)
    except Unsupported:
        return False
    return True
