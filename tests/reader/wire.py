"""Bytes into values: MessagePack, types of records, keys, seals and frames (§1, §3, §4 and §9 of docs/format.md)."""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

DIRECTORY, INDEX, INTENT, FATE, CONDEMN, EXECUTE, DONE, MARK, AUDIT, NAMES, CARRY = range(1, 12)  # §2.2
DATA, MANIFEST, RECIPE, KEYRING, WRAPPED, ROSTER = 16, 17, 18, 32, 33, 34
FILE, FOLDER, LINK, UNREAD = 0, 1, 2, 7  # §17.1
LINK_TARGET, SAME_FILE, EXTENTS, ATTRIBUTES = 1, 2, 3, 4
# §3 and §4 begin with these bytes; they are spelled in two pieces so that a search for imports finds none.
FORMAT = b"pharma" + b"backup/1"
NAMES_OF = {DATA: " data names", MANIFEST: " manifest names", RECIPE: " recipe names"}
MAX_CONTENT = 2**23 + 2**18 + 4


class Refused(Exception):
    """Something is not as the format says."""


class Newer(Refused):
    """A newer version is needed (§26)."""


def require(condition: object, why: str) -> None:
    if not condition:
        raise Refused(why)


# ---------------------------------------------------------------- MessagePack


def unpack(data: bytes) -> Any:
    value, end = _value(data, 0, 0)
    require(end == len(data), "bytes after a record")
    return value


def _take(data: bytes, at: int, size: int) -> tuple[bytes, int]:
    require(at + size <= len(data), "a record is cut off")
    return data[at : at + size], at + size


