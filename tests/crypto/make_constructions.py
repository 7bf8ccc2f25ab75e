"""Makes vectors/constructions.json again: `python -m tests.crypto.make_constructions`.

One object of each kind and what each is made of, sealed and signed by keys that are known. It is committed, and made
again only when the format has a new kind: what is determined stays as it is, and a test says so; HPKE takes random
bytes of its own.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from pharmabackup import ids
from pharmabackup.compression import compress
from pharmabackup.credentials import Passphrase
from pharmabackup.crypto import hashing, passphrases, signatures
from pharmabackup.crypto.recipients import PrivateKey, PublicKey
from pharmabackup.crypto.sealing import SealingKey
from pharmabackup.engine.grants import GRANTS, SELF_NAMED
from pharmabackup.engine.keyrings import Opener, seal_keyring
from pharmabackup.engine.roster import CHUNKER, NO_REPOSITORY, read_rosters, roster_message
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.format import block, keys, pack, wire
from pharmabackup.format.keys import Argon2id, Keyring
from pharmabackup.format.repository import RepositoryRecord
from pharmabackup.format.wire import Kind, Record
from pharmabackup.storage.memory import MemoryStorage
from tests.format import samples as s

PASSPHRASE = "vier W\u00f6rter, die niemand r\u00e4t"
SETTING = Argon2id(bytes(range(16)), 64, 1, 4)
NOW = 1_700_000_000_000_000_000
CATALOGUE, NAMING, BLOCK_NAMES, SEED, TRANSACTION = (bytes(range(at, at + 32)) for at in range(0, 160, 32))
READER = bytes(range(96))
SLOT, DOMAIN = b"\xbb" * 16, b"\xcc" * 16
CHUNKS = (b"Take one tablet daily.", b"With food.")
PURPOSES = {Kind.DATA_BLOCK: "data names", Kind.MANIFEST_BLOCK: "manifest names", Kind.RECIPE_BLOCK: "recipe names"}

_ID = "11" * 16
RECORDS: dict[Kind, tuple[str, Record]] = {
    Kind.DIRECTORY: ("packs/", s.DIRECTORY),
    Kind.INDEX: ("index/", s.SEGMENT),
    Kind.INTENT: (f"intents/{_ID}.0", s.INTENT),
    Kind.FATE: (f"snapshots/{_ID}", s.FATE),
    Kind.CARRY: (f"snapshots/{_ID}", s.CARRY),
    Kind.CONDEMN: ("collections/1/condemn", s.CONDEMN),
    Kind.EXECUTE: ("collections/1/execute", s.EXECUTE),
    Kind.DONE: ("collections/1/done", s.DONE),
    Kind.MARK: (f"marks/{_ID}", s.MARK),
    Kind.AUDIT: (f"audit/{_ID}/1", s.AUDIT),
}
assert RECORDS.keys() == GRANTS.keys()
assert all(RECORDS[kind][0] == name for kind, name in SELF_NAMED.items())


def roster() -> bytes:
    """Stored roster 0, whose hash is the repository's id."""
    signer = signatures.SigningKey(SEED)
    slot = keys.Slot(
        SLOT, "owner", "owner", None, "passphrase", signer.public, opener().recipient, NOW, None, SETTING
    )
    first = keys.Roster(
        number=0,
        previous=None,
        created=NOW,
        features=(),
        slots=(slot,),
        domains=(keys.Domain(DOMAIN, "main"),),
        generations=(keys.Generation(0, hashing.key_id(CATALOGUE), PrivateKey(READER).public.raw),),
        recovery=None,
        policy=keys.Policy((), 14 * 86400, 1, 0, False),
        chunker=CHUNKER,
        pack_floor=0,
    )
    content = wire.encode(first)
    signature = signer.sign(roster_message(NO_REPOSITORY, 0, SLOT, NO_REPOSITORY, content))
    return wire.header(Kind.ROSTER) + wire.encode(keys.SignedRoster(content, SLOT, signature))


def opener() -> Opener:
    return Opener.of_passphrase(Passphrase(PASSPHRASE), SETTING)


def stretched() -> bytes:
    return passphrases.stretch(
        PASSPHRASE,
        salt=SETTING.salt,
        memory_kib=SETTING.memory_kib,
        iterations=SETTING.iterations,
        lanes=SETTING.lanes,
    )


def keyring(repository: bytes) -> Keyring:
    return Keyring(
        repository=repository,
        slot=SLOT,
        role="owner",
        signing=SEED,
        naming=(keys.NamingKey(DOMAIN, NAMING),),
        catalogue=(keys.CatalogueKey(0, CATALOGUE),),
        block_names=BLOCK_NAMES,
        readers=(keys.ReaderKey(0, READER),),
    )


