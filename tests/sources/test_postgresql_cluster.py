"""A whole PostgreSQL server: its files, its log, and any moment in between."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup import wal
from pharmabackup.sources import wal_command, wal_names
from tests.servers.postgresql import PASSWORD, PostgresServer, postgres, started
from tests.servers.process import as_service, free_port, kill
from tests.storage.mounts import tmpfs

psycopg = pytest.importorskip("psycopg")


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
        [(name,)] = self.do("SELECT pg_walfile_name(pg_switch_wal())")
        status = self.server.data / "pg_wal" / "archive_status"
        end = time.monotonic() + 30
        while not (status / f"{name}.done").exists():
            if self.log.changed():
                repo.backup([self.log])
            assert time.monotonic() < end, f"{name} was not archived"
            time.sleep(0.02)


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
            with suppress(FileNotFoundError):  # it was killed already
                kill(server.port)  # else it waits until all is archived


@contextmanager
def recovered(pharmacy: Pharmacy, data: Path, *, archiving: bool = False) -> Iterator[PostgresServer]:
    """The restored server, once it has recovered."""
    server = PostgresServer(free_port(), pharmacy.server.bin, data)
    with started(server, "-c", f"archive_mode={'on' if archiving else 'off'}"):

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


def recovery(repo: pb.Repository, key: Path, tmp_path: Path, until: datetime | None = None) -> wal.Recovery:
    words = [
        sys.executable, "-m", "pharmabackup", "wal-get", "-r", repo.url, "--credential", f"keyfile:{key}",
        "--state", str(tmp_path / "state-of-the-server"), "pmr-wal",
    ]  # fmt: skip
    return wal.recovery(repo, "pmr-wal", words, until=until)


def place(tmp_path: Path, name: str = "new") -> Path:
    """A data folder that is not there, in one that is of the server's account."""
    (tmp_path / name).mkdir()
    as_service("postgres", tmp_path / name)
    return tmp_path / name / "data"


def restored(
    repo: pb.Repository,
    pharmacy: Pharmacy,
    data: Path,
    recovery: wal.Recovery | None = None,
    *,
    overwrite: bool = False,
) -> pb.Report:
    target = pb.PostgreSQLCluster(data=data, name="x", tools=pharmacy.server.bin, recovery=recovery)
    return repo.restore(only=["pmr-server"], into={"pmr-server": target}, overwrite=overwrite)


def test_a_server_comes_back_as_of_any_moment(pharmacy, repo, key, tmp_path):
    pharmacy.do("CREATE TABLE notes (text text)")
    pharmacy.do("INSERT INTO notes VALUES ('1: before the backup')")
    repo.backup([pharmacy.files])
    pharmacy.do("INSERT INTO notes VALUES ('2: after it')")
    pharmacy.archive(repo)
    wanted = moment(pharmacy)
    pharmacy.do("INSERT INTO notes VALUES ('3: too late')")
    pharmacy.archive(repo)
    for name, until, expected in (("then", wanted, 2), ("end", None, 3)):
        data = place(tmp_path, name)
        restored(repo, pharmacy, data, recovery(repo, key, tmp_path, until))
        with recovered(pharmacy, data) as server:
            assert [text[0] for text in notes(server)] == ["1", "2", "3"][:expected]
        assert not (data / "pharmabackup-wal").exists()


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


def archived_one_by_one(pharmacy: Pharmacy, repo: pb.Repository, count: int) -> list[str]:
    """So many segments, each in a snapshot of its own."""
    names: list[str] = []
    for _ in range(count):
        names += ready(pharmacy)
        repo.backup([pharmacy.log])
        done(pharmacy, names[-1])
    return names


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
    history = pharmacy.server.data / "pg_wal" / "00000002.history"
    history.write_text("1\t0/FF000028\tno recovery target specified\n")  # the server asks for it first
    (history.parent / "archive_status" / "00000002.history.ready").touch()
    names.append("00000002.history")
    for expected in (1, 3, 5):
        assert pharmacy.log.changed()
        repo.backup([pharmacy.log])
        assert [entry.path for entry in repo.snapshot("pmr-wal").glob()] == [*names[:expected], names[-1]]
    assert not pharmacy.log.changed()


