"""One look at all that storage lists, for who would ask for folder after folder, where each request takes a while."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache

from pharmabackup.storage.base import ObjectInfo, Storage

TOGETHER_MAX = 5000  # objects: of more, most are nothing to who asks, such as audit records

Listing = Callable[[str], Iterable[ObjectInfo]]
"""What lists the objects below a folder of a repository, as `Storage.list` does."""


def one_listing(storage: Storage) -> Listing:
    """Lists folders as they were when it was first asked, of all at once; or each anew. It raises StorageFailed.

    It may have come to the folders in any order. A writer may rely on it, as it shuns what was ever condemned
    (docs/format.md, §20).
    """
    if storage.lanes <= 1:
        return storage.list
    together = cache(lambda: _together(storage))  # whoever asks may have to remember something first
    return lambda folder: storage.list(folder) if (found := together()) is None else found[folder]


def _together(storage: Storage) -> Mapping[str, Sequence[ObjectInfo]] | None:
    """By the first part of their names; None: they are too many."""
    found: defaultdict[str, list[ObjectInfo]] = defaultdict(list)
    for count, info in enumerate(storage.list(""), 1):
        if count > TOGETHER_MAX:
            return None
        found[info.name.partition("/")[0]].append(info)
    return found
