"""Real processes on a real disk are killed at random moments of what they do; then all is checked and restored."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pharmabackup as pb
from tests.verbs.killed import PASSPHRASE, a_month_ahead, expected, fill

KILLS = 250 if os.environ.get("PHARMABACKUP_PROFILE") == "nightly" else 12
LONGEST_S = 2.0
# the last: keys were being replaced
HARMLESS = {"pack-unindexed", "collection-unfinished", "index-stale", "index-missing", "keyring-unused"}


def _whole(repo: pb.Repository, out: Path) -> int:
    """Every snapshot that is not forgotten restores byte for byte; how many that are."""
    restored = 0
    report = repo.check(read_data=1.0)
    assert {finding.code for finding in report.findings} <= HARMLESS, report
    for snapshot in repo.snapshots():
        if snapshot.forgotten or snapshot.forget_at is not None:
            continue
        repo.restore(out, snapshots=[snapshot])
        found = {path.name: path.read_bytes() for path in (out / "documents").iterdir()}
        shutil.rmtree(out)
        assert found == expected(int(snapshot.reason or 0))
        restored += 1
    return restored


def _lines(told: str) -> dict[str, list[str]]:
    """What the process said of each kind. The last line may have been cut off."""
    found: dict[str, list[str]] = {"committed": [], "spoils": [], "mended": []}
    for line in told.splitlines(keepends=True):
        if line.endswith("\n"):
            word, _, name = line.strip().partition(" ")
            found[word].append(name)
    return found


def test_processes_are_killed_at_random_moments(tmp_path: Path, cheap_kdf: None) -> None:
    chance = random.Random(20261126)
    (tmp_path / "documents").mkdir()
    fill(tmp_path / "documents", 0)
    with pb.Repository.create(tmp_path / "repository", PASSPHRASE, state_dir=tmp_path / "state") as repo:
        repo.backup([pb.Files(tmp_path / "documents")], reason="0")
        pb.Repository.create(tmp_path / "replica", PASSPHRASE, replica_of=repo, state_dir=tmp_path / "state").close()
    days, mended, unmended, committed = 0, 0, 0, set[str]()
    for kill in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.verbs.killed", str(tmp_path), str(kill)],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"ready\n", process.stderr.read().decode()
        time.sleep(chance.uniform(0.0, LONGEST_S))
        ended = process.poll()
        process.kill()
        told = _lines(process.stdout.read().decode())
        process.stdout.close()
        problem = process.stderr.read().decode()
        process.stderr.close()
        process.wait()
        assert ended is None, problem
        committed.update(told["committed"])
        mended += len(told["mended"])
        with (
            pb.Repository.open(tmp_path / "repository", PASSPHRASE, state_dir=tmp_path / "looks") as repo,
            pb.Repository.open(tmp_path / "replica", PASSPHRASE, state_dir=tmp_path / "looks") as replica,
        ):
            if len(told["spoils"]) > len(told["mended"]):  # killed in the middle: whoever comes next repairs it
                unmended += 1
                with a_month_ahead():
                    repo.apply(repo.propose_repair(replicas=[replica]))
            assert committed <= {snapshot.id for snapshot in repo.snapshots()}, "what was committed is gone"
            assert _whole(repo, tmp_path / "out") >= 1
            _whole(replica, tmp_path / "out-replica")
            days = max(days, *(int(snapshot.reason or 0) for snapshot in repo.snapshots()))
    repaired = f"{mended} packs mended by them, {unmended} after their deaths"
    print(f"{KILLS} processes were killed; {days} days were backed up between, {repaired}")
    assert days >= KILLS // 4 and len(committed) >= KILLS // 4
    assert mended + unmended >= KILLS // 4