def test_what_another_server_archived_under_that_name_says_nothing(pharmacy, repo):
    [name] = ready(pharmacy)
    repo.backup([pharmacy.log])
    marks = pharmacy.spool / wal.system(str(pharmacy.server.data))
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
    assert snapshot.facts["runs"] == [[names[0], names[-1]]] and snapshot.facts["segments"] == 3
    for name in names:
        assert snapshot.open(name).read() == (pharmacy.server.data / "pg_wal" / name).read_bytes()
    assert added[2] < added[0]


def test_what_was_archived_long_ago_is_in_the_snapshots_of_then_alone(pharmacy, repo):
    [old] = ready(pharmacy)
    repo.backup([pharmacy.log])
    done(pharmacy, old)
    marks = pharmacy.spool / wal.system(str(pharmacy.server.data))
    os.utime(marks / old, (1, 1))
    [new] = ready(pharmacy)
    repo.backup([pharmacy.log])
    assert [[entry.path for entry in one.glob()] for one in repo.snapshots("pmr-wal")] == [[new], [old]]
    assert [path.name for path in marks.iterdir() if wal_names.is_segment(path.name)] == [new]
    assert [(one.first, one.last) for one in wal.ranges(repo, "pmr-wal")] == [(old, new)]


def forget_this_machine(tmp_path: Path) -> None:
    for folder in (tmp_path / "state").rglob("datasets"):
        shutil.rmtree(folder)


def test_what_this_machine_has_forgotten_is_read_again_as_long_as_it_is_there(pharmacy, repo, tmp_path):
    first = ready(pharmacy)
    repo.backup([pharmacy.log])
    done(pharmacy, first[0])
    forget_this_machine(tmp_path)
    second = ready(pharmacy)
    repo.backup([pharmacy.log])
    assert [[entry.path for entry in one.glob()] for one in repo.snapshots("pmr-wal")] == [first + second, first]


def test_what_nothing_else_holds_is_not_forgotten_by_rules(pharmacy, repo, tmp_path):
    """Its machine has forgotten it, and the server has let go of it: this snapshot alone has it."""
    names = []
    for number in range(4):
        names += ready(pharmacy)
        repo.backup([pharmacy.log])
        done(pharmacy, names[-1])
        if number == 1:
            forget_this_machine(tmp_path)
            for name in names:
                (pharmacy.server.data / "pg_wal" / name).unlink()
    before, first, second, third = (len(list(one.glob())) for one in reversed(repo.snapshots("pmr-wal")))
    assert (before, first, second, third) == (1, 2, 1, 2)
    repo.configure(keep={"*": pb.Keep(last=1, yearly=1)}, forget_delay=timedelta(0))
    proposal = repo.propose_forget()
    assert {one.id for one in proposal.snapshots} == {one.id for one in repo.snapshots("pmr-wal")[1:]}  # one is left
    oldest = repo.snapshots("pmr-wal")[3]
    repo.hold(oldest, reason="so that there is an older one that stays")
    repo.apply(repo.propose_forget())
    left = [one for one in repo.snapshots("pmr-wal") if not one.forgotten]
    assert [len(list(one.glob())) for one in left] == [2, 2, 1]
    assert {entry.path for one in left for entry in one.glob()} == set(names)


def test_a_gap_is_told_when_it_comes_and_when_it_is_asked_for(pharmacy, repo):
    first = ready(pharmacy)
    repo.backup([pharmacy.log])
    done(pharmacy, first[0])
    switch(pharmacy, "/bin/true")  # somebody had it archived elsewhere, for a while
    pharmacy.do("INSERT INTO notes VALUES ('lost')")
    [(lost,)] = pharmacy.do("SELECT pg_walfile_name(pg_switch_wal())")
    done(pharmacy, lost)
    switch(pharmacy, pharmacy.log.archive_command)
    [last] = ready(pharmacy)
    report = repo.backup([pharmacy.log])
    [finding] = [one for one in report.findings if one.code != "same-device"]
    assert report.state == "critical" and repo.snapshot("pmr-wal").complete
    assert (finding.code, finding.severity, finding.subject) == ("wal-gap", "critical", lost)
    assert "1 files of the log from" in finding.message
    done(pharmacy, last)  # it is safe all the same
    ranges, missing = wal.ranges(repo, "pmr-wal"), wal.gaps(repo, "pmr-wal")
    assert [(one.first, one.last, one.segments) for one in ranges] == [(first[0], first[0], 1), (last, last, 1)]
    assert [(one.first, one.last, one.segments, one.until) for one in missing] == [(lost, lost, 1, None)]
    ready(pharmacy)
    assert "wal-gap" not in [one.code for one in repo.backup([pharmacy.log]).findings]  # it is told once


