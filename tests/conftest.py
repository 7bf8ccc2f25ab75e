"""What all tests share."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import pharmabackup as pb
from tests import threads
from tests.named import ROOT, named

pytest.register_assert_rewrite("pharmabackup.testing.storage")

# What is tried is the same each time, so that a change fails for what it changes; `nightly` looks for new examples.
settings.register_profile(
    "default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.register_profile("nightly", deadline=None, max_examples=2000, suppress_health_check=list(HealthCheck))
settings.load_profile("nightly" if os.environ.get("PHARMABACKUP_PROFILE") == "nightly" else "default")

PASSPHRASE = "correct horse battery staple"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What docs/security.md names is not left out for want of a server. Not every system has them all."""
    report = yield
    if report.skipped and sys.platform == "linux" and _is_named(item):
        report.outcome, report.longrepr = (
            "failed",
            f"It was left out, and docs/security.md names it: {report.longrepr}",
        )
    return report


def _is_named(item: pytest.Item) -> bool:
    name = getattr(item, "originalname", item.name)
    return any(item.path == ROOT / path and name == test for path, test in named())


@pytest.fixture(autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test shares caches with another, or with this machine."""
    monkeypatch.setenv("PHARMABACKUP_STATE", str(tmp_path_factory.mktemp("state")))


@pytest.fixture(autouse=True)
def _own_threads() -> None:
    threads.before = set(threading.enumerate())


@pytest.fixture
def cheap_kdf(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that open often, where the passphrase's cost is not what is tested."""
    monkeypatch.setattr("pharmabackup.crypto.passphrases.MEMORY_KIB", 64)
    monkeypatch.setattr("pharmabackup.crypto.passphrases.ITERATIONS", 1)


@pytest.fixture
def make_repo(tmp_path: Path, cheap_kdf: None) -> Iterator[Callable[[], pb.Repository]]:
    """A new repository in a folder of its own."""
    made: list[pb.Repository] = []

    def make() -> pb.Repository:
        repo = pb.Repository.create(tmp_path / f"repository-{len(made)}", pb.Passphrase(PASSPHRASE))
        made.append(repo)
        return repo

    yield make
    for repo in made:
        repo.close()
