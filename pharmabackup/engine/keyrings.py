"""A credential's sealed keyrings: sealing them, and finding those that a credential opens.

Opening begins here, with the one step that takes time on purpose; everything else is imported while that runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from msgspec.structs import replace

from pharmabackup.credentials import Credential, Passphrase
from pharmabackup.crypto import hashing, passphrases
from pharmabackup.crypto.sealing import NotAuthentic, SealingKey
from pharmabackup.errors import Damaged, Unsupported, WrongCredential
from pharmabackup.format import keys, wire
from pharmabackup.format.keys import Argon2id, Keyring, Roster, SealedKeyring
from pharmabackup.format.wire import Kind
from pharmabackup.storage.base import Storage

if TYPE_CHECKING:  # imported while the passphrase is stretched
    from pharmabackup.crypto.recipients import PrivateKey

KEYRING = re.compile(r"keys/[0-9a-f]{32}/[0-9]+")
SETTINGS_TRIED = 3  # of a slot: its passphrase may have been changed while somebody gave it new keys
NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class Stretched:
    """What a passphrase was stretched to: it opens the keyrings of one slot."""

    setting: Argon2id
    key: bytes = field(repr=False)

    def __reduce__(self) -> NoReturn:
        raise TypeError("Keys are not pickled.")

    @classmethod
    def of(cls, credential: Passphrase, setting: Argon2id | None = None) -> Stretched:
        """With a new salt when there is no setting yet."""
        if setting is None:
            salt = os.urandom(passphrases.SALT_SIZE)
            setting = Argon2id(salt, passphrases.MEMORY_KIB, passphrases.ITERATIONS, passphrases.LANES)
        key = passphrases.stretch(
            credential.reveal(),
            salt=setting.salt,
            memory_kib=setting.memory_kib,
            iterations=setting.iterations,
            lanes=setting.lanes,
        )
        return cls(setting, key)

    @property
    def private(self) -> PrivateKey:
        """Its key pair: others seal to the public half without knowing the passphrase."""
        from pharmabackup.crypto.recipients import SECRET_SIZE, PrivateKey

        return PrivateKey(hashing.derive("recipient", self.key, SECRET_SIZE))

    @property
    def key_ids(self) -> frozenset[bytes]:
        """What is sealed under either of these it opens."""
        return frozenset((hashing.key_id(self.key), hashing.key_id(self.private.public.raw)))

    def open(self, repository: bytes, sealed: SealedKeyring) -> Keyring:
        """What was sealed to it. Damaged."""
        assert sealed.key_id is not None
        context = wire.keyring_context(repository, sealed.key_id, sealed.slot, sealed.number)
        try:
            if sealed.key_id == hashing.key_id(self.key):
                opened = SealingKey(self.key).open(sealed.sealed, context)
            else:
                opened = self.private.open(sealed.sealed, context)
        except NotAuthentic:
            raise wire.malformed("keyring", "it was changed after it was written") from None
        keyring = wire.decode(wire.unpad(opened, "keyring"), Keyring)
        if keyring.slot != sealed.slot or keyring.repository != repository:
            raise Damaged("A keyring belongs to another repository.", kind="keys", remedy="Ask the owner.")
        return keyring

    def open_all(
        self, repository: bytes, sealed: Iterable[SealedKeyring], unreadable: list[Damaged]
    ) -> list[Keyring]:
        """Those of these that were sealed to it; what is damaged is told in `unreadable`."""
        key_ids, opened = self.key_ids, list[Keyring]()
        for item in sealed:
            if item.key_id in key_ids:
                try:
                    opened.append(self.open(repository, item))
                except Damaged as error:
                    unreadable.append(_of(item.slot.hex(), item.number, error))
        return opened


def seal_keyring(keyring: Keyring, number: int, setting: Argon2id, recipient: bytes) -> bytes:
    """The stored bytes of a keyring that whoever holds the private half of `recipient` opens."""
    from pharmabackup.crypto.recipients import PublicKey

    key_id = hashing.key_id(recipient)
    context = wire.keyring_context(keyring.repository, key_id, keyring.slot, number)
    sealed = PublicKey(recipient).seal(wire.pad(wire.encode(keyring)), context)
    return wire.header(Kind.KEYRING) + wire.encode(SealedKeyring(keyring.slot, number, setting, key_id, sealed))


@dataclass(frozen=True, slots=True)
class FoundKeys:
    """A slot's keyrings that a passphrase opens, and under which key ids there are keyrings of this slot."""

    slot: bytes
    opened: list[Keyring]
    stretched: Stretched
    sealed_to: frozenset[bytes]


def keyring_numbers(storage: Storage) -> dict[str, list[int]]:
    """By slot, ascending. Damaged, StorageFailed."""
    found: dict[str, list[int]] = {}
    for info in storage.list("keys"):
        if not KEYRING.fullmatch(info.name):
            raise wire.malformed("object name", f"{info.name} is no name of a keyring")
        found.setdefault(info.name.split("/")[1], []).append(numbered(info.name))
    return {slot: sorted(numbers) for slot, numbers in found.items()}


