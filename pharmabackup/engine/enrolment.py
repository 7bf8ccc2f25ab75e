"""Changing who may do what: a new roster, signed by an owner, after the keyrings that it speaks of.

In this order a crash leaves keys that nobody uses yet, and never a key that is used and that no keyring holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from pharmabackup import ids
from pharmabackup.clock import now_ns
from pharmabackup.crypto import hashing
from pharmabackup.crypto.recipients import PrivateKey
from pharmabackup.crypto.signatures import SigningKey
from pharmabackup.engine.creating import create
from pharmabackup.engine.grants import NAMERS, READERS
from pharmabackup.engine.historycache import Remembered, remember
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.keyring_contents import lacking
from pharmabackup.engine.keyrings import NUMBER_LAST, Opener, Way, domain_of, keyring_numbers, seal_keyring
from pharmabackup.engine.roster import new_slot, roster_message, turned_back, turned_back_by_word
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Conflict, Damaged, InvalidInput, Unsupported, WrongCredential
from pharmabackup.format import keys, wire
from pharmabackup.format.keys import Keyring, NamingKey, Role, Roster, SealedKeyring, SignedRoster, Slot
from pharmabackup.format.wire import Kind

ATTEMPTS = 3  # when other owners are faster
GAP_BYTES = 5  # of the random gap between the numbers of a slot's keyrings

Listed = Mapping[str, list[int]]
"""The numbers of each slot's keyrings, by slot in hexadecimal."""


def permit_owner(unlocked: Unlocked, to: str = "change who may do what") -> None:
    """NotPermitted, Unsupported."""
    if unlocked.keyring.role != "owner":
        raise unlocked.not_permitted(to)
    if not unlocked.record.capabilities.get("exclusive-create", False):
        raise Unsupported(
            "This storage cannot create an object exclusively, so that two owners could change the list at once.",
            kind="capability",
            remedy="Copy the repository to a storage that can.",
        )


def learn(unlocked: Unlocked, *, against: Collection[str] = ()) -> None:
    """The newest list and keys, before anything is sealed for whom it names. Damaged when it was turned back.

    WrongCredential when this slot opens with something else by now: it would not learn what it is about to write.
    `against`: the slots that are being revoked. What they alone say of lists stops nobody, or they could stop that.
    """
    unlocked.renew()
    if unlocked.slot.recipient != unlocked.opener.recipient:
        raise WrongCredential(
            "The passphrase of this credential was changed since it was opened with the one of before.",
            kind="passphrase-changed",
            remedy="Open it again, with the new one.",
        )
    history = load_history(unlocked)
    cited = {roster for roster, _ in history.unlisted.values()}
    remembered = [name for name in history.vanished if name.startswith("roster/") and name not in cited]
    if remembered:
        raise turned_back(remembered[0])
    said = {slot.name: roster for roster, slot in history.unlisted.values() if slot.name not in against}
    if said:
        raise turned_back_by_word(max(said.values()), sorted(said))


def check_complete(unlocked: Unlocked, to: str) -> None:
    """Damaged when this slot lacks keys that it was given: whom it passes its own on to would lack them for ever."""
    if lacks := lacking(unlocked.keyring, unlocked.slot, unlocked.roster):
        raise Damaged(
            f"No keyring of {unlocked.slot.name!r} has {' and '.join(lacks)}: to {to} now could lose these for ever.",
            kind="keys",
            remedy=f"Copy what keys/{unlocked.slot.id.hex()} lacks from another location, or open as another owner.",
        )


def change_roster(
    unlocked: Unlocked,
    change: Callable[[Roster], Roster],
    *,
    against: Collection[str] = (),
    opener: Opener | None = None,
) -> None:
    """Write the next roster; `change` gives it from the newest, and may be asked again. Conflict, StorageFailed.

    `against`: see `learn`. `opener`: what this slot's keyrings are sealed to once that roster is there.
    """
    signing = unlocked.keyring.signing
    assert signing is not None
    for left in reversed(range(ATTEMPTS)):
        learn(unlocked, against=against)
        before = unlocked.roster
        after = replace(change(before), number=before.number + 1, previous=unlocked.roster_hash, created=now_ns())
        content, slot = wire.encode(after), unlocked.keyring.slot
        message = roster_message(unlocked.repository, after.number, slot, unlocked.roster_hash, content)
        signed = SignedRoster(content, slot, SigningKey(signing).sign(message))
        _check_whole(content, Roster)
        _check_whole(body := wire.encode(signed), SignedRoster)
        stored, name = wire.header(Kind.ROSTER) + body, ids.roster_name(after.number)
        try:
            create(unlocked.storage, name, stored)
        except Conflict:
            if not left:
                raise
            continue
        if opener is not None:
            unlocked.opener = opener
        unlocked.renew()
        remember(unlocked, {name: Remembered(unlocked.rosters[after.number])})
        return


def _check_whole(content: bytes, shape: type[wire.Record]) -> None:
    """InvalidInput when nobody could read it again: everybody would be locked out."""
    try:
        wire.decode(content, shape)
    except Damaged as error:
        raise InvalidInput(
            f"What was to be stored is outside the format's limits. {error.message}",
            remedy="Give shorter texts; of slots, keys and domains there can be no more.",
        ) from None


