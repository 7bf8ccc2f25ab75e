"""What storage holds in the model: immutable objects in a frozen set, and a view that finds them by kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

Names = frozenset[str]
NONE: Names = frozenset()
OWNER = "owner"  # a slot that writes in every domain


class Entry(NamedTuple):
    """What an index segment says: this block lies in that pack, whose directory has that domain."""

    block: str
    pack: str
    domain: str


@dataclass(frozen=True, slots=True)
class Pack:
    """`holds`: blocks that are whole in it. `says`: what its directory names. A block's first letter is its chunk."""

    name: str
    holds: Names
    says: Names
    domain: str = "a"
    slot: str = OWNER
    key: str = ""  # the transaction that sealed it
    late: bool = False  # made after a device was stolen, by the storage's time


@dataclass(frozen=True, slots=True)
class Segment:
    name: str
    entries: frozenset[Entry]
    slot: str = OWNER
    domain: str = ""  # the signer's; "" may speak for every domain
    cites: int = 0


@dataclass(frozen=True, slots=True)
class Intent:
    txn: str
    number: int
    packs: Names
    slot: str = OWNER
    cites: int = 0


class Snapshot(NamedTuple):
    blocks: Names
    domain: str


class Carried(NamedTuple):
    txn: str
    snapshot: Snapshot
    gone: bool


@dataclass(frozen=True, slots=True)
class Fate:
    """`snapshot` of a commit, `carried` of a copy; neither: an abort."""

    txn: str
    snapshot: Snapshot | None = None
    carried: tuple[Carried, ...] = ()
    slot: str = OWNER
    cites: int = 0

    @property
    def aborted(self) -> bool:
        return self.snapshot is None and not self.carried


@dataclass(frozen=True, slots=True)
class Condemn:
    number: int
    packs: Names
    listed: Names  # decided transactions whose intents were read
    gone: Names  # snapshots that were taken for gone
    slot: str = OWNER
    cites: int = 0


@dataclass(frozen=True, slots=True)
class Execute:
    number: int
    packs: Names
    segments: Names
    slot: str = OWNER
    cites: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    number: int


@dataclass(frozen=True, slots=True)
class Mark:
    """forget, undo or hold. `late`: by the storage's time it came when the forget counted already.

    `told`: whoever made it was told that it came in time.
    """

    kind: str
    txn: str
    late: bool = False
    told: bool = True


@dataclass(frozen=True, slots=True)
class Ripe:
    """No object: by the storage's time, the forget of this snapshot counts from now on."""

    txn: str


@dataclass(frozen=True, slots=True)
class Slower:
    """No object: a policy under which no forget counts yet, such as a longer delay."""


@dataclass(frozen=True, slots=True)
class Locked:
    """No object: the storage refuses to delete this pack."""

    pack: str


@dataclass(frozen=True, slots=True)
class Lost:
    """No object: this snapshot lost this block before the beginning."""

    txn: str
    block: str


@dataclass(frozen=True, slots=True)
class Roster:
    number: int
    slots: Names
    revoked: Names = NONE
    accepted: Names = NONE  # transactions of revoked slots


@dataclass(frozen=True, slots=True)
class Torn:
    """A record that is there and cannot be read. `record`: a condemn, which who wrote it remembers."""

    kind: str
    name: str
    record: Condemn | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """In the replica that is copied from: a snapshot, the packs it needs there, and whether its content is gone."""

    txn: str
    snapshot: Snapshot
    gone: bool = False


@dataclass(frozen=True, slots=True)
class SourcePack:
    """In the replica that is copied from: a pack."""

    name: str
    blocks: Names
    domain: str = "a"


Store = frozenset[object]
Citing = Fate | Intent | Segment | Condemn | Execute


