"""The probe believes what it sees, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from pharmabackup.errors import StorageFailed
from pharmabackup.storage.base import Capabilities
from pharmabackup.storage.local import LocalStorage
from pharmabackup.storage.memory import MemoryStorage
from pharmabackup.storage.probe import probe

ALL = Capabilities(exclusive_create=True, fresh_listing=True)


class Replacing(MemoryStorage):
    def _publish(self, name: str, data: bytes):
        self.delete([name])
        return super()._publish(name, data)


class Racing(MemoryStorage):
    """Looks first and writes later, as many servers do."""

    def _publish(self, name: str, data: bytes):
        if name in self._objects and data.endswith(b"late"):
            return super()._publish(name, data)
        self.delete([name])
        return super()._publish(name, data)


class Pretending(MemoryStorage):
    """Tells everyone who came at once that they had won."""

    def _publish(self, name: str, data: bytes):
        if not data.endswith(b"late") and not data.endswith(b" 0") and name in self._objects:
            return self.info(name)
        if data.endswith(b" 0"):
            self.delete([name])
        return super()._publish(name, data)


class Stale(MemoryStorage):
    """Lists what was there when it was first asked."""

    def __init__(self):
        super().__init__()
        self._seen = None

    def list(self, prefix: str):
        if self._seen is None:
            self._seen = list(super().list(prefix))
        return iter(self._seen)


class Refusing(MemoryStorage):
    capabilities = Capabilities(exclusive_create=False, fresh_listing=True)


class Locking(MemoryStorage):
    def can_lock(self):
        return True


class Brief(MemoryStorage):
    """Tells those apart who come at once, and tells who comes later that he was the first."""

    def _publish(self, name: str, data: bytes):
        return self.info(name) if data.endswith(b"late") else super()._publish(name, data)


class Asking(MemoryStorage):
    """An answer is lost, and it is asked again: then it says of what it has just created that it exists."""

    def _publish(self, name: str, data: bytes):
        super()._publish(name, data)
        return super()._publish(name, data)


class Undeleting(MemoryStorage):
    def delete(self, names):
        return dict.fromkeys(names, StorageFailed("No.", kind="storage-denied"))


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (MemoryStorage, ALL),
        (Replacing, Capabilities(exclusive_create=False, fresh_listing=True)),
        (Racing, Capabilities(exclusive_create=False, fresh_listing=True)),
        (Pretending, Capabilities(exclusive_create=False, fresh_listing=True)),
        (Stale, Capabilities(exclusive_create=True, fresh_listing=False)),
        (Refusing, Refusing.capabilities),
        (Locking, Capabilities(exclusive_create=True, fresh_listing=True, object_lock=True)),
        (Asking, ALL),
        (Brief, Capabilities(exclusive_create=False, fresh_listing=True)),
    ],
)
def test_what_it_finds(make: Callable[[], MemoryStorage], found: Capabilities):
    storage = make()
    assert probe(storage) == found
    assert storage._objects == {}


def test_a_folder(tmp_path):
    storage = LocalStorage.create(tmp_path / "repository")
    assert probe(storage) == ALL
    storage.close()
    assert [item.name for item in (tmp_path / "repository").iterdir()] == [".uploads"]


def test_an_object_among_others_is_found(tmp_path):
    storage = LocalStorage.create(tmp_path)
    storage.put_new("repository", b"x")
    assert probe(storage) == ALL
    assert [item.name for item in storage.list("")] == ["repository"]


@pytest.mark.parametrize("immutable", [0, 1])
def test_who_may_not_ask_about_locks_is_only_refused_where_they_are_wanted(monkeypatch, immutable):
    def refused(self):
        raise StorageFailed("No.", kind="storage-denied")

    monkeypatch.setattr(MemoryStorage, "can_lock", refused)
    monkeypatch.setattr(MemoryStorage, "immutable", immutable)
    if immutable:
        with pytest.raises(StorageFailed, match="No"):
            probe(MemoryStorage())
    else:
        assert probe(MemoryStorage()) == ALL


def test_what_cannot_be_deleted_is_said():
    with pytest.raises(StorageFailed, match="No"):
        probe(Undeleting())


def test_an_error_is_no_finding(monkeypatch):
    storage = MemoryStorage()

    def fail(name, data):
        raise StorageFailed("The line is down.")

    monkeypatch.setattr(storage, "put_new", fail)
    with pytest.raises(StorageFailed, match="line"):
        probe(storage)


def test_where_not_all_writers_can_run_it_ends(monkeypatch):
    """They wait for each other, and a machine may have no thread left."""
    monkeypatch.setattr("pharmabackup.storage.probe.START_S", 0.05)
    monkeypatch.setattr(
        "pharmabackup.storage.probe.ThreadPoolExecutor", lambda workers: ThreadPoolExecutor(workers - 1)
    )
    with pytest.raises(StorageFailed, match="too busy"):
        probe(MemoryStorage())
