"""The slots of a snapshot's blocks: what is in one, and for how long."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator

import pytest
from msgspec import structs

import pharmabackup as pb
from pharmabackup.engine.index import Index
from pharmabackup.engine.table import AGE_MAX, Table
from pharmabackup.format.recipe import UNUSED
from tests.format import samples


@pytest.fixture
def index(make_repo: Callable[[], pb.Repository]) -> Iterator[Index]:
    made = Index(make_repo()._unlocked)
    yield made
    made.close()


def _stored(index: Index) -> tuple[bytes, int]:
    """A block that lies in a pack: its id and number."""
    directory = structs.replace(samples.DIRECTORY, domain=index.domain)
    number = index.blocks.add_pack(bytes(32), 150, directory, signer=bytes(16))
    return samples.BLOCK.id, number


def test_a_block_does_not_inherit_the_age_of_what_had_its_slot(index: Index) -> None:
    stays, number = _stored(index)
    new = [index.blocks.reserve() for _ in range(3)]
    table = Table()
    assert table.adopt([UNUSED, stays, UNUSED], array("H", [30, 7, 9]), index)
    assert table.slot(number) == 1
    slots = [table.slot(block) for block in new]
    assert {*slots[:2]} == {0, 2}, "both were free"
    assert slots[2] == 3
    assert list(table.ages) == [0, 8, 0, 0]
    assert [table.slot(block) for block in new] == slots


def test_a_block_of_the_greatest_age_stays_that_old(index: Index) -> None:
    block_id, _ = _stored(index)
    table = Table()
    assert table.adopt([block_id, UNUSED], array("H", [AGE_MAX, AGE_MAX]), index)
    assert list(table.ages) == [AGE_MAX, AGE_MAX]
