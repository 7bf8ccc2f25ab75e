"""Processes that back up into one repository at once do not know of each other, and need not."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

import pharmabackup as pb
from tests.trees import describe

SECRET = "correct horse battery staple"
TURNS = 3
WORKER = """
import json, sys
import pharmabackup as pb
from pharmabackup.engine import index
secret, url, state, spill, name, *folders = sys.argv[1:]
if spill == "spill":  # the cache is used, as with many chunks
    index.SPILL_ROWS, index.CACHE_AFTER_ROWS = 16, 1
done = []
with pb.Repository.open(url, pb.Passphrase(secret), state_dir=state) as repo:
    print("ready", flush=True)
    sys.stdin.readline()
    for folder in folders:
        report = repo.backup([pb.Files(folder, name=name)])
        done.append([report.datasets[name].snapshot.id, folder])
print(json.dumps(done))
"""


def _folders(base: Path, number: int, chance: random.Random) -> list[Path]:
    """What one process backs up, turn after turn. Half of it all processes have, so that they race for it."""
    made = []
    for turn in range(TURNS):
        folder = base / f"source-{number}-{turn}"
        (folder / "own").mkdir(parents=True)
        (folder / "all").mkdir()
        everybody = random.Random(turn)
        for i in range(20):
            (folder / "own" / f"{i}").write_bytes(chance.randbytes(20_000))
            (folder / "all" / f"{i}").write_bytes(everybody.randbytes(40_000))
        os.chmod(folder / "own" / "3", 0o600)
        made.append(folder)
    return made


@pytest.mark.parametrize("state", ["shared", "separate"])
@pytest.mark.parametrize("names", ["different", "same"])
@pytest.mark.parametrize("processes", [2, 4])
def test_all_commit_and_all_restores(tmp_path: Path, cheap_kdf: None, processes: int, names: str, state: str) -> None:
    _back_up_at_once(tmp_path, processes, names, state, "no spill")


def test_processes_with_many_chunks_share_a_state_folder(tmp_path: Path, cheap_kdf: None) -> None:
    _back_up_at_once(tmp_path, 4, "same", "shared", "spill")


def test_processes_with_many_chunks_and_state_folders_of_their_own(tmp_path: Path, cheap_kdf: None) -> None:
    _back_up_at_once(tmp_path, 2, "same", "separate", "spill")


def _back_up_at_once(tmp_path: Path, processes: int, names: str, state: str, spill: str) -> None:
    where = tmp_path / "repository"
    pb.Repository.create(where, pb.Passphrase(SECRET), state_dir=tmp_path / "state").close()
    with ExitStack() as stack:
        running = []
        for number in range(processes):
            folder = tmp_path / ("state" if state == "shared" else f"state-{number}")
            name = "till" if names == "same" else f"till-{number}"
            sources = _folders(tmp_path, number, random.Random(1000 + number))
            command = [sys.executable, "-c", WORKER, SECRET, where, folder, spill, name, *sources]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            running.append(stack.enter_context(process))
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        outputs = [process.communicate(timeout=60)[0] for process in running]
        assert [process.returncode for process in running] == [0] * processes
    made = {snapshot: Path(folder) for output in outputs for snapshot, folder in json.loads(output)}
    assert len(made) == processes * TURNS
    for again in ("state", "fresh"):
        with pb.Repository.open(where, pb.Passphrase(SECRET), state_dir=tmp_path / again) as repo:
            report = repo.check(read_data=1.0)
            assert (report.state, report.findings) == ("ok", ())
            snapshots = repo.snapshots()
            assert {snapshot.id for snapshot in snapshots} == set(made)
            assert all(snapshot.complete for snapshot in snapshots)
            for snapshot in snapshots[again == "fresh" :: 2]:  # half of them with each
                out = tmp_path / again / f"out-{snapshot.id}"
                repo.restore(out, snapshots=[snapshot])
                assert describe(out / snapshot.dataset) == describe(made[snapshot.id])
    with pb.Repository.open(where, pb.Passphrase(SECRET), state_dir=tmp_path / "state") as repo:
        last = next(iter(repo.snapshots()))
        result = repo.backup([pb.Files(made[last.id], name=last.dataset)]).datasets[last.dataset]
        assert result.added < 30_000  # all of it is there
