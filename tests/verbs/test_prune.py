"""Pruning: all that nothing needs goes, and all that something needs stays."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.engine import collection, garbage, moving
from pharmabackup.engine.segments import read_segment, write_segment
from pharmabackup.engine.transaction import Transaction
from pharmabackup.errors import StorageFailed
from pharmabackup.results import Proposal
from pharmabackup.storage.base import ObjectInfo
from pharmabackup.storage.local import LocalStorage
from pharmabackup.storage.local_uploads import LocalUpload
from pharmabackup.verbs.marks import say
from tests.verbs.site import DAY_NS, Site, Time, double, forget_all_but, only_before, prune, stops, stored

PATIENCE_S = 30
MakeRepo = Callable[[], pb.Repository]


def test_what_is_mostly_dead_is_moved(tmp_path: Path, large: pb.Repository, site: Site) -> None:
    proposal = large.propose_prune()
    assert proposal.wish.sparse  # type: ignore[attr-defined]
    storage = large._unlocked.storage
    before = sum(info.size for info in storage.list("packs"))
    report = large.apply(proposal)
    after = sum(info.size for info in storage.list("packs"))
    assert report.bytes == before - after > 3_000_000
    assert abs(report.bytes - proposal.bytes_freed) < 100_000
    site.all_restore(large, tmp_path / "out")
    again = large.propose_prune()
    assert again.bytes_freed == 0
    assert large.backup([pb.Files(site.root)]).datasets["documents"].added == 0


def test_what_nothing_needs_goes_and_the_rest_restores(
    tmp_path: Path, repo: pb.Repository, site: Site, time: Time
) -> None:
    storage = repo._unlocked.storage
    before = sum(info.size for info in storage.list("packs"))
    assert repo.propose_prune().bytes_freed < before / 10  # nothing is forgotten, and little is dead by itself
    forget_all_but(repo, 2, time)
    proposal = repo.propose_prune()
    assert {snapshot.id for snapshot in proposal.snapshots} == {s.id for s in repo.snapshots() if s.forgotten}
    assert len(proposal.snapshots) == 6
    report = repo.apply(proposal)
    after = sum(info.size for info in storage.list("packs"))
    assert report.bytes == before - after
    assert 0 < report.bytes <= proposal.bytes_freed
    alive = sum(len(data) for data in site.states[repo.snapshots()[0].id].values())
    assert after < 2.2 * alive
    site.all_restore(repo, tmp_path / "out")
    assert repo.propose_prune().bytes_freed < 0.1 * after
    assert stored(storage, "intents") == [] or len(stored(storage, "intents")) <= 2
    assert stored(storage, "collections") == [f"collections/1/{part}" for part in ("condemn", "done", "execute")]


def test_a_backup_after_it_finds_what_was_moved(tmp_path: Path, repo: pb.Repository, site: Site, time: Time) -> None:
    forget_all_but(repo, 1, time)
    prune(repo)
    state = repo._unlocked.state
    report = repo.backup([pb.Files(site.root)])
    site.states[report.datasets["documents"].snapshot.id] = site.states[repo.snapshots()[1].id]  # type: ignore[union-attr]
    assert report.datasets["documents"].added == 0
    for cache in state.rglob("*"):  # and without anything that this machine remembers
        if cache.is_file():
            cache.unlink()
    (site.root / "copy").write_bytes((site.root / "a").read_bytes())
    again = repo.backup([pb.Files(site.root)])
    assert 0 < again.datasets["documents"].added < 10_000
    site.states[again.datasets["documents"].snapshot.id] = {  # type: ignore[union-attr]
        path.name: path.read_bytes() for path in site.root.iterdir()
    }
    site.all_restore(repo, tmp_path / "out")


def test_held_snapshots_are_alive_though_forgotten(
    tmp_path: Path, repo: pb.Repository, site: Site, time: Time, make_repo: MakeRepo
) -> None:
    proposal = repo.propose_forget({"*": pb.Keep(last=1)})
    repo.apply(proposal)
    first = proposal.snapshots[-1]
    repo.hold(first, reason="incident 7")
    time.ahead += 15 * DAY_NS
    report = prune(repo)
    assert report.bytes > 0
    held = next(snapshot for snapshot in repo.snapshots() if snapshot.id == first.id)
    repo.restore(tmp_path / "out", snapshots=[held])
    found = {path.name: path.read_bytes() for path in (tmp_path / "out" / "documents").iterdir()}
    assert found == site.states[first.id]


def test_nothing_goes_before_the_delay_is_over(tmp_path: Path, repo: pb.Repository, site: Site, time: Time) -> None:
    repo.apply(repo.propose_forget({"*": pb.Keep(last=1)}))
    assert repo.propose_prune().snapshots == ()
    time.ahead += 13 * DAY_NS
    assert repo.propose_prune().snapshots == ()
    prune(repo)
    assert all(not snapshot.forgotten for snapshot in repo.snapshots())
    site.all_restore(repo, tmp_path / "out")


def test_what_is_young_stays(repo: pb.Repository, site: Site, time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be of a backup that has not come to its intent."""
    site.change()
    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "pin", stops)
        with pytest.raises(StorageFailed):
            site.back_up(repo)
    packs = stored(repo._unlocked.storage, "packs")
    prune(repo)
    assert stored(repo._unlocked.storage, "packs") == packs
    time.ahead += 2 * DAY_NS
    prune(repo)
    assert len(stored(repo._unlocked.storage, "packs")) == len(packs) - 1


