"""Headers, sealing, padding, names, derived keys, signatures: published vectors and those of docs/format.md."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from pharmabackup.compression import compress, decompress
from pharmabackup.crypto import hashing, signatures
from pharmabackup.crypto.recipients import SECRET_SIZE, PrivateKey
from pharmabackup.crypto.sealing import NotAuthentic, SealingKey
from pharmabackup.errors import Damaged, Unsupported
from pharmabackup.format import block, pack, wire
from pharmabackup.format.transaction import Done
from pharmabackup.format.wire import Kind, Signed
from tests.crypto.known import decapsulated, scheduled

HERE = Path(__file__).parent
V = json.loads((HERE / "vectors" / "v1.json").read_text("utf-8"))
B = {name: bytes.fromhex(value) for name, value in V.items() if isinstance(value, str)}


# ------------------------------------------------------------ the worked example


def test_derived_keys_and_names() -> None:
    assert hashing.key_id(B["key"]) == B["key_id"]
    for purpose in ("data names", "manifest names", "recipe names"):
        assert hashing.derive(purpose, B["naming_key"]) == B[purpose.replace(" ", "_")]
    assert hashing.chunker_seed(B["naming_key"]) == V["chunker_seed"] < 1 << 63
    assert hashing.keyed(B["data_names"], B["chunk"]) == B["chunk_name"]
    assert hashing.keyed(B["block_names_key"], b"\x10" + B["chunk_name"]) == B["block_id"]
    assert hashing.key_id(B["reader_public"]) == B["reader_key_id"]


def test_the_key_pair_of_a_passphrase() -> None:
    secret = hashing.derive("recipient", B["key"], SECRET_SIZE)
    assert (secret, len(secret)) == (B["recipient_secret"], 96)
    assert PrivateKey(secret).public.raw == B["recipient_public"]
    assert hashing.key_id(B["recipient_public"]) == B["recipient_key_id"]


def test_the_sealed_block() -> None:
    context = wire.block_context(B["repository"], Kind.DATA_BLOCK, B["key_id"], B["block_id"])
    assert (context, len(context)) == (B["block_associated_data"], 111)
    assert B["chunk"] + block.trailer(struct.pack("<I", len(B["chunk"]))) == B["block_content"]
    plain = SealingKey(B["key"]).open(B["sealed_block"], context)
    assert plain == B["block_frame"]
    assert decompress(plain, limit=block.CONTENT_MAX, checksum=True) == B["block_content"]
    assert SealingKey(B["key"]).seal(plain, context, nonce=B["nonce"]) == B["sealed_block"]


def test_the_names_section() -> None:
    raw = B["names_section"]
    assert len(raw) == pack.names_size(1) == 112
    assert raw[:40] == wire.header(Kind.NAMES) + B["key_id"]
    context = wire.context(B["repository"], Kind.NAMES, B["key_id"])
    assert (context, len(context)) == (B["names_associated_data"], 79)
    assert SealingKey(B["key"]).open(raw[40:], context) == B["chunk_name"]
    assert SealingKey(B["key"]).seal(B["chunk_name"], context, nonce=B["nonce"]) == raw[40:]


def test_the_directory() -> None:
    sealed = B["sealed_block"]
    directory = pack.Directory(
        domain=B["domain"],
        region=hashlib.sha256(sealed).digest(),
        region_size=len(sealed),
        names_size=len(B["names_section"]),
        keys=(pack.WrappedKey(B["key_id"], (pack.Wrap(B["reader_key_id"], B["wrapped_key"]),)),),
        blocks=(pack.Block(B["block_id"], Kind.DATA_BLOCK, 0, 0, len(sealed), 1),),
    )
    assert wire.encode(directory) == B["directory"]
    assert pack.check_directory(wire.decode(B["directory"], pack.Directory)) == directory


def test_the_signed_record() -> None:
    assert wire.encode(Done(1)) == B["record"]
    signer = signatures.SigningKey(B["signing_seed"])
    assert signer.public == B["signing_public"]
    message = wire.signed_message(
        B["repository"], Kind.DONE, "collections/1/done", B["slot"], 0, B["roster_hash"], B["record"]
    )
    assert message == B["message"]
    assert signer.sign(message) == B["signature"]
    assert signatures.is_signed(B["signing_public"], B["signature"], message)
    assert not signatures.is_signed(B["signing_public"], B["signature"], message + b"\0")
    assert not signatures.is_signed(bytes(32), B["signature"], message)
    signed = Signed(B["record"], B["slot"], 0, B["roster_hash"], B["signature"])
    assert wire.encode(signed) == B["signed"]
    assert wire.pad(B["signed_frame"]) == B["padded"]
    raw = B["object"]
    wire.check_header(raw, Kind.DONE)
    assert raw[:8] == wire.header(Kind.DONE)
    assert raw[8:40] == B["key_id"]
    context = wire.context(B["repository"], Kind.DONE, raw[8:40])
    assert context == B["record_associated_data"]
    padded = SealingKey(B["key"]).open(raw[40:], context)
    assert padded == B["padded"]
    assert wire.decode(decompress(wire.unpad(padded, "x"), limit=1 << 28), Signed) == signed


def test_the_packs_trailer() -> None:
    assert pack.TRAILER.unpack(B["trailer"]) == (1234, pack.TRAILER_MAGIC)


def test_the_text_has_these_very_values() -> None:
    text = (HERE.parents[1] / "docs" / "format.md").read_text("utf-8")
    joined = re.sub(r"\s+", "", text.partition("## 27")[2])
    apart = (
        "key",
        "naming_key",
        "block_names_key",
        "chunk",
        "nonce",
        "repository",
        "slot",
        "domain",
        "signing_seed",
        "roster_hash",
    )
    elsewhere = ("recipient_public", "reader_secret", "reader_public", "wrap_info", "wrapped_key", "directory")
    elsewhere += ("record_associated_data", "names_associated_data")
    for name, value in B.items():
        if name not in apart + elsewhere:
            assert value.hex() in joined, name
    assert str(V["chunker_seed"]) in joined
    for size, padded in V["padme"]:
        assert f"{size}→{padded}" in text
    for purpose in re.findall(r"`pharmabackup/1 ([a-z ]+)` \|", text):
        assert purpose in ("key id", "data names", "manifest names", "recipe names", "chunker seed", "recipient")


def test_a_wrapped_key_opened_by_the_text_alone() -> None:
    """X-Wing and RFC 9180's key schedule written out: what the library does is what docs/format.md §9 says."""
    sealed = B["wrapped_key"]
    assert len(sealed) == 1168
    shared = decapsulated(B["reader_secret"], B["reader_public"], sealed[:1120])
    key, nonce = scheduled(shared, B["wrap_info"], aead=2)
    assert AESGCM(key).decrypt(nonce, sealed[1120:], b"") == B["key"]