class View:
    """One store, with its objects by kind."""

    __slots__ = (
        "condemns", "done", "executes", "fates", "intents", "locked", "lost", "marks", "packs", "remembered", "ripe",
        "rosters", "segments", "slower", "source_packs", "sources", "store", "torn",
    )  # fmt: skip

    def __init__(self, store: Store) -> None:
        self.store = store
        self.packs: dict[str, Pack] = {}
        self.segments: dict[str, Segment] = {}
        self.intents: list[Intent] = []
        self.fates: dict[str, Fate] = {}
        self.condemns: dict[int, Condemn] = {}
        self.executes: dict[int, Execute] = {}
        self.done: set[int] = set()
        self.marks: list[Mark] = []
        self.ripe: set[str] = set()
        self.slower = False
        self.locked: set[str] = set()
        self.lost: set[tuple[str, str]] = set()
        self.rosters: dict[int, Roster] = {}
        self.torn: set[str] = set()
        self.remembered: dict[int, Condemn] = {}
        self.sources: list[Source] = []
        self.source_packs: dict[str, SourcePack] = {}
        for item in store:
            match item:
                case Pack():
                    self.packs[item.name] = item
                case Segment():
                    self.segments[item.name] = item
                case Intent():
                    self.intents.append(item)
                case Fate():
                    self.fates[item.txn] = item
                case Condemn():
                    self.condemns[item.number] = item
                case Execute():
                    self.executes[item.number] = item
                case Done():
                    self.done.add(item.number)
                case Mark():
                    self.marks.append(item)
                case Ripe():
                    self.ripe.add(item.txn)
                case Slower():
                    self.slower = True
                case Locked():
                    self.locked.add(item.pack)
                case Lost():
                    self.lost.add((item.txn, item.block))
                case Roster():
                    self.rosters[item.number] = item
                case Torn():
                    self.torn.add(item.kind)
                    if item.record:
                        self.remembered[item.record.number] = item.record
                case Source():
                    self.sources.append(item)
                case SourcePack():
                    self.source_packs[item.name] = item
        for record in self.begun if self.rosters else ():
            if any(record.slot in self.revoked(number) for number in self.rosters if number <= record.cites):
                self.torn.add("condemn" if isinstance(record, Condemn) else "execute")  # nobody may take it

    # ------------------------------------------------------------ changes

    def put(self, *items: object) -> Store:
        return self.store.union(items)

    def delete(self, *items: object) -> Store:
        return self.store.difference(items)

    # ------------------------------------------------------------ collections

    @property
    def begun(self) -> list[Condemn | Execute]:
        """Their records that name something."""
        return [*self.condemns.values(), *self.executes.values()]

    def without(self, slots: Names) -> View:
        """For who does not see what these slots have written into collections/. Changes are made to all there is."""
        found = View(self.delete(*(record for record in self.begun if record.slot in slots)))
        found.store = self.store
        return found

    @property
    def highest(self) -> int:
        return max((*self.condemns, *self.executes, *self.done), default=0)

    @property
    def unfinished(self) -> int:
        """The first that has begun and is not done; 0: none. It is not done before it is decided, whoever says so."""
        return min(({*self.condemns, *self.executes} - (self.done & set(self.executes))), default=0)

    def condemned(self, since: int, *, finished: bool = True) -> Names:
        """What collections from this number on name: execute, or condemn where there is none."""
        found: set[str] = set()
        for number in {*self.condemns, *self.executes}:
            if number >= since and (finished or number not in self.done):
                found |= (self.executes.get(number) or self.condemns[number]).packs
        return frozenset(found)

    @property
    def burnt(self) -> Names:
        """Names of packs that any collection has said to delete."""
        return frozenset(pack for item in self.executes.values() for pack in item.packs)

    def let_go(self, roster: int) -> Names:
        """The same, but for collections that a revoked slot began or came to execute, as this roster has it."""
        revoked = self.revoked(roster)
        return frozenset(
            pack
            for number, item in self.executes.items()
            for pack in item.packs
            if number in self.condemns and not revoked & {item.slot, self.condemns[number].slot}
        )

    def shunned(self, before: int | None = None) -> Names:
        """Packs that any collection ever condemned, or any before this one."""
        return frozenset(pack for item in self.begun if before is None or item.number < before for pack in item.packs)

    @property
    def deleted(self) -> Names:
        """Snapshots that collections took for gone and have begun to delete, by the newest roster."""
        return self.deleted_by(self.newest_roster())

    def deleted_by(self, roster: int) -> Names:
        """The same for who knows this roster: of a collection of a revoked slot only marks say what is gone."""
        revoked = self.revoked(roster)
        begun = (item for n, item in self.condemns.items() if n in self.executes and item.slot not in revoked)
        return frozenset(txn for item in begun for txn in item.gone)

    # ------------------------------------------------------------ what is said and what counts

    def gone(
        self, ripe: Iterable[str], *, late_words: str = "void", heeds_holds: bool = True, roster: int | None = None
    ) -> Names:
        """Snapshots that are forgotten when the forgets of `ripe` count. `roster`: known; None: the newest."""
        saved = {
            mark.txn
            for mark in self.marks
            if (mark.kind == "undo" or (mark.kind == "hold" and heeds_holds))
            and (not mark.late or late_words == "count")
        }
        forgotten = {mark.txn for mark in self.marks if mark.kind == "forget"}
        deleted = self.deleted if roster is None else self.deleted_by(roster)
        return frozenset((forgotten & set(ripe)) - saved) | deleted

    @property
    def counting(self) -> Names:
        """The forgets that count now, by the storage's time and the newest policy."""
        return NONE if self.slower else frozenset(self.ripe)

    def newest_roster(self) -> int:
        return max(self.rosters, default=0)

    def revoked(self, roster: int | None = None) -> Names:
        """Slots that are revoked in this roster; None: in the newest."""
        known = self.rosters.get(self.newest_roster() if roster is None else roster)
        return known.revoked if known else NONE

    def fate_counts(self, fate: Fate, roster: int) -> bool:
        """Whether a fate counts for who knows this roster."""
        known = self.rosters.get(roster)
        if known is None or fate.slot == OWNER:
            return True
        if fate.cites > roster or fate.slot not in known.slots:
            return False
        return fate.slot not in known.revoked or fate.txn in known.accepted

    def snapshots(self, roster: int | None = None) -> dict[str, Snapshot]:
        """Committed ones whose fates count, and those that copies brought with their content.

        `roster`: for who knows that one; None: in truth, in which a roster that is cited was there.
        """
        number = roster
        if number is None:
            number = max(self.newest_roster(), *(fate.cites for fate in self.fates.values()), 0)
        found: dict[str, Snapshot] = {}
        for fate in self.fates.values():
            if self.fate_counts(fate, number):
                if fate.snapshot is not None:
                    found[fate.txn] = fate.snapshot
                for item in fate.carried:
                    if not item.gone:
                        found[item.txn] = item.snapshot
        return found


def entries_of(segments: Iterable[Segment], *, foreign: bool = False) -> frozenset[Entry]:
    """What counts of these segments: a device speaks for its own domain alone."""
    return frozenset(
        entry for item in segments for entry in item.entries if foreign or item.domain in ("", entry.domain)
    )
