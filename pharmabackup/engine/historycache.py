"""A repository's records, read and verified once, and what this machine remembers of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

import msgspec

from pharmabackup import ids
from pharmabackup.crypto.sealing import NotAuthentic, SealingKey
from pharmabackup.engine.localfiles import replace
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.format import wire
from pharmabackup.format.keys import Slot
from pharmabackup.format.transaction import Carry, Condemn, Execute, Fate, Mark
from pharmabackup.format.wire import Kind, Signed, is_kind

CONTEXT = b"history cache"


class Remembered(msgspec.Struct, array_like=True):
    """A record whose signature was verified. Without `signed`: one that was seen, and has to be read again.

    Rosters are remembered by name and hash alone.
    """

    hash: bytes = b""  # SHA-256 of the stored object; empty: not known
    signed: bytes = b""  # an encoded Signed
    kind: int = 0


class _Cache(msgspec.Struct, array_like=True):
    roster: bytes  # the hash of the one under which they were verified
    objects: dict[str, Remembered]


def load(unlocked: Unlocked) -> dict[str, Remembered]:
    """By name; nothing when there is no cache or it cannot be read."""
    try:
        data = _key(unlocked).open((unlocked.state / "history").read_bytes(), CONTEXT)
        cache = wire.decoder(_Cache).decode(data)
    except (OSError, NotAuthentic, msgspec.MsgspecError, ValueError):
        return {}
    if cache.roster != unlocked.roster_hash:  # another may grant less
        return {name: Remembered(known.hash) for name, known in cache.objects.items()}
    return cache.objects


def state_of(unlocked: Unlocked) -> tuple[int, int, int]:
    """Another after each `save`, whichever process did it."""
    try:
        found = os.stat(unlocked.state / "history")
    except OSError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_size, found.st_ino


def save(unlocked: Unlocked, objects: dict[str, Remembered]) -> None:
    cache = _Cache(unlocked.roster_hash, objects)
    try:
        replace(unlocked.state / "history", _key(unlocked).seal(msgspec.msgpack.encode(cache), CONTEXT))
    except OSError:
        return  # a full or read-only state folder: the next time everything is read again


def remember(unlocked: Unlocked, written: Mapping[str, Remembered]) -> None:
    """Objects that this machine has written itself: should they vanish before they are read."""
    if written:
        save(unlocked, {**written, **load(unlocked)})


def remember_own(unlocked: Unlocked, written: Mapping[str, Remembered], roster: bytes) -> None:
    """Records that this machine has signed under that roster; its next run reads them again where that is free."""
    whole = unlocked.storage.lanes > 1 and unlocked.roster_hash == roster
    remember(unlocked, {name: known if whole else Remembered(known.hash) for name, known in written.items()})


def put_fate(unlocked: Unlocked, transaction: bytes, record: Fate | Carry) -> Remembered:
    """Create the record that decides a transaction; what is stored. Conflict, StorageFailed."""
    name, kind = ids.fate_name(transaction), Kind.FATE if isinstance(record, Fate) else Kind.CARRY
    signed = unlocked.sign(kind, name, record)
    return Remembered(unlocked.put_signed(name, kind, signed)[1], wire.encode(signed), kind)


def _key(unlocked: Unlocked) -> SealingKey:
    return SealingKey(unlocked.purpose_key("history cache"))


SHAPES: Mapping[str, tuple[Kind, type[Fate | Mark | Condemn | Execute]]] = {
    "snapshots": (Kind.FATE, Fate),
    "marks": (Kind.MARK, Mark),
    "collections": (Kind.CONDEMN, Condemn),
}
EXECUTE = (Kind.EXECUTE, Execute)


def verify_record(unlocked: Unlocked, name: str, data: bytes) -> Remembered:
    """What one object holds. Damaged."""
    kind, shape = shape_of(name)
    if kind == Kind.FATE and is_kind(data, Kind.CARRY):
        signed = unlocked.open(Kind.CARRY, name, data, Carry).signed
        return Remembered(hashlib.sha256(data).digest(), signed, Kind.CARRY)
    return Remembered(hashlib.sha256(data).digest(), unlocked.open(kind, name, data, shape).signed, kind)


def is_record(name: str) -> bool:
    """Whether an object of that name is one of these, and not one that a carry brings."""
    return name.partition("/")[0] in SHAPES and " " not in name


def shape_of(name: str) -> tuple[Kind, type[Fate | Mark | Condemn | Execute]]:
    """What an object of that name has to be."""
    return EXECUTE if name.endswith("/execute") else SHAPES[name.partition("/")[0]]


def recalled(
    unlocked: Unlocked, name: str, known: Remembered
) -> tuple[Fate | Mark | Condemn | Execute | Carry, Slot]:
    """A record that was verified, and its signer. Damaged.

    It is decoded once, however often a verb looks at the history: its first look holds all records anyway.
    """
    key = name, known.hash
    found = unlocked.recalled.get(key)
    if found is None:
        kind, shape = (known.kind, Carry) if known.kind == Kind.CARRY else shape_of(name)
        opened = unlocked.statement(Kind(kind), name, wire.decode(known.signed, Signed), shape, verified=True)
        found = unlocked.recalled[key] = opened.record, opened.slot
    record, slot = found
    assert isinstance(record, Fate | Mark | Condemn | Execute | Carry)
    return record, slot