# ------------------------------------------------------------ what a server that recovers is given


def test_a_file_is_fetched_whole_and_those_after_it_ahead(pharmacy, repo, tmp_path):
    names = archived_one_by_one(pharmacy, repo, 3)
    of = wal.system(str(pharmacy.server.data))
    assert wal.fetch(repo, "pmr-wal", names[0], tmp_path / "x", of=of, ahead=tmp_path / "ahead")
    for path, name in ((tmp_path / "x", names[0]), *((tmp_path / "ahead" / name, name) for name in names[1:])):
        assert path.read_bytes() == (pharmacy.server.data / "pg_wal" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "ahead").iterdir()) == names[1:]
    assert not wal.fetch(repo, "pmr-wal", wal_names.after(names[2], 16 << 20), tmp_path / "y", of=of)
    with pytest.raises(pb.Conflict, match="another server"):
        wal.fetch(repo, "pmr-wal", names[0], tmp_path / "y", of="another server")
    assert not wal.fetch(repo, "pmr-wal", "00000002.history", tmp_path / "y", of=of)
    assert not (tmp_path / "y").exists()
    with pytest.raises(pb.NotFound):
        wal.fetch(repo, "another", names[0], tmp_path / "y", of=of)
    with pytest.raises(pb.InvalidInput):
        wal.fetch(repo, "pmr-wal", "../etc/passwd", tmp_path / "y", of=of)
    with pytest.raises(pb.SourceFailed):
        wal.fetch(repo, "pmr-wal", names[0], tmp_path / "no" / "folder", of=of)


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (4, 44), (1, 45), (44, 45), (66, 45), (74, 45), (255, 45)])
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
    restored(repo, pharmacy, place(tmp_path), recovery(repo, key, tmp_path))
    (tmp_path / "repository").rename(tmp_path / "away")
    unable = started(PostgresServer(free_port(), pharmacy.server.bin, tmp_path / "new" / "data"))
    with pytest.raises(AssertionError, match="exit code 200"), unable:
        pass
    (tmp_path / "away").rename(tmp_path / "repository")
    with recovered(pharmacy, tmp_path / "new" / "data") as server:
        assert notes(server) == ["1"]


# ------------------------------------------------------------ the files


def test_a_server_starts_from_its_files_alone(pharmacy, repo, tmp_path):
    pharmacy.do("CREATE TABLE notes (text text); INSERT INTO notes VALUES ('1')")
    repo.backup([pharmacy.files])
    report = restored(repo, pharmacy, place(tmp_path))
    assert report.datasets["pmr-server"].facts["verified"] == "pg_verifybackup"
    with recovered(pharmacy, tmp_path / "new" / "data") as server:
        assert notes(server) == ["1"]


def test_what_is_there_is_not_touched_or_is_kept(pharmacy, repo, tmp_path):
    repo.backup([pharmacy.files])
    data = place(tmp_path)
    data.mkdir()
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
    data = place(tmp_path)
    data.mkdir()
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

    monkeypatch.setattr("pharmabackup.sources.data_folder._sync", broken)
    with pytest.raises(pb.Incomplete, match="restore"):
        restored(repo, pharmacy, place(tmp_path))
    assert list((tmp_path / "new").iterdir()) == []


def test_a_full_disk_leaves_nothing_open(pharmacy, repo):
    if not (hasattr(os, "geteuid") and os.geteuid() == 0):
        pytest.skip("mounts a small file system")
    repo.backup([pharmacy.files])
    with tmpfs("8m") as small:
        shutil.chown(small, "postgres", "postgres")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            with pytest.raises(pb.Incomplete) as caught:
                restored(repo, pharmacy, small / "data")
            assert "Free some space" in " ".join(
                finding.message + finding.remedy for finding in caught.value.findings
            )
            assert list(small.iterdir()) == []
        assert len(os.listdir("/proc/self/fd")) <= before + 1


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
    with pytest.raises(pb.Incomplete) as caught:
        repo.backup([pharmacy.files, pharmacy.log])
    assert "tablespaces" in messages(caught.value)["dataset-failed"]
    assert [one.dataset for one in repo.snapshots()] == ["pmr-wal"]  # the others are backed up all the same


