"""What a reader asks collectors to leave alone while it reads: an intent that is never committed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from pharmabackup import ids
from pharmabackup.clock import now_ns
from pharmabackup.engine.condemned import burnt_names, read_condemned
from pharmabackup.engine.grants import COLLECTORS
from pharmabackup.engine.historycache import put_fate, remember_own
from pharmabackup.engine.lanes import Beside
from pharmabackup.engine.listing import Listing
from pharmabackup.engine.reading import BlockReader, SnapshotReader
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged, Error
from pharmabackup.format.transaction import Fate, Intent
from pharmabackup.format.wire import Kind

TRIES = 3  # while collections condemn what was just pinned


@contextmanager
def held(
    unlocked: Unlocked, blocks: BlockReader, readers: Sequence[SnapshotReader], listing: Listing | None
) -> Iterator[Beside[bool]]:
    """Pin the packs that these snapshots need, beside what the caller does; whether that was possible for all.

    `listing`: what there was when the blocks were looked for. A storage that is full or may only be read stops
    nobody: without this, a reader looks for what has moved. Who may not abort a transaction leaves it to the
    collectors, which do so after a day.
    """
    transaction = ids.new_id()

    def pin() -> bool:
        with suppress(Error):
            return _pin(unlocked, blocks, transaction, readers, listing)
        return False

    try:
        with Beside(unlocked.storage.lanes, pin) as pinned:
            yield pinned
    finally:
        if unlocked.keyring.role in COLLECTORS:
            with suppress(Error):
                roster = unlocked.roster_hash
                aborted = put_fate(unlocked, transaction, Fate(transaction, "abort", None, None))
                if unlocked.storage.lanes > 1 and unlocked.record.capabilities.get("fresh-listing"):
                    remember_own(unlocked, {ids.fate_name(transaction): aborted}, roster)  # not fetched by the next


def _pin(
    unlocked: Unlocked,
    blocks: BlockReader,
    transaction: bytes,
    readers: Sequence[SnapshotReader],
    listing: Listing | None,
) -> bool:
    """Steps 3 and 4 of what a writer does: whether all is in packs that are pinned and not condemned."""
    needed: list[tuple[bytes, set[bytes]]] = []
    for reader in readers:
        with suppress(Damaged):  # whoever reads it will say so
            needed.append((reader.snapshot.domain, reader.relied()))
    burnt = burnt_names(unlocked, listing)
    condemned = burnt
    for number in range(TRIES):
        packs, whole = _places(blocks, needed, condemned)
        unlocked.put(
            Kind.INTENT,
            ids.intent_name(transaction, number),
            Intent(transaction, number, "hold", b"".join(sorted(packs)), now_ns()),
        )
        condemned = read_condemned(unlocked, blocks.first).packs | burnt
        if not condemned & packs:
            return whole and len(needed) == len(readers)
        blocks.refresh()
    return False


def _places(
    blocks: BlockReader, needed: Sequence[tuple[bytes, set[bytes]]], condemned: frozenset[bytes]
) -> tuple[set[bytes], bool]:
    """A pack for each block, and whether there is one for all."""
    table, packs, whole = blocks.index.blocks, set[bytes](), True
    for domain, ids_of_blocks in needed:
        for block in ids_of_blocks:
            numbers = (table.pack[number] for number in table.instances(block))
            usable = (number for number in numbers if table.usable[number] and table.domains[number] == domain)
            found = next((table.packs[number] for number in usable if table.packs[number] not in condemned), None)
            if found is None:
                whole = False
            else:
                packs.add(found)
    return packs, whole
