"""Restores that hold what they need, whatever is pruned beside them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup.engine import garbage, hold
from pharmabackup.errors import StorageFailed
from pharmabackup.storage.local import LocalStorage
from pharmabackup.storage.memory import MemoryStorage
from tests.verbs.faults import BusyStorage
from tests.verbs.site import DAY_NS, Site, Time, open_at, prune, stored, twin

PATIENCE_S = 30
MakeRepo = Callable[[], pb.Repository]


def _come_back(repo: pb.Repository, site: Site, snapshot: pb.Snapshot, out: Path, **options: Any) -> None:
    repo.restore(out, snapshots=[snapshot], **options)
    assert {path.name: path.read_bytes() for path in (out / "documents").iterdir()} == site.states[snapshot.id]


def test_a_restore_holds_what_it_needs_though_it_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage, site: Site, time: Time
) -> None:
    monkeypatch.setattr(garbage, "ABANDONED_NS", 1 << 62)  # the clock is far ahead here
    with open_at(monkeypatch, memory, tmp_path / "reader") as repo:
        first, freed = repo.snapshots()[-1], list[int]()
        assert first.forgotten

        def interrupt(event: pb.Event) -> None:
            if event.kind == "dataset":
                with open_at(monkeypatch, memory, tmp_path / "collector") as collector:
                    freed.append(prune(collector).bytes)

        before = stored(memory, "")
        _come_back(repo, site, first, tmp_path / "out", progress=interrupt)
        with open_at(monkeypatch, memory, tmp_path / "collector") as collector:
            freed.append(prune(collector).bytes)  # and no longer than it needs it
    assert len(freed) == 2 and freed[1] > 10_000
    new = [name for name in stored(memory, "") if name not in before and not name.startswith("collections/")]
    assert [name.partition("/")[0] for name in new if name.startswith(("intents/", "snapshots/"))] == ["snapshots"]


def test_a_restore_whose_hold_is_taken_is_not_broken_whichever_call_a_collector_is_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage, site: Site
) -> None:
    """Of a snapshot that is forgotten, and which the collector is about to delete."""
    monkeypatch.setattr(garbage, "ABANDONED_NS", 1 << 62)  # the clock is far ahead here
    real, holds = hold._pin, list[bool]()

    def pin(*arguments: Any) -> bool:
        holds.append(real(*arguments))
        return holds[-1]

    monkeypatch.setattr(hold, "_pin", pin)
    for at in range(1000):
        inner = twin(memory)
        reached, go = threading.Event(), threading.Event()
        outcome: list[object] = []

        def wait(event: pb.Event, reached: threading.Event = reached, go: threading.Event = go) -> None:
            if event.kind == "dataset":
                reached.set()
                assert go.wait(PATIENCE_S)

        def read(
            inner: MemoryStorage = inner,
            at: int = at,
            reached: threading.Event = reached,
            outcome: list[object] = outcome,
            wait: Callable[[pb.Event], None] = wait,
        ) -> None:
            try:
                with open_at(monkeypatch, inner, tmp_path / f"reader-{at}") as reader:
                    _come_back(reader, site, reader.snapshots()[-1], tmp_path / f"out-{at}", progress=wait)
                outcome.append("whole")
            except BaseException as error:  # noqa: BLE001
                outcome.append(error)
            reached.set()

        thread = threading.Thread(target=read)

        def meanwhile(thread: threading.Thread = thread, reached: threading.Event = reached) -> None:
            thread.start()
            assert reached.wait(PATIENCE_S)

        storage = BusyStorage(inner, meanwhile)
        with open_at(monkeypatch, storage, tmp_path / f"collector-{at}") as repo:
            proposal = repo.propose_prune()
            storage.interrupt(at)
            try:
                repo.apply(proposal)
            except pb.Conflict as conflict:
                assert conflict.kind == "proposal-stale"
        go.set()
        if not storage.interrupted:
            break
        thread.join()
        assert len(holds) == at + 1
        assert outcome == ["whole"] or not holds[at], (at, outcome)
    assert not storage.interrupted
    assert holds[0] and not holds[-1]  # soon enough, and too late


@pytest.mark.parametrize("what", ["full", "read-only", "nobody may sign"])
def test_a_restore_that_cannot_hold_anything_goes_on(
    tmp_path: Path, repo: pb.Repository, site: Site, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    if what == "nobody may sign":
        monkeypatch.setattr(repo._unlocked, "keyring", replace(repo._unlocked.keyring, signing=None, role="restorer"))
    else:
        error = StorageFailed("No.", kind="full" if what == "full" else "storage-denied", location="here")
        monkeypatch.setattr(LocalStorage, "upload", lambda _: _raise(error))
    before = stored(repo._unlocked.storage, "")
    _come_back(repo, site, repo.snapshot(), tmp_path / "out")
    assert stored(repo._unlocked.storage, "") == before


def _raise(error: Exception) -> Any:
    raise error


def test_a_restorers_hold_is_given_up_by_a_collector(
    tmp_path: Path, large: pb.Repository, site: Site, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = large._unlocked.storage
    with monkeypatch.context() as patch:
        patch.setattr(large._unlocked, "keyring", replace(large._unlocked.keyring, role="restorer"))
        _come_back(large, site, large.snapshot(), tmp_path / "out")
    before = stored(storage, "packs")
    time.ahead = 0
    assert not large.propose_prune().wish.sparse  # type: ignore[attr-defined]
    time.ahead = 15 * DAY_NS
    assert prune(large).bytes > 0
    assert stored(storage, "packs") != before
    assert prune(large).bytes == 0
