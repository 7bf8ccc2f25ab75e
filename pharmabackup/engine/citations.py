"""What records that cannot be trusted say of lists of keys that are not here: whoever signed them has seen those."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pharmabackup import ids
from pharmabackup.crypto import hashing, signatures
from pharmabackup.crypto.sealing import SealingKey
from pharmabackup.engine.grants import GRANTS
from pharmabackup.engine.historycache import shape_of
from pharmabackup.engine.keyrings import keyring_numbers, read_whole
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged, NotFound
from pharmabackup.format import wire
from pharmabackup.format.keys import Slot
from pharmabackup.format.transaction import RECORD_MAX
from pharmabackup.format.wire import Kind, Signed, is_kind


@dataclass(slots=True)
class Citations:
    """Looks into records that are whole. Only the signature of a slot that the list has, and that may sign such a
    record, proves anything.

    Who may write to the storage, without any key, cannot make one; nor can a slot that is revoked.
    """

    unlocked: Unlocked
    _keys: dict[bytes, SealingKey] | None = field(init=False, default=None)

    def unlisted(self, name: str) -> tuple[str, Slot] | None:
        """The list that a fate, mark or collection's record cites, if it is not here, and the signer. StorageFailed.

        One with another content under the number that is cited is not that list either.
        """
        unlocked = self.unlocked
        try:
            data = unlocked.storage.get(name, limit=RECORD_MAX)
            kind = Kind.CARRY if is_kind(data, Kind.CARRY) else shape_of(name)[0]
            signed = wire.decode(unlocked.unseal(kind, data, self._all_keys()), Signed)
        except (Damaged, NotFound):
            return None
        slot = next((slot for slot in unlocked.roster.slots if slot.id == signed.slot), None)
        if slot is None or slot.revoked is not None or slot.role not in GRANTS[kind]:
            return None
        if unlocked.rosters.get(signed.roster) == signed.roster_hash:
            return None
        message = wire.signed_message(
            unlocked.repository, kind, name, slot.id, signed.roster, signed.roster_hash, signed.content
        )
        if not signatures.is_signed(slot.signing, signed.signature, message):
            return None
        return ids.roster_name(signed.roster), slot

    def _all_keys(self) -> Mapping[bytes, SealingKey]:
        """Also those of this slot's keyrings that fit no list: what is newer than the list is sealed under them.

        Nobody signed these, so that nothing counts which they open. A signature in it is whose it is.
        """
        if self._keys is None:
            unlocked, slot = self.unlocked, self.unlocked.keyring.slot.hex()
            numbers = keyring_numbers(unlocked.storage).get(slot, [])
            sealed = read_whole(unlocked.storage, slot, numbers, [])
            opened = unlocked.opener.open_all(unlocked.repository, sealed, [])
            catalogue = (key.key for keyring in opened for key in keyring.catalogue)
            self._keys = {hashing.key_id(key): SealingKey(key) for key in catalogue}
        return self._keys
