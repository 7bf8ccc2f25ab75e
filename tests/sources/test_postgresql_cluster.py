"""A whole PostgreSQL server: its files, its log, and any moment in between."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup import wal
from pharmabackup.sources import wal_command, wal_names
from tests.servers.postgresql import PASSWORD, PostgresServer, postgres, started
from tests.servers.process import as_service, free_port, kill

psycopg = pytest.importorskip("psycopg")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "owner.key"
    pb.KeyFile.create(path)
    return path


@pytest.fixture
def repo(tmp_path: Path, key: Path) -> Iterator[pb.Repository]:
    with pb.Repository.create(tmp_path / "repository", pb.KeyFile(key), state_dir=tmp_path / "state") as made:
        yield made


class Pharmacy:
    """A server whose log is archived, and what a test does with it."""

    def __init__(self, server: PostgresServer, spool: Path) -> None:
        self.server = server
        self.spool = spool
        self.log = pb.PostgreSQLWAL(server.data, spool=spool, name="pmr-wal")
        self.files = pb.PostgreSQLCluster(
            server.url("postgres"), name="pmr-server", password=PASSWORD, tools=server.bin
        )

    def do(self, statement: str) -> list[tuple]:
        with self.server.connect() as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def archive(self, repo: pb.Repository) -> None:
        """All that was written until now."""
        self.do("SELECT pg_switch_wal()")
        status = self.server.data / "pg_wal" / "archive_status"
        wait_for(lambda: any(status.glob("*.ready")) and self.log.changed())
        repo.backup([self.log])
        wait_for(lambda: not any(status.glob("*.ready")))


def messages(error: pb.Error) -> dict[str, str]:
    return {finding.code: finding.message for finding in error.findings}


def wait_for(what, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


@pytest.fixture
def pharmacy(tmp_path: Path) -> Iterator[Pharmacy]:
    with archived(tmp_path) as made:
        yield made


@contextmanager
def archived(folder: Path) -> Iterator[Pharmacy]:
    (folder / "server").mkdir()
    spool = folder / "spool"
    with postgres(folder / "server", "-c", "archive_mode=on", "-c", "wal_level=replica") as server:
        made = Pharmacy(server, spool)
        try:
            switch(made, made.log.archive_command)
            yield made
        finally:
            kill(server.port)  # else it waits until all is archived


@contextmanager
def recovered(pharmacy: Pharmacy, data: Path) -> Iterator[PostgresServer]:
    """The restored server, once it has recovered."""
    server = PostgresServer(free_port(), pharmacy.server.bin, data)
    with started(server, "-c", "archive_mode=off"):

        def done() -> bool:
            with server.connect() as connection:
                return connection.execute("SELECT NOT pg_is_in_recovery()").fetchone() == (True,)

        wait_for(done)
        yield server


def moment(pharmacy: Pharmacy) -> datetime:
    """A time that lies between what was done before and what comes after."""
    time.sleep(0.05)
    [(found,)] = pharmacy.do("SELECT clock_timestamp()")
    time.sleep(0.05)
    return found


def notes(server: PostgresServer) -> list[str]:
    with server.connect() as connection:
        return [text for (text,) in connection.execute("SELECT text FROM notes ORDER BY 1")]


def fetching(repo: pb.Repository, key: Path, tmp_path: Path) -> str:
    return wal.restore_command(
        [sys.executable, "-m", "pharmabackup", "wal-get", "-r", repo.url, "--credential", f"keyfile:{key}",
         "--state", str(tmp_path / "state-of-the-server"), "pmr-wal"]
    )  # fmt: skip


def test_a_server_comes_back_as_of_any_moment(pharmacy, repo, key, tmp_path):
    pharmacy.do("CREATE TABLE notes (text text)")
    pharmacy.do("INSERT INTO notes VALUES ('1: before the backup')")
    repo.backup([pharmacy.files])
    pharmacy.do("INSERT INTO notes VALUES ('2: after it')")
    pharmacy.archive(repo)
    wanted = moment(pharmacy)
    pharmacy.do("INSERT INTO notes VALUES ('3: too late')")
    pharmacy.archive(repo)
    command = fetching(repo, key, tmp_path)
    for name, until, expected in (("then", wanted, 2), ("end", None, 3)):
        (tmp_path / name).mkdir()
        as_service("postgres", tmp_path / name)  # whose account it is to be of
        target = pb.PostgreSQLCluster(
            data=tmp_path / name / "data",
            name="x",
            tools=pharmacy.server.bin,
            until=until,
            restore_command=command,
        )
        repo.restore(only=["pmr-server"], into={"pmr-server": target})
        with recovered(pharmacy, tmp_path / name / "data") as server:
            assert [text[0] for text in notes(server)] == ["1", "2", "3"][:expected]
        assert not (tmp_path / name / "data" / "pharmabackup-wal").exists()


# ------------------------------------------------------------ what is acknowledged


def command(pharmacy: Pharmacy, name: str) -> int:
    """What the server calls for one file of its log, but without its patience."""
    before = Path.cwd()
    os.chdir(pharmacy.server.data)
    try:
        return wal_command.archived(str(pharmacy.spool), f"pg_wal/{name}", 0.0)
    finally:
        os.chdir(before)


def status(pharmacy: Pharmacy) -> set[str]:
    return {path.name for path in (pharmacy.server.data / "pg_wal" / "archive_status").iterdir()}


def done(pharmacy: Pharmacy, name: str) -> None:
    """Once the server has been told that it is safe."""
    wait_for(lambda: f"{name}.done" in status(pharmacy))


def switch(pharmacy: Pharmacy, archive_command: str) -> None:
    with (pharmacy.server.data / "postgresql.conf").open("a") as file:
        file.write(f"archive_command = '{archive_command}'\n")
    pharmacy.do("SELECT pg_reload_conf()")
    wait_for(lambda: pharmacy.do("SHOW archive_command") == [(archive_command,)])


def ready(pharmacy: Pharmacy) -> list[str]:
    """Segments that wait, of which there is one more than before."""
    before = status(pharmacy)
    pharmacy.do("CREATE TABLE IF NOT EXISTS notes (text text); INSERT INTO notes VALUES ('one more')")
    pharmacy.do("SELECT pg_switch_wal()")
    wait_for(lambda: any(name.endswith(".ready") for name in status(pharmacy) - before))
    return sorted(name.removesuffix(".ready") for name in status(pharmacy) if name.endswith(".ready"))


def test_nothing_is_acknowledged_before_it_is_committed(pharmacy, repo, monkeypatch):
    [name] = ready(pharmacy)
    assert command(pharmacy, name) == wal_command.AGAIN

    def commit(*_):
        raise pb.StorageFailed("It is full.", kind="full", retryable=False, location="x", remedy="Free some space.")

    with monkeypatch.context() as patched:
        patched.setattr("pharmabackup.engine.transaction.Transaction.commit", commit)
        with pytest.raises(pb.StorageFailed):
            repo.backup([pharmacy.log])
    assert command(pharmacy, name) == wal_command.AGAIN
    assert f"{name}.ready" in status(pharmacy)
    assert pharmacy.log.changed()
    repo.backup([pharmacy.log])
    assert command(pharmacy, name) == 0
    assert not pharmacy.log.changed()
    done(pharmacy, name)


def test_a_file_that_is_not_what_was_stored_is_not_acknowledged(pharmacy, repo):
    [name] = ready(pharmacy)
    repo.backup([pharmacy.log])
    done(pharmacy, name)
    path = pharmacy.server.data / "pg_wal" / name
    data = bytearray(path.read_bytes())
    data[9_000_000] ^= 1
    path.write_bytes(data)
    assert command(pharmacy, name) == wal_command.OTHER


def test_the_very_file_that_was_read_is_known_without_reading_it(pharmacy, repo, monkeypatch):
    [name] = ready(pharmacy)
    repo.backup([pharmacy.log])
    done(pharmacy, name)
    read, real = [], wal_command.digest
    monkeypatch.setattr(wal_command, "digest", lambda path: read.append(path) or real(path))
    assert command(pharmacy, name) == 0 and not read
    os.utime(pharmacy.server.data / "pg_wal" / name)  # as of a copy of it
    assert command(pharmacy, name) == 0 and len(read) == 1


def test_a_long_row_of_files_is_archived_bit_by_bit(pharmacy, repo, monkeypatch):
    monkeypatch.setattr("pharmabackup.sources.postgresql_wal.AT_ONCE", 2)
    switch(pharmacy, "/bin/false")
    while len(names := ready(pharmacy)) < 5:
        pass
    for expected in (2, 4, 5):
        assert pharmacy.log.changed()
        repo.backup([pharmacy.log])
        assert [entry.path for entry in repo.snapshot("pmr-wal").glob()] == names[:expected]
    assert not pharmacy.log.changed()


def test_what_another_server_archived_under_that_name_says_nothing(pharmacy, repo):
    [name] = ready(pharmacy)
    repo.backup([pharmacy.log])
    [marks] = pharmacy.spool.iterdir()
    marks.rename(marks.with_name("7000000000000000001"))
    assert command(pharmacy, name) == wal_command.AGAIN


def test_a_file_of_another_place_in_the_log_is_not_archived(pharmacy, repo):
    [name] = ready(pharmacy)
    wal_files = pharmacy.server.data / "pg_wal"
    later = wal_names.after(wal_names.after(name, 16 << 20), 16 << 20)
    (wal_files / later).write_bytes((wal_files / name).read_bytes())
    (wal_files / "archive_status" / f"{later}.ready").touch()
    with pytest.raises(pb.Incomplete, match="not backed up") as caught:
        repo.backup([pharmacy.log])
    assert "not what its name says" in messages(caught.value)["dataset-failed"]
    assert command(pharmacy, later) == command(pharmacy, name) == wal_command.AGAIN


def test_a_file_that_the_server_no_longer_asks_for_is_not_acknowledged(pharmacy, repo, monkeypatch):
    """It may have been used again while it was read."""
    [name] = ready(pharmacy)
    monkeypatch.setattr(pb.PostgreSQLWAL, "_is_ready", lambda *_: False)
    with pytest.raises(pb.Incomplete):
        repo.backup([pharmacy.log])
    assert command(pharmacy, name) == wal_command.AGAIN


# ------------------------------------------------------------ what snapshots hold


def test_a_snapshot_holds_what_was_archived_in_the_last_hours_and_stores_it_once(pharmacy, repo):
    names, added = [], []
    for _ in range(3):
        names += ready(pharmacy)
        report = repo.backup([pharmacy.log])
        added.append(report.datasets["pmr-wal"].added)
        done(pharmacy, names[-1])
    snapshot = repo.snapshot("pmr-wal")
    assert [entry.path for entry in snapshot.glob()] == names
    assert snapshot.facts["first"] == names[0] and snapshot.facts["last"] == names[-1]
    for name in names:
        assert snapshot.open(name).read() == (pharmacy.server.data / "pg_wal" / name).read_bytes()
    assert added[2] < added[0]


def test_what_was_archived_long_ago_is_in_the_snapshots_of_then_alone(pharmacy, repo):
    [old] = ready(pharmacy)
    repo.backup([pharmacy.log])
    done(pharmacy, old)
    [marks] = pharmacy.spool.iterdir()
    os.utime(marks / old, (1, 1))
    [new] = ready(pharmacy)
    repo.backup([pharmacy.log])
    assert [[entry.path for entry in one.glob()] for one in repo.snapshots("pmr-wal")] == [[new], [old]]
    assert [path.name for path in marks.iterdir()] == [new]
    assert [(one.first, one.last) for one in wal.ranges(repo, "pmr-wal")] == [(old, new)]


def test_without_this_machine_s_memory_only_what_is_new_is_in_it(pharmacy, repo, tmp_path):
    first = ready(pharmacy)
    repo.backup([pharmacy.log])
    done(pharmacy, first[0])
    shutil.rmtree(tmp_path / "state" / repo.id / "datasets", ignore_errors=True)
    for folder in (tmp_path / "state").rglob("datasets"):
        shutil.rmtree(folder)
    second = ready(pharmacy)
    repo.backup([pharmacy.log])
    assert [[entry.path for entry in one.glob()] for one in repo.snapshots("pmr-wal")] == [second, first]


def test_a_gap_is_told_when_it_comes_and_when_it_is_asked_for(pharmacy, repo):
    first = ready(pharmacy)
    repo.backup([pharmacy.log])
    done(pharmacy, first[0])
    switch(pharmacy, "/bin/true")  # somebody had it archived elsewhere, for a while
    [lost] = ready(pharmacy)
    done(pharmacy, lost)
    switch(pharmacy, pharmacy.log.archive_command)
    [last] = ready(pharmacy)
    with pytest.raises(pb.Incomplete) as caught:
        repo.backup([pharmacy.log])
    [finding] = [one for one in caught.value.findings if one.code != "same-device"]
    assert (finding.code, finding.severity, finding.subject) == ("wal-gap", "critical", last)
    assert "1 segment" in finding.message
    done(pharmacy, last)  # it is safe all the same
    ranges = wal.ranges(repo, "pmr-wal")
    assert [(one.first, one.last, one.segments) for one in ranges] == [(first[0], first[0], 1), (last, last, 1)]
    assert not ranges[0].leads_to(ranges[1])
    ready(pharmacy)
    repo.backup([pharmacy.log])  # it is told once


# ------------------------------------------------------------ what a server that recovers is given


def test_a_file_is_fetched_whole_and_those_after_it_ahead(pharmacy, repo, tmp_path):
    names = []
    for _ in range(3):
        names += ready(pharmacy)
        repo.backup([pharmacy.log])
        done(pharmacy, names[-1])
    of = wal.system(str(pharmacy.server.data))
    assert wal.fetch(repo, "pmr-wal", names[0], tmp_path / "x", of=of, ahead=tmp_path / "ahead")
    for path, name in ((tmp_path / "x", names[0]), *((tmp_path / "ahead" / name, name) for name in names[1:])):
        assert path.read_bytes() == (pharmacy.server.data / "pg_wal" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "ahead").iterdir()) == names[1:]
    assert not wal.fetch(repo, "pmr-wal", wal_names.after(names[2], 16 << 20), tmp_path / "y", of=of)
    assert not wal.fetch(repo, "pmr-wal", names[0], tmp_path / "y", of="another server")
    assert not wal.fetch(repo, "pmr-wal", "00000002.history", tmp_path / "y", of=of)
    assert not (tmp_path / "y").exists()
    with pytest.raises(pb.NotFound):
        wal.fetch(repo, "another", names[0], tmp_path / "y", of=of)
    with pytest.raises(pb.InvalidInput):
        wal.fetch(repo, "pmr-wal", "../etc/passwd", tmp_path / "y", of=of)
    with pytest.raises(pb.SourceFailed):
        wal.fetch(repo, "pmr-wal", names[0], tmp_path / "no" / "folder", of=of)


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (4, 1), (1, 200), (66, 200), (74, 200), (255, 200)])
def test_only_what_is_not_there_is_told_to_be_absent(tmp_path, code, expected):
    """A server that hears that there is no such file begins to work, without what came after."""
    failing = [sys.executable, "-c", f"raise SystemExit({code})"]
    assert wal_command.fetched(str(tmp_path), "0" * 24, str(tmp_path / "x"), failing) == expected


def test_what_was_fetched_ahead_is_taken_without_asking(tmp_path):
    (tmp_path / ("0" * 24)).write_bytes(b"a segment")
    assert wal_command.fetched(str(tmp_path), "0" * 24, str(tmp_path / "x"), ["no such program"]) == 0
    assert (tmp_path / "x").read_bytes() == b"a segment" and not (tmp_path / ("0" * 24)).exists()


def test_a_server_that_cannot_fetch_does_not_start(pharmacy, repo, key, tmp_path):
    """It would be of an earlier moment than what was asked for, and nobody would know."""
    pharmacy.do("CREATE TABLE notes (text text)")
    repo.backup([pharmacy.files])
    pharmacy.do("INSERT INTO notes VALUES ('1')")
    pharmacy.archive(repo)
    (tmp_path / "new").mkdir()
    as_service("postgres", tmp_path / "new")
    target = pb.PostgreSQLCluster(
        data=tmp_path / "new" / "data",
        name="x",
        tools=pharmacy.server.bin,
        restore_command=fetching(repo, key, tmp_path),
    )
    repo.restore(only=["pmr-server"], into={"pmr-server": target})
    (tmp_path / "repository").rename(tmp_path / "away")
    unable = started(PostgresServer(free_port(), pharmacy.server.bin, tmp_path / "new" / "data"))
    with pytest.raises(AssertionError, match="restore"), unable:
        pass
    (tmp_path / "away").rename(tmp_path / "repository")
    with recovered(pharmacy, tmp_path / "new" / "data") as server:
        assert notes(server) == ["1"]


# ------------------------------------------------------------ the files


def restored(repo: pb.Repository, pharmacy: Pharmacy, data: Path, *, overwrite: bool = False) -> pb.Report:
    target = pb.PostgreSQLCluster(data=data, name="x", tools=pharmacy.server.bin)
    return repo.restore(only=["pmr-server"], into={"pmr-server": target}, overwrite=overwrite)


def test_a_server_starts_from_its_files_alone(pharmacy, repo, tmp_path):
    pharmacy.do("CREATE TABLE notes (text text); INSERT INTO notes VALUES ('1')")
    repo.backup([pharmacy.files])
    (tmp_path / "new").mkdir()
    as_service("postgres", tmp_path / "new")
    report = restored(repo, pharmacy, tmp_path / "new" / "data")
    assert report.datasets["pmr-server"].facts["verified"] == "pg_verifybackup"
    with recovered(pharmacy, tmp_path / "new" / "data") as server:
        assert notes(server) == ["1"]


def test_what_is_there_is_not_touched_or_is_kept(pharmacy, repo, tmp_path):
    repo.backup([pharmacy.files])
    data = tmp_path / "new" / "data"
    data.mkdir(parents=True)
    (data / "mine").write_text("mine")
    with pytest.raises(pb.Conflict, match="was not touched"):
        restored(repo, pharmacy, data)
    (data / "postmaster.pid").write_text("1")
    with pytest.raises(pb.Conflict, match="runs in"):
        restored(repo, pharmacy, data, overwrite=True)
    (data / "postmaster.pid").unlink()
    report = restored(repo, pharmacy, data, overwrite=True)
    [kept] = tmp_path.glob("new/data.before-*")
    assert report.datasets["pmr-server"].facts["replaced"] == kept.name
    assert (kept / "mine").read_text() == "mine" and (data / "PG_VERSION").exists()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["data", kept.name]


def test_files_that_are_not_as_the_server_had_them_are_not_put_there(pharmacy, repo, tmp_path, monkeypatch):
    from pharmabackup.sources import postgresql_unpack

    repo.backup([pharmacy.files])
    data = tmp_path / "new" / "data"
    data.mkdir(parents=True)
    real = postgresql_unpack._verify

    def flipped(fresh, *rest):
        path = next(path for path in sorted((fresh / "base").rglob("*")) if path.is_file() and path.stat().st_size)
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)
        real(fresh, *rest)

    monkeypatch.setattr(postgresql_unpack, "_verify", flipped)
    with pytest.raises(pb.Incomplete) as caught:
        restored(repo, pharmacy, data)
    assert "not as the server had them" in messages(caught.value)["load-failed"]
    assert list((tmp_path / "new").iterdir()) == [data] and list(data.iterdir()) == []


@pytest.mark.parametrize("number", [28, 5])  # no space left, an error of the disk
def test_a_disk_that_fails_leaves_nothing(pharmacy, repo, tmp_path, monkeypatch, number):
    repo.backup([pharmacy.files])

    def broken(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pharmabackup.sources.postgresql_unpack._sync", broken)
    with pytest.raises(pb.Incomplete, match="restore"):
        restored(repo, pharmacy, tmp_path / "new" / "data")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_user_who_may_not_copy_the_server_is_told_so(pharmacy, repo):
    pharmacy.do("CREATE ROLE clerk LOGIN PASSWORD 'clerk of the tests'")
    source = pb.PostgreSQLCluster(
        pharmacy.server.url("postgres", "clerk"),
        name="pmr-server",
        password="clerk of the tests",
        tools=pharmacy.server.bin,
    )
    with pytest.raises(pb.Incomplete) as caught:
        repo.backup([source])
    assert "REPLICATION" in str([one.remedy for one in caught.value.findings])
    assert repo.snapshots() == []


def test_tablespaces_of_its_own_are_refused(pharmacy, repo, tmp_path):
    (tmp_path / "server" / "space").mkdir()
    as_service("postgres", tmp_path / "server" / "space")
    pharmacy.do(f"CREATE TABLESPACE more LOCATION '{tmp_path / 'server' / 'space'}'")
    with pytest.raises(pb.Unsupported, match="tablespaces"):
        repo.backup([pharmacy.files])


def test_arguments_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(pb.InvalidInput, match="by its url, or"):
        pb.PostgreSQLCluster(name="x")
    with pytest.raises(pb.InvalidInput, match="by its url, or"):
        pb.PostgreSQLCluster("pmr", data=tmp_path, name="x")
    with pytest.raises(pb.InvalidInput, match="archived WAL"):
        pb.PostgreSQLCluster(data=tmp_path, name="x", until=datetime.now(UTC))
    with pytest.raises(pb.InvalidInput, match="no time zone"):
        pb.PostgreSQLCluster(data=tmp_path, name="x", until=datetime(2027, 1, 1), restore_command="x")
    with pytest.raises(pb.InvalidInput, match="empty"):
        pb.PostgreSQLWAL("", spool=tmp_path, name="x")
    with pytest.raises(pb.InvalidInput, match="cannot be part of"):
        pb.PostgreSQLWAL(tmp_path, spool=tmp_path / 'a "quoted" folder', name="x").archive_command  # noqa: B018


def test_a_folder_that_is_no_server_s_is_told(tmp_path, repo):
    with pytest.raises(pb.Incomplete) as caught:
        repo.backup([pb.PostgreSQLWAL(tmp_path / "no", spool=tmp_path / "spool", name="x")])
    assert "is not there" in messages(caught.value)["dataset-failed"]


# ------------------------------------------------------------ at full speed, and killed


def test_no_transaction_is_lost_though_the_archiver_is_killed_again_and_again(pharmacy, repo, key, tmp_path):
    pharmacy.do("CREATE TABLE notes (text text); CREATE TABLE ballast (data text)")
    repo.backup([pharmacy.files])
    over, written = threading.Event(), []
    ballast = "INSERT INTO ballast SELECT repeat(md5(random()::text), 300) FROM generate_series(1, 200)"

    def write():
        with pharmacy.server.connect() as connection:
            while not over.is_set():
                text = f"{len(written):08}"
                connection.execute("INSERT INTO notes VALUES (%s)", (text,))
                connection.execute(ballast)
                written.append(text)

    writer = threading.Thread(target=write)
    writer.start()
    follow = [
        sys.executable, "-m", "pharmabackup", "follow", "-r", repo.url, "--credential", f"keyfile:{key}", "-q",
        "--state", str(tmp_path / "state-2"), "--wal", f"pmr-wal={pharmacy.server.data}",
        "--spool", str(pharmacy.spool), "--every", "0.05",
    ]  # fmt: skip
    try:
        for seconds in (0.7, 0.9, 1.3, 1.1, 2.0):
            process = subprocess.Popen(follow, stderr=subprocess.PIPE)
            time.sleep(seconds)
            assert process.poll() is None, process.stderr.read()
            process.kill()
            process.communicate()
    finally:
        over.set()
        writer.join()
    process = subprocess.Popen(follow, stderr=subprocess.PIPE)
    pharmacy.do("SELECT pg_switch_wal()")
    wait_for(lambda: not any(name.endswith(".ready") for name in status(pharmacy)), 60)
    process.terminate()
    assert process.wait(30) == 0, process.stderr.read()
    process.stderr.close()
    [found] = wal.ranges(repo, "pmr-wal")
    assert found.segments > 3
    (tmp_path / "new").mkdir()
    as_service("postgres", tmp_path / "new")
    target = pb.PostgreSQLCluster(
        data=tmp_path / "new" / "data",
        name="x",
        tools=pharmacy.server.bin,
        restore_command=fetching(repo, key, tmp_path),
    )
    repo.restore(only=["pmr-server"], into={"pmr-server": target})
    with recovered(pharmacy, tmp_path / "new" / "data") as server:
        assert notes(server) == written
