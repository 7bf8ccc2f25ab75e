"""What a repair would do, and what stays lost: nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pharmabackup import ids
from pharmabackup.clock import from_ns, now_ns
from pharmabackup.engine.elsewhere import keys_elsewhere, records_elsewhere
from pharmabackup.engine.history import Committed, History
from pharmabackup.engine.reading import SnapshotReader
from pharmabackup.engine.unlocked import COLLECTORS, Unlocked
from pharmabackup.errors import InvalidInput, NotFound
from pharmabackup.events import Finding, Severity
from pharmabackup.results import Proposal
from pharmabackup.sources.base import Source
from pharmabackup.verbs.findings import history_findings
from pharmabackup.verbs.repair_look import Block, Look
from pharmabackup.verbs.repair_lost import Losses
from pharmabackup.verbs.reporter import Reporter

if TYPE_CHECKING:
    from pharmabackup.snapshot import Snapshot

ATTEMPTS = 3  # when another collector is faster


@dataclass(frozen=True, slots=True)
class Wish:
    """What a proposal showed."""

    objects: frozenset[str] = frozenset()  # rosters and keyrings that are copied from a replica
    records: frozenset[str] = frozenset()  # fates and marks that are carried here from a replica
    finishing: bool = False  # a collection that was interrupted
    segments: frozenset[bytes] = frozenset()  # whose bytes have changed
    unnamed: frozenset[bytes] = frozenset()  # packs that no segment names
    damaged: frozenset[bytes] = frozenset()  # packs
    blocks: frozenset[Block] = frozenset()  # that go into new packs
    made: frozenset[Block] = frozenset()  # of these, what is made anew from sources
    going: frozenset[bytes] = frozenset()  # packs that are condemned
    replicas: tuple[Unlocked, ...] = ()
    sources: tuple[Source, ...] = ()


def propose_repair(
    unlocked: Unlocked,
    replicas: Sequence[Unlocked],
    sources: Sequence[Source],
    *,
    shower: Callable[[History], Callable[[Committed], Snapshot]],
) -> Proposal:
    """Nothing is changed. All packs are read. NotPermitted, InvalidInput, Damaged, SourceFailed, StorageFailed."""
    permit(unlocked)
    for replica in replicas:
        if replica.repository != unlocked.repository:
            raise InvalidInput(
                f"{replica.storage.location} holds another repository, not a replica of this one.",
                remedy="Give a copy of this very repository.",
            )
    given = tuple(replicas), tuple(sources)
    keys = keys_elsewhere(unlocked, replicas)
    if any(name.startswith("roster/") for name in keys):
        return _keys_first(frozenset(keys), *given)
    for left in reversed(range(ATTEMPTS)):
        try:
            look = Look(unlocked, replicas, Reporter("repair", None, None))
            break
        except NotFound:  # a collection has deleted what was being read
            if not left:
                raise
    try:
        records = records_elsewhere(unlocked, look.garbage.history, replicas)
        known = frozenset(record.name for record in records if record.known)
        if known:
            return _records_first(known, *given)
        look.read()
        return _Proposing(unlocked, look, *given, frozenset(keys), shower).proposal()
    finally:
        look.close()


def _keys_first(names: frozenset[str], replicas: tuple[Unlocked, ...], sources: tuple[Source, ...]) -> Proposal:
    """Without the newest list of keys, what cites it would be taken for damaged."""
    text = f"{len(names)} lists of keys are copied from a replica. Open the repository again then, and repair it."
    return _first(text, Wish(objects=names, replicas=replicas, sources=sources))


def _records_first(names: frozenset[str], replicas: tuple[Unlocked, ...], sources: tuple[Source, ...]) -> Proposal:
    """Nothing is let go while a record cannot be read: it might be a hold."""
    records = _counted(len(names), "record")
    text = f"{records} taken from a replica, of snapshots or of what was said about them. Repair again then."
    return _first(text, Wish(records=names, replicas=replicas, sources=sources))


def _first(text: str, wish: Wish) -> Proposal:
    """A repair of one step, before which nothing more can be said."""
    moment = from_ns(now_ns())
    return Proposal(
        verb="repair",
        created=moment,
        not_before=moment,
        snapshots=(),
        bytes_freed=0,
        findings=(),
        steps=(text,),
        wish=wish,
    )


class _Proposing:
    def __init__(
        self,
        unlocked: Unlocked,
        look: Look,
        replicas: tuple[Unlocked, ...],
        sources: tuple[Source, ...],
        objects: frozenset[str],
        shower: Callable[[History], Callable[[Committed], Snapshot]],
    ) -> None:
        self._unlocked = unlocked
        self._look = look
        self._given = replicas, sources
        self._objects = objects
        self._show = shower(look.garbage.history)
        self._steps: list[str] = []
        self._findings: list[Finding] = []

    def proposal(self) -> Proposal:
        look, garbage = self._look, self._look.garbage
        homeless = {block for block in look.needed if not look.stays(block)}
        moved, copied = self._taken(homeless)
        lost = homeless - moved - set(copied)
        made = self._made(lost)
        lost -= made
        may_collect = _may_collect(self._unlocked)
        going = look.condemnable(lost) if may_collect else set()
        segments = set(garbage.index.changed) if may_collect else set()
        wish = Wish(
            objects=self._objects,
            finishing=garbage.unfinished,
            segments=frozenset(segments),
            unnamed=frozenset(look.nameable()),
            damaged=frozenset(look.found),
            blocks=frozenset(moved | set(copied) | made),
            made=frozenset(made),
            going=frozenset(going),
            replicas=self._given[0],
            sources=self._given[1],
        )
        whole_again = self._losses(lost, set(copied) | made)
        freed = sum(garbage.sizes[pack] for pack in self._deleted(wish, lost))
        self._say(wish, moved, copied, lost)
        self._judge(wish)
        moment = from_ns(now_ns())
        return Proposal(
            verb="repair",
            created=moment,
            not_before=moment,
            snapshots=tuple(self._show(item) for item in whole_again),
            bytes_freed=freed,
            findings=tuple(self._findings),
            steps=tuple(self._steps),
            wish=wish,
        )

    def _taken(self, homeless: set[Block]) -> tuple[set[Block], dict[Block, str]]:
        """Blocks that are whole in damaged packs, and those that a replica has, with its location. All are proved."""
        moved, copied = set[Block](), dict[Block, str]()
        for block in self._look.in_order(homeless):
            found = self._look.take(block)
            if found is not None and found[1] is self._look.here:
                moved.add(block)
            elif found is not None:
                copied[block] = found[1].location
        return moved, copied

    def _made(self, lost: set[Block]) -> set[Block]:
        made: set[Block] = set()
        for hunt, domain, sought in self._look.hunts(lost, self._given[1]):
            made |= {(domain, block) for block in hunt.found(sought)}
        return made

    def _losses(self, lost: set[Block], regained: set[Block]) -> list[Committed]:
        """Say what stays lost; the snapshots that will be whole again."""
        look, history = self._look, self._look.garbage.history
        losses = Losses(
            look.reader,
            self._unlocked.storage.location,
            bool(self._unlocked.keyring.readers),
            look.tell,
        )
        whole: list[Committed] = []
        forgotten = history.forgotten()
        for item in history.newest():
            if item.transaction in forgotten or not (lost or regained or look.blind):
                continue
            if item.transaction in look.blind:
                losses.list_lost(item)
                continue
            relied = SnapshotReader(look.reader, item.snapshot).relied()
            mine = {block for domain, block in lost if domain == item.snapshot.domain} & relied
            if mine:
                losses.some_lost(item, relied, mine)
            elif any(domain == item.snapshot.domain and block in relied for domain, block in regained):
                whole.append(item)
        self._findings += losses.findings
        return whole

    def _deleted(self, wish: Wish, lost: set[Block]) -> set[bytes]:
        """Of the packs that are condemned, those that will not stay for what is lost in them."""
        return set(wish.going) - self._look.holding(lost)

    def _say(self, wish: Wish, moved: set[Block], copied: dict[Block, str], lost: set[Block]) -> None:
        """What would be done, in sentences."""
        say = self._steps.append
        if wish.objects:
            say(f"{_counted(len(wish.objects), 'sealed keyring')} copied from a replica.")
        if wish.finishing:
            say("A collection that was interrupted is finished.")
        if wish.unnamed:
            say(f"{_counted(len(wish.unnamed), 'pack')} named in the index again.")
        if moved:
            say(f"{_counted(len(moved), 'block')} moved out of damaged packs, unopened, into new ones.")
        for location in sorted(set(copied.values())):
            count = sum(place == location for place in copied.values())
            say(f"{_counted(count, 'block')} taken from {location}.")
        if wish.made:
            say(f"{_counted(len(wish.made), 'block')} made anew from the sources.")
        deleted = self._deleted(wish, lost)
        if deleted:
            say(f"{_counted(len(deleted), 'damaged pack')} deleted, once nothing needs what is in them any more.")
        if set(wish.going) - deleted:
            packs = _counted(len(set(wish.going) - deleted), "damaged pack")
            say(f"{packs} left in place, and no backup relies on it any more.")
        if wish.segments:
            say(f"{_counted(len(wish.segments), 'damaged index segment')} deleted: the packs say what they said.")

    def _judge(self, wish: Wish) -> None:
        """What is damaged and stays so."""
        look, location = self._look, self._unlocked.storage.location
        for pack in sorted({*look.found, *look.garbage.unreadable} - set(wish.going)):
            self._find("pack-damaged", "warning", ids.pack_name(pack), f"{look.described(pack)} It stays.")
        self._findings += history_findings(look.garbage.history, location)
        if not look.sound_history and (look.found or look.garbage.unreadable):
            self._find(
                "repair-held-back",
                "warning",
                "snapshots",
                "Damaged packs are not let go while something that was said or committed cannot be read.",
                "Give a replica that has them, and repair again.",
            )
        others = len(records_elsewhere(self._unlocked, look.garbage.history, self._given[0]))
        if others:
            self._find(
                "record-elsewhere",
                "info",
                "snapshots",
                f"Replicas have {others:,} snapshots and marks that are not here; copy brings them.",
                "Copy from that replica, if they should be here.",
            )

    def _find(
        self, code: str, severity: Severity, subject: str, message: str, remedy: str = "Run check to see more."
    ) -> None:
        self._findings.append(
            Finding(
                code=code,
                severity=severity,
                subject=subject,
                message=message,
                remedy=remedy,
                location=self._unlocked.storage.location,
            )
        )


def permit(unlocked: Unlocked) -> None:
    if unlocked.keyring.role not in COLLECTORS:
        raise unlocked.not_permitted("repair")


def _may_collect(unlocked: Unlocked) -> bool:
    """Where two collectors could not be told apart, nothing is deleted: what was mended is there all the same."""
    return all(unlocked.record.capabilities.get(name, False) for name in ("exclusive-create", "fresh-listing"))


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s are' if count > 1 else ' is'}"
