"""Writing audit records: what a slot did, signed and chained, so that a gap or an edit shows (docs/format.md, §16).

A device writes tens of thousands a year, so that nobody lists or reads a chain to add to it: this machine remembers
its last record, and looks whether storage still has it. What storage does not take is queued on this machine, and
comes before the next (docs/audit.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from msgspec import structs

from pharmabackup import ids
from pharmabackup.clock import now_ns
from pharmabackup.engine import auditlocal
from pharmabackup.engine.auditlocal import Entry, Pin
from pharmabackup.engine.creating import create
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Conflict, Damaged, Error, InvalidInput, NotFound
from pharmabackup.format import wire
from pharmabackup.format.transaction import RECORD_MAX, Audit
from pharmabackup.format.wire import Kind

ATTEMPTS = 30  # when other processes of this slot write theirs
JUNK = 10  # names at a chain's end that are none of its records
AT_ONCE = 100  # of the queue: more wait for the next record
NUMBERS = 10**18  # of more digits there are none in names
BUSY = "Another process delivers what was queued before."
UNKNOWN = bytes(32)  # instead of the hash of a record that cannot be read


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a record. `number`: in its chain; None: it is queued, or nowhere when not `kept`."""

    number: int | None
    kept: bool
    waiting: int  # in the queue, this one too
    why: str  # it is not in its chain


def note(
    unlocked: Unlocked, event: str, subject: str, *, reason: str | None, facts: Mapping[str, object] | None = None
) -> Written:
    """What was done, by whom this repository was opened. Never fails for the storage: see `write`."""
    return write(unlocked, event, "done", subject=subject, reason=reason, facts=facts)


def write(
    unlocked: Unlocked,
    event: str,
    outcome: str,
    *,
    subject: str = "",
    reason: str | None = None,
    facts: Mapping[str, object] | None = None,
    reported: bool = False,
) -> Written:
    """Add one record to this slot's chain, or queue it. InvalidInput when the format does not hold it.

    `reported`: whoever calls tells by himself that it is nowhere. What is done with what was there at a time is
    queued for the place as it is now.
    """
    said = unlocked.reason if reason is None else reason
    entry = _checked(Entry(now_ns(), unlocked.actor, event, outcome, subject, said, dict(facts or {})))
    number, why, kept = None, "", True
    refused = unlocked.storage.read_only  # whether storage does not take it
    chain = _Chain(unlocked)
    with unlocked.auditing.own:
        try:
            if refused:
                why = "What was there then is not changed."
            elif not (why := chain.deliver()):
                number = chain.append(entry)
        except Error as error:
            why, refused = error.message, True
        except OSError as error:
            why = str(error.strerror)
        if number is None:
            name = auditlocal.enqueue(unlocked, entry)
            kept = name is not None
            if name and why == BUSY:
                with suppress(Error, OSError):
                    chain.deliver()  # the other one may have ended before it saw this one
                number = chain.delivered.get(name)
            elif not name and not refused:
                with suppress(Error, OSError):  # better out of order than nowhere
                    number = chain.append(entry)
                kept = number is not None
        try:
            left = len(auditlocal.queued(unlocked))
        except OSError:
            left = int(number is None and kept)
        unlocked.lost_records += not (kept or reported)
        unlocked.gone_records.update(chain.gone)
    return Written(number, kept, left, why)


def numbers_of(unlocked: Unlocked, slot: str) -> list[int]:
    """Of a slot's records, in no order. StorageFailed."""
    last = (info.name.rpartition("/")[2] for info in unlocked.storage.list(f"audit/{slot}"))
    return [int(text) for text in last if ids.NUMBER.fullmatch(text)]


