"""What rules may not let go of a PostgreSQL server's archived log: what a kept backup of its files goes on with.

Rules keep the newest snapshot of an hour or a day. Of a log each holds only what was archived in the hours before it,
so that one may hold files that no other does. All of the log has to stay from the oldest on that is kept, and from
the oldest kept backup of the server's files on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from pharmabackup.engine.history import Committed
from pharmabackup.sources.postgresql_cluster import PostgreSQLCluster
from pharmabackup.sources.postgresql_wal import PostgreSQLWAL
from pharmabackup.sources.wal_names import USUAL_SIZE, Run, covers, named, number, timeline


def needed(newest: Iterable[Committed], going: AbstractSet[bytes], damaged: AbstractSet[bytes]) -> set[bytes]:
    """Those that would be `going`, and hold what all that stay lack; whichever devices they are of."""
    logs: dict[tuple[str, str], list[Committed]] = {}
    bases: dict[str, list[Committed]] = {}  # by server, the backups of its files that stay
    for item in newest:
        system = str(item.snapshot.facts.get("system"))
        if item.snapshot.source == PostgreSQLWAL.kind:
            logs.setdefault((item.snapshot.dataset, system), []).append(item)
        elif item.snapshot.source == PostgreSQLCluster.kind and item.transaction not in going:
            bases.setdefault(system, []).append(item)
    return {one for (_, system), log in logs.items() for one in _needed(log, going, damaged, bases.get(system, ()))}


def _needed(
    newest: Sequence[Committed], going: AbstractSet[bytes], damaged: AbstractSet[bytes], bases: Sequence[Committed]
) -> set[bytes]:
    size = max((int(str(one.snapshot.facts.get("segment_size", 0))) for one in newest), default=0) or USUAL_SIZE
    stay = [one for one in newest if one.transaction not in going and one.transaction not in damaged]
    there, histories = [run for one in stay for run in _runs(one)], {name for one in stay for name in _histories(one)}
    starts = [start for base in bases for start in _starts(base, newest)]
    begins = min((number(name, size) for name in [*starts, *(first for first, _ in there)]), default=None)
    found: set[bytes] = set()
    for one in newest:
        if one.transaction not in going or one.transaction in damaged or begins is None:
            continue
        wanted = [
            (named(timeline(first), max(number(first, size), begins), size), last)
            for first, last in _runs(one)
            if number(last, size) >= begins
        ]
        if not covers(there, wanted, size) or not _histories(one) <= histories:
            found.add(one.transaction)
            there += _runs(one)
            histories |= _histories(one)
    return found


def _starts(base: Committed, newest: Sequence[Committed]) -> list[str]:
    """Where the log of a backup begins. Of a standby, which does not say: where the log was when it began."""
    if "start" in base.snapshot.facts:
        return [str(base.snapshot.facts["start"])]
    before = next((one for one in newest if one.snapshot.time <= base.snapshot.time - base.snapshot.age), None)
    return [] if before is None else [first for first, _ in _runs(before)]


def _histories(item: Committed) -> set[str]:
    value = item.snapshot.facts.get("histories")
    return set(value) if isinstance(value, Mapping) else set()


def _runs(item: Committed) -> list[Run]:
    value = item.snapshot.facts.get("runs")
    return [(str(first), str(last)) for first, last in value] if isinstance(value, list | tuple) else []
