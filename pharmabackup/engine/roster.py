"""Making a repository's first roster and keyring; finding the keyring that a credential opens; reading rosters."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass

from pharmabackup import ids
from pharmabackup.clock import now_ns
from pharmabackup.credentials import Credential, Passphrase
from pharmabackup.crypto import hashing, passphrases, signatures
from pharmabackup.crypto.recipients import PrivateKey
from pharmabackup.crypto.sealing import NotAuthentic, SealingKey
from pharmabackup.errors import Damaged, NotFound, Unsupported, WrongCredential
from pharmabackup.format import keys, wire
from pharmabackup.format.keys import Argon2id, Keyring, Roster, SealedKeyring, SignedRoster
from pharmabackup.format.repository import check_features
from pharmabackup.format.wire import Kind
from pharmabackup.storage.base import Storage

CHUNKER = keys.ContentChunker(minimum=16 << 10, average=64 << 10, maximum=256 << 10, normalization=1)
FORGET_DELAY_S = 14 * 86400
FIRST_DOMAIN = "main"
FIRST_SLOT = "owner"
KEYRING = re.compile(r"keys/[0-9a-f]{32}/[0-9]+")
NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
NO_REPOSITORY = bytes(32)  # roster/0 is signed before its hash, the repository's id, is known


@dataclass(frozen=True, slots=True)
class Founding:
    """A new repository's first objects; `repository` is its id."""

    repository: bytes
    roster: bytes
    keyring_name: str
    keyring: bytes


def found(credential: Passphrase) -> Founding:
    """Keys for a new repository with one owner and one domain. Writes nothing."""
    credential.check_enrollable()
    signing, reader = signatures.SigningKey.generate(), PrivateKey.generate()
    catalogue, naming, block_names = os.urandom(32), os.urandom(32), os.urandom(32)
    slot, domain = ids.new_id(), ids.new_id()
    owner = keys.Slot(slot, FIRST_SLOT, "owner", None, "passphrase", signing.public, None, now_ns(), None)
    roster = Roster(
        number=0,
        previous=None,
        created=owner.created,
        features=(),
        slots=(owner,),
        domains=(keys.Domain(domain, FIRST_DOMAIN),),
        generations=(keys.Generation(0, hashing.key_id(catalogue), reader.public.raw),),
        recovery=None,
        policy=keys.Policy((), FORGET_DELAY_S, 1, 0, False),
        chunker=CHUNKER,
        pack_floor=0,
    )
    content = wire.encode(roster)
    message = _roster_message(NO_REPOSITORY, 0, slot, NO_REPOSITORY, content)
    stored = wire.header(Kind.ROSTER) + wire.encode(SignedRoster(content, slot, signing.sign(message)))
    repository = hashlib.sha256(stored).digest()
    keyring = Keyring(
        repository=repository,
        slot=slot,
        role="owner",
        signing=signing.seed,
        naming=(keys.NamingKey(domain, naming),),
        catalogue=(keys.CatalogueKey(0, catalogue),),
        block_names=block_names,
        readers=(keys.ReaderKey(0, reader.raw),),
    )
    return Founding(repository, stored, ids.keyring_name(slot, 0), _seal_keyring(keyring, 0, credential))


def _roster_message(repository: bytes, number: int, slot: bytes, previous: bytes, content: bytes) -> bytes:
    return wire.signed_message(
        repository, Kind.ROSTER, ids.roster_name(number), slot, max(number - 1, 0), previous, content
    )


def _seal_keyring(keyring: Keyring, number: int, credential: Passphrase) -> bytes:
    setting = Argon2id(
        os.urandom(passphrases.SALT_SIZE), passphrases.MEMORY_KIB, passphrases.ITERATIONS, passphrases.LANES
    )
    kek = _stretch(credential, setting)
    key_id = hashing.key_id(kek)
    context = wire.keyring_context(keyring.repository, key_id, keyring.slot, number)
    sealed = SealingKey(kek).seal(wire.pad(wire.encode(keyring)), context)
    return wire.header(Kind.KEYRING) + wire.encode(SealedKeyring(keyring.slot, number, setting, key_id, sealed))


def _stretch(credential: Passphrase, setting: Argon2id) -> bytes:
    return passphrases.stretch(
        credential.reveal(),
        salt=setting.salt,
        memory_kib=setting.memory_kib,
        iterations=setting.iterations,
        lanes=setting.lanes,
    )


