"""A restore that only looks: what would come back, and what would be in its way."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections import namedtuple

import pytest

import pharmabackup as pb
from tests.conftest import PASSPHRASE


@pytest.fixture
def shop(tmp_path):
    (tmp_path / "documents" / "sops").mkdir(parents=True)
    (tmp_path / "documents" / "a.txt").write_bytes(b"x" * 300_000)
    (tmp_path / "documents" / "sops" / "b.txt").write_bytes(b"y" * 700)
    database = sqlite3.connect(tmp_path / "pmr.db")
    database.execute("CREATE TABLE patients (name)")
    database.close()
    return tmp_path


@pytest.fixture
def repo(shop, cheap_kdf):
    with pb.Repository.create(shop / "repository", pb.Passphrase(PASSPHRASE), state_dir=shop / "state") as made:
        made.backup([pb.Files(shop / "documents"), pb.SQLite(shop / "pmr.db", tier=1)])
        yield made


def everything(shop):
    """All but the log that it was done."""
    found = {path.relative_to(shop): path.read_bytes() for path in shop.rglob("*") if path.is_file()}
    return {
        path: data
        for path, data in found.items()
        if path.parts[:2] != ("repository", "audit") and path.parts[0] != "state"
    }


def test_it_says_what_would_come_back_and_writes_nothing(repo, shop):
    before = everything(shop)
    dry = repo.restore(shop / "target", dry_run=True)
    assert everything(shop) == before and not (shop / "target").exists()
    assert (dry.verb, dry.state) == ("dry run", "ok")
    real = repo.restore(shop / "target")
    assert list(dry.datasets) == list(real.datasets) == ["pmr", "documents"]
    for name, result in real.datasets.items():
        told = dry.datasets[name]
        assert (told.files, told.bytes, told.path) == (result.files, result.bytes, result.path)
        assert told.snapshot.id == result.snapshot.id and told.complete and told.usable_after is None
    assert dry.bytes == real.bytes


def test_of_some_files_it_counts_these(repo, shop):
    dry = repo.restore(shop / "target", only=["documents/sops/**"], dry_run=True)
    [result] = dry.datasets.values()
    assert (result.files, result.bytes) == (1, 700)


def test_what_is_in_the_way_of_a_restore_is_in_its_way(repo, shop):
    (shop / "target" / "documents").mkdir(parents=True)
    (shop / "target" / "documents" / "mine").touch()
    with pytest.raises(pb.Conflict):
        repo.restore(shop / "target", dry_run=True)
    assert repo.restore(shop / "target", dry_run=True, overwrite=True).state == "ok"
    with pytest.raises(pb.Unsupported):
        repo.restore(shop / "target", into={"pmr": pb.Files(shop / "x")}, dry_run=True)
    with pytest.raises(pb.NotFound):
        repo.restore(shop / "target", only=["nothing"], dry_run=True)


def test_blocks_that_are_missing_are_told(repo, shop):
    packs = [
        path for path in (shop / "repository").rglob("*") if path.is_file() and path.parent.parent.name == "packs"
    ]
    packs = packs or [path for path in (shop / "repository" / "packs").rglob("*") if path.is_file()]
    assert packs
    newest = max(packs, key=lambda path: path.stat().st_size)
    newest.unlink()
    shutil.rmtree(shop / "state")
    with pb.Repository.open(shop / "repository", pb.Passphrase(PASSPHRASE), state_dir=shop / "state-2") as fresh:
        fresh.check()
        dry = fresh.restore(shop / "target", dry_run=True)
    found = {one.code for one in dry.findings}
    assert dry.state == "critical" and "would-not-come-back" in found
    assert not all(result.complete for result in dry.datasets.values())


def test_too_little_room_is_told(repo, shop, monkeypatch):
    usage = namedtuple("usage", "total used free")
    asked = []
    monkeypatch.setattr(
        "pharmabackup.verbs.restore_dry.shutil.disk_usage",
        lambda path: asked.append(path) or usage(10**6, 10**6, 1000),
    )
    dry = repo.restore(shop / "target", dry_run=True)
    assert asked == [shop]
    (shop / "target" / "documents").mkdir(parents=True)  # another disk may be mounted there
    repo.restore(shop / "target", only=["documents"], dry_run=True)
    assert asked == [shop, shop / "target" / "documents"]
    [finding] = dry.findings
    assert (finding.code, finding.severity) == ("too-little-room", "warning")
    assert "1 kB free" in finding.message and str(shop) in finding.message


def test_who_may_not_read_may_not_look_either(repo, shop, cheap_kdf):
    pb.KeyFile.create(shop / "till.key")
    repo.enrol("device", pb.KeyFile(shop / "till.key"), name="till")
    till = pb.Repository.open(shop / "repository", pb.KeyFile(shop / "till.key"), state_dir=shop / "state-2")
    with till, pytest.raises(pb.NotPermitted):
        till.restore(shop / "target", dry_run=True)


def test_at_a_terminal_it_is_a_judgement(repo, shop):
    def run(*words):
        command = [
            sys.executable,
            "-m",
            "pharmabackup",
            "restore",
            str(shop / "target"),
            "-r",
            str(shop / "repository"),
        ]
        environment = {"PHARMABACKUP_PASSPHRASE": PASSPHRASE, "PHARMABACKUP_STATE": str(shop / "state-3")}
        return subprocess.run([*command, *words], capture_output=True, text=True, check=False, env=environment)

    done = run("--dry-run")
    assert done.returncode == 0 and "Would come back: 3 files" in done.stdout, done.stderr
    assert not (shop / "target").exists()
    answer = json.loads(run("--dry-run", "--json").stdout)
    assert answer["verb"] == "dry run" and answer["datasets"]["documents"]["bytes"] == 300_700