def test_arguments_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(pb.InvalidInput, match="by its url, or"):
        pb.PostgreSQLCluster(name="x")
    with pytest.raises(pb.InvalidInput, match="by its url, or"):
        pb.PostgreSQLCluster("pmr", data=tmp_path, name="x")
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
    assert found.segments > 2
    restored(repo, pharmacy, place(tmp_path), recovery(repo, key, tmp_path))
    with recovered(pharmacy, tmp_path / "new" / "data") as server:
        assert notes(server) == written


# ------------------------------------------------------------ more than one life


def goes_on(pharmacy: Pharmacy, server: PostgresServer, spool: Path) -> Pharmacy:
    """The restored server takes the place of the first, and is archived into the same dataset."""
    there = Pharmacy(server, spool)
    switch(there, there.log.archive_command)
    return there


def test_a_server_that_was_restored_twice_comes_to_each_moment_of_each_life(pharmacy, repo, key, tmp_path):
    pharmacy.do("CREATE TABLE notes (text text); INSERT INTO notes VALUES ('1')")
    repo.backup([pharmacy.files])
    pharmacy.archive(repo)
    early = moment(pharmacy)
    pharmacy.do("INSERT INTO notes VALUES ('2')")
    pharmacy.archive(repo)
    late = moment(pharmacy)
    pharmacy.do("INSERT INTO notes VALUES ('3')")
    pharmacy.archive(repo)
    kill(pharmacy.server.port)
    data = place(tmp_path)
    restored(repo, pharmacy, data, recovery(repo, key, tmp_path, early))
    with recovered(pharmacy, data, archiving=True) as server:
        second = goes_on(pharmacy, server, pharmacy.spool)
        second.do("INSERT INTO notes VALUES ('another 2')")
        second.archive(repo)
        assert notes(server) == ["1", "another 2"]
        kill(server.port)
    assert wal.gaps(repo, "pmr-wal") == []
    assert {one.timeline for one in wal.ranges(repo, "pmr-wal")} == {1, 2}
    for name, until, expected in (
        ("first life", late, ["1", "2"]),
        ("newest", None, ["1", "another 2"]),
    ):
        data = place(tmp_path, name)
        restored(repo, pharmacy, data, recovery(repo, key, tmp_path, until))
        with recovered(pharmacy, data) as server:
            assert notes(server) == expected


def test_the_moment_of_an_earlier_restore_does_not_count_in_the_next(pharmacy, repo, key, tmp_path):
    pharmacy.do("CREATE TABLE notes (text text); INSERT INTO notes VALUES ('1')")
    repo.backup([pharmacy.files])
    pharmacy.archive(repo)
    until = moment(pharmacy)
    pharmacy.archive(repo)
    pharmacy.do("INSERT INTO notes VALUES ('2')")
    pharmacy.archive(repo)
    kill(pharmacy.server.port)
    data = place(tmp_path)
    restored(repo, pharmacy, data, recovery(repo, key, tmp_path, until))
    with recovered(pharmacy, data, archiving=True) as server:
        second = goes_on(pharmacy, server, pharmacy.spool)
        second.do("INSERT INTO notes VALUES ('3')")
        repo.backup([second.files])
        second.do("INSERT INTO notes VALUES ('4')")
        second.archive(repo)
        kill(server.port)
    data = place(tmp_path, "again")
    restored(repo, pharmacy, data, recovery(repo, key, tmp_path))
    with recovered(pharmacy, data) as server:
        assert notes(server) == ["1", "3", "4"]


def test_a_server_that_was_restored_without_its_log_begins_a_life_of_its_own(pharmacy, repo, tmp_path):
    """Else it would write other files under names that are archived already."""
    pharmacy.do("CREATE TABLE notes (text text)")
    repo.backup([pharmacy.files])
    data = place(tmp_path)
    restored(repo, pharmacy, data)
    with recovered(pharmacy, data) as server, server.connect() as connection:
        [(name,)] = connection.execute("SELECT pg_walfile_name(pg_current_wal_lsn())").fetchall()
    assert wal_names.timeline(name) == 2


