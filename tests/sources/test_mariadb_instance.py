"""A whole MariaDB server, as its files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.sources import mariadb_unpack
from pharmabackup.testing.source import CancelledLater, children
from tests.servers.mariadb import PASSWORD, MariaServer, mariadb, started
from tests.servers.process import free_port, kill
from tests.sources.test_mbstream import chunk, whole
from tests.storage.mounts import tmpfs

pymysql = pytest.importorskip("pymysql")
NAME = "pmr-server"


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    if shutil.which("mariadb-backup") is None:
        pytest.skip("mariadb-backup is not installed (Debian: mariadb-backup)")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaServer]:
    with mariadb(tmp_path_factory.mktemp("mariadb")) as made:
        do(made, "CREATE DATABASE pmr")
        do(made, "CREATE TABLE pmr.entry (id int PRIMARY KEY, drug varchar(60)) ENGINE=InnoDB")
        do(made, "CREATE TABLE pmr.ledger (id int PRIMARY KEY, balance int) ENGINE=InnoDB")
        do(made, "CREATE TABLE pmr.old (id int PRIMARY KEY) ENGINE=Aria")
        yield made


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of the server's account, in which a data folder may be made."""
    folder = tmp_path / "new"
    folder.mkdir()
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        shutil.chown(folder, "mysql", "mysql")
    return folder


def do(server: MariaServer, statement: str) -> list[tuple]:
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())


def source(server: MariaServer, **more: object) -> pb.MariaDBInstance:
    url = f"mariadb://{more.pop('user', server.user)}@127.0.0.1:{server.port}"
    return pb.MariaDBInstance(url, name=NAME, **{"password": PASSWORD, **more})


def restored(repo: pb.Repository, data: Path, **more: object):
    return repo.restore(into={NAME: pb.MariaDBInstance(data=data, name=NAME)}, **more)


def write(server: MariaServer, number: int) -> None:
    """One transaction in two tables."""
    with server.connect("pmr") as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("REPLACE INTO entry VALUES (%s, 'Morphine 10 mg/5 ml')", (number,))
        cursor.execute("REPLACE INTO ledger VALUES (%s, %s)", (number, -number))
        cursor.execute("COMMIT")


@contextmanager
def back(data: Path, folder: Path, *options: str) -> Iterator[MariaServer]:
    """The restored server."""
    made = MariaServer(free_port(), folder / "s", data)
    with started(made, folder, *options):
        yield made


def numbers(server: MariaServer) -> list[int]:
    entries = [number for (number,) in do(server, "SELECT id FROM pmr.entry ORDER BY id")]
    assert [(number, -number) for number in entries] == do(server, "SELECT * FROM pmr.ledger ORDER BY id")
    return entries


def messages(error: pb.Error) -> str:
    return " ".join(finding.message for finding in error.findings)


def test_a_server_at_full_work_comes_back_whole_and_cut_between_two_writes(server, repo, place):
    do(server, "REPLACE INTO pmr.old VALUES (7)")
    stop, written = threading.Event(), 0

    def go_on() -> None:
        nonlocal written
        while not stop.is_set():
            write(server, written)
            written += 1

    writer = threading.Thread(target=go_on)
    writer.start()
    try:
        while written < 50:
            time.sleep(0.01)
        before = written
        report = repo.backup([source(server)])
    finally:
        stop.set()
        writer.join()
    assert report.datasets[NAME].complete and written > before
    snapshot = repo.snapshot(NAME)
    assert snapshot.facts["product"] == "MariaDB" and snapshot.facts["settings"]["innodb_page_size"] == "16384"
    assert json.loads(snapshot.open("server.json").read())["server"] == snapshot.facts["server"]
    result = restored(repo, place / "data")
    assert result.datasets[NAME].facts["verified"] == "innochecksum"
    assert list(place.iterdir()) == [place / "data"]
    with back(place / "data", place) as again:
        found = numbers(again)
        assert found == list(range(len(found))) and before <= len(found) <= written
        assert do(again, "SELECT * FROM pmr.old") == [(7,)]
        assert {said for *_, said in do(again, "CHECK TABLE pmr.entry, pmr.ledger, pmr.old EXTENDED")} == {"OK"}
        # Users and their passwords are the server's, and in it.
        assert do(again, "SELECT count(*) FROM mysql.user WHERE user = 'pharmacy'") == [(2,)]


