"""A site, its repository and a storage in memory, for whoever tests what lets go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.engine import opening
from pharmabackup.storage.memory import MemoryStorage
from tests.verbs.ailing import Ward
from tests.verbs.faults import Refusing
from tests.verbs.site import PASSPHRASE, Site, Time, forget_all_but
from tests.verbs.staff import Staff

PATIENCE_S = 30
MakeRepo = Callable[[], pb.Repository]


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "documents")


@pytest.fixture
def repo(make_repo: MakeRepo, site: Site, time: Time) -> pb.Repository:
    made = make_repo()
    for _ in range(8):
        site.change()
        site.back_up(made)
    return made


@pytest.fixture
def large(make_repo: MakeRepo, site: Site, time: Time) -> pb.Repository:
    """Packs of which the newest snapshot needs nothing, some blocks, or all."""
    made = make_repo()
    for _ in range(5):
        site.change(size=1_500_000)
        site.back_up(made)
    forget_all_but(made, 1, time)
    return made


@pytest.fixture
def memory(
    monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, site: Site, time: Time, tmp_path: Path
) -> Iterator[MemoryStorage]:
    """Four snapshots, of which the newest is kept, in memory; whatever is not all alive is moved."""
    monkeypatch.setattr("pharmabackup.engine.emptying.UNUSED_SHARE", 0.0)
    storage = MemoryStorage("base")
    monkeypatch.setattr(opening, "connect", lambda *_, **__: storage)
    pb.Repository.create("memory://x", PASSPHRASE).close()
    with pb.Repository.open("memory://x", PASSPHRASE, state_dir=tmp_path / "first") as repo:
        for _ in range(4):
            site.change(size=3000)
            site.back_up(repo)
        forget_all_but(repo, 1, time)
    yield storage


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Ward:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pharmabackup.crypto.passphrases.MEMORY_KIB", 64)
        patch.setattr("pharmabackup.crypto.passphrases.ITERATIONS", 1)
        made = Ward(tmp_path_factory.mktemp("repair") / "ward")
        for day in range(3):
            made.change(day)
            made.back_up()
        made.repo.close()
    return made


@pytest.fixture
def ward(built: Ward, tmp_path: Path, cheap_kdf: None) -> Iterator[Ward]:
    """One to be damaged."""
    made = Ward.copy(built, tmp_path / "ward")
    yield made
    made.repo.close()


@pytest.fixture
def replica(ward: Ward) -> Iterator[pb.Repository]:
    with ward.replica() as made:
        yield made


@pytest.fixture
def staff(make_repo: MakeRepo, site: Site, tmp_path: Path) -> Iterator[Staff]:
    repo = make_repo()
    site.change()
    site.back_up(repo)
    made = Staff(repo, tmp_path)
    yield made
    made.close()


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "file").write_text("content")
    return folder


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch, cheap_kdf: None, tmp_path: Path) -> Refusing:
    storage = Refusing(MemoryStorage("base"), deletes=True)
    storage.refuses = False
    monkeypatch.setattr(opening, "connect", lambda *_, **__: storage)
    pb.Repository.create("memory://x", PASSPHRASE, state_dir=tmp_path / "state").close()
    return storage
