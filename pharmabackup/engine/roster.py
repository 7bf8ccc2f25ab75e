"""Making a repository's first roster and keyring; reading rosters."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pharmabackup import ids
from pharmabackup.clock import now_ns
from pharmabackup.crypto import hashing, signatures
from pharmabackup.crypto.recipients import PrivateKey
from pharmabackup.engine.keyrings import Way, domain_of, numbered, seal_keyring
from pharmabackup.engine.lanes import objects_in_lanes
from pharmabackup.errors import Damaged, NotFound
from pharmabackup.format import keys, wire
from pharmabackup.format.keys import Keyring, Roster, SignedRoster
from pharmabackup.format.repository import check_features
from pharmabackup.format.wire import Kind
from pharmabackup.storage.base import ObjectInfo, Storage

CHUNKER = keys.ContentChunker(minimum=16 << 10, average=64 << 10, maximum=256 << 10, normalization=1)
FORGET_DELAY_S = 14 * 86400
FIRST_DOMAIN = "main"
FIRST_SLOT = "owner"
NO_REPOSITORY = bytes(32)  # roster/0 is signed before its hash, the repository's id, is known


@dataclass(frozen=True, slots=True)
class Founding:
    """A new repository's first objects; `repository` is its id."""

    repository: bytes
    roster: bytes
    keyring_name: str
    keyring: bytes


def found(way: Way) -> Founding:
    """Keys for a new repository with one owner and one domain. Writes nothing."""
    signing, reader = signatures.SigningKey.generate(), PrivateKey.generate()
    catalogue, naming, block_names = os.urandom(32), os.urandom(32), os.urandom(32)
    slot, domain = ids.new_id(), domain_of(naming)
    owner = new_slot(slot, FIRST_SLOT, "owner", None, way, signing.public)
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
    message = roster_message(NO_REPOSITORY, 0, slot, NO_REPOSITORY, content)
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
    sealed = seal_keyring(keyring, 0, way.recipient)
    return Founding(repository, stored, ids.keyring_name(slot, 0), sealed)


def new_slot(slot: bytes, name: str, role: keys.Role, domain: bytes | None, way: Way, signing: bytes) -> keys.Slot:
    """What a list says of a credential that it did not have before. `signing`: the public half."""
    return keys.Slot(
        id=slot,
        name=name,
        role=role,
        domain=domain,
        credential=way.credential,
        signing=signing,
        recipient=way.recipient,
        created=now_ns(),
        revoked=None,
        argon2id=way.argon2id,
    )


def roster_message(repository: bytes, number: int, slot: bytes, previous: bytes, content: bytes) -> bytes:
    """What the signature of roster `number` is over; `previous`: the hash of the one before."""
    return wire.signed_message(
        repository, Kind.ROSTER, ids.roster_name(number), slot, max(number - 1, 0), previous, content
    )


@dataclass(frozen=True, slots=True)
class Given:
    """What a slot's first keyring for the recipient that it has now was of, and whom it was sealed to before."""

    recipient: bytes
    generations: int
    domains: int
    recipients: frozenset[bytes]  # key ids of all that it ever had


@dataclass(frozen=True, slots=True)
class Rosters:
    """The newest roster, its hash, the hash of every roster by number, and in which each slot was revoked.

    `given`: by slot. `policies`: by the roster's number.
    """

    newest: Roster
    newest_hash: bytes
    hashes: dict[int, bytes]
    revoked_in: dict[bytes, int]
    given: dict[bytes, Given]
    policies: dict[int, keys.Policy]


