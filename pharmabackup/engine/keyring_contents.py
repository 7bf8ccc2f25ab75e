"""What a credential's own keyrings hold, against what the list grants its slot: nobody else can look into them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pharmabackup.crypto import hashing
from pharmabackup.crypto.recipients import PrivateKey
from pharmabackup.crypto.signatures import SigningKey
from pharmabackup.engine.grants import NAMERS, READERS
from pharmabackup.engine.keyrings import domain_of
from pharmabackup.format.keys import Keyring, Roster, Slot

INTERRUPTED = "a change of keys was interrupted, or somebody put it there"


def lacking(held: Keyring, slot: Slot, roster: Roster) -> list[str]:
    """What that slot's keys, of all its keyrings together, have not of what the list grants it, in words."""
    catalogue = {hashing.key_id(key.key) for key in held.catalogue}
    readers = {PrivateKey(key.key).public.raw for key in held.readers}
    naming = {key.domain for key in held.naming}
    found = [_of("the keys", [one.number for one in roster.generations if one.catalogue not in catalogue])]
    if slot.role in READERS:
        without = [one.number for one in roster.generations if one.reader not in readers]
        found.append(_of("the keys to read", without))
    for domain in roster.domains:
        if (slot.role in NAMERS or domain.id == slot.domain) and domain.id not in naming:
            found.append(f"the naming key of {domain.name!r}")
    if held.signing is None:
        found.append("its signing key")
    return [one for one in found if one]


@dataclass(frozen=True, slots=True)
class Granted:
    """What one slot holds by the newest list. `given`: generations that there were when it was first given keys."""

    roster: Roster
    slot: Slot
    given: int

    def foreign(self, keyring: Keyring, own: Keyring) -> str:
        """Why nobody who was enrolled can have written it, in words, or nothing. `own`: what this slot works with."""
        slot, known = self.slot, {key.key for key in own.naming}
        if keyring.role != slot.role or keyring.block_names != own.block_names:
            return "it has keys that are not those of this repository"
        if keyring.signing is not None and SigningKey(keyring.signing).public != slot.signing:
            return "it has another signing key"
        if any(domain_of(key.key) != key.domain and key.key not in known for key in keyring.naming):
            return "it has keys that are not those of this repository"
        catalogue, readers = _generations(keyring)
        if readers != (catalogue if slot.role in READERS else set()):
            return f"it has not the keys to read that a {slot.role} is granted"
        if slot.role not in NAMERS and {key.domain for key in keyring.naming} - {slot.domain}:
            return f"it has naming keys that a {slot.role} is not granted"
        if keyring.signing is not None:
            if catalogue != set(range(len(catalogue))):
                return "it has not all keys of the time when it was written"
            if (slot.role in NAMERS or slot.domain) and not keyring.naming:
                return f"it has not the naming keys that a {slot.role} is granted"
        elif len(keyring.catalogue) != 1 or len(keyring.naming) > 1:
            return "it is none of those that are given to a slot with new keys"
        elif not keyring.naming and min(catalogue) < self.given:
            return "it is none of those that are given to a slot with new keys, which has had these from the first"
        return ""

    def unlisted(self, keyring: Keyring) -> str:
        """Which keys it has that no list has, in words, or nothing."""
        catalogue = {one.catalogue for one in self.roster.generations}
        readers = {one.reader for one in self.roster.generations}
        numbers = {key.generation for key in keyring.catalogue if hashing.key_id(key.key) not in catalogue}
        numbers |= {key.generation for key in keyring.readers if PrivateKey(key.key).public.raw not in readers}
        if numbers:
            return f"no list has its keys of generation {', '.join(map(str, sorted(numbers)))}: {INTERRUPTED}"
        domains = {domain.id for domain in self.roster.domains}
        if any(key.domain not in domains for key in keyring.naming):
            return f"it has the key of a domain that no list has: {INTERRUPTED}"
        return ""


def twice(adding: Sequence[tuple[str, Keyring]]) -> list[str]:
    """The names of those of these, which only add, that add what another does: each new key is given once."""
    times = Counter((one.catalogue, one.naming) for _, one in adding)
    return [name for name, one in adding if times[one.catalogue, one.naming] > 1]


def _generations(keyring: Keyring) -> tuple[set[int], set[int]]:
    return {key.generation for key in keyring.catalogue}, {key.generation for key in keyring.readers}


def _of(what: str, numbers: list[int]) -> str:
    return f"{what} of generation {', '.join(map(str, numbers))}" if numbers else ""
