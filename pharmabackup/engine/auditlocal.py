"""What this machine keeps of audit chains: heads that it has seen, how far it has verified them, and records that
storage did not take yet."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pharmabackup.clock import now_ns
from pharmabackup.crypto.sealing import NotAuthentic, SealingKey
from pharmabackup.engine.localfiles import replace, write_durably
from pharmabackup.engine.statefolder import PLACE
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.format import wire
from pharmabackup.storage.local_os import close_locked, make_folders, try_lock

CONTEXT = b"audit"
QUEUED = re.compile(r"[0-9]{20}-[0-9a-f]{8}")  # what waits: nanoseconds since 1970, or one more than the last
HEADS = "audit-heads"
VERIFIED = "audit-verified"
PINS_MAX = 100  # of a slot; more than one only where a chain was turned back
READ_ONLY = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
BAD_MAX = 1000  # of a slot; where more records are damaged, nothing is kept, and all are read each time

T = TypeVar("T")


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """An audit record without its place in a chain."""

    time: int  # device clock, when it happened
    actor: str | None
    event: str
    outcome: str
    subject: str
    reason: str | None
    facts: dict[str, Any]


class Pin(msgspec.Struct, array_like=True, frozen=True, order=True):
    """A record that was seen: its number and the SHA-256 of the stored object."""

    number: int
    hash: bytes


Pins = dict[str, list[Pin]]  # by slot, in hexadecimal; ascending


class Verified(msgspec.Struct, array_like=True, frozen=True):
    """A chain as it was when all of it had been read here, once or in turns."""

    head: Pin
    listed: bytes  # how storage listed it up to there: see Chain.listed
    bad: list[int]  # numbers up to there that cannot be relied on: they are read, and told, each time
    turn: int  # the number at which the next share of the older records begins


def load(unlocked: Unlocked) -> Pins:
    """Nothing when there is no memory or it cannot be read."""
    return _load(unlocked, HEADS, Pins)


def remember(unlocked: Unlocked, slot: str, seen: Pin, stale: Iterable[Pin]) -> None:
    """A slot's newest. What is `stale` goes, since what is remembered now follows from it."""
    with unlocked.remembering.own:
        if (pins := _read(unlocked, HEADS, Pins)) is None:
            return
        pins[slot] = sorted({*pins.get(slot, ()), seen} - ({*stale} - {seen}))[-PINS_MAX:]
        _save(unlocked, HEADS, pins)  # if not, the next record is found by looking


def load_verified(unlocked: Unlocked) -> dict[str, Verified]:
    """By slot, in hexadecimal; nothing when there is no memory or it cannot be read."""
    return _load(unlocked, VERIFIED, dict[str, Verified])


def remember_verified(unlocked: Unlocked, slot: str, verified: Verified) -> None:
    """From now on a check reads what comes after it."""
    with unlocked.remembering.own:
        if (known := _read(unlocked, VERIFIED, dict[str, Verified])) is None:
            return
        if len(verified.bad) > BAD_MAX:
            known.pop(slot, None)
        else:
            known[slot] = verified
        _save(unlocked, VERIFIED, known)  # if not, the same is read again


def _load(unlocked: Unlocked, file: str, shape: type[dict[str, T]]) -> dict[str, T]:
    return _read(unlocked, file, shape) or {}


def _read(unlocked: Unlocked, file: str, shape: type[dict[str, T]]) -> dict[str, T] | None:
    """None where what is there cannot be read now: whoever would replace it leaves it."""
    try:
        data = _key(unlocked).open((unlocked.state / file).read_bytes(), CONTEXT)
        return wire.decoder(shape).decode(data)
    except (FileNotFoundError, NotADirectoryError, NotAuthentic, msgspec.MsgspecError, ValueError):
        return {}
    except PermissionError:  # another account's file in this one's folder: what is remembered next takes its place
        return {}
    except OSError:
        return None


def _save(unlocked: Unlocked, file: str, known: dict[str, T]) -> None:
    try:
        replace(unlocked.state / file, _key(unlocked).seal(msgspec.msgpack.encode(known), CONTEXT))
    except OSError:
        return


def enqueue(unlocked: Unlocked, entry: Entry) -> str | None:
    """Keep it here, durably, behind all others: its name there; None when that cannot be."""
    folder = unlocked.queue
    try:
        make_folders(str(folder))
        last = max((int(name.partition("-")[0]) for name in queued(unlocked)), default=0)
        name = f"{max(last + 1, now_ns()):020d}-{os.urandom(4).hex()}"
        sealed = _key(unlocked).seal(msgspec.msgpack.encode(entry), CONTEXT + name.encode())
        write_durably(folder / name, sealed)
    except OSError:
        return None
    return name


def queued(unlocked: Unlocked) -> list[str]:
    """Names, the oldest first. OSError."""
    return _names(unlocked.queue)


def _names(folder: Path) -> list[str]:
    return [name for name in _listed(folder) if QUEUED.fullmatch(name)]


def _listed(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def queued_by_others(unlocked: Unlocked) -> dict[str, int]:
    """How many records of other slots wait here for the same place: by their slots' first digits. OSError."""
    waiting = dict[str, int]()
    for found, here, count in _others(unlocked):
        if here:
            waiting[found["slot"]] = waiting.get(found["slot"], 0) + count
    return waiting


def queued_elsewhere(unlocked: Unlocked) -> dict[str, int]:
    """How many records wait on this machine for other places of this repository, by what these are called at the end.

    A disk that has another path now, or a server another name, is another place. OSError.
    """
    waiting = dict[str, int]()
    for found, here, count in _others(unlocked):
        if not here:
            place = found.string.removeprefix(found.group())
            waiting[place] = waiting.get(place, 0) + count
    return waiting


def _others(unlocked: Unlocked) -> Iterator[tuple[re.Match[str], bool, int]]:
    """This repository's queues here but the own, where something waits: what the name says, whether it is for the
    same place, and how many records. OSError."""
    own = PLACE.match(unlocked.queue.name)
    assert own is not None
    for name in _listed(unlocked.queue.parent):
        found = PLACE.match(name)
        if found is None or found["repository"] != own["repository"] or name == unlocked.queue.name:
            continue
        if count := len(_names(unlocked.queue.parent / name)):
            yield found, found["place"] == own["place"], count


@contextmanager
def delivering(unlocked: Unlocked) -> Iterator[bool | None]:
    """Whether this process may deliver what is queued; it alone does.

    None where nothing can be taken out of the queue: it would be delivered again and again. OSError.
    """
    folder = unlocked.queue
    try:
        file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        yield None
        return
    try:
        yield _locked(file) if os.access(folder, os.W_OK) else None
    finally:
        close_locked(file)


def _locked(file: int) -> bool:
    try:
        return try_lock(file)
    except OSError:
        return True  # without locks two may deliver at once


def waiting(unlocked: Unlocked, name: str) -> Entry | None:
    """None when it is gone, or not what was written."""
    for key in (_key(unlocked), SealingKey(unlocked.spare_key("audit"))):
        with suppress(OSError, NotAuthentic, msgspec.MsgspecError, ValueError):
            data = (unlocked.queue / name).read_bytes()
            return wire.decoder(Entry).decode(key.open(data, CONTEXT + name.encode()))
    return None


def delivered(unlocked: Unlocked, name: str) -> None:
    """It is in the chain. OSError."""
    (unlocked.queue / name).unlink(missing_ok=True)


def _key(unlocked: Unlocked) -> SealingKey:
    return SealingKey(unlocked.purpose_key("audit"))
