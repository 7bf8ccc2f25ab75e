"""Which blocks a snapshot relies on: its own recipe's, table's and manifest's, and those of its content."""

from __future__ import annotations

from pharmabackup.engine.reading import SnapshotReader


def relied_blocks(reader: SnapshotReader) -> set[bytes]:
    """Ids of blocks. The catalogue key is enough. Damaged."""
    record = reader.snapshot
    runs, by_slot = reader.recipe()
    found = {ref.block for refs in (record.table, record.recipe, record.manifest) for ref in refs}
    return found.union(by_slot[slot] for slot in set(runs.block))
