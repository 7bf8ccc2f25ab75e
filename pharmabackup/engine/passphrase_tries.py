"""Which slots a passphrase opens: the owners' signed list says how each is stretched, and what it comes to.

Nothing else does. Whoever may write to the storage can put keyrings anywhere: so none of them says how it is opened,
and what lies under slots that no list has is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator

from pharmabackup.credentials import Passphrase
from pharmabackup.engine.keyrings import Opener
from pharmabackup.format.keys import PASSPHRASES_MAX, Roster, Slot


def tries(passphrase: Passphrase, roster: Roster) -> Iterator[tuple[Slot, Opener]]:
    """Those of the slots whose recipient the passphrase comes to, each with what opens its keyrings.

    In the list's order, but revoked ones last: somebody may have been enrolled anew. Unsupported.
    """
    stretched = [slot for slot in roster.slots if slot.argon2id is not None]
    for slot in sorted(stretched, key=lambda slot: slot.revoked is not None)[:PASSPHRASES_MAX]:
        assert slot.argon2id is not None
        opener = Opener.of_passphrase(passphrase, slot.argon2id)
        if opener.recipient == slot.recipient:
            yield slot, opener
