"""The roster (who may do what, signed by the owner) and keyrings (a role's keys, sealed to one credential)."""

from __future__ import annotations

from typing import Annotated, Literal, NoReturn

import msgspec

from pharmabackup.format.wire import Count, Hash, Hashes, Id, Name, Nanoseconds, Record, Text, decoder, malformed

ROSTER_MAX = 1 << 24
KEYRING_MAX = 1 << 20
SLOTS_MAX = 4096
PASSPHRASES_MAX = 64  # that a client tries: each costs it 0.1 s and 64 MiB

Role = Literal["device", "restorer", "auditor", "maintainer", "owner"]
PublicKey = Annotated[bytes, msgspec.Meta(min_length=1216, max_length=1216)]  # ML-KEM-768 | X25519
Key = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Revoked(Record, frozen=True):
    time: Nanoseconds
    reason: Text
    accepted: Hashes  # SHA-256 of the stored fates of the slot's last transactions that still count


class Argon2id(Record, frozen=True):
    salt: Annotated[bytes, msgspec.Meta(min_length=16, max_length=64)]
    memory_kib: Annotated[int, msgspec.Meta(ge=8, le=1 << 18)]
    iterations: Annotated[int, msgspec.Meta(ge=1, le=10)]
    lanes: Annotated[int, msgspec.Meta(ge=1, le=16)]  # and memory_kib at least 8 times as much


class Slot(Record, frozen=True):
    """One credential, and what its keyrings are sealed to."""

    id: Id
    name: Name
    role: Role
    domain: Id | None  # a device's; None: every domain
    credential: Literal["passphrase", "recipient", "shares"]
    signing: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]  # Ed25519 public key
    recipient: PublicKey
    created: Nanoseconds
    revoked: Revoked | None
    argon2id: Argon2id | None  # how the passphrase is stretched that `recipient` is made from


class Domain(Record, frozen=True):
    """Devices that trust each other's chunks."""

    id: Id
    name: Name


class Generation(Record, frozen=True):
    """The keys for what is written from now on. Older generations stay, for what was written then."""

    number: Count
    catalogue: Hash  # its key id
    reader: PublicKey


class KeepRule(Record, frozen=True):
    """What is kept of a dataset, or of all whose names a pattern fits; counts, and `within` in seconds."""

    dataset: Name
    last: Count
    within: Count
    hourly: Count
    daily: Count
    weekly: Count
    monthly: Count
    yearly: Count


class Policy(Record, frozen=True):
    keep: Annotated[tuple[KeepRule, ...], msgspec.Meta(max_length=1000)]
    forget_delay: Count  # seconds
    forget_quorum: Annotated[int, msgspec.Meta(ge=1, le=16)]
    lock: Count  # seconds; 0: objects are not locked
    reason_required: bool


class ContentChunker(Record, frozen=True):
    """FastCDC 2020 with these sizes in bytes; `normalization` is the paper's level."""

    minimum: Annotated[int, msgspec.Meta(ge=64, le=1 << 20)]
    average: Annotated[int, msgspec.Meta(ge=256, le=1 << 22)]
    maximum: Annotated[int, msgspec.Meta(ge=1024, le=1 << 22)]
    normalization: Annotated[int, msgspec.Meta(ge=0, le=3)]


class Roster(Record, frozen=True):
    number: Count
    previous: Hash | None  # SHA-256 of the stored roster before it
    created: Nanoseconds
    features: Annotated[tuple[Name, ...], msgspec.Meta(max_length=100)]  # required: who does not know one refuses
    slots: Annotated[tuple[Slot, ...], msgspec.Meta(max_length=SLOTS_MAX)]
    domains: Annotated[tuple[Domain, ...], msgspec.Meta(max_length=SLOTS_MAX)]
    generations: Annotated[tuple[Generation, ...], msgspec.Meta(min_length=1, max_length=1000)]
    recovery: PublicKey | None
    policy: Policy
    chunker: ContentChunker
    pack_floor: Count  # a transaction is padded with packs up to this number

    def check(self) -> None:
        """Damaged when a passphrase's slot does not say how that is stretched, or another does."""
        for slot in self.slots:
            if (slot.argon2id is None) != (slot.credential != "passphrase"):
                raise malformed("roster", "a slot is not stretched as its credential is")
            if slot.argon2id is not None and slot.argon2id.memory_kib < 8 * slot.argon2id.lanes:
                raise malformed("roster", "an Argon2id setting is impossible")


class _Beginning(msgspec.Struct, array_like=True):
    """A roster's fields up to its features; what follows is passed over, whatever it is."""

    number: msgspec.Raw
    previous: msgspec.Raw
    created: msgspec.Raw
    features: list[str]


def features_of(content: bytes) -> list[str]:
    """The features that an encoded roster requires, before anything else in it is judged."""
    try:
        return decoder(_Beginning).decode(content).features
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return []


class SignedRoster(Record, frozen=True):
    """As stored, after the header."""

    content: Annotated[bytes, msgspec.Meta(max_length=ROSTER_MAX)]
    slot: Id  # an owner's, of the roster before it; of roster 0, its own
    signature: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


class SealedKeyring(Record, frozen=True):
    """As stored, after the header. Nobody signs it: the roster says how its credential is made to open it."""

    slot: Id
    number: Count
    key_id: Hash  # of whom it is sealed to: compared before anything is opened, since GCM does not commit
    sealed: Annotated[bytes, msgspec.Meta(max_length=KEYRING_MAX)]


class Secret(Record, frozen=True):
    """A record that holds keys: it shows none, and goes nowhere but into storage, sealed."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("Keys are not pickled.")


class NamingKey(Secret, frozen=True):
    domain: Id
    key: Key


class CatalogueKey(Secret, frozen=True):
    generation: Count
    key: Key


class ReaderKey(Secret, frozen=True):
    generation: Count
    key: Annotated[bytes, msgspec.Meta(min_length=96, max_length=96)]  # ML-KEM-768 seed | X25519 private key


class Keyring(Secret, frozen=True):
    """What a slot holds: exactly its role's keys."""

    repository: Hash  # pins roster/0
    slot: Id
    role: Role
    signing: Key | None
    naming: Annotated[tuple[NamingKey, ...], msgspec.Meta(max_length=SLOTS_MAX)]
    catalogue: Annotated[tuple[CatalogueKey, ...], msgspec.Meta(min_length=1, max_length=1000)]
    block_names: Key  # names blocks, for all generations
    readers: Annotated[tuple[ReaderKey, ...], msgspec.Meta(max_length=1000)]

    def check(self) -> None:
        """Damaged when there are two keys of one generation: to try a thousand takes half a second."""
        for found in (self.catalogue, self.readers):
            if len({key.generation for key in found}) < len(found):
                raise malformed("keyring", "it has two keys of one generation")
