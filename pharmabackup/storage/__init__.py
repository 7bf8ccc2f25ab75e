"""One adapter a kind of storage. See base.py for what every adapter promises."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from pharmabackup.errors import InvalidInput, Unsupported
from pharmabackup.storage import volume
from pharmabackup.storage.base import Storage
from pharmabackup.storage.local import LocalStorage
from pharmabackup.storage.memory import MemoryStorage

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]+)://")  # two letters at least: `C:\` is a disk
PASSWORD = re.compile(r"[^/]*://[^/@]*:[^/]*@")


@dataclass(frozen=True, slots=True)
class Adapter:
    """Where a scheme's adapter is, and the extra that brings its client. It is imported when it is used.

    The class has `at(url, options, *, create)`, which checks both and makes no connection.
    """

    module: str
    name: str
    extra: str


ADAPTERS = {
    "abfs": Adapter("pharmabackup.storage.azure", "AzureStorage", "azure"),
    "az": Adapter("pharmabackup.storage.azure", "AzureStorage", "azure"),
    "azure": Adapter("pharmabackup.storage.azure", "AzureStorage", "azure"),
    "gcs": Adapter("pharmabackup.storage.gcs", "GoogleStorage", "gcs"),
    "gs": Adapter("pharmabackup.storage.gcs", "GoogleStorage", "gcs"),
    "onedrive": Adapter("pharmabackup.storage.graph", "GraphStorage", "graph"),
    "s3": Adapter("pharmabackup.storage.s3", "S3Storage", "s3"),
    "sharepoint": Adapter("pharmabackup.storage.graph", "GraphStorage", "graph"),
    "sftp": Adapter("pharmabackup.storage.sftp", "SftpStorage", "sftp"),
    "smb": Adapter("pharmabackup.storage.smb", "SmbStorage", "smb"),
    "webdav": Adapter("pharmabackup.storage.webdav", "WebdavStorage", "webdav"),
    "webdavs": Adapter("pharmabackup.storage.webdav", "WebdavStorage", "webdav"),
}
OTHERS = Adapter("pharmabackup.storage.anyfs", "FsspecStorage", "fsspec")


def connect(
    url: str | os.PathLike[str], *, storage_options: Mapping[str, object] | None = None, create: bool = False
) -> Storage:
    """The storage at `url`: a path, `file://`, `volume://LABEL/folder`, `memory://`, or a URL of ADAPTERS or fsspec.

    `create` makes its folder. `storage_options` are the adapter's own. It says nothing about whether a repository is
    there, and a networked storage is first spoken to when it is used. InvalidInput, StorageFailed, Unsupported,
    NotFound("volume") when no disk with that label is connected.
    """
    place = os.fspath(url)
    if not place:
        raise InvalidInput("The storage's URL is empty.", remedy="Give a folder or a URL.")
    found = SCHEME.match(place) if isinstance(url, str) else None
    scheme = found[1].lower() if found else "file"
    if scheme not in ("file", "memory", "volume"):
        return _remote(ADAPTERS.get(scheme, OTHERS), scheme, place, storage_options or {}, create)
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


def _remote(adapter: Adapter, scheme: str, url: str, options: Mapping[str, object], create: bool) -> Storage:
    if PASSWORD.match(url):
        raise InvalidInput(
            f"The {scheme} URL holds a password, which logs and lists of processes would show.",
            remedy="Take it out of the URL, and give it in storage_options.",
        )
    try:
        module = importlib.import_module(adapter.module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pharmabackup"):
            raise
        raise Unsupported(
            f"The client for {scheme}:// URLs is not installed.",
            kind="capability",
            remedy=f'pip install "pharmabackup[{adapter.extra}]".',
        ) from error
    storage: Storage = getattr(module, adapter.name).at(url, options, create=create)
    return storage


def _path(url: str) -> str:
    host, _, rest = url.partition("://")[2].partition("/")
    if host in ("", "localhost"):
        return unquote(rest if os.name == "nt" else f"/{rest}")
    if os.name != "nt":
        raise InvalidInput(
            f"{url} names another computer, {host}.", remedy="Mount its share and give the folder: file:///mnt/share."
        )
    return unquote(f"//{host}/{rest}")
