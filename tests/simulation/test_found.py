"""What the simulation has found, each with a test of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pharmabackup as pb
from tests.simulation.world import Verb, World

PASSPHRASE = pb.Passphrase("correct horse battery staple")
MakeRepo = Callable[[], pb.Repository]


def test_the_first_keyring_is_damaged_after_a_rotation(tmp_path: Path, make_repo: MakeRepo) -> None:
    """It says so, or does what it can with the rest."""
    make_repo().rotate(reason="a test")
    (first,) = (tmp_path / "repository-0" / "keys").rglob("0")
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.chmod(0o600)
    first.write_bytes(data)
    folder, state = tmp_path / "repository-0", tmp_path / "fresh"
    with suppress(pb.Error), pb.Repository.open(folder, PASSPHRASE, state_dir=state) as repo:
        repo.check()


def test_two_are_called_back_at_once(tmp_path: Path) -> None:
    """Whoever was told that a snapshot was called back can rely on it."""
    for seed in range(20):
        world = World(tmp_path / str(seed))
        try:
            for number in range(3):
                world.write("0", number, number)
                world.back_up(world.repo("0"), "0")
            world.forget(1)(world.repo("0"), "0")
            told: set[str] = set()

            def recall(repo: pb.Repository, device: str, told: set[str] = told) -> None:
                snapshot = [one for one in repo.snapshots() if one.forget_at is not None][int(device)]
                repo.recall(snapshot, reason="a test")
                told.add(snapshot.id)

            world.together({device: Verb("recall", recall) for device in "01"}, seed)
            world.clock.advance(timedelta(days=15))
            gone = {snapshot.id for snapshot in world.repo("0").snapshots() if snapshot.forgotten}
            assert not told & gone, f"seed {seed}"
        finally:
            world.close()
