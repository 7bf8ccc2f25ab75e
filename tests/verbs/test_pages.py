"""Databases of every page size, over several backups: what is kept, what is named anew, and what comes back."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.sources.base import FILE, FolderColumns, Sink, View

MakeRepo = Callable[[], pb.Repository]
PAGE_SIZES = [1 << bits for bits in range(9, 17)]


def _database(path: Path, page_size: int) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA page_size = {page_size}")
        with db:
            db.execute("CREATE TABLE patient (id INTEGER PRIMARY KEY, name TEXT)")
            db.executemany(
                "INSERT INTO patient (name) VALUES (?)", [(f"{i} Test {i * 7919 % 1009} " * 60,) for i in range(4000)]
            )
        assert db.execute("PRAGMA page_size").fetchone()[0] == page_size


def _change(path: Path, number: int) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE patient SET name = ? WHERE id IN (3, 1700, 3990)", (f"changed {number}" * 40,))
        db.execute("INSERT INTO patient (name) VALUES (?)", ("new" * 400,))


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_changed_pages_are_added_and_all_come_back(tmp_path: Path, make_repo: MakeRepo, page_size: int) -> None:
    path = tmp_path / "pmr.db"
    _database(path, page_size)
    repo = make_repo()
    first = repo.backup([pb.SQLite(path)]).datasets["pmr"]
    for number in range(3):
        _change(path, number)
        later = repo.backup([pb.SQLite(path)]).datasets["pmr"]
        assert 0 < later.added < first.added / 3 + 30 * page_size
        out = tmp_path / f"out-{number}"
        repo.restore(out)
        with closing(sqlite3.connect(out / "pmr" / "pmr.db")) as db:
            assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            found = db.execute("SELECT id, name FROM patient").fetchall()
        with closing(sqlite3.connect(path)) as db:
            assert found == db.execute("SELECT id, name FROM patient").fetchall()
    added = [repo.backup([pb.SQLite(path)]).datasets["pmr"].added for _ in range(3)]
    assert added[-1] == 0, added  # the first may still write pages anew that lie in hardly used blocks
    assert {finding.code for finding in repo.check(read_data=1.0).findings} <= {"same-device"}


class _Careless(pb.Source):
    """A vendor's source that stores content and names less of it."""

    kind = "careless"

    def view(self, *, scratch: Path) -> AbstractContextManager[View]:
        return nullcontext(_CarelessView())


class _CarelessView(View):
    def dump(self, sink: Sink) -> Mapping[str, object]:
        left = [b"Ibuprofen 200 mg", b""]

        def read_into(view: memoryview) -> int:
            data = left.pop(0)
            view[: len(data)] = data
            return len(data)

        chunks, stored = sink.stream(read_into)
        columns = FolderColumns(
            names=[b"stock"], kinds=bytearray([FILE]), modes=[0o600], uids=[0], gids=[0], mtimes=[0],
            sizes=[stored - 1], chunks=[chunks], stored=[stored - 1],
        )  # fmt: skip
        sink.folder(b"", columns, b"")
        return {}


def test_content_that_no_name_has_is_never_committed(tmp_path: Path, make_repo: MakeRepo) -> None:
    (tmp_path / "documents").mkdir()
    repo = make_repo()
    with pytest.raises(pb.Incomplete) as caught:
        repo.backup([_Careless("stock", 1), pb.Files(tmp_path / "documents")])
    assert caught.value.result.datasets["documents"].complete
    assert [finding.subject for finding in caught.value.findings if finding.code == "dataset-failed"] == ["stock"]
    assert [snapshot.dataset for snapshot in repo.snapshots()] == ["documents"]