def test_a_day_later_only_what_changed_is_added(server, repo):
    with server.connect("pmr") as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS many (id int PRIMARY KEY, text varchar(200))")
        cursor.executemany("REPLACE INTO many VALUES (%s, sha2(%s, 512))", [(n, n) for n in range(20_000)])
    first = repo.backup([source(server)]).datasets[NAME]
    do(server, "UPDATE pmr.many SET text = 'changed' WHERE id IN (17, 9000)")
    again = repo.backup([source(server)]).datasets[NAME]
    do(server, "DROP TABLE pmr.many")
    assert again.bytes > 5_000_000 and again.added < first.added / 4


def test_what_is_there_is_not_touched_or_is_kept(server, repo, place):
    repo.backup([source(server)])
    data = place / "data"
    data.mkdir()
    (data / "mine").write_text("kept")
    with pytest.raises(pb.Conflict, match="is not empty and was not touched"):
        restored(repo, data)
    assert [path.name for path in data.iterdir()] == ["mine"]
    replaced = restored(repo, data, overwrite=True).datasets[NAME].facts["replaced"]
    assert (place / replaced / "mine").read_text() == "kept" and (data / "ibdata1").exists()


def test_a_server_that_runs_is_not_replaced(server, repo, place):
    repo.backup([source(server)])
    before = sorted(path.name for path in server.data.iterdir())
    with pytest.raises(pb.Conflict, match="A server runs in"):
        restored(repo, server.data, overwrite=True)
    assert sorted(path.name for path in server.data.iterdir()) == before
    restored(repo, place / "data")
    with back(place / "data", place) as again:
        with pytest.raises(pb.Conflict, match="A server runs in"):
            restored(repo, place / "data", overwrite=True)
        kill(again.port)
    restored(repo, place / "data", overwrite=True)  # what was killed holds nothing


@pytest.mark.parametrize("looks", [1, 2, 3, 5, 8, 13])
def test_a_cancelled_restore_leaves_nothing(server, repo, place, looks):
    repo.backup([source(server)])
    with pytest.raises(pb.Cancelled):
        restored(repo, place / "data", cancel=CancelledLater(looks))
    assert list(place.iterdir()) == []


def test_a_cancelled_backup_leaves_no_process(server, repo):
    cancel = threading.Event()
    before = children()

    def progress(event: pb.Event) -> None:
        if event.kind == "dataset":
            cancel.set()

    with pytest.raises(pb.Cancelled):
        repo.backup([source(server)], progress=progress, cancel=cancel)
    assert set(children()) <= set(before) and repo.snapshots() == []


def test_a_backup_that_is_cancelled_while_it_is_read_stops_its_program(server, repo, monkeypatch):
    from pharmabackup.engine.dataset import DatasetSink

    real, cancel, seen = DatasetSink.stream, threading.Event(), []

    def stopped(self, read_into, **more):
        def read(view):
            size = read_into(view)
            seen.append(any(name.startswith("mariadb-backup") for name in children().values()))
            cancel.set()
            return size

        return real(self, read, **more)

    monkeypatch.setattr(DatasetSink, "stream", stopped)
    with pytest.raises(pb.Cancelled):
        repo.backup([source(server)], cancel=cancel)
    assert any(seen) and not any(name.startswith("mariadb-backup") for name in children().values())
    assert repo.snapshots() == []
    do(server, "CREATE TABLE pmr.free (a int)")  # nothing of it holds the server
    do(server, "DROP TABLE pmr.free")


@pytest.mark.skipif(sys.platform != "linux", reason="whose processes they are is asked of /proc")
def test_a_backup_that_is_killed_leaves_no_process_and_no_lock(server, repo, key, tmp_path):
    script = (
        "import sys, time; import pharmabackup as pb; from pharmabackup.engine.dataset import DatasetSink\n"
        "def stream(self, read_into, **more):\n"
        "    read_into(memoryview(bytearray(100))); print('reading', flush=True); time.sleep(600)\n"
        "DatasetSink.stream = stream\n"
        f"who, where = pb.KeyFile({str(key)!r}), {str(tmp_path / 'repository')!r}\n"
        "with pb.Repository.open(where, who, state_dir=sys.argv[1]) as r:\n"
        f"    r.backup([pb.MariaDBInstance('mariadb://{server.user}@127.0.0.1:{server.port}', name='{NAME}')])\n"
    )
    mark = os.urandom(8).hex()
    environment = {**os.environ, "MYSQL_PWD": PASSWORD, "KILLED_BACKUP": mark}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "other")], env=environment, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == b"reading\n"
        process.kill()
    until = time.monotonic() + 30
    while any(mark.encode() in path.read_bytes() for path in environments()):
        assert time.monotonic() < until, "something that the killed backup has started lives on"
        time.sleep(0.05)
    do(server, "CREATE TABLE pmr.free (a int)")
    do(server, "DROP TABLE pmr.free")
    assert repo.snapshots() == []
    repo.backup([source(server)])


