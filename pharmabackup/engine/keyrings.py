"""A credential's sealed keyrings: sealing them, and finding those that a credential opens.

Opening begins here, with the one step that takes time on purpose; everything else is imported while that runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NoReturn

from msgspec.structs import replace

from pharmabackup import ids
from pharmabackup.credentials import Credential, KeyFile, Passphrase, Recipient, Shares, Vault
from pharmabackup.crypto import hashing, passphrases
from pharmabackup.crypto.sealing import NotAuthentic, SealingKey
from pharmabackup.engine.lanes import in_lanes
from pharmabackup.errors import Damaged, InvalidInput, WrongCredential
from pharmabackup.format import keys, wire
from pharmabackup.format.keys import Argon2id, Keyring, NamingKey, Roster, SealedKeyring, Slot
from pharmabackup.format.wire import Kind
from pharmabackup.storage.base import Storage

if TYPE_CHECKING:  # imported while the passphrase is stretched
    from pharmabackup.crypto.recipients import PrivateKey

KEYRING = re.compile(r"keys/[0-9a-f]{32}/[0-9]+")
SETTINGS_TRIED = 3  # of a slot: its passphrase may have been changed while somebody gave it new keys


@dataclass(frozen=True, slots=True)
class Opener:
    """What opens the keyrings of one slot: a key pair.

    A passphrase's comes from the key that it was stretched to, which older keyrings are sealed under.
    """

    secret: bytes = field(repr=False)  # the pair's private half
    setting: Argon2id | None = None  # how a passphrase was stretched
    key: bytes | None = field(default=None, repr=False)  # to what

    def __reduce__(self) -> NoReturn:
        raise TypeError("Keys are not pickled.")

    @classmethod
    def of_passphrase(cls, credential: Passphrase, setting: Argon2id | None = None) -> Opener:
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
        from pharmabackup.crypto.recipients import SECRET_SIZE

        return cls(hashing.derive("recipient", key, SECRET_SIZE), setting, key)

    @classmethod
    def of_seed(cls, seed: bytes) -> Opener:
        from pharmabackup.crypto.recipients import PrivateKey

        return cls(PrivateKey.from_seed(seed).raw)

    @property
    def private(self) -> PrivateKey:
        """Its key pair: others seal to the public half without knowing what it comes from."""
        from pharmabackup.crypto.recipients import PrivateKey

        return PrivateKey(self.secret)

    @property
    def recipient(self) -> bytes:
        """The public half."""
        return self.private.public.raw

    @property
    def key_ids(self) -> frozenset[bytes]:
        """What is sealed under either of these it opens."""
        keys = [self.recipient] if self.key is None else [self.recipient, self.key]
        return frozenset(map(hashing.key_id, keys))

    def may_open(self, sealed: SealedKeyring) -> bool:
        """Whether a keyring says that it was sealed to this, or, of a recipient's slot, to its recipient."""
        if self.setting is None:
            return sealed.argon2id is None and sealed.key_id is None
        return sealed.key_id in self.key_ids

    def open(self, repository: bytes, sealed: SealedKeyring) -> Keyring:
        """What was sealed to it. Damaged."""
        key_id = sealed.key_id or hashing.key_id(self.recipient)
        context = wire.keyring_context(repository, key_id, sealed.slot, sealed.number)
        try:
            if self.key is not None and key_id == hashing.key_id(self.key):
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
        opened = list[Keyring]()
        for item in sealed:
            if self.may_open(item):
                try:
                    opened.append(self.open(repository, item))
                except Damaged as error:
                    unreadable.append(_of(item.slot.hex(), item.number, error))
        return opened


def key_of(credential: Credential) -> Passphrase | Opener:
    """What a credential comes to: only a passphrase's key depends on the keyring that it is tried on.

    NotFound, InvalidInput, StorageFailed, Unsupported.
    """
    if isinstance(credential, Vault):
        found = credential.found()
        return found if isinstance(found, Passphrase) else Opener.of_seed(found)
    if isinstance(credential, KeyFile | Shares):
        return Opener.of_seed(credential.reveal())
    if not isinstance(credential, Passphrase):
        raise InvalidInput(
            f"{type(credential).__name__} is no credential.",
            remedy="Give a pb.Passphrase, pb.KeyFile, pb.Vault or pb.Shares.",
        )
    return credential


