"""The block table of a snapshot under construction: which blocks its recipe names, by slot."""

from __future__ import annotations

from array import array

from pharmabackup.engine.index import Index
from pharmabackup.format.recipe import UNUSED

AGE_MAX = (1 << 16) - 1


class Table:
    """The blocks that a recipe names, by slot. A slot keeps its block from snapshot to snapshot."""

    def __init__(self) -> None:
        self.numbers: array[int] = array("q")  # block number in the index; -1: unused
        self.ages: array[int] = array("H")  # for how many backups this machine has known each there; 0: it is new
        self._slots: dict[int, int] = {}
        self._free: list[int] = []

    def adopt(self, ids: list[bytes], ages: array[int], index: Index) -> bool:
        """Begin with the last snapshot's slots. False when one of its blocks may not be relied on."""
        self.ages = array("H", [min(age + 1, AGE_MAX) for age in ages])
        for slot, block_id in enumerate(ids):
            number = index.blocks.find(block_id, index.domain) if block_id != UNUSED else -1
            if number is None:
                return False
            self.numbers.append(number)
            if number < 0:
                self._free.append(slot)
            else:
                self._slots.setdefault(number, slot)
        return True

    def slot(self, number: int) -> int:
        """The slot of a block; a new one if it has none."""
        found = self._slots.get(number)
        if found is None:
            if self._free:
                found = self._free.pop()
                self.numbers[found], self.ages[found] = number, 0
            else:
                found = len(self.numbers)
                self.numbers.append(number)
                self.ages.append(0)
            self._slots[number] = found
        return found

    def ids(self, used: set[int], index: Index) -> bytes:
        """The table as stored: unused slots are zero, and those at the end are cut off."""
        end = max(used, default=-1) + 1
        return b"".join(
            index.blocks.ids[number] if slot in used else UNUSED for slot, number in enumerate(self.numbers[:end])
        )
