"""What a restore does with a file of which a part is lost: what there is comes back, under another name."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.engine.index import Index
from pharmabackup.engine.reading import BlockReader, SnapshotReader
from pharmabackup.engine.target import Target
from pharmabackup.format.manifest import Entry
from pharmabackup.verbs import restore_marker

MakeRepo = Callable[[], pb.Repository]
SIZE = 3_300_000  # several blocks
RANGE = re.compile(r"([\d,]+)-([\d,]+)")


class Hurt:
    """A snapshot of which a block is damaged: the one with the byte in the middle of a file, or somewhere else."""

    def __init__(self, repo: pb.Repository, source: pb.Source) -> None:
        self.repo = repo
        snapshot = repo.backup([source]).datasets[source.name].snapshot
        assert snapshot is not None
        self.snapshot = snapshot

    def damage(self, path: str, at: float = 0.5) -> None:
        """The second time, it is mended."""
        unlocked = self.repo._unlocked
        index = Index(unlocked, chunks=False)
        index.load()
        reader = SnapshotReader(BlockReader(unlocked, index), self.snapshot._committed.snapshot)
        entry = reader.find(os.fsencode(path))
        assert entry is not None
        runs, blocks = reader.recipe()
        place = entry.start + int(entry.stored * at)
        run = next(i for i in range(len(runs)) if reader.run_starts[i] <= place < reader.run_starts[i + 1])
        table = index.blocks
        number = table.find(blocks[runs.block[run]], self.snapshot._committed.snapshot.domain)
        assert number is not None
        pack = Path(unlocked.storage.local_root() or "") / ids.pack_name(table.packs[table.pack[number]])
        data = bytearray(pack.read_bytes())
        data[table.offset[number] + table.length[number] // 2] ^= 1
        pack.write_bytes(data)

    def restore(self, target: Path, **given: bool) -> dict[str, pb.Finding]:
        """The critical findings, by their subject."""
        with pytest.raises(pb.Incomplete) as caught:
            self.repo.restore(target, snapshots=[self.snapshot], **given)
        return {finding.subject: finding for finding in caught.value.findings if finding.severity == "critical"}


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    root = tmp_path / "documents"
    root.mkdir()
    (root / "large").write_bytes(os.urandom(SIZE))
    (root / "large").chmod(0o640)
    os.utime(root / "large", ns=(1_700_000_000 * 10**9,) * 2)
    (root / "note").write_bytes(b"a note")
    return root


@pytest.fixture
def hurt(documents: Path, make_repo: MakeRepo) -> Iterator[Hurt]:
    made = Hurt(make_repo(), pb.Files(documents))
    made.damage("large")
    yield made


def _zeroed(was: bytes, message: str) -> bytes:
    """What it should be: zeros where the message says so."""
    wanted = bytearray(was)
    for begin, last in RANGE.findall(message):
        first, end = int(begin.replace(",", "")), int(last.replace(",", "")) + 1
        wanted[first:end] = bytes(end - first)
    lost = sum(map(int.__ne__, wanted, was))
    assert 0.9 * 64_000 < lost < 0.7 * len(was)
    return bytes(wanted)


def test_zeros_stand_for_what_is_lost(tmp_path: Path, documents: Path, hurt: Hurt) -> None:
    found = hurt.restore(tmp_path / "out")
    assert {path: finding.code for path, finding in found.items()} == {"large": "file-salvaged"}
    out = tmp_path / "out" / "documents"
    assert {path.name for path in out.iterdir()} == {"large.salvaged", "note"}
    was = (documents / "large").read_bytes()
    assert (out / "large.salvaged").read_bytes() == _zeroed(was, found["large"].message)
    assert "large.salvaged" in found["large"].message
    if sys.platform != "win32":
        look, made = (documents / "large").stat(), (out / "large.salvaged").stat()
        assert (look.st_mode, look.st_mtime_ns) == (made.st_mode, made.st_mtime_ns)
    assert (out / "note").read_bytes() == b"a note"


def test_a_file_that_is_there_already_stays(tmp_path: Path, documents: Path, hurt: Hurt) -> None:
    """Also where it is like the snapshot's as far as one can tell: it is not the one to write zeros into."""
    out = tmp_path / "out" / "documents"
    out.mkdir(parents=True)
    was = (documents / "large").read_bytes()
    (out / "large").write_bytes(was)
    found = hurt.restore(tmp_path / "out", overwrite=True)
    assert (out / "large").read_bytes() == was
    assert (out / "large.salvaged").read_bytes() == _zeroed(was, found["large"].message)


