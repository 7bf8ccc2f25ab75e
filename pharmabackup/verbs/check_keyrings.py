"""Keyrings that are missing, and such as fit no list: nobody signs them, so the lists that owners sign tell it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from pharmabackup.crypto import hashing
from pharmabackup.crypto.recipients import PrivateKey
from pharmabackup.crypto.signatures import SigningKey
from pharmabackup.engine.enrolment import present
from pharmabackup.engine.grants import NAMERS
from pharmabackup.engine.keyrings import KEYRING, domain_of, numbered, read_sealed
from pharmabackup.engine.roster import Rosters, read_rosters
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged, NotFound
from pharmabackup.events import Finding, Severity
from pharmabackup.format.keys import Keyring, SealedKeyring, Slot

INTERRUPTED = "a change of keys was interrupted, or somebody put it there"
NOT_USED = "Nobody uses it. Unless a change of keys was interrupted, find out who put it there; delete it by hand."


def keyring_findings(unlocked: Unlocked) -> Iterator[Finding]:
    """What is damaged is told elsewhere. Damaged, StorageFailed."""
    rosters = read_rosters(unlocked.storage, unlocked.repository)
    unlocked.renewed()  # after that: what has its keys by then lacks nothing that these lists want
    yield from _Check(unlocked, rosters).findings()


@dataclass(frozen=True, slots=True)
class _Check:
    unlocked: Unlocked
    rosters: Rosters

    def findings(self) -> Iterator[Finding]:
        storage = self.unlocked.storage
        slots = {slot.id.hex(): slot for slot in self.rosters.newest.slots}
        there = Counter[str]()  # by slot: those that its credential opens now
        older = set[str]()  # slots with others
        for name in [info.name for info in storage.list("keys") if KEYRING.fullmatch(info.name)]:
            folder = name.split("/")[1]
            slot = slots.get(folder)
            try:
                sealed = read_sealed(storage, folder, numbered(name))
            except Damaged:
                there[folder] += 1
                continue
            except NotFound:
                continue
            if slot is None:
                yield self._unused(name, "info", f"it is of nobody who is enrolled: {INTERRUPTED}")
            elif not self._fits(slot, sealed):
                yield self._unused(name, "warning", f"it is sealed to somebody else than {slot.name!r}")
            else:
                if self._is_current(slot, sealed):
                    there[folder] += 1
                else:
                    older.add(folder)
                if slot.id == self.unlocked.keyring.slot and self.unlocked.opener.may_open(sealed):
                    yield from self._opened(name, slot, sealed)
        for slot in present(self.rosters.newest):
            yield from self._missing(slot, there[slot.id.hex()], before=slot.id.hex() in older)

    # ------------------------------------------------------------ what is missing

    def _missing(self, slot: Slot, there: int, *, before: bool) -> Iterator[Finding]:
        """Each change of keys gave every slot one more keyring (docs/format.md, §8)."""
        newest, given = self.rosters.newest, self.rosters.given[slot.id]
        due = 1 + len(newest.generations) - given.generations
        if slot.role in NAMERS:
            due += len(newest.domains) - given.domains
        if slot.recipient is None:  # of a time when owners could not yet give new keys to others
            due = 1
        problem = f"Of {slot.name!r} {due - there} of {due} keyrings that there have to be are missing"
        if slot.id == self.unlocked.keyring.slot and there >= due:
            lacking = self._lacking()
            due += len(lacking)
            problem = f"No keyring of {slot.name!r} has the keys of generation {', '.join(map(str, lacking))}"
        severity: Severity = "critical"
        if slot.credential == "passphrase" and not there and before:
            severity = "warning"
            problem = (
                f"No keyring of {slot.name!r} is sealed to its new passphrase, and one is to that of before: its "
                "change was interrupted, or somebody deleted it"
            )
        if there < due:
            yield Finding(
                code="keyring-missing",
                severity=severity,
                subject=f"keys/{slot.id.hex()}",
                message=f"{problem}: that credential does not open all that is here, or nothing.",
                remedy="Copy from a place that has them, or let an owner enrol that credential once more.",
                location=self.unlocked.storage.location,
            )

    def _lacking(self) -> list[int]:
        """Generations of which this credential has no catalogue key."""
        known = {hashing.key_id(key.key) for key in self.unlocked.keyring.catalogue}
        return [one.number for one in self.rosters.newest.generations if one.catalogue not in known]

    # ------------------------------------------------------------ what fits no list

    def _fits(self, slot: Slot, sealed: SealedKeyring) -> bool:
        """Whether it is sealed as the slot's credential is, and to whom the slot ever was."""
        if slot.credential != "passphrase":
            return sealed.argon2id is None and sealed.key_id is None
        given = self.rosters.given[slot.id]
        return sealed.argon2id is not None and (sealed.key_id in given.recipients or given.unnamed)

    def _is_current(self, slot: Slot, sealed: SealedKeyring) -> bool:
        if slot.credential != "passphrase" or slot.recipient is None:
            return True
        return sealed.key_id == hashing.key_id(slot.recipient)

    def _opened(self, name: str, slot: Slot, sealed: SealedKeyring) -> Iterator[Finding]:
        try:
            keyring = self.unlocked.opener.open(self.unlocked.repository, sealed)
        except Damaged:
            yield Finding(
                code="keyring-damaged",
                severity="warning",
                subject=name,
                message=f"The keyring {name} says that it is sealed to {slot.name!r}, and does not open: it was "
                "damaged, or somebody put it there.",
                remedy="If another location has it, put that one in its place by hand; if none has, delete it.",
                location=self.unlocked.storage.location,
            )
            return
        if self._is_foreign(keyring, slot):
            yield self._unused(name, "warning", "it has keys that are not those of this repository")
            return
        newest = self.rosters.newest
        catalogue = {one.catalogue for one in newest.generations}
        readers = {one.reader for one in newest.generations}
        numbers = {key.generation for key in keyring.catalogue if hashing.key_id(key.key) not in catalogue}
        numbers |= {key.generation for key in keyring.readers if PrivateKey(key.key).public.raw not in readers}
        domains = {domain.id for domain in newest.domains}
        if numbers:
            told = ", ".join(map(str, sorted(numbers)))
            yield self._unused(name, "info", f"no list has its keys of generation {told}: {INTERRUPTED}")
        elif any(key.domain not in domains for key in keyring.naming):
            yield self._unused(name, "info", f"it has the key of a domain that no list has: {INTERRUPTED}")

    def _is_foreign(self, keyring: Keyring, slot: Slot) -> bool:
        own = self.unlocked.keyring
        if keyring.role != slot.role or keyring.block_names != own.block_names:
            return True
        if keyring.signing is not None:
            return SigningKey(keyring.signing).public != slot.signing
        known = {key.key for key in own.naming}
        return any(domain_of(key.key) != key.domain and key.key not in known for key in keyring.naming)

    def _unused(self, name: str, severity: Severity, why: str) -> Finding:
        return Finding(
            code="keyring-unused",
            severity=severity,
            subject=name,
            message=f"The keyring {name} fits no list of who may do what: {why}.",
            remedy=NOT_USED,
            location=self.unlocked.storage.location,
        )
