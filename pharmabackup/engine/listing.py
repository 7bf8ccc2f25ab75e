"""One look at all that storage lists, for who would ask for folder after folder, where each request takes a while."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from pharmabackup.storage.base import ObjectInfo, Storage

TOGETHER_MAX = 5000  # objects: of more, most are nothing to who asks, such as audit records

Listing = Callable[[str], Iterable[ObjectInfo]]
"""What lists the objects below a folder of a repository, as `Storage.list` does."""


def one_listing(storage: Storage) -> Listing:
    """Lists folders as they were when this was called, of all at once; or each anew. StorageFailed.

    It may have come to the folders in any order. A writer may rely on it, as it shuns what was ever condemned
    (docs/format.md, §20).
    """
    if storage.lanes <= 1:
        return storage.list
    found: defaultdict[str, list[ObjectInfo]] = defaultdict(list)
    for count, info in enumerate(storage.list(""), 1):
        if count > TOGETHER_MAX:
            return storage.list
        found[info.name.partition("/")[0]].append(info)
    return lambda folder: found[folder]