@pytest.mark.parametrize("who", ["somebody", "the snapshot", "a folder"])
def test_a_name_that_is_taken(tmp_path: Path, documents: Path, make_repo: MakeRepo, who: str) -> None:
    out = tmp_path / "out" / "documents"
    out.mkdir(parents=True)
    if who == "the snapshot":
        (documents / "large.salvaged").write_bytes(b"mine")
    elif who == "a folder":
        (out / "large.salvaged").mkdir()
    else:
        (out / "large.salvaged").write_bytes(b"mine")
    hurt = Hurt(make_repo(), pb.Files(documents))
    hurt.damage("large")
    found = hurt.restore(tmp_path / "out", overwrite=True)
    assert {path: finding.code for path, finding in found.items()} == {"large": "file-lost"}
    assert "large.salvaged is there already, and was not touched" in found["large"].message
    assert "large.salvaged" in found["large"].remedy
    assert who == "a folder" or (out / "large.salvaged").read_bytes() == b"mine"
    assert {path.name for path in out.iterdir()} == {"large.salvaged", "note"}


def test_a_name_that_would_be_too_long(tmp_path: Path, documents: Path, make_repo: MakeRepo) -> None:
    name = "l" * 250
    (documents / "large").rename(documents / name)
    hurt = Hurt(make_repo(), pb.Files(documents))
    hurt.damage(name)
    found = hurt.restore(tmp_path / "out")
    assert {path: finding.code for path, finding in found.items()} == {name: "file-lost"}
    assert {path.name for path in (tmp_path / "out" / "documents").iterdir()} == {"note"}


def test_nothing_of_it_is_there(tmp_path: Path, documents: Path, make_repo: MakeRepo) -> None:
    """A file of nothing but zeros is no use to anybody."""
    hurt = Hurt(make_repo(), pb.Files(documents))
    hurt.damage("note")
    found = hurt.restore(tmp_path / "out")
    assert found["note"].code == "file-lost"
    assert not (tmp_path / "out" / "documents" / "note.salvaged").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs sparse files")
def test_a_sparse_file(tmp_path: Path, documents: Path, make_repo: MakeRepo) -> None:
    with open(documents / "large", "r+b") as file:
        file.truncate(1_500_000)
        file.seek(6_000_000)
        file.write(os.urandom(1_800_000))
        file.truncate(9_000_000)
    hurt = Hurt(make_repo(), pb.Files(documents))
    hurt.damage("large")
    message = hurt.restore(tmp_path / "out")["large"].message
    path = tmp_path / "out" / "documents" / "large.salvaged"
    assert path.read_bytes() == _zeroed((documents / "large").read_bytes(), message)
    assert path.stat().st_blocks * 512 < 6_000_000


def test_a_database_is_not_put_in_place(tmp_path: Path, make_repo: MakeRepo) -> None:
    database = tmp_path / "pmr.db"
    with closing(sqlite3.connect(database)) as db, db:
        db.execute("CREATE TABLE patient (id INTEGER PRIMARY KEY, name BLOB)")
        db.executemany("INSERT INTO patient (name) VALUES (?)", [(os.urandom(700),) for _ in range(4000)])
    hurt = Hurt(make_repo(), pb.SQLite(database))
    hurt.damage("pmr.db")
    found = hurt.restore(tmp_path / "out")
    assert {path: finding.code for path, finding in found.items()} == {"pmr.db": "file-salvaged"}
    was = bytearray(database.read_bytes())
    came = bytearray((tmp_path / "out" / "pmr" / "pmr.db.salvaged").read_bytes())
    for data in (was, came):
        data[24:28] = data[92:96] = bytes(4)
    assert bytes(came) == _zeroed(bytes(was), found["pmr.db"].message)
    with pytest.raises(pb.Incomplete):
        hurt.repo.restore(into={"pmr": pb.SQLite(tmp_path / "new.db")}, snapshots=[hurt.snapshot])
    assert not (tmp_path / "new.db").exists()


