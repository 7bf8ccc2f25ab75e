"""What all objects share: headers, padding, strict MessagePack, bounded sizes, what is signed over.

A record is a MessagePack array with every field in its order. Decoding refuses a missing or additional field,
a wrong type and a value outside its limits, so that what the engine sees is what docs/format.md allows.
"""

from __future__ import annotations

import struct
import sys
from array import array
from enum import IntEnum
from typing import Annotated, Any, TypeVar

import msgspec

from pharmabackup.errors import Damaged, Unsupported
from pharmabackup.mutex import Mutex

VERSION = 1
MAGIC = b"PHBK"
HEADER = struct.Struct("<4sBBH")  # magic, version, kind, zero
KEY_ID_SIZE = 32
CONTEXT = b"pharmabackup/1"

Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Id = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Hashes = Annotated[bytes, msgspec.Meta(max_length=1 << 26)]  # any number of 32-byte hashes, concatenated
Ids = Annotated[bytes, msgspec.Meta(max_length=1 << 26)]  # any number of 16-byte ids, concatenated
COUNT_MAX = (1 << 63) - 1
Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]
Nanoseconds = Annotated[int, msgspec.Meta(ge=-(1 << 62), le=1 << 62)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
TEXT_MAX = 4000  # characters
Text = Annotated[str, msgspec.Meta(max_length=TEXT_MAX)]


class Kind(IntEnum):
    """What a sealed or signed thing is. Part of what is authenticated, so none passes for another."""

    DIRECTORY = 1
    INDEX = 2
    INTENT = 3
    FATE = 4
    CONDEMN = 5
    EXECUTE = 6
    DONE = 7
    MARK = 8
    AUDIT = 9
    NAMES = 10
    CARRY = 11
    DATA_BLOCK = 16
    MANIFEST_BLOCK = 17
    RECIPE_BLOCK = 18
    KEYRING = 32
    WRAPPED_KEY = 33
    ROSTER = 34


class Record(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """Base of all records: an array with exactly these fields."""

    def check(self) -> None:
        """What no field's type says. Damaged."""


R = TypeVar("R", bound=Record)
T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()
_decoders: dict[object, msgspec.msgpack.Decoder[Any]] = {}
_making = Mutex()


def encode(record: Record) -> bytes:
    return _encoder.encode(record)


def decoder(shape: type[T]) -> msgspec.msgpack.Decoder[T]:
    """What decodes this type; made once, one at a time.

    msgspec crashes the process where two threads make some of one type at once: it uses what the other has begun.
    """
    made = _decoders.get(shape)
    if made is None:
        with _making.own:
            made = _decoders.get(shape)
            if made is None:
                made = _decoders[shape] = msgspec.msgpack.Decoder(shape)
    return made


def decode(data: bytes | memoryview, shape: type[R]) -> R:
    """The record. Damaged when the bytes are not exactly one of this shape within its limits."""
    try:
        record = decoder(shape).decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        place = str(error).rpartition(" - at ")[2] if " - at " in str(error) else "its beginning"
        raise malformed(shape.__name__, f"a field is not as it has to be, at {place}") from None
    assert isinstance(record, shape)
    record.check()
    return record


def malformed(what: str, why: str) -> Damaged:
    """The one error for bytes that do not follow the format."""
    return Damaged(
        f"A stored {what.lower()} is not valid: {why}.",
        kind="format",
        remedy="Run check to see what is affected, and restore from another location.",
    )


def or_planted(error: Damaged, name: str) -> Damaged:
    """The same error of a record that stops whoever needs it: a torn one looks like one that was never genuine."""
    remedy = (
        f"If another location has {name}, copy it from there. If none has, somebody put it here: take it away by "
        "hand, and find out who."
    )
    return Damaged(error.message, kind=error.kind, remedy=remedy)


def split(column: bytes, size: int, what: str) -> list[bytes]:
    """A column of fixed-size values as a list. Damaged when it does not divide."""
    if len(column) % size:
        raise malformed(what, "a column has a wrong length")
    return [column[i : i + size] for i in range(0, len(column), size)]


def little(column: array[int]) -> array[int]:
    """A column in the format's byte order; swapped in place where the machine's is the other."""
    if sys.byteorder == "big":
        column.byteswap()
    return column


def header(kind: Kind) -> bytes:
    return HEADER.pack(MAGIC, VERSION, kind, 0)


def is_kind(data: bytes | memoryview, kind: Kind) -> bool:
    """Whether an object says that it is of this kind; `check_header` says whether it may."""
    return len(data) >= HEADER.size and data[5] == kind


def check_header(data: bytes | memoryview, kind: Kind) -> None:
    """Damaged when this is not the start of such an object; Unsupported when it is of a newer format."""
    if len(data) < HEADER.size:
        raise malformed(kind.name, "it is too short")
    magic, version, found, zero = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise malformed(kind.name, "it does not begin as one")
    if version > VERSION:
        raise newer_format(f"format {version}")
    if version != VERSION or found != kind or zero:
        raise malformed(kind.name, "its header does not say so")


def newer_format(what: str) -> Unsupported:
    return Unsupported(
        f"This repository uses {what}, which this version of pharmabackup does not know.",
        kind="format-newer",
        remedy="Install a newer pharmabackup; nothing was changed.",
    )


def context(repository: bytes, kind: Kind, key_id: bytes) -> bytes:
    """The associated data of everything sealed: 14 + 32 + 1 + 32 bytes. Not where it lies: blocks may move."""
    return CONTEXT + repository + bytes((kind,)) + key_id


def block_context(repository: bytes, kind: Kind, key_id: bytes, block_id: bytes) -> bytes:
    """A block's associated data: as `context`, and the block's id, so that no block passes for another."""
    return context(repository, kind, key_id) + block_id


def keyring_context(repository: bytes, key_id: bytes, slot: bytes, number: int) -> bytes:
    """A keyring's associated data: as `context`, and whose and which it is, so that no old one passes for a new."""
    return context(repository, Kind.KEYRING, key_id) + slot + struct.pack("<Q", number)


def wrap_info(repository: bytes, key_id: bytes) -> bytes:
    """The HPKE `info` under which a key is wrapped."""
    return CONTEXT + repository + bytes((Kind.WRAPPED_KEY,)) + key_id


def padded_size(size: int) -> int:
    """Padmé (https://arxiv.org/abs/1806.03160 §4): the next size with few significant bits, at most 12 % more."""
    if size < 2:
        return size
    exponent = size.bit_length() - 1
    low = exponent - exponent.bit_length()
    mask = (1 << low) - 1 if low > 0 else 0
    return (size + mask) & ~mask


LENGTH = struct.Struct("<I")


def pad(body: bytes) -> bytes:
    """u32 length | body | zeros up to a Padmé size."""
    size = LENGTH.size + len(body)
    return LENGTH.pack(len(body)) + body + bytes(padded_size(size) - size)


def unpad(data: bytes, what: str) -> memoryview:
    """The body. What follows it is ignored, however long it is."""
    if len(data) < LENGTH.size:
        raise malformed(what, "it is too short")
    (length,) = LENGTH.unpack_from(data)
    if length > len(data) - LENGTH.size:
        raise malformed(what, "it is shorter than it says")
    return memoryview(data)[LENGTH.size : LENGTH.size + length]


class Signed(Record, frozen=True):
    """A record and who vouches for it. Lies inside a seal."""

    content: bytes
    slot: Id
    roster: Count  # number and hash of the newest roster that the signer had seen
    roster_hash: Hash
    signature: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


def signed_message(
    repository: bytes, kind: Kind, name: str, slot: bytes, roster: int, roster_hash: bytes, content: bytes
) -> bytes:
    """What an Ed25519 signature is over. `name` is the object's; where that is a hash, its folder."""
    raw = name.encode("ascii")
    return b"".join(
        (
            CONTEXT,
            b" signature",
            repository,
            bytes((kind,)),
            struct.pack("<H", len(raw)),
            raw,
            slot,
            struct.pack("<Q", roster),
            roster_hash,
            content,
        )
    )
