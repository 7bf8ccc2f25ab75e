"""Repair: each kind of damage, mended from what is still whole here, from a replica, or from the source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.format.wire import Kind
from tests.verbs.ailing import Ward


@pytest.fixture
def ward(tmp_path: Path, cheap_kdf: None) -> Iterator[Ward]:
    made = Ward(tmp_path / "ward")
    for day in range(3):
        made.change(day)
        made.back_up()
    yield made
    made.repo.close()


def test_nothing_to_do(ward: Ward) -> None:
    before = ward.names("")
    proposal = ward.mend()
    assert (proposal.steps, proposal.findings, proposal.snapshots, proposal.bytes_freed) == ((), (), (), 0)
    assert str(proposal) == "repair: nothing to do"
    assert ward.names("") == before


OUTSIDE = ["names", "filler", "directory", "trailer"]
BLOCKS = ["data block", "manifest block", "recipe block"]


@pytest.mark.parametrize("region", OUTSIDE)
def test_what_is_not_a_block_is_mended_from_the_pack_itself(ward: Ward, region: str) -> None:
    name = ward.pack_of(Kind.DATA_BLOCK)
    ward.flip(name, ward.regions(name)[region])
    assert "pack-damaged" in ward.codes()
    proposal = ward.mend()
    assert not proposal.findings and len(proposal.steps) == 2
    assert name not in ward.names("packs")
    ward.all_is_well()
    assert not ward.repo.propose_repair().steps


@pytest.mark.parametrize("region", BLOCKS)
def test_a_damaged_block_comes_from_a_replica(ward: Ward, region: str) -> None:
    replica = ward.replica()
    name = ward.pack_of(Kind.DATA_BLOCK)
    ward.flip(name, ward.regions(name)[region])
    proposal = ward.mend(replicas=[replica])
    assert not [finding for finding in proposal.findings if finding.severity != "info"]
    assert any("1 block is taken from" in step for step in proposal.steps)
    assert name not in ward.names("packs")
    ward.all_is_well()
    replica.close()