def opened(stored_roster: bytes) -> Unlocked:
    """An owner's, over a storage that has this roster alone."""
    storage, repository = MemoryStorage(), hashlib.sha256(stored_roster).digest()
    storage.put_new("roster/0", stored_roster)
    rosters = read_rosters(storage, repository)
    return Unlocked(
        storage=storage,
        record=RepositoryRecord(pharmabackup=1, id=repository.hex()),
        repository=repository,
        roster=rosters.newest,
        roster_hash=rosters.newest_hash,
        rosters=rosters.hashes,
        revoked_in=rosters.revoked_in,
        keyring=keyring(repository),
        opener=opener(),
        state=Path("nowhere"),
        queue=Path("nowhere"),
    )


def block_of(kind: Kind) -> tuple[bytes, bytes, bytes]:
    """Its id, its chunks' names, and its frame."""
    names = b"".join(hashing.keyed(hashing.derive(PURPOSES[kind], NAMING), chunk) for chunk in CHUNKS)
    lengths = b"".join(struct.pack("<I", len(chunk)) for chunk in CHUNKS)
    frame = compress(b"".join(CHUNKS) + block.trailer(lengths), 3, checksum=True)
    return hashing.keyed(BLOCK_NAMES, bytes([kind]) + names), names, frame


def key_of(kind: Kind) -> bytes:
    """What it is sealed under."""
    return CATALOGUE if kind == Kind.RECIPE_BLOCK else TRANSACTION


@contextmanager
def fixed_random_bytes() -> Iterator[None]:
    with mock.patch("os.urandom", Random(4).randbytes):
        yield


def make() -> dict[str, Any]:
    with fixed_random_bytes():
        stored_roster = roster()
        unlocked = opened(stored_roster)
        ring, repository = unlocked.keyring, unlocked.repository
        records = {}
        for kind, (name, record) in RECORDS.items():
            signed = unlocked.sign(kind, name, record)
            found = {"name": name, "signed": wire.encode(signed), "stored": unlocked.seal_signed(kind, signed)}
            records[kind.name] = found
        wrapped = PublicKey(PrivateKey(READER).public.raw).seal(
            TRANSACTION, wire.wrap_info(repository, hashing.key_id(TRANSACTION))
        )
        blocks, listed, at = {}, [], 0
        for place, kind in enumerate(PURPOSES):
            block_id, names, frame = block_of(kind)
            key = key_of(kind)
            context = wire.block_context(repository, kind, hashing.key_id(key), block_id)
            sealed = SealingKey(key).seal(frame, context)
            blocks[kind.name] = {"id": block_id, "names": names, "frame": frame, "sealed": sealed}
            listed.append(pack.Block(block_id, kind, place // 2, at, len(sealed), len(CHUNKS)))
            at += len(sealed)
        region = b"".join(made["sealed"] for made in blocks.values())
        names_section = unlocked.seal_body(Kind.NAMES, b"".join(made["names"] for made in blocks.values()))
        wraps = (pack.Wrap(hashing.key_id(PrivateKey(READER).public.raw), wrapped),)
        held = (pack.WrappedKey(hashing.key_id(TRANSACTION), wraps), pack.WrappedKey(hashing.key_id(CATALOGUE), ()))
        directory = pack.Directory(
            DOMAIN, hashlib.sha256(region).digest(), len(region), len(names_section), held, tuple(listed)
        )
        sealed_directory = unlocked.seal(Kind.DIRECTORY, "packs/", directory)
        end = sealed_directory + pack.TRAILER.pack(len(sealed_directory), pack.TRAILER_MAGIC)
        whole = region + names_section + end
        filler = b"f" * (wire.padded_size(len(whole)) - len(whole))
        return {
            "passphrase": PASSPHRASE,
            "stretched": stretched(),
            "pair": hashing.derive("recipient", stretched(), 96),
            "repository": repository,
            "roster": stored_roster,
            "keyring": wire.encode(ring),
            "sealed_keyring": seal_keyring(ring, 7, opener().recipient),
            "wrapped_key": wrapped,
            "records": records,
            "names_section": names_section,
            "blocks": blocks,
            "pack": region + names_section + filler + end,
            "pack_name": ids.pack_name(hashlib.sha256(region + names_section + filler + end).digest()),
        }


def _readable(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    return {key: _readable(item) for key, item in value.items()} if isinstance(value, dict) else value


if __name__ == "__main__":
    about = (
        "This library, by tests/crypto/make_constructions.py; tests/reader, which shares no code with it, reads them"
    )
    out = Path(__file__).parent / "vectors" / "constructions.json"
    out.write_text(json.dumps(_readable({"source": about} | make()), indent=1, ensure_ascii=False) + "\n", "utf-8")
