"""Pruning: all that nothing needs goes, all that something needs stays, whoever dies or works meanwhile."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup import clock, ids
from pharmabackup.engine import collection, garbage, hold, opening
from pharmabackup.engine.enrolment import change_roster
from pharmabackup.engine.index import read_segment, write_segment
from pharmabackup.engine.packs import read_directory
from pharmabackup.engine.transaction import Transaction
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import StorageFailed
from pharmabackup.format.index import PackEntry
from pharmabackup.format.pack import Directory
from pharmabackup.format.transaction import Condemn, Execute, Intent
from pharmabackup.format.wire import Kind, encode, split
from pharmabackup.results import Proposal
from pharmabackup.storage.base import ObjectInfo, Storage
from pharmabackup.storage.local import LocalStorage
from pharmabackup.storage.local_uploads import LocalUpload
from pharmabackup.storage.memory import MemoryStorage
from pharmabackup.verbs import check
from pharmabackup.verbs.marks import say
from tests.verbs.faults import BusyStorage, Dead, DyingStorage
from tests.verbs.site import DAY_NS, Site, Time, forget_all_but, prune, stored

PASSPHRASE = pb.Passphrase("correct horse battery staple")
PATIENCE_S = 30
MakeRepo = Callable[[], pb.Repository]


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "documents")


@pytest.fixture
def repo(make_repo: MakeRepo, site: Site, time: Time) -> pb.Repository:
    made = make_repo()
    for _ in range(8):
        site.change()
        site.back_up(made)
    return made


@pytest.fixture
def large(make_repo: MakeRepo, site: Site, time: Time) -> pb.Repository:
    """Packs of which the newest snapshot needs nothing, some blocks, or all."""
    made = make_repo()
    for _ in range(5):
        site.change(size=1_500_000)
        site.back_up(made)
    forget_all_but(made, 1, time)
    return made


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
        patch.setattr(Transaction, "pin", _stops)
        with pytest.raises(StorageFailed):
            site.back_up(repo)
    packs = stored(repo._unlocked.storage, "packs")
    prune(repo)
    assert stored(repo._unlocked.storage, "packs") == packs
    time.ahead += 2 * DAY_NS
    prune(repo)
    assert len(stored(repo._unlocked.storage, "packs")) == len(packs) - 1


def _stops(*_: object) -> tuple[ObjectInfo, bytes]:
    raise StorageFailed("The cable is out.", location="here")


def test_an_undecided_transaction_pins_until_it_is_taken_for_dead(
    tmp_path: Path, repo: pb.Repository, site: Site, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.change()
    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "commit", _stops)
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
    report = repo.apply(proposal)
    assert [finding.code for finding in report.findings] == ["pack-damaged"]
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


@pytest.mark.parametrize("foreign", [False, True], ids=["of its own domain", "of another"])
def test_what_others_say_of_a_pack_takes_no_ones_place(
    tmp_path: Path, repo: pb.Repository, site: Site, time: Time, monkeypatch: pytest.MonkeyPatch, foreign: bool
) -> None:
    """A device's word that counts for nothing does not count either once a collector has published it."""
    unlocked, real = repo._unlocked, read_segment
    named = [
        entry
        for name in stored(unlocked.storage, "index")
        for entry in read_segment(unlocked, ids.hex_tail(name) or b"").record.packs
    ]
    planted = [[replace(entry, size=entry.size + 1 + number) for entry in named] for number in range(9)]
    told = {write_segment(unlocked, entries) for entries in planted}

    def read(unlocked: Unlocked, digest: bytes) -> Any:
        found = real(unlocked, digest)
        slot = replace(found.slot, role="device", domain=ids.new_id())
        return dataclasses.replace(found, slot=slot) if foreign and digest in told else found

    for module in ("collection", "index"):
        monkeypatch.setattr(f"pharmabackup.engine.{module}.read_segment", read)
    forget_all_but(repo, 2, time)
    prune(repo)
    left = [real(unlocked, ids.hex_tail(name) or b"") for name in stored(unlocked.storage, "index")]
    entries = {entry for segment in left for entry in segment.record.packs}
    kept = {entry for entry in named if ids.pack_name(entry.pack) in set(stored(unlocked.storage, "packs"))}
    assert kept and kept <= entries
    lies = {entry for entries in planted for entry in entries}
    assert bool(lies & entries) != foreign
    assert repo.check().state == "ok"
    snapshot = repo.snapshot("documents")
    repo.restore(tmp_path / "out", snapshots=[snapshot])


