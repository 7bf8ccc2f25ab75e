"""The object `repository`: plain JSON, so that a person who finds the folder can read what it is."""

from __future__ import annotations

import re

import msgspec

from pharmabackup.format.wire import VERSION, malformed, newer_format

REPOSITORY_MAX = 1 << 16
ID = re.compile(r"[0-9A-Fa-f]{64}")  # bytes.fromhex would pass over white space
CAPABILITIES = ("exclusive-create", "fresh-listing", "object-lock")
FEATURES: frozenset[str] = frozenset()  # the required features that this version knows; the first format has none


class RepositoryRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What storage is, before any key: additional members are ignored, required features are not."""

    pharmabackup: int  # format version
    id: str  # SHA-256 of roster/0, hexadecimal
    required_features: list[str] = []
    capabilities: dict[str, bool] = {}
    about: str = "A sealed backup repository. Do not change, rename or delete anything in this folder."


_decoder = msgspec.json.Decoder(RepositoryRecord)  # now: two threads at once may not make one (see wire.decoder)


def encode_repository(record: RepositoryRecord) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def decode_repository(data: bytes) -> RepositoryRecord:
    """Damaged when it is not one; Unsupported when it needs what this version does not know."""
    try:
        version = msgspec.json.decode(data, type=dict[str, object])["pharmabackup"]
        if isinstance(version, int) and version > VERSION:
            raise newer_format(f"format {version}")
        record = _decoder.decode(data)
    except (msgspec.MsgspecError, KeyError, ValueError, RecursionError):
        raise malformed("repository record", "it cannot be read") from None
    if record.pharmabackup != VERSION or not ID.fullmatch(record.id):
        raise malformed("repository record", "its version or id is impossible")
    check_features(record.required_features)
    return record


def odd_members(data: bytes) -> tuple[list[str], list[str]]:
    """Members of a record, capabilities among them, that are missing and that this version does not know.

    A reader ignores both, since a later version may add some; but a changed byte in a name is no later version.
    Damaged, Unsupported as `decode_repository`.
    """
    decode_repository(data)
    raw = msgspec.json.decode(data, type=dict[str, object])
    capabilities = raw.get("capabilities")
    have = {*raw, *(capabilities if isinstance(capabilities, dict) else ())}
    known = {*RepositoryRecord.__struct_fields__, *CAPABILITIES}
    return sorted(known - have), sorted(have - known)


def check_features(features: list[str] | tuple[str, ...]) -> None:
    """Unsupported when one is required that this version does not know."""
    for feature in features:
        if feature not in FEATURES:
            raise newer_format(f"the feature {feature[:40]!r}")
