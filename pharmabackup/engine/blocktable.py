"""Every known block: where it lies, under which key, in whose domain. Some 300 bytes a block, by estimate."""

from __future__ import annotations

from array import array
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from threading import Lock

from pharmabackup.format.pack import Directory, WrappedKey

NOT_PLACED = 0xFFFFFFFF  # the pack of a block that is being written
LOST = 0xFFFFFFFE  # the pack of a block whose transaction ended before it was sealed


@dataclass(slots=True)
class BlockTable:
    """Blocks by number, in the order in which they became known. Grows, and is never reordered."""

    ids: list[bytes] = field(default_factory=list)
    pack: array[int] = field(default_factory=lambda: array("I"))  # which of `packs`
    offset: array[int] = field(default_factory=lambda: array("I"))
    length: array[int] = field(default_factory=lambda: array("I"))
    key: array[int] = field(default_factory=lambda: array("I"))  # which of `keys`
    count: array[int] = field(default_factory=lambda: array("I"))  # chunks
    kind: bytearray = field(default_factory=bytearray)
    packs: list[bytes] = field(default_factory=list)
    pack_sizes: list[int] = field(default_factory=list)
    domains: list[bytes] = field(default_factory=list)  # of each pack
    signers: list[bytes] = field(default_factory=list)  # of each pack: the slot that signed its directory
    usable: bytearray = field(default_factory=bytearray)  # of each pack: listed and not condemned
    keys: list[WrappedKey] = field(default_factory=list)
    _placing: Lock = field(default_factory=Lock)
    _key_numbers: dict[WrappedKey, int] = field(default_factory=dict)
    _numbers: dict[bytes, list[int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def add_pack(self, pack: bytes, size: int, directory: Directory, *, signer: bytes) -> int:
        """Make a pack's blocks known; the number of the first."""
        first = len(self.ids)
        number, keys = self._new_pack(pack, size, directory, signer)
        for block in directory.blocks:
            self._append(block.id, number, block.offset, block.length, keys[block.key], block.count, block.kind)
        return first

    def add_key(self, wrapped: WrappedKey) -> int:
        number = self._key_numbers.get(wrapped)  # the whole of it: another domain may give a key id other wraps
        if number is None:
            number = self._key_numbers[wrapped] = len(self.keys)
            self.keys.append(wrapped)
        return number

    def reserve(self) -> int:
        """A number for a block that is still being filled."""
        self.ids.append(b"")
        self.pack.append(NOT_PLACED)
        for column in (self.offset, self.length, self.key, self.count):
            column.append(0)
        self.kind.append(0)
        return len(self.ids) - 1

    def may_rely(self, number: int) -> bool:
        """Whether a block is of this transaction, or lies in a usable pack."""
        pack = self.pack[number]
        return pack == NOT_PLACED or (pack != LOST and bool(self.usable[pack]))

    def give_up(self, numbers: Iterable[int]) -> None:
        """Those of these blocks that were reserved and not placed never will be."""
        for number in numbers:
            if self.pack[number] == NOT_PLACED:
                self.pack[number] = LOST

    def name(self, number: int, block_id: bytes, kind: int, count: int) -> None:
        """Give a reserved block its id, before it is known where it will lie."""
        self.ids[number] = block_id
        self.kind[number] = kind
        self.count[number] = count

    def place(self, numbers: list[int], pack: bytes, size: int, directory: Directory, *, signer: bytes) -> None:
        """Say where reserved blocks came to lie: in this pack, in the directory's order.

        Two threads may do so at once, while one looks up and reserves.
        """
        with self._placing:
            place, keys = self._new_pack(pack, size, directory, signer)
            for number, block in zip(numbers, directory.blocks, strict=True):
                self.offset[number] = block.offset
                self.length[number] = block.length
                self.key[number] = keys[block.key]
                self.pack[number] = place  # last: from here on it is looked for there
                self._numbers.setdefault(block.id, []).append(number)

    def _new_pack(self, pack: bytes, size: int, directory: Directory, signer: bytes) -> tuple[int, list[int]]:
        """Its place among `packs`, and the numbers of its keys."""
        self.packs.append(pack)
        self.pack_sizes.append(size)
        self.domains.append(directory.domain)
        self.signers.append(signer)
        self.usable.append(1)
        return len(self.packs) - 1, [self.add_key(wrapped) for wrapped in directory.keys]

    def _append(self, block_id: bytes, pack: int, offset: int, length: int, key: int, count: int, kind: int) -> None:
        self._numbers.setdefault(block_id, []).append(len(self.ids))
        self.ids.append(block_id)
        self.pack.append(pack)
        self.offset.append(offset)
        self.length.append(length)
        self.key.append(key)
        self.count.append(count)
        self.kind.append(kind)

    def instances(self, block_id: bytes) -> list[int]:
        """The numbers of all blocks with this id, in usable packs or not."""
        return self._numbers.get(block_id, [])

    def placed(self) -> Iterator[tuple[int, int]]:
        """The number of each block that lies in a pack, and which of `packs` that is."""
        return ((number, pack) for number, pack in enumerate(self.pack) if pack < LOST)

    def ids_in(self, place: int) -> set[bytes]:
        """The ids of the blocks in one of `packs`."""
        return {block_id for block_id, pack in zip(self.ids, self.pack, strict=True) if pack == place}

    def signed_by(self, slots: Container[bytes]) -> set[bytes]:
        """The packs of which one of these slots signed a directory."""
        return {pack for pack, signer in zip(self.packs, self.signers, strict=True) if signer in slots}

    def find(self, block_id: bytes, domain: bytes) -> int | None:
        """A usable block with this id that this domain wrote."""
        for number in self._numbers.get(block_id, ()):
            pack = self.pack[number]
            if self.usable[pack] and self.domains[pack] == domain:
                return number
        return None

    def restrict(self, listed: Mapping[bytes, int], condemned: frozenset[bytes]) -> None:
        """Which packs may be relied on: those that storage lists with their size, and no collection has condemned."""
        for number, pack in enumerate(self.packs):
            whole = listed.get(pack) == self.pack_sizes[number]
            self.usable[number] = whole and pack not in condemned

    def columns(self) -> dict[str, bytes]:
        """For a cache on this machine (native byte order)."""
        self.give_up(range(len(self.pack)))
        return {
            "ids": b"".join(block_id or bytes(32) for block_id in self.ids),
            "pack": self.pack.tobytes(),
            "offset": self.offset.tobytes(),
            "length": self.length.tobytes(),
            "key": self.key.tobytes(),
            "count": self.count.tobytes(),
            "kind": bytes(self.kind),
            "packs": b"".join(self.packs),
            "pack_sizes": array("Q", self.pack_sizes).tobytes(),
            "domains": b"".join(self.domains),
            "signers": b"".join(self.signers),
        }

    @classmethod
    def from_columns(cls, columns: dict[str, bytes], keys: list[WrappedKey]) -> BlockTable:
        table = cls()
        table.ids = [columns["ids"][i : i + 32] for i in range(0, len(columns["ids"]), 32)]
        for name in ("pack", "offset", "length", "key", "count"):
            getattr(table, name).frombytes(columns[name])
        table.kind = bytearray(columns["kind"])
        table.packs = [columns["packs"][i : i + 32] for i in range(0, len(columns["packs"]), 32)]
        sizes = array("Q")
        sizes.frombytes(columns["pack_sizes"])
        table.pack_sizes = list(sizes)
        table.domains = [columns["domains"][i : i + 16] for i in range(0, len(columns["domains"]), 16)]
        table.signers = [columns["signers"][i : i + 16] for i in range(0, len(columns["signers"]), 16)]
        table.usable = bytearray(b"\1" * len(table.packs))
        for wrapped in keys:
            table.add_key(wrapped)
        for number, block_id in enumerate(table.ids):
            if table.pack[number] == LOST:
                continue
            table._numbers.setdefault(block_id, []).append(number)
        return table
