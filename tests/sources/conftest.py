"""When and how trees are walked."""

from __future__ import annotations

import time

import pytest

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