def find_keyrings(
    storage: Storage, repository: bytes, credential: Credential, *, but: frozenset[bytes] = frozenset()
) -> FoundKeys:
    """Those of the first slot of which this credential opens one, `but` these slots.

    What is damaged is passed over: others may hold the same keys. WrongCredential, Damaged, StorageFailed.
    """
    if not isinstance(credential, Passphrase):
        raise Unsupported("This kind of credential cannot open a repository.", remedy="Use a passphrase.")
    slots = keyring_numbers(storage)
    if not slots:
        raise Damaged(
            "This repository holds no keys: its folder keys/ is empty.",
            kind="keys-missing",
            remedy="Restore from another location; without keys nothing here can be read.",
        )
    unreadable: list[Damaged] = []
    tried = 0
    for slot, numbers in sorted(slots.items()):
        if bytes.fromhex(slot) in but:
            continue
        sealed = read_whole(storage, slot, numbers, unreadable)
        settings = list(dict.fromkeys(item.argon2id for item in sealed if item.argon2id is not None))
        for setting in settings[:SETTINGS_TRIED]:
            if tried == keys.PASSPHRASE_SLOTS_MAX:
                break
            tried += 1
            stretched = Stretched.of(credential, setting)
            opened = stretched.open_all(repository, sealed, unreadable)
            if opened:
                found = frozenset(item.key_id for item in sealed if item.key_id is not None)
                return FoundKeys(bytes.fromhex(slot), opened, stretched, found)
    if unreadable:
        raise unreadable[-1]
    raise wrong_passphrase()


def wrong_passphrase() -> WrongCredential:
    return WrongCredential(
        "This passphrase does not open this repository.",
        remedy="Type it again: capitals and spaces count. If it was changed, use the new one.",
    )


def joined(opened: Sequence[Keyring], roster: Roster) -> Keyring:
    """The keys of all a slot's keyrings that one credential opens, the newest first.

    Whoever may write to the storage can seal a keyring to a slot. So what names things is taken from one that holds
    the slot's signing key; others only add keys of generations, and of these such as the roster knows.
    """
    from pharmabackup.crypto.signatures import SigningKey

    known = {slot.signing for slot in roster.slots if slot.id == opened[0].slot}
    own = next((item for item in opened if item.signing and SigningKey(item.signing).public in known), opened[-1])
    generations = {generation.catalogue for generation in roster.generations}
    catalogue = {key.key: key for item in reversed(opened) for key in item.catalogue}
    readers = {key.key: key for item in reversed(opened) for key in item.readers}
    return replace(
        own,
        catalogue=tuple(key for key in catalogue.values() if hashing.key_id(key.key) in generations),
        readers=tuple(readers.values()),
    )


def read_whole(storage: Storage, slot: str, numbers: Iterable[int], unreadable: list[Damaged]) -> list[SealedKeyring]:
    """A slot's keyrings, the newest first; what is damaged is told in `unreadable`. NotFound, StorageFailed."""
    found: list[SealedKeyring] = []
    for number in sorted(numbers, reverse=True):
        try:
            found.append(read_sealed(storage, slot, number))
        except Damaged as error:
            unreadable.append(_of(slot, number, error))
    return found


def _of(slot: str, number: int, error: Damaged) -> Damaged:
    """The same error, saying in which object: who cannot open the repository cannot run a check either."""
    name = f"keys/{slot}/{number}"
    return Damaged(f"{error.message} Object: {name}.", kind=error.kind, remedy=f"Copy {name} from another location.")


def read_sealed(storage: Storage, slot: str, number: int) -> SealedKeyring:
    """One stored keyring. Damaged, NotFound, StorageFailed."""
    name = f"keys/{slot}/{number}"
    data = storage.get(name, limit=keys.KEYRING_MAX + 4096)
    wire.check_header(data, Kind.KEYRING)
    sealed = wire.decode(memoryview(data)[wire.HEADER.size :], SealedKeyring)
    if sealed.slot.hex() != slot or sealed.number != number:
        raise wire.malformed("keyring", "it lies under another name than its own")
    if sealed.argon2id is not None and sealed.argon2id.memory_kib < 8 * sealed.argon2id.lanes:
        raise wire.malformed("keyring", "its Argon2id setting is impossible")
    return sealed


def keyring_problem(storage: Storage, name: str, stretched: Stretched | None = None) -> Damaged | None:
    """What is wrong with the object of that name, as far as can be told without its keys. NotFound, StorageFailed.

    `stretched`: what opens it may have been stretched in another way than it says, which nobody else can tell.
    """
    try:
        _, slot, _ = name.split("/")
        sealed = read_sealed(storage, slot, numbered(name))
        if stretched and sealed.key_id in stretched.key_ids and sealed.argon2id != stretched.setting:
            raise wire.malformed("keyring", "the way to stretch its passphrase was changed")
    except Damaged as error:
        return error
    except ValueError:
        return wire.malformed("object name", f"{name} is no keyring's")
    return None


def numbered(name: str) -> int:
    """The number that an object's name ends with. Damaged when it ends with none, or with zeros before it."""
    last = name.rpartition("/")[2]
    if not NUMBER.fullmatch(last):
        raise wire.malformed("object name", f"{name} does not end with a number")
    return int(last)
