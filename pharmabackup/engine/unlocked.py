"""The unlocked repository: storage, keys and roster, and how records are sealed, signed, opened and trusted."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar, get_args

from pharmabackup import compression, ids
from pharmabackup.crypto import hashing, signatures
from pharmabackup.crypto.recipients import PrivateKey, PublicKey
from pharmabackup.crypto.sealing import NotAuthentic, SealingKey
from pharmabackup.engine.creating import create
from pharmabackup.engine.grants import GRANTS, JUDGED_LATER, READERS, SELF_NAMED, WRITERS
from pharmabackup.engine.keyrings import (
    Opener,
    check_not_revoked,
    joined,
    keyring_numbers,
    read_whole,
    without_newest,
)
from pharmabackup.engine.lanes import Threads
from pharmabackup.engine.roster import read_rosters, turned_back
from pharmabackup.errors import Damaged, InvalidInput, NotPermitted, WrongCredential
from pharmabackup.format import wire
from pharmabackup.format.index import SEGMENT_MAX
from pharmabackup.format.keys import Keyring, NamingKey, Role, Roster, Slot
from pharmabackup.format.pack import DIRECTORY_MAX, Wrap, WrappedKey
from pharmabackup.format.repository import RepositoryRecord
from pharmabackup.format.transaction import RECORD_MAX
from pharmabackup.format.wire import Kind, Record, Signed
from pharmabackup.mutex import Mutex
from pharmabackup.storage.base import ObjectInfo, Storage

if TYPE_CHECKING:
    from pharmabackup.engine.historyreader import Looked
    from pharmabackup.engine.listing import Listing

RECORD_LEVEL = 3  # zstd: records are small, and written once
BODY_MAX = 1 << 28
LIMITS = {Kind.INDEX: SEGMENT_MAX, Kind.DIRECTORY: DIRECTORY_MAX}  # bytes, decompressed; of others RECORD_MAX
HEADER_SIZE = wire.HEADER.size + wire.KEY_ID_SIZE

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Statement(Generic[R]):
    """A record that was opened and whose signature counts."""

    record: R
    signed: bytes  # the whole Signed, as it was encoded
    slot: Slot


def check_keyring(keyring: Keyring, slot: Slot) -> None:
    """Damaged when keyrings that were opened are not those of their slot, or lack what it works with."""
    signs = keyring.signing is None or signatures.SigningKey(keyring.signing).public == slot.signing
    if slot.role != keyring.role or not signs:
        raise Damaged("A keyring is not that of its slot.", kind="keys", remedy="Restore from another location.")
    if slot.role in WRITERS and not (keyring.signing and keyring.naming):
        raise Damaged(
            f"The keyring of {slot.name!r} with the keys that it signs and names with is damaged or gone.",
            kind="keys",
            remedy=f"Copy keys/{slot.id.hex()} from another location, or open with another owner's passphrase.",
        )


@dataclass(slots=True)
class Unlocked:
    """What an open repository holds in memory. Verbs take this, never `Repository`."""

    storage: Storage
    record: RepositoryRecord
    repository: bytes  # its id
    roster: Roster
    roster_hash: bytes
    rosters: Mapping[int, bytes]  # number to SHA-256 of every roster, for citations
    revoked_in: Mapping[bytes, int]  # the roster in which each slot that is revoked was
    keyring: Keyring
    opener: Opener = field(repr=False)  # what opens this slot's keyrings, those to come as well
    state: Path  # this repository's folder on this machine: caches that may be deleted
    queue: Path  # where audit records wait for that place as it is now
    lost_records: int = field(init=False, default=0)  # audit records that are nowhere; under `auditing`
    gone_records: dict[int, str] = field(
        init=False, default_factory=dict
    )  # last ones that were seen: see `take_gone`
    _catalogue: dict[bytes, SealingKey] = field(init=False)
    _session: dict[bytes, SealingKey] = field(init=False, default_factory=dict)
    _readers: list[tuple[bytes, PrivateKey]] = field(init=False, default_factory=list)  # each with its recipient
    _verified: set[bytes] = field(init=False, default_factory=set)  # SHA-256 of kind and Signed: of directories
    recalled: dict[tuple[str, bytes], tuple[Record, Slot]] = field(init=False, default_factory=dict)
    looked: Looked | None = field(init=False, default=None)  # the history that was read last, and of what
    actor: str | None = field(init=False, default=None)  # who opened it, and why: for audit records
    reason: str | None = field(init=False, default=None)
    auditing: Mutex = field(init=False, default_factory=Mutex)
    remembering: Mutex = field(init=False, default_factory=Mutex)  # of chains, what was seen
    threads: Threads = field(init=False, default_factory=Threads)

    def __post_init__(self) -> None:
        self._take_keys()
        self._take_policy()

    def _take_policy(self) -> None:
        lockable = self.record.capabilities.get("object-lock", False)
        self.storage.lock_for(self.roster.policy.lock * 10**9, assumed=lockable)

    def _take_keys(self) -> None:
        self._catalogue = {hashing.key_id(item.key): SealingKey(item.key) for item in self.keyring.catalogue}
        self._readers = []  # made when they are needed

    def renew(self) -> None:
        """Learn the rosters and keys that storage has now. WrongCredential, Damaged, Unsupported, StorageFailed."""
        slot = self.keyring.slot.hex()
        rosters = read_rosters(self.storage, self.repository)  # first: keyrings come before what needs them
        for number, known in self.rosters.items():
            if rosters.hashes.get(number) != known:
                raise turned_back(ids.roster_name(number))
        own = next(one for one in rosters.newest.slots if one.id == self.keyring.slot)
        check_not_revoked(own)  # what it signed now would stop whoever reads it
        unreadable, numbers = list[Damaged](), keyring_numbers(self.storage).get(slot, [])
        opened = self.opener.open_all(
            self.repository, read_whole(self.storage, slot, numbers, unreadable), unreadable
        )
        if (newest := next(opened, None)) is not None:
            # What is held stays: a slot's signing key never changes, and is not lost to who damages its keyring.
            keyring = joined(chain((newest,), opened, (self.keyring,)), rosters.newest)
            check_keyring(keyring, own)
            self.keyring = keyring
            self._take_keys()
        self.revoked_in = rosters.revoked_in
        self.rosters = rosters.hashes  # before what is looked up in them: other threads may be signing
        self.roster, self.roster_hash = rosters.newest, rosters.newest_hash
        self._take_policy()
        self._verified.clear()  # a slot may have been revoked
        self.recalled.clear()
        self.looked = None
        if not self.has_newest_keys:
            if unreadable:
                raise unreadable[-1]
            if own.recipient == self.opener.recipient:
                raise without_newest(own, read_whole(self.storage, slot, numbers, unreadable))
            raise WrongCredential(
                "The keys of this repository were changed, and this passphrase does not open the new ones.",
                remedy="Open it again; if the passphrase was changed, use the new one.",
            )

    @property
    def has_newest_keys(self) -> bool:
        """Whether what is written now can be read."""
        return self.catalogue_id in self._catalogue

    def take_lost(self) -> int:
        """How many audit records are nowhere that nobody was told of. Now somebody is."""
        with self.auditing.own:
            lost, self.lost_records = self.lost_records, 0
        return lost

    def take_gone(self) -> dict[int, str]:
        """Audit records that were this machine's last and are not as they were, by their numbers: the finding's code.

        Those that nobody was told of. Now somebody is.
        """
        with self.auditing.own:
            gone, self.gone_records = self.gone_records, {}
        return gone

    def renewed(self, listing: Listing | None = None) -> bool:
        """Whether there are rosters, and perhaps keys, that were not known; they are now."""
        if sum(1 for _ in (listing or self.storage.list)("roster")) <= len(self.rosters):
            return False
        self.renew()
        return True

    @property
    def slot(self) -> Slot:
        return next(slot for slot in self.roster.slots if slot.id == self.keyring.slot)

    @property
    def domain(self) -> bytes:
        """The domain that this slot writes in. NotPermitted when it writes none."""
        return self._own_naming.domain

    @property
    def naming_key(self) -> bytes:
        """NotPermitted."""
        return self._own_naming.key

    @property
    def _own_naming(self) -> NamingKey:
        if not self.keyring.naming:
            raise self.not_permitted("back up", who=WRITERS)
        return self.keyring.naming[0]

    @property
    def catalogue_id(self) -> bytes:
        """The key id of the newest catalogue key: what is written now is sealed under it."""
        return self.roster.generations[-1].catalogue

    @property
    def catalogue_key(self) -> SealingKey:
        """The newest catalogue key."""
        return self._catalogue[self.catalogue_id]

    def purpose_key(self, purpose: str) -> bytes:
        """A key for one purpose on this machine, which no other slot can come to.

        What is kept under it is believed as verified, and has names of files. Where the keyring with the slot's
        signing key is damaged, it comes from what opens its keyrings.
        """
        return hashing.derive(purpose, self.keyring.signing) if self.keyring.signing else self.spare_key(purpose)

    def spare_key(self, purpose: str) -> bytes:
        """The same while the signing key cannot be read."""
        return hashing.derive(purpose, self.opener.secret)

    # ------------------------------------------------------------ records

    def seal(self, kind: Kind, name: str, record: Record) -> bytes:
        """The stored bytes of a signed record that will be the object `name`."""
        return self.seal_signed(kind, self.sign(kind, name, record))

    def seal_signed(self, kind: Kind, signed: Signed) -> bytes:
        """The stored bytes of a record that is signed already."""
        return self.seal_body(kind, wire.pad(compression.compress(wire.encode(signed), RECORD_LEVEL)))

    def seal_body(self, kind: Kind, body: bytes) -> bytes:
        """Header, key id, and the body sealed under the newest catalogue key."""
        key = self.catalogue_id
        if key not in self._catalogue:
            raise WrongCredential(
                "The keys of this repository were changed, and this credential does not have the new ones.",
                remedy="Open it again, or ask the owner.",
            )
        return wire.header(kind) + key + self._catalogue[key].seal(body, wire.context(self.repository, kind, key))

    def sign(self, kind: Kind, name: str, record: Record) -> Signed:
        """A record with this slot's signature. InvalidInput when no reader would take it."""
        content = wire.encode(record)
        try:
            wire.decode(content, type(record))
        except Damaged as error:
            raise InvalidInput(
                f"What was to be stored is outside the format's limits. {error.message}",
                remedy="Shorten the reason, names or facts that were given.",
            ) from None
        if self.keyring.signing is None:
            raise self.not_permitted("write", who=WRITERS)
        number, slot = self.roster.number, self.keyring.slot
        cited = self.rosters[number]
        message = wire.signed_message(self.repository, kind, SELF_NAMED.get(kind, name), slot, number, cited, content)
        return Signed(content, slot, number, cited, signatures.SigningKey(self.keyring.signing).sign(message))

    def open(self, kind: Kind, name: str, data: bytes, shape: type[R], *, verified: bool = False) -> Statement[R]:
        """The record in the object `name`, if it is whole and its signature counts. Damaged, Unsupported.

        `verified`: see `statement`.
        """
        try:
            signed = wire.decode(self.unseal(kind, data), Signed)
            return self.statement(kind, name, signed, shape, verified=verified)
        except Damaged as error:
            raise self.damaged(name, error) from None

    def statement(
        self, kind: Kind, name: str, signed: Signed, shape: type[R], *, verified: bool = False
    ) -> Statement[R]:
        """A signed record, if its signature counts. Damaged.

        `verified`: this machine has verified the signature of these bytes before.
        """
        encoded = wire.encode(signed)
        known = hashlib.sha256(bytes((kind,)) + encoded).digest() if kind in SELF_NAMED else b""
        verified = verified or known in self._verified  # an index is read several times by one verb
        slot = self._signer(kind, signed) if verified else self._trusted(kind, name, signed)
        if known:
            self._verified.add(known)
        return Statement(wire.decode(signed.content, shape), encoded, slot)

    def unseal(self, kind: Kind, data: bytes, more: Mapping[bytes, SealingKey] | None = None) -> bytes:
        """The record in a sealed object, encoded. `more`: other catalogue keys, by their ids. Damaged."""
        body = wire.unpad(self.open_body(kind, data, more), kind.name)
        return compression.decompress(body, limit=LIMITS.get(kind, RECORD_MAX))

    def open_body(self, kind: Kind, data: bytes, more: Mapping[bytes, SealingKey] | None = None) -> bytes:
        """What `seal_body` sealed. Damaged."""
        wire.check_header(data, kind)
        key_id = data[wire.HEADER.size : HEADER_SIZE]
        key = self._catalogue.get(key_id)
        if key is None:
            self.renewed()  # or another thread has done it meanwhile
            key = self._catalogue.get(key_id)
        if key is None and more is not None:
            key = more.get(key_id)
        if key is None:
            raise wire.malformed(kind.name, "it is sealed with a key that this credential does not hold")
        try:
            return key.open(memoryview(data)[HEADER_SIZE:], wire.context(self.repository, kind, key_id))
        except NotAuthentic:
            raise wire.malformed(kind.name, "it was changed after it was written") from None

    def _signer(self, kind: Kind, signed: Signed) -> Slot:
        """Who says that he signed it, if he may. Damaged."""
        slot = next((slot for slot in self.roster.slots if slot.id == signed.slot), None)
        if slot is None or slot.role not in GRANTS[kind]:
            raise wire.malformed(kind.name, "its signer may not write such a thing")
        if kind not in JUDGED_LATER and self.revoked_in.get(slot.id, signed.roster + 1) <= signed.roster:
            raise wire.malformed(kind.name, "its signer was revoked before")
        return slot

    def _trusted(self, kind: Kind, name: str, signed: Signed) -> Slot:
        """The signer, if what he signed counts. Damaged."""
        if signed.roster not in self.rosters:
            self.renewed()
        slot = self._signer(kind, signed)
        if self.rosters.get(signed.roster) != signed.roster_hash:
            raise wire.malformed(kind.name, "it cites a list of keys that is not here")
        message = wire.signed_message(
            self.repository,
            kind,
            SELF_NAMED.get(kind, name),
            signed.slot,
            signed.roster,
            signed.roster_hash,
            signed.content,
        )
        if not signatures.is_signed(slot.signing, signed.signature, message):
            raise wire.malformed(kind.name, "its signature is not its writer's")
        return slot

    def put(self, kind: Kind, name: str, record: Record) -> tuple[ObjectInfo, bytes]:
        """Create a signed record and read it back; what is stored and its SHA-256. Conflict, StorageFailed."""
        return self.put_signed(name, kind, self.sign(kind, name, record))

    def put_signed(self, name: str, kind: Kind, signed: Signed) -> tuple[ObjectInfo, bytes]:
        """The same of a record that is signed already."""
        data = self.seal_signed(kind, signed)
        return create(self.storage, name, data), hashlib.sha256(data).digest()

    def get(self, kind: Kind, name: str, shape: type[R], *, limit: int = BODY_MAX) -> Statement[R]:
        """Read and open the record `name`. NotFound, Damaged, StorageFailed."""
        return self.open(kind, name, self.storage.get(name, limit=limit), shape)

    # ------------------------------------------------------------ transactions' own keys

    def wrap(self, key: bytes) -> WrappedKey:
        """A transaction's key, sealed to all who may read what is written now."""
        key_id = hashing.key_id(key)
        recipients = [self.roster.generations[-1].reader]
        if self.roster.recovery is not None:
            recipients.append(self.roster.recovery)
        info = wire.wrap_info(self.repository, key_id)
        wraps = tuple(Wrap(hashing.key_id(raw), PublicKey(raw).seal(key, info)) for raw in recipients)
        self._session[key_id] = SealingKey(key)
        return WrappedKey(key_id, wraps)

    def block_key(self, wrapped: WrappedKey) -> SealingKey:
        """The key that opens a block. Damaged, NotPermitted when this role may not read."""
        known = self._catalogue.get(wrapped.key_id) or self._session.get(wrapped.key_id)
        if known is not None:
            return known
        if not self.keyring.readers:
            raise self.not_permitted("read", who=READERS)
        readers = self._readers  # another thread may learn newer ones meanwhile
        if not readers:
            private_keys = [PrivateKey(reader.key) for reader in self.keyring.readers]
            readers = self._readers = [(hashing.key_id(private.public.raw), private) for private in private_keys]
        for recipient, private in readers:
            for wrap in wrapped.wraps:
                if wrap.recipient != recipient:
                    continue
                try:
                    key = private.open(wrap.sealed, wire.wrap_info(self.repository, wrapped.key_id))
                except NotAuthentic:
                    raise wire.malformed("key", "it was changed after it was written") from None
                if len(key) != 32 or hashing.key_id(key) != wrapped.key_id:
                    raise wire.malformed("key", "it is not the one that it says")
                self._session[wrapped.key_id] = SealingKey(key)
                return self._session[wrapped.key_id]
        raise wire.malformed("key", "it is sealed to nobody that this credential can read for")

    def not_permitted(self, what: str, *, who: Collection[Role] = frozenset({"owner"})) -> NotPermitted:
        """`who` may do it."""
        roles = " or ".join(role for role in get_args(Role) if role in who)
        return NotPermitted(
            f"The role {self.keyring.role} may not {what}.", remedy=f"Open with the credential of {_an(roles)}."
        )

    @staticmethod
    def damaged(name: str, error: Damaged) -> Damaged:
        """The same error, saying in which object."""
        return Damaged(f"{error.message} Object: {name}.", kind=error.kind, remedy=error.remedy)


def _an(roles: str) -> str:
    return f"an {roles}" if roles[0] in "ao" else f"a {roles}"