@pytest.mark.parametrize("old", [False, True])
def test_a_copy_of_a_server_cannot_archive_into_the_log_of_the_other(pharmacy, repo, old):
    names = []
    for _ in range(3):
        names += ready(pharmacy)
        repo.backup([pharmacy.log])
        done(pharmacy, names[-1])
        if old:
            os.utime(pharmacy.spool / wal.system(str(pharmacy.server.data)) / names[-1], (1, 1))
    assert old != (pharmacy.spool / wal.system(str(pharmacy.server.data)) / names[0]).exists()
    data = pharmacy.server.data / "pg_wal"
    content = bytearray((data / names[0]).read_bytes())
    content[9_000_000] ^= 1
    (data / names[0]).write_bytes(content)  # as a copy of before would have written it
    (data / "archive_status" / f"{names[0]}.ready").touch()
    assert pharmacy.log.changed()
    with pytest.raises(pb.Incomplete) as caught:
        repo.backup([pharmacy.log])
    assert "is another than the file that was archived" in messages(caught.value)["dataset-failed"]


def test_a_file_that_comes_late_closes_its_gap(pharmacy, repo):
    """A server asks for older files again: those that it kept and had not asked for while archiving was off."""
    [first] = ready(pharmacy)
    repo.backup([pharmacy.log])
    done(pharmacy, first)
    switch(pharmacy, "/bin/true")
    pharmacy.do("INSERT INTO notes VALUES ('not archived')")
    [(lost,)] = pharmacy.do("SELECT pg_walfile_name(pg_switch_wal())")
    done(pharmacy, lost)
    switch(pharmacy, pharmacy.log.archive_command)
    [last] = ready(pharmacy)
    repo.backup([pharmacy.log])
    done(pharmacy, last)
    assert [one.first for one in wal.gaps(repo, "pmr-wal")] == [lost]
    (pharmacy.server.data / "pg_wal" / "archive_status" / f"{lost}.ready").touch()
    assert "wal-gap" not in [one.code for one in repo.backup([pharmacy.log]).findings]
    assert wal.gaps(repo, "pmr-wal") == []


def test_what_is_safe_in_one_repository_is_not_in_another(pharmacy, repo, tmp_path, key):
    names = ready(pharmacy)
    repo.backup([pharmacy.log])
    done(pharmacy, names[-1])
    with pb.Repository.create(tmp_path / "other", pb.KeyFile(key), state_dir=tmp_path / "state") as other:
        with pytest.raises(pb.Incomplete) as caught:
            other.backup([pharmacy.log])
        assert "in another repository" in messages(caught.value)["dataset-failed"]
        renamed = pb.PostgreSQLWAL(pharmacy.server.data, spool=pharmacy.spool, name="another name")
        with pytest.raises(pb.Incomplete):
            repo.backup([renamed])


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such modes")
def test_a_spool_that_others_can_write_to_is_refused(pharmacy, repo):
    pharmacy.spool.mkdir()
    pharmacy.spool.chmod(0o777)
    with pytest.raises(pb.Incomplete) as caught:
        repo.backup([pharmacy.log])
    assert "Others can write" in messages(caught.value)["dataset-failed"]


@pytest.mark.parametrize("text", ["", "nonsense"])
def test_a_mark_that_cannot_be_read_is_none(pharmacy, repo, text):
    [name] = ready(pharmacy)
    repo.backup([pharmacy.log])
    (pharmacy.spool / wal.system(str(pharmacy.server.data)) / name).write_text(text)
    pharmacy.do("SELECT 1")
    status_file = pharmacy.server.data / "pg_wal" / "archive_status" / f"{name}.ready"
    if not status_file.exists():
        status_file.touch()
    assert pharmacy.log.changed() and command(pharmacy, name) != 0
    repo.backup([pharmacy.log])
    assert command(pharmacy, name) == 0


