"""What deleting has left: objects that storage locks, and older versions that it keeps (docs/design/014-locks.md).

A prune tries again to let go of what an earlier collection came to delete. Nothing else is touched: what somebody
deleted who is no collector may be all that is left of a repository.
"""

from __future__ import annotations

from collections.abc import Mapping

from pharmabackup import ids
from pharmabackup.engine.condemned import burnt_names, burnt_segments
from pharmabackup.engine.garbage import Garbage, Look
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Error

Sizes = dict[str, int]
"""Bytes that objects still take there, by name."""


def listed_leftovers(garbage: Garbage) -> Sizes:
    """Packs that a collection came to delete, and that are listed still."""
    return {ids.pack_name(pack): garbage.sizes[pack] for pack in sorted(garbage.left)}


def hidden_leftovers(unlocked: Unlocked) -> Sizes:
    """Objects that a collection deleted, and of which storage keeps older versions. Damaged, StorageFailed."""
    storage = unlocked.storage
    hidden = {info.name: info.size for folder in ("packs", "index") for info in storage.leftovers(folder)}
    if hidden:
        ours = {*map(ids.pack_name, burnt_names(unlocked)), *map(ids.index_name, burnt_segments(unlocked))}
        hidden = {name: size for name, size in hidden.items() if name in ours}
    return hidden | {info.name: info.size for info in storage.leftovers("intents")}  # no snapshot relies on those


def delete_again(unlocked: Unlocked, left: Sizes, look: Look) -> Sizes:
    """Those of the listed that are locked still. Before this look's own collection begins. StorageFailed."""
    look()
    return _locked(left, unlocked.storage.delete(list(left)) if left else {})


def clear_hidden(unlocked: Unlocked, look: Look) -> Sizes:
    """Let go of the hidden; those that are locked still. Damaged, StorageFailed.

    Only after a look that found a place for every block that a snapshot needs.
    """
    look()
    hidden = hidden_leftovers(unlocked)
    return _locked(hidden, unlocked.storage.clear(list(hidden)) if hidden else {})


def _locked(sizes: Sizes, results: Mapping[str, Error | None]) -> Sizes:
    for error in results.values():
        if error is not None and error.kind != "locked":
            raise error
    return {name: sizes[name] for name, error in results.items() if error is not None}
