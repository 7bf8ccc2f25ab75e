"""What a check's look at packs and snapshots has found so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from pharmabackup.engine.blocktable import BlockTable
from pharmabackup.events import Finding

ABSENT = -1  # the number of a block that no usable pack has


class Numbers(dict[bytes, int]):
    """Which of a table's blocks each id means to one domain, looked for once: many snapshots ask for the same."""

    def __init__(self, table: BlockTable, domain: bytes) -> None:
        self._table = table
        self._domain = domain

    def __missing__(self, block_id: bytes) -> int:
        number = self._table.find(block_id, self._domain)
        self[block_id] = ABSENT if number is None else number
        return self[block_id]


@dataclass(slots=True)
class State:
    """Which packs are damaged, and which snapshots need which packs."""

    packs_of: dict[bytes, set[int]] = field(default_factory=dict)  # by transaction
    fitting: dict[tuple[object, ...], set[int]] = field(default_factory=dict)  # the same, by what was looked through
    numbers: dict[bytes, Numbers] = field(default_factory=dict)  # by domain
    hurt: set[bytes] = field(default_factory=set)  # transactions with a finding
    missing_packs: list[bytes] = field(default_factory=list)
    missing_blocks: set[bytes] = field(default_factory=set)  # that snapshots need
    gone: set[bytes] = field(default_factory=set)  # packs that hold these, as an index says
    since: int | None = None  # the time of the first snapshot that lacks a block of which no index says where it was
    unindexed: list[bytes] = field(default_factory=list)
    replaced: bool = False  # a segment that was listed was gone: what takes its place may not have been listed
    findings: list[Finding] = field(default_factory=list)
