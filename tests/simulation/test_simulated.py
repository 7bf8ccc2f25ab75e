"""The simulated storage: without faults it keeps all promises, with them it does what it says, and again the same."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest

from pharmabackup.errors import Conflict, NotFound, StorageFailed
from pharmabackup.storage.probe import probe
from pharmabackup.testing.faults import Fault, Faults, Planned, SimulatedClock
from pharmabackup.testing.simulated import SimulatedStorage
from pharmabackup.testing.storage import StorageConformance


class TestWithoutFaults(StorageConformance):
    def make(self) -> SimulatedStorage:
        return SimulatedStorage(clock=SimulatedClock(time.time_ns()))

    def reopen(self) -> None:
        return None


def _names(storage: SimulatedStorage) -> list[str]:
    return [info.name for info in storage.list("")]


def _plan(call: str, fault: Fault, nth: int = 0) -> SimulatedStorage:
    storage = SimulatedStorage()
    storage.put_new("there", b"before")
    storage.faults = Faults(planned=(Planned(call=call, fault=fault, nth=nth),), arrives=1)
    return storage


@pytest.mark.parametrize("fault", ["before", "after", "late"])
def test_a_publish_that_fails_has_happened_or_not_or_happens_later(fault: Fault) -> None:
    storage = _plan("publish", fault)
    with pytest.raises(StorageFailed):
        storage.put_new("a", b"data")
    assert ("a" in storage._objects) == (fault == "after")
    assert ("a" in _names(storage)) == (fault != "before")
    storage.put_new("b", b"the next is as it should be")


def test_a_publish_whose_answer_was_lost_is_told_that_it_exists() -> None:
    storage = _plan("publish", "again")
    with pytest.raises(Conflict):
        storage.put_new("a", b"data")
    assert storage.get("a", limit=10) == b"data"


@pytest.mark.parametrize(("fault", "size"), [("torn", range(4)), ("lost", None)])
def test_a_publish_that_lies(fault: Fault, size: range | None) -> None:
    storage = _plan("publish", fault)
    assert storage.put_new("a", b"data").size == 4
    if size is None:
        with pytest.raises(NotFound):
            storage.checksum("a")
    else:
        assert storage.checksum("a")[0] in size


def test_what_arrives_twice() -> None:
    storage = _plan("publish", "twice")
    storage.put_new("a", b"data")
    storage._objects.clear()
    storage.settle()
    assert storage.get("a", limit=10) == b"data"
    storage.faults = Faults(planned=(Planned(call="delete a", fault="twice"),))
    assert storage.delete(["a"]) == {"a": None}
    storage.put_new("a", b"again")
    storage.settle()
    assert _names(storage) == []


@pytest.mark.parametrize("fault", ["before", "after", "late"])
def test_deleting_fails_for_one_and_not_for_the_others(fault: Fault) -> None:
    storage = _plan("delete b", fault)
    for name in "abc":
        storage.put_new(name, b"x")
    results = storage.delete(["a", "b", "c"])
    assert isinstance(results.pop("b"), StorageFailed)
    assert results == {"a": None, "c": None}
    storage.settle()
    assert _names(storage) == (["b", "there"] if fault == "before" else ["there"])


def test_a_plan_counts_the_calls_that_it_is_about() -> None:
    storage = _plan("get", "before", nth=1)
    storage.get("there", limit=10)
    storage.info("there")
    with pytest.raises(StorageFailed):
        storage.get("there", limit=10)
    storage.get("there", limit=10)


def test_stale_listings_show_what_was_there() -> None:
    storage = _plan("publish", "before", nth=100)
    storage.put_new("old", b"x")
    storage.clock.advance(timedelta(hours=1))
    storage.faults = Faults(stale=timedelta(minutes=10))
    storage.put_new("new", b"x")
    storage.delete(["old"])
    assert _names(storage) == ["old", "there"]
    storage.clock.advance(timedelta(minutes=11))
    assert _names(storage) == ["new", "there"]
    assert not probe(SimulatedStorage(faults=Faults(stale=timedelta(minutes=1)))).fresh_listing


def test_the_probe_finds_out_what_it_can() -> None:
    found = probe(SimulatedStorage())
    assert (found.exclusive_create, found.fresh_listing) == (True, True)
    assert not probe(SimulatedStorage(exclusive=False)).exclusive_create


def test_a_listing_goes_on_while_others_write() -> None:
    storage = SimulatedStorage(faults=Faults(page=1))
    for name in "bd":
        storage.put_new(name, b"x")
    listing = storage.list("")
    assert next(listing).name == "b"
    storage.delete(["d"])
    for name in "ac":
        storage.put_new(name, b"x")
    assert [info.name for info in listing] == ["c"]


def test_a_listing_fails_half_way() -> None:
    storage = SimulatedStorage()
    for name in "abc":
        storage.put_new(name, b"x")
    storage.faults = Faults(page=1, planned=(Planned(call="list", fault="before", nth=2),))
    listing = storage.list("")
    assert [next(listing).name, next(listing).name] == ["a", "b"]
    with pytest.raises(StorageFailed):
        next(listing)
    assert storage.suffered == {"before": 1}


def test_what_is_late_comes_between_two_pages() -> None:
    storage = SimulatedStorage()
    for name in "ac":
        storage.put_new(name, b"x")
    storage.faults = Faults(page=1, arrives=2, planned=(Planned(call="delete c", fault="late"),))
    storage.delete(["c"])
    assert not storage.settled
    assert [info.name for info in storage.list("")] == ["a"]
    assert storage.settled


def test_it_is_full() -> None:
    storage = SimulatedStorage(faults=Faults(capacity=10))
    storage.put_new("a", bytes(6))
    with pytest.raises(StorageFailed) as caught:
        storage.put_new("b", bytes(5))
    assert caught.value.kind == "full"
    assert storage.suffered == {"full": 1}
    storage.put_new("b", bytes(4))


def test_damage_is_noted_and_healed() -> None:
    storage = SimulatedStorage()
    before = {name: storage.put_new(name, name.encode() * 9) for name in "abc"}
    storage.flip("a", at=3, bit=7)
    storage.cut("b", size=4)
    storage.cut("b", size=2)
    storage.remove("c")
    assert [storage.info(name).size for name in "ab"] == [9, 2]
    assert storage.get("a", limit=9) != b"a" * 9
    assert [(injury.name, injury.how) for injury in storage.injuries] == [
        ("a", "flipped"), ("b", "cut"), ("b", "cut"), ("c", "removed"),
    ]  # fmt: skip
    storage.heal()
    assert {name: storage.info(name) for name in "abc"} == before
    assert [storage.get(name, limit=9) for name in "abc"] == [name.encode() * 9 for name in "abc"]


def _many(seed: int) -> tuple[list[str], list[Any]]:
    storage = SimulatedStorage(seed=seed)
    faults = Faults(before=0.1, after=0.1, again=0.1, torn=0.1, lost=0.1, twice=0.1, late=0.1, arrives=5)
    storage.faults = faults
    told: list[Any] = []
    for number in range(60):
        try:
            storage.put_new(f"a/{number}", bytes(number))
            told.append(next(iter(storage.delete([f"a/{max(0, number - 3)}"]).values())) is None)
        except (StorageFailed, Conflict) as error:
            told.append(type(error))
    storage.faults = Faults()
    return storage.log, [*told, *storage.list("")]


def test_the_same_seed_gives_the_same_faults() -> None:
    assert _many(1) == _many(1)
    assert _many(1) != _many(2)