def test_a_lie_about_what_a_pack_holds_crashes_nothing(repo: pb.Repository, time: Time) -> None:
    """A device can sign that there is nothing in it."""
    unlocked = repo._unlocked
    signed = unlocked.sign(Kind.DIRECTORY, "packs/", Directory(unlocked.domain, bytes(32), 0, 0, (), ()))
    packs = [(ids.hex_tail(info.name) or b"", info.size) for info in unlocked.storage.list("packs")]
    write_segment(unlocked, [PackEntry(pack, size, encode(signed)) for pack, size in packs])
    forget_all_but(repo, 2, time)
    prune(repo)
    assert repo.check(read_data=1.0).state == "ok"


def test_packs_and_segments_stay_within_what_readers_take(
    repo: pb.Repository, site: Site, time: Time, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of moved blocks each may be tiny and have a key of its own."""
    for name, most in (("BLOCKS_MAX", 2), ("KEYS_MAX", 1)):
        monkeypatch.setattr(f"pharmabackup.engine.packs.{name}", most)
    monkeypatch.setattr(collection, "SEGMENT_BYTES", 1)
    monkeypatch.setattr(garbage, "UNUSED_SHARE", 0.0)
    forget_all_but(repo, 3, time)
    before = set(stored(repo._unlocked.storage, "packs"))
    prune(repo)
    new = [name for name in stored(repo._unlocked.storage, "packs") if name not in before]
    assert len(new) >= 2
    for name in new:
        size = repo._unlocked.storage.info(name).size
        directory = read_directory(repo._unlocked, ids.hex_tail(name) or b"", size)[1]
        assert len(directory.keys) == 1 and len(directory.blocks) <= 2
    assert len(stored(repo._unlocked.storage, "index")) >= len(new)
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


@pytest.mark.parametrize("indexed", [True, False], ids=["indexed", "its segment is lost"])
def test_a_planted_pack_is_no_reason_to_let_a_genuine_one_go(
    tmp_path: Path, repo: pb.Repository, site: Site, time: Time, indexed: bool
) -> None:
    """Anybody who may write can put a signed directory behind blocks that are not those."""
    storage = repo._unlocked.storage
    genuine = max(storage.list("packs"), key=lambda info: info.modified)
    if not indexed:
        newest = max(storage.list("index"), key=lambda info: info.modified)
        assert not any(storage.delete([newest.name]).values())
    data = bytearray(storage.get(genuine.name, limit=1 << 30))
    for number in range(256):
        data[number] ^= 1
        planted = ids.pack_name(hashlib.sha256(data).digest())
        storage.put_new(planted, bytes(data))
    time.ahead += 3 * DAY_NS
    prune(repo)
    assert genuine.name in stored(storage, "packs")
    snapshot = repo.snapshot("documents")
    repo.restore(tmp_path / "out", snapshots=[snapshot])
    found = {path.name: path.read_bytes() for path in (tmp_path / "out" / "documents").iterdir()}
    assert found == site.states[snapshot.id]


@pytest.mark.parametrize("older", [True, False], ids=["older", "younger"])
def test_a_segment_that_names_a_planted_pack_lets_no_genuine_one_go(
    tmp_path: Path, repo: pb.Repository, site: Site, time: Time, older: bool
) -> None:
    """A device that was stolen can sign that others' blocks lie in a pack of its own, and cannot delete anything."""
    unlocked, storage = repo._unlocked, repo._unlocked.storage
    newest = max(storage.list("index"), key=lambda info: info.modified)
    genuine = read_segment(unlocked, ids.hex_tail(newest.name) or b"").record.packs
    planted = []
    for entry in genuine:
        for _ in range(64):
            data = os.urandom(entry.size)
            digest = hashlib.sha256(data).digest()
            storage.put_new(ids.pack_name(digest), data)
            planted.append(replace(entry, pack=digest))
            if older:
                os.utime(Path(storage.local_root() or "") / ids.pack_name(digest), (1, 1))
    write_segment(unlocked, planted)
    time.ahead += 3 * DAY_NS
    prune(repo)
    assert {ids.pack_name(entry.pack) for entry in genuine} <= set(stored(storage, "packs"))
    snapshot = repo.snapshot("documents")
    repo.restore(tmp_path / "out", snapshots=[snapshot])
    found = {path.name: path.read_bytes() for path in (tmp_path / "out" / "documents").iterdir()}
    assert found == site.states[snapshot.id]


def _double(repo: pb.Repository) -> None:
    """All blocks lie in a second pack, too."""
    found = garbage.look_for_garbage(repo._unlocked, clock.now_ns(), lambda: None)
    table = found.index.blocks
    found.sparse = {
        pack: [number for number, place in enumerate(table.pack) if table.packs[place] == pack]
        for pack in found.sizes
    }
    collection.move(repo._unlocked, found, list(found.sizes), lambda: None)


def test_of_two_packs_the_whole_one_stays(tmp_path: Path, make_repo: MakeRepo, site: Site, time: Time) -> None:
    repo = make_repo()
    site.change()
    site.back_up(repo)
    storage = repo._unlocked.storage
    (first,) = stored(storage, "packs")
    _double(repo)
    path = Path(storage.local_root() or "") / first
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    os.utime(path, (1, 1))
    time.ahead += 3 * DAY_NS
    prune(repo)
    assert len(stored(storage, "packs")) == 2
    repo.restore(tmp_path / "out")
    found = {path.name: path.read_bytes() for path in (tmp_path / "out" / "documents").iterdir()}
    assert found == site.states[repo.snapshot().id]


def test_small_packs_are_joined_when_there_are_many_and_then_left_alone(
    tmp_path: Path, make_repo: MakeRepo, site: Site, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = make_repo()
    storage = repo._unlocked.storage
    monkeypatch.setattr(garbage, "MANY", 10)
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
    _double(repo)
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

    def finish(*arguments: Any) -> set[bytes]:
        found = real(*arguments)
        if not stopped:
            stopped.append(True)
            with monkeypatch.context() as patch:
                patch.setattr("pharmabackup.verbs.prune.finish", _only_before(real))
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


def _only_before(real: Callable[..., set[bytes]]) -> Callable[..., set[bytes]]:
    """Dies where it would carry out what it has condemned."""
    calls: list[bool] = []

    def finish(*arguments: Any) -> set[bytes]:
        if calls:
            raise StorageFailed("The cable is out.", location="here")
        calls.append(True)
        return real(*arguments)

    return finish


def replace_wish(proposal: Proposal, **changes: Any) -> Proposal:
    return dataclasses.replace(proposal, wish=dataclasses.replace(proposal.wish, **changes))  # type: ignore[type-var]


# ------------------------------------------------------------ others at work, and deaths


@pytest.fixture
def memory(
    monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, site: Site, time: Time, tmp_path: Path
) -> Iterator[MemoryStorage]:
    """Four snapshots, of which the newest is kept, in memory; whatever is not all alive is moved."""
    monkeypatch.setattr(garbage, "UNUSED_SHARE", 0.0)
    storage = MemoryStorage("base")
    monkeypatch.setattr(opening, "connect", lambda *_, **__: storage)
    pb.Repository.create("memory://x", PASSPHRASE).close()
    with pb.Repository.open("memory://x", PASSPHRASE, state_dir=tmp_path / "first") as repo:
        for _ in range(4):
            site.change(size=3000)
            site.back_up(repo)
        forget_all_but(repo, 1, time)
    yield storage


def _twin(storage: MemoryStorage) -> MemoryStorage:
    twin = MemoryStorage("twin")
    for info in storage.list(""):
        twin.put_new(info.name, storage.get(info.name, limit=1 << 30))
    return twin


def _open(monkeypatch: pytest.MonkeyPatch, storage: Storage, state: Path) -> pb.Repository:
    monkeypatch.setattr(opening, "connect", lambda *_, **__: storage)
    return pb.Repository.open("memory://x", PASSPHRASE, state_dir=state)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_it_dies_at_any_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage, site: Site, after: bool
) -> None:
    freed: set[int] = set()
    for dies_at in range(1000):
        inner = _twin(memory)
        storage = DyingStorage(inner, deletes=True)
        state = tmp_path / f"state-{dies_at}"
        with _open(monkeypatch, storage, state) as repo:
            proposal = repo.propose_prune()
            storage.arm(dies_at, after=after)
            try:
                repo.apply(proposal)
                died = False
            except Dead:
                died = True
        with _open(monkeypatch, inner, state) as repo:
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
    for at in range(1000):
        inner = _twin(memory)

        def meanwhile(inner: MemoryStorage = inner, at: int = at) -> None:
            with _open(monkeypatch, inner, tmp_path / f"writer-{at}") as writer:
                site.back_up(writer)

        storage = BusyStorage(inner, meanwhile)
        with _open(monkeypatch, storage, tmp_path / f"collector-{at}") as repo:
            proposal = repo.propose_prune()
            storage.interrupt(at)
            try:
                repo.apply(proposal)
            except pb.Conflict as conflict:
                assert conflict.kind == "proposal-stale"
        with _open(monkeypatch, inner, tmp_path / f"collector-{at}") as repo:
            site.all_restore(repo, tmp_path / f"out-{at}")
        if not storage.interrupted:
            return
    pytest.fail("it never ends")


def test_a_collector_runs_between_any_two_calls_of_a_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage, site: Site
) -> None:
    site.change(size=3000)
    site.bring_back()
    for at in range(1000):
        inner = _twin(memory)

        def meanwhile(inner: MemoryStorage = inner, at: int = at) -> None:
            with _open(monkeypatch, inner, tmp_path / f"collector-{at}") as collector:
                prune(collector)

        storage = BusyStorage(inner, meanwhile)
        with _open(monkeypatch, storage, tmp_path / f"writer-{at}") as repo:
            storage.interrupt(at)
            site.back_up(repo)
        with _open(monkeypatch, inner, tmp_path / f"writer-{at}") as repo:
            assert len([snapshot for snapshot in repo.snapshots() if not snapshot.forgotten]) == 2
            site.all_restore(repo, tmp_path / f"out-{at}")
        if not storage.interrupted:
            return
    pytest.fail("it never ends")


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
    for at in range(1000):
        inner = _twin(memory)
        waiting = _Waiting(inner)
        raised: list[pb.Error] = []

        def write(waiting: _Waiting = waiting, at: int = at, raised: list[pb.Error] = raised) -> None:
            with _open(monkeypatch, waiting, tmp_path / f"writer-{at}") as writer:
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
        with _open(monkeypatch, storage, tmp_path / f"collector-{at}") as repo:
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
        with _open(monkeypatch, inner, tmp_path / f"collector-{at}") as repo:
            site.all_restore(repo, tmp_path / f"out-{at}")
        if not storage.interrupted:
            return
    pytest.fail("it never ends")


