"""Every construction of ours: what is determined comes out as committed, and an independent reader opens the rest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pharmabackup import compression, ids
from pharmabackup.crypto import hashing
from pharmabackup.crypto.recipients import PrivateKey
from pharmabackup.crypto.sealing import NotAuthentic, SealingKey
from pharmabackup.engine import blocks, packs
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged
from pharmabackup.format import block, keys, wire
from pharmabackup.format.wire import Kind, Signed
from tests.crypto import make_constructions as made
from tests.crypto.known import decapsulated, scheduled, vectors
from tests.reader import wire as reader
from tests.reader.reader import Reader

V: dict[str, Any] = vectors("constructions")
REPOSITORY: bytes = V["repository"]
COVERED = {
    *made.RECORDS,  # test_signed_records, and directories in packs
    *made.PURPOSES,  # test_blocks
    *(Kind.NAMES, Kind.ROSTER, Kind.KEYRING, Kind.WRAPPED_KEY),  # tests of these names
}


def test_every_kind_has_a_vector() -> None:
    assert set(Kind) == COVERED
    assert V["records"].keys() == {kind.name for kind in made.RECORDS}
    assert V["blocks"].keys() == {kind.name for kind in made.PURPOSES}


def test_what_is_made_now_is_what_was_made() -> None:
    """All but what HPKE and the writer's zstd choose, and what lies around that."""
    again = made.make()
    for name in ("stretched", "pair", "repository", "roster", "keyring"):
        assert again[name] == V[name], name
    for group, fields in (("records", ("name", "signed")), ("blocks", ("id", "names"))):
        for kind, found in V[group].items():
            assert [again[group][kind][field] for field in fields] == [found[field] for field in fields], kind


# ------------------------------------------------------------ keys


def test_the_roster(unlocked: Unlocked, second: Reader) -> None:
    assert hashlib.sha256(V["roster"]).digest() == REPOSITORY
    assert unlocked.roster.slots[0].id == made.SLOT
    assert second.id == REPOSITORY
    assert second.rosters[0].slots[0].signing == unlocked.roster.slots[0].signing


def test_the_keyring(second: Reader) -> None:
    """By the passphrase alone, stretched as the roster says."""
    opener = made.opener()
    assert (made.stretched(), opener.private.raw) == (V["stretched"], V["pair"])
    ring = wire.decode(V["keyring"], keys.Keyring)
    assert ring == made.keyring(REPOSITORY)
    theirs = reader.Keyring(reader.unpack(V["keyring"]))
    sealed = wire.decode(V["sealed_keyring"][8:], keys.SealedKeyring)
    assert (sealed.number, sealed.key_id) == (7, hashing.key_id(opener.recipient))
    assert opener.open(REPOSITORY, sealed) == ring
    assert second._open_keyring(reader.SealedKeyring(reader.unpack(V["sealed_keyring"][8:]))) == theirs
    assert (second.block_names, second.naming) == (made.BLOCK_NAMES, {made.DOMAIN: made.NAMING})


def test_a_keyring_is_bound_to_what_it_is_of(second: Reader) -> None:
    opener = made.opener()
    sealed = wire.decode(V["sealed_keyring"][8:], keys.SealedKeyring)
    for changes in ({"number": sealed.number + 1}, {"slot": bytes(16)}, {"sealed": sealed.sealed[:-1]}):
        facts = {field: getattr(sealed, field) for field in sealed.__struct_fields__} | changes
        with pytest.raises(Damaged):
            opener.open(REPOSITORY, keys.SealedKeyring(**facts))
        stored = reader.SealedKeyring(reader.unpack(wire.encode(keys.SealedKeyring(**facts))))
        with pytest.raises(reader.Refused):
            second._open_keyring(stored)
    with pytest.raises(Damaged):
        opener.open(bytes(32), sealed)


def test_the_wrapped_key() -> None:
    key_id = hashing.key_id(made.TRANSACTION)
    info = wire.wrap_info(REPOSITORY, key_id)
    private = PrivateKey(made.READER)
    assert private.open(V["wrapped_key"], info) == made.TRANSACTION
    assert reader.ReaderKey(made.READER).open(V["wrapped_key"], info) == made.TRANSACTION
    shared = decapsulated(made.READER, private.public.raw, V["wrapped_key"][:1120])
    key, nonce = scheduled(shared, info, aead=2)
    assert AESGCM(key).decrypt(nonce, V["wrapped_key"][1120:], b"") == made.TRANSACTION
    for other in (wire.wrap_info(bytes(32), key_id), wire.wrap_info(REPOSITORY, bytes(32)), info + b"\0"):
        with pytest.raises(NotAuthentic):
            private.open(V["wrapped_key"], other)


def test_a_keys_id_commits_to_it() -> None:
    """One byte more or less is another id; and no other derivation gives it."""
    for key in (made.CATALOGUE, made.TRANSACTION, PrivateKey(made.READER).public.raw):
        assert hashing.key_id(key) == reader.key_id(key)
        for at in range(0, len(key), 7):
            assert hashing.key_id(key[:at] + bytes([key[at] ^ 1]) + key[at + 1 :]) != hashing.key_id(key)
    ids_ = {hashing.key_id(made.CATALOGUE), *(hashing.derive(purpose, made.CATALOGUE) for purpose in PURPOSES)}
    assert len(ids_) == len(PURPOSES) + 1


PURPOSES = ("data names", "manifest names", "recipe names", "chunker seed", "recipient", "extents", "index cache")


# ------------------------------------------------------------ signed records


