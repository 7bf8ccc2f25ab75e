"""Arbitrary and spoilt bytes into every parser: the record, or Damaged or Unsupported; never anything else."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pharmabackup import compression
from pharmabackup.errors import Damaged, Unsupported
from pharmabackup.format import block, index, manifest, pack, recipe, wire
from pharmabackup.format.repository import RepositoryRecord, decode_repository, encode_repository
from pharmabackup.format.wire import Kind, Record
from tests.format import samples as s

REFUSED = (Damaged, Unsupported)
ANYTHING = st.binary(max_size=400)
ALL = s.TOP + s.PARTS


def survives(parse: Callable[[bytes], Any], data: bytes) -> Any:
    """What the parser gives, or None where it refused. Any other exception fails the test."""
    try:
        return parse(data)
    except REFUSED as error:
        assert str(error)
        return None


def parse_record(shape: type[Record]) -> Callable[[bytes], Record]:
    return lambda data: wire.decode(data, shape)


# Values that look like MessagePack more often than random bytes do.
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=9)
    | st.binary(max_size=9) | st.sampled_from((bytes(16), bytes(32), bytes(64))),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=30,
)  # fmt: skip


@pytest.mark.parametrize("record", ALL, ids=s.label)
@settings(max_examples=60)
@given(data=st.data())
def test_records(record: Record, data: st.DataObject) -> None:
    parse = parse_record(type(record))
    valid = wire.encode(record)
    raw = data.draw(
        st.one_of(ANYTHING, s.spoilt(valid), VALUES.map(msgspec.msgpack.encode), _with_other_fields(valid))
    )
    found = survives(parse, raw)
    if found is not None:
        assert wire.decode(wire.encode(found), type(record)) == found or found != found


def _with_other_fields(valid: bytes) -> st.SearchStrategy[bytes]:
    """A record with one field replaced by something else."""
    fields = msgspec.msgpack.decode(valid)
    return st.tuples(st.integers(0, len(fields) - 1), VALUES).map(
        lambda change: msgspec.msgpack.encode([*fields[: change[0]], change[1], *fields[change[0] + 1 :]])
    )


def parse_directory(data: bytes) -> object:
    directory = pack.check_directory(wire.decode(data, pack.Directory))
    names = bytes(32 * sum(item.count for item in directory.blocks))
    return [len(own) for own in pack.names_of(directory, names)]


def parse_segment(data: bytes) -> object:
    segment = wire.decode(data, index.Segment)
    return [parse_directory(entry.directory) for entry in segment.packs]


def parse_manifest(data: bytes) -> object:
    position, seen = 0, []
    for frame in manifest.read_frames([data[i : i + 64] for i in range(0, len(data), 64)]):
        if frame.kind == manifest.FrameType.FINDING:
            seen.append(wire.decode(frame.body, manifest.ManifestFinding))
            continue
        for entry in manifest.entries(manifest.decode_folder(frame), frame, position):
            seen.append((entry.extents, entry.attributes, entry.link_target, entry.same_file))
            assert entry.start >= position
            assert 0 <= entry.stored <= entry.size
            assert b".." not in entry.path.split(b"/")
            assert not entry.path.startswith(b"/")
        position += frame.size
    return seen


def parse_recipe(data: bytes) -> object:
    runs = recipe.decode_runs(iter([data]), table_size=10, chunks=1 << 40)
    assert all(number < 10 for number in runs.block)
    assert all(0 < count <= 1 << 16 for count in runs.count)
    return runs


def parse_block(data: bytes) -> object:
    ends = block.chunk_ends(data)
    assert ends == sorted(ends)
    assert ends[-1] <= len(data)
    return ends


def parse_header(data: bytes) -> object:
    wire.check_header(data, Kind.FATE)
    return data[:8]


def parse_trailer(data: bytes) -> object:
    return bytes(wire.unpad(data, "x"))


def parse_frame(data: bytes) -> object:
    content = compression.decompress(data, limit=1 << 16)
    assert len(content) <= 1 << 16
    return content


def parse_attributes(data: bytes) -> object:
    return manifest.decode_attributes(data)


EXTRAS = (
    manifest.ExtraField(0, manifest.Extra.EXTENTS, bytes(8) + b"\1" + bytes(7)),
    manifest.ExtraField(0, manifest.Extra.ATTRIBUTES, manifest.encode_attributes([(b"user.a", b"b")])),
)
FOLDER = msgspec.structs.replace(s.FOLDER, extras=EXTRAS)
FRAMES = manifest.frame(manifest.FrameType.FOLDER, FOLDER, size=1, chunks=1) + manifest.frame(
    manifest.FrameType.FINDING, s.FINDING
)
RUNS = recipe.Runs()
for _i in range(9):
    RUNS.add(_i, 3 * _i, 2, 8192)
CONTENT = b"abcdefgh" + block.trailer(b"\3\0\0\0\5\0\0\0")
REPOSITORY = encode_repository(RepositoryRecord(pharmabackup=1, id="ab" * 32))

PARSERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "directory": (parse_directory, wire.encode(s.DIRECTORY)),
    "segment": (parse_segment, wire.encode(s.SEGMENT)),
    "manifest": (parse_manifest, FRAMES),
    "recipe": (parse_recipe, RUNS.section(0, 4) + RUNS.section(4, 9)),
    "block": (parse_block, CONTENT),
    "header": (parse_header, wire.header(Kind.FATE)),
    "padding": (parse_trailer, wire.pad(b"content")),
    "frame": (parse_frame, compression.compress(CONTENT * 20, 3)),
    "attributes": (parse_attributes, manifest.encode_attributes([(b"user.a", b"b"), (b"user.c", b"")])),
    "repository": (decode_repository, REPOSITORY),
}


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=400)
@given(data=st.data())
def test_parsers(name: str, data: st.DataObject) -> None:
    parse, valid = PARSERS[name]
    assert survives(parse, valid) is not None
    survives(parse, data.draw(st.one_of(ANYTHING, s.spoilt(valid), s.spoilt(valid))))


@settings(max_examples=200)
@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)))
def test_repository_records_of_other_types(value: object) -> None:
    for member in ("pharmabackup", "id", "required_features", "capabilities", "about"):
        raw = json.dumps({"pharmabackup": 1, "id": "ab" * 32} | {member: value}).encode()
        survives(decode_repository, raw)


BOMBS = [
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xdc\xff\xff",
]


@pytest.mark.parametrize("record", ALL, ids=s.label)
def test_a_few_bytes_do_not_claim_memory(record: Record) -> None:
    """A length that is not there is noticed before anything is made for it, in whatever field it stands."""
    fields = msgspec.msgpack.decode(wire.encode(record))
    tracemalloc.start()
    try:
        for i in range(len(fields)):
            head = bytes([0x90 + len(fields)]) if len(fields) < 16 else b"\xdc" + len(fields).to_bytes(2, "big")
            before = b"".join(msgspec.msgpack.encode(value) for value in fields[:i])
            for bomb in (*BOMBS, b"\x91" * 50_000, b"\x81\xa1a" * 20_000):
                assert survives(parse_record(type(record)), head + before + bomb) is None
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_small_frame_does_not_claim_memory() -> None:
    bomb = compression.compress(bytes(1 << 24), 3)
    assert len(bomb) < 4096
    tracemalloc.start()
    try:
        assert survives(parse_frame, bomb) is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
