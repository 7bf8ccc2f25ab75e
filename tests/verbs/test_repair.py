"""Repair: each kind of damage, mended from what is still whole here, from a replica, or from the source."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup.format.wire import Kind
from tests.verbs.ailing import PASSPHRASE, Ward

OUTSIDE = ["names", "filler", "directory", "trailer"]
BLOCKS = ["data block", "manifest block", "recipe block"]


def _serious(proposal: object) -> list[str]:
    return [finding.code for finding in proposal.findings if finding.severity != "info"]  # type: ignore[attr-defined]


def test_nothing_to_do(ward: Ward) -> None:
    before = ward.names("")
    proposal = ward.mend()
    assert (proposal.steps, proposal.findings, proposal.snapshots, proposal.bytes_freed) == ((), (), (), 0)
    assert str(proposal) == "repair: nothing to do"
    assert ward.names("") == before


def test_a_proposal_changes_nothing(ward: Ward, replica: pb.Repository) -> None:
    name = ward.pack_of(Kind.DATA_BLOCK)
    ward.flip(name, ward.regions(name)["data block"])
    ward.lose(ward.names("index")[0])
    before = ward.names("")
    proposal = ward.repo.propose_repair(replicas=[replica], sources=ward.sources())
    assert proposal.steps
    assert ward.names("") == before
    assert proposal.to_dict()["steps"] == list(proposal.steps)


# ------------------------------------------------------------ packs


@pytest.mark.parametrize("region", OUTSIDE)
def test_what_is_not_a_block_is_mended_from_the_pack_itself(ward: Ward, region: str) -> None:
    name = ward.pack_of(Kind.DATA_BLOCK)
    size = (ward.path / name).stat().st_size
    ward.flip(name, ward.regions(name)[region])
    assert "pack-damaged" in ward.codes()
    proposal = ward.mend()
    assert not proposal.findings and len(proposal.steps) == 2 and proposal.bytes_freed == size
    assert name not in ward.names("packs")
    ward.all_is_well()
    assert not ward.repo.propose_repair().steps


@pytest.mark.parametrize("region", BLOCKS)
def test_a_damaged_block_comes_from_a_replica(ward: Ward, replica: pb.Repository, region: str) -> None:
    name = ward.pack_of(Kind.DATA_BLOCK)
    ward.flip(name, ward.regions(name)[region])
    hurt = set(ward.states) - ward.whole()
    proposal = ward.mend(replicas=[replica])
    assert not _serious(proposal)
    assert {snapshot.id for snapshot in proposal.snapshots} == hurt != set()
    assert any(f"1 block is taken from {replica.url}" in step for step in proposal.steps)
    assert name not in ward.names("packs")
    ward.all_is_well()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_cut_pack(ward: Ward, replica: pb.Repository, share: float) -> None:
    name = ward.pack_of(Kind.DATA_BLOCK)
    ward.cut(name, int(share * (ward.path / name).stat().st_size))
    proposal = ward.mend(replicas=[replica])
    moved = [step for step in proposal.steps if "moved out of damaged packs" in step]
    assert bool(moved) == (share > 0)
    assert not _serious(proposal)
    ward.all_is_well()


def test_a_missing_pack_comes_from_a_replica(ward: Ward, replica: pb.Repository) -> None:
    name = ward.pack_of(Kind.DATA_BLOCK)
    ward.lose(name)
    ward.mend(replicas=[replica])
    assert name not in ward.names("packs")  # a name that is gone does not come back
    ward.all_is_well()


def test_all_packs_come_from_a_replica(ward: Ward, replica: pb.Repository) -> None:
    ward.lose(*ward.names("packs"))
    proposal = ward.mend(replicas=[replica])
    assert len(proposal.snapshots) == len(ward.states)
    ward.all_is_well()


def test_a_replica_that_is_damaged_elsewhere(ward: Ward, replica: pb.Repository, tmp_path: Path) -> None:
    """Each has what the other lost; the replica's own index is damaged too."""
    mine, other = ward.pack_of(Kind.DATA_BLOCK), ward.names("packs")[0]
    if mine == other:
        other = ward.names("packs")[1]
    path = tmp_path / "ward" / "replica"
    (path / other).unlink()
    segment = path / ward.names("index")[0]
    segment.write_bytes(segment.read_bytes()[:-1])
    ward.lose(mine)
    assert not _serious(ward.mend(replicas=[replica]))
    ward.all_is_well()


