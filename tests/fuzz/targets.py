"""Every parser of what storage holds, as a function of bytes: what the fuzzer and its tests call.

A target gives None where its parser refuses, which it may do with Damaged or Unsupported alone. Where it accepts,
encoding what it gave and decoding that again has to give the same. Anything else is a finding.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import msgspec

from pharmabackup import compression
from pharmabackup.errors import Damaged, Unsupported
from pharmabackup.format import block, index, manifest, pack, recipe, wire
from pharmabackup.format.repository import FEATURES, RepositoryRecord, decode_repository, encode_repository
from pharmabackup.format.transaction import FACTS_DEPTH
from pharmabackup.format.wire import Kind, Record
from tests.format import samples as s
from tests.fuzz import changes, seeds
from tests.fuzz.around import AROUND

REFUSED = (Damaged, Unsupported)
CONTENT_MAX = 1 << 16
NAMED_CHUNKS_MAX = 1 << 12  # of how many chunks the harness makes names


@dataclass(frozen=True, slots=True)
class Target:
    """A parser with what holds for whatever it accepts; valid inputs; how an input is changed with its structure."""

    parse: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    change: changes.Change = changes.of_bytes

    def __call__(self, data: bytes) -> object:
        """What the parser gave; None where it refused. Any other exception is a finding."""
        try:
            return self.parse(data)
        except REFUSED as error:
            assert str(error)
            return None


def same_again(record: Record) -> Record:
    """The record, which is the same when it is encoded and decoded. Compared as bytes: NaN is not equal to itself."""
    raw = wire.encode(record)
    again = wire.decode(raw, type(record))
    assert wire.encode(again) == raw
    return again


def any_record(data: bytes) -> object:
    """The first byte says of which shape the rest is."""
    if not data:
        return None
    return same_again(wire.decode(data[1:], seeds.SHAPES[data[0] % len(seeds.SHAPES)]))


def facts(data: bytes) -> object:
    """The one field that holds values of any type, alone."""
    fields = len(s.AUDIT.__struct_fields__)
    first = b"".join(map(msgspec.msgpack.encode, msgspec.msgpack.decode(wire.encode(s.AUDIT))[:-1]))
    found = wire.decode(bytes((0x90 + fields,)) + first + data, type(s.AUDIT))
    assert all(isinstance(name, str) and _is_plain(value, 1) for name, value in found.facts.items())
    return same_again(found)


def _is_plain(value: object, depth: int) -> bool:
    """Whether it is a value that facts may hold, with so many maps and arrays around it."""
    if isinstance(value, dict):
        return depth < FACTS_DEPTH and all(
            isinstance(name, str) and _is_plain(item, depth + 1) for name, item in value.items()
        )
    if isinstance(value, list):
        return depth < FACTS_DEPTH and all(_is_plain(item, depth + 1) for item in value)
    return value is None or isinstance(value, bool | int | float | str | bytes)


def directory(data: bytes) -> object:
    found = pack.check_directory(wire.decode(data, pack.Directory))
    same_again(found)
    chunks = sum(item.count for item in found.blocks)
    assert found.names_size == (80 + 32 * chunks if chunks else 0)  # header, key id, nonce and tag have 80
    assert all(item.offset + item.length <= found.region_size for item in found.blocks)
    if chunks <= NAMED_CHUNKS_MAX:
        names = bytes(range(32)) * chunks
        parts = pack.names_of(found, names)
        assert [len(part) for part in parts] == [32 * item.count for item in found.blocks]
        assert b"".join(parts) == names
    return found


def segment(data: bytes) -> object:
    found = wire.decode(data, index.Segment)
    same_again(found)
    for entry in found.packs:
        directory(same_again(wire.decode(entry.directory, wire.Signed)).content)
    return found


def read_manifest(data: bytes) -> object:
    """All of a manifest, which is the same in whatever pieces its bytes come."""
    position, again, found = 0, b"", []
    for frame in manifest.read_frames([data]):
        if frame.kind == manifest.FrameType.FINDING:
            body: Record = wire.decode(frame.body, manifest.ManifestFinding)
        else:
            body = manifest.decode_folder(frame)
            _check_entries(manifest.entries(body, frame, position), position, frame.size)
        again += manifest.frame(frame.kind, body, size=frame.size, chunks=frame.chunks)
        found.append((frame.kind, frame.size, frame.chunks, bytes(frame.body)))
        position += frame.size
    pieces = [data[at : at + 7] for at in range(0, len(data), 7)]
    assert [(f.kind, f.size, f.chunks, bytes(f.body)) for f in manifest.read_frames(pieces)] == found
    assert sum(1 for _ in manifest.read_frames([again])) == len(found)
    return found


def folder(data: bytes) -> object:
    """One folder's record, in a frame that says what its entries' content really is."""
    found = wire.decode(data, manifest.Folder)
    same_again(found)
    size, chunks = _content_of(found)
    frame = manifest.Frame(manifest.FrameType.FOLDER, size, chunks, memoryview(data))
    entries = manifest.entries(found, frame, 1000)
    _check_entries(entries, 1000, size)
    return entries


def _check_entries(entries: list[manifest.Entry], position: int, size: int) -> None:
    end = position
    names = [entry.path.rpartition(b"/")[2] or b"." for entry in entries]
    assert all(before < after for before, after in pairwise(names))
    for entry in entries:
        assert entry.start == end
        assert 0 <= entry.stored <= entry.size <= manifest.SIZE_MAX
        assert 0 <= entry.mode <= 0o7777
        assert not entry.path.startswith(b"/")
        assert not {b"..", b"."} & set(entry.path.split(b"/"))
        places = [place for start, length in entry.extents or () for place in (start, start + length)]
        assert places == sorted(places)
        assert max(places, default=0) <= entry.size
        assert entry.link_target is not None
        assert entry.same_file is None or not {b"", b".", b".."} & set(entry.same_file.split(b"/"))
        try:
            entry.attributes  # noqa: B018 - it is read when it is needed, and may be damaged
        except Damaged:
            pass
        end += entry.stored
    assert end - position == size


def _content_of(record: manifest.Folder) -> tuple[int, int]:
    """What the entries' content adds up to, computed without the library."""
    extras = {(item.entry, item.key): item.value for item in record.extras}
    total = 0
    for i, kind in enumerate(record.kinds):
        if kind or (i, manifest.Extra.SAME_FILE) in extras:
            continue
        extents = extras.get((i, manifest.Extra.EXTENTS))
        if extents is None:
            total += int.from_bytes(record.sizes[8 * i : 8 * i + 8], "little")
        else:
            total += sum(int.from_bytes(extents[at + 8 : at + 16], "little") for at in range(0, len(extents), 16))
    columns = record.chunks[: len(record.chunks) // 4 * 4]
    return total, sum(count for (count,) in struct.iter_unpack("<I", columns))


def attributes(data: bytes) -> object:
    found = manifest.decode_attributes(data)
    assert manifest.decode_attributes(manifest.encode_attributes(found)) == found
    return found


def runs(data: bytes) -> object:
    """The first four bytes say how many blocks the table has, and how many chunks the snapshot."""
    if len(data) < 4:
        return None
    table, chunks = struct.unpack_from("<HH", data)
    found = recipe.decode_runs(iter([data[4:]]), table_size=table, chunks=chunks)
    assert len(found) <= chunks
    assert all(number < table for number in found.block)
    assert all(0 < count <= pack.BLOCK_CHUNKS_MAX for count in found.count)
    if len(found):
        again = recipe.decode_runs(iter([found.section(0, len(found))]), table_size=table, chunks=chunks)
        assert again == found
    return found


def chunks_of_block(data: bytes) -> object:
    ends = block.chunk_ends(data)
    lengths = [end - start for start, end in pairwise(ends)]
    assert all(0 <= length <= pack.CHUNK_MAX for length in lengths)
    assert data[: ends[-1]] + block.trailer(struct.pack(f"<{len(lengths)}I", *lengths)) == data
    return ends


def zstd_frame(data: bytes) -> object:
    return _content(data, checksum=False)


def zstd_frame_with_checksum(data: bytes) -> object:
    return _content(data, checksum=True)


def _content(data: bytes, *, checksum: bool) -> object:
    found = compression.decompress(data, limit=CONTENT_MAX, checksum=checksum)
    assert len(found) <= CONTENT_MAX
    again = compression.compress(found, compression.FILES_LEVEL, checksum=checksum)
    assert compression.decompress(again, limit=CONTENT_MAX, checksum=checksum) == found
    return found


def header(data: bytes) -> object:
    """The first byte says of which kind it has to be."""
    if not data:
        return None
    kind = tuple(Kind)[data[0] % len(Kind)]
    wire.check_header(data[1:], kind)
    assert data[1 : 1 + wire.HEADER.size] == wire.header(kind)
    return kind


def padding(data: bytes) -> object:
    body = bytes(wire.unpad(data, "record"))
    assert data[:4] + body == struct.pack("<I", len(body)) + data[4 : 4 + len(body)]
    assert bytes(wire.unpad(wire.pad(body), "record")) == body
    return body


def opened(data: bytes) -> object:
    """What lies inside a seal: padding, a zstd frame, and a record with its signer."""
    content = compression.decompress(wire.unpad(data, "record"), limit=CONTENT_MAX)
    return same_again(wire.decode(content, wire.Signed))


def repository(data: bytes) -> RepositoryRecord:
    found = decode_repository(data)
    assert len(bytes.fromhex(found.id)) == 32
    assert set(found.required_features) <= FEATURES
    assert decode_repository(encode_repository(found)) == found
    return found


TARGETS: dict[str, Target] = {
    "records": Target(any_record, seeds.RECORDS, changes.after(1, changes.of_record)),
    "facts": Target(facts, seeds.FACTS, changes.of_record),
    "directory": Target(directory, seeds.DIRECTORIES, changes.of_record),
    "segment": Target(segment, seeds.SEGMENTS, changes.of_record),
    "manifest": Target(read_manifest, seeds.MANIFESTS, changes.of_frames),
    "folder": Target(folder, seeds.FOLDERS, changes.of_record),
    "attributes": Target(attributes, seeds.ATTRIBUTES, changes.of_record),
    "recipe": Target(runs, seeds.RECIPES),
    "block": Target(chunks_of_block, seeds.BLOCKS),
    "zstd": Target(zstd_frame, seeds.ZSTD),
    "zstd-checksum": Target(zstd_frame_with_checksum, seeds.ZSTD_CHECKSUM),
    "header": Target(header, seeds.HEADERS),
    "padding": Target(padding, seeds.PADDED),
    "opened": Target(opened, seeds.OPENED),
    "repository": Target(repository, seeds.REPOSITORIES, changes.of_json),
    **{name: Target(*row) for name, row in AROUND.items()},
}