@dataclass(frozen=True, slots=True)
class Way:
    """How a slot's keyrings are sealed, so that only its credential opens them."""

    credential: Literal["passphrase", "recipient", "shares"]
    recipient: bytes
    setting: Argon2id | None = None  # how its passphrase is stretched

    @classmethod
    def of(cls, who: Credential | Recipient) -> Way:
        """To what is enrolled anew. InvalidInput, NotFound, StorageFailed, Unsupported."""
        if isinstance(who, Recipient):
            return cls("recipient", who.raw)
        if isinstance(who, Shares):
            raise InvalidInput("Shares are made by split_recovery.", remedy="Enrol a key or a passphrase.")
        key = key_of(who)
        if isinstance(key, Opener):
            return cls("recipient", key.recipient)
        key.check_enrollable()
        opener = Opener.of_passphrase(key)
        return cls("passphrase", opener.recipient, opener.setting)


def seal_keyring(keyring: Keyring, number: int, way: Way) -> bytes:
    """The stored bytes of a keyring that whoever holds the private half of `way.recipient` opens."""
    from pharmabackup.crypto.recipients import PublicKey

    key_id = hashing.key_id(way.recipient)
    context = wire.keyring_context(keyring.repository, key_id, keyring.slot, number)
    sealed = PublicKey(way.recipient).seal(wire.pad(wire.encode(keyring)), context)
    told = None if way.setting is None else key_id
    return wire.header(Kind.KEYRING) + wire.encode(SealedKeyring(keyring.slot, number, way.setting, told, sealed))


@dataclass(frozen=True, slots=True)
class FoundKeys:
    """A slot's keyrings that a credential opens, and under which key ids there are keyrings of this slot."""

    slot: bytes
    opened: list[Keyring]
    opener: Opener
    sealed_to: frozenset[bytes]


def keyring_numbers(storage: Storage) -> dict[str, list[int]]:
    """By slot, ascending. Damaged, StorageFailed."""
    found: dict[str, list[int]] = {}
    for info in storage.list("keys"):
        if not KEYRING.fullmatch(info.name):
            error = wire.malformed("object name", f"{info.name} is no name of a keyring")
            raise wire.or_planted(error, info.name)
        found.setdefault(info.name.split("/")[1], []).append(numbered(info.name))
    return {slot: sorted(numbers) for slot, numbers in found.items()}


def find_keyrings(
    storage: Storage, repository: bytes, credential: Passphrase, *, but: frozenset[bytes] = frozenset()
) -> FoundKeys:
    """Those of the first slot of which this passphrase opens one, `but` these slots.

    What is damaged is passed over: others may hold the same keys. WrongCredential, Damaged, StorageFailed.
    """
    unreadable: list[Damaged] = []
    tried = 0
    slots = {slot: numbers for slot, numbers in sorted(_slots(storage).items()) if bytes.fromhex(slot) not in but}

    def read(slot: str) -> tuple[list[SealedKeyring], list[Damaged]]:
        damaged: list[Damaged] = []
        return read_whole(storage, slot, slots[slot], damaged), damaged

    for slot, get in in_lanes(storage.lanes, read, slots):
        sealed, damaged = get()
        unreadable += damaged
        settings = list(dict.fromkeys(item.argon2id for item in sealed if item.argon2id is not None))
        for setting in settings[:SETTINGS_TRIED]:
            if tried == keys.PASSPHRASE_SLOTS_MAX:
                break
            tried += 1
            opener = Opener.of_passphrase(credential, setting)
            opened = opener.open_all(repository, sealed, unreadable)
            if opened:
                found = frozenset(item.key_id for item in sealed if item.key_id is not None)
                return FoundKeys(bytes.fromhex(slot), opened, opener, found)
    if unreadable:
        raise unreadable[-1]
    raise wrong_passphrase()


