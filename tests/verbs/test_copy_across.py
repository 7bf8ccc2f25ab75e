"""Copies to another repository, with other keys: the same content, names, times and words about it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup.engine import opening
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.reading import SnapshotReader
from pharmabackup.storage.base import Storage
from pharmabackup.storage.memory import MemoryStorage
from pharmabackup.verbs.copy_across import origin
from pharmabackup.verbs.marks import say
from tests.trees import describe, sample
from tests.verbs.faults import Dead, DyingStorage, any_call
from tests.verbs.site import DAY_NS, Site, Time, prune, stored

PASSPHRASE = pb.Passphrase("correct horse battery staple")
MakeRepo = Callable[[], pb.Repository]


def test_everything_is_as_it_was(tmp_path: Path, make_repo: MakeRepo) -> None:
    sample(tmp_path / "tree")
    with sqlite3.connect(tmp_path / "pmr.db") as database:
        database.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT)")
        database.executemany("INSERT INTO item (name) VALUES (?)", [(f"paracetamol {i}" * 20,) for i in range(5000)])
    database.close()
    here, there = make_repo(), make_repo()
    sources = [pb.Files(tmp_path / "tree", tier=2), pb.SQLite(tmp_path / "pmr.db", tier=0, count=["item"])]
    here.backup(sources, reason="before 9.2")
    report = here.copy(there)
    assert {name: result.files for name, result in report.datasets.items()} == {
        snapshot.dataset: snapshot.files for snapshot in here.snapshots()
    }
    there.restore(tmp_path / "out")
    assert describe(tmp_path / "out" / "tree") == describe(tmp_path / "tree")
    assert there.snapshot("pmr").open("pmr.db").read() == here.snapshot("pmr").open("pmr.db").read()
    assert len(list(there.snapshot("pmr").table("item"))) == 5000
    assert there.check(read_data=1.0).findings == ()
    copied, original = there.snapshot("pmr"), here.snapshot("pmr")
    same = (
        "dataset",
        "tier",
        "kind",
        "run",
        "reason",
        "time",
        "data_until",
        "device_time",
        "files",
        "size",
        "complete",
    )
    assert {name: getattr(copied, name) for name in same} == {name: getattr(original, name) for name in same}
    assert copied.id != original.id
    assert there.id != here.id
    objects = stored(there._unlocked.storage, "")
    assert here.copy(there).datasets == {}
    assert stored(there._unlocked.storage, "") == objects


def test_databases_are_cut_at_their_pages_there_too(tmp_path: Path, make_repo: MakeRepo) -> None:
    database = sqlite3.connect(tmp_path / "pmr.db")
    database.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT)")
    database.executemany("INSERT INTO item (name) VALUES (?)", [(f"paracetamol {i}" * 20,) for i in range(5000)])
    database.commit()
    here, there = make_repo(), make_repo()
    here.backup([pb.SQLite(tmp_path / "pmr.db")])
    here.copy(there)
    database.execute("UPDATE item SET name = 'ibuprofen' WHERE id = 2500")
    database.commit()
    database.close()
    here.backup([pb.SQLite(tmp_path / "pmr.db")])
    report = here.copy(there)
    assert report.datasets["pmr"].added < 60_000 < (tmp_path / "pmr.db").stat().st_size / 10
    there.backup([pb.SQLite(tmp_path / "pmr.db")])
    assert there.snapshot("pmr").added < 60_000  # a backup made there finds the copied pages


def test_what_did_not_change_is_not_read_again(
    tmp_path: Path, make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "documents"
    for folder in ("a", "b"):
        (root / folder).mkdir(parents=True)
        for number in range(5):
            (root / folder / f"{number}").write_bytes(f"{folder} {number} ".encode() * 5000)
    here, there = make_repo(), make_repo()
    here.backup([pb.Files(root)])
    here.copy(there)
    (root / "b" / "new").write_bytes(b"new " * 5000)
    (root / "b" / "3").write_bytes(b"otherwise" * 5000)
    moment = (root / "b" / "2").stat().st_mtime_ns
    (root / "b" / "2").write_bytes(b"B 2 " * 5000)
    os.utime(root / "b" / "2", ns=(moment, moment))
    here.backup([pb.Files(root)])
    reads: list[int] = []
    real = SnapshotReader.read

    def read(self: SnapshotReader, start: int, length: int) -> bytes:
        reads.append(length)
        return real(self, start, length)

    monkeypatch.setattr(SnapshotReader, "read", read)
    here.copy(there)
    assert sum(reads) == 4 * 5000 + 9 * 5000 + 4 * 5000
    monkeypatch.undo()
    there.restore(tmp_path / "out")
    assert describe(tmp_path / "out" / "documents") == describe(root)
    assert there.check(read_data=1.0).findings == ()


def test_what_has_the_size_and_time_of_before_and_another_content_is_read(
    tmp_path: Path, make_repo: MakeRepo
) -> None:
    path = tmp_path / "documents" / "one"
    path.parent.mkdir()
    here, there = make_repo(), make_repo()
    for content in (b"before", b"after "):
        path.write_bytes(content * 1000)
        os.utime(path, (1_700_000_000, 1_700_000_000))
        here.backup([pb.Files(path.parent)])
        here.copy(there)
        assert there.snapshot().open("one").read() == content * 1000


def test_holds_come_along_and_what_is_forgotten_does_not(tmp_path: Path, make_repo: MakeRepo) -> None:
    site = Site(tmp_path / "documents")
    here, there = make_repo(), make_repo()
    for _ in range(3):
        site.change()
        site.back_up(here)
    here.hold(here.snapshots()[2], reason="incident 7")
    delay = here._unlocked.roster.policy.forget_delay
    assert delay > 0
    say(here._unlocked, "forget", [bytes.fromhex(here.snapshots()[1].id)])
    with pytest.MonkeyPatch.context() as patch:
        from pharmabackup import clock

        real = clock.now_ns
        for module in ("engine.history", "verbs.standing"):
            patch.setattr(f"pharmabackup.{module}.now_ns", lambda: real() + (delay + 1) * 10**9)
        here.copy(there)
    copied = there.snapshots()
    assert [snapshot.held for snapshot in copied] == [None, "incident 7"]
    assert [snapshot.time for snapshot in copied] == [here.snapshots()[0].time, here.snapshots()[2].time]
    assert there.check(read_data=1.0).findings == ()


def test_holds_that_are_said_later_come_too_and_once(tmp_path: Path, make_repo: MakeRepo) -> None:
    site = Site(tmp_path / "documents")
    here, there = make_repo(), make_repo()
    site.change()
    site.back_up(here)
    here.copy(there)
    here.hold(here.snapshot(), reason="incident 7")
    for _ in range(2):
        here.copy(there)
        assert there.snapshot().held == "incident 7"
        assert len(stored(there._unlocked.storage, "marks")) == 1
    there.release(there.snapshot(), reason="closed there")
    here.copy(there)
    assert there.snapshot().held is None


def test_a_source_says_what_it_likes_about_its_origin(tmp_path: Path, make_repo: MakeRepo) -> None:
    (tmp_path / "documents").mkdir()
    here, there = make_repo(), make_repo()
    here.backup([pb.Files(tmp_path / "documents")])
    here.copy(there)
    record, original = there.snapshot()._committed.snapshot, bytes.fromhex(here.snapshot().id)
    assert origin(record) == (bytes.fromhex(here.id), original)
    for said in (None, "a", [], ["a", "b"], [["a"], {}], [b"a", b"b", b"c"]):
        assert origin(replace(record, facts={"copied_from": said})) is None


def test_what_could_not_be_backed_up_is_told_there_too(tmp_path: Path, make_repo: MakeRepo) -> None:
    root = tmp_path / "documents"
    root.mkdir()
    (root / "a").write_bytes(b"a")
    here, there = make_repo(), make_repo()
    with pytest.MonkeyPatch.context() as patch:
        from pharmabackup.engine.dataset import DatasetSink

        real = DatasetSink.finish

        def finish(self: DatasetSink) -> object:
            self.finding("file-unreadable", b"b", "b could not be read.", "Mend it.")
            return real(self)

        patch.setattr(DatasetSink, "finish", finish)
        with pytest.raises(pb.Incomplete):
            here.backup([pb.Files(root)])
    here.copy(there)
    assert not there.snapshot().complete
    assert [finding.to_dict() for finding in there.snapshot().findings] == [
        finding.to_dict() for finding in here.snapshot().findings
    ]
    assert there.check(read_data=1.0).findings == ()


def test_what_is_damaged_here_is_not_copied_and_the_rest_is(tmp_path: Path, make_repo: MakeRepo) -> None:
    site = Site(tmp_path / "documents")
    here, there = make_repo(), make_repo()
    site.change()
    good = site.back_up(here)
    site.change(size=300_000)
    bad = site.back_up(here)
    pack = max(here._unlocked.storage.list("packs"), key=lambda info: info.size)
    path = tmp_path / "repository-0" / pack.name
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(pb.Incomplete) as caught:
        here.copy(there)
    assert [(finding.code, finding.subject) for finding in caught.value.findings] == [("snapshot-not-copied", bad)]
    assert [snapshot.time for snapshot in there.snapshots()] == [here.snapshot(id=good).time]
    assert there.check(read_data=1.0).state == "ok"
    data[5000] ^= 1
    path.write_bytes(data)
    here.copy(there)
    assert len(there.snapshots()) == 2


def test_it_goes_on_among_other_snapshots(tmp_path: Path, make_repo: MakeRepo) -> None:
    """Copies are older than what was backed up there meanwhile, and nothing looks forked."""
    site = Site(tmp_path / "documents")
    here, there = make_repo(), make_repo()
    site.change()
    site.back_up(here)
    (tmp_path / "other").mkdir()
    there.backup([pb.Files(tmp_path / "other")])
    site.change()
    site.back_up(here)
    here.copy(there)
    times = [snapshot.time for snapshot in there.snapshots()]
    assert times == sorted(times, reverse=True)
    assert {snapshot.time for snapshot in here.snapshots()} < set(times)
    there.backup([pb.Files(tmp_path / "other")])
    report = there.check(read_data=1.0)
    assert report.findings == ()
    committed = load_history(there._unlocked).committed
    for item in committed.values():
        for head in item.snapshot.heads:
            assert committed[head.transaction].snapshot.time <= item.snapshot.time


def test_what_the_last_copy_left_is_gone_there(
    tmp_path: Path, make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, time = Site(tmp_path / "documents"), Time(monkeypatch)
    here, there = make_repo(), make_repo()
    site.change()
    site.back_up(here)
    here.copy(there)
    say(there._unlocked, "forget", [bytes.fromhex(there.snapshot().id)])  # which no rule does with the newest
    time.ahead += 15 * DAY_NS
    prune(there)
    assert stored(there._unlocked.storage, "packs") == []
    time.ahead = 0
    site.change()
    newest = site.back_up(here)
    here.copy(there)
    there.restore(tmp_path / "out")
    found = {path.name: path.read_bytes() for path in (tmp_path / "out" / "documents").iterdir()}
    assert found == site.states[newest]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("which", ["source", "target"])
def test_it_dies_at_any_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, which: str, after: bool
) -> None:
    site = Site(tmp_path / "documents")
    one, two = MemoryStorage("one"), MemoryStorage("two")

    def use(storage: Storage) -> None:
        monkeypatch.setattr(opening, "connect", lambda *_, **__: storage)

    def open_(storage: Storage, state: str) -> pb.Repository:
        use(storage)
        return pb.Repository.open("memory://x", PASSPHRASE, state_dir=tmp_path / state)

    use(two)
    pb.Repository.create("memory://two", PASSPHRASE).close()
    use(one)
    with pb.Repository.create("memory://one", PASSPHRASE) as repo:
        for _ in range(2):
            site.change(size=3000)
            site.back_up(repo)
    for dies_at in any_call():
        inner = MemoryStorage("twin")
        for info in two.list(""):
            inner.put_new(info.name, two.get(info.name, limit=1 << 30))
        source, target = DyingStorage(one), DyingStorage(inner)
        with open_(source, "one") as repo, open_(target, f"two-{dies_at}") as there:
            (source if which == "source" else target).arm(dies_at, after=after)
            try:
                repo.copy(there)
                died = False
            except Dead:
                died = True
        with open_(one, "one") as repo, open_(inner, f"two-{dies_at}") as there:
            assert there.check(read_data=1.0).state == "ok"
            repo.copy(there)
            assert [s.time for s in there.snapshots()] == [s.time for s in repo.snapshots()]
            for copied, original in zip(there.snapshots(), repo.snapshots(), strict=True):
                assert copied.open("a").read() == site.states[original.id]["a"]
            assert there.check(read_data=1.0).state == "ok"
        if not died:
            return
