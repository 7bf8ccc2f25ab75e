"""When and how trees are walked; and a repository that is opened by a key."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.sources import listing, tree, walk


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dumps happen ten seconds later, when nothing has just changed."""
    monkeypatch.setattr(listing, "time_ns", lambda: time.time_ns() + 10**10)


@pytest.fixture(params=["descriptors", "paths"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of reaching files; other systems than this one have only the second."""
    if request.param == "paths":
        monkeypatch.setattr(walk, "BY_DESCRIPTOR", False)
        monkeypatch.setattr(tree, "FILES_AHEAD", 1)
    return str(request.param)


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "owner.key"
    pb.KeyFile.create(path)
    return path


@pytest.fixture
def repo(tmp_path: Path, key: Path) -> Iterator[pb.Repository]:
    """In `repository`, with its caches in `state`; owned by `key`."""
    with pb.Repository.create(tmp_path / "repository", pb.KeyFile(key), state_dir=tmp_path / "state") as made:
        yield made