def test_the_first_replica_that_has_it_whole(ward: Ward, replica: pb.Repository, tmp_path: Path) -> None:
    name = ward.pack_of(Kind.DATA_BLOCK)
    shutil.copytree(ward.path, tmp_path / "second")
    (tmp_path / "ward" / "replica" / name).write_bytes((ward.path / name).read_bytes()[:100])
    ward.lose(name)
    with pb.Repository.open(tmp_path / "second", PASSPHRASE, state_dir=tmp_path / "ward" / "state") as second:
        proposal = ward.mend(replicas=[replica, second])
        assert any(f"taken from {second.url}" in step for step in proposal.steps)
    ward.all_is_well()


def test_a_replica_of_another_repository(ward: Ward, tmp_path: Path) -> None:
    with pb.Repository.create(tmp_path / "other", PASSPHRASE) as other, pytest.raises(pb.InvalidInput):
        ward.repo.propose_repair(replicas=[other])


# ------------------------------------------------------------ the index


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "lost"])
@pytest.mark.parametrize("all_of_them", [False, True], ids=["one", "all"])
def test_the_index_is_rebuilt_from_the_packs(ward: Ward, how: str, all_of_them: bool) -> None:
    names = ward.names("index") if all_of_them else ward.names("index")[:1]
    for name in names:
        if how == "flipped":
            ward.flip(name, 100)
        elif how == "lost":
            ward.lose(name)
        else:
            ward.cut(name, 0 if how == "empty" else 200)
    ward.reopen()
    assert ward.whole() == set(ward.states)  # readers go on without
    proposal = ward.mend()
    assert not proposal.findings
    assert not set(names) & set(ward.names("index"))
    ward.all_is_well()


def test_index_and_pack_damaged_at_once(ward: Ward, replica: pb.Repository) -> None:
    """A pack of which nobody here knows what it held any more."""
    name = ward.pack_of(Kind.DATA_BLOCK)
    ward.cut(name, 1_000_000)
    for segment in ward.names("index"):
        ward.flip(segment, 70)
    ward.reopen()
    assert not _serious(ward.mend(replicas=[replica]))
    ward.all_is_well()


def test_a_backup_beside_a_damaged_segment(ward: Ward) -> None:
    ward.flip(ward.names("index")[0], 100)
    ward.reopen()
    report = ward.repo.backup(ward.sources())
    assert {finding.code for finding in report.findings} - {"same-device"} == {"index-damaged"}
    assert sum(result.added for result in report.datasets.values()) < 30_000  # everything was found again


# ------------------------------------------------------------ sources


def test_a_block_is_made_anew_from_its_source(ward: Ward) -> None:
    """Of the database and of the folder; this machine's caches are gone."""
    first = [ward.repo.snapshots("documents")[-1], ward.repo.snapshots("pmr")[-1]]
    lost = [ward.block_of(first[0], "large"), ward.block_of(first[1], "pmr.db")]
    for name, at in lost:
        ward.flip(name, at)
    ward.reopen()
    hurt = set(ward.states) - ward.whole()
    assert hurt
    proposal = ward.mend(sources=[pb.SQLite(ward.root / "first.db"), pb.Files(ward.documents)])
    assert any("made anew from the sources" in step for step in proposal.steps)
    assert {snapshot.id for snapshot in proposal.snapshots} == hurt
    assert not {name for name, _ in lost} & set(ward.names("packs"))
    ward.all_is_well()


