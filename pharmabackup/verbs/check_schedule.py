"""When each pack was last read whole, on this machine: a share of a check takes those that waited longest."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from pharmabackup.clock import now_ns
from pharmabackup.crypto.sealing import NotAuthentic, SealingKey
from pharmabackup.engine.localfiles import replace
from pharmabackup.engine.unlocked import Unlocked


def _key(unlocked: Unlocked) -> SealingKey:
    return SealingKey(unlocked.purpose_key("check schedule"))


def load_read_times(unlocked: Unlocked) -> dict[bytes, int]:
    """When each pack was last read whole, on this machine."""
    try:
        data = _key(unlocked).open((unlocked.state / "read").read_bytes(), b"check schedule")
        return msgspec.msgpack.decode(data, type=dict[bytes, int])
    except (OSError, NotAuthentic, msgspec.MsgspecError, ValueError):
        return {}


def save_read_times(unlocked: Unlocked, last: dict[bytes, int], read: Iterable[bytes], known: set[bytes]) -> None:
    times = {pack: moment for pack, moment in last.items() if pack in known} | dict.fromkeys(read, now_ns())
    try:
        replace(unlocked.state / "read", _key(unlocked).seal(msgspec.msgpack.encode(times), b"check schedule"))
    except OSError:
        return
