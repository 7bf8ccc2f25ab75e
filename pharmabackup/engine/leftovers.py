"""What deleting has left: objects that storage locks, and versions that it keeps (docs/design/014-locks.md).

A prune tries again to let go of what an earlier collection came to delete. Nothing else is touched: what somebody
deleted who is no collector may be all that is left of a repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from pharmabackup import ids
from pharmabackup.engine.condemned import let_go
from pharmabackup.engine.garbage import Garbage, Look
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Error
from pharmabackup.storage.base import Version

Sizes = dict[str, int]
"""Bytes that objects still take there, by name."""


def listed_leftovers(garbage: Garbage) -> Sizes:
    """Packs that a collection came to delete, and that are listed still."""
    return {ids.pack_name(pack): garbage.sizes[pack] for pack in sorted(garbage.left)}


def hidden_leftovers(unlocked: Unlocked) -> Sizes:
    """Objects that a collection deleted, and of which storage keeps versions. Damaged, StorageFailed."""
    return {name: sum(version.size for version in own) for name, own in _hidden(unlocked).items()}


def delete_again(unlocked: Unlocked, left: Sizes, look: Look) -> Sizes:
    """Those of the listed that are locked still. StorageFailed."""
    if not left:
        return {}
    look()
    results = unlocked.storage.delete(list(left))
    return {name: left[name] for name, error in results.items() if not _is_gone(error)}


def clear_hidden(unlocked: Unlocked) -> Sizes:
    """Let go of versions that were deleted a whole period ago; what is left. Damaged, StorageFailed.

    Only after a look that found a place for every block that a snapshot needs, by the newest list of keys. Within
    the period a reading as of a time before the deletion has to find them, as it finds all else.
    """
    storage = unlocked.storage
    hidden = _hidden(unlocked)
    before = storage.now() - storage.immutable
    going = {name: own for name, own in hidden.items() if max(version.modified for version in own) <= before}
    # What says that an object is deleted goes last: without it the version before would be there again.
    for deleted in (False, True):
        versions = [version for own in going.values() for version in own if version.deleted == deleted]
        for version, error in zip(versions, storage.clear(versions) if versions else (), strict=True):
            if not _is_gone(error):
                going.pop(version.name, None)
    return {name: sum(version.size for version in own) for name, own in hidden.items() if name not in going}


def _hidden(unlocked: Unlocked) -> Mapping[str, list[Version]]:
    """Versions of what a collection deleted and nobody has put there since. None where nothing is locked: whoever
    keeps versions there has said elsewhere for how long.
    """
    if not unlocked.storage.immutable:
        return {}
    found: dict[str, list[Version]] = {}
    deleted = let_go(unlocked)
    for folder in ("packs/", "index/"):
        for name, versions in groupby(unlocked.storage.versions(folder), lambda version: version.name):
            own = list(versions)
            if name in deleted and not any(version.newest and not version.deleted for version in own):
                found[name] = own
    return found


def _is_gone(error: Error | None) -> bool:
    if error is not None and error.kind != "locked":
        raise error
    return error is None
