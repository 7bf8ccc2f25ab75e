"""Whoever can write to the storage, without any key, stops nobody by an object that looks like a segment."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.format import wire
from pharmabackup.format.wire import Kind
from tests.verbs.ailing import QUIET, Ward

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


@pytest.mark.parametrize("what", JUNK)
def test_a_replica_is_of_use_all_the_same(ward: Ward, replica: pb.Repository, what: str) -> None:
    _plant(ward, Path(replica.url), what)
    ward.lose(ward.pack_of(Kind.DATA_BLOCK, part="large"))
    ward.reopen()
    ward.mend(replicas=[replica])
    ward.all_is_well()
