"""Keys: who is enrolled, one more passphrase, another passphrase, and new keys for what will be written."""

from __future__ import annotations

from msgspec.structs import replace

from pharmabackup.clock import from_ns
from pharmabackup.credentials import Credential, Passphrase
from pharmabackup.engine import enrolment
from pharmabackup.engine.audit import note
from pharmabackup.engine.keyrings import Stretched
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Conflict, InvalidInput, Unsupported
from pharmabackup.format.keys import Role, Roster
from pharmabackup.results import Slot

NAME_MAX = 200


def slots(unlocked: Unlocked) -> list[Slot]:
    """All that were ever enrolled. WrongCredential, Damaged, StorageFailed."""
    unlocked.renew()
    return [
        Slot(
            name=slot.name,
            role=slot.role,
            kind=slot.credential,
            created=from_ns(slot.created),
            revoked=None if slot.revoked is None else from_ns(slot.revoked.time),
        )
        for slot in unlocked.roster.slots
    ]


def enrol(unlocked: Unlocked, role: Role, who: Credential, *, name: str) -> None:
    """Let one more passphrase open. Conflict, InvalidInput, NotPermitted, Unsupported, StorageFailed."""
    passphrase = _passphrase(who)
    if role != "owner":
        raise Unsupported(f"This version enrols owners only, not a {role}.", remedy="Enrol an owner.")
    if not 1 <= len(name) <= NAME_MAX or name != name.strip():
        raise InvalidInput("A slot has a name.", kind="name", remedy="Give a short one: who, or which computer.")
    enrolment.permit_owner(unlocked)
    stretched = Stretched.of(passphrase)
    unlocked.renew()
    _check_free(unlocked.roster, name)
    slot, keyring = enrolment.new_owner(unlocked, name, stretched)
    assert slot.recipient is not None
    enrolment.put_keyring(unlocked, keyring, stretched.setting, slot.recipient)

    known = unlocked.roster.generations

    def change(roster: Roster) -> Roster:
        _check_free(roster, name)
        if roster.generations != known:
            raise _at_the_same_time()
        return replace(roster, slots=(*roster.slots, slot))

    enrolment.change_roster(unlocked, change)
    note(unlocked, "enrol", name, reason=None)


def _check_free(roster: Roster, name: str) -> None:
    if any(slot.name == name for slot in roster.slots):
        raise Conflict(f"There is a slot named {name!r} already.", kind="name-taken", remedy="Choose another name.")


def change_passphrase(unlocked: Unlocked, new: Credential) -> None:
    """Open with another passphrase from now on. Interrupted, the old one opens, or both records are done.

    Whoever copied the storage before and knows the old one can still read what was there: see `rotate`.
    InvalidInput, NotPermitted, Conflict, StorageFailed.
    """
    passphrase = _passphrase(new)
    enrolment.permit_owner(unlocked)
    stretched = Stretched.of(passphrase)
    recipient, own = stretched.private.public.raw, unlocked.keyring.slot

    def change(roster: Roster) -> Roster:
        changed = (replace(slot, recipient=recipient) if slot.id == own else slot for slot in roster.slots)
        return replace(roster, slots=tuple(changed))

    enrolment.change_roster(unlocked, change)
    enrolment.put_keyring(unlocked, unlocked.keyring, stretched.setting, recipient)
    unlocked.stretched = stretched
    note(unlocked, "change-passphrase", unlocked.slot.name, reason=None)


def rotate(unlocked: Unlocked, *, reason: str) -> None:
    """New catalogue and reader keys for what is written from now on; what was written keeps its own.

    Conflict, InvalidInput, NotPermitted, StorageFailed.
    """
    if not reason.strip():
        raise InvalidInput("There is no reason given.", remedy="Say in a few words why.")
    enrolment.permit_owner(unlocked)
    unlocked.renew()
    number, keys = len(unlocked.roster.generations), enrolment.NextGeneration.make()
    present = [slot for slot in unlocked.roster.slots if slot.revoked is None]
    ways = [(slot, *enrolment.way_to(unlocked, slot)) for slot in present]  # all, before anything is written
    for slot, setting, recipient in ways:
        enrolment.put_keyring(unlocked, keys.keyring(unlocked, slot, number), setting, recipient)

    def change(roster: Roster) -> Roster:
        if len(roster.generations) != number or [one for one in roster.slots if one.revoked is None] != present:
            raise _at_the_same_time()
        return replace(roster, generations=(*roster.generations, keys.public(number)))

    enrolment.change_roster(unlocked, change)
    note(unlocked, "rotate", f"generation {number}", reason=reason)


def _at_the_same_time() -> Conflict:
    return Conflict(
        "Another owner changed who may do what at the same time.",
        kind="already-running",
        remedy="Look at the slots, and do this again.",
    )


def _passphrase(who: Credential) -> Passphrase:
    if not isinstance(who, Passphrase):
        raise Unsupported("This version enrols passphrases only.", remedy="Give a pb.Passphrase.")
    who.check_enrollable()
    return who