def test_a_timeline_that_begins_later_than_where_it_left_has_a_gap(pharmacy, repo, tmp_path, monkeypatch):
    """Made from a real history and real segments: timeline 2 left the first within its second segment."""
    names = archived_one_by_one(pharmacy, repo, 2)
    log = pharmacy.server.data / "pg_wal"
    size = 16 << 20
    fork = wal_names.number(names[1], size)
    (log / "00000002.history").write_text(f"1\t0/{fork * size + 40:X}\tno recovery target specified\n")
    kill(pharmacy.server.port)
    for number in (fork + 1, fork + 3):
        name = wal_names.named(2, number, size)
        data = bytearray((log / names[1]).read_bytes())
        data[: wal_names.HEADER.size] = wal_names.HEADER.pack(0xD110, 2, 2, number * size)
        (log / name).write_bytes(data)
        (log / "archive_status" / f"{name}.ready").touch()
    (log / "archive_status" / "00000002.history.ready").touch()
    report = repo.backup([pharmacy.log])
    told = [one.subject for one in report.findings if one.code == "wal-gap"]
    expected = [wal_names.named(2, number, size) for number in (fork, fork + 2)]
    assert told == expected == [one.first for one in wal.gaps(repo, "pmr-wal")]


# ------------------------------------------------------------ what must not be taken for the end of the log


def test_a_lost_file_in_the_middle_is_no_end(pharmacy, repo, tmp_path):
    names = archived_one_by_one(pharmacy, repo, 3)
    of = wal.system(str(pharmacy.server.data))
    snapshots = repo.snapshots("pmr-wal")
    real = wal._runs

    def without_the_second(snapshot):
        return (
            [(names[0], names[0])] if snapshot.id == snapshots[2].id else [(names[0], names[0]), (names[2], names[2])]
        )

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(wal, "_runs", without_the_second)
        with pytest.raises(pb.Damaged, match="never archived, or is lost"):
            wal.fetch(repo, "pmr-wal", names[1], tmp_path / "RECOVERYXLOG", of=of)
        (tmp_path / names[1]).write_bytes(bytes(16 << 20))  # what a server uses again has any content
        with pytest.raises(pb.Damaged, match="never archived, or is lost"):
            wal.fetch(repo, "pmr-wal", names[1], tmp_path / "RECOVERYXLOG", of=of)
        shutil.copy(pharmacy.server.data / "pg_wal" / names[1], tmp_path)  # a backup of the files brought it
        assert not wal.fetch(repo, "pmr-wal", names[1], tmp_path / "RECOVERYXLOG", of=of)
    assert real(snapshots[0]) == [(names[0], names[2])]


