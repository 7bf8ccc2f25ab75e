"""Every record: round trips, every limit just inside and just outside, every field's type and presence."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
import pytest
from msgspec.structs import replace

from pharmabackup.errors import Damaged, Error, Unsupported
from pharmabackup.format import keys, pack, wire
from pharmabackup.format.repository import (
    CAPABILITIES,
    REPOSITORY_MAX,
    RepositoryRecord,
    check_features,
    decode_repository,
    encode_repository,
    odd_members,
)
from pharmabackup.format.wire import Record
from tests.format import samples as s


def again(record: Record) -> Record:
    return wire.decode(wire.encode(record), type(record))


@pytest.mark.parametrize("record", s.TOP + s.PARTS, ids=s.label)
def test_what_is_encoded_is_decoded(record: Record) -> None:
    assert again(record) == record


@pytest.mark.parametrize("record", s.TOP + s.PARTS, ids=s.label)
def test_fields_are_exactly_as_many_and_nothing_follows(record: Record) -> None:
    fields = msgspec.msgpack.decode(wire.encode(record))
    assert isinstance(fields, list)
    for wrong in (fields[:-1], [*fields, None], [], {"a": 1}, None, b"", fields[0]):
        with pytest.raises(Damaged):
            wire.decode(msgspec.msgpack.encode(wrong), type(record))
    for tail in (b"\0", b"\xc0", wire.encode(record)):
        with pytest.raises(Damaged):
            wire.decode(wire.encode(record) + tail, type(record))


@pytest.mark.parametrize("record", s.TOP + s.PARTS, ids=s.label)
def test_every_field_has_its_type(record: Record) -> None:
    fields = msgspec.msgpack.decode(wire.encode(record))
    for i, value in enumerate(fields):
        wrong: object = "x" if isinstance(value, bytes) else b"x" * 31
        for spoilt in (wrong, 1.5, [[[]]]):
            with pytest.raises(Damaged):
                wire.decode(msgspec.msgpack.encode([*fields[:i], spoilt, *fields[i + 1 :]]), type(record))


@pytest.mark.parametrize("record", s.TOP + s.PARTS, ids=s.label)
def test_a_memoryview_is_read_like_bytes(record: Record) -> None:
    assert wire.decode(memoryview(wire.encode(record)), type(record)) == record


NANOSECONDS = ((-(1 << 62), 1 << 62), (-(1 << 62) - 1, (1 << 62) + 1))
COUNT = ((0, (1 << 63) - 1), (-1, 1 << 63))
NAME = (("a", "ä" * 200), ("", "a" * 201))
TEXT = (("", "ü" * 4000), ("a" * 4001,))


Values = tuple[tuple[object, ...], tuple[object, ...]]  # inside, outside


def of_size(*sizes: int) -> Callable[[], Values]:
    """Bytes of these sizes, and around them; made when they are needed, since some are large."""
    low, high = min(sizes), max(sizes)
    return lambda: ((bytes(low), bytes(high)), ((bytes(low - 1),) if low else ()) + (bytes(high + 1),))


def at_most(item: Record, number: int, least: int = 0) -> Callable[[], Values]:
    """Arrays with as many items, and around that."""

    def items(count: int) -> tuple[Record, ...]:
        if not hasattr(item, "generation"):  # of which there is one key each
            return (item,) * count
        return tuple(replace(item, generation=generation) for generation in range(count))

    few = (items(least - 1),) if least else ()
    return lambda: ((items(least), items(number)), (*few, items(number + 1)))


ID, HASH, KEY, PUBLIC = of_size(16), of_size(32), of_size(32), of_size(1216)
MANY = of_size(0, 1 << 26)
LIMITS = [
    *((s.REVOKED, "time", NANOSECONDS), (s.REVOKED, "reason", TEXT), (s.REVOKED, "accepted", MANY)),
    *((s.SLOT, "id", ID), (s.SLOT, "name", NAME), (s.SLOT, "domain", ID), (s.SLOT, "signing", KEY)),
    (s.SLOT, "role", (("device", "restorer", "auditor", "maintainer", "owner"), ("", "Owner", "admin"))),
    (s.SLOT, "credential", (("passphrase", "recipient", "shares"), ("key", ""))),
    *((s.SLOT, "recipient", PUBLIC), (s.SLOT, "created", NANOSECONDS)),
    *((s.DOMAIN, "id", ID), (s.DOMAIN, "name", NAME)),
    *((s.GENERATION, "number", COUNT), (s.GENERATION, "catalogue", HASH), (s.GENERATION, "reader", PUBLIC)),
    *((s.KEEP, "dataset", NAME), (s.KEEP, "within", COUNT), (s.KEEP, "yearly", COUNT)),
    *((s.POLICY, "keep", at_most(s.KEEP, 1000)), (s.POLICY, "forget_quorum", ((1, 16), (0, 17)))),
    *((s.POLICY, "forget_delay", COUNT), (s.POLICY, "lock", COUNT), (s.POLICY, "reason_required", ((True,), (1,)))),
    (s.CHUNKER, "minimum", ((64, 1 << 20), (63, (1 << 20) + 1))),
    (s.CHUNKER, "average", ((256, 1 << 22), (255, (1 << 22) + 1))),
    (s.CHUNKER, "maximum", ((1024, 1 << 22), (1023, (1 << 22) + 1))),
    (s.CHUNKER, "normalization", ((0, 3), (-1, 4))),
    *((s.ROSTER, "number", COUNT), (s.ROSTER, "previous", HASH), (s.ROSTER, "features", at_most("f", 100))),
    *((s.ROSTER, "slots", at_most(s.SLOT, 4096)), (s.ROSTER, "domains", at_most(s.DOMAIN, 4096))),
    *((s.ROSTER, "generations", at_most(s.GENERATION, 1000, 1)), (s.ROSTER, "recovery", PUBLIC)),
    (s.ROSTER, "pack_floor", COUNT),
    *((s.SIGNED_ROSTER, "content", of_size(0, 1 << 24)), (s.SIGNED_ROSTER, "signature", of_size(64))),
    *((s.ARGON, "salt", of_size(16, 64)), (s.ARGON, "memory_kib", ((8, 1 << 18), (7, (1 << 18) + 1)))),
    *((s.ARGON, "iterations", ((1, 10), (0, 11))), (s.ARGON, "lanes", ((1, 16), (0, 17)))),
    *((s.SEALED_KEYRING, "slot", ID), (s.SEALED_KEYRING, "sealed", of_size(0, 1 << 20))),
    *((s.NAMING, "domain", ID), (s.NAMING, "key", KEY), (s.CATALOGUE, "key", KEY), (s.READER, "key", of_size(96))),
    *((s.KEYRING, "repository", HASH), (s.KEYRING, "slot", ID), (s.KEYRING, "signing", KEY)),
    *((s.KEYRING, "role", (("auditor",), ("x",))), (s.KEYRING, "naming", at_most(s.NAMING, 4096))),
    *((s.KEYRING, "catalogue", at_most(s.CATALOGUE, 1000, 1)), (s.KEYRING, "block_names", KEY)),
    (s.KEYRING, "readers", at_most(s.READER, 1000)),
    *((s.WRAP, "recipient", HASH), (s.WRAP, "sealed", of_size(0, 4096))),
    *((s.WRAPPED, "key_id", HASH), (s.WRAPPED, "wraps", at_most(s.WRAP, 16))),
    *((s.BLOCK, "id", HASH), (s.BLOCK, "kind", ((0, 255), (-1, 256))), (s.BLOCK, "key", ((0, 65535), (-1, 65536)))),
    *((s.BLOCK, "offset", ((0, (1 << 28) - 1), (-1, 1 << 28))),),
    (s.BLOCK, "length", ((0, (1 << 23) + (1 << 18)), (-1, (1 << 23) + (1 << 18) + 1))),
    (s.BLOCK, "count", ((1, 1 << 16), (0, -1, (1 << 16) + 1))),
    *((s.DIRECTORY, "domain", ID), (s.DIRECTORY, "region", HASH), (s.DIRECTORY, "region_size", COUNT)),
    (s.DIRECTORY, "names_size", ((0, 1 << 26), (-1, (1 << 26) + 1))),
    *((s.DIRECTORY, "keys", at_most(s.CATALOGUE_WRAP, 4096)), (s.DIRECTORY, "blocks", at_most(s.RECIPE, 65536))),
    *((s.ENTRY, "pack", HASH), (s.ENTRY, "size", ((0, 1 << 28), (-1, (1 << 28) + 1)))),
    *(
        (s.ENTRY, "directory", of_size(0, 1 << 26)),
        (s.SEGMENT, "packs", at_most(replace(s.ENTRY, directory=b""), 65536)),
    ),
    *((s.SIGNED, "slot", ID), (s.SIGNED, "roster", COUNT), (s.SIGNED, "roster_hash", HASH)),
    (s.SIGNED, "signature", of_size(64)),
    *((s.INTENT, "transaction", ID), (s.INTENT, "number", COUNT), (s.INTENT, "packs", MANY)),
    (s.INTENT, "kind", (("write", "hold"), ("read", ""))),
    *(
        (s.REF, "block", HASH),
        (s.REF, "first", ((0, 65535), (-1, 65536))),
        (s.REF, "count", ((1, 65536), (0, 65537))),
    ),
    *((s.HEAD, "slot", ID), (s.HEAD, "transaction", ID), (s.HEAD, "hash", HASH)),
    *((s.FINDINGS, "code", NAME), (s.FINDINGS, "count", COUNT)),
    (s.FINDINGS, "severity", (("info", "warning", "critical"), ("error",))),
    *(
        (s.SNAPSHOT, "run", ID),
        (s.SNAPSHOT, "tier", ((0, 5), (-1, 6))),
    ),
    *((s.SNAPSHOT, "source", NAME), (s.SNAPSHOT, "domain", ID), (s.SNAPSHOT, "reason", TEXT)),
    *((s.SNAPSHOT, "time", NANOSECONDS), (s.SNAPSHOT, "age", ((0, (1 << 62) - 1), (-1, 1 << 62)))),
    *((s.SNAPSHOT, "sequence", COUNT), (s.SNAPSHOT, "heads", at_most(s.HEAD, 4096))),
    (s.SNAPSHOT, "facts", (({}, dict.fromkeys(map(str, range(1000)))), (dict.fromkeys(map(str, range(1001))),))),
    (s.SNAPSHOT, "findings", at_most(s.FINDINGS, 1000)),
    *((s.SNAPSHOT, "chunks", COUNT), (s.SNAPSHOT, "recipe", at_most(s.REF, 1 << 20))),
    *((s.FATE, "transaction", ID), (s.FATE, "outcome", (("commit", "abort"), ("done",))), (s.FATE, "intent", HASH)),
    *(
        (s.CONDEMN, "packs", MANY),
        (s.CONDEMN, "transactions", MANY),
        (s.CONDEMN, "snapshots", MANY),
        (s.EXECUTE, "segments", MANY),
    ),
    (s.DONE, "number", COUNT),
    (s.MARK, "kind", (("forget", "undo", "hold", "release", "verified"), ("delete", ""))),
    *(
        (s.MARK, "transactions", MANY),
        (s.MARK, "reason", TEXT),
        (s.MARK, "until", NANOSECONDS),
        (s.MARK, "about", ID),
    ),
    *((s.AUDIT, "previous", HASH), (s.AUDIT, "event", NAME), (s.AUDIT, "subject", TEXT), (s.AUDIT, "actor", TEXT)),
]


@pytest.mark.parametrize(("record", "field", "values"), LIMITS, ids=s.label)
def test_a_limit_is_where_the_format_has_it(
    record: Record, field: str, values: Values | Callable[[], Values]
) -> None:
    inside, outside = values() if callable(values) else values
    for value in inside:
        assert again(replace(record, **{field: value})) == replace(record, **{field: value})
    for value in outside:
        with pytest.raises(Damaged):
            again(replace(record, **{field: value}))


OPTIONAL = [
    *((s.SLOT, "domain"), (s.SLOT, "revoked"), (s.SLOT, "argon2id"), (s.ROSTER, "previous"), (s.ROSTER, "recovery")),
    *(
        (s.KEYRING, "signing"),
        (s.SNAPSHOT, "reason"),
        (s.FATE, "intent"),
    ),
    *((s.FATE, "snapshot"), (s.MARK, "reason"), (s.MARK, "until"), (s.MARK, "about"), (s.AUDIT, "previous")),
    *((s.AUDIT, "actor"), (s.AUDIT, "reason")),
]


@pytest.mark.parametrize("record", s.TOP + s.PARTS, ids=s.label)
def test_nil_is_allowed_exactly_where_the_format_says_so(record: Record) -> None:
    optional = {field for owner, field in OPTIONAL if type(owner) is type(record)}
    for field in record.__struct_fields__:
        changed = replace(record, **{field: None})
        if field in optional:
            assert again(changed) == changed
        else:
            with pytest.raises(Damaged):
                again(changed)


def test_text_is_utf_8() -> None:
    raw = wire.encode(s.DOMAIN).replace(b"shop", b"sh\xffp")
    with pytest.raises(Damaged):
        wire.decode(raw, type(s.DOMAIN))


def test_deep_facts_are_refused_and_do_not_overflow_the_stack() -> None:
    fields = msgspec.msgpack.decode(wire.encode(s.AUDIT))
    raw = msgspec.msgpack.encode(fields[:-1])
    raw = bytes([raw[0] + 1]) + raw[1:] + b"\x81\xa1a" + b"\x91" * 100_000 + b"\xc0"
    with pytest.raises(Damaged):
        wire.decode(raw, type(s.AUDIT))


def _nested(depth: int, value: object) -> dict[str, object]:
    """Facts in which the value lies inside so many maps and arrays, the facts themselves included."""
    for level in range(depth - 1):
        value = {"a": value} if level % 2 else [value]
    return {"a": value}


FACTS = {
    "deep enough": (_nested(16, 1), True),
    "too deep": (_nested(17, 1), False),
    "too deep and empty": (_nested(16, []), False),
    "a map with another key": ({"a": {1: 2}}, False),
    "an extension type": ({"a": [msgspec.msgpack.Ext(5, b"x")]}, False),
    "a timestamp": ({"a": datetime(2026, 1, 1, tzinfo=UTC)}, False),
    "every value": ({"a": [None, True, -1, (1 << 64) - 1, 1.5, "x", b"x", [], {}]}, True),
}


@pytest.mark.parametrize("record", [s.SNAPSHOT, s.FATE, s.AUDIT], ids=s.label)
@pytest.mark.parametrize("case", FACTS)
def test_facts(record: Record, case: str) -> None:
    facts, good = FACTS[case]
    inner = replace(s.SNAPSHOT, facts=facts)
    changed = replace(record, snapshot=inner) if record is s.FATE else replace(record, facts=facts)
    if good:
        assert again(changed) == changed
    else:
        with pytest.raises(Damaged):
            again(changed)


# ------------------------------------------------------------ rosters


def test_a_rosters_features_are_known_before_its_other_fields() -> None:
    fields = msgspec.msgpack.decode(wire.encode(s.ROSTER))
    later = [*fields[:3], ["erasure-code"], {"slots": "of another shape"}, *fields[5:], "one more"]
    assert keys.features_of(msgspec.msgpack.encode(later)) == ["erasure-code"]
    assert keys.features_of(wire.encode(s.ROSTER)) == ["a"]
    for none in (fields[:3], [], 1, [*fields[:3], "x"], [*fields[:3], [1]]):
        assert keys.features_of(msgspec.msgpack.encode(none)) == []
    assert keys.features_of(b"\x94\x00") == []


# ------------------------------------------------------------ directories


def test_a_directory_that_keeps_the_rules() -> None:
    assert pack.check_directory(s.DIRECTORY) is s.DIRECTORY


BROKEN = {
    "kind": replace(s.BLOCK, kind=19),
    "no kind of a block": replace(s.BLOCK, kind=1),
    "key": replace(s.BLOCK, key=2),
    "a chunk more than there are names": replace(s.BLOCK, count=3),
    "a chunk fewer than there are names": replace(s.BLOCK, count=1),
    "beyond the region": replace(s.BLOCK, offset=51),
    "over the next one": replace(s.BLOCK, length=101),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_directory_that_breaks_a_rule(name: str) -> None:
    with pytest.raises(Damaged):
        pack.check_directory(replace(s.DIRECTORY, blocks=(BROKEN[name], s.RECIPE)))


def test_a_block_may_fill_its_region_exactly() -> None:
    pack.check_directory(replace(s.DIRECTORY, names_size=144, blocks=(replace(s.BLOCK, offset=50),)))


# ------------------------------------------------------------ lists of names


@pytest.mark.parametrize("size", [0, 80, 175, 177, 208, 1 << 26])
def test_a_list_of_names_has_one_length(size: int) -> None:
    assert pack.names_size(3) == s.DIRECTORY.names_size == 176
    with pytest.raises(Damaged):
        pack.check_directory(replace(s.DIRECTORY, names_size=size))


def test_a_pack_without_blocks_has_no_list_of_names() -> None:
    empty = replace(s.DIRECTORY, region_size=0, names_size=0, blocks=())
    assert pack.check_directory(empty) is empty
    assert pack.names_of(empty, b"") == []
    with pytest.raises(Damaged):
        pack.check_directory(replace(empty, names_size=80))


def test_names_are_those_of_the_blocks_in_their_order() -> None:
    names = [bytes([i]) * 32 for i in range(3)]
    assert pack.names_of(s.DIRECTORY, b"".join(names)) == [names[0] + names[1], names[2]]
    for wrong in (b"", b"".join(names)[:-1], b"".join(names) + b"x", b"".join([*names, names[0]])):
        with pytest.raises(Damaged):
            pack.names_of(s.DIRECTORY, wrong)


# ------------------------------------------------------------ the repository record

REPOSITORY = RepositoryRecord(pharmabackup=1, id="ab" * 32, capabilities={"exclusive-create": True})


def as_json(**members: object) -> bytes:
    return json.dumps({"pharmabackup": 1, "id": "ab" * 32} | members).encode()


def test_the_repository_record() -> None:
    raw = encode_repository(REPOSITORY)
    assert decode_repository(raw) == REPOSITORY
    assert len(raw) < REPOSITORY_MAX
    assert raw.endswith(b"\n")
    assert decode_repository(as_json(later={"x": [1]})).id == "ab" * 32  # unknown members are ignored


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"1", b"\xff", b"{}", as_json(id="ab" * 31), as_json(id="zz" * 32), as_json(id=5)]
    + [
        as_json(id=value)
        for value in (" " * 64, "ab" * 31 + "  ", "ab\n" * 21 + " ", "ab" * 32 + "\n", "\u0660" * 64)
    ]
    + [as_json(pharmabackup=value) for value in (0, -1, "1", None, 1.5, [])]
    + [as_json(capabilities=[]), as_json(required_features="x"), b"[" * 100_000, b'{"id":' * 100_000],
)
def test_a_repository_record_that_is_none(raw: bytes) -> None:
    with pytest.raises(Damaged):
        decode_repository(raw)


def test_a_newer_repository_is_not_called_damaged() -> None:
    for raw in (as_json(pharmabackup=2), as_json(pharmabackup=2, id=[]), as_json(required_features=["x"])):
        with pytest.raises(Unsupported) as caught:
            decode_repository(raw)
        assert caught.value.kind == "format-newer"
    check_features(())
    with pytest.raises(Unsupported):
        check_features(("anything",))


def test_a_flipped_bit_in_the_repositorys_record_is_refused_or_odd_or_in_the_words_for_people():
    capabilities = dict.fromkeys(CAPABILITIES, True)
    record = RepositoryRecord(pharmabackup=1, id="ab" * 32, capabilities=capabilities)
    data, silent = encode_repository(record), 0
    assert odd_members(data) == ([], [])
    for at, bit in itertools.product(range(len(data)), range(8)):
        changed = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
        try:
            found = decode_repository(changed)
        except Error:
            continue
        if not odd_members(changed)[0] and found.id.lower() == record.id:  # else it cannot be opened
            silent += 1
            assert replace(found, about=record.about, id=found.id.lower()) == record
    assert silent < 8 * len(record.about) + 64


def test_what_a_later_version_adds_is_not_odd():
    record = encode_repository(replace(REPOSITORY, capabilities={**dict.fromkeys(CAPABILITIES, True), "x": True}))
    assert odd_members(record) == ([], ["x"])


@pytest.mark.parametrize(
    ("credential", "setting", "taken"),
    [
        ("passphrase", s.ARGON, True),
        ("passphrase", None, False),
        ("recipient", None, True),
        ("recipient", s.ARGON, False),
        ("shares", s.ARGON, False),
        ("passphrase", keys.Argon2id(bytes(16), 32, 1, 4), True),
        ("passphrase", keys.Argon2id(bytes(16), 31, 1, 4), False),
    ],
)
def test_a_slot_is_stretched_as_its_credential_is(
    credential: str, setting: keys.Argon2id | None, taken: bool
) -> None:
    roster = replace(s.ROSTER, slots=(replace(s.SLOT, credential=credential, argon2id=setting),))
    if taken:
        assert again(roster) == roster
    else:
        with pytest.raises(Damaged):
            again(roster)
