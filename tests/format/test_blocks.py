"""Blocks: content and trailer, frame and limits; the same layout written out by hand."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharmabackup.compression import compress, decompress
from pharmabackup.crypto import hashing
from pharmabackup.engine import packs
from pharmabackup.errors import Damaged
from pharmabackup.format import block, pack, wire
from pharmabackup.format.wire import Kind
from tests.format import samples as s

CHUNKS = st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=20)


def content(chunks: list[bytes]) -> bytes:
    """As docs/format.md §11 has it, without the code."""
    lengths = [len(chunk) for chunk in chunks]
    return b"".join(chunks) + struct.pack(f"<{len(chunks)}I", *lengths) + struct.pack("<I", len(chunks))


@given(CHUNKS)
def test_chunks_come_back(chunks: list[bytes]) -> None:
    lengths = b"".join(struct.pack("<I", len(chunk)) for chunk in chunks)
    raw = b"".join(chunks) + block.trailer(lengths)
    assert raw == content(chunks)
    ends = block.chunk_ends(raw)
    assert ends[0] == 0
    assert [raw[a:b] for a, b in itertools.pairwise(ends)] == chunks
    assert block.chunk_ends(memoryview(raw)) == ends


@given(CHUNKS, st.sampled_from((1, 3)))
def test_a_block_goes_through_its_frame(chunks: list[bytes], level: int) -> None:
    raw = content(chunks)
    plain = compress(raw, level, checksum=True)
    assert decompress(memoryview(plain), limit=block.CONTENT_MAX, checksum=True) == raw


@given(CHUNKS, st.sampled_from((1, 3)))
def test_a_frame_without_checksum_is_no_block(chunks: list[bytes], level: int) -> None:
    raw = content(chunks)
    plain = compress(raw, level)
    assert decompress(plain, limit=block.CONTENT_MAX) == raw
    with pytest.raises(Damaged):
        decompress(plain, limit=block.CONTENT_MAX, checksum=True)


@given(CHUNKS, st.data())
def test_a_frame_whose_checksum_is_wrong_is_no_block(chunks: list[bytes], data: st.DataObject) -> None:
    """As after a fault of memory before it was sealed."""
    plain = bytearray(compress(content(chunks), 3, checksum=True))
    plain[data.draw(st.integers(len(plain) - 4, len(plain) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(Damaged):
        decompress(plain, limit=block.CONTENT_MAX, checksum=True)


@given(CHUNKS, st.data())
def test_lengths_fill_a_block_exactly(chunks: list[bytes], data: st.DataObject) -> None:
    raw = content(chunks)
    for wrong in (raw[1:], b"x" + raw, raw[:-1], raw + b"\0"):
        with pytest.raises(Damaged):
            block.chunk_ends(wrong)
    i = data.draw(st.integers(0, len(chunks) - 1))
    change = data.draw(st.integers(-len(chunks[i]), 300).filter(bool))
    at = len(raw) - 4 - 4 * (len(chunks) - i)
    with pytest.raises(Damaged):
        block.chunk_ends(raw[:at] + struct.pack("<I", len(chunks[i]) + change) + raw[at + 4 :])


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00",
        bytes(3),
        bytes(4),
        struct.pack("<I", 1),
        struct.pack("<I", 4294967295),
        b"x" * 8 + bytes(4),
        struct.pack("<II", 1, 1),
        struct.pack("<II", 4294967295, 1),
        struct.pack("<II", 5, 2),
    ],
)
def test_what_is_no_block(raw: bytes) -> None:
    with pytest.raises(Damaged):
        block.chunk_ends(raw)


def test_the_most_chunks() -> None:
    n = 1 << 16
    assert len(block.chunk_ends(content([b"x"] * n))) == n + 1
    with pytest.raises(Damaged):
        block.chunk_ends(content([b"x"] * (n + 1)))


def test_the_largest_chunk() -> None:
    largest = bytes(1 << 22)
    assert block.chunk_ends(content([largest, b"x"])) == [0, 1 << 22, (1 << 22) + 1]
    with pytest.raises(Damaged):
        block.chunk_ends(content([largest + b"x"]))


def test_the_largest_block() -> None:
    assert block.CONTENT_MAX == (1 << 23) + (1 << 18) + 4
    raw = bytes(block.CONTENT_MAX)
    frame = compress(raw, 1)
    assert len(frame) < 2000  # a small frame may claim much: what it claims is bounded, not what it is
    assert len(decompress(frame, limit=block.CONTENT_MAX)) == block.CONTENT_MAX
    with pytest.raises(Damaged):
        decompress(compress(raw + b"\0", 1), limit=block.CONTENT_MAX)


def test_a_frame_that_claims_the_impossible_is_refused_unread() -> None:
    frame = bytearray(compress(bytes(1000), 1))
    assert frame[:4] == b"\x28\xb5\x2f\xfd"
    claims = bytes(frame[:4]) + b"\xe0" + struct.pack("<Q", 1 << 60) + b"\x01\0\0"
    with pytest.raises(Damaged):
        decompress(claims, limit=block.CONTENT_MAX)


@pytest.mark.parametrize(
    "frame",
    [
        *(b"", b"\x28\xb5\x2f\xfd", b"no frame at all", compress(b"hello" * 9, 3)[:-3]),
        b"\x50\x2a\x4d\x18\x04\0\0\0abcd",  # a skippable frame
        b"\x28\xb5\x2f\xfd\x00\x58\x29\0\0hello",  # one without the content's size
    ],
)
def test_what_is_no_frame(frame: bytes) -> None:
    with pytest.raises(Damaged):
        decompress(frame, limit=100)


def test_block_limits_fit_one_another() -> None:
    """A sealed block of the largest content that does not shrink is still within what a directory can say."""
    raw = block.CONTENT_MAX + 24 + 16
    overhead = (block.CONTENT_MAX >> 17) * 3 + 32  # zstd: three bytes a block of 128 KiB, and its header
    assert raw + overhead > pack.SEALED_BLOCK_MAX  # so a writer stays far below: it closes a block at about 1 MiB
    assert pack.BLOCK_MAX + 4 * (1 << 14) + overhead + 80 < pack.SEALED_BLOCK_MAX
    assert pack.SEALED_BLOCK_MAX < pack.PACK_MAX


def test_names_limits_fit_one_another() -> None:
    """A pack that ends at its size has a list of names within what a directory can say, however small chunks are."""
    most = packs.PACK_TARGET + packs.PACK_SLACK + pack.SEALED_BLOCK_MAX + pack.names_size(1 << 14)
    assert most < pack.NAMES_MAX < pack.PACK_MAX


def test_kinds_keep_blocks_apart() -> None:
    """Name and associated data of a block depend on its kind."""
    contexts = {wire.context(s.HASH, kind, s.KEY) for kind in pack.BLOCK_KINDS}
    ids = {hashing.keyed(s.KEY, bytes((kind,)) + s.HASH) for kind in pack.BLOCK_KINDS}
    assert len(contexts) == len(ids) == 3
    assert {int(kind) for kind in pack.BLOCK_KINDS} == {16, 17, 18}
    assert wire.context(s.HASH, Kind.DATA_BLOCK, s.KEY) == b"pharmabackup/1" + s.HASH + b"\x10" + s.KEY


# ---------------------------------------- what docs/format.md §10, §22 asks for


def test_chunks_that_are_more_than_a_block_may_hold() -> None:
    with pytest.raises(Damaged):
        block.chunk_ends(content([bytes(1 << 22)] * 2 + [b"x"]))


SOUND = (pack.Block(s.HASH, 16, 0, 0, 100, 1), pack.Block(s.HASH, 18, 1, 100, 50, 1))
OVERLAPPING = (s.BLOCK, pack.Block(s.KEY, 18, 1, 99, 50, 1))
CATALOGUE = pack.Block(s.HASH, 16, 1, 0, 100, 1)
SESSION = pack.Block(s.HASH, 18, 0, 0, 100, 1)


def _directory(*blocks: pack.Block) -> pack.Directory:
    names = pack.names_size(sum(block.count for block in blocks))
    return pack.Directory(s.ID, s.HASH, 150, names, s.DIRECTORY.keys, blocks)


@pytest.mark.parametrize(
    "blocks",
    [OVERLAPPING, (CATALOGUE,), (SESSION,)],
    ids=["overlapping", "data under a catalogue key", "recipe under a transaction's key"],
)
def test_a_directory_that_breaks_a_further_rule(blocks: tuple[pack.Block, ...]) -> None:
    pack.check_directory(_directory(*SOUND))
    with pytest.raises(Damaged):
        pack.check_directory(_directory(*blocks))