@pytest.mark.parametrize("how", ["flipped", "gone"])
def test_a_damaged_record_is_no_end(pharmacy, repo, tmp_path, how, key):
    names = archived_one_by_one(pharmacy, repo, 2)
    of = wal.system(str(pharmacy.server.data))
    newest = repo.snapshot("pmr-wal").id
    [record] = [path for path in (tmp_path / "repository").rglob(f"*{newest}*") if path.parent.name == "snapshots"]
    if how == "flipped":
        data = bytearray(record.read_bytes())
        data[len(data) // 2] ^= 1
        record.chmod(0o600)
        record.write_bytes(data)
    else:
        record.unlink()
    with pb.Repository.open(tmp_path / "repository", pb.KeyFile(key), state_dir=tmp_path / "state-3") as fresh:
        assert wal.fetch(fresh, "pmr-wal", names[0], tmp_path / "x", of=of)  # what is there is given
        one = fresh if how == "flipped" else repo  # a machine that never saw it cannot miss it
        with pytest.raises(pb.Damaged, match="can be read"):
            wal.fetch(one, "pmr-wal", names[1], tmp_path / "x", of=of)
        if how == "flipped":  # a person says that it was another dataset's
            assert not wal.fetch(one, "pmr-wal", names[1], tmp_path / "x", of=of, despite_damage=True)


def test_another_snapshot_may_hold_what_is_damaged_in_one(pharmacy, repo, tmp_path, monkeypatch):
    names = ready(pharmacy)
    repo.backup([pharmacy.log])
    done(pharmacy, names[-1])
    ready(pharmacy)
    repo.backup([pharmacy.log])
    newest, real = repo.snapshot("pmr-wal").id, wal._put

    def put(snapshot, name, target):
        if snapshot.id == newest:
            raise pb.Damaged("It is damaged.", kind="block", remedy="Mend it.")
        real(snapshot, name, target)

    monkeypatch.setattr(wal, "_put", put)
    of = wal.system(str(pharmacy.server.data))
    assert wal.fetch(repo, "pmr-wal", names[0], tmp_path / "x", of=of)


class Told:
    """A snapshot of a log, as far as its facts go."""

    forgotten, kind = False, "postgresql-wal"

    def __init__(self, minute: int, *runs: tuple[int, int, int], histories: dict[int, tuple[str, int]] | None = None):
        size = 16 << 20
        self.time = datetime(2027, 3, 9, 10, minute, tzinfo=UTC)
        named = [
            [wal_names.named(line, first, size), wal_names.named(line, last, size)] for line, first, last in runs
        ]
        texts = {
            f"{line:08X}.history": [text, int(datetime(2027, 3, 9, 10, began, tzinfo=UTC).timestamp()) * 10**9]
            for line, (text, began) in (histories or {}).items()
        }
        self.facts = {"system": "7", "segment_size": size, "runs": named, "others": list(texts), "histories": texts}


@pytest.mark.parametrize(
    ("minute", "line"),
    [(0, 1), (9, 1), (10, 2), (25, 2), (29, 2), (30, 3), (50, 3), (None, 3)],
)
def test_the_life_in_which_a_server_was_at_a_moment_is_found(monkeypatch, minute, line):
    """Also if rules have let go of all but the last snapshot of the hour, which holds all three."""
    lives = {2: ("1\t0/3000028\tx", 10), 3: ("1\t0/5000028\tx", 30)}
    snapshots = [Told(59, (1, 1, 9), (2, 3, 4), (3, 5, 7), histories=lives)]
    monkeypatch.setattr(wal, "_snapshots", lambda *_: snapshots)
    until = None if minute is None else datetime(2027, 3, 9, 10, minute, tzinfo=UTC)
    assert wal.recovery(None, "w", ["x"], until=until).timelines == {"7": line}
    assert wal.recovery(None, "w", ["x"], until=until, timeline=2).timelines == {"7": 2}


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("000000010000000000000006", True),  # timeline 2 left the first within 7
        ("000000010000000000000007", False),
        ("000000010000000000000008", False),
        ("000000020000000000000006", False),  # it was not there yet
        ("000000020000000000000008", True),
        ("00000002000000000000000A", False),
        ("00000002.history", True),
        ("00000003.history", False),
        ("00000001.history", False),  # there is none, ever
        ("000000010000000000000003.00000028.backup", False),
    ],
)
def test_what_is_there_of_the_log_shows_what_is_no_end(monkeypatch, tmp_path, name, refused):
    lost = {2: ("1\t0/7000028\tx", 10)}
    snapshots = [Told(59, (1, 1, 5), (2, 9, 9), histories=lost)]
    snapshots[0].facts["others"] = []
    monkeypatch.setattr(wal, "_snapshots", lambda *_: snapshots)
    monkeypatch.setattr(wal, "_refuse_damage", lambda *_: None)
    if refused:
        with pytest.raises(pb.Damaged, match="later files of the log"):
            wal.fetch(None, "w", name, tmp_path / "x", of="7")
    else:
        assert not wal.fetch(None, "w", name, tmp_path / "x", of="7")


def test_a_life_of_which_only_the_beginning_is_archived_is_not_passed_by(monkeypatch, tmp_path):
    """The one before goes on in the file in which it was left: what that restore undid would come back."""
    snapshots = [Told(59, (1, 1, 12), histories={2: ("1\t0/8000028\tx", 30)})]
    monkeypatch.setattr(wal, "_snapshots", lambda *_: snapshots)
    monkeypatch.setattr(wal, "_refuse_damage", lambda *_: None)
    assert wal.recovery(None, "w", ["x"]).timelines == {"7": 2}
    with pytest.raises(pb.Damaged, match="later files of the log"):
        wal.fetch(None, "w", "000000020000000000000008", tmp_path / "x", of="7")
    assert not wal.fetch(None, "w", "000000020000000000000009", tmp_path / "x", of="7")
    early = datetime(2027, 3, 9, 10, 20, tzinfo=UTC)
    assert wal.recovery(None, "w", ["x"], until=early).timelines == {"7": 1}


