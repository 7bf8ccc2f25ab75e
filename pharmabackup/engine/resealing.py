"""Sealing what is there with the newest keys: blocks are opened, proved and sealed anew on their way into new packs.

A block keeps its id, which its content decides, so that no snapshot has to change. What the old keys opened is let go
by a collection, as anything else.
"""

from __future__ import annotations

import os

from pharmabackup.crypto import hashing
from pharmabackup.crypto.sealing import SealingKey
from pharmabackup.engine.blocks import damaged_block, open_block
from pharmabackup.engine.garbage import Garbage
from pharmabackup.engine.grants import READERS
from pharmabackup.engine.packs import block_id
from pharmabackup.engine.reading import chunk_names
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.format import wire
from pharmabackup.format.pack import Block, Directory, WrappedKey
from pharmabackup.format.wire import Kind


def packs_with_old_keys(unlocked: Unlocked, garbage: Garbage) -> tuple[dict[bytes, list[int]], set[bytes]]:
    """Packs of which a living block is sealed for keys that are not the newest, and all their living blocks.

    Then those with such blocks that cannot go now: somebody may rely on them just now, or is going to.
    """
    generation = unlocked.roster.generations[-1]
    readers = {hashing.key_id(generation.reader)}
    if unlocked.roster.recovery is not None:
        readers.add(hashing.key_id(unlocked.roster.recovery))
    table = garbage.index.blocks
    old = [
        {wrap.recipient for wrap in wrapped.wraps} != readers
        if wrapped.wraps
        else wrapped.key_id != generation.catalogue
        for wrapped in table.keys
    ]
    found = {
        pack: numbers
        for pack, numbers in garbage.emptiable.items()
        if any(old[table.key[number]] for number in numbers)
    }
    with_old = {table.packs[pack] for pack, key in zip(table.pack, table.key, strict=True) if old[key]}
    return found, with_old & set(garbage.sizes) - set(garbage.emptiable) - garbage.dead - garbage.left


class Resealing:
    """One transaction key for what is sealed anew, which the newest readers alone open."""

    def __init__(self, unlocked: Unlocked) -> None:
        session = os.urandom(32)
        self._unlocked = unlocked
        self._naming = {item.domain: item.key for item in unlocked.keyring.naming}
        self._data = SealingKey(session), unlocked.wrap(session)
        self._catalogue = unlocked.catalogue_key, WrappedKey(unlocked.catalogue_id, ())

    def __call__(self, directory: Directory, block: Block, sealed: memoryview) -> tuple[memoryview, WrappedKey]:
        """A block as it is stored from now on. Damaged when it is not what its id says, NotPermitted."""
        unlocked, old, kind = self._unlocked, directory.keys[block.key], Kind(block.kind)
        key = unlocked.block_key(old)
        content = open_block(unlocked, sealed, kind=kind, block_id=block.id, key=key, key_id=old.key_id)
        naming = self._naming.get(directory.domain)
        if naming is None:
            raise unlocked.not_permitted("read", who=READERS)
        if block_id(unlocked.keyring.block_names, kind, chunk_names(kind, naming, content)) != block.id:
            raise damaged_block("its chunks are not those that its id names")
        frame = key.open(sealed, wire.block_context(unlocked.repository, kind, old.key_id, block.id))
        newest, new = self._catalogue if kind == Kind.RECIPE_BLOCK else self._data
        context = wire.block_context(unlocked.repository, kind, new.key_id, block.id)
        return memoryview(newest.seal(frame, context)), new
