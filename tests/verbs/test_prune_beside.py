"""Pruning beside others at work, and by whoever dies: nothing that is needed goes."""

from __future__ import annotations

import dataclasses
import itertools
import os
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.engine import collection, garbage
from pharmabackup.engine.enrolment import change_roster
from pharmabackup.engine.transaction import Transaction
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import StorageFailed
from pharmabackup.format.transaction import Condemn, Execute, Intent
from pharmabackup.format.wire import Kind, split
from pharmabackup.storage.base import ObjectInfo, Storage
from pharmabackup.storage.local_uploads import LocalUpload
from pharmabackup.storage.memory import MemoryStorage
from pharmabackup.verbs import check
from tests.verbs.faults import BusyStorage, Dead, DyingStorage, any_call, near_and_far
from tests.verbs.site import PASSPHRASE, Site, Time, forget_all_but, only_before, open_at, prune, stops, stored, twin

PATIENCE_S = 30
MakeRepo = Callable[[], pb.Repository]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@near_and_far
def test_it_dies_at_any_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage, site: Site, after: bool, lanes: int
) -> None:
    freed: set[int] = set()
    for dies_at in any_call():
        inner = twin(memory)
        storage = DyingStorage(inner, deletes=True, lanes=lanes)
        state = tmp_path / f"state-{dies_at}"
        with open_at(monkeypatch, storage, state) as repo:
            proposal = repo.propose_prune()
            storage.arm(dies_at, after=after)
            try:
                repo.apply(proposal)
                died = False
            except Dead:
                died = True
        with open_at(monkeypatch, inner, state) as repo:
            site.all_restore(repo, tmp_path / f"out-{dies_at}")
            prune(repo)
            prune(repo)
            site.all_restore(repo, tmp_path / f"again-{dies_at}")
            assert len(stored(inner, "packs")) <= 2
            freed.add(sum(info.size for info in inner.list("packs")))
            intents = {name.split("/")[1].split(".")[0] for name in stored(inner, "intents")}
            assert len(intents) <= 2
        if not died:
            break
    assert not died
    assert max(freed) < 1.6 * min(freed)


def test_a_backup_runs_between_any_two_calls_of_a_collector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage, site: Site
) -> None:
    site.change(size=3000)
    site.bring_back()
    for at in any_call():
        inner = twin(memory)

        def meanwhile(inner: MemoryStorage = inner, at: int = at) -> None:
            with open_at(monkeypatch, inner, tmp_path / f"writer-{at}") as writer:
                site.back_up(writer)

        storage = BusyStorage(inner, meanwhile)
        with open_at(monkeypatch, storage, tmp_path / f"collector-{at}") as repo:
            proposal = repo.propose_prune()
            storage.interrupt(at)
            try:
                repo.apply(proposal)
            except pb.Conflict as conflict:
                assert conflict.kind == "proposal-stale"
        with open_at(monkeypatch, inner, tmp_path / f"collector-{at}") as repo:
            site.all_restore(repo, tmp_path / f"out-{at}")
        if not storage.interrupted:
            return


@near_and_far
def test_a_collector_runs_between_any_two_calls_of_a_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage, site: Site, lanes: int
) -> None:
    site.change(size=3000)
    site.bring_back()
    for at in any_call():
        inner = twin(memory)

        def meanwhile(inner: MemoryStorage = inner, at: int = at) -> None:
            with open_at(monkeypatch, inner, tmp_path / f"collector-{at}") as collector:
                prune(collector)

        storage = BusyStorage(inner, meanwhile, lanes=lanes)
        with open_at(monkeypatch, storage, tmp_path / f"writer-{at}") as repo:
            storage.interrupt(at)
            site.back_up(repo)
        with open_at(monkeypatch, inner, tmp_path / f"writer-{at}") as repo:
            assert len([snapshot for snapshot in repo.snapshots() if not snapshot.forgotten]) == 2
            site.all_restore(repo, tmp_path / f"out-{at}")
        if not storage.interrupted:
            return