# ---------------------------------------------------------------- restored again


def test_the_same_again(tmp_path: Path, documents: Path, hurt: Hurt) -> None:
    for _ in range(3):
        found = hurt.restore(tmp_path / "out")
        assert found["large"].code == "file-salvaged"
        out = tmp_path / "out" / "documents"
        assert (out / "large.salvaged").read_bytes() == _zeroed(
            (documents / "large").read_bytes(), found["large"].message
        )


def test_after_more_was_mended(tmp_path: Path, documents: Path, hurt: Hurt) -> None:
    hurt.damage("large", at=0.05)
    was, path = (documents / "large").read_bytes(), tmp_path / "out" / "documents" / "large.salvaged"
    first = hurt.restore(tmp_path / "out")["large"].message
    assert path.read_bytes() == _zeroed(was, first)
    hurt.damage("large", at=0.05)
    second = hurt.restore(tmp_path / "out")["large"].message
    assert second != first
    assert path.read_bytes() == _zeroed(was, second)


def test_another_snapshot(tmp_path: Path, documents: Path, hurt: Hurt) -> None:
    hurt.restore(tmp_path / "out")
    (documents / "large").write_bytes(os.urandom(SIZE))
    later = Hurt(hurt.repo, pb.Files(documents))
    later.damage("large")
    message = later.restore(tmp_path / "out", overwrite=True)["large"].message
    path = tmp_path / "out" / "documents" / "large.salvaged"
    assert path.read_bytes() == _zeroed((documents / "large").read_bytes(), message)