@pytest.mark.parametrize("kind", made.RECORDS, ids=lambda kind: kind.name)
def test_signed_records(unlocked: Unlocked, second: Reader, kind: Kind) -> None:
    found, (name, record) = V["records"][kind.name], made.RECORDS[kind]
    opened = unlocked.open(kind, name, found["stored"], type(record))
    assert (opened.record, opened.signed, opened.slot.id) == (record, found["signed"], made.SLOT)
    theirs, slot, signed = second._open(found["stored"], kind, name)
    assert theirs == reader.RECORDS[kind](reader.unpack(wire.encode(record)))
    assert (slot.id, signed.content) == (made.SLOT, wire.encode(record))
    stored = found["stored"]
    assert stored[:40] == wire.header(kind) + hashing.key_id(made.CATALOGUE)
    body = SealingKey(made.CATALOGUE).open(stored[40:], wire.context(REPOSITORY, kind, stored[8:40]))
    assert compression.decompress(wire.unpad(body, "x"), limit=1 << 20) == found["signed"]
    assert len(body) == wire.padded_size(len(body))


@pytest.mark.parametrize("kind", made.RECORDS, ids=lambda kind: kind.name)
def test_a_record_passes_for_nothing_else(unlocked: Unlocked, second: Reader, kind: Kind) -> None:
    """Of another kind, under another name, in another repository, with another signature, by another slot."""
    found, (name, record) = V["records"][kind.name], made.RECORDS[kind]
    for other in made.RECORDS:
        if other != kind:
            with pytest.raises(Damaged):
                unlocked.open(other, made.RECORDS[other][0], found["stored"], type(made.RECORDS[other][1]))
            relabelled = wire.header(other) + found["stored"][8:]
            with pytest.raises(Damaged):
                unlocked.open(other, name, relabelled, type(record))
            with pytest.raises(reader.Refused):
                second._open(relabelled, other, name)
    if kind not in (Kind.DIRECTORY, Kind.INDEX):
        with pytest.raises(Damaged, match="signature"):
            unlocked.open(kind, name + "0", found["stored"], type(record))
        with pytest.raises(reader.Refused, match="signature"):
            second._open(found["stored"], kind, name + "0")
    signed = wire.decode(found["signed"], Signed)
    facts = {field: getattr(signed, field) for field in signed.__struct_fields__}
    changes: list[dict[str, Any]] = [
        {"signature": signed.signature[:-1] + bytes([signed.signature[-1] ^ 1])},
        {"content": signed.content + b"\xc0"},
        {"slot": bytes(16)},
        {"roster": 1},
        {"roster_hash": bytes(32)},
    ]
    for change in changes:
        data = unlocked.seal_signed(kind, Signed(**facts | change))
        with pytest.raises(Damaged):
            unlocked.open(kind, name, data, type(record))
        with pytest.raises(reader.Refused):
            second._open(data, kind, name)


# ------------------------------------------------------------ blocks and packs


@pytest.mark.parametrize("kind", made.PURPOSES, ids=lambda kind: kind.name)
def test_blocks(unlocked: Unlocked, kind: Kind) -> None:
    found, key = V["blocks"][kind.name], made.key_of(kind)
    context = wire.block_context(REPOSITORY, kind, hashing.key_id(key), found["id"])
    assert reader.unseal(key, found["sealed"], context) == found["frame"]
    sealed = {"kind": kind, "block_id": found["id"], "key_id": hashing.key_id(key)}
    content = blocks.open_block(unlocked, found["sealed"], key=SealingKey(key), **sealed)
    ends = block.chunk_ends(content)
    assert content[: ends[-1]] == b"".join(made.CHUNKS) == reader.unframe(found["frame"], 100, checksum=True)[:32]
    for change in (
        {"kind": next(other for other in made.PURPOSES if other != kind)},
        {"block_id": bytes(32)},
        {"key_id": bytes(32)},
    ):
        with pytest.raises(Damaged):
            blocks.open_block(unlocked, found["sealed"], key=SealingKey(key), **sealed | change)


def test_the_pack(unlocked: Unlocked, second: Reader) -> None:
    """Opened by both readers, by their own ways, down to every chunk."""
    digest, size = hashlib.sha256(V["pack"]).digest(), len(V["pack"])
    assert ids.pack_name(digest) == V["pack_name"]
    unlocked.storage.put_new(V["pack_name"], V["pack"])
    _, directory = packs.read_directory(unlocked, digest, size)
    second._load_index()
    for place, kind in enumerate(made.PURPOSES):
        found = V["blocks"][kind.name]
        assert directory.blocks[place].id == found["id"]
        assert tuple(second._read_instance(found["id"], kind, made.DOMAIN, digest, place)) == made.CHUNKS
    section = V["pack"][directory.region_size :][: directory.names_size]
    assert section == V["names_section"]
    context = wire.context(REPOSITORY, Kind.NAMES, section[8:40])
    assert SealingKey(made.CATALOGUE).open(section[40:], context) == b"".join(
        V["blocks"][kind.name]["names"] for kind in made.PURPOSES
    )


# ------------------------------------------------------------ who opens


@pytest.fixture
def unlocked() -> Unlocked:
    return made.opened(V["roster"])


@pytest.fixture
def second(tmp_path: Path) -> Reader:
    """The independent reader, of a folder with what is committed, opened by its passphrase."""
    place = tmp_path / "repository"
    slot = made.SLOT.hex()
    for name, data in {
        "repository": json.dumps({"pharmabackup": 1, "id": REPOSITORY.hex()}).encode(),
        "roster/0": V["roster"],
        f"keys/{slot}/7": V["sealed_keyring"],
        V["pack_name"]: V["pack"],
    }.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return Reader(place, made.PASSPHRASE)
