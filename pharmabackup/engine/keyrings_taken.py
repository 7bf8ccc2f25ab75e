"""Which keyrings one replica takes from another.

Nobody signs a keyring: whoever may write to a replica can put one there, without any key. What is taken must not keep
somebody out who could open here before: a passphrase is tried with a few settings of its slot only, those of the
newest keyrings, and the next keyring's number is above all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pharmabackup import ids
from pharmabackup.crypto import hashing
from pharmabackup.engine.keyrings import SETTINGS_TRIED, Opener, keyring_numbers, read_sealed, read_whole
from pharmabackup.errors import Damaged, NotFound
from pharmabackup.format.keys import KEYRING_MAX, Argon2id, Roster, SealedKeyring, Slot
from pharmabackup.storage.base import Storage

NUMBER_FAR = 1 << 46  # above the highest number that is known: some hundred changes at once
NUMBER_LAST = 1 << 56  # far more changes than a slot ever has, and far below the last number that has a name


@dataclass(slots=True)
class Taken:
    """`objects`: by name, those that may come. `refused`: damaged, or such as could keep somebody out."""

    objects: dict[str, bytes] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


def keyrings_to_take(
    source: Storage, target: Storage, roster: Roster, own: Mapping[bytes, Opener], repository: bytes
) -> Taken:
    """Those that the target lacks, of slots of `roster`. `own`: slots whose keyrings can be opened here.

    StorageFailed, Damaged when one of the two has names of keyrings that are none.
    """
    taken = Taken()
    there, here = keyring_numbers(source), keyring_numbers(target)
    for slot in roster.slots:
        numbers = here.get(slot.id.hex(), [])
        lacking = sorted(set(there.get(slot.id.hex(), [])) - set(numbers))
        if lacking:
            known = read_whole(target, slot.id.hex(), numbers, [])
            last = min(NUMBER_LAST, max(numbers) + NUMBER_FAR) if numbers else NUMBER_LAST
            _SlotTaking(source, slot, known, last, own.get(slot.id), repository, taken).take(lacking)
    return taken


@dataclass(slots=True)
class _SlotTaking:
    source: Storage
    slot: Slot
    known: list[SealedKeyring]
    last: int
    own: Opener | None
    repository: bytes
    taken: Taken

    def take(self, lacking: list[int]) -> None:
        settings = {item.argon2id for item in self.known}
        new: list[tuple[SealedKeyring, bytes]] = []
        for number in lacking:
            name = ids.keyring_name(self.slot.id, number)
            try:
                if number > self.last:
                    raise Damaged("Its number is far above those before it.")
                data = self.source.get(name, limit=KEYRING_MAX + 4096)
                item = read_sealed(self.source, self.slot.id.hex(), number)
                if (item.argon2id is None) != (self.slot.credential != "passphrase"):
                    raise Damaged("It is not sealed as its slot's credential says.")
                if self.own is not None and item.argon2id == self.own.setting:
                    self._open(self.own, item)
            except NotFound:
                continue
            except Damaged:
                self.taken.refused.append(name)
                continue
            if item.argon2id in settings:
                if self._crowds_out(item):
                    self.taken.refused.append(name)
                else:
                    self.taken.objects[name] = data
            else:
                new.append((item, data))
        self._take_settings(new)

    def _crowds_out(self, item: SealedKeyring) -> bool:
        """Whether it puts a way that was given up before the one that is in use, since the newest ways are tried."""
        recipient = None if self.slot.recipient is None else hashing.key_id(self.slot.recipient)
        in_use = next((known for known in self.known if known.key_id == recipient), self.known[0])
        return item.argon2id != in_use.argon2id and item.number > in_use.number

    def _open(self, opener: Opener, item: SealedKeyring) -> None:
        if not opener.may_open(item):
            raise Damaged("It is sealed to somebody else.")
        opener.open(self.repository, item)

    def _take_settings(self, new: list[tuple[SealedKeyring, bytes]]) -> None:
        """Keyrings that are opened in another way than those that are here: after a change of the passphrase.

        The roster says whom a slot's keyrings are sealed to. Once one that says so is here, no other way is needed.
        As few ways come as still leave one that is here among those that are tried.
        """
        recipient = None if self.slot.recipient is None else hashing.key_id(self.slot.recipient)
        sealed_to = [(item, data) for item, data in new if item.key_id == recipient]
        if any(item.key_id == recipient for item in self.known):  # one passphrase is never stretched in two ways
            self.taken.refused += [ids.keyring_name(item.slot, item.number) for item, _ in sealed_to]
            new = []
        elif sealed_to:
            new = sealed_to
        elif self.known:
            new = []
        genuine = [pair for pair in new if self.own is not None and pair[0].argon2id == self.own.setting]
        new = genuine or new
        ways: set[Argon2id | None] = {item.argon2id for item, _ in new}
        room = SETTINGS_TRIED - 1 if self.known else SETTINGS_TRIED
        names = {ids.keyring_name(item.slot, item.number): data for item, data in new}
        if len(ways) <= room:
            self.taken.objects.update(names)
        else:
            self.taken.refused += names