def test_wrapped_keys() -> None:
    reader = PrivateKey(B["reader_secret"])
    assert reader.public.raw == B["reader_public"]
    assert wire.wrap_info(B["repository"], B["key_id"]) == B["wrap_info"]
    assert reader.open(B["wrapped_key"], B["wrap_info"]) == B["key"]
    sealed = reader.public.seal(B["key"], B["wrap_info"])
    assert len(sealed) == 1168
    assert reader.open(sealed, B["wrap_info"]) == B["key"]
    changed = bytes([sealed[0] ^ 1]) + sealed[1:]
    for private, data, info in (
        (PrivateKey.generate(), sealed, B["wrap_info"]),
        (reader, sealed, B["wrap_info"][:-1]),
        (reader, changed, B["wrap_info"]),
        (reader, sealed[:-1], B["wrap_info"]),
        (reader, b"", B["wrap_info"]),
    ):
        with pytest.raises(NotAuthentic):
            private.open(data, info)


# ------------------------------------------------------------ headers


@pytest.mark.parametrize("kind", Kind)
def test_headers(kind: Kind) -> None:
    raw = wire.header(kind)
    assert raw == b"PHBK\1" + bytes([kind]) + b"\0\0"
    wire.check_header(raw + b"what follows", kind)
    other = Kind.DONE if kind != Kind.DONE else Kind.FATE
    for wrong in (raw[:7], b"", b"PHBL" + raw[4:], raw[:6] + b"\1\0", raw[:6] + b"\0\1", wire.header(other)):
        with pytest.raises(Damaged):
            wire.check_header(wrong, kind)
    with pytest.raises(Damaged):
        wire.check_header(b"PHBK\0" + raw[5:], kind)
    for version in (2, 255):
        with pytest.raises(Unsupported):
            wire.check_header(b"PHBK" + bytes([version]) + raw[5:], kind)


def test_what_is_signed_has_one_reading() -> None:
    """Neither a longer name nor another field can take over bytes of its neighbour."""
    fields = (bytes(32), Kind.MARK, "marks/a", bytes(16), 0, bytes(32), b"content")
    message = wire.signed_message(*fields)
    assert len(message) == 115 + len("marks/a") + len(b"content")
    others = (b"\1" * 32, Kind.FATE, "marks/ab", b"\1" * 16, 1, b"\1" * 32, b"contents")
    for i, other in enumerate(others):
        assert wire.signed_message(*fields[:i], other, *fields[i + 1 :]) != message  # type: ignore[arg-type]


# ------------------------------------------------------------ padding


@pytest.mark.parametrize(("size", "padded"), V["padme"])
def test_padme_sizes(size: int, padded: int) -> None:
    assert wire.padded_size(size) == padded


@given(st.integers(0, 1 << 40))
def test_padme(size: int) -> None:
    padded = wire.padded_size(size)
    assert size <= padded <= size * 1.12 or size < 2 or padded - size <= 1
    assert wire.padded_size(padded) == padded
    assert padded <= wire.padded_size(size + 1)
    exponent = max(size.bit_length() - 1, 0)
    significant = padded // (padded & -padded) if padded else 0
    assert significant.bit_length() <= exponent.bit_length() + 1


@given(st.binary(max_size=5000), st.binary(max_size=50))
def test_padding_is_ignored_whatever_it_is(body: bytes, more: bytes) -> None:
    padded = wire.pad(body)
    assert len(padded) == wire.padded_size(len(body) + 4)
    assert wire.unpad(padded, "x") == body
    assert wire.unpad(padded + more, "x") == body
    assert wire.unpad(padded[: 4 + len(body)] + more, "x") == body
    with pytest.raises(Damaged):
        wire.unpad(padded[: 3 + len(body)], "x")


# ------------------------------------------------------------ compression


@given(st.binary(max_size=3000), st.sampled_from((1, 3)))
def test_frames_have_a_size_and_a_limit(data: bytes, level: int) -> None:
    frame = compress(data, level)
    assert decompress(frame, limit=len(data)) == data
    assert decompress(frame + b"ignored", limit=len(data)) == data
    if data:
        with pytest.raises(Damaged):
            decompress(frame, limit=len(data) - 1)


@given(st.binary(min_size=1, max_size=40))
def test_columns_divide(data: bytes) -> None:
    if len(data) % 4:
        with pytest.raises(Damaged):
            wire.split(data, 4, "x")
    else:
        assert b"".join(wire.split(data, 4, "x")) == data
