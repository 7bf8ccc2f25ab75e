"""What a storage can do, found by trying: servers of one kind differ, and so do their versions."""

from __future__ import annotations

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor

from pharmabackup.errors import Conflict
from pharmabackup.storage.base import Capabilities, Storage

ROUNDS = 3
WRITERS = 4


def probe(storage: Storage) -> Capabilities:
    """What the adapter claims, less what does not hold. It writes a few tiny objects and deletes them.

    Meant for a new repository: it lists the whole storage. StorageFailed, also when the objects cannot be deleted.
    """
    claimed = storage.capabilities
    names = [f"probe-{secrets.token_hex(8)}" for _ in range(ROUNDS)]
    try:
        _lists(storage, names[0])  # so that a cache that may come between has something stale to tell
        exclusive = all([_one_wins(storage, name) for name in names])
        fresh = all(_lists(storage, name) for name in names)
    finally:
        results = storage.delete(names)
    for error in results.values():
        if error is not None:
            raise error
    return Capabilities(
        exclusive_create=exclusive and claimed.exclusive_create,
        fresh_listing=fresh and claimed.fresh_listing,
        object_lock=claimed.object_lock,
    )


def _one_wins(storage: Storage, name: str) -> bool:
    """Whether of several that create `name` at once, and one that comes later, exactly one succeeds."""
    start = threading.Barrier(WRITERS)

    def write(writer: int) -> bytes | None:
        data = f"{name} {writer}".encode()
        start.wait()
        try:
            storage.put_new(name, data)
        except Conflict:
            return None
        return data

    with ThreadPoolExecutor(WRITERS) as pool:
        won = [data for data in pool.map(write, range(WRITERS)) if data is not None]
    try:
        storage.put_new(name, b"late")
    except Conflict:
        return len(won) == 1 and storage.get(name, limit=1000) == won[0]
    return False


def _lists(storage: Storage, name: str) -> bool:
    return any(item.name == name for item in storage.list(""))
