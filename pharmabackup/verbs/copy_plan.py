"""What a copy to a replica has to bring: which snapshots with their content, which records, which marks."""

from __future__ import annotations

from dataclasses import dataclass, field

from pharmabackup import ids
from pharmabackup.engine.history import Committed, History, Said
from pharmabackup.errors import Error
from pharmabackup.format.keys import Slot
from pharmabackup.retention import LATE_NS


@dataclass(slots=True)
class Outcome:
    """What came of it: snapshots of the target with the bytes that each added, and those that could not be read."""

    done: list[tuple[Committed, int]] = field(default_factory=list)
    failed: list[tuple[Committed, Error]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Plan:
    """`records`: in the order in which they came here, and whether the content comes too. `marks`: names of objects,
    holds first.

    `refused`: what cannot count there, since its transaction was aborted there, or since another record has its name
    there: that one. `damaged`: what lies there and cannot be read, which a device does not bring again. `contested`:
    marks whose names others have there.
    """

    records: list[tuple[Committed, bool]]
    marks: list[str]
    refused: list[tuple[Committed, Committed | None]] = field(default_factory=list)
    contested: list[tuple[Said, Said]] = field(default_factory=list)
    damaged: list[Committed] = field(default_factory=list)

    @property
    def whole(self) -> list[Committed]:
        return [item for item, content in self.records if content]


def plan_copy(
    here: History,
    there: History,
    chosen: set[bytes] | None,
    only_marks: frozenset[str] | None = None,
    *,
    own: bytes | None = None,
) -> Plan:
    """`chosen`: the only snapshots whose content is wanted; None: all that are not forgotten here.

    `only_marks`: names of the only marks that come, since they were there and are lost; None: all.
    `own`: the device that copies: it brings its own snapshots, where nothing else has their names, and no marks.

    The records of those that are not wanted come all the same where others name them as what came before: a history
    with holes looks as if somebody had deleted from it. What was there and vanished comes with its content, or that
    would be given up there, too. While a mark cannot be read here, or another has its name there, what lets go does
    not come: it might be a hold.
    """
    forgotten = here.forgotten()
    ours = {who: item for who, item in here.committed.items() if own in (None, item.slot.id)}
    vanished = {ids.id_of(name) for name in there.vanished}
    others = {who: there.committed[who] for who, item in ours.items() if _is_another(item, there)}
    lost = {who for who, other in others.items() if own is None and _gives_way(other.slot, ours[who].slot)}
    present = (set(there.committed) - there.absent - lost) | there.aborted | (others.keys() - lost)
    torn = {who for who in ours if own is not None and ids.fate_name(who) in there.damaged}
    present |= torn  # who mends that is a maintainer or owner
    lacking = {who: item for who, item in ours.items() if who not in present}
    wanted = {who for who in lacking if who not in forgotten and (chosen is None or who in chosen or who in vanished)}
    needed, left = set(wanted), list(wanted)
    while left:
        for head in lacking[left.pop()].snapshot.heads:
            if head.transaction in lacking and head.transaction not in needed:
                needed.add(head.transaction)
                left.append(head.transaction)
    if chosen is None:
        needed = set(lacking)
    known = there.committed.keys() - lost
    records = [(lacking[who], who in wanted) for who in needed if who in wanted or who not in known]
    records.sort(key=lambda pair: _order(pair[0]))
    said_there = {said.id: said for said in there.said}
    hashes = {said.hash for said in there.said}
    contested = [
        (said, said_there[said.id]) for said in here.said if said.id in said_there and said.hash not in hashes
    ]
    kinds = {"hold", "undo", "forget", "release"}
    if only_marks is None and (contested or any("marks/" in name for name in (*here.damaged, *here.vanished))):
        kinds -= {"forget", "release"}
    marks = [said for said in here.said if said.mark.kind in kinds and said.id not in said_there]
    if only_marks is not None:
        marks = [said for said in marks if ids.mark_name(said.id) in only_marks]
    if own is not None:
        marks, contested = [], []
    marks.sort(key=lambda said: said.mark.kind != "hold")  # what keeps comes before what lets go
    refused: list[tuple[Committed, Committed | None]] = [
        *((ours[who], None) for who in ours.keys() & there.aborted),
        *((ours[who], other) for who, other in others.items() if who not in lost),
    ]
    asked = set(ours) - forgotten if chosen is None else chosen - forgotten
    refused = [pair for pair in refused if pair[0].transaction in asked]
    return Plan(
        records,
        list(dict.fromkeys(ids.mark_name(said.id) for said in marks)),
        refused,
        contested,
        [ours[who] for who in torn],
    )


def _order(item: Committed) -> tuple[bool, bool, int, int, int]:
    """In which records are brought, since rules go by that there: as they came here, what copies brought first, and
    what was still to come then last."""
    return item.came < item.snapshot.time - LATE_NS, item.way != "copy", item.came, *item.order


def _is_another(item: Committed, there: History) -> bool:
    """Whether another record has its name there: somebody has put it there before a copy came."""
    other = there.committed.get(item.transaction)
    return other is not None and other.hash != item.hash


def _gives_way(other: Slot, own: Slot) -> bool:
    """Whether what a copy brings counts there all the same (docs/format.md, §7.2)."""
    return other.revoked is not None and own.revoked is None
