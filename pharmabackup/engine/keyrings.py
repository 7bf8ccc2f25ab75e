"""A slot's sealed keyrings: sealing them, and what a credential opens of them.

Nobody signs a keyring, so none says how its credential is made to open it: the roster does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NoReturn

from msgspec.structs import replace

from pharmabackup import ids
from pharmabackup.credentials import Credential, KeyFile, Passphrase, Recipient, Shares, Vault
from pharmabackup.crypto import hashing, passphrases
from pharmabackup.crypto.sealing import NotAuthentic
from pharmabackup.errors import Damaged, InvalidInput, WrongCredential
from pharmabackup.format import keys, wire
from pharmabackup.format.keys import (
    Argon2id,
    CatalogueKey,
    Keyring,
    NamingKey,
    ReaderKey,
    Roster,
    SealedKeyring,
    Slot,
)
from pharmabackup.format.wire import Kind
from pharmabackup.storage.base import ObjectInfo, Storage

if TYPE_CHECKING:  # imported while the passphrase is stretched
    from pharmabackup.crypto.recipients import PrivateKey

KEYRING = re.compile(rf"keys/[0-9a-f]{{32}}/({ids.NUMBER.pattern})")
STORED_MAX = keys.KEYRING_MAX + 4096
NUMBER_LAST = 1 << 56  # far more changes than a slot ever has; above it no replica takes one


@dataclass(frozen=True, slots=True)
class Opener:
    """What opens the keyrings of one slot: a key pair."""

    secret: bytes = field(repr=False)  # the pair's private half

    def __reduce__(self) -> NoReturn:
        raise TypeError("Keys are not pickled.")

    @classmethod
    def of_passphrase(cls, credential: Passphrase, setting: Argon2id) -> Opener:
        """The pair that this passphrase comes to. It takes time on purpose; Unsupported without the memory for it."""
        key = passphrases.stretch(
            credential.reveal(),
            salt=setting.salt,
            memory_kib=setting.memory_kib,
            iterations=setting.iterations,
            lanes=setting.lanes,
        )
        from pharmabackup.crypto.recipients import SECRET_SIZE

        return cls(hashing.derive("recipient", key, SECRET_SIZE))

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

    def may_open(self, sealed: SealedKeyring) -> bool:
        """Whether a keyring says that it was sealed to this."""
        return sealed.key_id == hashing.key_id(self.recipient)

    def open(self, repository: bytes, sealed: SealedKeyring) -> Keyring:
        """What was sealed to it. Damaged."""
        context = wire.keyring_context(repository, sealed.key_id, sealed.slot, sealed.number)
        try:
            opened = self.private.open(sealed.sealed, context)
        except NotAuthentic:
            raise wire.malformed("keyring", "it was changed after it was written") from None
        keyring = wire.decode(wire.unpad(opened, "keyring"), Keyring)
        if keyring.slot != sealed.slot or keyring.repository != repository:
            raise Damaged("A keyring belongs to another repository.", kind="keys", remedy="Ask the owner.")
        return keyring

    def open_all(
        self, repository: bytes, sealed: Iterable[SealedKeyring], unreadable: list[Damaged]
    ) -> Iterator[Keyring]:
        """Those of these that were sealed to it, one after another; what is damaged is told in `unreadable`."""
        own = hashing.key_id(self.recipient)
        for item in sealed:
            if item.key_id == own:
                try:
                    yield self.open(repository, item)
                except Damaged as error:
                    unreadable.append(_of(item.slot.hex(), item.number, error))


def key_of(credential: Credential) -> Passphrase | Opener:
    """What a credential comes to: only a passphrase's key depends on the slot that it is tried on.

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
    """Whom a slot's keyrings are sealed to, so that only its credential opens them: what its owner signs of that."""

    credential: Literal["passphrase", "recipient", "shares"]
    recipient: bytes
    argon2id: Argon2id | None = None  # how its passphrase is stretched

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
        setting = new_setting()
        return cls("passphrase", Opener.of_passphrase(key, setting).recipient, setting)


def new_setting() -> Argon2id:
    """How a passphrase is stretched from now on: with a salt of its own."""
    salt = os.urandom(passphrases.SALT_SIZE)
    return Argon2id(salt, passphrases.MEMORY_KIB, passphrases.ITERATIONS, passphrases.LANES)


def seal_keyring(keyring: Keyring, number: int, recipient: bytes) -> bytes:
    """The stored bytes of a keyring that whoever holds the private half of `recipient` opens."""
    from pharmabackup.crypto.recipients import PublicKey

    key_id = hashing.key_id(recipient)
    context = wire.keyring_context(keyring.repository, key_id, keyring.slot, number)
    sealed = PublicKey(recipient).seal(wire.pad(wire.encode(keyring)), context)
    return wire.header(Kind.KEYRING) + wire.encode(SealedKeyring(keyring.slot, number, key_id, sealed))


def keyring_numbers(storage: Storage, listed: Iterable[ObjectInfo] | None = None) -> dict[str, list[int]]:
    """By slot, ascending. What is no name of a keyring is passed over: a check tells it. StorageFailed."""
    found: dict[str, list[int]] = {}
    for info in storage.list("keys") if listed is None else listed:
        if KEYRING.fullmatch(info.name):
            _, slot, number = info.name.split("/")
            found.setdefault(slot, []).append(int(number))
    return {slot: sorted(numbers) for slot, numbers in found.items()}


