"""A folder that changes from day to day, its repository, and a storage's clock that can be moved on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup import clock
from pharmabackup.engine import collection, garbage, moving, opening
from pharmabackup.errors import StorageFailed
from pharmabackup.storage.base import ObjectInfo, Storage
from pharmabackup.storage.memory import MemoryStorage

PASSPHRASE = pb.Passphrase("correct horse battery staple")
DAY_NS = 86400 * 10**9


class Time:
    """The storage's clock for collectors, and this machine's for those that only look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0
        real_now, real_storage = clock.now_ns, collection.storage_now
        for module in ("engine.history", "verbs.standing"):
            monkeypatch.setattr(f"pharmabackup.{module}.now_ns", lambda: real_now() + self.ahead)
        monkeypatch.setattr(
            "pharmabackup.verbs.prune.storage_now", lambda unlocked: real_storage(unlocked) + self.ahead
        )


class Site:
    """A folder that changes from day to day, and what it was like at each snapshot."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        self.states: dict[str, dict[str, bytes]] = {}
        self._day = 0

    def change(self, *, size: int = 30_000) -> None:
        """Most stays, one file is new, one that was new is gone, one is written anew."""
        if self._day == 0:
            for name in "abc":
                (self.root / name).write_bytes(os.urandom(size))
        (self.root / f"day-{self._day}").write_bytes(os.urandom(size))
        (self.root / f"day-{self._day - 2}").unlink(missing_ok=True)
        (self.root / "abc"[self._day % 3]).write_bytes(os.urandom(size))
        self._day += 1

    def bring_back(self) -> None:
        """What only the first snapshot held, which is forgotten: a writer finds it in what is about to go."""
        first = next(iter(self.states.values()))
        (self.root / "again").write_bytes(first["day-0"])

    def back_up(self, repo: pb.Repository) -> str:
        report = repo.backup([pb.Files(self.root)])
        snapshot = report.datasets[self.root.name].snapshot
        assert snapshot is not None
        self.states[snapshot.id] = {path.name: path.read_bytes() for path in self.root.iterdir()}
        return snapshot.id

    def all_restore(self, repo: pb.Repository, out: Path) -> None:
        """Every snapshot that is not forgotten comes back byte for byte, and nothing is wrong."""
        for snapshot in repo.snapshots():
            if not snapshot.forgotten:
                repo.restore(out / snapshot.id, snapshots=[snapshot])
                found = {path.name: path.read_bytes() for path in (out / snapshot.id / self.root.name).iterdir()}
                assert found == self.states[snapshot.id]
        told = [finding for finding in repo.check(read_data=1.0).findings if finding.severity != "info"]
        assert not told, told


def forget_all_but(repo: pb.Repository, last: int, time: Time) -> None:
    repo.apply(repo.propose_forget({"*": pb.Keep(last=last)}))
    time.ahead += 15 * DAY_NS


def prune(repo: pb.Repository) -> pb.Report:
    return repo.apply(repo.propose_prune())


def stored(storage: Storage, prefix: str) -> list[str]:
    """Of "", all but the audit log, which grows whatever is done."""
    names = sorted(info.name for info in storage.list(prefix))
    return names if prefix else [name for name in names if not name.startswith("audit/")]


def twin(storage: MemoryStorage) -> MemoryStorage:
    twin = MemoryStorage(storage.location)
    for info in storage.list(""):
        twin.put_new(info.name, storage.get(info.name, limit=1 << 30))
    return twin


def open_at(monkeypatch: pytest.MonkeyPatch, storage: Storage, state: Path) -> pb.Repository:
    monkeypatch.setattr(opening, "connect", lambda *_, **__: storage)
    return pb.Repository.open("memory://x", PASSPHRASE, state_dir=state)


def stops(*_: object) -> tuple[ObjectInfo, bytes]:
    raise StorageFailed("The cable is out.", location="here")


def only_before(real: Callable[..., set[bytes]]) -> Callable[..., set[bytes]]:
    """Dies where it would carry out what it has condemned."""
    calls: list[bool] = []

    def finish(*arguments: Any, **named: Any) -> set[bytes]:
        if calls:
            raise StorageFailed("The cable is out.", location="here")
        calls.append(True)
        return real(*arguments, **named)

    return finish


def double(repo: pb.Repository) -> None:
    """All blocks lie in a second pack, too."""
    found = garbage.look_for_garbage(repo._unlocked, clock.now_ns(), lambda: None)
    table = found.index.blocks
    found.sparse = {
        pack: [number for number, place in enumerate(table.pack) if table.packs[place] == pack]
        for pack in found.sizes
    }
    moving.move(repo._unlocked, found, list(found.sizes), lambda: None)
