"""One adapter a kind of storage. See base.py for what every adapter promises."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import unquote

from pharmabackup.errors import InvalidInput, Unsupported
from pharmabackup.storage import volume
from pharmabackup.storage.base import Storage
from pharmabackup.storage.local import LocalStorage
from pharmabackup.storage.memory import MemoryStorage

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]+)://")  # two letters at least: `C:\` is a disk


def connect(
    url: str | os.PathLike[str], *, storage_options: Mapping[str, object] | None = None, create: bool = False
) -> Storage:
    """The storage at `url`: a path, `file://`, `volume://LABEL/folder` or `memory://`. `create` makes its folder.

    StorageFailed, Unsupported, NotFound("volume") when no disk with that label is connected.
    It says nothing about whether a repository is there.
    """
    place = os.fspath(url)
    if not place:
        raise InvalidInput("The storage's URL is empty.", remedy="Give a folder or a URL.")
    found = SCHEME.match(place) if isinstance(url, str) else None
    scheme = found[1].lower() if found else "file"
    if scheme not in ("file", "memory", "volume"):
        raise Unsupported(
            f"This version cannot store at {scheme}:// URLs.",
            kind="capability",
            remedy="Give a folder: a local disk, a removable one or a mounted share.",
        )
    if storage_options:
        raise InvalidInput(
            f"A {scheme} storage takes no storage_options, and was given {', '.join(sorted(storage_options))}.",
            remedy="Leave them out.",
        )
    if scheme == "memory":
        return MemoryStorage.named(place.partition("://")[2])
    if scheme == "volume":
        return volume.connect(place, create=create)
    path = _path(place) if found else place
    return LocalStorage.create(path) if create else LocalStorage(path)


def _path(url: str) -> str:
    host, _, rest = url.partition("://")[2].partition("/")
    if host in ("", "localhost"):
        return unquote(rest if os.name == "nt" else f"/{rest}")
    if os.name != "nt":
        raise InvalidInput(
            f"{url} names another computer, {host}.", remedy="Mount its share and give the folder: file:///mnt/share."
        )
    return unquote(f"//{host}/{rest}")