def _checked(entry: Entry) -> Entry:
    """As it will be read. InvalidInput: what cannot be stored must not wait to be stored."""
    try:
        content = wire.encode(_record(entry, 0, None))
        record = wire.decode(content, Audit)
    except (Damaged, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidInput(
            f"That cannot be an audit record. {error.message if isinstance(error, Damaged) else error}",
            remedy="Give short text, numbers, and lists or mappings of these.",
        ) from None
    if len(content) > RECORD_MAX // 64:
        raise InvalidInput("An audit record is at most 1 MiB.", remedy="Give numbers instead of what was counted.")
    return structs.replace(entry, facts=record.facts)


def _record(entry: Entry, number: int, previous: bytes | None) -> Audit:
    return Audit(
        number,
        previous,
        entry.time,
        entry.actor,
        entry.event,
        entry.outcome,
        entry.subject,
        entry.reason,
        entry.facts,
    )


class _Chain:
    """The end of this slot's chain."""

    def __init__(self, unlocked: Unlocked) -> None:
        self._unlocked = unlocked
        self._storage = unlocked.storage
        self._slot = unlocked.keyring.slot
        self._exclusive = unlocked.record.capabilities.get("exclusive-create", False)
        self._looked = False
        self._head: Pin | None = None
        self._data: bytes | None = None  # the head as it is stored
        self._stale: Pin | None = None  # a remembered one that the head follows from
        self.gone: dict[int, str] = {}  # this machine's last record, where it is not there any more or is another one
        self.delivered: dict[str, int] = {}  # numbers by names in the queue

    def deliver(self) -> str:
        """What was queued, in order; why others have to wait behind it, or nothing. Errors as `append`.

        What other processes queue meanwhile is delivered too, since they leave it to this one.
        """
        if not auditlocal.queued(self._unlocked):
            return ""
        with auditlocal.delivering(self._unlocked) as may:
            if may is None:
                return ""
            if not may:
                return BUSY
            passed = set[str]()
            while coming := [name for name in auditlocal.queued(self._unlocked) if name not in passed]:
                for name in coming:
                    if len(self.delivered) >= AT_ONCE:
                        return f"More than {AT_ONCE} were queued."
                    passed.add(name)
                    self._deliver(name)
        return ""

    def _deliver(self, name: str) -> None:
        entry = auditlocal.waiting(self._unlocked, name)
        if entry is None:
            return  # it cannot be read: it stays, and is counted
        self._look()
        if self._head is not None and self._is(entry):
            self.delivered[name] = self._head.number
        else:
            self.delivered[name] = self.append(entry)
        auditlocal.delivered(self._unlocked, name)

    def append(self, entry: Entry) -> int:
        """Its number. Conflict, NotPermitted, Damaged, StorageFailed, OSError."""
        self._look()
        for left in reversed(range(ATTEMPTS)):
            number = 0 if self._head is None else self._head.number + 1
            if number >= NUMBERS:
                raise Conflict("No number is left for an audit record: somebody has put an impossible one there.")
            name = ids.audit_name(self._slot, number)
            try:
                if not self._exclusive and self._exists(number):  # one computer writes there: see docs/audit.md
                    raise Conflict(f"There is {name} already.", remedy="Run it again.")
                previous = None if self._head is None else self._head.hash
                data = self._unlocked.seal(Kind.AUDIT, name, _record(entry, number, previous))
                create(self._storage, name, data)
            except Conflict:
                if not left:
                    raise
                self._go_on(number)
                if self._is(entry):  # the answer was lost, or another process has delivered it
                    return self._remembered()
                continue
            self._head, self._data = Pin(number, hashlib.sha256(data).digest()), data
            return self._remembered()
        raise AssertionError("the last attempt returns or raises")

    def _remembered(self) -> int:
        assert self._head is not None
        stale = () if self._stale is None else (self._stale,)
        auditlocal.remember(self._unlocked, self._slot.hex(), self._head, stale)
        self._stale = self._head
        return self._head.number

    def _look(self) -> None:
        """The last record: what this machine remembers, if it is still there; else what storage lists."""
        if self._looked:
            return
        pins = auditlocal.load(self._unlocked).get(self._slot.hex())
        if pins:
            self._head = pins[-1]
            self._compare(pins[-1])
        else:
            self._find()
        self._looked = True

    def _find(self) -> None:
        """The last record that this slot signed: whoever can write to the storage can put any other name there."""
        numbers = sorted(numbers_of(self._unlocked, self._slot.hex()), reverse=True)
        for number in numbers[:JUNK]:
            name = ids.audit_name(self._slot, number)
            try:
                data = self._storage.get(name, limit=RECORD_MAX)
                opened = self._unlocked.open(Kind.AUDIT, name, data, Audit)
            except (Damaged, NotFound):
                continue
            if opened.slot.id == self._slot:
                self._head, self._data = Pin(number, hashlib.sha256(data).digest()), data
                return
        if numbers:
            self._take(numbers[0])

    def _compare(self, pin: Pin) -> None:
        """Whether what is remembered is there. If not, the chain goes on all the same, and a gap stays to be seen."""
        try:
            data = self._storage.get(ids.audit_name(self._slot, pin.number), limit=RECORD_MAX)
        except NotFound:
            self.gone[pin.number] = "audit-truncated"
        except Damaged:
            self.gone[pin.number] = "audit-forked"
        else:
            if hashlib.sha256(data).digest() == pin.hash:
                self._data, self._stale = data, pin
            else:
                self.gone[pin.number] = "audit-forked"

    def _take(self, number: int) -> None:
        try:
            self._data = self._storage.get(ids.audit_name(self._slot, number), limit=RECORD_MAX)
            self._head = Pin(number, hashlib.sha256(self._data).digest())
        except Damaged:
            self._data, self._head = None, Pin(number, UNKNOWN)

    def _go_on(self, number: int) -> None:
        """The record `number` is another process's, and so may be those after it: find the last in few steps."""
        step = 1
        while self._exists(number + step):
            number, step = number + step, step * 2
        beyond = number + step
        while beyond - number > 1:
            middle = (number + beyond) // 2
            if self._exists(middle):
                number = middle
            else:
                beyond = middle
        self._take(number)

    def _exists(self, number: int) -> bool:
        try:
            self._storage.info(ids.audit_name(self._slot, number))
        except NotFound:
            return False
        return True

    def _is(self, entry: Entry) -> bool:
        """Whether the last record is this very one."""
        if self._head is None or self._data is None:
            return False
        try:
            found = self._unlocked.open(Kind.AUDIT, ids.audit_name(self._slot, self._head.number), self._data, Audit)
        except Error:
            return False
        return found.record == _record(entry, found.record.number, found.record.previous)
