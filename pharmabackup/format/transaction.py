"""Intents, fates with their snapshots, collections, marks and audit records: the protocol's own words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec

from pharmabackup.format.wire import Count, Hash, Hashes, Id, Ids, Name, Nanoseconds, Record, Text, malformed
from pharmabackup.ids import DATASET_NAME

RECORD_MAX = 1 << 26
HEADS_MAX = 4096  # that a snapshot names
DatasetName = Annotated[str, msgspec.Meta(pattern=DATASET_NAME)]
Facts = Annotated[dict[str, Any], msgspec.Meta(max_length=1000)]
FACTS_DEPTH = 16  # maps and arrays inside one another, the facts themselves included


def check_facts(facts: Mapping[str, Any]) -> None:
    """Values of known types, not nested too deep. Damaged."""
    level: list[object] = [facts]
    for _ in range(FACTS_DEPTH):
        level = [item for value in level for item in _inside(value)]
        if not level:
            return
    if any(isinstance(value, dict | list) for value in level):
        raise malformed("record", "its facts are nested too deep")


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise malformed("record", "its facts have a name that is not text")
        return value.values()
    if value is not None and not isinstance(value, bool | int | float | str | bytes):
        raise malformed("record", "its facts have a value of an unknown type")
    return ()


class Intent(Record, frozen=True):
    """Which packs a transaction relies on or wrote. It pins them until the transaction is decided."""

    transaction: Id
    number: Count
    kind: Literal["write", "hold"]
    packs: Hashes
    created: Nanoseconds  # the device's clock; decides nothing


class Ref(Record, frozen=True):
    """`count` chunks of one block, from ordinal `first`."""

    block: Hash
    first: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)]
    count: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]


Refs = Annotated[tuple[Ref, ...], msgspec.Meta(max_length=1 << 20)]


class Head(Record, frozen=True):
    """The newest fate of a slot that this transaction's writer had seen."""

    slot: Id
    transaction: Id
    hash: Hash  # SHA-256 of the stored object


class FindingCount(Record, frozen=True):
    """How many findings of a code a snapshot has. Their texts name files, so they are in the manifest."""

    code: Name
    severity: Literal["info", "warning", "critical"]
    count: Count


class Snapshot(Record, frozen=True):
    """One dataset at one moment, as the device signed it. docs/format.md explains each field."""

    run: Id
    dataset: DatasetName
    tier: Annotated[int, msgspec.Meta(ge=0, le=5)]
    source: Name  # kind of source: files, sqlite ...
    domain: Id
    reason: Text | None
    time: Nanoseconds  # the storage's clock
    age: Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]  # ns between the cut and `time`, on a steady clock
    device_time: Nanoseconds
    sequence: Count  # of this slot's transactions
    heads: Annotated[tuple[Head, ...], msgspec.Meta(max_length=HEADS_MAX)]
    files: Count
    size: Count
    added: Count
    facts: Facts
    complete: bool
    findings: Annotated[tuple[FindingCount, ...], msgspec.Meta(max_length=1000)]
    chunks: Count
    table: Refs
    recipe: Refs
    manifest: Refs

    def check(self) -> None:
        check_facts(self.facts)


class Fate(Record, frozen=True):
    """What became of a transaction: committed, with its snapshot, or aborted. Whoever creates it first decides."""

    transaction: Id
    outcome: Literal["commit", "abort"]
    intent: Hash | None  # SHA-256 of the stored intent that pins what the snapshot relies on
    snapshot: Snapshot | None

    def check(self) -> None:
        if self.snapshot is not None:
            self.snapshot.check()


class Carried(Record, frozen=True):
    """A fate or mark of another replica: the object's name there, and the bytes that are stored there."""

    name: Name
    stored: bytes
    gone: bool  # of a fate: its content is not here


class Carry(Record, frozen=True):
    """What a transaction of one replica brings from another. It lies where a fate would, and decides as one."""

    transaction: Id
    intent: Hash  # SHA-256 of the stored intent that pins what the carried snapshots rely on
    items: Annotated[tuple[Carried, ...], msgspec.Meta(min_length=1, max_length=1 << 16)]


class Condemn(Record, frozen=True):
    number: Count
    packs: Hashes
    transactions: Ids  # decided ones whose intents the collector read
    snapshots: Ids  # taken for forgotten: once there is an `execute`, they are for good


class Execute(Record, frozen=True):
    number: Count
    packs: Hashes
    segments: Hashes


class Done(Record, frozen=True):
    number: Count


class Mark(Record, frozen=True):
    """A signed statement about snapshots."""

    kind: Literal["forget", "undo", "hold", "release", "verified"]
    transactions: Ids
    time: Nanoseconds
    reason: Text | None
    until: Nanoseconds | None
    about: Id | None  # the mark that this one undoes or releases, or seconds (quorum)


class Audit(Record, frozen=True):
    """One entry of a slot's audit chain. Holds no patient data."""

    number: Count
    previous: Hash | None  # SHA-256 of the stored record before it
    time: Nanoseconds
    actor: Text | None
    event: Name
    outcome: Name
    subject: Text
    reason: Text | None
    facts: Facts

    def check(self) -> None:
        check_facts(self.facts)
