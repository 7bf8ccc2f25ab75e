"""Fetching ahead of who reads: neighbours together, no more than fits, and whatever happens the right bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

import pharmabackup as pb
from pharmabackup.engine import ahead as module
from pharmabackup.engine.ahead import Ahead, Range
from pharmabackup.storage.memory import MemoryStorage
from tests.benchmarks.distant import DistantStorage
from tests.threads import threads_left

PATIENCE_S = 60
A, B = "packs/aa/a", "packs/bb/b"
CONTENT = {A: bytes(range(256)) * 40, B: bytes(reversed(range(256))) * 40}


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> DistantStorage:
    monkeypatch.setattr(module, "GAP", 100)
    monkeypatch.setattr(module, "PIECE", 2000)
    monkeypatch.setattr(module, "AHEAD_BYTES", 4000)
    inner = MemoryStorage()
    for name, data in CONTENT.items():
        inner.put_new(name, data)
    return DistantStorage(inner)


@pytest.fixture
def ahead(storage: DistantStorage) -> Iterator[Ahead]:
    made = Ahead(storage)
    yield made
    made.close()


def _read(ahead: Ahead, planned: Range) -> None:
    name, offset, length = planned
    assert bytes(ahead.get_range(*planned)) == CONTENT[name][offset : offset + length]
    ahead.done(planned)


def test_neighbours_are_one_request(storage: DistantStorage, ahead: Ahead) -> None:
    """But for what lies far from the one before it, in another pack, or would make a piece too large."""
    first = [(A, 0, 400), (A, 400, 300), (A, 790, 10)]
    others = [[(A, 1000, 50)], [(B, 1050, 1990)], [(B, 3040, 20)], [(A, 500, 20)]]
    plan = [*first, *(one for group in others for one in group)]
    ahead.plan(plan)
    for planned in plan:
        _read(ahead, planned)
    assert len(storage.requests) == 1 + len(others)


def test_what_is_ahead_is_bounded_and_goes_on_when_it_is_done_with(storage: DistantStorage, ahead: Ahead) -> None:
    plan = [(A, 2000 * number, 2000) for number in range(5)]
    ahead.plan(plan)
    for number, planned in enumerate(plan, 1):
        _read(ahead, planned)
        assert len(storage.requests) <= number + 2
    assert len(storage.requests) == 5


def test_what_is_wanted_before_its_turn_is_fetched_at_once(storage: DistantStorage, ahead: Ahead) -> None:
    plan = [(A, 2000 * number, 2000) for number in range(5)]
    ahead.plan(plan)
    for planned in reversed(plan):
        _read(ahead, planned)
    assert len(storage.requests) == 5


def test_what_is_never_read_holds_nothing_up(storage: DistantStorage, ahead: Ahead) -> None:
    plan = [(A, 2000 * number, 2000) for number in range(5)]
    ahead.plan(plan)
    for planned in plan[:4]:
        ahead.done(planned)
    _read(ahead, plan[4])
    assert ahead._bytes == 0
    assert not ahead._of and not ahead._waiting


def test_what_was_not_planned_is_read_all_the_same(storage: DistantStorage, ahead: Ahead) -> None:
    assert bytes(ahead.get_range(B, 17, 5)) == CONTENT[B][17:22]
    assert storage.requests == [f"get_range {B}"]


def test_the_same_may_be_planned_twice(storage: DistantStorage, ahead: Ahead) -> None:
    planned = (A, 100, 50)
    ahead.plan([planned])
    ahead.plan([planned])
    _read(ahead, planned)
    _read(ahead, planned)
    assert ahead._bytes == 0


def test_a_damaged_neighbour_harms_nobody(storage: DistantStorage, ahead: Ahead) -> None:
    """The pack ends within the second: together they cannot be had."""
    end = len(CONTENT[A])
    sound, cut = (A, end - 100, 50), (A, end - 50, 60)
    ahead.plan([sound, cut])
    _read(ahead, sound)
    with pytest.raises(pb.Damaged):
        ahead.get_range(*cut)
    with pytest.raises(pb.NotFound):
        ahead.get_range("packs/cc/c", 0, 1)


def test_a_storage_that_failed_is_not_asked_again(
    storage: DistantStorage, ahead: Ahead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waited through its patience once does not wait a second time. What comes later is another matter."""

    def fails(name: str, offset: int, length: int) -> bytes:
        raise pb.StorageFailed("The line dropped.", kind="unreachable", location="there")

    with monkeypatch.context() as patch:
        patch.setattr(storage.inner, "get_range", fails)
        ahead.plan([(A, 0, 100), (A, 100, 100)])
        for planned in ((A, 0, 100), (A, 100, 100)):
            with pytest.raises(pb.StorageFailed, match="The line dropped"):
                ahead.get_range(*planned)
            ahead.done(planned)
    assert len(storage.requests) == 1
    ahead.plan([(A, 0, 100)])
    _read(ahead, (A, 0, 100))


def test_several_are_under_way_at_once(storage: DistantStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AHEAD_BYTES", 8000)
    together, real = threading.Barrier(4), storage.inner.get_range

    def waiting(name: str, offset: int, length: int) -> bytes:
        together.wait(PATIENCE_S)
        return real(name, offset, length)

    monkeypatch.setattr(storage.inner, "get_range", waiting)
    ahead = Ahead(storage)
    plan = [(A, 2000 * number, 2000) for number in range(4)]
    ahead.plan(plan)
    for planned in plan:
        _read(ahead, planned)
    ahead.close()


def test_closing_leaves_no_thread_and_begins_nothing(storage: DistantStorage) -> None:
    ahead = Ahead(storage)
    ahead.plan([(A, 2000 * number, 2000) for number in range(5)])
    ahead.close()
    assert len(storage.requests) <= 2
    assert not threads_left("pharmabackup-ahead")
