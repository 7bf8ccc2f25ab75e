"""Which keyrings one replica takes from another.

Nobody signs a keyring: whoever may write to a replica can put one there, without any key. What is taken must not keep
somebody out who could open here before: the next keyring's number is above all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pharmabackup import ids
from pharmabackup.engine.keyrings import NUMBER_LAST, STORED_MAX, Opener, decode_sealed, keyring_numbers
from pharmabackup.engine.roster import Rosters
from pharmabackup.errors import Damaged, NotFound
from pharmabackup.storage.base import Storage


@dataclass(slots=True)
class Taken:
    """`objects`: by name, those that may come. `refused`: damaged, or such as could keep somebody out."""

    objects: dict[str, bytes] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)


def keyrings_to_take(
    source: Storage, target: Storage, rosters: Rosters, own: Mapping[bytes, Opener], repository: bytes
) -> Iterator[tuple[str, bytes | None]]:
    """Those that the target lacks and that are sealed to what a list says, or said, of their slots; None: refused.

    There may be any number, of up to 1 MiB: each is read when it is asked for. Nobody needs others than these; those
    of a passphrase of before, whoever is still open with it. `own`: slots whose keyrings can be opened here.
    StorageFailed.
    """
    there, here = keyring_numbers(source), keyring_numbers(target)
    for slot in rosters.newest.slots:
        folder = slot.id.hex()
        numbers = here.get(folder, [])
        opener, recipients = own.get(slot.id), rosters.given[slot.id].recipients
        for number in sorted(set(there.get(folder, [])) - set(numbers)):
            name = ids.keyring_name(slot.id, number)
            if number > NUMBER_LAST:
                yield name, None
                continue
            try:
                data = source.get(name, limit=STORED_MAX)
                sealed = decode_sealed(data, folder, number)
                if sealed.key_id not in recipients:
                    continue
                if opener is not None and opener.may_open(sealed):
                    opener.open(repository, sealed)
            except NotFound:
                continue
            except Damaged:
                yield name, None
            else:
                yield name, data