def read_rosters(storage: Storage, repository: bytes, listed: Iterable[ObjectInfo] | None = None) -> Rosters:
    """All rosters, each signed by an owner of the one before it. Damaged, Unsupported, StorageFailed."""
    numbers = sorted(numbered(info.name) for info in (storage.list("roster") if listed is None else listed))
    if not numbers:
        raise Damaged(
            "The list of who may do what is incomplete: an object in roster/ is missing.",
            kind="roster-missing",
            remedy="Restore from another location.",
        )
    if numbers != list(range(len(numbers))):
        first = ids.roster_name(next(number for number in range(numbers[-1]) if number not in numbers))
        last = ids.roster_name(numbers[-1])
        why = f"The list of who may do what is incomplete: {first} is missing, though there is {last}."
        error = wire.or_planted(Damaged(why, kind="roster-missing"), last)
        error.remedy = f"If another location has {first}, copy it from there. {error.remedy}"
        raise error
    hashes: dict[int, bytes] = {}
    revoked_in: dict[bytes, int] = {}
    given: dict[bytes, Given] = {}
    policies: dict[int, keys.Policy] = {}
    before: Roster | None = None
    names = [ids.roster_name(number) for number in numbers]
    with objects_in_lanes(storage, names, limit=keys.ROSTER_MAX + 4096) as stored:
        for number, (_, get) in zip(numbers, stored, strict=True):
            try:
                data = get()
            except NotFound:
                raise Damaged(
                    "The list of who may do what vanished while it was read.",
                    kind="roster-missing",
                    remedy="Run it again; if it happens again, restore from another location.",
                ) from None
            try:
                roster = _check_roster(data, number, repository, before, hashes)
            except Damaged as error:
                name = ids.roster_name(number)
                told = Damaged(f"{error.message} Object: {name}.", kind=error.kind)
                raise wire.or_planted(told, name) from None
            hashes[number] = hashlib.sha256(data).digest()
            for slot in roster.slots:
                if slot.revoked is not None:
                    revoked_in.setdefault(slot.id, number)
                given[slot.id] = _given(given.get(slot.id), slot, roster)
            policies[number] = roster.policy
            before = roster
    assert before is not None
    return Rosters(before, hashes[numbers[-1]], hashes, revoked_in, given, policies)


def _given(before: Given | None, slot: keys.Slot, roster: Roster) -> Given:
    if before is not None and before.recipient == slot.recipient:
        return before
    recipients = frozenset((hashing.key_id(slot.recipient),)) | (before.recipients if before else frozenset())
    return Given(slot.recipient, len(roster.generations), len(roster.domains), recipients)


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
    message = roster_message(
        repository if number else NO_REPOSITORY, number, signed.slot, previous or NO_REPOSITORY, signed.content
    )
    if (
        signer is None
        or signer.revoked is not None
        or not signatures.is_signed(signer.signing, signed.signature, message)
    ):
        raise wire.malformed("roster", "it is not signed by an owner")
    if before is not None and not _follows(before, roster):
        raise wire.malformed("roster", "it changes what never changes")
    return roster


def _follows(before: Roster, after: Roster) -> bool:
    """Whether nobody and nothing was removed, and no slot became another one."""
    now = {slot.id: slot for slot in after.slots}
    for slot in before.slots:
        same = now.get(slot.id)
        if same is None or (slot.revoked is not None and slot.revoked != same.revoked):
            return False
        for name in ("role", "domain", "credential", "signing"):
            if getattr(slot, name) != getattr(same, name):
                return False
    return (
        after.domains[: len(before.domains)] == before.domains
        and after.generations[: len(before.generations)] == before.generations
    )


def turned_back(name: str) -> Damaged:
    """What is said where a list of who may do what is gone that this machine has seen, or is another one."""
    return Damaged(
        f"The list of who may do what is another one than this machine has seen: {name} is gone or was replaced.",
        kind="history-forked",
        remedy="Somebody turned the storage back: find out who. Then copy that object from another location.",
    )


def turned_back_by_word(name: str, slots: Sequence[str]) -> Damaged:
    """What is said where others' records cite such a list: it is gone, or those slots are stolen and it never was."""
    who = ", ".join(map(repr, slots))
    return Damaged(
        f"The list of who may do what is another one than these say that they have seen: {who}. {name} is gone, was "
        "replaced, or never was.",
        kind="history-forked",
        remedy="If they were stolen, revoke them, all in one call: then their word does not stop it. Else somebody "
        "turned the storage back: find out who, and copy that object from another location.",
    )
