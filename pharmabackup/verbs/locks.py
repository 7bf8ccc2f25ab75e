"""Locks as verbs tell of them: what could not be locked anew, what somebody hid, and what ends too soon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from pharmabackup.clock import from_ns, iso
from pharmabackup.engine.history import History
from pharmabackup.engine.locks import is_due, lock_all_again, relied_on, renew_locks
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Error, NotFound, StorageFailed
from pharmabackup.events import Finding

SHARE = 1000  # versions that are asked for at once
LISTING = "It takes the right to list versions (s3:ListBucketVersions), too."


def lock_findings(unlocked: Unlocked, history: Callable[[], History]) -> Iterator[Finding]:
    """Lock all anew where it is time. What goes wrong with that is told, and stops nothing."""
    storage = unlocked.storage
    yield from _not_possible(unlocked)
    if not is_due(unlocked):
        return
    try:
        renewed = renew_locks(unlocked, gone=history().gone(storage.now()))
    except StorageFailed as failed:
        message = f"No lock was renewed. {failed.message}"
        remedy = f"{failed.remedy} {LISTING} The next backup tries it again."
        yield _finding(unlocked, "lock-not-renewed", "warning", "locks", message, remedy)
        return
    if renewed.failed:
        name = min(renewed.failed)
        error = renewed.failed[name]
        message = f"Objects that could not be locked for longer: {len(renewed.failed)}. {error.message}"
        remedy = f"{error.remedy} The next backup tries it again."
        yield _finding(unlocked, "lock-not-renewed", "warning", name, message, remedy)
    for what, names in (("deleted", renewed.hidden), ("replaced", renewed.replaced)):
        if names:
            message = f"Somebody has {what} objects that are never {what}: {len(names)}, such as {min(names)}."
            remedy = (
                "Find out who, and change the storage's credentials. What was there is locked: open the repository "
                "as of a time before that (as_of), restore, and copy what is missing here."
            )
            yield _finding(unlocked, f"objects-{what}", "critical", min(names), message, remedy)


def short_locks(unlocked: Unlocked, history: History, look: Callable[[], None]) -> Iterator[Finding]:
    """What a check finds: what snapshots rely on and can be deleted too soon. StorageFailed."""
    storage = unlocked.storage
    yield from _not_possible(unlocked)
    if not storage.immutable:
        return
    now, short = storage.now(), dict[str, int]()
    versions = [
        version
        for _, own in relied_on(unlocked, gone=history.gone(now))
        for version in own
        if version.newest and not version.deleted
    ]
    for start in range(0, len(versions), SHARE):
        look()
        share = versions[start : start + SHARE]
        for version, until in zip(share, storage.kept_until(share), strict=True):
            if isinstance(until, Error):
                if not isinstance(until, NotFound):
                    raise until
            elif until < now + storage.immutable:
                short[version.name] = until
    if short:
        lock_all_again(unlocked)
        soonest = min(short, key=lambda name: (short[name], name))
        ends = f"is locked until {iso(from_ns(short[soonest]))}" if short[soonest] else "is not locked"
        message = f"Of {len(versions)} objects {len(short)} can be deleted too soon; {soonest} {ends}."
        remedy = "Back up from this machine: that locks all anew. If it is told again, look at the bucket's settings."
        yield _finding(unlocked, "lock-short", "warning", soonest, message, remedy)


def _not_possible(unlocked: Unlocked) -> Iterator[Finding]:
    """The owner's word is for places that can; of those that are of such a kind, one that cannot is told."""
    storage = unlocked.storage
    if unlocked.roster.policy.lock and storage.has_locks and not storage.immutable and not storage.read_only:
        message = "The owner wants what is stored to be locked, and this place cannot, or does not say that it can."
        remedy = "Use a bucket or container with locks, and let these credentials ask for its settings."
        yield _finding(unlocked, "lock-not-possible", "warning", "locks", message, remedy)


def _finding(
    unlocked: Unlocked, code: str, severity: Literal["warning", "critical"], subject: str, message: str, remedy: str
) -> Finding:
    return Finding(
        code=code,
        severity=severity,
        subject=subject,
        message=message,
        remedy=remedy,
        location=unlocked.storage.location,
    )
