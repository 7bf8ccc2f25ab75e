"""What is there is sealed with new keys: nothing that the old ones open is left, and nothing is lost on the way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.clock import now_ns
from pharmabackup.crypto import hashing
from pharmabackup.crypto.sealing import SealingKey
from pharmabackup.engine import opening
from pharmabackup.engine.garbage import look_for_garbage
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.packs import read_directory
from pharmabackup.engine.resealing import Resealing
from pharmabackup.engine.segments import read_segment
from pharmabackup.format import wire
from pharmabackup.format.pack import Block, Directory
from pharmabackup.format.transaction import Intent
from pharmabackup.format.wire import Kind
from pharmabackup.storage.memory import MemoryStorage
from pharmabackup.verbs import reseal
from tests.verbs.faults import BusyStorage, Dead, DyingStorage, any_call
from tests.verbs.site import Site, Time, forget_all_but, open_at, prune, stored, twin

PASSPHRASE = pb.Passphrase("correct horse battery staple")
MakeRepo = Callable[[], pb.Repository]


def _opened_by(repo: pb.Repository) -> tuple[set[bytes], set[bytes]]:
    """Key ids of the public keys that open data, and of the catalogue keys that are used."""
    storage, readers, catalogues = repo._unlocked.storage, set[bytes](), set[bytes]()
    for info in storage.list("packs"):
        _, directory = read_directory(repo._unlocked, ids.hex_tail(info.name) or b"", info.size)
        for wrapped in directory.keys:
            readers.update(wrap.recipient for wrap in wrapped.wraps)
            catalogues.update(() if wrapped.wraps else (wrapped.key_id,))
        catalogues.add(storage.get_range(info.name, directory.region_size + 8, 32))  # of the names
    for info in storage.list("index"):
        catalogues.add(storage.get_range(info.name, 8, 32))
    return readers, catalogues


def _newest(repo: pb.Repository) -> tuple[set[bytes], set[bytes]]:
    generation = repo._unlocked.roster.generations[-1]
    return {hashing.key_id(generation.reader)}, {generation.catalogue}


@pytest.mark.parametrize("pack_target", [None, 1], ids=["as usual", "a block a pack"])
def test_nothing_that_the_old_keys_open_is_left(
    tmp_path: Path,
    make_repo: MakeRepo,
    site: Site,
    time: Time,
    monkeypatch: pytest.MonkeyPatch,
    pack_target: int | None,
) -> None:
    if pack_target:
        monkeypatch.setattr("pharmabackup.engine.packs.PACK_TARGET", pack_target)
    repo = make_repo()
    for _ in range(3):
        site.change()
        site.back_up(repo)
    assert not repo.propose_reseal().steps
    repo.rotate(reason="a laptop was lost")
    site.change()
    site.back_up(repo)
    assert _opened_by(repo) != _newest(repo)
    before = {snapshot.id for snapshot in repo.snapshots()}
    proposal = repo.propose_reseal()
    assert len(proposal.steps) == 1 and "newest keys" in str(proposal)
    report = repo.apply(proposal)
    assert report.bytes > 0 and report.findings == ()
    assert _opened_by(repo) == _newest(repo)
    assert {snapshot.id for snapshot in repo.snapshots()} == before
    site.all_restore(repo, tmp_path / "out")
    assert not repo.propose_reseal().steps
    site.change()
    assert repo.backup([pb.Files(site.root)]).datasets["documents"].added < 100_000  # what is there is found again


def test_batch_after_batch(tmp_path: Path, make_repo: MakeRepo, site: Site, time: Time) -> None:
    repo = make_repo()
    for _ in range(4):
        site.change()
        site.back_up(repo)
    repo.rotate(reason="a laptop was lost")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reseal, "BATCH_BYTES", 1)
        repo.apply(repo.propose_reseal())
    assert len([name for name in stored(repo._unlocked.storage, "collections") if name.endswith("done")]) == 4
    assert _opened_by(repo) == _newest(repo)
    site.all_restore(repo, tmp_path / "out")


def test_a_batch_that_died_is_finished_before_the_next(
    tmp_path: Path, make_repo: MakeRepo, site: Site, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = make_repo()
    for _ in range(3):
        site.change()
        site.back_up(repo)
    repo.rotate(reason="a laptop was lost")
    monkeypatch.setattr(reseal, "BATCH_BYTES", 1)
    real, calls = reseal.finish, list[int]()

    def finish(*args: Any, **named: Any) -> set[bytes]:
        calls.append(1)
        if len(calls) == 2:  # the first batch is condemned
            raise KeyboardInterrupt
        return real(*args, **named)

    monkeypatch.setattr(reseal, "finish", finish)
    with pytest.raises(KeyboardInterrupt):
        repo.apply(repo.propose_reseal())
    repo.apply(repo.propose_reseal())
    assert _opened_by(repo) == _newest(repo)
    site.all_restore(repo, tmp_path / "out")


def test_what_lies_under_anothers_id_is_not_sealed_anew(make_repo: MakeRepo, site: Site) -> None:
    """Who may write packs and read none could put it there; from now on the owner would have signed it."""
    repo = make_repo()
    unlocked = repo._unlocked
    blocks: list[tuple[Directory, Block, bytes]] = []
    for _ in range(2):
        site.change()
        site.back_up(repo)
    for info in unlocked.storage.list("packs"):
        _, directory = read_directory(unlocked, ids.hex_tail(info.name) or b"", info.size)
        for block in directory.blocks:
            if block.kind == Kind.DATA_BLOCK:
                sealed = unlocked.storage.get_range(info.name, block.offset, block.length)
                blocks.append((directory, block, sealed))
    (directory, block, sealed), (_, other, _) = blocks[:2]
    repo.rotate(reason="a laptop was lost")
    new, _ = Resealing(unlocked)(directory, block, memoryview(sealed))
    assert bytes(new) != sealed
    session, old = os.urandom(32), directory.keys[block.key]
    wrapped = unlocked.wrap(session)
    frame = unlocked.block_key(old).open(
        sealed, wire.block_context(unlocked.repository, Kind.DATA_BLOCK, old.key_id, block.id)
    )
    context = wire.block_context(unlocked.repository, Kind.DATA_BLOCK, wrapped.key_id, other.id)
    forged = SealingKey(session).seal(frame, context)
    with pytest.raises(pb.Damaged, match="names"):
        Resealing(unlocked)(replace(directory, keys=(wrapped,)), replace(other, key=0), memoryview(forged))


def test_what_is_in_use_is_told(tmp_path: Path, make_repo: MakeRepo, site: Site, time: Time) -> None:
    repo = make_repo()
    site.change()
    site.back_up(repo)
    unlocked = repo._unlocked
    repo.rotate(reason="a laptop was lost")
    proposal = repo.propose_reseal()
    packs = [ids.hex_tail(name) or b"" for name in stored(unlocked.storage, "packs")]
    transaction = ids.new_id()
    intent = Intent(transaction, 0, "hold", b"".join(packs), 0)
    unlocked.put(Kind.INTENT, ids.intent_name(transaction, 0), intent)
    with pytest.raises(pb.Incomplete, match="in use") as caught:
        repo.apply(proposal)
    assert [finding.code for finding in caught.value.result.findings] == ["packs-in-use"]
    again = repo.propose_reseal()
    assert not again.steps and [finding.code for finding in again.findings] == ["packs-in-use"]
    assert _opened_by(repo) != _newest(repo)


def test_a_damaged_pack_is_left_and_told(tmp_path: Path, make_repo: MakeRepo, site: Site, time: Time) -> None:
    repo = make_repo()
    for _ in range(2):
        site.change()
        site.back_up(repo)
    repo.rotate(reason="a laptop was lost")
    name = max(repo._unlocked.storage.list("packs"), key=lambda info: info.size).name
    path = tmp_path / "repository-0" / name
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(pb.Incomplete, match="1 damaged") as caught:
        repo.apply(repo.propose_reseal())
    assert caught.value.kind == "reseal"
    assert [finding.subject for finding in caught.value.result.findings] == [name]
    assert path.exists()
    assert len(stored(repo._unlocked.storage, "packs")) == 2 and caught.value.result.bytes > 0  # the other was


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("kind", [Kind.RECIPE_BLOCK, Kind.DATA_BLOCK], ids=["its list", "its content"])
def test_a_forgotten_snapshot_that_lacks_something_is_no_reason_to_stop(
    tmp_path: Path,
    large: pb.Repository,
    site: Site,
    time: Time,
    monkeypatch: pytest.MonkeyPatch,
    kind: Kind,
    indexed: bool,
) -> None:
    """Its time is over: nobody missed what was lost of it, and a prune would delete the rest."""
    repo, real = large, reseal.storage_now
    monkeypatch.setattr(reseal, "storage_now", lambda unlocked: real(unlocked) + time.ahead)
    looked = look_for_garbage(repo._unlocked, now_ns() + time.ahead, lambda: None)
    looked.index.close()
    table = looked.index.blocks
    of_kind = {table.packs[pack] for number, pack in table.placed() if table.kind[number] == kind}
    lost = next(pack for pack in sorted(looked.dead) if pack in of_kind)
    repo._unlocked.storage.delete([ids.pack_name(lost)])
    if not indexed:  # nothing says any more that there was such a pack
        storage = repo._unlocked.storage
        segments = {
            name: read_segment(repo._unlocked, ids.hex_tail(name) or b"") for name in stored(storage, "index")
        }
        storage.delete([name for name, one in segments.items() if lost in {item.pack for item in one.record.packs}])
    repo.rotate(reason="a laptop was lost")
    assert {finding.code for finding in repo.check().findings} <= {"index-stale"}
    proposal = repo.propose_reseal()
    told = [finding.subject for finding in proposal.findings if finding.code == "forgotten-lost"]
    assert told and set(told) <= {snapshot.id for snapshot in repo.snapshots() if snapshot.forgotten}
    repo.apply(proposal)
    assert _opened_by(repo) == _newest(repo)
    assert set(told) <= {who.hex() for who in load_history(repo._unlocked).deleted}
    site.all_restore(repo, tmp_path / "out")


@pytest.mark.parametrize("how", ["a second time", "after another", "when all of it is gone"])
def test_a_proposal_of_which_nothing_is_true_any_more_is_refused(
    tmp_path: Path, repo: pb.Repository, site: Site, time: Time, how: str
) -> None:
    repo.rotate(reason="a laptop was lost")
    proposal = repo.propose_reseal()
    assert proposal.steps
    if how == "a second time":
        repo.apply(proposal)
    elif how == "after another":
        repo.apply(repo.propose_reseal())
    else:
        shutil.rmtree(site.root)
        site.root.mkdir()
        (site.root / "new").write_bytes(b"new")
        site.back_up(repo)
        forget_all_but(repo, 1, time)
        prune(repo)
    packs = stored(repo._unlocked.storage, "packs")
    with pytest.raises(pb.Conflict, match="no longer true") as caught:
        repo.apply(proposal)
    assert caught.value.kind == "proposal-stale"
    assert stored(repo._unlocked.storage, "packs") == packs
    site.all_restore(repo, tmp_path / "out")


def test_of_a_proposal_of_which_some_is_true_that_is_done(
    tmp_path: Path, repo: pb.Repository, site: Site, time: Time
) -> None:
    repo.rotate(reason="a laptop was lost")
    proposal = repo.propose_reseal()
    forget_all_but(repo, 1, time)
    prune(repo)
    repo.apply(proposal)
    site.all_restore(repo, tmp_path / "out")


def test_who_may(make_repo: MakeRepo, site: Site) -> None:
    repo = make_repo()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(repo._unlocked.record.capabilities, "exclusive-create", False)
        with pytest.raises(pb.Unsupported):
            repo.propose_reseal()


@pytest.fixture
def memory(
    monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, site: Site, time: Time, tmp_path: Path
) -> Iterator[MemoryStorage]:
    storage = MemoryStorage("base")
    monkeypatch.setattr(opening, "connect", lambda *_, **__: storage)
    with pb.Repository.create("memory://x", PASSPHRASE) as repo:
        for _ in range(2):
            site.change(size=3000)
            site.back_up(repo)
        repo.rotate(reason="a laptop was lost")
    yield storage


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_it_dies_at_any_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage, site: Site, after: bool
) -> None:
    for dies_at in any_call():
        inner = twin(memory)
        storage, state = DyingStorage(inner, deletes=True), tmp_path / f"state-{dies_at}"
        with open_at(monkeypatch, storage, state) as repo:
            proposal = repo.propose_reseal()
            storage.arm(dies_at, after=after)
            try:
                repo.apply(proposal)
                died = False
            except Dead:
                died = True
        with open_at(monkeypatch, inner, state) as repo:
            site.all_restore(repo, tmp_path / f"out-{dies_at}")
            repo.apply(repo.propose_reseal())
            repo.apply(repo.propose_prune())  # finishes what was begun
            assert not repo.propose_reseal().steps
            site.all_restore(repo, tmp_path / f"again-{dies_at}")
        if not died:
            return


def test_a_backup_runs_between_any_two_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: MemoryStorage, site: Site
) -> None:
    site.change(size=3000)
    for at in any_call():
        inner = twin(memory)

        def meanwhile(inner: MemoryStorage = inner, at: int = at) -> None:
            with open_at(monkeypatch, inner, tmp_path / f"writer-{at}") as writer:
                site.back_up(writer)

        storage = BusyStorage(inner, meanwhile)
        with open_at(monkeypatch, storage, tmp_path / f"owner-{at}") as repo:
            proposal = repo.propose_reseal()
            storage.interrupt(at)
            repo.apply(proposal)
        with open_at(monkeypatch, inner, tmp_path / f"owner-{at}") as repo:
            site.all_restore(repo, tmp_path / f"out-{at}")
        if not storage.interrupted:
            return