def test_a_collector_runs_between_any_two_calls_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage, site: Site
) -> None:
    for at in range(1000):
        inner = _twin(memory)

        def meanwhile(inner: MemoryStorage = inner, at: int = at) -> None:
            with _open(monkeypatch, inner, tmp_path / f"other-{at}") as other:
                prune(other)

        storage = BusyStorage(inner, meanwhile)
        with _open(monkeypatch, storage, tmp_path / f"one-{at}") as repo:
            proposal = repo.propose_prune()
            storage.interrupt(at)
            repo.apply(proposal)
        with _open(monkeypatch, inner, tmp_path / f"one-{at}") as repo:
            site.all_restore(repo, tmp_path / f"out-{at}")
            prune(repo)  # each may have moved the same blocks
            site.all_restore(repo, tmp_path / f"again-{at}")
            assert len(stored(inner, "packs")) <= 2
        if not storage.interrupted:
            return
    pytest.fail("it never ends")


def test_a_proposal_is_made_though_a_collection_deletes_what_it_reads(
    repo: pb.Repository, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.change()
    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "commit", _stops)
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


def test_a_restore_goes_on_whenever_a_collector_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage, site: Site
) -> None:
    for at in range(1000):
        inner = _twin(memory)

        def meanwhile(inner: MemoryStorage = inner, at: int = at) -> None:
            with _open(monkeypatch, inner, tmp_path / f"collector-{at}") as collector:
                prune(collector)

        storage = BusyStorage(inner, meanwhile)
        with _open(monkeypatch, storage, tmp_path / f"reader-{at}") as repo:
            newest = repo.snapshot("documents")
            storage.interrupt(at)
            repo.restore(tmp_path / f"out-{at}", snapshots=[newest])
        found = {path.name: path.read_bytes() for path in (tmp_path / f"out-{at}" / "documents").iterdir()}
        assert found == site.states[newest.id]
        if not storage.interrupted:
            return
    pytest.fail("it never ends")


