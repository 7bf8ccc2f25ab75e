"""Keys: who is enrolled, one more, one less, another passphrase, shares, and new keys for what will be written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import count
from typing import get_args

from msgspec.structs import replace

from pharmabackup.clock import from_ns, now_ns
from pharmabackup.credentials import SEED_SIZE, Credential, Passphrase, Recipient, fingerprint_of
from pharmabackup.crypto.shares import check_numbers, set_of, split
from pharmabackup.engine import enrolment, historycache
from pharmabackup.engine.audit import note
from pharmabackup.engine.grants import JUDGED_MARKS, READERS
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.keyrings import Opener, Way, keyring_numbers, new_setting
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Conflict, InvalidInput, NotFound
from pharmabackup.events import Finding
from pharmabackup.format.keys import PASSPHRASES_MAX, ROSTER_MAX, Keyring, Revoked, Role, Roster
from pharmabackup.format.keys import Slot as RosterSlot
from pharmabackup.format.transaction import HEADS_MAX
from pharmabackup.results import Slot

NAME_MAX = 200
REASON_MAX = 1000
ACCEPTED_NEWEST = 1000  # of a revoked slot's snapshots
ACCEPTED_EVERY = 100  # and of the older ones
ACCEPTED_SHARE = (
    4  # of the half of a list that is for such hashes, one part of so many of what is left: 65,536 at first
)
HASH_SIZE = 32


def slots(unlocked: Unlocked) -> list[Slot]:
    """All that were ever enrolled. WrongCredential, Damaged, StorageFailed."""
    unlocked.renew()
    return [
        Slot(
            name=slot.name,
            role=slot.role,
            kind=slot.credential,
            fingerprint=fingerprint_of(slot.recipient),
            created=from_ns(slot.created),
            revoked=None if slot.revoked is None else from_ns(slot.revoked.time),
        )
        for slot in unlocked.roster.slots
    ]


def enrol(
    unlocked: Unlocked, role: Role, who: Credential | Recipient, *, name: str, domain: str | None = None
) -> None:
    """Let one more credential in, with exactly the keys of its role.

    `domain`: of a device, the name of the devices that trust each other's chunks; a new one is made where there is
    none of that name. None: that in which this owner writes himself.
    Conflict, InvalidInput, NotFound, NotPermitted, Unsupported, StorageFailed.
    """
    if role not in get_args(Role):
        raise InvalidInput(
            f"There is no role {role!r}.", kind="role", remedy=f"Give one of {', '.join(get_args(Role))}."
        )
    _check_name(name, "slot")
    if domain is not None:
        _check_name(domain, "domain")
        if role != "device":
            raise InvalidInput(f"A {role} is of every domain.", kind="domain", remedy="Leave out the domain.")
    enrolment.permit_owner(unlocked)
    way = Way.of(who)
    enrolment.learn(unlocked)
    enrolment.check_complete(unlocked, "enrol")
    known = unlocked.roster
    _check_free(known, name)
    _check_tried(known, way)
    naming, founded = enrolment.naming_for(unlocked, domain) if role == "device" else (None, None)
    if founded is not None and naming is not None:
        enrolment.give_naming(unlocked, naming)
    slot, keyring = enrolment.newcomer(unlocked, name, role, naming, way)
    enrolment.put_keyring(unlocked, keyring, way.recipient)

    def change(roster: Roster) -> Roster:
        _check_free(roster, name)
        _check_tried(roster, way)
        if (roster.generations, roster.domains) != (known.generations, known.domains):
            raise _at_the_same_time()
        if founded is not None and enrolment.present(roster) != enrolment.present(known):
            raise _at_the_same_time()
        domains = roster.domains if founded is None else (*roster.domains, founded)
        return replace(roster, slots=(*roster.slots, slot), domains=domains)

    enrolment.change_roster(unlocked, change)
    note(unlocked, "enrol", name, reason=None)


def revoke(
    unlocked: Unlocked, names: Sequence[str], *, reason: str, elsewhere: Sequence[Unlocked] = ()
) -> tuple[Finding, ...]:
    """What these slots have backed up stays; nothing that they sign from now on counts, nor can they read what comes.

    `elsewhere`: replicas into which they back up themselves, so that what they did there counts too. Interrupted, all
    are revoked or none is; then new keys may be missing, which `rotate` makes. Finds who had said more than
    counts.
    Conflict, InvalidInput, NotFound, NotPermitted, StorageFailed.
    """
    _check_reason(reason)
    enrolment.permit_owner(unlocked)
    names = list(dict.fromkeys(names))
    enrolment.learn(unlocked, against=names)
    going = [_named(unlocked.roster, name) for name in names]
    if any(slot.role in READERS for slot in going):  # nobody else may have what is lacking here
        enrolment.check_complete(unlocked, "revoke")
    slots = {slot.id for slot in going}
    if unlocked.keyring.slot in slots:
        raise Conflict(
            "Nobody revokes the credential that he has opened with.",
            kind="own-slot",
            remedy="Open with another owner's, or enrol one first.",
        )
    if any(one.repository != unlocked.repository for one in elsewhere):
        raise InvalidInput("One of the replicas is another repository.", remedy="Give replicas of this one.")
    most = _most_accepted(unlocked.roster, len(slots))
    judged = {slot: _accepted((unlocked, *elsewhere), slot, most) for slot in slots}
    accepted = {slot: hashes for slot, (hashes, _) in judged.items()}
    cut = [_cut(unlocked, slot, most, judged[slot.id][1]) for slot in unlocked.roster.slots if slot.id in slots]

    def change(roster: Roster) -> Roster:
        for name in names:
            _named(roster, name)
        return _without(roster, accepted, reason)

    enrolment.change_roster(unlocked, change, against=names)
    for name in names:
        note(unlocked, "revoke", name, reason=reason)
    told, many = " and ".join(names), len(names) > 1
    done, why = f"{told} {'are' if many else 'is'} revoked", f"{told} {'were' if many else 'was'} revoked"
    _rotate_after(unlocked, done, why[-REASON_MAX:], "Then rotate.")
    return tuple(finding for finding in cut if finding)


def _cut(unlocked: Unlocked, slot: RosterSlot, most: int, left: int) -> Finding | None:
    """What is told of a slot that had said more than the list can accept."""
    if not left:
        return None
    return Finding(
        code="revoked-in-part",
        severity="warning",
        subject=slot.name,
        message=f"{slot.name!r} had written more than a list of keys can hold: of its snapshots, forgets, recalls "
        f"and releases it names the newest {most:,}. Of {left:,} others only snapshots before these count.",
        remedy="Run check: it names what does not count. What only it had forgotten may look lost: forget that anew.",
        location=unlocked.storage.location,
    )


def _accepted(places: Sequence[Unlocked], slot: bytes, most: int) -> tuple[bytes, int]:
    """The hashes of a slot's fates and marks that still count, `most` of them, and how many more there are.

    Fates do with all that they name as before them. So the last one is not enough: a replica may lag behind, and one
    of them may be damaged later. What is damaged or gone now may be the slot's: its hash counts where this machine
    has seen it. Whoever stole the slot can write any number: of snapshots the heads that came first come first, then
    the newest and some of all; then the newest marks.
    """
    found: dict[bytes, None] = {}  # in this order
    marks: list[tuple[int, bytes]] = []
    for unlocked in places:
        history = load_history(unlocked)
        own = [item.hash for item in history.newest() if item.slot.id == slot]
        heads = [head.hash for head in history.heads(slot)]  # the slot's own came before what a thief added
        several = (*heads[:HEADS_MAX], *own[:ACCEPTED_NEWEST], *own[::ACCEPTED_EVERY], *heads[HEADS_MAX:])
        found |= dict.fromkeys(several)
        marks += [
            (said.time, said.hash) for said in history.said if said.slot.id == slot and said.mark.kind in JUDGED_MARKS
        ]
    found |= dict.fromkeys(digest for _, digest in sorted(marks, reverse=True))
    for unlocked in places:
        history, seen = load_history(unlocked), historycache.load(unlocked)
        for name in (*history.damaged, *history.vanished):
            if (known := seen.get(name)) is not None and name.startswith(("snapshots/", "marks/")) and known.hash:
                found.setdefault(known.hash)
    return b"".join(sorted(list(found)[:most])), max(0, len(found) - most)


def _most_accepted(roster: Roster, slots: int) -> int:
    """So many hashes for each of these slots surely fit, and those of slots that are revoked later."""
    used = sum(len(slot.revoked.accepted) for slot in roster.slots if slot.revoked)
    return max(0, ROSTER_MAX // 2 - used) // ACCEPTED_SHARE // (HASH_SIZE * max(1, slots))


def _without(roster: Roster, accepted: Mapping[bytes, bytes], reason: str) -> Roster:
    """A roster in which these slots are revoked."""
    now = now_ns()
    return replace(
        roster,
        slots=tuple(
            replace(one, revoked=Revoked(now, reason, accepted[one.id])) if one.id in accepted else one
            for one in roster.slots
        ),
    )


def _rotate_after(unlocked: Unlocked, done: str, reason: str, again: str) -> None:
    """New keys, since somebody who is revoked knows those in use. Conflict, StorageFailed."""
    try:
        rotate(unlocked, reason=reason)
    except Conflict as conflict:
        raise Conflict(
            f"{done}, but the keys that it knows are in use: no new ones were made. {conflict.message}",
            kind=conflict.kind,
            remedy=f"{conflict.remedy} {again}",
        ) from None


def _named(roster: Roster, name: str) -> RosterSlot:
    """NotFound, Conflict when it is revoked already."""
    slot = next((slot for slot in roster.slots if slot.name == name), None)
    if slot is None:
        raise NotFound(f"No slot is named {name!r}.", kind="slot", remedy="Look at the slots for its name.")
    if slot.revoked is not None:
        raise Conflict(
            f"The slot {name!r} is revoked already.",
            kind="revoked",
            remedy="If that ended before new keys were made, rotate.",
        )
    return slot


def split_recovery(unlocked: Unlocked, *, threshold: int, shares: int) -> tuple[str, ...]:
    """A new recovery key in so many shares, shown once: `threshold` of them open as an owner.

    The one before it, if there is one, is revoked, and new keys are made. Interrupted, split again: shares that
    nobody has seen open nothing.
    Conflict, InvalidInput, NotPermitted, StorageFailed.
    """
    enrolment.permit_owner(unlocked)
    if unlocked.slot.credential == "shares":  # it would be revoked before anybody had seen the new ones
        raise Conflict(
            "Shares do not replace themselves.",
            kind="own-slot",
            remedy="Enrol an owner, open with that credential, and split again.",
        )
    check_numbers(threshold, shares)
    enrolment.learn(unlocked)
    enrolment.check_complete(unlocked, "split")
    known = unlocked.roster
    ever = [slot for slot in known.slots if slot.credential == "shares"]
    old = [slot for slot in enrolment.present(known) if slot in ever]
    seed, recipient = _recovery_key(ever)
    made = split(seed, recipient, threshold=threshold, shares=shares)
    way = Way("shares", recipient)
    number = 1 + len(ever)
    name = next(
        name
        for name in (f"recovery {number + more}" if number + more > 1 else "recovery" for more in count())
        if all(slot.name != name for slot in known.slots)
    )
    slot, keyring = enrolment.newcomer(unlocked, name, "owner", None, way)
    enrolment.put_keyring(unlocked, keyring, way.recipient)
    most = _most_accepted(known, len(old))
    accepted = {one.id: _accepted((unlocked,), one.id, most)[0] for one in old}

    def change(roster: Roster) -> Roster:
        if (roster.generations, roster.domains) != (known.generations, known.domains):
            raise _at_the_same_time()
        if [one for one in enrolment.present(roster) if one.credential == "shares"] != old:
            raise _at_the_same_time()
        left = _without(roster, accepted, "split anew")
        return replace(left, slots=(*left.slots, slot), recovery=way.recipient)

    enrolment.change_roster(unlocked, change)
    note(unlocked, "split-recovery", f"{threshold} of {shares}", reason=None)
    if old:
        again = "Then split again: nobody has seen the new shares."
        _rotate_after(unlocked, "The older shares are revoked", "the recovery key was split anew", again)
    return made


def _recovery_key(ever: Sequence[RosterSlot]) -> tuple[bytes, bytes]:
    """A seed and its public half, whose shares can be told from those of all before."""
    before = {set_of(slot.recipient) for slot in ever}
    while True:
        seed = os.urandom(SEED_SIZE)
        recipient = Opener.of_seed(seed).recipient
        if set_of(recipient) not in before:  # there are far fewer slots than sets
            return seed, recipient


def _check_name(name: str, what: str) -> None:
    if not 1 <= len(name) <= NAME_MAX or name != name.strip() or not _is_text(name):
        raise InvalidInput(f"A {what} has a name.", kind="name", remedy="Give a short one: who, or which computer.")


def _check_reason(reason: str) -> None:
    if not reason.strip():
        raise InvalidInput("There is no reason given.", remedy="Say in a few words why.")
    if len(reason) > REASON_MAX or not _is_text(reason):
        raise InvalidInput(
            "This reason cannot be stored.", remedy=f"Give Unicode text of {REASON_MAX} characters at most."
        )


def _is_text(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _check_free(roster: Roster, name: str) -> None:
    if any(slot.name == name for slot in roster.slots):
        raise Conflict(f"There is a slot named {name!r} already.", kind="name-taken", remedy="Choose another name.")


def _check_tried(roster: Roster, way: Way) -> None:
    """Conflict when a passphrase would be one more than a client tries."""
    stretched = sum(1 for slot in enrolment.present(roster) if slot.credential == "passphrase")
    if way.credential == "passphrase" and stretched >= PASSPHRASES_MAX:
        raise Conflict(
            f"{stretched} passphrases are enrolled, and no more than {PASSPHRASES_MAX} are tried.",
            kind="too-many-passphrases",
            remedy="Enrol a key, or revoke a passphrase that nobody uses.",
        )


def change_passphrase(unlocked: Unlocked, new: Credential) -> None:
    """Open with another passphrase from now on. Interrupted before the list that says so, the old one opens.

    Whoever copied the storage before and knows the old one can still read what was there: see `rotate`.
    InvalidInput, NotPermitted, WrongCredential, Conflict, StorageFailed.
    """
    if unlocked.slot.credential != "passphrase":
        raise InvalidInput("This slot opens with a key.", kind="credential", remedy="Enrol another key instead.")
    if not isinstance(new, Passphrase):
        raise InvalidInput("Only a passphrase takes a passphrase's place.", remedy="Give a pb.Passphrase.")
    new.check_enrollable()
    enrolment.permit_owner(unlocked)
    setting, own = new_setting(), unlocked.keyring.slot
    opener = Opener.of_passphrase(new, setting)
    recipient, given = opener.recipient, list[Keyring]()

    def change(roster: Roster) -> Roster:
        enrolment.check_complete(unlocked, "change the passphrase")
        if unlocked.keyring not in given:  # again where another owner gave new keys, to the passphrase of before
            enrolment.put_keyring(unlocked, unlocked.keyring, recipient)
            given.append(unlocked.keyring)
        changed = (
            replace(slot, recipient=recipient, argon2id=setting) if slot.id == own else slot for slot in roster.slots
        )
        return replace(roster, slots=tuple(changed))

    enrolment.change_roster(unlocked, change, opener=opener)
    note(unlocked, "change-passphrase", unlocked.slot.name, reason=None)


def rotate(unlocked: Unlocked, *, reason: str) -> None:
    """New catalogue and reader keys for what is written from now on; what was written keeps its own.

    Conflict, InvalidInput, NotPermitted, StorageFailed.
    """
    _check_reason(reason)
    enrolment.permit_owner(unlocked)
    enrolment.learn(unlocked)
    number, keys = len(unlocked.roster.generations), enrolment.NextGeneration.make()
    present = enrolment.present(unlocked.roster)
    listed = keyring_numbers(unlocked.storage)
    for slot in present:
        enrolment.put_keyring(unlocked, keys.keyring(unlocked, slot, number), slot.recipient, listed)

    def change(roster: Roster) -> Roster:
        if len(roster.generations) != number or enrolment.present(roster) != present:
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
