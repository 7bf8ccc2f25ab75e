"""The storage that tests and benchmarks take for one that is far away keeps the promises of every storage."""

from __future__ import annotations

from pharmabackup.storage.memory import MemoryStorage
from pharmabackup.testing.storage import StorageConformance
from tests.benchmarks.distant import DistantStorage


class TestDistant(StorageConformance):
    def make(self):
        return DistantStorage(MemoryStorage(), answers=True)

    def reopen(self):
        return None