def test_a_long_backup_pins_what_it_has_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage, site: Site
) -> None:
    """Nobody has to read a source again because a collection came before its backup had ended."""
    monkeypatch.setattr("pharmabackup.engine.packs.PACK_TARGET", 1 << 20)
    monkeypatch.setattr("pharmabackup.engine.transaction.SEGMENT_PACKS", 2)
    for number in range(24):
        (site.root / f"scan-{number}").write_bytes(os.urandom(1_500_000))
    with _open(monkeypatch, memory, tmp_path / "writer") as repo:
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
    monkeypatch.setattr(garbage, "UNUSED_SHARE", 100.0)
    assert not large.propose_prune().wish.sparse  # type: ignore[attr-defined]


@pytest.mark.parametrize("read_data", [0.0, 1.0])
def test_a_check_tells_nothing_as_lost_whenever_a_collector_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage, site: Site, read_data: float
) -> None:
    for at in range(1000):
        inner = _twin(memory)

        def meanwhile(inner: MemoryStorage = inner, at: int = at) -> None:
            with _open(monkeypatch, inner, tmp_path / f"collector-{at}") as collector:
                prune(collector)

        storage = BusyStorage(inner, meanwhile)
        with _open(monkeypatch, storage, tmp_path / f"reader-{at}") as repo:
            storage.interrupt(at)
            report = repo.check(read_data=read_data)
        assert report.state == "ok", (at, report.findings)
        if not storage.interrupted:
            return
    pytest.fail("it never ends")