def keyrings_of(
    storage: Storage, repository: bytes, opener: Opener, roster: Roster, *, but: frozenset[bytes] = frozenset()
) -> FoundKeys:
    """Those of the first slot, `but` these, that the roster says are sealed to this key.

    WrongCredential, Damaged, StorageFailed.
    """
    unreadable: list[Damaged] = []
    numbers, recipient = _slots(storage), opener.recipient
    for slot in roster.slots:
        if slot.id in but or slot.credential == "passphrase" or slot.recipient != recipient:
            continue
        sealed = read_whole(storage, slot.id.hex(), numbers.get(slot.id.hex(), []), unreadable)
        opened = opener.open_all(repository, sealed, unreadable)
        if opened:
            return FoundKeys(slot.id, opened, opener, opener.key_ids)
    if unreadable:
        raise unreadable[-1]
    raise WrongCredential(
        "This key does not open this repository.",
        remedy="Ask the owner to enrol it; he needs its public half, the file with .pub at its end.",
    )


def _slots(storage: Storage) -> dict[str, list[int]]:
    """As `keyring_numbers`. Damaged when there are none."""
    slots = keyring_numbers(storage)
    if not slots:
        raise Damaged(
            "This repository holds no keys: its folder keys/ is empty.",
            kind="keys-missing",
            remedy="Restore from another location; without keys nothing here can be read.",
        )
    return slots


def wrong_passphrase() -> WrongCredential:
    return WrongCredential(
        "This passphrase does not open this repository.",
        remedy="Type it again: capitals and spaces count. If it was changed, use the new one.",
    )


def check_not_revoked(slot: Slot) -> None:
    """WrongCredential."""
    if slot.revoked is not None:
        raise WrongCredential(
            f"This credential was revoked ({slot.revoked.reason}).",
            kind="revoked",
            remedy="Ask the owner to enrol a new one.",
        )


def joined(opened: Sequence[Keyring], roster: Roster) -> Keyring:
    """The keys of all a slot's keyrings that one credential opens, the newest first.

    Whoever may write to the storage can seal a keyring to a slot. So what names things is taken from one that holds
    the slot's signing key; others only add keys of generations and of domains, and of these such as the roster knows.
    """
    from pharmabackup.crypto.recipients import PrivateKey
    from pharmabackup.crypto.signatures import SigningKey

    known = {slot.signing for slot in roster.slots if slot.id == opened[0].slot}
    own = next((item for item in opened if item.signing and SigningKey(item.signing).public in known), opened[-1])
    generations = {generation.catalogue for generation in roster.generations}
    catalogue = {key.key: key for item in reversed(opened) for key in item.catalogue}
    recipients = {generation.reader for generation in roster.generations}
    readers = {key.key: key for item in reversed(opened) for key in item.readers}
    proved = [key for item in opened for key in item.naming if domain_of(key.key) == key.domain]
    naming: dict[bytes, NamingKey] = {}
    for key in (*own.naming, *proved):  # in this order: in the first one's domain an owner writes
        naming.setdefault(key.domain, key)
    domains = {domain.id for domain in roster.domains}
    return replace(
        own,
        naming=tuple(key for key in naming.values() if key.domain in domains),
        catalogue=tuple(key for key in catalogue.values() if hashing.key_id(key.key) in generations),
        readers=tuple(key for key in readers.values() if PrivateKey(key.key).public.raw in recipients),
    )


def domain_of(naming_key: bytes) -> bytes:
    """The id of the domain that this key names chunks in: a commitment to it, so that the roster proves the key."""
    return hashing.key_id(naming_key)[: ids.ID_SIZE]


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


def keyring_problem(storage: Storage, name: str, opener: Opener | None = None) -> Damaged | None:
    """What is wrong with the object of that name, as far as can be told without its keys. NotFound, StorageFailed.

    `opener`: its passphrase may have been stretched in another way than it says, which nobody else can tell.
    """
    try:
        _, slot, _ = name.split("/")
        sealed = read_sealed(storage, slot, numbered(name))
        if opener and sealed.key_id in opener.key_ids and sealed.argon2id != opener.setting:
            raise wire.malformed("keyring", "the way to stretch its passphrase was changed")
    except Damaged as error:
        return error
    except ValueError:
        return wire.malformed("object name", f"{name} is no keyring's")
    return None


def numbered(name: str) -> int:
    """The number that an object's name ends with. Damaged when it ends with none, or with zeros before it."""
    last = name.rpartition("/")[2]
    if not ids.NUMBER.fullmatch(last):
        raise wire.or_planted(wire.malformed("object name", f"{name} does not end with a number"), name)
    return int(last)