def test_a_full_disk_hides_nothing_of_what_is_lost(
    tmp_path: Path, hurt: Hurt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was saved is not noted then, and counts as somebody's the next time."""
    real = restore_marker.replace

    def full(path: Path, data: bytes) -> None:
        if b"\n" in data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(restore_marker, "replace", full)
        assert hurt.restore(tmp_path / "out")["large"].code == "file-salvaged"
    assert "is there already" in hurt.restore(tmp_path / "out")["large"].message


def test_what_cannot_be_saved_hides_nothing_else(
    tmp_path: Path, documents: Path, make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at the first of two: both are told."""
    (documents / "other").write_bytes(os.urandom(SIZE))
    hurt = Hurt(make_repo(), pb.Files(documents))
    hurt.damage("large")
    hurt.damage("other")
    real, calls = Target.salvage, list[bytes]()

    def salvage(self: Target, entry: Entry, **named: Any) -> Any:
        calls.append(entry.path)
        if len(calls) == 1:
            raise pb.StorageFailed("The disk is full.", kind="full", location="here")
        return real(self, entry, **named)

    monkeypatch.setattr(Target, "salvage", salvage)
    found = hurt.restore(tmp_path / "out")
    assert {name: found[name].code for name in ("large", "other")} == {"large": "file-lost", "other": "file-salvaged"}
    assert "not saved: The disk is full." in found["large"].message


@pytest.mark.parametrize("rest", ["1 2 3", "1 2 3 x 6c", "1 2 3 4 large"])
def test_a_note_that_cannot_be_read(tmp_path: Path, hurt: Hurt, rest: str) -> None:
    hurt.restore(tmp_path / "out")
    marker = restore_marker.marker_of(tmp_path / "out" / "documents")
    marker.write_text(f"{marker.read_text().splitlines()[0]}\n{rest}")
    with pytest.raises(pb.Conflict):
        hurt.restore(tmp_path / "out")
    assert "is there already" in hurt.restore(tmp_path / "out", overwrite=True)["large"].message


@pytest.mark.parametrize("how", ["written", "written, times kept", "replaced"])
def test_what_somebody_did_to_it_stays(tmp_path: Path, hurt: Hurt, how: str) -> None:
    hurt.restore(tmp_path / "out")
    path = tmp_path / "out" / "documents" / "large.salvaged"
    look, content = path.stat(), b"mine".ljust(SIZE)
    if how == "replaced":
        path.unlink()
    path.write_bytes(content)
    if how != "written":
        os.utime(path, ns=(look.st_atime_ns, look.st_mtime_ns))
    for _ in range(2):
        found = hurt.restore(tmp_path / "out")["large"]
        assert (found.code, path.read_bytes()) == ("file-lost", content)
        assert "is there already" in found.message
    path.rename(path.with_name("mine"))
    assert hurt.restore(tmp_path / "out")["large"].code == "file-salvaged"
    assert path.with_name("mine").read_bytes() == content


def test_what_the_snapshot_itself_has_stays(tmp_path: Path, documents: Path, hurt: Hurt) -> None:
    hurt.restore(tmp_path / "out")
    path = tmp_path / "out" / "documents" / "large.salvaged"
    shutil.copy2(path, documents)
    later = Hurt(hurt.repo, pb.Files(documents))
    was = path.read_bytes()
    assert later.restore(tmp_path / "out", overwrite=True)["large"].code == "file-lost"
    assert path.read_bytes() == was


def test_files_that_were_not_asked_for_are_not_told(tmp_path: Path, hurt: Hurt) -> None:
    hurt.restore(tmp_path / "out")
    report = hurt.repo.restore(tmp_path / "out", snapshots=[hurt.snapshot], only=["documents/note"])
    assert {finding.code for finding in report.findings} <= {"same-device"}
    assert (tmp_path / "out" / "documents" / "large.salvaged").exists()


def test_when_the_file_comes_back_whole(tmp_path: Path, documents: Path, hurt: Hurt) -> None:
    """What was saved may be of another snapshot: it stays, and that it is from before is told."""
    hurt.restore(tmp_path / "out")
    out = tmp_path / "out" / "documents"
    was = (out / "large.salvaged").read_bytes()
    hurt.damage("large")
    report = hurt.repo.restore(tmp_path / "out", snapshots=[hurt.snapshot])
    told = [(item.code, item.severity, item.subject) for item in report.findings if item.code != "same-device"]
    assert told == [("salvaged-stays", "info", "large.salvaged")]
    assert report.datasets["documents"].complete
    assert (out / "large").read_bytes() == (documents / "large").read_bytes()
    assert (out / "large.salvaged").read_bytes() == was
    assert not (tmp_path / "out" / "documents.restoring").exists()


@pytest.mark.parametrize("into", [False, True], ids=["a folder", "a path of its own"])
def test_a_database_that_comes_back_whole_later(tmp_path: Path, make_repo: MakeRepo, into: bool) -> None:
    database = tmp_path / "pmr.db"
    with closing(sqlite3.connect(database)) as db, db:
        db.execute("CREATE TABLE patient (id INTEGER PRIMARY KEY, name BLOB)")
        db.executemany("INSERT INTO patient (name) VALUES (?)", [(os.urandom(700),) for _ in range(4000)])
    hurt = Hurt(make_repo(), pb.SQLite(database))
    where = {"into": {"pmr": pb.SQLite(tmp_path / "new.db")}} if into else {"target": tmp_path / "out"}
    hurt.damage("pmr.db")
    with pytest.raises(pb.Incomplete):
        hurt.repo.restore(snapshots=[hurt.snapshot], **where)
    hurt.damage("pmr.db")
    report = hurt.repo.restore(snapshots=[hurt.snapshot], **where)
    assert report.datasets["pmr"].complete
    assert "salvaged-stays" in {finding.code for finding in report.findings}
    with closing(sqlite3.connect(tmp_path / ("new.db" if into else "out/pmr/pmr.db"))) as db:
        assert db.execute("SELECT count(*) FROM patient").fetchone() == (4000,)
    kept = tmp_path / ("new.db.restoring" if into else "out/pmr") / "pmr.db.salvaged"
    assert kept.is_file()
