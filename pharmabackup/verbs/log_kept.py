"""What rules let go of an archived log, and what has to stay: all files between the oldest kept and the newest.

Rules keep the newest snapshot of an hour or a day. Of a log each holds only what was archived in the hours before it,
so that one may hold files that no other does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pharmabackup.engine.history import Committed
from pharmabackup.sources.postgresql_wal import PostgreSQLWAL
from pharmabackup.sources.wal_names import Run, covers


def needed(newest: Sequence[Committed], kept: Mapping[bytes, str]) -> dict[bytes, str]:
    """Those of one dataset and device, newest first, that are not `kept` and hold what those beside them lack."""
    found: dict[bytes, str] = {}
    later: Committed | None = None
    between: list[Committed] = []
    for item in newest:
        if item.snapshot.source != PostgreSQLWAL.kind:
            continue
        if item.transaction not in kept:
            between.append(item)
            continue
        for one in between:
            if later is not None and not _holds((later, item), one):
                found[one.transaction] = "log"
                later = one
        later, between = item, []
    return found  # what is older than all that is kept may go


def _holds(those: Sequence[Committed], one: Committed) -> bool:
    facts = one.snapshot.facts
    same = [other.snapshot.facts for other in those if other.snapshot.facts.get("system") == facts.get("system")]
    others = {name for other in same for name in _names(other.get("others"))}
    size = int(str(facts.get("segment_size") or 0)) or 16 << 20
    return _names(facts.get("others")) <= others and covers(
        [run for other in same for run in _runs(other.get("runs"))], _runs(facts.get("runs")), size
    )


def _names(value: object) -> set[str]:
    return set(map(str, value)) if isinstance(value, list | tuple) else set()


def _runs(value: object) -> list[Run]:
    return [(str(first), str(last)) for first, last in value] if isinstance(value, list | tuple) else []
