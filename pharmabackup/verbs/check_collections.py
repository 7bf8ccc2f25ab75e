"""Collections that let go what they may not: which, and by whom.

Rules, delay and quorum bind this software alone. A maintainer can write records of his own and delete by hand; then
the records say that it was he.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import suppress

from pharmabackup import ids
from pharmabackup.engine.condemned import parse_name
from pharmabackup.engine.history import History
from pharmabackup.engine.roster import Rosters, read_rosters
from pharmabackup.engine.unlocked import Statement, Unlocked
from pharmabackup.errors import Damaged, NotFound
from pharmabackup.events import Finding
from pharmabackup.format.transaction import Condemn, Execute
from pharmabackup.format.wire import Kind, Signed, decode, split

REMEDY = "No prune does that: find out who used that credential, and revoke it. Copy what is lost from elsewhere."
NEVER = -1  # before all times
ELSE = "Else no prune does that: find out who used that credential, and revoke it. Copy what is lost from elsewhere."


def wrong_collections(unlocked: Unlocked, history: History, gone: set[bytes], since: int | None) -> Iterator[Finding]:
    """`gone`: packs that snapshots need and storage does not list. `since`: from when on snapshots are, by their own
    time, of which blocks are gone and nothing says from which pack; None: there are none. StorageFailed.

    Whether a delay was kept is not judged: a storage's times do not survive its being copied. Where they alone speak
    against somebody, it is a warning.
    """
    unasked = (history.deleted - history.absent - history.forgets().keys()) & history.committed.keys()
    if history.damaged or history.vanished:
        unasked.clear()  # what was said may be among that
    if not (unasked or gone or since is not None):
        return
    rosters = read_rosters(unlocked.storage, unlocked.repository)
    suspects: list[str] = []
    for number, (begun, executed, time) in _collections(unlocked).items():
        packs = set(split(executed.record.packs, 32, "collection"))
        if unasked:
            unsaid, called_back = _let_go(history, rosters, begun, time)
            if told := unasked & unsaid:
                message = (
                    f"It says that {len(told)} snapshots are gone, which too few have said to forget, or nobody."
                )
                yield _finding(unlocked, number, f"{_who(number, begun)} {message}")
            if told := unasked & called_back:
                yield Finding(
                    code="collection-wrong",
                    severity="warning",
                    subject=f"collections/{number}",
                    message=f"{_who(number, begun)} It says that {len(told)} snapshots are gone, which somebody had "
                    "called back before, by the times that the storage tells.",
                    remedy="If this storage was copied or its clock was set since, its times say nothing. " + ELSE,
                    location=unlocked.storage.location,
                )
        if told := gone & packs:
            message = f"{_who(number, executed)} It deleted {len(told)} packs that snapshots need."
            yield _finding(unlocked, number, message)
        if packs and since is not None and time >= since:
            suspects.append(f"{number} ({executed.slot.name})")
    if suspects:
        yield Finding(
            code="collection-wrong",
            severity="warning",
            subject="collections",
            message="What snapshots need is gone, and nothing says from which packs. Since these were made, these "
            f"collections have deleted packs: {', '.join(suspects)}.",
            remedy="If no disk has lost something, it was one of these. " + REMEDY,
            location=unlocked.storage.location,
        )


def _collections(unlocked: Unlocked) -> dict[int, tuple[Statement[Condemn], Statement[Execute], int]]:
    """Those that came to delete, and when. What cannot be read is told elsewhere."""
    found = {}
    for info in unlocked.storage.list("collections"):
        with suppress(Damaged, NotFound):
            number, part = parse_name(info.name)
            if part == "execute":
                begun = unlocked.get(Kind.CONDEMN, ids.collection_name(number, "condemn"), Condemn)
                found[number] = begun, unlocked.get(Kind.EXECUTE, info.name, Execute), info.modified
    return dict(sorted(found.items()))


def _let_go(
    history: History, rosters: Rosters, begun: Statement[Condemn], time: int
) -> tuple[set[bytes], set[bytes]]:
    """The snapshots that a collection names as gone against the rules of the list that it cites.

    First those that too few ever said to forget; then those of which times alone say that they were called back
    before. The newest rules may be stricter. What was called back later came too late.
    """
    policy = rosters.policies[decode(begun.signed, Signed).roster]
    named = set(split(begun.record.snapshots, ids.ID_SIZE, "collection"))

    def forgotten(until: int) -> set[bytes]:
        said = [item for item in history.said if item.mark.kind != "undo" or item.time <= until]
        by_then = dataclasses.replace(
            history, said=said, quorum=policy.forget_quorum, delay=policy.forget_delay * 10**9
        )
        return named & by_then.forgets().keys()

    ever = forgotten(NEVER)
    return named - ever, ever - forgotten(time)


def _who(number: int, signed: Statement[Condemn] | Statement[Execute]) -> str:
    return f"Collection {number} was signed by {signed.slot.name!r}."


def _finding(unlocked: Unlocked, number: int, message: str) -> Finding:
    return Finding(
        code="collection-wrong",
        severity="critical",
        subject=f"collections/{number}",
        message=message,
        remedy=REMEDY,
        location=unlocked.storage.location,
    )
