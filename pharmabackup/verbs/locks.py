"""Locks as verbs tell of them: those that could not be set anew, and those that end too soon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from pharmabackup.clock import from_ns, iso, now_ns
from pharmabackup.engine.history import History
from pharmabackup.engine.listing import Listing
from pharmabackup.engine.locks import relied_on, renew_locks
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Error, NotFound, StorageFailed
from pharmabackup.events import Finding


def lock_findings(unlocked: Unlocked, history: History, listing: Listing) -> Iterator[Finding]:
    """Set the locks anew where it is time. What goes wrong with that is told, and stops nothing."""
    try:
        failed: dict[str, Error] = renew_locks(unlocked, listing, gone=history.gone(now_ns()))
    except StorageFailed as error:
        failed = {"repository": error}
    if failed:
        name = min(failed)
        yield Finding(
            code="lock-not-renewed",
            severity="warning",
            subject=name,
            message=f"{len(failed)} objects could not be locked against deletion for longer. {failed[name].message}",
            remedy=f"{failed[name].remedy} The next backup tries it again.".lstrip(),
            location=unlocked.storage.location,
        )


def short_locks(unlocked: Unlocked, history: History, look: Callable[[], None]) -> Iterator[Finding]:
    """What a check finds: objects that snapshots rely on and that can be deleted too soon. StorageFailed."""
    storage, now = unlocked.storage, now_ns()
    if not storage.immutable:
        return
    short: dict[str, int] = {}

    def until(name: str) -> int | None:
        try:
            return storage.kept_until(name)
        except NotFound:
            return None  # a collection has deleted it, or the check tells

    names = relied_on(storage.list, gone=history.gone(now))
    with ThreadPoolExecutor(storage.lanes, "pharmabackup-locks") as pool:
        for name, kept in zip(names, pool.map(until, names), strict=True):
            look()
            if kept is not None and kept < now + storage.immutable:
                short[name] = kept
    if short:
        soonest = min(short, key=lambda name: (short[name], name))
        first = "is not locked at all" if not short[soonest] else f"only until {iso(from_ns(short[soonest]))}"
        yield Finding(
            code="lock-short",
            severity="warning",
            subject=soonest,
            message=f"{len(short)} of {len(names)} objects can be deleted too soon; {soonest} {first}.",
            remedy="Back up: that locks them anew. If it is told again after that, look at the bucket's settings.",
            location=storage.location,
        )