def check_not_revoked(slot: Slot) -> None:
    """WrongCredential."""
    if slot.revoked is not None:
        raise WrongCredential(
            f"This credential was revoked ({slot.revoked.reason}).",
            kind="revoked",
            remedy="Ask the owner to enrol a new one.",
        )


def joined(opened: Iterable[Keyring], roster: Roster) -> Keyring:
    """The keys of all a slot's keyrings that one credential opens, which are given the newest first; by generation.

    Whoever may write to the storage can seal a keyring to a slot. So what names things is taken from one that holds
    the slot's signing key; others only add keys of generations and of domains, and of these such as the roster knows.
    There may be any number, of 1 MiB each: of one, only what counts is kept before the next is asked for. At least
    one has to be given.
    """
    join = Joining(roster)
    for item in opened:
        join.add(item)
    return join.keyring


class Joining:
    """What a slot's keyrings come to while they are opened, the newest first: see `joined`."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._signing = {slot.id: slot.signing for slot in roster.slots}
        self._numbers = {generation.catalogue: generation.number for generation in roster.generations}
        self._domains = {domain.id for domain in roster.domains}
        self._own: Keyring | None = None
        self._oldest: Keyring | None = None
        self._catalogue: dict[int, CatalogueKey] = {}
        self._readers: dict[int, ReaderKey] = {}
        self._proved: dict[bytes, NamingKey] = {}

    def add(self, item: Keyring) -> None:
        """An older one than those before."""
        from pharmabackup.crypto.recipients import PrivateKey
        from pharmabackup.crypto.signatures import SigningKey

        self._oldest = item
        if self._own is None and item.signing and SigningKey(item.signing).public == self._signing.get(item.slot):
            self._own = item
        for key in item.catalogue:
            number = self._numbers.get(hashing.key_id(key.key))
            if number is not None:
                self._catalogue.setdefault(number, CatalogueKey(number, key.key))
        given = {key.generation: key for key in item.readers}
        for generation in self._roster.generations:
            held = None if generation.number in self._readers else given.get(generation.number)
            if held and PrivateKey(held.key).public.raw == generation.reader:
                self._readers[generation.number] = held
        for name in item.naming:
            if name.domain in self._domains and domain_of(name.key) == name.domain:
                self._proved.setdefault(name.domain, name)

    @property
    def is_empty(self) -> bool:
        return self._oldest is None

    @property
    def keyring(self) -> Keyring:
        """All that counts of them; there is one at least."""
        own = self._own or self._oldest
        assert own is not None
        naming: dict[bytes, NamingKey] = {}
        for name in (*own.naming, *self._proved.values()):  # in this order: in the first's domain an owner writes
            naming.setdefault(name.domain, name)
        return replace(
            own,
            naming=tuple(name for name in naming.values() if name.domain in self._domains),
            catalogue=tuple(key for _, key in sorted(self._catalogue.items())),
            readers=tuple(key for _, key in sorted(self._readers.items())),
        )


def domain_of(naming_key: bytes) -> bytes:
    """The id of the domain that this key names chunks in: a commitment to it, so that the roster proves the key."""
    return hashing.key_id(naming_key)[: ids.ID_SIZE]


def read_whole(
    storage: Storage, slot: str, numbers: Iterable[int], unreadable: list[Damaged]
) -> Iterator[SealedKeyring]:
    """A slot's keyrings, the newest first, each read when it is asked for; what is damaged is told in `unreadable`.

    NotFound, StorageFailed.
    """
    for number in sorted(numbers, reverse=True):
        try:
            yield read_sealed(storage, slot, number)
        except Damaged as error:
            unreadable.append(_of(slot, number, error))


def without_newest(slot: Slot, sealed: Iterable[SealedKeyring]) -> Damaged:
    """What the right credential is told if its keyrings, which are whole, lack the keys that are in use."""
    own, folder = hashing.key_id(slot.recipient), f"keys/{slot.id.hex()}"
    others = [f"{folder}/{item.number}" for item in sealed if item.key_id != own]
    why = f" It is sealed to somebody else: {', '.join(others[:3])}." if others else ""
    return Damaged(
        f"A keyring of {slot.name!r} with the newest keys is damaged, gone, or was swapped.{why}",
        kind="keys",
        remedy=f"Copy {folder} from another location, or let an owner enrol this credential once more.",
    )


def _of(slot: str, number: int, error: Damaged) -> Damaged:
    """The same error, saying in which object: who cannot open the repository cannot run a check either."""
    name = f"keys/{slot}/{number}"
    return Damaged(f"{error.message} Object: {name}.", kind=error.kind, remedy=f"Copy {name} from another location.")


def read_sealed(storage: Storage, slot: str, number: int) -> SealedKeyring:
    """One stored keyring. Damaged, NotFound, StorageFailed."""
    return decode_sealed(storage.get(f"keys/{slot}/{number}", limit=STORED_MAX), slot, number)


def decode_sealed(data: bytes, slot: str, number: int) -> SealedKeyring:
    """The keyring that was stored under this name. Damaged."""
    wire.check_header(data, Kind.KEYRING)
    sealed = wire.decode(memoryview(data)[wire.HEADER.size :], SealedKeyring)
    if sealed.slot.hex() != slot or sealed.number != number:
        raise wire.malformed("keyring", "it lies under another name than its own")
    return sealed


def keyring_problem(storage: Storage, name: str) -> Damaged | None:
    """What is wrong with the object of that name, as far as can be told without its keys. NotFound, StorageFailed."""
    try:
        _, slot, _ = name.split("/")
        read_sealed(storage, slot, numbered(name))
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
