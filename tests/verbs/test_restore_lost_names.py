"""Where a snapshot's own lists are damaged: what was named before that comes back, and other datasets do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.engine.index import Index
from tests.verbs.ailing import Ward


def _flip(ward: Ward, block: bytes) -> None:
    index = Index(ward.repo._unlocked, chunks=False)
    index.load()
    table = index.blocks
    for number in table.instances(block):
        ward.flip(ids.pack_name(table.packs[table.pack[number]]), table.offset[number] + 50)
    ward.reopen()


@pytest.mark.parametrize("part", ["table", "recipe", "manifest"])
def test_other_datasets_come_back(ward: Ward, tmp_path: Path, part: str) -> None:
    snapshot = ward.repo.snapshots("pmr")[0]
    _flip(ward, getattr(snapshot._committed.snapshot, part)[0].block)
    told: list[str] = []
    with pytest.raises(pb.Incomplete) as caught:
        ward.repo.restore(
            tmp_path / "out", progress=lambda event: told.append(event.text) if event.kind == "tier" else None
        )
    assert told == ["Tier 1 did not come back whole.", "Tier 3 is done."]
    report = caught.value.result
    assert report is not None
    assert {name: result.complete for name, result in report.datasets.items()} == {"pmr": False, "documents": True}
    critical = [item for item in caught.value.findings if item.severity == "critical"]
    assert [(item.code, item.subject) for item in critical] == [("dataset-lost", "pmr")]
    newest = ward.states[ward.repo.snapshots("documents")[0].id]
    assert {path.name: path.read_bytes() for path in (tmp_path / "out" / "documents").iterdir()} == newest


def test_alone_it_is_an_error(ward: Ward, tmp_path: Path) -> None:
    snapshot = ward.repo.snapshots("pmr")[0]
    _flip(ward, snapshot._committed.snapshot.manifest[0].block)
    with pytest.raises(pb.Damaged):
        ward.repo.restore(tmp_path / "out", snapshots=[snapshot])


def test_a_database_that_is_not_whole_is_said_to_be_where_it_is(ward: Ward, tmp_path: Path) -> None:
    snapshot = ward.repo.snapshots("pmr")[0]
    runs, table = snapshot._reader().recipe()
    smallest = min(zip(runs.sizes, runs.block, strict=True))[1]
    _flip(ward, table[smallest])
    snapshot = ward.repo.snapshots("pmr")[0]
    with pytest.raises(pb.Incomplete) as caught:
        ward.repo.restore(into={"pmr": pb.SQLite(tmp_path / "new.db")}, snapshots=[snapshot])
    assert caught.value.result is not None
    path = caught.value.result.datasets["pmr"].path
    assert path != tmp_path / "new.db"
    assert [item.name for item in path.iterdir() if item.name.endswith(".salvaged")]


def test_what_was_named_before_comes_back(ward: Ward, tmp_path: Path) -> None:
    many = tmp_path / "many"
    for folder in ("a", "b", "c"):
        (many / folder).mkdir(parents=True)
        for _ in range(5000):
            (many / folder / os.urandom(60).hex()).touch()
        (many / folder / "0").write_bytes(os.urandom(1000))
    ward.repo.backup([pb.Files(many)])
    snapshot = ward.repo.snapshots("many")[0]
    blocks = [ref.block for ref in snapshot._committed.snapshot.manifest]
    assert len(set(blocks)) > 1
    _flip(ward, blocks[-1])
    with pytest.raises(pb.Incomplete) as caught:
        ward.repo.restore(tmp_path / "out", snapshots=[ward.repo.snapshots("many")[0]])
    (lost,) = [item for item in caught.value.findings if item.severity == "critical"]
    assert lost.code == "names-lost"
    out = tmp_path / "out" / "many"
    came = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert came and came < {path.relative_to(many).as_posix() for path in many.rglob("*") if path.is_file()}
    assert lost.subject in came
    assert (out / "a" / "0").read_bytes() == (many / "a" / "0").read_bytes()
