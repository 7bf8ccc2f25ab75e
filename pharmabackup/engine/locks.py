"""Locks on what snapshots rely on, set anew before they run out (docs/design/014-locks.md).

A new object is locked for one and a half periods. Half a period after all were locked last, all are again, so that at
no time anything that a snapshot relies on can be deleted within a period from then. When that was, this machine
remembers: it asks nobody, since an attacker's answer could let the locks run out.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from pharmabackup import ids
from pharmabackup.clock import now_ns
from pharmabackup.engine.listing import Listing
from pharmabackup.engine.localfiles import replace
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Error, NotFound

LOCKED_UNTIL = "locked-until"  # a file in this machine's folder of a repository: all was locked until then at least
LOCKED = ("roster", "keys", "packs", "index", "snapshots", "collections", "marks")  # and `repository`
NAMES_AT_ONCE = 1000


def renew_locks(unlocked: Unlocked, listing: Listing, *, gone: Collection[bytes]) -> dict[str, Error]:
    """Lock all that snapshots rely on anew, if it is time; what could not be locked, and why.

    `gone`: snapshots that are forgotten for good. Packs that are garbage are locked with the others: to tell them
    takes a prune's reading, and what a thief calls garbage may be none. Audit records are left as they are: no
    snapshot relies on them, and there may be tens of thousands. StorageFailed.
    """
    storage, now = unlocked.storage, now_ns()
    until = now + storage.locked_for
    if not storage.immutable or now + storage.immutable < _locked_until(unlocked.state / LOCKED_UNTIL) <= until:
        return {}
    failed: dict[str, Error] = {}
    names = relied_on(listing, gone=gone)
    for start in range(0, len(names), NAMES_AT_ONCE):
        told = storage.keep(names[start : start + NAMES_AT_ONCE], until=until)
        failed |= {name: error for name, error in told.items() if error and not isinstance(error, NotFound)}
    if not failed:
        with suppress(OSError):  # then all are locked again by the next backup
            replace(unlocked.state / LOCKED_UNTIL, str(until).encode())
    return failed


def relied_on(listing: Listing, *, gone: Collection[bytes]) -> list[str]:
    """The names of what is to be locked, as above. StorageFailed."""
    passed_over = set(map(ids.fate_name, gone))
    listed = (info.name for folder in LOCKED for info in listing(folder))
    return ["repository", *(name for name in listed if name not in passed_over)]


def _locked_until(path: Path) -> int:
    try:
        return int(path.read_bytes())
    except (OSError, ValueError):
        return 0
