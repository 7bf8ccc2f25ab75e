"""Creating objects that something else will depend on: each is read back first."""

from __future__ import annotations

from zlib import crc32

from pharmabackup.errors import Conflict, StorageFailed
from pharmabackup.storage.base import ObjectInfo, Storage


def create(storage: Storage, name: str, data: bytes) -> ObjectInfo:
    """Create an object and read it back. Conflict when it exists and is not this very one; StorageFailed.

    A storage whose answer was lost is asked again, and says of what it has just created that it exists.
    """
    try:
        info = storage.put_new(name, data)
    except Conflict:
        info = storage.info(name)
        if info.size != len(data) or storage.get(name, limit=len(data)) != data:
            raise
    read_back(storage, name, len(data), crc32(data), info)
    return info


def read_back(storage: Storage, name: str, size: int, checksum: int, said: ObjectInfo | None = None) -> None:
    """Ask storage what it holds now; nothing depends on an object before this. StorageFailed("lost-write"), NotFound.

    This finds writes that were lost or torn. What proves an object later is its name, seal or signature. `said`: its
    answer to the write, which is enough where it tells the checksum of what it has stored.
    """
    if said is None or said.checksum is None:
        whole = storage.checksum(name) == (size, checksum)
    else:
        whole = (said.size, said.checksum) == (size, checksum)
    if not whole:
        raise lost_write(storage, name)


def lost_write(storage: Storage, name: str) -> StorageFailed:
    """What is said of an object that is not there as it was written, where no collection can have deleted it."""
    return StorageFailed(
        f"The storage did not keep {name} as it was written.",
        kind="lost-write",
        retryable=True,
        location=storage.location,
        remedy="Run it again; if it happens again, check that disk or ask the storage's provider.",
    )