def test_what_is_lost_is_told_though_a_collection_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage
) -> None:
    with _open(monkeypatch, memory, tmp_path / "state") as repo:
        with monkeypatch.context() as patch:
            patch.setattr("pharmabackup.verbs.prune.finish", _only_before(collection.finish))
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
    with _open(monkeypatch, memory, tmp_path / "state") as repo:
        assert repo.check().state == "ok"
        assert not any(memory.delete(stored(memory, "packs")).values())
        found = [(item.code, item.severity) for item in repo.check(read_data=1.0).findings]
        assert found == [("collection-under-way", "warning")]


# ------------------------------------------------------------ restores that hold what they need


def _come_back(repo: pb.Repository, site: Site, snapshot: pb.Snapshot, out: Path, **options: Any) -> None:
    repo.restore(out, snapshots=[snapshot], **options)
    assert {path.name: path.read_bytes() for path in (out / "documents").iterdir()} == site.states[snapshot.id]


def test_a_restore_holds_what_it_needs_though_it_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage, site: Site, time: Time
) -> None:
    monkeypatch.setattr(garbage, "ABANDONED_NS", 1 << 62)  # the clock is far ahead here
    with _open(monkeypatch, memory, tmp_path / "reader") as repo:
        first, freed = repo.snapshots()[-1], list[int]()
        assert first.forgotten

        def interrupt(event: pb.Event) -> None:
            if event.kind == "dataset":
                with _open(monkeypatch, memory, tmp_path / "collector") as collector:
                    freed.append(prune(collector).bytes)

        before = stored(memory, "")
        _come_back(repo, site, first, tmp_path / "out", progress=interrupt)
        with _open(monkeypatch, memory, tmp_path / "collector") as collector:
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
        inner = _twin(memory)
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
                with _open(monkeypatch, inner, tmp_path / f"reader-{at}") as reader:
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
        with _open(monkeypatch, storage, tmp_path / f"collector-{at}") as repo:
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
