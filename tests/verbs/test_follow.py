"""Repository.follow: what has changed is backed up again and again, and what fails is tried again."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import contextmanager
from datetime import timedelta

import pytest

import pharmabackup as pb
from pharmabackup.engine.transaction import Transaction
from pharmabackup.errors import SourceFailed, StorageFailed
from pharmabackup.repository import follow as following
from pharmabackup.sources.base import Source, View
from pharmabackup.sources.flat import put_bytes, put_files
from tests.conftest import PASSPHRASE

OFTEN = timedelta(milliseconds=10)


class Numbers(Source):
    """A source that says when it has changed, and hears what is safe."""

    kind = "numbers"

    def __init__(self, name: str = "numbers", *, times: int = 3) -> None:
        super().__init__(name, 3)
        self.left, self.safe, self.looked = times, 0, 0
        self.fails: Exception | None = None
        self.deaf: SourceFailed | None = None

    def changed(self) -> bool:
        self.looked += 1
        return self.left > 0

    @contextmanager
    def view(self, *, scratch):
        yield _View(self)


class _View(View):
    def __init__(self, source):
        self._source = source

    def dump(self, sink):
        if self._source.fails:
            raise self._source.fails
        put_files(sink, [(b"number", *put_bytes(sink, str(self._source.left).encode()))])
        return {}

    def committed(self):
        if self._source.deaf:
            raise self._source.deaf
        self._source.safe += 1
        self._source.left -= 1


@pytest.fixture
def repo(tmp_path, cheap_kdf):
    with pb.Repository.create(
        tmp_path / "repository", pb.Passphrase(PASSPHRASE), state_dir=tmp_path / "state"
    ) as made:
        yield made


@contextmanager
def followed(repo, sources, every=OFTEN, progress=None):
    """It runs beside, and its result is in the list when the context is left."""
    cancel, results = threading.Event(), []

    def run():
        try:
            results.append(repo.follow(sources, every=every, cancel=cancel, progress=progress))
        except pb.Error as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield results
    finally:
        cancel.set()
        thread.join(30)
        assert not thread.is_alive()


def wait_for(what, seconds=30):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


def test_what_has_changed_is_backed_up_and_what_has_not_is_left_alone(repo):
    busy, quiet = Numbers("busy", times=3), Numbers("quiet", times=0)
    with followed(repo, [busy, quiet]) as results:
        wait_for(lambda: busy.left == 0 and quiet.looked > 3)
    assert results[0].snapshots == 3 and results[0].failed == 0
    assert [one.dataset for one in repo.snapshots()] == ["busy"] * 3
    assert repo.snapshot("busy").open("number").read() == b"1"


def test_it_is_not_done_more_often_than_asked(repo):
    source = Numbers(times=1000)
    began = time.monotonic()
    with followed(repo, [source], every=timedelta(seconds=0.5)) as results:
        wait_for(lambda: source.safe == 3)
        took = time.monotonic() - began
    assert took >= 1.0  # the third begins a second after the first
    assert results[0].snapshots == source.safe


def test_a_source_that_fails_is_tried_again_and_the_others_are_safe(repo, monkeypatch):
    monkeypatch.setattr(following, "PATIENCE_S", 0.05)
    ill, well = Numbers("ill", times=1), Numbers("well", times=1)
    ill.fails = SourceFailed("It is ill.", remedy="Wait.", dataset="ill")
    told = []
    with followed(repo, [ill, well], progress=told.append) as results:
        wait_for(lambda: sum(event.kind == "retrying" for event in told) > 2)
        assert well.safe == 1 and ill.safe == 0
        ill.fails = None
        wait_for(lambda: ill.safe == 1)
    assert results[0].failed > 2
    assert {event.finding.code for event in told if event.finding} == {"dataset-failed"}


@pytest.mark.parametrize(
    ("kind", "retryable", "again"),
    [("lost-write", True, True), ("unreachable", False, True), ("full", False, False)],
)
def test_a_storage_that_fails_is_tried_again_if_that_can_help(repo, monkeypatch, kind, retryable, again):
    monkeypatch.setattr(following, "PATIENCE_S", 0.05)
    source, real, broken = Numbers(times=1), Transaction.commit, [3]

    def commit(self, *arguments):
        if broken[0]:
            broken[0] -= 1
            raise StorageFailed("It is away.", kind=kind, retryable=retryable, location="x", remedy="Wait.")
        return real(self, *arguments)

    monkeypatch.setattr(Transaction, "commit", commit)
    with followed(repo, [source]) as results:
        wait_for(lambda: source.safe == 1 or results)
    if again:
        assert (results[0].snapshots, results[0].failed) == (1, 3)
    else:
        assert isinstance(results[0], StorageFailed)
        assert source.safe == 0 and repo.snapshots() == []


def test_a_source_is_told_only_of_what_is_committed(repo, monkeypatch):
    source = Numbers()

    def commit(*_):
        raise StorageFailed("It is full.", kind="full", retryable=False, location="x", remedy="Free some space.")

    with monkeypatch.context() as patched:
        patched.setattr(Transaction, "commit", commit)
        with pytest.raises(StorageFailed):
            repo.backup([source])
    assert source.safe == 0
    repo.backup([source])
    assert source.safe == 1


def test_a_source_that_cannot_hear_it_is_a_finding_and_not_a_lost_backup(repo):
    source = Numbers()
    source.deaf = SourceFailed("Its spool is full.", remedy="Free some space.", dataset="numbers")
    report = repo.backup([source])
    assert [(one.code, one.severity) for one in report.findings] == [("not-acknowledged", "critical")]
    assert "Its spool is full" in report.findings[0].message
    assert report.datasets["numbers"].snapshot is not None


@pytest.mark.parametrize("holds_back", [False, True])
@pytest.mark.parametrize("lanes", [1, 4])
def test_nothing_is_acknowledged_by_a_key_that_was_revoked(repo, tmp_path, cheap_kdf, monkeypatch, lanes, holds_back):
    monkeypatch.setattr("pharmabackup.storage.local.LocalStorage.lanes", lanes)
    monkeypatch.setattr(_View, "holds_back", holds_back)
    pb.KeyFile.create(tmp_path / "till.key")
    device = pb.KeyFile(tmp_path / "till.key")
    repo.enrol("device", device, name="till")
    source = Numbers()
    with pb.Repository.open(tmp_path / "repository", device, state_dir=tmp_path / "state-2") as till:
        till.backup([source])
        assert source.safe == 1
        real = _View.dump

        def dump(view, sink):
            if view._source.name == "numbers":
                repo.revoke("till", reason="lost")  # just then
            return real(view, sink)

        monkeypatch.setattr(_View, "dump", dump)
        with pytest.raises(pb.WrongCredential):
            till.backup([source, Numbers("another")])
    assert source.safe == 1


def test_no_time_at_all_is_refused(repo):
    with pytest.raises(pb.InvalidInput, match="longer than nothing"):
        repo.follow([Numbers()], cancel=threading.Event(), every=timedelta(0))


# ------------------------------------------------------------ SQLite


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_each_transaction_of_an_sqlite_database_is_followed(repo, tmp_path, mode, monkeypatch):
    monkeypatch.setattr("pharmabackup.sources.sqlite.TOO_NEW_NS", 10**8)
    database = sqlite3.connect(tmp_path / "pmr.db", isolation_level=None)
    database.execute(f"PRAGMA journal_mode = {mode}")
    database.execute("CREATE TABLE notes (text)")
    source = pb.SQLite(tmp_path / "pmr.db")

    def saved():
        found = repo.snapshots("pmr")
        if not found:
            return 0
        path = tmp_path / "look.db"
        path.write_bytes(found[0].open("pmr.db").read())
        with sqlite3.connect(path) as copy:
            rows = copy.execute("SELECT count(*) FROM notes").fetchone()[0]
        copy.close()
        return rows

    with followed(repo, [source], every=timedelta(seconds=0.05)):
        for number in range(1, 4):
            database.execute("INSERT INTO notes VALUES ('a note')")
            wait_for(lambda number=number: saved() == number)
        wait_for(lambda: not source.changed())
        before = len(repo.snapshots())
        time.sleep(0.5)
        assert len(repo.snapshots()) == before
    database.close()


def test_a_database_that_was_not_committed_has_changed(tmp_path, repo, monkeypatch):
    sqlite3.connect(tmp_path / "pmr.db").execute("CREATE TABLE notes (text)").connection.close()
    source = pb.SQLite(tmp_path / "pmr.db")
    monkeypatch.setattr("pharmabackup.sources.sqlite.TOO_NEW_NS", -(10**18))
    assert source.changed()
    with source.view(scratch=tmp_path):
        pass
    assert source.changed()  # it was looked at, and that is all
    repo.backup([source])
    assert not source.changed()


def test_what_was_written_in_the_same_tick_has_changed(tmp_path, repo):
    connection = sqlite3.connect(tmp_path / "pmr.db")
    connection.execute("CREATE TABLE notes (text)")
    connection.close()
    source = pb.SQLite(tmp_path / "pmr.db")
    repo.backup([source])
    assert source.changed()  # it is younger than what times can tell


def test_a_source_that_fails_for_a_whole_night_is_tried_again(repo, monkeypatch):
    monkeypatch.setattr(following, "PATIENCE_S", 0.0005)
    ill = Numbers("ill", times=1)
    turns = following._Turns([ill], 0.0001)
    for _ in range(5000):
        turns.went("ill", well=False)
    wait_for(lambda: turns.due([ill]) == [ill], 1)


def test_one_that_fails_does_not_hold_up_the_others(repo, monkeypatch):
    ill, well = Numbers("ill", times=1), Numbers("well", times=30)
    ill.fails = SourceFailed("It is ill.", remedy="Wait.", dataset="ill")
    with followed(repo, [ill, well]) as results:
        wait_for(lambda: well.left == 0, 20)
    assert results[0].failed < 12  # twice as long after each


def test_one_that_cannot_hear_that_it_is_safe_is_not_backed_up_all_the_time(repo):
    source = Numbers(times=1000)
    source.deaf = SourceFailed("Its spool is full.", remedy="Free some space.", dataset="numbers")
    with followed(repo, [source]) as results:
        time.sleep(1.5)
    assert results[0].snapshots < 8  # twice as long after each


def test_what_cannot_be_followed_is_told_at_once(repo):
    for sources in ([], [Numbers(), Numbers()]):
        with pytest.raises(pb.InvalidInput):
            repo.follow(sources, cancel=threading.Event())


def test_who_holds_back_is_told_at_once(repo, monkeypatch):
    """Another dataset of that run may take hours, or fail."""
    first, second = Numbers("first", times=1), Numbers("second", times=1)
    monkeypatch.setattr(_View, "holds_back", True)
    second.tier = 5
    told = []
    real = _View.dump

    def dump(view, sink):
        told.append((view._source.name, first.safe))
        return real(view, sink)

    monkeypatch.setattr(_View, "dump", dump)
    repo.backup([second, first])
    assert told == [("first", 0), ("second", 1)]
