"""SIGKILL at any moment: what was committed stays whole, and the next run does only what is left."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import pharmabackup as pb
from tests.trees import describe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows"),
]

SECRET = "correct horse battery staple"
BACKUP_ROUNDS = 15
RESTORE_ROUNDS = 6
CONTENT = 2_500_000  # bytes that are new in each round
SLACK = 300_000  # names, recipes, padding, and what was published twice because two packs were under way
WAIT_S = 60

BACKUP = """
import sys
import pharmabackup as pb
from pharmabackup.engine import packs
packs.PACK_TARGET = 1 << 17
secret, url, state, *folders = sys.argv[1:]
with pb.Repository.open(url, pb.Passphrase(secret), state_dir=state) as repo:
    print("ready", flush=True)
    repo.backup([pb.Files(folder) for folder in folders])
"""
RESTORE = """
import sys
import pharmabackup as pb
secret, url, state, target = sys.argv[1:]
with pb.Repository.open(url, pb.Passphrase(secret), state_dir=state) as repo:
    print("ready", flush=True)
    repo.restore(target)
"""


def _kill(code: str, *arguments: str | Path, when: Callable[[], bool]) -> bool:
    """Run `code` and kill it as soon as `when` holds. True: it was killed before it ended."""
    command = [sys.executable, "-c", code, SECRET, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + WAIT_S
        while process.poll() is None and not when():
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
    assert process.returncode in (0, -9)
    return process.returncode != 0


def _after(seconds: float) -> Callable[[], bool]:
    begin = time.monotonic()
    return lambda: time.monotonic() - begin >= seconds


def _packs(repository: Path) -> int:
    """Bytes of packs."""
    total = 0
    for folder, _, files in os.walk(repository / "packs"):
        for name in files:
            try:
                total += os.stat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _fill(folder: Path, size: int, chance: random.Random) -> None:
    """Some large files and many small ones that nothing else has."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "small").mkdir(parents=True)
    for number in range(4):
        (folder / f"large-{number}").write_bytes(chance.randbytes(size // 8))
    for number in range(100):
        (folder / "small" / f"{number}").write_bytes(chance.randbytes(size // 200))


def _digest(folder: Path) -> str:
    return hashlib.sha256(repr(sorted(describe(folder).items())).encode()).hexdigest()


def test_a_killed_backup_loses_nothing_and_the_next_sends_only_the_rest(tmp_path: Path, cheap_kdf: None) -> None:
    chance = random.Random(20_270_301)
    state, where = tmp_path / "state", tmp_path / "repository"
    pb.Repository.create(where, pb.Passphrase(SECRET), state_dir=state).close()
    folders = [tmp_path / "documents", tmp_path / "scans"]
    expected: dict[str, str] = {}
    killed = late = 0
    for number in range(BACKUP_ROUNDS):
        for folder in folders:
            _fill(folder, CONTENT // 2, chance)
        trees = {folder.name: _digest(folder) for folder in folders}
        before, share = _packs(where), chance.random()
        if number % 3 == 2:
            when = _after(0.6 * share)
        else:
            when = lambda least=before + int(share * CONTENT): _packs(where) >= least  # noqa: E731
        killed += _kill(BACKUP, where, state, *folders, when=when)
        interrupted = _packs(where)
        late += interrupted - before > CONTENT // 3
        with pb.Repository.open(where, pb.Passphrase(SECRET), state_dir=state) as repo:
            assert repo.check(read_data=1.0).state == "ok"
            committed = [snapshot for snapshot in repo.snapshots() if snapshot.id not in expected]
            assert len({snapshot.dataset for snapshot in committed}) == len(committed)
            for snapshot in committed:
                assert snapshot.complete
                expected[snapshot.id] = trees[snapshot.dataset]
                _restores(repo, tmp_path / "out", snapshot, expected[snapshot.id])
            report = repo.backup([pb.Files(folder) for folder in folders])
            grown = _packs(where)
            added = {name: result.added for name, result in report.datasets.items()}
            assert sum(added.values()) == grown - interrupted
            assert grown - before < CONTENT + SLACK  # nothing went twice, however the first one ended
            for snapshot in committed:
                assert added[snapshot.dataset] < SLACK
            assert repo.check().state == "ok"
            for result in report.datasets.values():
                assert result.snapshot is not None
                expected[result.snapshot.id] = trees[result.name]
                _restores(repo, tmp_path / "out", result.snapshot, trees[result.name])
    assert killed > BACKUP_ROUNDS // 2
    assert late > 2  # so that "only the rest" meant something
    with pb.Repository.open(where, pb.Passphrase(SECRET), state_dir=tmp_path / "another") as repo:
        assert repo.check(read_data=1.0).state == "ok"
        assert {snapshot.id for snapshot in repo.snapshots()} == set(expected)
        for snapshot in repo.snapshots():
            _restores(repo, tmp_path / "out", snapshot, expected[snapshot.id])


def _restores(repo: pb.Repository, target: Path, snapshot: pb.Snapshot, expected: str) -> None:
    repo.restore(target, snapshots=[snapshot])
    assert _digest(target / snapshot.dataset) == expected
    shutil.rmtree(target)


def _right(source: Path, restored: Path) -> dict[str, tuple[int, int, int]]:
    """Files that are already as they should be: which file that is, and when it last changed."""
    found = {}
    for folder, _, files in os.walk(restored):
        for name in files:
            path = Path(folder, name)
            original = source / path.relative_to(restored)
            if not original.exists():
                continue  # a file under way has a name of its own
            status, wanted = path.stat(), original.stat()
            same = (status.st_mode, status.st_mtime_ns) == (wanted.st_mode, wanted.st_mtime_ns)
            if same and path.read_bytes() == original.read_bytes():
                found[str(path.relative_to(restored))] = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    return found


def test_a_killed_restore_goes_on_where_it_was(tmp_path: Path, cheap_kdf: None) -> None:
    chance = random.Random(20_270_302)
    state, where, source = tmp_path / "state", tmp_path / "repository", tmp_path / "documents"
    _fill(source, 10_000_000, chance)
    (source / "tiny").mkdir()
    for number in range(800):
        (source / "tiny" / f"{number}").write_bytes(chance.randbytes(chance.randrange(3000)))
    os.chmod(source / "tiny" / "7", 0o400)
    wanted = describe(source)
    files = sum(len(names) for _, _, names in os.walk(source))
    with pb.Repository.create(where, pb.Passphrase(SECRET), state_dir=state) as repo:
        repo.backup([pb.Files(source)])
        killed = kept = 0
        for number in range(RESTORE_ROUNDS):
            target = tmp_path / f"out-{number}"
            restored = target / "documents"
            if number % 3 == 2:
                when = _after(0.5 * chance.random())
            else:
                least = int(chance.random() * files)
                when = lambda least=least, top=restored: sum(len(n) for _, _, n in os.walk(top)) > least  # noqa: E731
            was_killed = _kill(RESTORE, where, state, target, when=when)
            marker = target / "documents.restoring"
            if restored.exists() and describe(restored) != wanted:
                assert marker.exists()
            if not was_killed:
                assert describe(restored) == wanted
                assert not marker.exists()
                continue
            killed += 1
            right = _right(source, restored)
            if restored.exists() and not marker.exists():  # killed after its very last step
                assert describe(restored) == wanted
                continue
            repo.restore(target)
            assert describe(restored) == wanted
            assert not marker.exists()
            now = _right(source, restored)
            assert {name: now[name] for name in right} == right
            kept += len(right)
            shutil.rmtree(target)
        assert killed > RESTORE_ROUNDS // 2
        assert kept > files // 2
        assert repo.check().state == "ok"


def test_a_restore_that_is_killed_again_and_again_comes_to_its_end(tmp_path: Path, cheap_kdf: None) -> None:
    chance = random.Random(20_270_303)
    state, where, source = tmp_path / "state", tmp_path / "repository", tmp_path / "documents"
    _fill(source, 10_000_000, chance)
    with pb.Repository.create(where, pb.Passphrase(SECRET), state_dir=state) as repo:
        repo.backup([pb.Files(source)])
        for _ in range(5):
            _kill(RESTORE, where, state, tmp_path / "out", when=_after(0.15 * chance.random()))
            if (tmp_path / "out" / "documents").exists() and not (tmp_path / "out" / "documents.restoring").exists():
                break  # it was faster
        else:
            repo.restore(tmp_path / "out")
    assert describe(tmp_path / "out" / "documents") == describe(source)
