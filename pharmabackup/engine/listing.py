"""One look at all that storage lists, for who would ask folder after folder, where each request takes a while."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock

from pharmabackup.clock import now_ns
from pharmabackup.engine.lanes import in_lanes
from pharmabackup.engine.localfiles import replace
from pharmabackup.storage.base import ObjectInfo, Storage

TOGETHER_MAX = 5000  # objects: of more, most are nothing to who asks, such as audit records
FOLDERS = ("collections", "index", "marks", "packs", "roster", "snapshots")  # that are listed instead, side by side
TOO_MANY = "too-many-to-list"  # a file in the machine's folder of a repository: from when there were
TOO_MANY_NS = 7 * 86_400 * 10**9  # how long that is believed: a prune may have let some go

Listing = Callable[[str], Iterable[ObjectInfo]]
"""What lists the objects below a folder of a repository, as `Storage.list` does."""


def one_listing(storage: Storage, state: Path) -> Listing | None:
    """Lists folders as they were when it was first asked, all at once. None: on a local disk each is listed anew.

    It may have come to the folders in any order. A writer may rely on it, as it shuns what was ever condemned
    (docs/format.md, §20); a reader who does not find something lists anew. Any thread; it raises StorageFailed.

    `state`: this machine's folder for the repository; where there were too many objects, the next runs do not ask for
    pages of them for nothing.
    """
    if storage.lanes <= 1:
        return None
    together, asking = cache(lambda: _together(storage, state)), Lock()

    def listing(folder: str) -> Iterable[ObjectInfo]:
        with asking:  # not before it is asked for: whoever asks may have to remember something first
            return together().get(folder, ())

    return listing


def _together(storage: Storage, state: Path) -> Mapping[str, Sequence[ObjectInfo]]:
    """By the first part of their names; of too many, those that are asked for."""
    if _were_too_many(state):
        return side_by_side(storage, FOLDERS)
    found: defaultdict[str, list[ObjectInfo]] = defaultdict(list)
    for count, info in enumerate(storage.list(""), 1):
        if count > TOGETHER_MAX:
            with suppress(OSError):  # then it is found out again
                replace(state / TOO_MANY, b"")
            return side_by_side(storage, FOLDERS)
        found[info.name.partition("/")[0]].append(info)
    return found


def side_by_side(storage: Storage, folders: Sequence[str]) -> Mapping[str, Sequence[ObjectInfo]]:
    """Folders as they are listed now, in any order. StorageFailed."""
    with in_lanes(storage.lanes, lambda folder: list(storage.list(folder)), folders) as coming:
        return {folder: get() for folder, get in coming}


def _were_too_many(state: Path) -> bool:
    try:
        return abs(now_ns() - (state / TOO_MANY).stat().st_mtime_ns) < TOO_MANY_NS
    except OSError:
        return False
