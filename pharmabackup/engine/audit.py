"""Audit records: what a slot did, signed and chained, so that a gap or an edit shows (docs/format.md, §16)."""

from __future__ import annotations

import hashlib
from itertools import count

from pharmabackup import ids
from pharmabackup.clock import now_ns
from pharmabackup.engine.keyrings import NUMBER
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Conflict, Damaged
from pharmabackup.format.transaction import RECORD_MAX, Audit
from pharmabackup.format.wire import Kind

ATTEMPTS = 10  # when other processes of this slot write theirs


def note(unlocked: Unlocked, event: str, subject: str, *, reason: str | None) -> None:
    """Add one record to this slot's chain. Conflict, StorageFailed."""
    slot = unlocked.keyring.slot
    for left in reversed(range(ATTEMPTS)):
        number = _first_free(unlocked, slot)
        previous = None if number == 0 else _hash_of(unlocked, ids.audit_name(slot, number - 1))
        record = Audit(number, previous, now_ns(), None, event, "done", subject, reason, {})
        try:
            unlocked.put(Kind.AUDIT, ids.audit_name(slot, number), record)
            return
        except Conflict:
            if not left:
                raise


def _hash_of(unlocked: Unlocked, name: str) -> bytes:
    try:
        stored = unlocked.storage.get(name, limit=RECORD_MAX)
    except Damaged:  # larger than any record: a check names it, and what comes after it
        stored = b""
    return hashlib.sha256(stored).digest()


def _first_free(unlocked: Unlocked, slot: bytes) -> int:
    """The first number that no record has, not one after the last: somebody may have put one there that ends all.

    If a record was deleted, the next takes its place, and the one after that shows it: it follows from another.
    """
    last = [info.name.rpartition("/")[2] for info in unlocked.storage.list(f"audit/{slot.hex()}")]
    taken = {int(number) for number in last if NUMBER.fullmatch(number)}
    return next(number for number in count() if number not in taken)
