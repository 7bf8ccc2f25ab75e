"""Locks on what snapshots rely on, set anew before they run out (docs/design/014-locks.md).

A new object is locked for one and a half periods. When less than one and a quarter are left, all are locked anew, so
that at no time anything that a snapshot relies on can be deleted within a period from then, if there are backups
often enough. When that was, this machine remembers: it asks nobody, since an attacker's answer could let the locks
run out. Every version is locked: an attacker can put others before the genuine one, and hide it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby

from pharmabackup import ids
from pharmabackup.engine.condemned import let_go
from pharmabackup.engine.localfiles import replace
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Error, NotFound
from pharmabackup.storage.base import Version

LOCKED_UNTIL = "locked-until"  # a file in this machine's folder of a repository: all was locked until then at least
PREFIXES = ("repository", "roster/", "keys/", "packs/", "index/", "snapshots/", "collections/", "marks/")
AT_ONCE = 1000  # versions
OF_ONE_NAME = 100  # versions that are locked: the oldest and the newest of them


@dataclass(slots=True)
class Renewed:
    """What came of it, by names. Objects are never rewritten: who hid or replaced one is no friend."""

    failed: dict[str, Error] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)


def is_due(unlocked: Unlocked) -> bool:
    """Whether it is time to lock all anew: too little is left, or the clock was wrong when that was noted."""
    storage = unlocked.storage
    if not storage.immutable:
        return False
    now = storage.now()
    return not now + storage.immutable * 5 // 4 < _locked_until(unlocked) <= now + storage.locked_for


def renew_locks(unlocked: Unlocked, *, gone: Collection[bytes]) -> Renewed:
    """Lock anew all that snapshots rely on.

    `gone`: snapshots that are forgotten for good. Packs that are garbage are locked with the others: to tell them
    takes a prune's reading, and what a thief calls garbage may be none. Audit records are left as they are: no
    snapshot relies on them, and there may be tens of thousands. Damaged, StorageFailed.
    """
    storage, found, deleted = unlocked.storage, Renewed(), let_go(unlocked)
    until = storage.now() + storage.locked_for
    waiting: list[Version] = []

    def keep() -> None:
        for version, error in zip(waiting, storage.keep(waiting, until=until), strict=True):
            if error is not None and not isinstance(error, NotFound):
                found.failed[version.name] = error
        waiting.clear()

    for name, versions in relied_on(unlocked, gone=gone):
        there = [version for version in versions if not version.deleted]
        if not any(version.newest for version in there):
            if name in deleted:
                continue
            found.hidden.append(name)
        elif len(there) > 1:
            found.replaced.append(name)
        there.sort(key=lambda version: version.modified)
        half = OF_ONE_NAME // 2
        waiting += there if len(there) <= OF_ONE_NAME else [*there[:half], *there[-half:]]
        if len(waiting) >= AT_ONCE:
            keep()
    keep()
    if not found.failed:
        with suppress(OSError):  # then all are locked again by the next backup
            replace(unlocked.state / LOCKED_UNTIL, str(until).encode())
    return found


def relied_on(unlocked: Unlocked, *, gone: Collection[bytes]) -> Iterator[tuple[str, Sequence[Version]]]:
    """What is to be locked, as above: names, and all that is there under each. StorageFailed."""
    passed_over = set(map(ids.fate_name, gone))
    for prefix in PREFIXES:
        for name, versions in groupby(unlocked.storage.versions(prefix), lambda version: version.name):
            if name not in passed_over:
                yield name, list(versions)


def lock_all_again(unlocked: Unlocked) -> None:
    """The next backup locks all anew, whatever this machine remembers."""
    (unlocked.state / LOCKED_UNTIL).unlink(missing_ok=True)


def _locked_until(unlocked: Unlocked) -> int:
    try:
        return int((unlocked.state / LOCKED_UNTIL).read_bytes())
    except (OSError, ValueError):
        return 0
