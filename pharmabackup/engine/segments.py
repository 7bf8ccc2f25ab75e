"""Index segments: what packs hold, published so that nobody has to open each pack for it."""

from __future__ import annotations

import hashlib

from pharmabackup import ids
from pharmabackup.engine.creating import create
from pharmabackup.engine.unlocked import Statement, Unlocked
from pharmabackup.errors import Damaged
from pharmabackup.format.index import PackEntry, Segment
from pharmabackup.format.wire import Kind
from pharmabackup.storage.base import UNREADABLE

CHANGED = "index"  # what a segment's error is called when its bytes are not those of its name: nobody says that


def read_segment(unlocked: Unlocked, digest: bytes, *, verified: bool = False) -> Statement[Segment]:
    """A segment whose bytes are those of its name and whose signature counts. NotFound, StorageFailed.

    `verified`: this machine has seen that the signature is its writer's. Whether he may write segments is asked anew.
    Damaged: of the kind CHANGED when its bytes are others than were written.
    """
    name = ids.index_name(digest)
    try:
        data = unlocked.storage.get(name, limit=1 << 28)
    except Damaged as error:
        if error.kind == UNREADABLE:  # that may pass: nobody may act on it
            raise
        data = b""  # larger than any segment
    if hashlib.sha256(data).digest() != digest:
        raise Damaged(
            f"An index segment is not what was written. Object: {name}.",
            kind=CHANGED,
            remedy="Run check and propose_repair: the index can be rebuilt from the packs.",
        )
    return unlocked.open(Kind.INDEX, name, data, Segment, verified=verified)


def write_segment(unlocked: Unlocked, entries: list[PackEntry]) -> bytes:
    """Publish what packs hold; the segment's digest. StorageFailed."""
    data = unlocked.seal(Kind.INDEX, "index/", Segment(tuple(entries)))
    digest = hashlib.sha256(data).digest()
    create(unlocked.storage, ids.index_name(digest), data)
    return digest