def _value(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    require(depth < 32, "a record is nested too deep")
    (tag,), at = _take(data, at, 1)
    if tag < 0x80 or tag >= 0xE0:
        return (tag if tag < 0x80 else tag - 256), at
    if tag in _CONSTANTS:
        return _CONSTANTS[tag], at
    if tag in _NUMBERS:
        raw, at = _take(data, at, struct.calcsize(_NUMBERS[tag]))
        return struct.unpack(_NUMBERS[tag], raw)[0], at
    if tag < 0xC0:
        family, size = ("map", tag & 15) if tag < 0x90 else ("array", tag & 15) if tag < 0xA0 else ("text", tag & 31)
    else:
        require(tag in _LENGTHS, "an extension type, or a byte that MessagePack does not use")
        family, width = _LENGTHS[tag]
        raw, at = _take(data, at, width)
        size = int.from_bytes(raw, "big")
    if family == "bytes":
        return _take(data, at, size)
    if family == "text":
        raw, at = _take(data, at, size)
        try:
            return raw.decode("utf-8"), at
        except UnicodeDecodeError as error:
            raise Refused("invalid UTF-8") from error
    items = []
    for _ in range(size * (2 if family == "map" else 1)):
        item, at = _value(data, at, depth + 1)
        items.append(item)
    if family == "array":
        return items, at
    require(all(type(key) is str for key in items[::2]), "a key of a map that is not text")
    return dict(zip(items[::2], items[1::2], strict=True)), at


_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = dict(zip([0xCA, 0xCB, *range(0xCC, 0xD4)], (f">{c}" for c in "fdBHIQbhiq"), strict=True))
_LENGTHS = {0xC4: ("bytes", 1), 0xC5: ("bytes", 2), 0xC6: ("bytes", 4), 0xD9: ("text", 1), 0xDA: ("text", 2)}
_LENGTHS |= {0xDB: ("text", 4), 0xDC: ("array", 2), 0xDD: ("array", 4), 0xDE: ("map", 2), 0xDF: ("map", 4)}

# ---------------------------------------------------------------- Types and records (§1)

Check = Callable[[Any], Any]


def when(test: Callable[[Any], bool], what: str) -> Check:
    def check(value: Any) -> Any:
        require(test(value), f"not {what}: {value!r:.60}")
        return value

    return check


def integer(low: int, high: int) -> Check:
    return when(lambda v: type(v) is int and low <= v <= high, f"an integer from {low} to {high}")


def binary(low: int, high: int, step: int = 1) -> Check:
    return when(lambda v: type(v) is bytes and low <= len(v) <= high and len(v) % step == 0, f"{low}-{high} bytes")


def string(low: int, high: int) -> Check:
    return when(lambda v: type(v) is str and low <= len(v) <= high, f"text of {low} to {high}")


def one_of(*choices: str) -> Check:
    return when(lambda v: type(v) is str and v in choices, "one of " + ", ".join(choices))


def maybe(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def array(check: Check, low: int, high: int) -> Check:
    whole = when(lambda v: type(v) is list and low <= len(v) <= high, f"an array of {low} to {high}")
    return lambda value: [check(item) for item in whole(value)]


def record(title: str, **fields: Check) -> Check:
    made = namedtuple(title, list(fields))  # type: ignore[misc]
    whole = when(lambda v: type(v) is list and len(v) == len(fields), f"a {title} of {len(fields)} fields")
    return lambda value: made(*(check(item) for check, item in zip(fields.values(), whole(value), strict=True)))


def _facts(value: Any, depth: int = 1) -> Any:
    if type(value) in (dict, list):
        require(depth <= 16, "facts nested too deep")
        for item in value.values() if type(value) is dict else value:
            _facts(item, depth + 1)
    return value


def facts(value: Any) -> Any:
    require(type(value) is dict and len(value) <= 1000, "facts that are not a map of at most 1,000")
    return _facts(value)


hash_, id_, key_, public_key = binary(32, 32), binary(16, 16), binary(32, 32), binary(1216, 1216)
hashes, ids, count, when_ = (
    binary(0, 2**26, 32),
    binary(0, 2**26, 16),
    integer(0, 2**63 - 1),
    integer(-(2**62), 2**62),
)
name_, text_, boolean = string(1, 200), string(0, 4000), when(lambda v: type(v) is bool, "a bool")
role_ = one_of("device", "restorer", "auditor", "maintainer", "owner")
Signed = record(
    "Signed", content=binary(0, 2**28), slot=id_, roster=count, roster_hash=hash_, signature=binary(64, 64)
)
SignedRoster = record("SignedRoster", content=binary(0, 2**24), slot=id_, signature=binary(64, 64))
Revoked = record("Revoked", time=when_, reason=text_, accepted=hashes)
Argon2id = record("Argon2id", salt=binary(16, 64), memory_kib=integer(8, 2**18), iterations=integer(1, 10),
                  lanes=integer(1, 16))  # fmt: skip
Slot = record("Slot", id=id_, name=name_, role=role_, domain=maybe(id_),
              credential=one_of("passphrase", "recipient", "shares"), signing=key_, recipient=public_key,
              created=when_, revoked=maybe(Revoked), argon2id=maybe(Argon2id))  # fmt: skip
Domain = record("Domain", id=id_, name=name_)
Generation = record("Generation", number=count, catalogue=hash_, reader=public_key)
KeepRule = record("KeepRule", dataset=name_, last=count, within=count, hourly=count, daily=count, weekly=count,
                  monthly=count, yearly=count)  # fmt: skip
Policy = record("Policy", keep=array(KeepRule, 0, 1000), forget_delay=count, forget_quorum=integer(1, 16), lock=count,
                reason_required=boolean)  # fmt: skip
Chunker = record("ContentChunker", minimum=integer(64, 2**20), average=integer(256, 2**22),
                 maximum=integer(1024, 2**22), normalization=integer(0, 3))  # fmt: skip
Roster = record("Roster", number=count, previous=maybe(hash_), created=when_, features=array(name_, 0, 100),
                slots=array(Slot, 0, 4096), domains=array(Domain, 0, 4096), generations=array(Generation, 1, 1000),
                recovery=maybe(public_key), policy=Policy, chunker=Chunker, pack_floor=count)  # fmt: skip
SealedKeyring = record("SealedKeyring", slot=id_, number=count, key_id=hash_, sealed=binary(0, 2**20))
Keyring = record("Keyring", repository=hash_, slot=id_, role=role_, signing=maybe(key_),
                 naming=array(record("NamingKey", domain=id_, key=key_), 0, 4096),
                 catalogue=array(record("CatalogueKey", generation=count, key=key_), 1, 1000), block_names=key_,
                 readers=array(record("ReaderKey", generation=count, key=binary(96, 96)), 0, 1000))  # fmt: skip
Wrap = record("Wrap", recipient=hash_, sealed=binary(0, 4096))
WrappedKey = record("WrappedKey", key_id=hash_, wraps=array(Wrap, 0, 16))
Block = record("Block", id=hash_, kind=integer(16, 18), key=integer(0, 4095), offset=integer(0, 2**28 - 1),
               length=integer(0, 2**23 + 2**18), count=integer(1, 65536))  # fmt: skip
Directory = record("Directory", domain=id_, region=hash_, region_size=count, names_size=integer(0, 2**26),
                   keys=array(WrappedKey, 0, 4096), blocks=array(Block, 0, 65536))  # fmt: skip
PackEntry = record("PackEntry", pack=hash_, size=integer(0, 2**28), directory=binary(0, 2**26))
Segment = record("Segment", packs=array(PackEntry, 0, 65536))
Intent = record("Intent", transaction=id_, number=count, kind=one_of("write", "hold"), packs=hashes, created=when_)
Ref = record("Ref", block=hash_, first=integer(0, 65535), count=integer(1, 65536))
Refs = array(Ref, 0, 2**20)
Head = record("Head", slot=id_, transaction=id_, hash=hash_)
Severity = one_of("info", "warning", "critical")
FindingCount = record("FindingCount", code=name_, severity=Severity, count=count)
Snapshot = record("Snapshot", run=id_, dataset=name_, tier=integer(0, 5), source=name_, domain=id_,
                  reason=maybe(text_), time=when_, age=integer(0, 2**62 - 1), device_time=when_, sequence=count,
                  heads=array(Head, 0, 4096), files=count, size=count, added=count, facts=facts, complete=boolean,
                  findings=array(FindingCount, 0, 1000), chunks=count, table=Refs, recipe=Refs,
                  manifest=Refs)  # fmt: skip
Fate = record("Fate", transaction=id_, outcome=one_of("commit", "abort"), intent=maybe(hash_),
              snapshot=maybe(Snapshot))  # fmt: skip
Carried = record("Carried", name=name_, stored=binary(0, 2**26), gone=boolean)
Carry = record("Carry", transaction=id_, intent=hash_, items=array(Carried, 1, 65536))
Condemn = record("Condemn", number=count, packs=hashes, transactions=ids, snapshots=ids)
Execute = record("Execute", number=count, packs=hashes, segments=hashes)
Done = record("Done", number=count)
Mark = record("Mark", kind=one_of("forget", "undo", "hold", "release", "verified"), transactions=ids, time=when_,
              reason=maybe(text_), until=maybe(when_), about=maybe(id_))  # fmt: skip
Audit = record("Audit", number=count, previous=maybe(hash_), time=when_, actor=maybe(text_), event=name_,
               outcome=name_, subject=text_, reason=maybe(text_), facts=facts)  # fmt: skip
Extra = record("Extra", entry=integer(0, 65535), key=integer(0, 255), value=binary(0, 2**24))
column = binary(0, 2**26)
Folder = record("Folder", path=binary(0, 65536), names=column, kinds=column, modes=column, uids=column, gids=column,
                mtimes=column, sizes=column, chunks=column, extras=array(Extra, 0, 262144))  # fmt: skip
Finding = record("ManifestFinding", code=string(1, 100), severity=Severity, subject=binary(0, 65536), message=text_,
                 remedy=text_)  # fmt: skip
Attributes = array(lambda pair: tuple(array(binary(0, 2**24), 2, 2)(pair)), 0, 2**24)
RECORDS = {DIRECTORY: Directory, INDEX: Segment, INTENT: Intent, FATE: Fate, CONDEMN: Condemn, EXECUTE: Execute}
RECORDS |= {DONE: Done, MARK: Mark, AUDIT: Audit, CARRY: Carry}

# ---------------------------------------------------------------- Keys, sealing, frames (§3, §4, §9)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def derive(purpose: str, key: bytes, size: int = 32) -> bytes:
    return blake3(key, derive_key_context=FORMAT.decode() + purpose).digest(length=size)


def key_id(key: bytes) -> bytes:
    return derive(" key id", key)


def unseal(key: bytes, data: bytes, associated: bytes) -> bytes:
    require(len(data) >= 40, "a sealed thing is cut off")
    aes = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    doubled = int.from_bytes(aes.update(bytes(16)), "big") << 1
    k1 = (doubled & (2**128 - 1)) ^ (0x87 if doubled >> 128 else 0)
    blocks = (int.from_bytes(bytes([0, i, 0x58, 0]) + data[:12], "big") ^ k1 for i in (1, 2))
    return _open(
        aes.update(b"".join(block.to_bytes(16, "big") for block in blocks)), data[12:24], data[24:], associated
    )


def _open(key: bytes, nonce: bytes, data: bytes, associated: bytes) -> bytes:
    try:
        return AESGCM(key).decrypt(nonce, data, associated)
    except InvalidTag as error:
        raise Refused("a seal is broken") from error


def unpad(data: bytes) -> bytes:
    size = int.from_bytes(data[:4], "little")
    require(len(data) >= 4 and size <= len(data) - 4, "a padded body is cut off")
    return data[4 : 4 + size]


def unframe(data: bytes, limit: int, *, checksum: bool = False) -> bytes:
    try:
        require(data[:4] == b"\x28\xb5\x2f\xfd", "not a zstd frame")
        header = zstandard.get_frame_parameters(data)
        require(header.content_size <= limit and not header.dict_id, "a frame without content size, or too large")
        require(header.has_checksum or not checksum, "a block's frame without checksum")
        content = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=True)
    except zstandard.ZstdError as error:
        raise Refused("a damaged frame") from error
    require(len(content) == header.content_size, "a frame of another size than it says")
    return content


def header(data: bytes, kind: int) -> bytes:
    require(len(data) >= 8 and data[:4] == b"PHBK", "not an object of this format")
    if data[4] > 1:
        raise Newer("a newer version is needed")
    require(data[4] == 1 and data[5] == kind and data[6:8] == bytes(2), "a header of another kind")
    return data[8:]


class ReaderKey:
    """An X-Wing key pair of the form of §9."""

    def __init__(self, private: bytes) -> None:
        self._mlkem = MLKEM768PrivateKey.from_seed_bytes(private[:64])
        self._x25519 = X25519PrivateKey.from_private_bytes(private[64:])
        self._public_x = self._x25519.public_key().public_bytes_raw()
        self.public = self._mlkem.public_key().public_bytes_raw() + self._public_x

    def open(self, sealed: bytes, info: bytes) -> bytes:
        require(len(sealed) >= 1136, "a wrapped key is cut off")
        ct_x = sealed[1088:1120]
        try:
            ss_x = self._x25519.exchange(X25519PublicKey.from_public_bytes(ct_x))
        except ValueError as error:
            raise Refused("a wrapped key with a useless public key") from error
        shared = hashlib.sha3_256(
            self._mlkem.decapsulate(sealed[:1088]) + ss_x + ct_x + self._public_x + rb"\.//^" + b"\\"
        ).digest()
        suite = b"HPKE" + struct.pack(">HHH", 0x647A, 1, 2)

        def extract(salt: bytes, label: bytes, secret: bytes) -> bytes:
            return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + secret, "sha256")

        context = b"\0" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
        secret = extract(shared, b"secret", b"")

        def expand(label: bytes, size: int) -> bytes:
            message = struct.pack(">H", size) + b"HPKE-v1" + suite + label + context + b"\1"
            return hmac.digest(secret, message, "sha256")[:size]

        return _open(expand(b"key", 32), expand(b"base_nonce", 12), sealed[1120:], b"")
