"""Pruning where the storage does not let go of what is deleted: what is pending, and what is never touched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.engine.condemned import let_go
from pharmabackup.errors import Error
from pharmabackup.storage import failures
from pharmabackup.storage.memory import MemoryStorage
from tests.verbs.site import Site, Time, open_at, prune, stored


class Refusing(MemoryStorage):
    """Lets go of no pack as long as `holds`."""

    holds = True

    def delete(self, names: Sequence[str]) -> Mapping[str, Error | None]:
        held = [name for name in names if self.holds and name.startswith("packs/")]
        gone = super().delete([name for name in names if name not in held])
        return {**gone, **dict.fromkeys(held, failures.locked(self.location))}


@pytest.fixture
def refusing(memory: MemoryStorage) -> Refusing:
    storage = Refusing("base")
    for info in memory.list(""):
        storage.put_new(info.name, memory.get(info.name, limit=1 << 30))
    return storage


@pytest.fixture
def repo(monkeypatch: pytest.MonkeyPatch, refusing: Refusing, tmp_path: Path) -> Iterator[pb.Repository]:
    with open_at(monkeypatch, refusing, tmp_path / "owner") as made:
        yield made


def told(report: pb.Report | pb.Proposal) -> list[str]:
    return [finding.code for finding in report.findings]


def test_what_is_refused_is_pending_and_goes_later(
    refusing: Refusing, repo: pb.Repository, site: Site, time: Time, tmp_path: Path
) -> None:
    assert told(prune(repo)) == ["deletion-pending"]
    gone = {name for name in let_go(repo._unlocked) if name.startswith("packs/")}
    collections = stored(refusing, "collections")
    assert collections == [f"collections/1/{part}" for part in ("condemn", "done", "execute")]
    assert gone < set(stored(refusing, "packs"))  # what was alive has moved
    site.all_restore(repo, tmp_path / "out-1")
    proposal = repo.propose_prune()
    assert told(proposal) == ["deletion-pending"] and proposal.bytes_freed == 0
    assert told(repo.apply(proposal)) == ["deletion-pending"]
    assert stored(refusing, "collections") == collections  # nothing is condemned twice
    refusing.holds = False
    assert told(repo.apply(repo.propose_prune())) == []
    assert stored(refusing, "collections") == collections
    assert gone and not gone & set(stored(refusing, "packs"))
    site.all_restore(repo, tmp_path / "out-2")
    assert told(repo.propose_prune()) == []


def test_a_writer_relies_on_nothing_that_is_pending(
    refusing: Refusing, repo: pb.Repository, site: Site, time: Time, tmp_path: Path
) -> None:
    prune(repo)
    site.bring_back()  # what a pack holds that is there still
    site.back_up(repo)
    refusing.holds = False
    prune(repo)
    site.all_restore(repo, tmp_path / "out")


def test_where_a_block_is_missing_nothing_that_was_left_goes(
    refusing: Refusing, repo: pb.Repository, site: Site, time: Time
) -> None:
    prune(repo)
    left = set(stored(refusing, "packs"))
    site.change(size=3000)
    snapshot = site.back_up(repo)
    fresh = set(stored(refusing, "packs")) - left
    MemoryStorage.delete(refusing, sorted(fresh))  # by somebody
    refusing.holds = False
    with pytest.raises(pb.Damaged):
        prune(repo)
    assert set(stored(refusing, "packs")) == left and snapshot


def test_a_newer_list_of_keys_makes_it_look_again(
    monkeypatch: pytest.MonkeyPatch, refusing: Refusing, repo: pb.Repository
) -> None:
    """What is to be deleted was judged by the list that was known."""
    prune(repo)
    proposal = repo.propose_prune()
    refusing.holds = False
    deleted: list[int] = []
    real, asked = type(repo._unlocked).renewed, list[bool]()

    def renewed(unlocked: object, *arguments: object) -> bool:
        asked.append(True)
        return len(asked) == 1 or real(unlocked, *arguments)  # type: ignore[arg-type]

    def delete(names: Sequence[str]) -> Mapping[str, Error | None]:
        if any(name.startswith("packs/") for name in names):
            deleted.append(len(asked))
        return Refusing.delete(refusing, names)

    monkeypatch.setattr(type(repo._unlocked), "renewed", renewed)
    monkeypatch.setattr(refusing, "delete", delete)
    repo.apply(proposal)
    assert len(deleted) == 1 and deleted[0] > 1


def test_another_trouble_with_deleting_is_no_lock(
    monkeypatch: pytest.MonkeyPatch, refusing: Refusing, repo: pb.Repository
) -> None:
    refusing.holds = False

    def denied(names: Sequence[str]) -> Mapping[str, Error | None]:
        return {
            name: failures.denied("base")
            if name.startswith("packs/")
            else MemoryStorage.delete(refusing, [name])[name]
            for name in names
        }

    monkeypatch.setattr(refusing, "delete", denied)
    with pytest.raises(pb.StorageFailed) as caught:
        prune(repo)
    assert caught.value.kind == "storage-denied"
    assert "collections/1/done" not in stored(refusing, "collections")