def put_keyring(unlocked: Unlocked, keyring: Keyring, recipient: bytes, listed: Listed | None = None) -> None:
    """Give a slot one more keyring, sealed to what the list says. Conflict when no number is left; StorageFailed.

    Its number is not the next one: it may have been used in a replica, for a keyring that would be in the way there.
    `listed`: where several slots are given one each, which keyrings there were before.
    """
    numbers = (listed or keyring_numbers(unlocked.storage)).get(keyring.slot.hex(), [])
    number = max(numbers, default=0) + 1 + int.from_bytes(os.urandom(GAP_BYTES))
    if number > NUMBER_LAST:  # no replica would take it, so that this slot would not open there
        last = ids.keyring_name(keyring.slot, max(numbers))
        raise Conflict(
            f"No number is left for another keyring: somebody has put one with an impossible number here, {last}.",
            kind="keyring-number",
            remedy="Find out who, take that object away by hand, and do this again.",
        )
    _check_whole(wire.encode(keyring), Keyring)
    stored = seal_keyring(keyring, number, recipient)
    _check_whole(stored[wire.HEADER.size :], SealedKeyring)
    create(unlocked.storage, ids.keyring_name(keyring.slot, number), stored)


def present(roster: Roster) -> list[Slot]:
    """Those that are not revoked."""
    return [slot for slot in roster.slots if slot.revoked is None]


def newcomer(unlocked: Unlocked, name: str, role: Role, naming: NamingKey | None, way: Way) -> tuple[Slot, Keyring]:
    """A slot, with exactly the keys of this role and a signing key of its own. Writes nothing.

    `naming`: the key of the domain that a device is of.
    """
    signing, own = SigningKey.generate(), unlocked.keyring
    domain = naming.domain if naming else None
    slot = new_slot(ids.new_id(), name, role, domain, way, signing.public)
    names = (naming,) if naming else own.naming if role in NAMERS else ()
    readers = own.readers if role in READERS else ()
    return slot, replace(own, slot=slot.id, role=role, signing=signing.seed, naming=names, readers=readers)


def naming_for(unlocked: Unlocked, domain: str | None) -> tuple[NamingKey, keys.Domain | None]:
    """The naming key of the domain of that name, and the domain if it has to be founded. Conflict."""
    own = unlocked.keyring.naming
    if domain is None:
        return own[0], None
    found = next((one for one in unlocked.roster.domains if one.name == domain), None)
    if found is None:
        key = os.urandom(32)
        made = domain_of(key)
        return NamingKey(made, key), keys.Domain(made, domain)
    for naming in own:
        if naming.domain == found.id:
            return naming, None
    raise Conflict(
        f"This credential does not hold the key of the domain {domain!r}.",
        kind="domain",
        remedy="Open with the owner's that founded it.",
    )


def give_naming(unlocked: Unlocked, naming: NamingKey) -> None:
    """Give a new domain's key to all that hold every domain's. Conflict, StorageFailed.

    It counts once a roster has that domain.
    """
    own = unlocked.keyring
    listed = keyring_numbers(unlocked.storage)
    for slot in (slot for slot in present(unlocked.roster) if slot.role in NAMERS):
        if slot.id == own.slot:
            given = replace(own, naming=(*own.naming, naming))
        else:
            readers = own.readers[-1:] if slot.role in READERS else ()
            given = _addition(unlocked, slot, own.catalogue[-1:], readers, (naming,))
        put_keyring(unlocked, given, slot.recipient, listed)


def _addition(
    unlocked: Unlocked,
    slot: Slot,
    catalogue: tuple[keys.CatalogueKey, ...],
    readers: tuple[keys.ReaderKey, ...],
    naming: tuple[NamingKey, ...] = (),
) -> Keyring:
    """A keyring that only adds to what another slot holds: nobody else knows its signing key."""
    return Keyring(
        repository=unlocked.repository,
        slot=slot.id,
        role=slot.role,
        signing=None,
        naming=naming,
        catalogue=catalogue,
        block_names=unlocked.keyring.block_names,
        readers=readers,
    )


@dataclass(frozen=True, slots=True)
class NextGeneration:
    """New keys for what will be written: not used before a roster says so."""

    catalogue: bytes = field(repr=False)
    reader: PrivateKey

    @classmethod
    def make(cls) -> NextGeneration:
        return cls(os.urandom(32), PrivateKey.generate())

    def public(self, number: int) -> keys.Generation:
        return keys.Generation(number, hashing.key_id(self.catalogue), self.reader.public.raw)

    def keyring(self, unlocked: Unlocked, slot: Slot, number: int) -> Keyring:
        """What a slot gets besides what it holds: no more than its role may have.

        One's own has all that this slot holds: should an older keyring be damaged, nothing is lost with it.
        """
        readers = (keys.ReaderKey(number, self.reader.raw),) if slot.role in READERS else ()
        catalogue = (keys.CatalogueKey(number, self.catalogue),)
        own = unlocked.keyring
        if slot.id == own.slot:
            return replace(own, catalogue=(*own.catalogue, *catalogue), readers=(*own.readers, *readers))
        return _addition(unlocked, slot, catalogue, readers)
