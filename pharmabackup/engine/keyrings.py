"""A credential's sealed keyring: sealing it, and finding the one that a credential opens.

Opening begins here, with the one step that takes time on purpose; everything else is imported while that runs.
"""

from __future__ import annotations

import os
import re

from pharmabackup.credentials import Credential, Passphrase
from pharmabackup.crypto import hashing, passphrases
from pharmabackup.crypto.sealing import NotAuthentic, SealingKey
from pharmabackup.errors import Damaged, Unsupported, WrongCredential
from pharmabackup.format import keys, wire
from pharmabackup.format.keys import Argon2id, Keyring, SealedKeyring
from pharmabackup.format.wire import Kind
from pharmabackup.storage.base import Storage

KEYRING = re.compile(r"keys/[0-9a-f]{32}/[0-9]+")
NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")


def seal_keyring(keyring: Keyring, number: int, credential: Passphrase) -> bytes:
    """The stored bytes of a keyring that this passphrase opens."""
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
            sealed = read_sealed(storage, f"keys/{slot_hex}/{number}", slot_hex)
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


def read_sealed(storage: Storage, name: str, slot: str) -> SealedKeyring:
    """A keyring as it lies there. Damaged, NotFound, StorageFailed."""
    data = storage.get(name, limit=keys.KEYRING_MAX + 4096)
    wire.check_header(data, Kind.KEYRING)
    sealed = wire.decode(memoryview(data)[wire.HEADER.size :], SealedKeyring)
    if sealed.slot.hex() != slot or sealed.number != numbered(name):
        raise wire.malformed("keyring", "it lies under another name than its own")
    if sealed.argon2id is not None and sealed.argon2id.memory_kib < 8 * sealed.argon2id.lanes:
        raise wire.malformed("keyring", "its Argon2id setting is impossible")
    return sealed


def numbered(name: str) -> int:
    """The number that an object's name ends with. Damaged when it ends with none, or with zeros before it."""
    last = name.rpartition("/")[2]
    if not NUMBER.fullmatch(last):
        raise wire.malformed("object name", f"{name} does not end with a number")
    return int(last)
