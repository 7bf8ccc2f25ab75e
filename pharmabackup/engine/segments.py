"""Index segments: what packs hold, published so that nobody has to open each pack for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from pharmabackup import ids
from pharmabackup.engine.creating import create
from pharmabackup.engine.lanes import objects_in_lanes
from pharmabackup.engine.unlocked import Statement, Unlocked
from pharmabackup.errors import Damaged
from pharmabackup.format.index import PackEntry, Segment
from pharmabackup.format.wire import Kind
from pharmabackup.storage.base import UNREADABLE

SEGMENT_STORED_MAX = 1 << 28  # bytes
CHANGED = "index"  # what a segment's error is called when its bytes are not those of its name: nobody says that


@contextmanager
def read_segments(
    unlocked: Unlocked, sizes: Mapping[bytes, int], *, verified: Container[bytes] = ()
) -> Iterator[Iterator[tuple[bytes, Callable[[], Statement[Segment]]]]]:
    """Segments whose bytes are those of their names and whose signatures count, in this order.

    Each digest with a function that gives the segment. It raises NotFound, StorageFailed, and Damaged, which is of
    the kind CHANGED when its bytes are others than were written. `sizes`: by digest, as storage lists them.
    `verified`: of these this machine has seen that the signature is the writer's. Whether he may write segments is
    asked anew.
    """
    names = {ids.index_name(digest): size for digest, size in sizes.items()}
    with objects_in_lanes(unlocked.storage, names, limit=SEGMENT_STORED_MAX, sizes=names) as stored:
        yield (
            (digest, partial(read_segment, unlocked, digest, get, verified=digest in verified))
            for digest, (_, get) in zip(sizes, stored, strict=True)
        )


def read_segment(
    unlocked: Unlocked, digest: bytes, get: Callable[[], bytes] | None = None, *, verified: bool = False
) -> Statement[Segment]:
    """One of them. `get`: gives what is stored, where it is not read here."""
    name = ids.index_name(digest)
    try:
        data = unlocked.storage.get(name, limit=SEGMENT_STORED_MAX) if get is None else get()
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