def test_an_undecided_transaction_pins_until_it_is_taken_for_dead(
    tmp_path: Path, repo: pb.Repository, site: Site, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.change()
    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "commit", stops)
        with pytest.raises(StorageFailed):
            site.back_up(repo)
    storage = repo._unlocked.storage
    packs, fates = stored(storage, "packs"), stored(storage, "snapshots")
    with monkeypatch.context() as patch:
        patch.setattr(garbage, "YOUNG_NS", 0)
        assert repo.propose_prune().bytes_freed == 0  # it pins them
    prune(repo)
    assert (stored(storage, "packs"), stored(storage, "snapshots")) == (packs, fates)
    time.ahead += 2 * DAY_NS  # and then it does no more, though there is nothing else to do
    assert prune(repo).bytes > 0
    assert len(stored(storage, "packs")) == len(packs) - 1
    assert len(stored(storage, "snapshots")) == len(fates) + 1  # that it was given up
    site.all_restore(repo, tmp_path / "out")


def test_what_has_no_intents_name_pins_nothing(repo: pb.Repository, site: Site, time: Time) -> None:
    """Anybody who may write could stop every prune with it."""
    forget_all_but(repo, 1, time)
    for name in ("intents/readme", f"intents/{'0' * 32}.01", f"intents/{'0' * 30}.0"):
        repo._unlocked.storage.put_new(name, b"x")
    assert prune(repo).bytes > 0


def test_a_proposal_is_refused_when_something_is_needed_again(
    tmp_path: Path, repo: pb.Repository, site: Site, time: Time
) -> None:
    repo.apply(repo.propose_forget({"*": pb.Keep(last=1)}))
    time.ahead += 15 * DAY_NS
    proposal = repo.propose_prune()
    first = proposal.snapshots[-1]
    say(repo._unlocked, "hold", [bytes.fromhex(first.id)], reason="just in time")
    with pytest.raises(pb.Conflict, match="no longer true") as caught:
        repo.apply(proposal)
    assert caught.value.kind == "proposal-stale"
    repo.restore(tmp_path / "out", snapshots=[first])


