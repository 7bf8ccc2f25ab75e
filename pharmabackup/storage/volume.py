"""`volume://LABEL/folder`: a disk by its label, whatever letter or folder the system gave it today."""

from __future__ import annotations

import os
from urllib.parse import unquote

from pharmabackup.errors import InvalidInput
from pharmabackup.storage import disks
from pharmabackup.storage.local import LocalStorage


def connect(url: str, *, create: bool) -> LocalStorage:
    """The folder on that disk. NotFound("volume") when no such disk is connected."""
    label, _, rest = url.partition("://")[2].partition("/")
    folders = [part for part in unquote(rest).split("/") if part]
    if not label or any(part in (".", "..") or os.path.basename(part) != part for part in folders):
        raise InvalidInput(
            f"{url} does not say which folder of which disk.",
            remedy="Write volume://LABEL/folder: the disk's label, then the folder on it.",
        )
    path = os.path.join(disks.mounted(unquote(label)), *folders)
    return LocalStorage.create(path) if create else LocalStorage(path)
