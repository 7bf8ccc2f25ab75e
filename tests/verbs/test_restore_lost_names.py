"""Where a snapshot's own lists are damaged: what was named before that comes back, and other datasets do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.engine.index import Index
from tests.verbs.ailing import QUIET, Ward


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


class Many:
    """A dataset whose list of names is damaged near its end, in folder c, of which only some comes back."""

    def __init__(self, ward: Ward, root: Path) -> None:
        for folder in ("a", "b", "c", "c/deep"):
            (root / folder).mkdir(parents=True)
        for folder, count in (("a", 500), ("b", 500), ("c", 9000)):
            for _ in range(count):
                (root / folder / os.urandom(60).hex()).touch()
            (root / folder / "0").write_bytes(os.urandom(1000))
        (root / "c" / "deep" / "inside").touch()
        (root / "z").write_text("named at the top")
        ward.repo.backup([pb.Files(root)])
        blocks = [ref.block for ref in ward.repo.snapshots("many")[0]._committed.snapshot.manifest]
        assert len(set(blocks)) > 1
        _flip(ward, blocks[-1])
        self.root, self.ward = root, ward
        self.names = _files(root)

    def restore(self, out: Path, *only: str) -> pb.Report:
        return self.ward.repo.restore(out, snapshots=[self.ward.repo.snapshots("many")[0]], only=only)

    def lost(self, out: Path, *only: str) -> pb.Finding:
        with pytest.raises(pb.Incomplete) as caught:
            self.restore(out, *only)
        (lost,) = [item for item in caught.value.findings if item.severity == "critical"]
        assert lost.code == "names-lost"
        return lost


def _files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def many(ward: Ward, tmp_path: Path) -> Many:
    return Many(ward, tmp_path / "many")


def test_what_was_named_before_comes_back(many: Many, tmp_path: Path) -> None:
    lost = many.lost(tmp_path / "out")
    came = _files(tmp_path / "out" / "many")
    assert came < many.names and lost.subject in came
    assert {name for name in many.names if name[0] != "c"} < came
    after = {name for name in many.names if name.startswith("c/") and name > lost.subject}
    assert many.names - came == after
    assert f"after {lost.subject}" in lost.message and "in c/deep" not in lost.message and " in c." in lost.message
    assert (tmp_path / "out/many/a/0").read_bytes() == (many.root / "a/0").read_bytes()


def test_what_was_asked_for_and_lies_before_is_not_lost(many: Many, tmp_path: Path) -> None:
    before = many.lost(tmp_path / "all").subject
    earlier = sorted(name for name in many.names if name.startswith("c/") and name < before)[-1]
    assert earlier[:20] < before[:20]
    for number, only in enumerate(("a/**", "b/0", "z", before, f"{earlier[:20]}*")):
        report = many.restore(tmp_path / f"{number}", f"many/{only}")
        assert report.datasets["many"].files
        assert report.datasets["many"].complete
        (told,) = [item for item in report.findings if item.code not in QUIET]
        assert (told.code, told.severity, told.subject) == ("names-damaged", "warning", before)
    came = many.restore(tmp_path / "both", "many/a/**", "many/b/0").datasets["many"]
    assert came.files == 502


def test_what_was_asked_for_and_may_lie_behind_is_told(many: Many, tmp_path: Path) -> None:
    behind = max(name for name in many.names if name.startswith("c/") and "deep" not in name)
    for number, only in enumerate(("c/**", "**/*.pdf", behind, f"{behind[:20]}*", "c/deep/inside")):
        lost = many.lost(tmp_path / f"{number}", "many/a/0", f"many/{only}")
        assert "of what was asked for" in lost.message
        assert (tmp_path / f"{number}" / "many/a/0").is_file()


def test_folders_whose_names_are_lost_are_told(ward: Ward, tmp_path: Path) -> None:
    root = tmp_path / "many"
    for number in range(30):
        (root / f"{number:02}").mkdir(parents=True)
        for _ in range(250):
            (root / f"{number:02}" / os.urandom(120).hex()).touch()
    ward.repo.backup([pb.Files(root)])
    blocks = [ref.block for ref in ward.repo.snapshots("many")[0]._committed.snapshot.manifest]
    _flip(ward, blocks[-1])
    with pytest.raises(pb.Incomplete) as caught:
        ward.repo.restore(tmp_path / "out", snapshots=[ward.repo.snapshots("many")[0]])
    (lost,) = [item for item in caught.value.findings if item.code == "names-lost"]
    came = [path for path in sorted((tmp_path / "out/many").iterdir()) if any(path.iterdir())]
    empty = [path for path in sorted((tmp_path / "out/many").iterdir()) if not any(path.iterdir())]
    assert came and len(came) + len(empty) == 30
    assert all(f"in {path.name}," in lost.message for path in empty[:10])
    assert not any(f"in {path.name}," in lost.message for path in came)
    if len(empty) > 10:
        assert f"in {len(empty) - 10} more folders" in lost.message
    assert f"or after that name in {came[-1].name}." in lost.message
    last = empty[-1].name
    with pytest.raises(pb.Incomplete) as caught:
        ward.repo.restore(tmp_path / "one", snapshots=[ward.repo.snapshots("many")[0]], only=[f"many/{last}/**"])
    (lost,) = [item for item in caught.value.findings if item.code == "names-lost"]
    assert f"of what was asked for in {last}." in lost.message
