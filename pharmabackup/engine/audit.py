"""Audit records: what a slot did, signed and chained, so that a gap or an edit shows (docs/format.md, §16)."""

from __future__ import annotations

import hashlib

from pharmabackup import ids
from pharmabackup.clock import now_ns
from pharmabackup.engine.keyrings import numbered
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Conflict
from pharmabackup.format.transaction import RECORD_MAX, Audit
from pharmabackup.format.wire import Kind

ATTEMPTS = 10  # when other processes of this slot write theirs


def note(unlocked: Unlocked, event: str, subject: str, *, reason: str | None) -> None:
    """Add one record to this slot's chain. Conflict, Damaged, StorageFailed."""
    slot = unlocked.keyring.slot
    for left in reversed(range(ATTEMPTS)):
        numbers = [numbered(info.name) for info in unlocked.storage.list(f"audit/{slot.hex()}")]
        number = max(numbers, default=-1) + 1
        previous = None
        if number:
            stored = unlocked.storage.get(ids.audit_name(slot, number - 1), limit=RECORD_MAX)
            previous = hashlib.sha256(stored).digest()
        record = Audit(number, previous, now_ns(), None, event, "done", subject, reason, {})
        try:
            unlocked.put(Kind.AUDIT, ids.audit_name(slot, number), record)
            return
        except Conflict:
            if not left:
                raise
