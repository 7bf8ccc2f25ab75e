"""What a storage can do, found by trying: servers of one kind differ, and so do their versions."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pharmabackup import ids
from pharmabackup.errors import Conflict, StorageFailed, Unsupported
from pharmabackup.storage.base import Capabilities, Storage

ROUNDS = 3
WRITERS = 4
START_S = 60  # until all of them run: a machine may have no thread left for one


def probe(storage: Storage) -> Capabilities:
    """What the adapter claims, less what does not hold. It writes a few tiny objects and deletes them.

    Meant for a new repository: it lists the whole storage. StorageFailed, also when the objects cannot be deleted;
    Unsupported when it was to be immutable and is not.
    """
    try:
        can_lock = storage.can_lock()
    except StorageFailed as refused:
        if refused.kind != "storage-denied" or storage.immutable:
            raise
        can_lock = False  # nobody asked for it, and these credentials may not ask
    if storage.immutable and not can_lock:
        raise Unsupported(
            f"{storage.location} cannot lock what is stored.",
            kind="capability",
            remedy="Use a bucket or container that has locks (docs/storage.md), or leave immutable out.",
        )
    claimed = storage.capabilities
    names = [ids.probe_name(secrets.token_bytes(8)) for _ in range(ROUNDS)]
    try:
        _lists(storage, names[0])  # so that a cache that may come between has something stale to tell
        exclusive = all([_is_exclusive(storage, name) for name in names])
        fresh = all(_lists(storage, name) for name in names)
    finally:
        results = storage.delete(names)
    for error in results.values():
        if error is not None:
            raise error
    return Capabilities(
        exclusive_create=exclusive and claimed.exclusive_create,
        fresh_listing=fresh and claimed.fresh_listing,
        object_lock=can_lock,
    )


def _is_exclusive(storage: Storage, name: str) -> bool:
    contents = [f"{name} {writer}".encode() for writer in range(WRITERS)]
    contents.append(f"{name} late".encode())
    return one_wins(storage, name, contents) in contents


def one_wins(storage: Storage, name: str, contents: Sequence[bytes]) -> bytes | None:
    """What is stored of these different contents, of which all but the last are put at once, and that one later.

    None when more than one was told that it had created the object, or another's than that one's is stored. Nobody
    may have been told: an answer was lost, and the storage asked again. What is none of `contents` was torn.
    NotFound, StorageFailed.
    """
    *early, late = contents
    start = threading.Barrier(len(early))

    def write(data: bytes) -> bool:
        try:
            start.wait(START_S)
        except threading.BrokenBarrierError:
            raise StorageFailed(
                "This machine was too busy to try whether the storage creates an object exclusively.",
                remedy="Run it again when less is running.",
                retryable=True,
                location=storage.location,
            ) from None
        return _put(storage, name, data)

    with ThreadPoolExecutor(len(early)) as pool:
        won = [data for data, first in zip(early, pool.map(write, early), strict=True) if first]
    twice = _put(storage, name, late)
    stored = storage.get(name, limit=max(map(len, contents)))  # nothing: none of them was kept
    replaced = stored in contents and won not in ([], [stored])
    return None if twice or replaced else stored


def _put(storage: Storage, name: str, data: bytes) -> bool:
    try:
        storage.put_new(name, data)
    except Conflict:
        return False
    return True


def _lists(storage: Storage, name: str) -> bool:
    return any(item.name == name for item in storage.list(""))
