"""A repository the objects of which were copied to a storage that can do less than the one it was made on.

What `repository` says is of the first. Nothing is condemned, and no collection is gone on with, where it is not so.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.engine import collection
from pharmabackup.errors import StorageFailed
from pharmabackup.format.wire import Kind
from pharmabackup.storage.base import Buffer, Capabilities, ObjectInfo
from pharmabackup.storage.memory import MemoryStorage
from tests.verbs.ailing import Ward
from tests.verbs.faults import Dead, DyingStorage, any_call
from tests.verbs.site import Site, Time, forget_all_but, only_before, open_at, prune, stored, twin


class Replacing(MemoryStorage):
    """Who comes last has it, and all are told that they have created it."""

    def _publish(self, name: str, data: bytes) -> ObjectInfo:
        self.delete([name])
        return super()._publish(name, data)


class Racing(MemoryStorage):
    """Looks first and writes later: who comes at the same time replaces what the other has written."""

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self._replaced: set[str] = set()

    def _publish(self, name: str, data: bytes) -> ObjectInfo:
        if name.startswith("intents/") and name not in self._replaced and name in self._objects:
            self._replaced.add(name)
            self.delete([name])
        return super()._publish(name, data)


class Claiming(MemoryStorage):
    """Keeps what it is asked for, and does not promise it."""

    capabilities = Capabilities(exclusive_create=False, fresh_listing=True)


class Late(MemoryStorage):
    capabilities = Capabilities(exclusive_create=True, fresh_listing=False)


LESS = [Replacing, Racing, Claiming, Late]


def _moved(storage: MemoryStorage, to: MemoryStorage) -> MemoryStorage:
    for info in storage.list(""):
        to.put_new(info.name, storage.get(info.name, limit=1 << 30))
    return to


@pytest.mark.parametrize("less", LESS)
def test_nothing_is_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage, less: Callable[[str], MemoryStorage]
) -> None:
    storage = _moved(memory, less("base"))
    before = stored(storage, "")
    with open_at(monkeypatch, memory, tmp_path / "owner") as repo:
        proposal = repo.propose_prune()
        assert proposal.bytes_freed
    with open_at(monkeypatch, storage, tmp_path / "owner") as repo:
        for verb in (repo.propose_prune, lambda: repo.apply(proposal)):
            with pytest.raises(pb.Unsupported, match="This storage") as caught:
                verb()
            assert caught.value.kind == "capability"
    assert stored(storage, "") == before


@pytest.mark.parametrize("less", LESS)
def test_nothing_is_sealed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage, less: Callable[[str], MemoryStorage]
) -> None:
    with open_at(monkeypatch, memory, tmp_path / "owner") as repo:
        repo.rotate(reason="a laptop was lost")
        proposal = repo.propose_reseal()
        assert proposal.steps
    storage = _moved(memory, less("base"))
    before = stored(storage, "")
    with open_at(monkeypatch, storage, tmp_path / "owner") as repo:
        for verb in (repo.propose_reseal, lambda: repo.apply(proposal)):
            with pytest.raises(pb.Unsupported, match="This storage"):
                verb()
    assert stored(storage, "") == before


@pytest.mark.parametrize("less", LESS)
def test_a_collection_that_was_begun_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage, less: Callable[[str], MemoryStorage]
) -> None:
    with open_at(monkeypatch, memory, tmp_path / "owner") as repo, monkeypatch.context() as patch:
        patch.setattr("pharmabackup.verbs.prune.finish", only_before(collection.finish))
        with pytest.raises(StorageFailed):
            prune(repo)
    storage = _moved(memory, less("base"))
    with open_at(monkeypatch, memory, tmp_path / "owner") as repo:
        proposal = repo.propose_prune()
    with open_at(monkeypatch, storage, tmp_path / "owner") as repo, pytest.raises(pb.Unsupported):
        repo.apply(proposal)
    assert stored(storage, "collections") == ["collections/1/condemn"]
    assert stored(storage, "packs") == stored(memory, "packs")


def test_a_repair_deletes_nothing_and_mends_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ward: Ward
) -> None:
    name = ward.pack_of(Kind.DATA_BLOCK)
    ward.flip(name, ward.regions(name)["directory"])
    asked: list[str] = []

    def none_wins(storage: object, name: str, contents: object) -> None:
        asked.append(name)

    assert ward.repo.propose_repair().wish.going  # type: ignore[attr-defined]
    shown = ward.repo.propose_repair()
    monkeypatch.setattr(collection, "one_wins", none_wins)
    with pytest.raises(pb.Unsupported):  # what it showed would be deleted
        ward.repo.apply(shown)
    ward.mend()
    assert asked and name in ward.names("packs") and not ward.names("collections")
    assert ward.whole() == set(ward.states)


def test_a_write_that_is_lost_is_not_taken_for_two_that_were_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage
) -> None:
    """The one that comes later succeeds as well, whichever it was. A second try tells the two apart."""
    storage = twin(memory)
    real, lost = storage.put_new, list[str]()

    def put_new(name: str, data: Buffer) -> ObjectInfo:
        made = real(name, data)
        if name.startswith("intents/") and len(lost) < 1:
            lost.append(name)
            storage.delete([name])
        return made

    with open_at(monkeypatch, storage, tmp_path / "owner") as repo, monkeypatch.context() as patch:
        patch.setattr(storage, "put_new", put_new)
        with pytest.raises(StorageFailed) as caught:
            collection.storage_now(repo._unlocked)
        assert caught.value.kind == "lost-write" and caught.value.retryable and lost
        assert collection.storage_now(repo._unlocked)
    assert stored(storage, "intents") == stored(memory, "intents")


def test_it_costs_six_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage) -> None:
    """One name, and no listing."""
    storage = DyingStorage(twin(memory), deletes=True)
    with open_at(monkeypatch, storage, tmp_path / "owner") as repo:
        storage.log.clear()
        collection.storage_now(repo._unlocked)
        asked = [what.split() for what in storage.log if what not in ("upload", "write")]
    assert [what for what, _ in asked] == ["publish", "publish", "publish", "get", "info", "delete"]
    assert len({name for _, name in asked}) == 1 and asked[0][1].startswith("intents/")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_what_is_left_when_it_dies_is_harmless_and_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage, site: Site, time: Time, after: bool
) -> None:
    cleared = False
    for dies_at in any_call():
        inner = twin(memory)
        before = stored(inner, "")
        storage, state = DyingStorage(inner, deletes=True), tmp_path / f"state-{dies_at}"
        with open_at(monkeypatch, storage, state) as repo:
            storage.arm(dies_at, after=after)
            try:
                collection.storage_now(repo._unlocked)
                died = False
            except Dead:
                died = True
            storage.arm(-1, after=False)
        left = set(stored(inner, "")) - set(before)
        assert len(left) <= died and all(name.startswith("intents/") for name in left)
        if left and not cleared:  # whoever's it is that is left, it is the same record
            cleared = True
            with open_at(monkeypatch, inner, state) as repo:
                for _ in range(3):  # it is taken for dead, then listed as such, then deleted
                    site.change(size=3000)
                    site.back_up(repo)
                    forget_all_but(repo, 1, time)
                    prune(repo)
                    site.all_restore(repo, tmp_path / f"out-{len(site.states)}")  # and a check finds nothing
            assert not left & set(stored(inner, ""))
        if not died:
            break
    assert cleared and not died