class _Waiting(DyingStorage):
    """Waits before a snapshot is committed."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.reached, self.go = threading.Event(), threading.Event()

    def _live(self, what: str) -> bool:
        if what.startswith("publish snapshots/"):
            self.reached.set()
            assert self.go.wait(PATIENCE_S)
        return super()._live(what)


def test_a_backup_comes_between_any_two_calls_of_a_collector_and_commits_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage, site: Site
) -> None:
    """It has looked at collections for the last time before the packs were condemned that it relies on."""
    monkeypatch.setattr(garbage, "ABANDONED_NS", 1 << 62)  # the clock is far ahead here
    site.change(size=3000)
    site.bring_back()
    for at in any_call():
        inner = twin(memory)
        waiting = _Waiting(inner)
        raised: list[pb.Error] = []

        def write(waiting: _Waiting = waiting, at: int = at, raised: list[pb.Error] = raised) -> None:
            with open_at(monkeypatch, waiting, tmp_path / f"writer-{at}") as writer:
                try:
                    site.back_up(writer)
                except pb.Error as error:
                    raised.append(error)
            waiting.reached.set()

        thread = threading.Thread(target=write)

        def meanwhile(waiting: _Waiting = waiting, thread: threading.Thread = thread) -> None:
            thread.start()
            assert waiting.reached.wait(PATIENCE_S)

        storage = BusyStorage(inner, meanwhile)
        with open_at(monkeypatch, storage, tmp_path / f"collector-{at}") as repo:
            proposal = repo.propose_prune()
            storage.interrupt(at)
            try:
                repo.apply(proposal)
            except pb.Conflict as conflict:
                assert conflict.kind == "proposal-stale"
        waiting.go.set()
        if thread.ident is not None:
            thread.join()
        assert not raised
        with open_at(monkeypatch, inner, tmp_path / f"collector-{at}") as repo:
            site.all_restore(repo, tmp_path / f"out-{at}")
        if not storage.interrupted:
            return


def test_a_collector_runs_between_any_two_calls_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage, site: Site
) -> None:
    for at in any_call():
        inner = twin(memory)

        def meanwhile(inner: MemoryStorage = inner, at: int = at) -> None:
            with open_at(monkeypatch, inner, tmp_path / f"other-{at}") as other:
                prune(other)

        storage = BusyStorage(inner, meanwhile)
        with open_at(monkeypatch, storage, tmp_path / f"one-{at}") as repo:
            proposal = repo.propose_prune()
            storage.interrupt(at)
            repo.apply(proposal)
        with open_at(monkeypatch, inner, tmp_path / f"one-{at}") as repo:
            site.all_restore(repo, tmp_path / f"out-{at}")
            prune(repo)  # each may have moved the same blocks
            site.all_restore(repo, tmp_path / f"again-{at}")
            assert len(stored(inner, "packs")) <= 2
        if not storage.interrupted:
            return


def test_a_proposal_is_made_though_a_collection_deletes_what_it_reads(
    repo: pb.Repository, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.change()
    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "commit", stops)
        with pytest.raises(StorageFailed):
            site.back_up(repo)
    real, calls = garbage.list_intents, list[int]()

    def list_intents(unlocked: Unlocked) -> dict[bytes, garbage.Intents]:
        found = real(unlocked)
        calls.append(len(found))
        if len(calls) == 1:
            assert not any(unlocked.storage.delete(stored(unlocked.storage, "intents")).values())
        return found

    monkeypatch.setattr(garbage, "list_intents", list_intents)
    assert repo.propose_prune().verb == "prune"
    assert calls[0] > 0 and calls[1:] == [0]


@near_and_far
def test_a_restore_goes_on_whenever_a_collector_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage, site: Site, lanes: int
) -> None:
    for at in any_call():
        inner = twin(memory)

        def meanwhile(inner: MemoryStorage = inner, at: int = at) -> None:
            with open_at(monkeypatch, inner, tmp_path / f"collector-{at}") as collector:
                prune(collector)

        storage = BusyStorage(inner, meanwhile, lanes=lanes)
        with open_at(monkeypatch, storage, tmp_path / f"reader-{at}") as repo:
            newest = repo.snapshot("documents")
            storage.interrupt(at)
            repo.restore(tmp_path / f"out-{at}", snapshots=[newest])
        found = {path.name: path.read_bytes() for path in (tmp_path / f"out-{at}" / "documents").iterdir()}
        assert found == site.states[newest.id]
        if not storage.interrupted:
            return


def test_a_long_backup_pins_what_it_has_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage, site: Site
) -> None:
    """Nobody has to read a source again because a collection came before its backup had ended."""
    monkeypatch.setattr("pharmabackup.engine.packs.PACK_TARGET", 1 << 20)
    monkeypatch.setattr("pharmabackup.engine.transaction.SEGMENT_PACKS", 2)
    for number in range(24):
        (site.root / f"scan-{number}").write_bytes(os.urandom(1_500_000))
    with open_at(monkeypatch, memory, tmp_path / "writer") as repo:
        snapshot = bytes.fromhex(site.back_up(repo))
        names = [name for name in stored(memory, "intents") if snapshot.hex() in name]
        pinned = [set(split(repo._unlocked.get(Kind.INTENT, name, Intent).record.packs, 32, "x")) for name in names]
    assert len(names) >= 3
    for fewer, more in pairwise(sorted(pinned, key=len)):
        assert len(fewer) > 0 and fewer < more


def test_a_collection_that_was_begun_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repo: pb.Repository, site: Site, time: Time
) -> None:
    """Also when there is nothing else to do."""
    forget_all_but(repo, 1, time)
    proposal = repo.propose_prune()
    real = LocalUpload.publish

    def publish(self: LocalUpload, name: str) -> ObjectInfo:
        if name.endswith("/execute"):
            raise StorageFailed("The cable is out.", location="here")
        return real(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(LocalUpload, "publish", publish)
        with pytest.raises(StorageFailed):
            repo.apply(proposal)
    assert stored(repo._unlocked.storage, "collections") == ["collections/1/condemn"]
    site.all_restore(repo, tmp_path / "out")
    repo.apply(proposal)
    assert "collections/1/done" in stored(repo._unlocked.storage, "collections")
    site.all_restore(repo, tmp_path / "again")


@pytest.mark.parametrize(
    "name",
    [
        "intents/desktop.ini",
        f"intents/{'ab' * 16}.00",
        f"intents/{'ab' * 16}.1.bak",
        f"intents/{'ab' * 15}.1",
        "snapshots/desktop.ini",
        f"snapshots/{'ab' * 16}.bak",
        f"snapshots/sub/{'ab' * 16}",
        "marks/desktop.ini",
        "index/abcd",
    ],
)
def test_files_that_are_not_ours_stop_nothing(
    tmp_path: Path, repo: pb.Repository, site: Site, time: Time, name: str
) -> None:
    """Whatever else puts files into folders."""
    storage = repo._unlocked.storage
    storage.put_new(name, b"[.ShellClassInfo]")
    forget_all_but(repo, 2, time)
    assert prune(repo).bytes > 0
    report = repo.check()
    assert [(finding.code, finding.subject) for finding in report.findings] == [("object-unknown", name)]
    snapshot = repo.snapshot("documents")
    repo.restore(tmp_path / "out", snapshots=[snapshot])


def test_the_owners_newest_rules_hold_though_they_came_while_it_was_open(
    repo: pb.Repository, site: Site, time: Time, tmp_path: Path
) -> None:
    """After an incident an owner asks for two people; a service that runs for months must not go on with one."""
    forget_all_but(repo, 2, time)
    proposal = repo.propose_prune()
    assert len(proposal.snapshots) == 6
    with pb.Repository.open(repo.url, PASSPHRASE, state_dir=tmp_path / "owner") as other:
        change_roster(other._unlocked, lambda before: replace(before, policy=replace(before.policy, forget_quorum=2)))
    with pytest.raises(pb.Conflict):
        repo.apply(proposal)
    assert repo.propose_prune().snapshots == ()


def test_rules_that_come_with_a_record_hold_for_what_was_read_before_it(
    repo: pb.Repository, site: Site, time: Time, tmp_path: Path
) -> None:
    """Who lists snapshots meets a hold under newer rules, having read others under the old ones."""
    forget_all_but(repo, 2, time)
    with pb.Repository.open(repo.url, PASSPHRASE, state_dir=tmp_path / "owner") as other:
        change_roster(other._unlocked, lambda before: replace(before, policy=replace(before.policy, forget_quorum=2)))
        other.hold(other.snapshot("documents"), reason="incident 7")
    assert len([snapshot for snapshot in repo.snapshots() if snapshot.forgotten]) == 0
    assert repo.propose_prune().snapshots == ()


def test_what_was_not_condemned_is_not_deleted(repo: pb.Repository, site: Site, time: Time) -> None:
    unlocked = repo._unlocked
    packs = stored(unlocked.storage, "packs")
    digests = [ids.hex_tail(name) or b"" for name in packs]
    unlocked.put(Kind.CONDEMN, "collections/1/condemn", Condemn(1, digests[0], b"", b""))
    unlocked.put(Kind.EXECUTE, "collections/1/execute", Execute(1, b"".join(digests), b""))
    proposal = repo.propose_prune()
    assert "collection-unfinished" in {finding.code for finding in proposal.findings}
    with pytest.raises(pb.Damaged, match="what it has not condemned"):
        repo.apply(proposal)
    assert stored(unlocked.storage, "packs") == packs


@pytest.mark.parametrize("capability", ["exclusive-create", "fresh-listing"])
def test_where_it_would_not_be_safe(repo: pb.Repository, monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    record = repo._unlocked.record
    without = replace(record, capabilities={**record.capabilities, capability: False})
    monkeypatch.setattr(repo._unlocked, "record", without)
    with pytest.raises(pb.Unsupported) as caught:
        repo.propose_prune()
    assert caught.value.kind == "capability"


def test_who_may_not(repo: pb.Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repo._unlocked, "keyring", replace(repo._unlocked.keyring, role="device"))
    for verb in (repo.propose_prune, repo.propose_forget):
        with pytest.raises(pb.NotPermitted):
            verb()


def test_few_dead_bytes_are_left_alone(large: pb.Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    assert large.propose_prune().wish.sparse  # type: ignore[attr-defined]
    monkeypatch.setattr("pharmabackup.engine.emptying.UNUSED_SHARE", 100.0)
    assert not large.propose_prune().wish.sparse  # type: ignore[attr-defined]


@pytest.mark.parametrize("read_data", [0.0, 1.0])
@near_and_far
def test_a_check_tells_nothing_as_lost_whenever_a_collector_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage, site: Site, read_data: float, lanes: int
) -> None:
    for at in any_call():
        inner = twin(memory)

        def meanwhile(inner: MemoryStorage = inner, at: int = at) -> None:
            with open_at(monkeypatch, inner, tmp_path / f"collector-{at}") as collector:
                prune(collector)

        storage = BusyStorage(inner, meanwhile, lanes=lanes)
        with open_at(monkeypatch, storage, tmp_path / f"reader-{at}") as repo:
            storage.interrupt(at)
            report = repo.check(read_data=read_data)
        assert report.state == "ok", (at, report.findings)
        if not storage.interrupted:
            return


def test_what_is_lost_is_told_though_a_collection_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage
) -> None:
    with open_at(monkeypatch, memory, tmp_path / "state") as repo:
        with monkeypatch.context() as patch:
            patch.setattr("pharmabackup.verbs.prune.finish", only_before(collection.finish))
            with pytest.raises(StorageFailed):
                prune(repo)
        assert repo.check().state == "ok"
        assert not any(memory.delete(stored(memory, "packs")).values())
        codes = {finding.code for finding in repo.check().findings}
    assert {"pack-missing", "snapshot-damaged"} <= codes


def test_while_collections_never_end_a_check_says_that_it_cannot_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage
) -> None:
    real, number = check.read_condemned, itertools.count()
    monkeypatch.setattr(check, "read_condemned", lambda *a: dataclasses.replace(real(*a), highest=next(number)))
    with open_at(monkeypatch, memory, tmp_path / "state") as repo:
        assert repo.check().state == "ok"
        assert not any(memory.delete(stored(memory, "packs")).values())
        found = [(item.code, item.severity) for item in repo.check(read_data=1.0).findings]
        assert found == [("collection-under-way", "warning")]
