"""What a copy to a replica has to bring: which snapshots with their content, which records, which marks."""

from __future__ import annotations

from dataclasses import dataclass, field

from pharmabackup import ids
from pharmabackup.engine.history import Committed, History
from pharmabackup.errors import Error


@dataclass(slots=True)
class Outcome:
    """What came of it: snapshots of the target with the bytes that each added, and those that could not be read."""

    done: list[tuple[Committed, int]] = field(default_factory=list)
    failed: list[tuple[Committed, Error]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Plan:
    """`records`: oldest first, and whether the content comes too. `marks`: names of objects, holds first.

    `refused`: what can never count there, since its transaction was aborted there.
    """

    records: list[tuple[Committed, bool]]
    marks: list[str]
    refused: list[Committed] = field(default_factory=list)

    @property
    def whole(self) -> list[Committed]:
        return [item for item, content in self.records if content]


def plan_copy(
    here: History, there: History, chosen: set[bytes] | None, only_marks: frozenset[str] | None = None
) -> Plan:
    """`chosen`: the only snapshots whose content is wanted; None: all that are not forgotten here.

    `only_marks`: names of the only marks that come, since they were there and are lost; None: all.

    The records of those that are not wanted come all the same where others name them as what came before: a history
    with holes looks as if somebody had deleted from it. What was there and vanished comes with its content, or that
    would be given up there, too. While a mark cannot be read here, what lets go does not come: it might be a hold.
    """
    forgotten = here.forgotten()
    present = (set(there.committed) - there.absent) | there.aborted
    lacking = {who: item for who, item in here.committed.items() if who not in present}
    vanished = {ids.id_of(name) for name in there.vanished}
    wanted = {who for who in lacking if who not in forgotten and (chosen is None or who in chosen or who in vanished)}
    needed, left = set(wanted), list(wanted)
    while left:
        for head in lacking[left.pop()].snapshot.heads:
            if head.transaction in lacking and head.transaction not in needed:
                needed.add(head.transaction)
                left.append(head.transaction)
    if chosen is None:
        needed = set(lacking)
    records = [(lacking[who], who in wanted) for who in needed if who in wanted or who not in there.committed]
    records.sort(key=lambda pair: (pair[0].snapshot.time, pair[0].snapshot.sequence))
    said_there = {said.id for said in there.said}
    kinds = {"hold", "undo", "forget", "release"}
    if only_marks is None and any("marks/" in name for name in (*here.damaged, *here.vanished)):
        kinds -= {"forget", "release"}
    marks = [said for said in here.said if said.mark.kind in kinds and said.id not in said_there]
    if only_marks is not None:
        marks = [said for said in marks if ids.mark_name(said.id) in only_marks]
    marks.sort(key=lambda said: said.mark.kind != "hold")  # what keeps comes before what lets go
    refused = [here.committed[who] for who in here.committed.keys() & there.aborted if who not in forgotten]
    if chosen is not None:
        refused = [item for item in refused if item.transaction in chosen]
    return Plan(records, [ids.mark_name(said.id) for said in marks], refused)
