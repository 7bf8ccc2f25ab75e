"""How an input is changed without losing its structure: most changed bytes of a record are no record at all."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import msgspec

from pharmabackup.format.manifest import FRAME

Mutate = Callable[[bytes], bytes]  # the fuzzer's own, which knows nothing of structure
Change = Callable[[bytes, random.Random, Mutate], bytes]

NUMBERS = (0, 1, 2, 15, 16, 255, 256, 65535, 65536, (1 << 31) - 1, 1 << 32, 1 << 62, (1 << 63) - 1, (1 << 64) - 1, -1)
EMPTY: tuple[object, ...] = (None, False, "", b"", [], {})
OTHERS = (*EMPTY, *NUMBERS, True, 0.5, float("nan"), bytes(16), bytes(32), bytes(64))
BYTES = (0, 1, 2, 32, 46, 47, 127, 128, 255)
NESTED_MAX = 24


def of_bytes(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    return mutate(data)


def after(size: int, change: Change) -> Change:
    """Leave the first bytes mostly as they are and change what follows."""

    def changed(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
        if len(data) < size or rng.random() < 0.1:
            return mutate(data)
        return data[:size] + change(data[size:], rng, mutate)

    return changed


def of_record(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    """Another value somewhere in a MessagePack value; one time in four only other bytes."""
    if rng.random() < 0.25:
        return mutate(data)
    try:
        value = msgspec.msgpack.decode(data)
        for _ in range(rng.randint(1, 3)):
            value = _changed(value, rng, mutate, 0)
        return msgspec.msgpack.encode(value)
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError):
        return mutate(data)


def of_frames(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    """A manifest with another body in one frame, whose length is right; or with frames repeated or left out."""
    frames, at = [], 0
    while at + FRAME.size <= len(data):
        end = at + 4 + FRAME.unpack_from(data, at)[0]
        if not at + FRAME.size <= end <= len(data):
            break
        frames.append(data[at:end])
        at = end
    if not frames or rng.random() < 0.25:
        return mutate(data)
    i = rng.randrange(len(frames))
    way = rng.random()
    if way < 0.1:
        frames.insert(rng.randrange(len(frames) + 1), frames[i])
    elif way < 0.2:
        del frames[i]
    else:
        _, kind, size, chunks = FRAME.unpack_from(frames[i])
        body = of_record(frames[i][FRAME.size :], rng, mutate)
        frames[i] = FRAME.pack(len(body) + FRAME.size - 4, kind, size, chunks) + body
    return b"".join(frames) + data[at:]


def of_json(data: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    """Another value somewhere in a JSON value; one time in four only other bytes."""
    if rng.random() < 0.25:
        return mutate(data)
    try:
        value = json.loads(data)
        for _ in range(rng.randint(1, 3)):
            value = _changed(value, rng, mutate, 0)
        return json.dumps(value, default=repr).encode()
    except (ValueError, RecursionError):
        return mutate(data)


def _overwritten(value: bytes, rng: random.Random) -> bytes:
    """As long as before, as ids, hashes and columns have to be."""
    at, length = rng.randrange(len(value)), rng.choice((1, 1, 1, 2, 4, 8))
    other = bytes((rng.choice((*BYTES, value[at] ^ 1)),)) * min(length, len(value) - at)
    return value[:at] + other + value[at + len(other) :]


def _changed(value: Any, rng: random.Random, mutate: Mutate, depth: int) -> Any:
    if isinstance(value, list) and value and depth < NESTED_MAX:
        return _changed_list(list(value), rng, mutate, depth)
    if isinstance(value, dict) and value and depth < NESTED_MAX and rng.random() < 0.9:
        key = rng.choice(list(value))
        return value | {key: _changed(value[key], rng, mutate, depth + 1)}
    way = rng.random()
    if way < 0.1:
        return rng.choice(OTHERS)
    if way < 0.15 or value in ([], {}):
        return rng.choice(([value], ["a"], {"a": value}))
    return _changed_leaf(value, rng, mutate)


def _changed_list(value: list[Any], rng: random.Random, mutate: Mutate, depth: int) -> list[Any]:
    i, way = rng.randrange(len(value)), rng.random()
    if way < 0.04:
        del value[i]
    elif way < 0.08:
        value.insert(i, value[rng.randrange(len(value))])
    elif way < 0.1:
        value[i] = value[rng.randrange(len(value))]
    else:
        value[i] = _changed(value[i], rng, mutate, depth + 1)
    return value


def _changed_leaf(value: Any, rng: random.Random, mutate: Mutate) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, value ^ 1 << rng.randrange(63), -value, rng.choice(NUMBERS)))
    if isinstance(value, str):
        raw = value.encode()
        return (_overwritten(raw, rng) if raw and rng.random() < 0.5 else mutate(raw)).decode("utf-8", "ignore")
    if isinstance(value, bytes) and value:
        way = rng.random()
        if way < 0.3:
            return of_record(value, rng, mutate)  # a record in a field of another
        return _overwritten(value, rng) if way < 0.75 else mutate(value)
    return mutate(value) if isinstance(value, bytes) else value
