"""Whoever can write to the storage, without any key, stops nobody by an object that looks like a segment."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.engine.condemned import read_condemned
from pharmabackup.engine.index import Index
from pharmabackup.engine.segments import read_segment, write_segment
from pharmabackup.format import wire
from pharmabackup.format.index import PackEntry, Segment
from pharmabackup.format.wire import Kind
from tests.verbs.ailing import QUIET, Ward
from tests.verbs.site import DAY_NS, Time, prune

JUNK: dict[str, Callable[[Ward], bytes]] = {
    "no record": lambda _: os.urandom(100),
    "unknown key": lambda _: wire.header(Kind.INDEX) + os.urandom(200),
    "known key": lambda ward: wire.header(Kind.INDEX) + ward.repo._unlocked.catalogue_id + os.urandom(200),
}


@pytest.fixture(params=JUNK)
def planted(request: pytest.FixtureRequest, ward: Ward) -> str:
    return _plant(ward, ward.path, request.param)


def _plant(ward: Ward, root: Path, what: str) -> str:
    data = JUNK[what](ward)
    name = ids.index_name(hashlib.sha256(data).digest())
    (root / name).write_bytes(data)
    return name


def test_everybody_goes_on(ward: Ward, planted: str) -> None:
    ward.reopen()
    ward.back_up()
    assert ward.whole() == set(ward.states)
    ward.repo.apply(ward.repo.propose_prune())
    assert ward.names("index").count(planted) == 1  # a collection lets nothing go that it cannot judge
    ward.repo.apply(ward.repo.propose_forget(snapshots=[ward.repo.snapshots("documents")[-1]]))
    found = [item for item in ward.repo.check(read_data=1.0).findings if item.code not in QUIET]
    assert [(item.code, item.subject) for item in found] == [("index-damaged", planted)]
    assert "delete it" in found[0].remedy


def test_an_entry_that_is_none_counts_alone(ward: Ward, time: Time) -> None:
    """Somebody with a key has signed it. What stands beside it counts, and collections come to their end."""
    unlocked = ward.repo._unlocked
    digests = [ids.hex_tail(name) or b"" for name in ward.names("index")]
    genuine = [entry for digest in digests for entry in read_segment(unlocked, digest).record.packs]
    ward.lose(*ward.names("index"))
    junk = [PackEntry(pack, 100_000, b"junk") for pack in (os.urandom(32), *(entry.pack for entry in genuine))]
    planted = write_segment(unlocked, [*junk, *genuine])
    ward.reopen()
    index = Index(ward.repo._unlocked, chunks=False)
    for _ in range(2):
        index.load()
        assert len(index.blocks.packs) == len(genuine)
    ward.repo.apply(ward.repo.propose_forget({"*": pb.Keep(last=1)}))
    time.ahead += 15 * DAY_NS
    prune(ward.repo)
    assert not read_condemned(ward.repo._unlocked).unfinished
    assert ids.index_name(planted) not in ward.names("index")  # a pack that it names is gone
    assert {snapshot.id for snapshot in ward.repo.snapshots() if not snapshot.forgotten} <= ward.whole()


def test_what_nobody_signed_is_not_signed_by_a_collector(ward: Ward, time: Time) -> None:
    """He publishes again what stays of a segment; one that he has not verified before, he verifies."""
    unlocked = ward.repo._unlocked
    digests = [ids.hex_tail(name) or b"" for name in ward.names("index")]
    genuine = [entry for digest in digests for entry in read_segment(unlocked, digest).record.packs]
    lies = [msgspec.structs.replace(entry, size=entry.size + 1) for entry in genuine]
    signed = unlocked.sign(Kind.INDEX, "index/", Segment(tuple(lies)))
    data = unlocked.seal_signed(Kind.INDEX, msgspec.structs.replace(signed, signature=bytes(64)))
    planted = hashlib.sha256(data).digest()
    (ward.path / ids.index_name(planted)).write_bytes(data)
    ward.reopen()
    ward.repo.apply(ward.repo.propose_forget({"*": pb.Keep(last=1)}))
    time.ahead += 15 * DAY_NS
    before = set(ward.names("packs"))
    prune(ward.repo)
    assert not before <= set(ward.names("packs"))  # it names one that is gone
    digests = [ids.hex_tail(name) or b"" for name in ward.names("index")]
    there = {
        entry
        for digest in digests
        if digest != planted
        for entry in read_segment(ward.repo._unlocked, digest).record.packs
    }
    assert there
    assert not there & set(lies)


@pytest.mark.parametrize("what", JUNK)
def test_a_replica_is_of_use_all_the_same(ward: Ward, replica: pb.Repository, what: str) -> None:
    _plant(ward, Path(replica.url), what)
    ward.lose(ward.pack_of(Kind.DATA_BLOCK, part="large"))
    ward.reopen()
    ward.mend(replicas=[replica])
    ward.all_is_well()