def find_keyring(storage: Storage, repository: bytes, credential: Credential) -> Keyring:
    """The keyring that this credential opens. WrongCredential("no-slot"), Damaged, StorageFailed."""
    if not isinstance(credential, Passphrase):
        raise Unsupported("This kind of credential cannot open a repository.", remedy="Use a passphrase.")
    newest: dict[str, int] = {}
    for info in storage.list("keys"):
        if not KEYRING.fullmatch(info.name):
            raise wire.malformed("object name", f"{info.name} is no name of a keyring")
        slot = info.name.split("/")[1]
        newest[slot] = max(newest.get(slot, 0), numbered(info.name))
    if not newest:
        raise Damaged(
            "This repository holds no keys: its folder keys/ is empty.",
            kind="keys-missing",
            remedy="Restore from another location; without keys nothing here can be read.",
        )
    unreadable: Damaged | None = None
    tried = 0
    for slot_hex, number in sorted(newest.items()):
        try:
            sealed = _read_sealed(storage, f"keys/{slot_hex}/{number}", slot_hex)
        except Damaged as error:
            unreadable = error
            continue
        if sealed.argon2id is None or tried == keys.PASSPHRASE_SLOTS_MAX:
            continue
        tried += 1
        kek = _stretch(credential, sealed.argon2id)
        key_id = hashing.key_id(kek)
        if key_id != sealed.key_id:
            continue
        try:
            context = wire.keyring_context(repository, key_id, sealed.slot, sealed.number)
            opened = SealingKey(kek).open(sealed.sealed, context)
        except NotAuthentic:
            unreadable = wire.malformed("keyring", "it was changed after it was written")
            continue
        keyring = wire.decode(wire.unpad(opened, "keyring"), Keyring)
        if keyring.slot != sealed.slot or keyring.repository != repository:
            raise Damaged("A keyring belongs to another repository.", kind="keys", remedy="Ask the owner.")
        return keyring
    if unreadable is not None:
        raise unreadable
    raise WrongCredential(
        "This passphrase does not open this repository.",
        remedy="Type it again: capitals and spaces count. If it was changed, use the new one.",
    )


def numbered(name: str) -> int:
    """The number that an object's name ends with. Damaged when it ends with none, or with zeros before it."""
    last = name.rpartition("/")[2]
    if not NUMBER.fullmatch(last):
        raise wire.malformed("object name", f"{name} does not end with a number")
    return int(last)


def _read_sealed(storage: Storage, name: str, slot: str) -> SealedKeyring:
    data = storage.get(name, limit=keys.KEYRING_MAX + 4096)
    wire.check_header(data, Kind.KEYRING)
    sealed = wire.decode(memoryview(data)[wire.HEADER.size :], SealedKeyring)
    if sealed.slot.hex() != slot or sealed.number != numbered(name):
        raise wire.malformed("keyring", "it lies under another name than its own")
    if sealed.argon2id is not None and sealed.argon2id.memory_kib < 8 * sealed.argon2id.lanes:
        raise wire.malformed("keyring", "its Argon2id setting is impossible")
    return sealed


@dataclass(frozen=True, slots=True)
class Rosters:
    """The newest roster, its hash, and the hash of every roster by number."""

    newest: Roster
    newest_hash: bytes
    hashes: dict[int, bytes]


def read_rosters(storage: Storage, repository: bytes) -> Rosters:
    """All rosters, each signed by an owner of the one before it. Damaged, Unsupported, StorageFailed."""
    numbers = sorted(numbered(info.name) for info in storage.list("roster"))
    if not numbers or numbers != list(range(len(numbers))):
        raise Damaged(
            "The list of who may do what is incomplete: an object in roster/ is missing.",
            kind="roster-missing",
            remedy="Restore from another location.",
        )
    hashes: dict[int, bytes] = {}
    before: Roster | None = None
    for number in numbers:
        try:
            data = storage.get(ids.roster_name(number), limit=keys.ROSTER_MAX + 4096)
        except NotFound:
            raise Damaged(
                "The list of who may do what vanished while it was read.",
                kind="roster-missing",
                remedy="Run it again; if it happens again, restore from another location.",
            ) from None
        roster = _check_roster(data, number, repository, before, hashes)
        hashes[number] = hashlib.sha256(data).digest()
        before = roster
    assert before is not None
    return Rosters(before, hashes[numbers[-1]], hashes)


def _check_roster(
    data: bytes, number: int, repository: bytes, before: Roster | None, hashes: dict[int, bytes]
) -> Roster:
    wire.check_header(data, Kind.ROSTER)
    if number == 0 and hashlib.sha256(data).digest() != repository:
        raise wire.malformed("roster", "the first one is not the one that this repository began with")
    signed = wire.decode(memoryview(data)[wire.HEADER.size :], SignedRoster)
    check_features(keys.features_of(signed.content))  # before its other fields are judged: it may have new ones
    roster = wire.decode(signed.content, Roster)
    previous = hashes.get(number - 1)
    if roster.number != number or roster.previous != previous:
        raise wire.malformed("roster", "it does not follow from the one before it")
    signers = (before or roster).slots
    signer = next((slot for slot in signers if slot.id == signed.slot and slot.role == "owner"), None)
    message = _roster_message(
        repository if number else NO_REPOSITORY, number, signed.slot, previous or NO_REPOSITORY, signed.content
    )
    if (
        signer is None
        or signer.revoked is not None
        or not signatures.is_signed(signer.signing, signed.signature, message)
    ):
        raise wire.malformed("roster", "it is not signed by an owner")
    return roster