def test_a_missing_pack_is_made_anew_where_this_machine_remembers_it(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its names are lost with it; a machine that looked chunks up knows them."""
    ward.reopen()
    monkeypatch.setattr("pharmabackup.engine.index.CACHE_AFTER_ROWS", 1)
    ward.back_up()
    name = ward.pack_of(Kind.DATA_BLOCK, part="large")
    ward.lose(name)
    sources = [pb.SQLite(ward.root / "first.db"), pb.Files(ward.documents)]
    proposal = ward.repo.propose_repair(sources=sources)
    assert any("made anew" in step for step in proposal.steps)
    (cache,) = (ward.root / "state").rglob("index/cache")
    cache.rename(cache.with_name("away"))
    assert not any("made anew" in step for step in ward.repo.propose_repair(sources=sources).steps)
    cache.with_name("away").rename(cache)
    ward.repo.apply(proposal)
    assert not ward.repo.propose_repair(sources=sources).steps


def test_a_source_that_has_only_a_part(ward: Ward) -> None:
    """What changed since is lost, and nothing that comes later relies on it."""
    name = ward.pack_of(Kind.DATA_BLOCK, part="database")
    ward.flip(name, ward.regions(name)["data block"])
    with closing(sqlite3.connect(ward.database)) as db, db:
        db.execute("UPDATE patient SET name = 'gone' WHERE id = 1500")
    hurt = set(ward.states) - ward.whole()
    proposal = ward.mend(sources=ward.sources())
    assert {finding.subject for finding in proposal.findings if finding.code == "snapshot-damaged"} == hurt
    assert {finding.subject for finding in proposal.findings if finding.code == "file-lost"} == {"pmr.db"}
    assert name in ward.names("packs")
    assert not ward.repo.propose_repair(sources=ward.sources()).steps
    ward.back_up()
    assert set(ward.states) - ward.whole() == hurt
    ward.reopen()
    ward.back_up()
    assert set(ward.states) - ward.whole() == hurt


# ------------------------------------------------------------ what is lost


def test_a_backup_does_not_rely_on_what_is_lost(ward: Ward) -> None:
    """Nor does one on a machine that remembers how it was."""
    name = ward.pack_of(Kind.DATA_BLOCK, part="large")
    ward.flip(name, ward.regions(name)["data block"])
    hurt = set(ward.states) - ward.whole()
    proposal = ward.mend()
    assert any("no backup relies on it" in step for step in proposal.steps)
    assert name in ward.names("packs")
    before = set(ward.states)
    ward.back_up()
    ward.reopen()
    ward.back_up()
    assert set(ward.states) - ward.whole() <= hurt <= before


def test_exactly_which_bytes_are_lost(ward: Ward) -> None:
    """What the proposal says is what a restore finds, and what is not lost is as it was."""
    name = ward.pack_of(Kind.DATA_BLOCK, part="large")
    (ward.documents / "hard").hardlink_to(ward.documents / "large")
    ward.back_up(pb.Files(ward.documents))
    newest = ward.repo.snapshot("documents")
    ward.flip(*ward.block_of(newest, "large"))
    told = {
        finding.subject: finding.message
        for finding in ward.repo.propose_repair().findings
        if finding.code == "file-lost" and newest.id[:8] in finding.message
    }
    assert {"large", "hard"} <= set(told) and "shares with another name" in told["large"] + told["hard"]
    out = ward.root / "out"
    with pytest.raises(pb.Incomplete) as caught:
        ward.repo.restore(out, snapshots=[newest])
    found = {finding.subject: finding.message for finding in caught.value.findings if finding.code == "file-salvaged"}
    assert "hard" in found and re.findall(RANGE, found["hard"]) == re.findall(RANGE, told["hard"]) != []
    _is_salvaged(out / "documents" / "hard.salvaged", ward.states[newest.id]["hard"], told["hard"])
    assert name in ward.names("packs")


RANGE = re.compile(r"([\d,]+)-([\d,]+)")


def _is_salvaged(path: Path, was: bytes, told: str) -> None:
    """As it was, but for the stretches that are told, which are zeros."""
    wanted = bytearray(was)
    lost = 0
    for begin, last in re.findall(RANGE, told):
        first, end = int(begin.replace(",", "")), int(last.replace(",", "")) + 1
        wanted[first:end] = bytes(end - first)
        lost += end - first
    assert path.read_bytes() == bytes(wanted)
    assert 0 < lost < len(was)


def test_lost_names(ward: Ward) -> None:
    name = ward.pack_of(Kind.DATA_BLOCK)
    for region in ("manifest block", "recipe block"):
        ward.flip(name, ward.regions(name)[region])
    hurt = set(ward.states) - ward.whole()
    proposal = ward.mend()
    assert {finding.subject for finding in proposal.findings if finding.code == "snapshot-lost"} == hurt != set()
    assert name in ward.names("packs")  # it may be needed for a snapshot of which nobody knows what it needs
    assert set(ward.states) - ward.whole() == hurt
    assert not ward.repo.propose_repair().steps


# ------------------------------------------------------------ who may, and what else there is


def _as_maintainer(repo: pb.Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    unlocked = repo._unlocked
    monkeypatch.setattr(unlocked, "keyring", replace(unlocked.keyring, role="maintainer", readers=()))


@pytest.mark.parametrize("region", ["filler", "directory", "trailer"])
def test_who_may_not_read_mends_what_is_no_block(ward: Ward, monkeypatch: pytest.MonkeyPatch, region: str) -> None:
    name = ward.pack_of(Kind.DATA_BLOCK)
    ward.flip(name, ward.regions(name)[region])
    with monkeypatch.context() as patch:
        _as_maintainer(ward.repo, patch)
        proposal = ward.mend()
    assert any("moved out of" in step for step in proposal.steps)
    ward.all_is_well()


def test_who_may_not_read_takes_from_a_replica(
    ward: Ward, replica: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = ward.pack_of(Kind.DATA_BLOCK)
    ward.flip(name, ward.regions(name)["data block"])
    with monkeypatch.context() as patch:
        _as_maintainer(ward.repo, patch)
        assert not _serious(ward.mend(replicas=[replica]))
    ward.all_is_well()


def test_who_may_not_read_is_told_snapshots(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves readable what he cannot judge."""
    name = ward.pack_of(Kind.DATA_BLOCK, part="large")
    ward.flip(name, ward.regions(name)["data block"])
    whole = ward.whole()
    with monkeypatch.context() as patch:
        _as_maintainer(ward.repo, patch)
        proposal = ward.mend()
    codes = {finding.code for finding in proposal.findings}
    assert "snapshot-damaged" in codes and "file-lost" not in codes
    assert ward.whole() == whole
    ward.reopen()
    assert ward.whole() == whole


@pytest.mark.parametrize("role", ["device", "restorer", "auditor"])
def test_who_may_not(ward: Ward, monkeypatch: pytest.MonkeyPatch, role: str) -> None:
    monkeypatch.setattr(ward.repo._unlocked, "keyring", replace(ward.repo._unlocked.keyring, role=role))
    with pytest.raises(pb.NotPermitted):
        ward.repo.propose_repair()


def test_a_storage_that_cannot_create_exclusively(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is deleted there, and everything can be restored all the same."""
    record = ward.repo._unlocked.record
    name = ward.pack_of(Kind.DATA_BLOCK)
    ward.flip(name, ward.regions(name)["directory"])
    with monkeypatch.context() as patch:
        without = replace(record, capabilities={**record.capabilities, "exclusive-create": False})
        patch.setattr(ward.repo._unlocked, "record", without)
        ward.mend()
    assert name in ward.names("packs") and not ward.names("collections")
    assert ward.whole() == set(ward.states)


@pytest.mark.parametrize("how", ["flipped", "gone"])
def test_records_that_a_replica_has(ward: Ward, replica: pb.Repository, how: str) -> None:
    """They are brought first: while they are damaged no pack is let go, since one of them might be a hold."""
    ward.repo.hold(ward.repo.snapshots()[-1], reason="incident 7")
    ward.repo.copy(replica)
    fate, mark = ward.names("snapshots")[0], ward.names("marks")[0]
    assert ward.repo.check().state == "ok"  # this machine has seen them
    for name in (fate, mark):
        if how == "gone":
            ward.lose(name)
        else:
            ward.flip(name, 100)
    name = ward.pack_of(Kind.DATA_BLOCK)
    ward.flip(name, ward.regions(name)["filler"])
    alone = ward.repo.propose_repair()
    assert "repair-held-back" in {finding.code for finding in alone.findings}
    first = ward.mend(replicas=[replica])
    assert "2 records are taken from a replica" in str(first)
    assert name in ward.names("packs")
    assert ward.repo.snapshots()[-1].held == "incident 7"
    ward.mend(replicas=[replica])
    assert name not in ward.names("packs")
    assert ward.repo.check(read_data=1.0).findings == ()
    assert ward.whole() == set(ward.states)
    assert not ward.repo.propose_repair(replicas=[replica]).steps


def test_a_keyring_that_a_replica_has(ward: Ward, replica: pb.Repository) -> None:
    """Of a slot that has none here any more: the very bytes."""
    (name,) = ward.names("keys")
    data = (ward.path / name).read_bytes()
    ward.lose(name)  # this process has opened the repository before
    proposal = ward.mend(replicas=[replica])
    assert proposal.steps == ("1 sealed keyring is copied from a replica.",)
    assert (ward.path / name).read_bytes() == data
    ward.all_is_well()


# ------------------------------------------------------------ stale proposals, and prunes


def test_a_proposal_that_is_not_true_any_more(ward: Ward, replica: pb.Repository, tmp_path: Path) -> None:
    name = ward.pack_of(Kind.DATA_BLOCK)
    good = (ward.path / name).read_bytes()
    ward.flip(name, ward.regions(name)["data block"])
    proposal = ward.repo.propose_repair(replicas=[replica])
    other = tmp_path / "ward" / "replica" / name
    other.unlink()
    with pytest.raises(pb.Conflict) as caught:
        ward.repo.apply(proposal)
    assert caught.value.kind == "proposal-stale"
    assert name in ward.names("packs")
    (ward.path / name).write_bytes(good)
    with pytest.raises(pb.Conflict) as caught:
        ward.repo.apply(proposal)
    assert caught.value.kind == "proposal-stale"
    assert name in ward.names("packs")
    ward.reopen()
    assert ward.whole() == set(ward.states)


def test_a_source_that_changed_before_it_was_applied(ward: Ward) -> None:
    name, at = ward.block_of(ward.repo.snapshots("documents")[-1], "large")
    ward.flip(name, at)
    proposal = ward.repo.propose_repair(sources=ward.sources())
    for path in ward.documents.iterdir():
        path.write_bytes(os.urandom(1000))
    with pytest.raises(pb.Conflict) as caught:
        ward.repo.apply(proposal)
    assert caught.value.kind == "proposal-stale"
    assert name in ward.names("packs")


def test_a_prune_does_not_undo_it(ward: Ward, replica: pb.Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a block lies in a damaged pack and in a whole one, the whole one is kept."""
    monkeypatch.setattr("pharmabackup.engine.garbage.YOUNG_NS", -(1 << 62))
    monkeypatch.setattr("pharmabackup.engine.emptying.UNUSED_SHARE", 0.0)
    name = ward.pack_of(Kind.DATA_BLOCK, part="large")
    regions = ward.regions(name)
    ward.flip(name, regions["data block"])
    with monkeypatch.context() as patch:  # it dies before it lets the damaged pack go
        patch.setattr("pharmabackup.verbs.repair.condemn", _dies)
        with pytest.raises(pb.StorageFailed):
            ward.mend(replicas=[replica])
    assert name in ward.names("packs")
    for _ in range(2):
        ward.repo.apply(ward.repo.propose_prune())
        assert ward.whole() == set(ward.states)
    ward.mend(replicas=[replica])
    ward.all_is_well()


def _dies(*_: object) -> bool:
    raise pb.StorageFailed("The cable is out.", location="here")


def test_a_prune_goes_on_beside_what_is_lost(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pharmabackup.engine.garbage.YOUNG_NS", -(1 << 62))
    name = ward.pack_of(Kind.DATA_BLOCK, part="large")
    ward.flip(name, ward.regions(name)["data block"])
    whole = ward.whole()
    ward.mend()
    for _ in range(2):
        with pytest.raises(pb.Incomplete) as caught:
            ward.repo.apply(ward.repo.propose_prune())
        assert [finding.subject for finding in caught.value.findings] == [name]
        assert ward.whole() == whole
    assert name in ward.names("packs")
    ward.reopen()
    assert ward.whole() == whole