def test_a_proposal_is_refused_when_a_snapshot_is_held_by_now_though_no_pack_is_needed_for_it(
    repo: pb.Repository, site: Site, time: Time
) -> None:
    """All that it needs is needed by others as well."""
    site.back_up(repo)  # again
    repo.apply(repo.propose_forget(snapshots=[repo.snapshots()[1]]))
    time.ahead += 15 * DAY_NS
    proposal = repo.propose_prune()
    (going,) = proposal.snapshots
    say(repo._unlocked, "hold", [bytes.fromhex(going.id)], reason="just in time")
    again = repo.propose_prune()
    assert proposal.wish.dead <= again.wish.dead and not again.snapshots  # type: ignore[attr-defined]
    with pytest.raises(pb.Conflict, match="no longer true") as caught:
        repo.apply(proposal)
    assert caught.value.kind == "proposal-stale"


def test_a_proposal_is_refused_when_a_pack_is_needed_by_now_though_no_snapshot_was_to_go(
    tmp_path: Path, repo: pb.Repository, site: Site, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup that died has left it, and the next one relies on it."""
    site.change()
    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "pin", stops)
        with pytest.raises(StorageFailed):
            site.back_up(repo)
    time.ahead += 2 * DAY_NS
    proposal = repo.propose_prune()
    dead = proposal.wish.dead  # type: ignore[attr-defined]
    assert len(dead) == 1 and not proposal.snapshots
    site.back_up(repo)
    with pytest.raises(pb.Conflict, match="no longer true") as caught:
        repo.apply(proposal)
    assert caught.value.kind == "proposal-stale"
    assert stored(repo._unlocked.storage, "collections") == []
    site.all_restore(repo, tmp_path / "out")


def test_a_damaged_pack_is_not_given_a_sound_name(large: pb.Repository) -> None:
    repo = large
    proposal = repo.propose_prune()
    sparse = sorted(proposal.wish.sparse)  # type: ignore[attr-defined]
    assert sparse
    storage = repo._unlocked.storage
    path = Path(storage.local_root() or "") / ids.pack_name(sparse[0])
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    events: list[pb.Event] = []
    with pytest.raises(pb.Incomplete) as caught:
        repo.apply(proposal, progress=events.append)
    assert caught.value.kind == "prune" and "left: 1" in str(caught.value)
    assert [finding.code for finding in caught.value.result.findings] == ["pack-damaged"]
    assert events[-1].kind == "finished" and caught.value.result.bytes > 0  # all else was done
    assert len(set(stored(storage, "packs")) & set(map(ids.pack_name, proposal.wish.dead))) == 0  # type: ignore[attr-defined]
    assert path.exists()
    assert repo.check(read_data=1.0).state == "critical"


def test_a_missing_block_stops_it(repo: pb.Repository, time: Time) -> None:
    storage = repo._unlocked.storage
    forget_all_but(repo, 1, time)
    newest = max(storage.list("packs"), key=lambda info: info.modified)
    assert not any(storage.delete([newest.name]).values())
    with pytest.raises(pb.Damaged):
        prune(repo)
    assert stored(storage, "collections") == []


def test_a_pack_that_two_segments_name_is_not_dead(
    tmp_path: Path, repo: pb.Repository, site: Site, time: Time
) -> None:
    """Two writers may adopt one orphan, and a collection may die between a segment and what takes its place."""
    unlocked = repo._unlocked
    segments = [ids.hex_tail(name) or b"" for name in stored(unlocked.storage, "index")]
    for digest in segments:
        write_segment(unlocked, list(read_segment(unlocked, digest).record.packs))
    forget_all_but(repo, 3, time)
    proposal = repo.propose_prune()
    repo.apply(proposal)
    site.all_restore(repo, tmp_path / "out")
    prune(repo)
    site.all_restore(repo, tmp_path / "again")


def test_segments_keep_what_stays(tmp_path: Path, repo: pb.Repository, site: Site, time: Time) -> None:
    """One that names packs which go and packs which stay is replaced, and without it nothing would be found."""
    unlocked = repo._unlocked
    names = stored(unlocked.storage, "index")
    entries = [entry for name in names for entry in read_segment(unlocked, ids.hex_tail(name) or b"").record.packs]
    together = write_segment(unlocked, entries)
    assert not any(unlocked.storage.delete(names).values())
    forget_all_but(repo, 3, time)
    prune(repo)
    left = stored(unlocked.storage, "index")
    assert ids.index_name(together) not in left
    named = {entry.pack for name in left for entry in read_segment(unlocked, ids.hex_tail(name) or b"").record.packs}
    assert named == {ids.hex_tail(name) for name in stored(unlocked.storage, "packs")}
    site.all_restore(repo, tmp_path / "out")


def test_nothing_is_rewritten_when_nothing_is_dead(
    tmp_path: Path, make_repo: MakeRepo, site: Site, time: Time
) -> None:
    """A pack's directory, names and padding are no garbage."""
    repo = make_repo()
    (site.root / "large").write_bytes(bytes(range(256)) * 40_000)
    site.back_up(repo)
    time.ahead += 3 * DAY_NS
    proposal = repo.propose_prune()
    assert (proposal.bytes_freed, proposal.snapshots) == (0, ())
    before = stored(repo._unlocked.storage, "")
    assert repo.apply(proposal).bytes == 0
    assert stored(repo._unlocked.storage, "") == before


def test_only_the_snapshots_that_were_shown_go(tmp_path: Path, repo: pb.Repository, site: Site, time: Time) -> None:
    """Others that are forgotten by the time it is applied were not in the proposal."""
    forget_all_but(repo, 4, time)
    proposal = repo.propose_prune()
    shown = {snapshot.id for snapshot in proposal.snapshots}
    repo.apply(repo.propose_forget({"*": pb.Keep(last=1)}))
    time.ahead += 15 * DAY_NS
    repo.apply(proposal)
    for snapshot in repo.snapshots():
        if snapshot.id not in shown:
            repo.restore(tmp_path / snapshot.id, snapshots=[snapshot])
    assert {snapshot.id for snapshot in repo.propose_prune().snapshots} == {
        snapshot.id for snapshot in repo.snapshots() if snapshot.forgotten and snapshot.id not in shown
    }


@pytest.mark.parametrize("later", ["the clock is set back", "more people have to agree"])
def test_what_was_deleted_stays_forgotten(
    repo: pb.Repository, site: Site, time: Time, monkeypatch: pytest.MonkeyPatch, later: str
) -> None:
    forget_all_but(repo, 2, time)
    gone = {snapshot.id for snapshot in repo.propose_prune().snapshots}
    prune(repo)
    if later == "the clock is set back":
        time.ahead = 0
    else:
        policy = replace(repo._unlocked.roster.policy, forget_quorum=2)
        monkeypatch.setattr(repo._unlocked, "roster", replace(repo._unlocked.roster, policy=policy))
    assert {snapshot.id for snapshot in repo.snapshots() if snapshot.forgotten} == gone
    assert repo.check(read_data=1.0).state == "ok"
    prune(repo)
    first = next(snapshot for snapshot in repo.snapshots() if snapshot.id in gone)
    with pytest.raises(pb.Conflict, match="may be gone already"):
        repo.hold(first, reason="too late")
    with pytest.raises((pb.Conflict, pb.NotFound)):
        repo.recall(first, reason="too late")


def test_small_packs_are_joined_when_there_are_many_and_then_left_alone(
    tmp_path: Path, make_repo: MakeRepo, site: Site, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = make_repo()
    storage = repo._unlocked.storage
    monkeypatch.setattr("pharmabackup.engine.emptying.MANY", 10)
    for day in range(24):
        (site.root / f"{day}").write_bytes(os.urandom(3000))
        site.back_up(repo)
        if day == 8:
            assert repo.propose_prune().findings == ()
            prune(repo)
            assert len(stored(storage, "packs")) == 9
    proposal = repo.propose_prune()
    assert [finding.code for finding in proposal.findings] == ["packs-joined"]
    assert "small packs are joined" in str(proposal)
    assert proposal.bytes_freed < 20_000 and proposal.snapshots == ()
    repo.apply(proposal)
    after = stored(storage, "packs")
    assert len(after) < 10
    site.all_restore(repo, tmp_path / "out")
    assert repo.propose_prune().findings == ()
    prune(repo)
    assert stored(storage, "packs") == after
    for day in range(24, 24 + 10):  # more small ones: those are joined, the joined one is not read again
        (site.root / f"{day}").write_bytes(os.urandom(3000))
        site.back_up(repo)
    largest = max(storage.list("packs"), key=lambda info: info.size)
    prune(repo)
    assert len(stored(storage, "packs")) < 12
    assert largest.name in stored(storage, "packs")
    site.all_restore(repo, tmp_path / "again")


def test_before_anything_is_deleted_everything_is_asked_once_more(
    tmp_path: Path, make_repo: MakeRepo, site: Site, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two packs with the same blocks one goes; and just then the other is lost."""
    repo = make_repo()
    site.change()
    site.back_up(repo)
    unlocked = repo._unlocked
    double(repo)
    time.ahead += 3 * DAY_NS
    proposal = repo.propose_prune()
    dead = {ids.pack_name(pack) for pack in proposal.wish.dead}  # type: ignore[attr-defined]
    others = set(stored(unlocked.storage, "packs")) - dead
    assert (len(dead), len(others)) == (1, 1)
    real = LocalUpload.publish

    def publish(self: LocalUpload, name: str) -> ObjectInfo:
        info = real(self, name)
        if name.endswith("/condemn"):
            assert not any(unlocked.storage.delete(sorted(others)).values())
        return info

    with monkeypatch.context() as patch:
        patch.setattr(LocalUpload, "publish", publish)
        repo.apply(proposal)
    assert dead <= set(stored(unlocked.storage, "packs"))
    site.all_restore(repo, tmp_path / "out")


@pytest.mark.parametrize("lost", ["gone", "cut"])
def test_what_was_moved_and_then_lost_lets_nothing_go(
    tmp_path: Path, large: pb.Repository, site: Site, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    proposal, storage = large.propose_prune(), large._unlocked.storage
    sparse = {ids.pack_name(pack) for pack in proposal.wish.sparse}  # type: ignore[attr-defined]
    before = set(stored(storage, "packs"))
    real = LocalUpload.publish

    def publish(self: LocalUpload, name: str) -> ObjectInfo:
        info = real(self, name)
        if name.endswith("/condemn"):
            for moved in set(stored(storage, "packs")) - before:
                path = Path(large.url) / moved
                path.unlink() if lost == "gone" else path.write_bytes(path.read_bytes()[:100_000])
        return info

    with monkeypatch.context() as patch:
        patch.setattr(LocalUpload, "publish", publish)
        large.apply(proposal)
    assert sparse <= set(stored(storage, "packs"))
    if lost == "cut":  # check names it
        storage.delete([moved for moved in stored(storage, "packs") if moved not in before])
    site.all_restore(large, tmp_path / "out")


@pytest.mark.parametrize("dies", [False, True])
def test_what_was_moved_is_read_again_only_by_another_who_finishes_it(
    tmp_path: Path, large: pb.Repository, site: Site, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    proposal, storage = large.propose_prune(), large._unlocked.storage
    before = set(stored(storage, "packs"))
    read: set[str] = set()
    for name in ("get", "get_range"):
        real = getattr(LocalStorage, name)

        def reads(
            self: LocalStorage, name: str, *rest: Any, real: Callable[..., bytes] = real, **named: Any
        ) -> bytes:
            read.add(name)
            return real(self, name, *rest, **named)

        monkeypatch.setattr(LocalStorage, name, reads)
    if dies:
        with monkeypatch.context() as patch:
            patch.setattr("pharmabackup.verbs.prune.finish", only_before(collection.finish))
            with pytest.raises(StorageFailed):
                large.apply(proposal)
    moved = set(stored(storage, "packs")) - before
    read.clear()
    large.apply(proposal)
    moved = moved or set(stored(storage, "packs")) - before
    assert moved
    assert (moved <= read) == dies
    site.all_restore(large, tmp_path / "out")


def test_an_object_that_cannot_be_deleted_leaves_it_unfinished(
    tmp_path: Path, repo: pb.Repository, site: Site, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_all_but(repo, 1, time)
    refused = StorageFailed("It is locked.", kind="storage-denied", location="here")
    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "delete", lambda self, names: dict.fromkeys(names, refused))
        with pytest.raises(StorageFailed, match=r"It is locked\."):
            prune(repo)
    assert "collections/1/done" not in stored(repo._unlocked.storage, "collections")
    site.all_restore(repo, tmp_path / "out")
    prune(repo)
    assert "collections/1/done" in stored(repo._unlocked.storage, "collections")
    site.all_restore(repo, tmp_path / "again")


def test_collections_come_one_after_the_other(
    tmp_path: Path, large: pb.Repository, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was begun after another had looked for unfinished ones is finished before the other goes on."""
    repo = large
    one = repo.propose_prune()
    assert one.wish.dead and one.wish.sparse  # type: ignore[attr-defined]
    two = replace_wish(one, dead=frozenset())
    one = replace_wish(one, sparse=frozenset())
    real, stopped = collection.finish, []

    def finish(*arguments: Any, **named: Any) -> set[bytes]:
        found = real(*arguments, **named)
        if not stopped:
            stopped.append(True)
            with monkeypatch.context() as patch:
                patch.setattr("pharmabackup.verbs.prune.finish", only_before(real))
                with pytest.raises(StorageFailed):
                    repo.apply(one)
            assert stored(repo._unlocked.storage, "collections") == ["collections/1/condemn"]
        return found

    monkeypatch.setattr("pharmabackup.verbs.prune.finish", finish)
    repo.apply(two)
    names = stored(repo._unlocked.storage, "collections")
    assert [name for name in names if name.endswith("done")] == [
        name.replace("condemn", "done") for name in names if name.endswith("condemn")
    ]
    site.all_restore(repo, tmp_path / "out")


def replace_wish(proposal: Proposal, **changes: Any) -> Proposal:
    return dataclasses.replace(proposal, wish=dataclasses.replace(proposal.wish, **changes))  # type: ignore[type-var]


def test_a_storage_that_keeps_nothing_is_said_to(repo: pb.Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    real = LocalUpload.publish

    def publish(self: LocalUpload, name: str) -> ObjectInfo:
        info = real(self, name)
        repo._unlocked.storage.delete([name])
        return info

    monkeypatch.setattr(LocalUpload, "publish", publish)
    with pytest.raises(StorageFailed) as caught:
        repo.propose_prune()
    assert caught.value.kind == "lost-write"


def test_small_packs_are_read_together() -> None:
    """In their order, so that neighbours stay neighbours; few enough for whoever looks on to be heard."""
    sizes = {number.to_bytes(32, "big"): 1 << number % 24 for number in range(500)}
    found = [*moving.groups(sizes, sizes)]
    assert [pack for group in found for pack in group] == [*sizes]
    assert max(map(len, found)) > 5
    assert all(
        len(group) == 1
        or (len(group) <= moving.PACKS_TOGETHER and sum(map(sizes.get, group)) <= moving.READ_TOGETHER)
        for group in found
    )
    tiny = dict.fromkeys(sizes, 1)
    assert max(map(len, moving.groups(tiny, tiny))) == moving.PACKS_TOGETHER


def test_a_damaged_pack_among_sound_ones_that_are_read_with_it(
    repo: pb.Repository, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pharmabackup.engine.emptying.MANY", 2)
    proposal = repo.propose_prune()
    joined = sorted(proposal.wish.sparse)  # type: ignore[attr-defined]
    assert len(joined) > 2
    name = ids.pack_name(joined[len(joined) // 2])
    path = Path(repo.url) / name
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    with pytest.raises(pb.Incomplete) as caught:
        repo.apply(proposal)
    assert [item.subject for item in caught.value.findings if item.code == "pack-damaged"] == [name]
    assert set(map(ids.pack_name, joined)) & set(stored(repo._unlocked.storage, "packs")) == {name}
