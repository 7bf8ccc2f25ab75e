"""Back up, look inside, restore: everything comes back as it was."""

from __future__ import annotations

import os
import random
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pharmabackup as pb
from tests.trees import describe, sample

MakeRepo = Callable[[], pb.Repository]


def _database(path: Path, rows: int = 500) -> Path:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE patient (id INTEGER PRIMARY KEY, name TEXT)")
        db.executemany("INSERT INTO patient (name) VALUES (?)", [(f"Test {i}" * 20,) for i in range(rows)])
    return path


def test_a_tree_comes_back_as_it_was(tmp_path: Path, make_repo: MakeRepo) -> None:
    source = tmp_path / "documents"
    source.mkdir()
    sample(source)
    before = describe(source)
    repo = make_repo()
    report = repo.backup([pb.Files(source)])
    assert report.datasets["documents"].complete
    assert repo.restore(tmp_path / "out").state in ("ok", "critical")
    assert describe(tmp_path / "out" / "documents") == before
    assert os.stat(tmp_path / "out" / "documents" / "sparse").st_blocks * 512 < 1_000_000
    assert not list((tmp_path / "out").glob("*.restoring"))


def test_what_did_not_change_is_not_read_and_adds_nothing(
    tmp_path: Path, make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "documents"
    source.mkdir()
    sample(source)
    old = datetime.now(UTC).timestamp() - 60
    for folder, _, files in os.walk(source):
        for name in files:
            os.utime(os.path.join(folder, name), (old, old), follow_symlinks=False)
    repo = make_repo()
    repo.backup([pb.Files(source)])
    (source / "deep" / "new").write_bytes(os.urandom(1000))
    added = repo.backup([pb.Files(source)]).datasets["documents"].added
    assert 1000 < added < 40_000
    assert repo.backup([pb.Files(source)]).datasets["documents"].added == 0
    before = describe(source)
    repo.restore(tmp_path / "out")
    assert describe(tmp_path / "out" / "documents") == before


def test_the_same_content_is_stored_once_without_any_cache(tmp_path: Path, make_repo: MakeRepo) -> None:
    source = tmp_path / "documents"
    source.mkdir()
    sample(source)
    repo = make_repo()
    repo.backup([pb.Files(source)])
    with pb.Repository.open(
        repo.url, pb.Passphrase("correct horse battery staple"), state_dir=tmp_path / "x"
    ) as other:
        assert other.backup([pb.Files(source)]).datasets["documents"].added < 10_000


def test_a_database_that_is_written_to_comes_back_whole(tmp_path: Path, make_repo: MakeRepo) -> None:
    path = _database(tmp_path / "pmr.db")
    repo = make_repo()
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("INSERT INTO patient (name) VALUES ('committed')")
        writer.commit()
        writer.execute("INSERT INTO patient (name) VALUES ('not committed')")
        report = repo.backup([pb.SQLite(path, tier=1, count=["patient"])])
    assert report.datasets["pmr"].facts["rows"] == {"patient": 501}
    restored = repo.restore(tmp_path / "out")
    assert restored.datasets["pmr"].facts["rows"] == {"patient": 501}
    with closing(sqlite3.connect(tmp_path / "out" / "pmr" / "pmr.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT count(*) FROM patient WHERE name = 'committed'").fetchone() == (1,)


def test_a_changed_database_adds_its_changed_pages(tmp_path: Path, make_repo: MakeRepo) -> None:
    path = _database(tmp_path / "pmr.db", rows=60_000)
    repo = make_repo()
    first = repo.backup([pb.SQLite(path)]).datasets["pmr"]
    for turn in range(3):
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("UPDATE patient SET name = ? WHERE id % 20000 = 7", (f"changed {turn}",))
        again = repo.backup([pb.SQLite(path)]).datasets["pmr"]
        assert 0 < again.added < first.added / 4
        expected = path.read_bytes()
        repo.restore(tmp_path / f"out-{turn}")
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        expected = path.read_bytes()
        assert (tmp_path / f"out-{turn}" / "pmr" / "pmr.db").read_bytes() == expected


def test_many_days_of_small_changes_restore_each_day(tmp_path: Path, make_repo: MakeRepo) -> None:
    """Pages in scarcely used blocks are written again; every day stays whole."""
    path = _database(tmp_path / "pmr.db", rows=20_000)
    repo = make_repo()
    days = []
    for day in range(12):
        with closing(sqlite3.connect(path)) as db, db:
            db.execute(f"UPDATE patient SET name = name || '{day}' WHERE id % 7 = {day % 7}")
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        repo.backup([pb.SQLite(path)])
        days.append(path.read_bytes())
    for number, snapshot in enumerate(reversed(repo.snapshots())):
        repo.restore(tmp_path / f"day-{number}", snapshots=[snapshot])
        assert (tmp_path / f"day-{number}" / "pmr" / "pmr.db").read_bytes() == days[number]
    assert repo.check(read_data=1.0).state == "ok"


def test_one_file_one_glob_one_table(tmp_path: Path, make_repo: MakeRepo) -> None:
    source = tmp_path / "documents"
    source.mkdir()
    sample(source)
    repo = make_repo()
    repo.backup([pb.Files(source), pb.SQLite(_database(tmp_path / "pmr.db"), tier=1)])
    documents = repo.snapshot("documents")
    assert {entry.path for entry in documents.glob("deep/**/*.txt")} == {"deep/er/text.txt", "deep/same.txt"}
    for path in ("small.txt", "deep/hard link", "sparse", "deep/large.bin", "empty"):
        with documents.open(path) as file:
            expected = (source / path).read_bytes()
            assert file.read() == expected
            if len(expected) > 10:
                file.seek(len(expected) // 2)
                assert file.read(4000) == expected[len(expected) // 2 :][:4000]
                file.seek(-5, os.SEEK_END)
                assert file.read() == expected[-5:]
    with pytest.raises(pb.NotFound):
        documents.open("no such file")
    with pytest.raises(pb.InvalidInput):
        documents.open("deep")
    rows = list(repo.snapshot("pmr").table("patient"))
    assert len(rows) == 500
    assert rows[0] == {"id": 1, "name": "Test 0" * 20}
    with pytest.raises(pb.NotFound):
        next(repo.snapshot("pmr").table("no such table"))
    with pytest.raises(pb.Unsupported):
        documents.table("patient")
    fs = documents.filesystem()
    assert fs.cat_file("small.txt") == b"a few bytes\n"
    assert {name for name in fs.ls("deep", detail=False)} >= {"deep/er", "deep/same.txt"}
    assert fs.isdir("deep")
    assert not fs.exists("nothing here")


def test_rows_are_read_and_given_up_on_any_thread(
    tmp_path: Path, make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    repo = make_repo()
    repo.backup([pb.SQLite(_database(tmp_path / "pmr.db"))])
    rows = cast(Generator[dict[str, object], None, None], repo.snapshot("pmr").table("patient"))
    first = next(rows)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(next, rows).result()["id"] == cast(int, first["id"]) + 1
        other.submit(rows.close).result()
    assert list((tmp_path / "temporary").iterdir()) == []


def test_only_some_of_it(tmp_path: Path, make_repo: MakeRepo) -> None:
    source = tmp_path / "documents"
    source.mkdir()
    sample(source)
    repo = make_repo()
    repo.backup([pb.Files(source), pb.SQLite(_database(tmp_path / "pmr.db"), tier=1)])
    repo.restore(tmp_path / "a", only=["pmr"])
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"pmr"}
    repo.restore(tmp_path / "b", only=["documents/deep/**/*.txt"])
    assert {str(p.relative_to(tmp_path / "b")) for p in (tmp_path / "b").rglob("*") if p.is_file()} == {
        "documents/deep/same.txt",
        "documents/deep/er/text.txt",
    }
    with pytest.raises(pb.NotFound, match="no dataset"):
        repo.restore(tmp_path / "c", only=["nothing"])
    assert not (tmp_path / "c").exists()


def test_before_and_ids(tmp_path: Path, make_repo: MakeRepo) -> None:
    source = tmp_path / "documents"
    source.mkdir()
    repo = make_repo()
    for text in ("one", "two"):
        (source / "file").write_text(text)
        repo.backup([pb.Files(source)])
    newest, oldest = repo.snapshots()
    assert newest.time > oldest.time
    assert timedelta(0) <= newest.time - newest.data_until < timedelta(minutes=1)
    assert repo.snapshot(before=newest.time).id == oldest.id
    assert repo.snapshot(id=oldest.id[:10]).id == oldest.id
    with pytest.raises(pb.NotFound):
        repo.snapshot(before=oldest.time)
    with pytest.raises(pb.InvalidInput, match="time zone"):
        repo.snapshots(before=datetime(2027, 1, 1))
    repo.restore(tmp_path / "out", before=newest.time)
    assert (tmp_path / "out" / "documents" / "file").read_text() == "one"


def test_one_view_of_all_sources_and_tiers_in_order(tmp_path: Path, make_repo: MakeRepo) -> None:
    events: list[pb.Event] = []
    log: list[str] = []

    @contextmanager
    def pause() -> object:  # type: ignore[misc]
        log.append("paused")
        yield
        log.append("running")

    source = tmp_path / "documents"
    source.mkdir()
    sample(source)
    path = _database(tmp_path / "pmr.db")

    def hear(event: pb.Event) -> None:
        events.append(event)
        log.append(event.kind)

    repo = make_repo()
    repo.backup([pb.Files(source, tier=3), pb.SQLite(path, tier=1)], freeze=pause(), progress=hear)
    assert log.index("running") < log.index("dataset")
    assert [event.dataset for event in events if event.kind == "committed"] == ["pmr", "documents"]
    assert [events[0].kind, events[-1].kind] == ["started", "finished"]
    done = [event.bytes_done for event in events]
    assert done == sorted(done)
    assert all("small.txt" not in event.text for event in events)


def test_the_disk_that_holds_the_data_is_reported(tmp_path: Path, make_repo: MakeRepo) -> None:
    (tmp_path / "documents").mkdir()
    report = make_repo().backup([pb.Files(tmp_path / "documents")])
    assert [finding.code for finding in report.findings] == ["same-device"]
    assert report.state == "critical"


def test_a_repository_inside_its_source_is_refused(tmp_path: Path, cheap_kdf: None) -> None:
    source = tmp_path / "documents"
    source.mkdir()
    repo = pb.Repository.create(source / "backup", pb.Passphrase("correct horse battery staple"))
    objects = sorted(p for p in (source / "backup").rglob("*") if p.is_file())
    with pytest.raises(pb.InvalidInput, match="inside one another"):
        repo.backup([pb.Files(source)])
    with pytest.raises(pb.InvalidInput, match="inside one another"):
        repo.backup([pb.Files(source / "backup" / "packs", name="x")])
    assert sorted(p for p in (source / "backup").rglob("*") if p.is_file()) == objects


def test_one_failed_dataset_does_not_stop_the_others(tmp_path: Path, make_repo: MakeRepo) -> None:
    (tmp_path / "pmr.db").write_bytes(b"this is no database" * 100)
    (tmp_path / "documents").mkdir()
    repo = make_repo()
    with pytest.raises(pb.Incomplete) as caught:
        repo.backup([pb.SQLite(tmp_path / "pmr.db", tier=1), pb.Files(tmp_path / "documents")])
    report = caught.value.result
    assert not report.datasets["pmr"].complete
    assert report.datasets["documents"].complete
    assert "pmr" in str(caught.value)
    assert [snapshot.dataset for snapshot in repo.snapshots()] == ["documents"]


def test_two_writers_at_once(tmp_path: Path, make_repo: MakeRepo) -> None:
    repo = make_repo()
    sources = []
    for number in range(4):
        folder = tmp_path / f"till-{number}"
        folder.mkdir()
        sample(folder)
        sources.append(folder)
    errors: list[BaseException] = []

    def work(folder: Path) -> None:
        try:
            with pb.Repository.open(repo.url, pb.Passphrase("correct horse battery staple")) as own:
                for turn in range(3):
                    (folder / "turn").write_text(str(turn))
                    own.backup([pb.Files(folder)])
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(folder,)) for folder in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(repo.snapshots()) == 12
    assert repo.check(read_data=1.0).state == "ok"
    repo.restore(tmp_path / "out")
    for folder in sources:
        assert describe(tmp_path / "out" / folder.name) == describe(folder)


NAMES = st.sampled_from(["a", "b", "c", "ä", "x y"])
TREES = st.recursive(
    st.binary(max_size=300) | st.integers(0, 2).map(lambda n: bytes([n]) * (100_000 * n + 5)),
    lambda inner: st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)


def _make(path: Path, tree: object) -> None:
    if isinstance(tree, dict):
        path.mkdir()
        for name, inner in tree.items():
            _make(path / name, inner)
    else:
        assert isinstance(tree, bytes)
        path.write_bytes(tree)


@given(trees=st.lists(st.dictionaries(NAMES, TREES, max_size=4), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_any_trees_one_after_the_other(
    tmp_path_factory: pytest.TempPathFactory, trees: list[dict[str, object]]
) -> None:
    base = tmp_path_factory.mktemp("trees")
    repo = _PROPERTY.setdefault("repo", pb.Repository.create(base / "repo", pb.Passphrase("x" * 12)))
    made = []
    for number, tree in enumerate(trees):
        source = base / f"{number}" / "data"
        source.parent.mkdir()
        _make(source, tree)
        report = repo.backup([pb.Files(source, name="data")])
        made.append((source, report.datasets["data"].snapshot))
    for number, (source, snapshot) in enumerate(made):
        assert snapshot is not None
        repo.restore(base / f"out-{number}", snapshots=[snapshot])
        assert describe(base / f"out-{number}" / "data") == describe(source)


_PROPERTY: dict[str, pb.Repository] = {}


@pytest.mark.parametrize("size", [700, 400_000], ids=["many in a chunk", "several blocks"])
@pytest.mark.parametrize("wanted", [{0}, {4}, {9}, {3, 4}, {0, 9}, {2, 5, 6, 8}, {1, 2, 3}])
def test_some_files_of_those_that_lie_side_by_side(
    tmp_path: Path, make_repo: MakeRepo, wanted: set[int], size: int
) -> None:
    source = tmp_path / "documents"
    source.mkdir()
    for number in range(10):
        (source / f"{number}").write_bytes(random.Random(number).randbytes(size + number))
    repo = make_repo()
    repo.backup([pb.Files(source)])
    repo.restore(tmp_path / "out", only=[f"documents/{number}" for number in wanted])
    found = {path.name: path.read_bytes() for path in (tmp_path / "out" / "documents").iterdir()}
    assert found == {f"{number}": (source / f"{number}").read_bytes() for number in wanted}
