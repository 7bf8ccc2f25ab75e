"""follow, wal and wal-get at a terminal, and what a person sees of them."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pharmabackup as pb


@pytest.fixture
def site(tmp_path: Path) -> Path:
    pb.KeyFile.create(tmp_path / "key")
    with pb.Repository.create(tmp_path / "repository", pb.KeyFile(tmp_path / "key"), state_dir=tmp_path / "state"):
        pass
    database = sqlite3.connect(tmp_path / "pmr.db")
    database.execute("CREATE TABLE notes (text)")
    database.commit()
    database.close()
    return tmp_path


def command(site: Path, *words: str) -> list[str]:
    return [
        sys.executable, "-m", "pharmabackup", words[0], "-r", str(site / "repository"), "--credential",
        f"keyfile:{site / 'key'}", "--state", str(site / "state"), *words[1:],
    ]  # fmt: skip


def run(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(site, *words), capture_output=True, text=True, check=False, cwd=site)


def wait_for(what, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def fake_server(site: Path, *numbers: int) -> Path:
    """The data folder of a server that has these log files ready."""
    data = site / "data"
    (data / "pg_wal" / "archive_status").mkdir(parents=True)
    (data / "global").mkdir()
    (data / "global" / "pg_control").write_bytes((77).to_bytes(8, sys.byteorder) + bytes(8184))
    for number in numbers:
        segment(data, number)
    return data


def segment(data: Path, number: int) -> None:
    from pharmabackup.sources.wal_names import HEADER

    name = f"0000000100000000{number:08X}"
    size = 1 << 20
    (data / "pg_wal" / name).write_bytes(HEADER.pack(0xD110, 2, 1, number * size) + os.urandom(size - HEADER.size))
    (data / "pg_wal" / "archive_status" / f"{name}.ready").touch()


@pytest.mark.skipif(os.name != "posix", reason="it is stopped by a signal")
def test_it_follows_until_it_is_stopped_and_says_what_it_did(site):
    process = subprocess.Popen(
        command(site, "follow", "--sqlite", f"pmr={site / 'pmr.db'}", "--every", "0.1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: "[" not in run(site, "snapshots").stdout and "pmr" in run(site, "snapshots").stdout)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and "follow: " in out and "snapshots in" in out, err


@pytest.mark.skipif(os.name != "posix", reason="it is stopped by a signal")
def test_a_gap_is_seen_by_whoever_looks_at_it_once(site):
    data = fake_server(site, 1, 2)
    words = ("follow", "--wal", f"pmr-wal={data}", "--spool", str(site / "spool"), "--every", "0.1")
    process = subprocess.Popen(command(site, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    marks = site / "spool" / "77"
    wait_for(lambda: (marks / "000000010000000000000002").exists())
    segment(data, 5)
    wait_for(lambda: (marks / "000000010000000000000005").exists())
    segment(data, 6)
    wait_for(lambda: (marks / "000000010000000000000006").exists())
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert err.count("lies on the disk that holds the data") == 1
    assert err.count("2 files of the log from 000000010000000000000003 on are not archived") == 1
    found = run(site, "wal", "pmr-wal", "--json")
    assert found.returncode == 2
    answer = json.loads(found.stdout)
    assert [one["segments"] for one in answer["ranges"]] == [2, 2]
    assert [(one["first"], one["segments"], one["until"]) for one in answer["gaps"]] == [
        ("000000010000000000000003", 2, None)
    ]
    shown = run(site, "wal", "pmr-wal").stdout
    assert "No restore goes past" in shown and shown.count("MISSING") == 1


def test_a_file_of_the_log_is_fetched_or_is_absent_or_neither(site):
    data = fake_server(site, 1)
    with pb.Repository.open(site / "repository", pb.KeyFile(site / "key"), state_dir=site / "state") as repo:
        repo.backup([pb.PostgreSQLWAL(data, spool=site / "spool", name="pmr-wal")])

    def get(name: str, **more: object) -> subprocess.CompletedProcess[str]:
        words = ("wal-get", more.get("dataset", "pmr-wal"), name, "pg_wal/RECOVERYXLOG")
        return subprocess.run(command(site, *words), capture_output=True, text=True, check=False, cwd=data)

    first = "000000010000000000000001"
    assert get(first).returncode == 0
    assert (data / "pg_wal" / "RECOVERYXLOG").read_bytes() == (data / "pg_wal" / first).read_bytes()
    assert get("000000010000000000000002").returncode == 4
    assert get("00000002.history").returncode == 4
    assert get(first, dataset="another").returncode == 66
    (data / "global" / "pg_control").write_bytes((78).to_bytes(8, sys.byteorder))
    assert get(first).returncode == 73  # another server's log


def test_what_a_server_has_to_be_set_to(site):
    data = fake_server(site)
    shown = run(site, "follow", "--wal", f"w={data}", "--spool", str(site / "spool"), "--show-setting")
    lines = shown.stdout.splitlines()
    assert lines[:2] == ["archive_mode = 'on'", "archive_timeout = '60'"]
    assert lines[2].startswith("archive_command = '\"") and '"archive"' in lines[2] and lines[2].endswith('"%p"\'')
    assert run(site, "follow", "--show-setting").returncode == 64


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("follow",), "Say what to follow"),
        (("follow", "--wal", "w=/x"), "--spool"),
        (("follow", "--wal", "/x", "--spool", "/y"), "NAME=DATA"),
        (("restore", "x", "--until", "2027-01-01"), "--wal NAME"),
        (("restore", "x", "--wal", "w"), "--into NAME=DATA"),
        (("backup", "--postgresql-cluster", "postgresql://x/y"), "NAME=URL"),
        (("backup", "--mariadb-instance", "mariadb://x"), "NAME=URL"),
        (("backup", "--sqlserver", "mssql://h/pmr"), "staging=FOLDER"),
        (("discover", "/nowhere at all"), "is no folder"),
        (("backup", "--sqlserver", "mssql://u:secret@h/pmr?staging=/x"), "without a password"),
    ],
)
def test_what_is_missing_is_said(site, words, said):
    done = run(site, *words)
    assert done.returncode == 64 and said in done.stderr


def test_a_log_needs_a_whole_server_to_go_with(site):
    data = fake_server(site, 1)
    with pb.Repository.open(site / "repository", pb.KeyFile(site / "key"), state_dir=site / "state") as repo:
        repo.backup([pb.PostgreSQLWAL(data, spool=site / "spool", name="w"), pb.SQLite(site / "pmr.db")])
    done = run(site, "restore", "--only", "pmr", "--into", f"pmr={site / 'x.db'}", "--wal", "w")
    assert done.returncode == 64 and "for a whole PostgreSQL server" in done.stderr
    done = run(site, "restore", "--only", "pmr", "--into", f"pmr={site / 'x.db'}", "--table", "notes")
    assert done.returncode == 64 and "for one PostgreSQL or MariaDB database" in done.stderr