def environments() -> Iterator[Path]:
    """Of all processes that can be read."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            path.read_bytes()
            yield path


def test_a_restore_that_was_killed_is_seen_by_the_next(server, repo, place):
    repo.backup([source(server)])
    (place / "data.restoring").mkdir()
    with pytest.raises(pb.Conflict, match=r"A restore into .* runs, or was killed"):
        restored(repo, place / "data")
    (place / "data.restoring").rmdir()
    restored(repo, place / "data")


def test_a_backup_whose_program_is_killed_is_none(server, repo, monkeypatch):
    with server.connect("pmr") as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS wide (id int PRIMARY KEY, text longblob)")
        cursor.executemany("REPLACE INTO wide VALUES (%s, random_bytes(1000000))", [(n,) for n in range(8)])
    from pharmabackup.engine.dataset import DatasetSink

    real = DatasetSink.stream

    def killed(self, read_into, **more):
        def read(view):
            for process, name in children().items():
                if name.startswith("mariadb-backup"):
                    os.kill(process, 9)
            return read_into(view)

        return real(self, read, **more)

    monkeypatch.setattr(DatasetSink, "stream", killed)
    with pytest.raises(pb.Incomplete) as caught:
        repo.backup([source(server)])
    do(server, "DROP TABLE pmr.wide")
    assert "mariadb-backup ended with code" in messages(caught.value) and repo.snapshots() == []


def test_pages_that_are_not_as_the_server_had_them_are_not_put_there(server, repo, place, monkeypatch):
    write(server, 0)
    repo.backup([source(server)])
    real = mariadb_unpack._verify

    def flipped(program, files, *rest):
        [path] = [path for path in files if path.name == "entry.ibd"]
        content = bytearray(path.read_bytes())
        content[3 * 16384 + 200] ^= 1
        path.write_bytes(content)
        real(program, files, *rest)

    monkeypatch.setattr(mariadb_unpack, "_verify", flipped)
    with pytest.raises(pb.Incomplete) as caught:
        restored(repo, place / "data")
    assert "not as the server had them" in messages(caught.value)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("number", [28, 5])  # no space left, an error of the disk
def test_a_disk_that_fails_leaves_nothing(server, repo, place, monkeypatch, number):
    repo.backup([source(server)])

    def broken(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pharmabackup.sources.data_folder._sync", broken)
    with pytest.raises(pb.Incomplete, match="restore"):
        restored(repo, place / "data")
    assert list(place.iterdir()) == []


def test_the_password_is_on_no_command_line(server, repo, monkeypatch):
    seen = []
    from pharmabackup.engine.dataset import DatasetSink

    real = DatasetSink.stream

    def look(self, read_into, **more):
        for process, name in children().items():
            if name.startswith("mariadb-backup"):
                seen.append(Path("/proc", str(process), "cmdline").read_bytes())
        return real(self, read_into, **more)

    monkeypatch.setattr(DatasetSink, "stream", look)
    repo.backup([source(server)])
    assert seen and not any(PASSWORD.encode() in line for line in seen)


def test_the_command_line_backs_up_and_restores_a_server(server, repo, key, place, tmp_path):
    write(server, 0)
    where = ["-r", str(tmp_path / "repository"), "--credential", f"keyfile:{key}", "--state", str(tmp_path / "state")]
    environment = {**os.environ, "MYSQL_PWD": PASSWORD}

    def run(verb: str, *more: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "pharmabackup", verb, *where, *more], check=True, env=environment, cwd=tmp_path
        )

    run(
        "backup",
        "--mariadb-instance",
        f"{NAME}=mariadb://{server.user}@127.0.0.1:{server.port}",
        "--tier",
        f"{NAME}=1",
    )
    assert repo.snapshot(NAME).tier == 1
    run("restore", "--into", f"{NAME}={place / 'data'}")
    with back(place / "data", place) as again:
        assert numbers(again) == numbers(server)


# ---------------------------------------------------------------- what is refused


def test_a_user_who_may_not_copy_the_server_is_told_which_rights_it_needs(server, repo):
    do(server, f"CREATE USER IF NOT EXISTS small@127.0.0.1 IDENTIFIED BY '{'x' * 20}'")
    with pytest.raises(pb.Incomplete) as caught:
        repo.backup([source(server, user="small", password="x" * 20)])
    assert "may not copy the server" in messages(caught.value)
    assert any("BINLOG MONITOR" in finding.remedy for finding in caught.value.findings)
    small_user(server)
    repo.backup([source(server, user="small", password="x" * 20)])


@pytest.mark.parametrize(
    "clause",
    [
        "DATA DIRECTORY='{}'",
        "PARTITION BY RANGE (id) (PARTITION a VALUES LESS THAN (9) DATA DIRECTORY='{}')",
    ],
)
def test_tables_that_lie_elsewhere_are_refused(server, repo, clause):
    """Also where the user has no right on them."""
    elsewhere = server.data.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    shutil.chown(elsewhere, "mysql", "mysql")
    small_user(server)
    do(server, f"CREATE TABLE pmr.far (id int PRIMARY KEY) ENGINE=InnoDB {clause.format(elsewhere)}")
    try:
        for user in ({}, {"user": "small", "password": "x" * 20}):
            with pytest.raises(pb.Incomplete) as caught:
                repo.backup([source(server, **user)])
            assert "tables whose files are outside of the data folder" in messages(caught.value)
    finally:
        do(server, "DROP TABLE pmr.far")
    assert repo.snapshots() == []


def small_user(server: MariaServer) -> None:
    """With the rights that the page names, and no others."""
    do(server, f"CREATE USER IF NOT EXISTS small@127.0.0.1 IDENTIFIED BY '{'x' * 20}'")
    do(server, "GRANT RELOAD, PROCESS, LOCK TABLES, BINLOG MONITOR ON *.* TO small@127.0.0.1")


@pytest.mark.parametrize(
    ("option", "file"),
    [
        ("innodb-undo-directory", None),
        ("innodb-log-group-home-dir", "ib_logfile0"),
        ("innodb-data-home-dir", "ibdata1"),
    ],
)
def test_a_server_that_keeps_files_elsewhere_is_refused(tmp_path, repo, option, file):
    folder = tmp_path / "server"
    (folder / "elsewhere").mkdir(parents=True)
    with mariadb(folder) as other:
        pass
    if file is not None:
        (other.data / file).rename(folder / "elsewhere" / file)
    shutil.chown(folder / "elsewhere", "mysql", "mysql")
    with started(other, folder, f"--{option}={folder / 'elsewhere'}"), pytest.raises(pb.Incomplete) as caught:
        repo.backup([source(other)])
    assert "outside of its data folder" in messages(caught.value)


def test_tables_of_several_formats_come_back(server, repo, place):
    makes = {
        "compressed": "ROW_FORMAT=COMPRESSED", "pages": "PAGE_COMPRESSED=1", "compact": "ROW_FORMAT=COMPACT",
    }  # fmt: skip
    do(server, "CREATE DATABASE formats")
    try:
        for name, make in makes.items():
            do(server, f"CREATE TABLE formats.{name} (id int PRIMARY KEY, text varchar(200)) {make}")
            do(server, f"INSERT INTO formats.{name} VALUES (1, repeat('x', 200))")
        do(server, "SET GLOBAL innodb_checksum_algorithm = full_crc32")  # of what is made from now on
        do(server, "CREATE TABLE formats.newer (id int PRIMARY KEY)")
        do(server, "SET GLOBAL innodb_checksum_algorithm = crc32")
        do(server, "CREATE TABLE formats.older (id int PRIMARY KEY)")
        repo.backup([source(server)])
    finally:
        do(server, "DROP DATABASE formats")
        do(server, "SET GLOBAL innodb_checksum_algorithm = default")
    restored(repo, place / "data")
    with back(place / "data", place) as again:
        for name in makes:
            assert do(again, f"SELECT id, length(text) FROM formats.{name}") == [(1, 200)]


@pytest.mark.skipif(not Path("/usr/lib/mysql/plugin/provider_lz4.so").exists(), reason="mariadb-plugin-provider-lz4")
def test_a_server_with_providers_of_compression_comes_back(tmp_path, repo, place):
    (tmp_path / "server").mkdir()
    with mariadb(tmp_path / "server", "--plugin-load-add=provider_lz4") as other:
        repo.backup([source(other)])
    restored(repo, place / "data")


def test_a_server_with_files_of_another_make_comes_back(tmp_path, repo, place):
    options = (
        "--innodb-page-size=8k", "--innodb-data-file-path=first-file:10M;second:10M:autoextend",
        "--innodb-undo-tablespaces=3", "--lower-case-table-names=1", "--innodb-checksum-algorithm=full_crc32",
    )  # fmt: skip
    (tmp_path / "server").mkdir()
    with mariadb(tmp_path / "server", *options) as other:
        do(other, "CREATE DATABASE pmr")
        do(other, "CREATE TABLE pmr.entry (id int PRIMARY KEY, drug varchar(60))")
        do(other, "CREATE TABLE pmr.ledger (id int PRIMARY KEY, balance int)")
        write(other, 0)
        repo.backup([source(other)])
    checked = restored(repo, place / "data").datasets[NAME].facts["files"]
    assert checked >= 2 + 3 + 2 and repo.snapshot(NAME).facts["settings"]["innodb_page_size"] == "8192"
    with back(place / "data", place, *options) as again:
        assert numbers(again) == [0]


def test_a_server_with_encrypted_tables_comes_back_where_its_keys_are(tmp_path, repo, place):
    keys = tmp_path / "keys"
    keys.write_text("1;" + "ab" * 32 + "\n")
    keys.chmod(0o644)
    encrypted = (
        "--plugin-load-add=file_key_management", f"--loose-file-key-management-filename={keys}",
        "--innodb-encrypt-tables=FORCE", "--innodb-encrypt-log=ON",
    )  # fmt: skip
    (tmp_path / "server").mkdir()
    with mariadb(tmp_path / "server", *encrypted) as other:
        do(other, "CREATE DATABASE pmr")
        do(other, "CREATE TABLE pmr.entry (id int PRIMARY KEY, drug varchar(60))")
        do(other, "CREATE TABLE pmr.ledger (id int PRIMARY KEY, balance int)")
        write(other, 0)
        assert b"Morphine" not in b"".join(path.read_bytes() for path in other.data.glob("pmr/*.ibd"))
        repo.backup([source(other)])
    away = keys.rename(tmp_path / "away")
    with pytest.raises(pb.Incomplete) as caught:
        restored(repo, place / "data")
    assert "encryption keys are not here" in messages(caught.value) and list(place.iterdir()) == []
    away.rename(keys)
    restored(repo, place / "data")
    assert not (place / "data" / "backup-my.cnf").exists()  # where a key's password would be
    with back(place / "data", place, *encrypted) as again:
        assert numbers(again) == [0]


def test_programs_of_another_version_or_none_are_refused(server, repo, place, tmp_path):
    repo.backup([source(server)])
    facts = dict(repo.snapshot(NAME).facts)
    target = pb.MariaDBInstance(data=place / "data", name=NAME)
    with pytest.raises(pb.Unsupported, match="only that version can start it"):
        target.prepare({**facts, "major": 11}, overwrite=False)
    with pytest.raises(pb.Unsupported, match="no backup of a whole MariaDB server"):
        target.prepare({**facts, "product": "MySQL"}, overwrite=False)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mariadb-backup").symlink_to(shutil.which("mariadb-backup"))
    with pytest.raises(pb.SourceFailed, match="mbstream is not installed"):
        pb.MariaDBInstance(data=place / "data", name=NAME, tools=tmp_path / "bin").prepare(facts, overwrite=False)


@pytest.mark.parametrize(
    "url", ["mariadb://u@h/pmr", "pmr", "localhost", "postgresql://h", "mariadb://u:secret@h", "mariadb://u@h?x=1"]
)
def test_what_is_no_address_of_a_server_is_refused_without_repeating_a_password(url):
    with pytest.raises(pb.InvalidInput) as caught:
        pb.MariaDBInstance(url, name=NAME)
    assert "secret" not in str(caught.value)


def test_arguments_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(pb.InvalidInput, match="backed up by its url, or restored into data"):
        pb.MariaDBInstance(name=NAME)
    with pytest.raises(pb.InvalidInput, match="backed up by its url, or restored into data"):
        pb.MariaDBInstance("mariadb://h", name=NAME, data=tmp_path)


@pytest.mark.parametrize(
    "stream",
    [
        [chunk("ibdata1", b"x"), chunk("../outside", b"x")],
        [chunk("p/evil.ibd", b"x"), chunk("p/evil.ren", b"../../outside/pwned"), *whole()],
        [chunk("backup-my.cnf", b"[mysqld]\nplugin_load=server_audit=server_audit\n")],
        [chunk("backup-my.cnf", b"[mysqld]\nfile_key_management_filename=/dev/zero\n")],
    ],
)
def test_a_stream_that_would_reach_elsewhere_is_not_unpacked(server, repo, place, stream):
    """What a stolen device's key may have put there."""
    repo.backup([source(server)])

    class Forged:
        facts = repo.snapshot(NAME).facts

        def read(self, _name: bytes) -> Iterator[bytes]:
            yield from stream

        def check(self) -> None:
            pass

    with pytest.raises(pb.SourceFailed, match="none that a server's folder is made of"):
        pb.MariaDBInstance(data=place / "data", name=NAME).load(Forged(), overwrite=False)
    assert list(place.iterdir()) == []


