"""Kill the writer at every storage call: what was committed restores, and the next backup goes on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.engine import opening
from pharmabackup.engine.filecache import Remembered
from pharmabackup.storage.base import Storage
from pharmabackup.storage.memory import MemoryStorage
from tests.verbs.faults import Dead, DyingStorage, near_and_far

PASSPHRASE = pb.Passphrase("correct horse battery staple")


def _tree(root: Path, round_: int) -> dict[str, bytes]:
    contents = {f"f{i}": os.urandom(3000 + i) for i in range(5)} | {"same": b"the same every time" * 400}
    contents[f"only-in-{round_}"] = os.urandom(40_000)
    for path in root.iterdir():
        path.unlink()
    for name, data in contents.items():
        (root / name).write_bytes(data)
    return contents


def _read(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir()}


def _open(monkeypatch: pytest.MonkeyPatch, storage: Storage, state: Path) -> pb.Repository:
    monkeypatch.setattr(opening, "connect", lambda *_, **__: storage)
    return pb.Repository.open("memory://test", PASSPHRASE, state_dir=state)


def _twin(storage: MemoryStorage) -> MemoryStorage:
    """The same objects, to be written to apart."""
    twin = MemoryStorage("twin")
    for info in storage.list(""):
        twin.put_new(info.name, storage.get(info.name, limit=1 << 30))
    return twin


@near_and_far
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_backup_that_dies_at_any_call_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, after: bool, lanes: int
) -> None:
    source = tmp_path / "documents"
    source.mkdir()
    base = MemoryStorage("base")
    monkeypatch.setattr(opening, "connect", lambda *_, **__: base)
    pb.Repository.create("memory://base", PASSPHRASE).close()
    files = pb.Files(source)
    first = _tree(source, 0)
    with _open(monkeypatch, base, tmp_path / "state") as repo:
        repo.backup([files])
    second = _tree(source, 1)
    deaths, committed = 0, set()
    for dies_at in range(200):
        inner = _twin(base)
        storage = DyingStorage(inner, lanes=lanes)
        with _open(monkeypatch, storage, tmp_path / f"state-{dies_at}") as repo:
            storage.arm(dies_at, after=after)
            try:
                repo.backup([files])
                died = False
            except Dead:
                died = True
        with _open(monkeypatch, inner, tmp_path / f"state-{dies_at}") as repo:
            assert repo.check(read_data=1.0).state == "ok"
            snapshots = repo.snapshots()
            committed.add(len(snapshots))
            expected = second if len(snapshots) == 2 else first
            _restores(repo, tmp_path / f"out-{dies_at}", expected)
            again = repo.backup([files]).datasets["documents"]
            assert again.added < 5_000 or len(snapshots) == 1  # names and recipe at most, no content
            _restores(repo, tmp_path / f"again-{dies_at}", second)
            _restores(repo, tmp_path / f"first-{dies_at}", first, snapshots=[repo.snapshots()[-1]])
            assert repo.check(read_data=1.0).state == "ok"
        if not died:
            break
        deaths += 1
    else:
        pytest.fail("the backup never finished")
    assert deaths > 15
    assert committed == {1, 2}


def test_a_backup_that_fails_leaves_no_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_kdf: None
) -> None:
    """Windows removes no open file, and a program that backs up for years has so many files at most."""
    source = tmp_path / "documents"
    source.mkdir()
    storage = DyingStorage(MemoryStorage("failing"))
    monkeypatch.setattr(opening, "connect", lambda *_, **__: storage.inner)
    pb.Repository.create("memory://failing", PASSPHRASE).close()
    closed: list[Remembered] = []
    real = Remembered.close
    monkeypatch.setattr(Remembered, "close", lambda self: (closed.append(self), real(self))[1])
    with _open(monkeypatch, storage, tmp_path / "state") as repo:
        for round_ in range(3):
            _tree(source, round_)
            if round_ == 2:
                storage.arm(12, after=False)
                with pytest.raises(Dead):
                    repo.backup([pb.Files(source)])
            else:
                repo.backup([pb.Files(source)])
    assert len(closed) == 2
    assert all(remembered._file is None or remembered._file.closed for remembered in closed)


def _restores(
    repo: pb.Repository, target: Path, expected: dict[str, bytes], snapshots: list[pb.Snapshot] | None = None
) -> None:
    repo.restore(target, snapshots=snapshots or [])
    assert _read(target / "documents") == expected
    shutil.rmtree(target)
