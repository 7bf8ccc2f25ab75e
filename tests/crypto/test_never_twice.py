"""No nonce and no key is used twice, whatever is done in whichever order, on threads and in processes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import count
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pharmabackup as pb
from pharmabackup.crypto.sealing import SealingKey
from pharmabackup.engine.transaction import Transaction
from pharmabackup.storage import memory
from tests.crypto import recorder
from tests.crypto.recorder import BLOCKS, PASSPHRASE, RECORDS, Record, recording
from tests.damage.shop import two_weeks_later

_numbers = count()
ROOT = Path(__file__).parents[2]


class World:
    """A repository and its replica, in memory, and what can be done with them."""

    def __init__(self, base: Path) -> None:
        self._base = base / f"{next(_numbers)}"
        self._names = [f"never-{next(_numbers)}" for _ in range(2)]
        self._passphrase = PASSPHRASE
        self.root = self._base / "documents"
        self.root.mkdir(parents=True)
        with pb.Repository.create(self._url(0), PASSPHRASE, state_dir=self._base / "0") as repo:
            pb.Repository.create(self._url(1), PASSPHRASE, state_dir=self._base / "1", replica_of=repo).close()

    def _url(self, place: int) -> str:
        return f"memory://{self._names[place]}"

    def _open(self, place: int = 0) -> pb.Repository:
        return pb.Repository.open(self._url(place), self._passphrase, state_dir=self._base / f"{place}")

    def do(self, deed: str) -> None:
        with self._open() as repo, self._open(1) as replica:
            DEEDS[deed](self, repo, replica)

    def attempt(self, deed: str) -> None:
        """What cannot be done, since a pack is lost or a passphrase is another one there, was begun all the same."""
        with suppress(pb.Error):
            self.do(deed)

    def keys_again(self) -> list[bytes]:
        """Public keys, key ids and salts that two slots or generations have. Whoever has the same is the same."""
        with self._open() as repo:
            unlocked = repo._unlocked
            slots, generations = unlocked.roster.slots, unlocked.roster.generations
            found = [key for slot in slots for key in (slot.id, slot.signing, slot.recipient)]
            found += [key for generation in generations for key in (generation.catalogue, generation.reader)]
            found += [slot.argon2id.salt for slot in slots if slot.argon2id is not None]
            found += [domain.id for domain in unlocked.roster.domains]
            found += [key.key for key in unlocked.keyring.naming]
        assert len(found) >= 6
        return [key for key, times in Counter(found).items() if times > 1]

    def end(self) -> None:
        for name in self._names:
            memory._named.pop(name)

    def back_up(self, repo: pb.Repository, _: pb.Repository) -> None:
        (self.root / f"{next(_numbers) % 5}").write_bytes(random.Random(next(_numbers)).randbytes(3000))
        repo.backup([pb.Files(self.root)])

    def prune(self, repo: pb.Repository, _: pb.Repository) -> None:
        repo.apply(repo.propose_forget({"*": pb.Keep(last=1)}))
        with two_weeks_later():
            repo.apply(repo.propose_prune())

    def change_passphrase(self, repo: pb.Repository, replica: pb.Repository) -> None:
        passphrase = pb.Passphrase(f"a new passphrase, number {next(_numbers)}")
        repo.change_passphrase(passphrase)
        repo.copy(replica)
        self._passphrase = passphrase

    def repair(self, repo: pb.Repository, replica: pb.Repository, *, known: bool = True) -> None:
        """A pack is lost, and comes from the replica or from the sources."""
        self.back_up(repo, replica)
        storage = repo._unlocked.storage
        newest = max(storage.list("packs"), key=lambda info: info.modified)
        storage.delete([newest.name])
        replicas = [replica] if known else []
        repo.apply(repo.propose_repair(replicas=replicas, sources=[pb.Files(self.root)]))

    def revoke(self, repo: pb.Repository, _: pb.Repository) -> None:
        key = pb.KeyFile.create(self._base / f"{next(_numbers)}.key")
        name = f"a till, number {next(_numbers)}"
        repo.enrol("device", key.recipient, name=name, domain=f"branch {next(_numbers)}")
        repo.revoke(name, reason="stolen")

    def restore(self, repo: pb.Repository, _: pb.Repository) -> None:
        if repo.snapshots():
            repo.restore(self._base / f"out-{next(_numbers)}")


DEEDS: dict[str, Callable[[World, pb.Repository, pb.Repository], object]] = {
    "back up": World.back_up,
    "check": lambda _, repo, __: repo.check(read_data=1.0),
    "copy": lambda _, repo, replica: repo.copy(replica),
    "enrol": lambda _, repo, __: repo.enrol("owner", PASSPHRASE_OF_ANOTHER, name=f"slot {next(_numbers)}"),
    "revoke": World.revoke,
    "split": lambda _, repo, __: repo.split_recovery(),
    "configure": lambda _, repo, __: repo.configure(forget_delay=timedelta(days=next(_numbers) % 14)),
    "rotate": lambda _, repo, __: repo.rotate(reason="a laptop was lost"),
    "change the passphrase": World.change_passphrase,
    "hold": lambda _, repo, __: repo.snapshots() and repo.hold(repo.snapshots()[0], reason="a dispute"),
    "prune": World.prune,
    "reseal": lambda _, repo, __: repo.apply(repo.propose_reseal()),
    "repair": World.repair,
    "repair from sources": lambda world, repo, replica: world.repair(repo, replica, known=False),
    "restore": World.restore,
}
PASSPHRASE_OF_ANOTHER = pb.Passphrase("the same passphrase for several")
WELL = [deed for deed in DEEDS if not deed.startswith("repair")]
ALL = ["back up", "rotate", "back up", "enrol", *WELL, "back up", "restore", "copy", "repair", "repair from sources"]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Record]:
    """One for all tests here: what each of them did is unlike what the others did, too."""
    made = Record()
    with (
        recording(made),
        mock.patch.multiple("pharmabackup.crypto.passphrases", MEMORY_KIB=64, ITERATIONS=1),
        mock.patch("pharmabackup.engine.index.CACHE_AFTER_SEGMENTS", 1),
    ):
        yield made


def test_everything_once(record: Record, tmp_path: Path) -> None:
    """And that it was seen: each sort of key has sealed something."""
    world = World(tmp_path)
    for deed in ALL:
        world.do(deed)
    assert world.keys_again() == []
    world.end()
    assert record.problems() == []
    uses = {use for _, _, use, _ in record.sealed}
    assert {RECORDS, BLOCKS, "history cache", "index cache", "file cache"} <= uses
    assert len(record.encapsulations) > 10
    assert len(record.random) > len(record.sealed) > 100
    assert len({key for key, *_ in record.sealed}) > 10


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(sorted(DEEDS)), min_size=3, max_size=8))
def test_in_any_order(record: Record, tmp_path: Path, deeds: list[str]) -> None:
    world, before = World(tmp_path), len(record.sealed)
    for deed in ["back up", *deeds]:
        world.attempt(deed)
    assert world.keys_again() == []
    world.end()
    assert len(record.sealed) > before
    assert record.problems() == []


def _processes(tmp_path: Path, deed: str, how_many: int) -> list[Record]:
    pb.Repository.create(tmp_path / "repository", PASSPHRASE, state_dir=tmp_path / "state").close()
    command = [sys.executable, "-W", "ignore", "-m", "tests.crypto.recorder", deed, tmp_path / "repository", tmp_path]
    started = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(how_many)]
    lines = [line for process in started for line in process.communicate(timeout=120)[0].splitlines()]
    assert [process.returncode for process in started] == [0] * how_many
    return [recorder.heard(line) for line in lines]


def test_several_processes(record: Record, tmp_path: Path) -> None:
    """With the same keys, at once, two threads each."""
    told = _processes(tmp_path, "backup", 2)
    assert len(told) == 2
    for one in told:
        assert sum(use == BLOCKS for _, _, use, _ in one.sealed) >= 4
        record += one
    assert record.problems() == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a fork is POSIX's")
def test_a_fork_repeats_nothing(record: Record, tmp_path: Path) -> None:
    told = _processes(tmp_path, "fork", 1)
    assert len(told) == 2
    for one in told:
        assert (len(one.encapsulations), len(one.sealed) >= 20, len(one.random) >= 60) == (20, True, True)
        record += one
    assert record.problems() == []


# ------------------------------------------------------------ that it would be noticed


def _in_turn(real: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """Nonces come again after a while, as after a machine was copied or woken."""
    made: list[bytes] = []

    def urandom(size: int) -> bytes:
        if size != 24:
            return real(size)
        made.append(made[-40] if len(made) >= 40 else real(size))
        return made[-1]

    return urandom


def _kept_session(real: Callable[..., None]) -> Callable[..., None]:
    """A transaction takes over the key of the one before it."""
    session = os.urandom(32)

    def init(self: Transaction, *given: object) -> None:
        plain = os.urandom
        with mock.patch.object(os, "urandom", lambda size: session if size == 32 else plain(size)):
            real(self, *given)

    return init


FAULTS = {
    "one nonce": lambda: mock.patch.object(
        os, "urandom", lambda size, real=os.urandom: real(size) if size != 24 else bytes(24)
    ),
    "nonces in turn": lambda: mock.patch.object(os, "urandom", _in_turn(os.urandom)),
    "a kept key": lambda: mock.patch.object(Transaction, "__init__", _kept_session(Transaction.__init__)),
    "one key for two things": lambda: mock.patch(
        "pharmabackup.engine.unlocked.Unlocked.purpose_key", lambda self, _: self.keyring.catalogue[-1].key
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_it_would_be_noticed(tmp_path: Path, cheap_kdf: None, fault: str) -> None:
    world, own = World(tmp_path), Record()
    with FAULTS[fault](), recording(own):
        for _ in range(8):
            world.do("back up")
    world.end()
    assert own.problems()


def test_a_nonce_that_is_given_is_for_vectors_alone() -> None:
    """The library itself never chooses one."""
    for path in (ROOT / "pharmabackup").rglob("*.py"):
        assert "nonce=" not in path.read_text("utf-8"), path
    assert SealingKey(bytes(32)).seal(b"", b"")[:24] != SealingKey(bytes(32)).seal(b"", b"")[:24]
