"""What this machine remembers of a repository's records: those it has seen, and whose signatures it has verified."""

from __future__ import annotations

import msgspec

from pharmabackup.crypto.sealing import NotAuthentic, SealingKey
from pharmabackup.engine.localfiles import replace
from pharmabackup.engine.unlocked import Unlocked

CONTEXT = b"history cache"


class Remembered(msgspec.Struct, array_like=True):
    """A record whose signature was verified. Without `signed`: one that was seen, and has to be read again."""

    hash: bytes = b""  # SHA-256 of the stored object
    signed: bytes = b""  # an encoded Signed
    kind: int = 0


class _Cache(msgspec.Struct, array_like=True):
    roster: bytes  # the hash of the one under which they were verified
    objects: dict[str, Remembered]


def load(unlocked: Unlocked) -> dict[str, Remembered]:
    """By name; nothing when there is no cache or it cannot be read."""
    try:
        data = _key(unlocked).open((unlocked.state / "history").read_bytes(), CONTEXT)
        cache = msgspec.msgpack.decode(data, type=_Cache)
    except (OSError, NotAuthentic, msgspec.MsgspecError, ValueError):
        return {}
    if cache.roster != unlocked.roster_hash:  # another may grant less
        return {name: Remembered() for name in cache.objects}
    return cache.objects


def save(unlocked: Unlocked, objects: dict[str, Remembered]) -> None:
    cache = _Cache(unlocked.roster_hash, objects)
    try:
        replace(unlocked.state / "history", _key(unlocked).seal(msgspec.msgpack.encode(cache), CONTEXT))
    except OSError:
        return  # a full or read-only state folder: the next time everything is read again


def _key(unlocked: Unlocked) -> SealingKey:
    return SealingKey(unlocked.purpose_key("history cache"))
