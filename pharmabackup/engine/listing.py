"""One look at all that storage lists, for who would ask for folder after folder, where each request takes a while."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from pharmabackup.clock import now_ns
from pharmabackup.engine.localfiles import replace
from pharmabackup.storage.base import ObjectInfo, Storage

TOGETHER_MAX = 5000  # objects: of more, most are nothing to who asks, such as audit records
TOO_MANY = "too-many-to-list"  # a file in the machine's folder of a repository: from when there were
TOO_MANY_NS = 7 * 86_400 * 10**9  # how long that is believed: a prune may have let some go

Listing = Callable[[str], Iterable[ObjectInfo]]
"""What lists the objects below a folder of a repository, as `Storage.list` does."""


def one_listing(storage: Storage, state: Path) -> Listing:
    """Lists folders as they were when it was first asked, of all at once; or each anew. It raises StorageFailed.

    It may have come to the folders in any order. A writer may rely on it, as it shuns what was ever condemned
    (docs/format.md, §20). `state`: this machine's folder for the repository; where there were too many objects, the
    next runs do not ask for pages of them for nothing.
    """
    if storage.lanes <= 1 or _were_too_many(state):
        return storage.list
    together = cache(lambda: _together(storage, state))  # whoever asks may have to remember something first
    return lambda folder: storage.list(folder) if (found := together()) is None else found[folder]


def _together(storage: Storage, state: Path) -> Mapping[str, Sequence[ObjectInfo]] | None:
    """By the first part of their names; None: they are too many."""
    found: defaultdict[str, list[ObjectInfo]] = defaultdict(list)
    for count, info in enumerate(storage.list(""), 1):
        if count > TOGETHER_MAX:
            with suppress(OSError):  # then it is found out again
                replace(state / TOO_MANY, b"")
            return None
        found[info.name.partition("/")[0]].append(info)
    return found


def _were_too_many(state: Path) -> bool:
    try:
        return abs(now_ns() - (state / TOO_MANY).stat().st_mtime_ns) < TOO_MANY_NS
    except OSError:
        return False
