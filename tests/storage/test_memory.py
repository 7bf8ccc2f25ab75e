"""MemoryStorage keeps the promises of every storage."""

from __future__ import annotations

from pharmabackup.storage import connect
from pharmabackup.storage.memory import MemoryStorage
from pharmabackup.testing.storage import StorageConformance


class TestMemory(StorageConformance):
    def make(self):
        return MemoryStorage()

    def reopen(self):
        return None


def test_a_name_reaches_the_same_objects():
    connect("memory://a-name").put_new("x", b"1")
    assert connect("memory://a-name").get("x", limit=1) == b"1"
    assert list(connect("memory://another-name").list("")) == []


def test_without_a_name_in_the_registry_it_is_its_owners_alone():
    MemoryStorage("a-name").put_new("alone", b"1")
    assert "alone" not in [item.name for item in connect("memory://a-name").list("")]