def test_a_history_that_never_was_archived_can_be_said_to_be_none(monkeypatch, tmp_path):
    snapshots = [Told(30, (2, 9, 9)), Told(10, (1, 1, 9))]
    monkeypatch.setattr(wal, "_snapshots", lambda *_: snapshots)
    with pytest.raises(pb.Damaged), monkeypatch.context() as patched:
        patched.setattr(wal, "_refuse_damage", lambda *_: None)
        wal.fetch(None, "w", "00000002.history", tmp_path / "x", of="7")
    assert not wal.fetch(None, "w", "00000002.history", tmp_path / "x", of="7", despite_damage=True)
    early = datetime(2027, 3, 9, 10, 20, tzinfo=UTC)
    assert wal.recovery(None, "w", ["x"], until=early).timelines == {"7": 1}  # seen later, as far as one knows


def test_damage_further_on_does_not_hold_up_what_comes_before(pharmacy, repo, tmp_path, monkeypatch):
    names = archived_one_by_one(pharmacy, repo, 2)
    real = wal._put

    def put(snapshot, name, target):
        if name == names[1]:
            raise pb.Damaged("It is damaged.", kind="block", remedy="Mend it.")
        real(snapshot, name, target)

    monkeypatch.setattr(wal, "_put", put)
    of = wal.system(str(pharmacy.server.data))
    assert wal.fetch(repo, "pmr-wal", names[0], tmp_path / "x", of=of, ahead=tmp_path / "ahead")
    with pytest.raises(pb.Damaged):
        wal.fetch(repo, "pmr-wal", names[1], tmp_path / "x", of=of)


@pytest.mark.skipif(os.name != "posix", reason="it is the line for a POSIX shell")
@pytest.mark.parametrize("fault", ["", "script", "python"])
def test_a_command_that_cannot_be_started_stops_the_server(tmp_path, monkeypatch, fault):
    """1 to 125 would be the end of the log."""
    from pharmabackup.sources import wal_settings

    executable, *options, script = wal_settings.SCRIPT
    if fault == "script":
        script = str(tmp_path / "no such script")
    elif fault == "python":
        executable = str(tmp_path / "no such python")
    monkeypatch.setattr(wal_settings, "SCRIPT", (executable, *options, script))
    for code, expected in ((0, 0), (4, 1), (1, 200), (44, 200)):
        line = wal_settings.restore_command([sys.executable, "-c", f"raise SystemExit({code})"])
        line = line.replace("%f", "0" * 24).replace("%p", str(tmp_path / "x"))
        done = subprocess.run(line, shell=True, cwd=tmp_path, stderr=subprocess.DEVNULL, check=False)
        assert done.returncode == (200 if fault else expected)


def test_what_an_earlier_recovery_was_told_is_not_left():
    from pharmabackup.sources import wal_settings

    before = "work_mem = '8MB'\nrecovery_prefetch = 'on'\n"
    before += "recovery_target_xid = '7'\n restore_command = 'x'\nRecovery_Target_Time = 'x'\n"
    assert wal_settings.without_recovery(before) == "work_mem = '8MB'\nrecovery_prefetch = 'on'\n"
    told = wal.Recovery(restore_command="x", timelines={"7": 3, "8": None}, until=None)
    for settings in (wal_settings.recovery_settings(None, "7"), wal_settings.recovery_settings(told, "7")):
        assert {settings[name] for name in wal_settings.TARGETS} == {""}  # also what another file of its says
    assert wal_settings.recovery_settings(told, "7")["recovery_target_timeline"] == "3"
    assert wal_settings.recovery_settings(told, "8")["recovery_target_timeline"] == "latest"
    assert wal_settings.lines({"a": r"C:\new 'folder'"}) == [r"a = 'C:\\new ''folder'''"]


def test_a_log_of_another_server_is_refused_before_anything_is_written(pharmacy, repo, key, tmp_path):
    repo.backup([pharmacy.files])
    other = wal.Recovery(restore_command="x", timelines={"7": None}, until=None)
    with pytest.raises(pb.Conflict, match="another server"):
        restored(repo, pharmacy, place(tmp_path), other)
    assert list((tmp_path / "new").iterdir()) == []