def test_a_folder_that_may_not_be_looked_into_is_not_taken_for_a_server_s(server, repo, place, monkeypatch):
    repo.backup([source(server)])
    data = place / "data"
    data.write_bytes(b"a file")
    with pytest.raises(pb.Conflict, match="is not empty and was not touched"):
        restored(repo, data)
    real = os.open

    def denied(path, *rest, **more):
        if os.fspath(path).endswith("ibdata1"):
            raise PermissionError(13, "Permission denied")
        return real(path, *rest, **more)

    monkeypatch.setattr(mariadb_unpack.os, "open", denied)
    with pytest.raises(pb.SourceFailed, match="cannot be looked into"):
        restored(repo, data)


def test_a_disk_that_is_full_is_told_as_that(server, repo):
    if not (hasattr(os, "geteuid") and os.geteuid() == 0):
        pytest.skip("mounts a small file system")
    repo.backup([source(server)])
    with tmpfs("8m") as small:
        shutil.chown(small, "mysql", "mysql")
        with pytest.raises(pb.Incomplete) as caught:
            restored(repo, small / "data")
        assert "is full" in messages(caught.value) and list(small.iterdir()) == []


def test_a_name_that_cannot_be_given_back_is_told_and_nothing_is_removed(server, repo, place, monkeypatch):
    repo.backup([source(server)])
    data = place / "data"
    data.mkdir()
    (data / "mine").write_text("kept")
    real = Path.rename

    def fails(self, target):
        if self.name.endswith(".restoring") or ".before-" in self.name:
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(pb.Incomplete) as caught:
        restored(repo, data, overwrite=True)
    [kept] = place.glob("data.before-*")
    assert kept.name in messages(caught.value) and "data.restoring" in messages(caught.value)
    assert (kept / "mine").read_text() == "kept" and (place / "data.restoring" / "ibdata1").exists()


