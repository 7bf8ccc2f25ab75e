"""Keyrings that are missing, damaged or swapped, and such as fit no list.

Nobody signs a keyring, so the lists that owners sign tell it: how many each slot was given, whom they are sealed to,
and what a credential's own have to hold.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

from pharmabackup.crypto import hashing
from pharmabackup.engine.grants import NAMERS
from pharmabackup.engine.keyring_contents import INTERRUPTED, Granted, lacking, twice
from pharmabackup.engine.keyrings import KEYRING, Joining, numbered, read_sealed
from pharmabackup.engine.roster import Rosters, read_rosters
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged, NotFound
from pharmabackup.events import Finding, Severity
from pharmabackup.format.keys import Keyring, SealedKeyring, Slot

NOT_USED = "Nobody uses it. Unless a change of keys was interrupted, find out who put it there; delete it by hand."
MENDED = (
    "Put the object of another location in its place by hand, since a name is never used twice; or let an owner "
    "enrol that credential once more."
)
CLOSED = "it says that it is this credential's, and does not open: it is damaged, or somebody put it there"
NAMED = 20  # of objects that one finding is about


def keyring_findings(unlocked: Unlocked) -> Iterator[Finding]:
    """Each keyring is read once. Damaged when a list is, StorageFailed."""
    rosters = read_rosters(unlocked.storage, unlocked.repository)
    unlocked.renewed()  # after that: what has its keys by then lacks nothing that these lists want
    yield from _Check(unlocked, rosters).findings()


@dataclass(slots=True)
class _Tally:
    """What there is of one slot; names, the newest first."""

    slot: Slot
    held: Joining  # of one's own
    whole: int = 0  # that its credential opens, as far as can be told
    damaged: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)  # that say that they are sealed to one's own credential
    strange: list[str] = field(default_factory=list)  # sealed to somebody else
    adding: list[tuple[str, Keyring]] = field(default_factory=list)  # of one's own, those that only add
    foreign: list[tuple[str, str]] = field(default_factory=list)  # each with what is wrong in it
    unlisted: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Check:
    unlocked: Unlocked
    rosters: Rosters

    def findings(self) -> Iterator[Finding]:
        tallies = {slot.id.hex(): _Tally(slot, Joining(self.rosters.newest)) for slot in self.rosters.newest.slots}
        odd, strangers = list[str](), list[str]()
        names = [info.name for info in self.unlocked.storage.list("keys")]
        for name in sorted(names, key=lambda name: (len(name), name), reverse=True):
            if not KEYRING.fullmatch(name):
                odd.append(name)
            elif (tally := tallies.get(name.split("/")[1])) is None:
                strangers.append(name)
            else:
                self._look(name, tally)
        yield from self._told("keyring-damaged", "warning", odd, "it is no name of a keyring", NOT_USED)
        yield from self._unused("info", strangers, f"it is of nobody who is enrolled: {INTERRUPTED}")
        for tally in tallies.values():
            yield from self._of_slot(tally)

    def _look(self, name: str, tally: _Tally) -> None:
        slot = tally.slot
        try:
            sealed = read_sealed(self.unlocked.storage, slot.id.hex(), numbered(name))
        except NotFound:
            return
        except Damaged:
            tally.damaged.append(name)
            return
        if sealed.key_id not in self.rosters.given[slot.id].recipients:
            tally.strange.append(name)
        elif sealed.key_id != hashing.key_id(slot.recipient):
            return  # of a passphrase of before
        elif self._is_own(slot):
            self._open(name, sealed, tally)
        else:
            tally.whole += 1

    def _is_own(self, slot: Slot) -> bool:
        """Whether its keyrings open here: somebody else may have changed the passphrase meanwhile."""
        return slot.id == self.unlocked.keyring.slot and slot.recipient == self.unlocked.opener.recipient

    def _open(self, name: str, sealed: SealedKeyring, tally: _Tally) -> None:
        try:
            keyring = self.unlocked.opener.open(self.unlocked.repository, sealed)
        except Damaged:
            tally.closed.append(name)
            return
        tally.held.add(keyring)
        granted = self._granted(tally.slot)
        if why := granted.foreign(keyring, self.unlocked.keyring):
            tally.foreign.append((name, why))
            return
        if keyring.signing is None:
            tally.adding.append((name, keyring))
        if why := granted.unlisted(keyring):
            tally.unlisted.append((name, why))
        else:
            tally.whole += 1

    def _granted(self, slot: Slot) -> Granted:
        return Granted(self.rosters.newest, slot, self.rosters.given[slot.id].generations)

    # ------------------------------------------------------------ of one slot

    def _of_slot(self, tally: _Tally) -> Iterator[Finding]:
        needed = False if tally.slot.revoked else (yield from self._of_user(tally))
        if not needed:
            said = "it is damaged, and its credential opens as many others as it was given"
            yield from self._told("keyring-damaged", "info", tally.damaged, said, NOT_USED)
            yield from self._told("keyring-damaged", "warning", tally.closed, CLOSED, NOT_USED)
            yield from self._grouped("warning", tally.foreign)
        yield from self._grouped("info", tally.unlisted)
        yield from self._unused("warning", tally.strange, f"it is sealed to somebody else than {tally.slot.name!r}")

    def _of_user(self, tally: _Tally) -> Generator[Finding, None, bool]:
        """What one who is not revoked cannot do any more; whether there is anything."""
        slot, due, is_own = tally.slot, self._due(tally.slot), self._is_own(tally.slot)
        lacks = self._lacking(tally) if is_own else []
        if lacks and not tally.foreign:
            tally.foreign += [(name, "another one adds the same keys") for name in twice(tally.adding)]
        instead = len(tally.damaged) + len(tally.closed) + len(tally.foreign)
        missing = due - tally.whole - instead
        if missing > 0:
            problem = f"Of {slot.name!r} {missing} of {due} keyrings that there have to be are missing"
        elif lacks and not instead:
            problem = f"No keyring of {slot.name!r} has {' and '.join(lacks)}"
        else:
            problem = ""
        severity: Severity = "warning" if is_own and not lacks else "critical"
        cost = "that credential does not open all that is here, or nothing"
        if severity == "warning":
            cost = "the others have the same keys, and must not be lost too"
        if problem:
            subject = f"keys/{slot.id.hex()}"
            remedy = "Copy from a place that has them, or let an owner enrol that credential once more."
            yield self._finding("keyring-missing", severity, subject, f"{problem}: {cost}.", remedy)
        if not (lacks if is_own else tally.whole < due):
            return False
        cost = (
            f"Without it {slot.name!r} has fewer than it was given: that credential does not open all that is "
            "here, or nothing, unless another of them has the same keys"
        )
        if lacks:
            cost = f"No other keyring of {slot.name!r} has {' and '.join(lacks)}"
        bad = [*tally.damaged, *tally.closed]
        yield from self._told("keyring-damaged", "critical", bad, f"it is damaged. {cost}", MENDED)
        for why in dict.fromkeys(why for _, why in tally.foreign):
            names = [name for name, said in tally.foreign if said == why]
            said = f"it is not what was written, or somebody put it there: {why}. {cost}"
            yield from self._told("keyring-swapped", "critical", names, said, MENDED)
        return True

    def _lacking(self, tally: _Tally) -> list[str]:
        held, newest = tally.held, self.rosters.newest
        return ["all keys"] if held.is_empty else lacking(held.keyring, tally.slot, newest)

    def _due(self, slot: Slot) -> int:
        """Each change of keys gave every slot one more keyring (docs/format.md, §8)."""
        newest, given = self.rosters.newest, self.rosters.given[slot.id]
        due = 1 + len(newest.generations) - given.generations
        return due + (len(newest.domains) - given.domains if slot.role in NAMERS else 0)

    # ------------------------------------------------------------ findings

    def _grouped(self, severity: Severity, found: Sequence[tuple[str, str]]) -> Iterator[Finding]:
        for why in dict.fromkeys(why for _, why in found):
            yield from self._unused(severity, [name for name, said in found if said == why], why)

    def _unused(self, severity: Severity, names: Sequence[str], why: str) -> Iterator[Finding]:
        why = f"it fits no list of who may do what: {why}"
        yield from self._told("keyring-unused", severity, names, why, NOT_USED)

    def _told(self, code: str, severity: Severity, names: Sequence[str], why: str, remedy: str) -> Iterator[Finding]:
        """One finding for all of these: whoever may write can put any number there."""
        if len(names) == 1:
            yield self._finding(code, severity, names[0], f"The keyring {names[0]}: {why}.", remedy)
        elif names:
            folders = {name.rpartition("/")[0] for name in names}
            subject = folders.pop() if len(folders) == 1 else "keys"
            listed = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED:,} more" if len(names) > NAMED else "")
            yield self._finding(
                code, severity, subject, f"{len(names):,} keyrings ({listed}), of each: {why}.", remedy
            )

    def _finding(self, code: str, severity: Severity, subject: str, message: str, remedy: str) -> Finding:
        return Finding(
            code=code,
            severity=severity,
            subject=subject,
            message=message,
            remedy=remedy,
            location=self.unlocked.storage.location,
        )
