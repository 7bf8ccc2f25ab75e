"""Index segments: the directories of packs, so that nobody has to read the packs to know which blocks they hold.

Chunks' names are not in them: only writers look names up, and they read those from the packs that are new to them.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from pharmabackup.format.pack import DIRECTORY_MAX, PACK_MAX
from pharmabackup.format.wire import Hash, Record

SEGMENT_MAX = 1 << 28
SEGMENT_PACKS_MAX = 1 << 16


class PackEntry(Record, frozen=True):
    """One pack: its name, its size, and its directory as its writer signed it, whoever publishes it again."""

    pack: Hash
    size: Annotated[int, msgspec.Meta(ge=0, le=PACK_MAX)]
    directory: Annotated[bytes, msgspec.Meta(max_length=DIRECTORY_MAX)]  # an encoded Signed


class Segment(Record, frozen=True):
    packs: Annotated[tuple[PackEntry, ...], msgspec.Meta(max_length=SEGMENT_PACKS_MAX)]