def test_another_folder_in_its_place_is_not_given_away(server, repo, place, monkeypatch, tmp_path):
    repo.backup([source(server)])
    (tmp_path / "secret").mkdir()
    real = mariadb_unpack._verify

    def swapped(*given):
        real(*given)
        (place / "data.restoring").rename(tmp_path / "away")
        (place / "data.restoring").symlink_to(tmp_path / "secret")

    monkeypatch.setattr(mariadb_unpack, "_verify", swapped)
    with pytest.raises(pb.Incomplete):
        restored(repo, place / "data")
    assert (tmp_path / "secret").stat().st_uid == os.getuid() and not (place / "data").exists()


def test_nothing_is_lost_between_two_renames(server, repo, place, monkeypatch):
    repo.backup([source(server)])
    data = place / "data"
    data.mkdir()
    (data / "mine").write_text("kept")
    real = Path.rename

    def interrupted(self, target):
        if self.name.endswith(".restoring"):
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        restored(repo, data, overwrite=True)
    assert [path.name for path in place.iterdir()] == ["data"] and (data / "mine").read_text() == "kept"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_what_is_given_away_leads_nowhere_else(tmp_path):
    from pharmabackup.sources.data_folder import _give

    secret = tmp_path / "secret"
    secret.write_text("root's")
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    (fresh / "link").symlink_to(secret)
    _give(fresh, os.stat_result((0, 0, 0, 0, 65534, 65534, 0, 0, 0, 0)))
    assert secret.stat().st_uid == 0 and fresh.stat().st_uid == 65534
