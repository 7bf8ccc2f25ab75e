"""Statements about snapshots: hold, release, and the call back of what was to be forgotten."""

from __future__ import annotations

from collections.abc import Iterable

from pharmabackup import ids
from pharmabackup.clock import now_ns
from pharmabackup.engine.creating import lost_write
from pharmabackup.engine.grants import MARK_GRANTS
from pharmabackup.engine.history import Committed, History
from pharmabackup.engine.historycache import Remembered, remember
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Conflict, InvalidInput, NotFound
from pharmabackup.format.transaction import Mark
from pharmabackup.format.wire import Kind

WHAT = {
    "forget": "forget snapshots",
    "undo": "call snapshots back",
    "hold": "hold snapshots",
    "release": "end a hold",
}


def say(
    unlocked: Unlocked,
    kind: str,
    transactions: Iterable[bytes],
    *,
    reason: str | None = None,
    until: int | None = None,
    about: bytes | None = None,
) -> int:
    """Store a mark; its time by the storage's clock. NotPermitted, InvalidInput, StorageFailed."""
    permit(unlocked, kind)
    mark = Mark(kind, b"".join(sorted(transactions)), now_ns(), reason, until, about)  # type: ignore[arg-type]
    name = ids.mark_name(ids.new_id())
    try:
        info, digest = unlocked.put(Kind.MARK, name, mark)
    except NotFound:
        raise lost_write(unlocked.storage, name) from None
    remember(unlocked, {name: Remembered(digest)})
    return info.modified


def permit(unlocked: Unlocked, kind: str) -> None:
    """NotPermitted when this credential's role may not make such a mark."""
    if unlocked.keyring.role not in MARK_GRANTS[kind]:
        raise unlocked.not_permitted(WHAT[kind], who=MARK_GRANTS[kind])


def hold(unlocked: Unlocked, committed: Committed, *, reason: str, until: int | None) -> None:
    """NotPermitted, InvalidInput, Conflict, StorageFailed."""
    _need_reason(reason)
    if until is not None and until <= now_ns():
        raise InvalidInput("A hold cannot end in the past.", remedy="Give a later time, or none.")
    permit(unlocked, "hold")
    _present(_by_newest_rules(unlocked), committed)
    time = say(unlocked, "hold", [committed.transaction], reason=reason, until=until)
    history = _by_newest_rules(unlocked)
    if committed.transaction not in history.holds(time):
        raise _too_late()


def release(unlocked: Unlocked, committed: Committed, *, reason: str) -> None:
    """NotFound when nothing holds it; NotPermitted, InvalidInput, StorageFailed."""
    _need_reason(reason)
    permit(unlocked, "release")
    holds = load_history(unlocked).holds(now_ns()).get(committed.transaction, [])
    if not holds:
        raise NotFound("Nothing holds this snapshot.", kind="snapshot", remedy="List what is held with snapshots().")
    for said in holds:
        say(unlocked, "release", [committed.transaction], reason=reason, about=said.id)


def recall(unlocked: Unlocked, committed: Committed, *, reason: str) -> None:
    """Take back the forgets of one snapshot.

    NotFound when nobody said to forget it; NotPermitted, InvalidInput, StorageFailed.
    """
    _need_reason(reason)
    permit(unlocked, "undo")
    history = _by_newest_rules(unlocked)
    begun = {first for first, transaction in history.standing_forgets() if transaction == committed.transaction}
    if not begun:
        raise NotFound(
            "Nobody said to forget this snapshot.", kind="snapshot", remedy="There is nothing to call back."
        )
    _present(history, committed)
    for first in sorted(begun):
        say(unlocked, "undo", [committed.transaction], reason=reason, about=first)
    after = _by_newest_rules(unlocked)
    if committed.transaction in {*after.forgets(), *after.deleted}:
        raise _too_late()


def _by_newest_rules(unlocked: Unlocked) -> History:
    """Whether words come too late is judged by these, whoever set them since the repository was opened."""
    unlocked.renewed()
    return load_history(unlocked)


def _need_reason(reason: str) -> None:
    if not reason.strip():
        raise InvalidInput("There is no reason given.", remedy="Say in a few words why.")


def _present(history: History, committed: Committed) -> None:
    if committed.transaction not in history.committed or committed.transaction in history.forgotten():
        raise _too_late()


def _too_late() -> Conflict:
    return Conflict(
        "This snapshot is forgotten: it may be gone already.",
        kind="snapshot-forgotten",
        remedy="List what there is with snapshots().",
    )
