"""One share of a recovery key, alone: against its own checksum, and against the list that anybody can read."""

from __future__ import annotations

from collections.abc import Mapping

from pharmabackup.clock import from_ns
from pharmabackup.credentials import StrPath, fingerprint_of
from pharmabackup.crypto.shares import facts_of, set_of
from pharmabackup.engine.opening import read_lists
from pharmabackup.errors import NotFound
from pharmabackup.results import ShareCheck


def check_share(url: StrPath, share: str, *, storage_options: Mapping[str, object] | None) -> ShareCheck:
    """Which recovery key it is of. By 15 bits: of 32,768 shares of other keys, one looks like one of this.

    InvalidInput, NotFound, Damaged, StorageFailed.
    """
    facts = facts_of(share)
    repository, lists = read_lists(url, storage_options)
    slots = [slot for slot in lists.newest.slots if slot.credential == "shares"]
    current = next((slot for slot in slots if slot.revoked is None), None)
    if current is None:
        raise NotFound(
            "This repository has no recovery key.", kind="recovery-key", remedy="An owner makes one: split_recovery."
        )
    own = next((slot for slot in reversed(slots) if set_of(slot.recipient) == facts.set), None)
    return ShareCheck(
        state="ok" if own is current else "critical",
        repository=repository,
        number=facts.number,
        threshold=facts.threshold,
        current=own is current,
        fingerprint=fingerprint_of(current.recipient),
        split=from_ns(current.created),
        of=None if own is None else from_ns(own.created),
    )
