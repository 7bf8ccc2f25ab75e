"""Recipes: runs as columns in sections, joined where they go on, and everything that is no recipe."""

from __future__ import annotations

import itertools
import struct
from array import array
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharmabackup.errors import Damaged
from pharmabackup.format.recipe import UNUSED, Runs, decode_runs

Run = tuple[int, int, int, int]  # block, first, count, bytes


def runs_of(stream: Iterator[bytes | memoryview], table_size: int) -> Runs:
    """A recipe whose snapshot has chunks enough."""
    return decode_runs(stream, table_size=table_size, chunks=1 << 40)


def section(*runs: Run, n: int | None = None) -> bytes:
    """A section as docs/format.md §18.1 has it, without the code."""
    count = len(runs)
    columns = list(zip(*runs, strict=True)) if runs else [(), (), (), ()]
    return struct.pack("<I", count if n is None else n) + b"".join(
        struct.pack(f"<{count}{width}", *column) for width, column in zip("IIIQ", columns, strict=True)
    )


def as_tuples(runs: Runs) -> list[Run]:
    return list(zip(runs.block, runs.first, runs.count, runs.sizes, strict=True))


RUN = st.tuples(st.integers(0, 9), st.integers(0, 60000), st.integers(1, 5000), st.integers(1, 1 << 17))


@given(st.lists(RUN, max_size=30), st.lists(st.integers(1, 29), max_size=4))
def test_sections_are_read_as_written(runs: list[Run], cuts: list[int]) -> None:
    ours = Runs()
    for run in runs:
        ours.add(*run)
    ends = sorted({min(cut, len(ours)) for cut in cuts} | {0, len(ours)})
    pieces = [ours.section(a, b) for a, b in itertools.pairwise(ends) if b > a]
    assert as_tuples(runs_of(iter(pieces), 10)) == as_tuples(ours)
    assert as_tuples(runs_of(iter([b"".join(pieces)]), 10)) == as_tuples(ours)
    assert as_tuples(runs_of(iter([memoryview(piece) for piece in pieces]), 10)) == as_tuples(ours)
    assert b"".join(section(*as_tuples(ours)[a:b]) for a, b in itertools.pairwise(ends) if b > a) == b"".join(pieces)


def test_a_section_as_the_text_has_it() -> None:
    runs = Runs()
    runs.add(1, 2, 3, 4)
    runs.add(5, 6, 7, 8)
    expected = "02000000 01000000 05000000 02000000 06000000 03000000 07000000 0400000000000000 0800000000000000"
    assert runs.section(0, 2).hex() == expected.replace(" ", "")
    assert len(UNUSED) == 32
    assert not any(UNUSED)


@given(st.lists(RUN, max_size=40))
def test_joined_runs_are_the_same_chunks(runs: list[Run]) -> None:
    ours = Runs()
    for run in runs:
        ours.add(*run)
    chunks = [(block, first + i) for block, first, count, _ in runs for i in range(count)]
    joined = [(block, first + i) for block, first, count, _ in as_tuples(ours) for i in range(count)]
    assert chunks == joined
    assert sum(run[3] for run in runs) == sum(ours.sizes)
    for before, after in zip(as_tuples(ours), as_tuples(ours)[1:], strict=False):
        assert before[0] != after[0] or before[1] + before[2] != after[1]


def test_what_goes_on_is_joined() -> None:
    runs = Runs()
    for first in range(5):
        runs.add(3, first, 1, 10)
    runs.add(3, 6, 1, 10)
    runs.add(4, 7, 1, 10)
    assert as_tuples(runs) == [(3, 0, 5, 50), (3, 6, 1, 10), (4, 7, 1, 10)]
    more = Runs()
    more.extend(runs, 1, 3)
    assert as_tuples(more) == as_tuples(runs)[1:]


def test_an_empty_recipe() -> None:
    assert len(runs_of(iter([]), 0)) == 0
    assert len(runs_of(iter([b"", b""]), 0)) == 0


GOOD = (0, 0, 1, 1)


@pytest.mark.parametrize("run", [(9, 0, 1, 1), (0, 65535, 1, 1), (0, 0, 65536, 1 << 23), (0, 0, 1, 0)])
def test_just_inside(run: Run) -> None:
    assert as_tuples(runs_of(iter([section(GOOD, run)]), 10)) == [GOOD, run]


@pytest.mark.parametrize(
    "run", [(10, 0, 1, 1), (0xFFFFFFFF, 0, 1, 1), (0, 65536, 1, 1), (0, 0, 0, 1), (0, 0, 65537, 1)]
)
def test_just_outside(run: Run) -> None:
    with pytest.raises(Damaged):
        runs_of(iter([section(GOOD, run)]), 10)


def test_a_run_needs_a_table() -> None:
    with pytest.raises(Damaged):
        runs_of(iter([section(GOOD)]), 0)


WHOLE = section(GOOD, (1, 2, 3, 4))


@pytest.mark.parametrize("size", [*range(1, len(WHOLE)), len(WHOLE) + 1, len(WHOLE) + 3, len(WHOLE) + 4])
def test_cut_off_or_too_long(size: int) -> None:
    with pytest.raises(Damaged):
        runs_of(iter([(WHOLE + bytes(10))[:size]]), 10)


def test_a_section_lies_in_one_piece() -> None:
    with pytest.raises(Damaged):
        runs_of(iter([WHOLE[:20], WHOLE[20:]]), 10)


@pytest.mark.parametrize("n", [0, 3, 65537, 0xFFFFFFFF])
def test_an_impossible_number_of_runs(n: int) -> None:
    with pytest.raises(Damaged):
        runs_of(iter([section(GOOD, GOOD, n=n)]), 10)


def test_the_largest_section() -> None:
    n = 1 << 16
    column = array("I", [1]) * n
    raw = struct.pack("<I", n) + column.tobytes() * 3 + struct.pack("<Q", 9) * n
    assert len(runs_of(iter([raw]), 2)) == n
    raw = struct.pack("<I", n + 1) + array("I", [1] * (n + 1)).tobytes() * 3 + struct.pack("<Q", 9) * (n + 1)
    with pytest.raises(Damaged):
        runs_of(iter([raw]), 2)


# ---------------------------------------- what docs/format.md §18, §22 asks for and nothing checks yet


@pytest.mark.parametrize("size", [(1 << 23) + 1, (1 << 64) - 1])
def test_a_run_larger_than_a_block(size: int) -> None:
    with pytest.raises(Damaged):
        runs_of(iter([section((0, 0, 1, size))]), 10)


def test_a_run_that_ends_outside_of_its_block() -> None:
    with pytest.raises(Damaged):
        runs_of(iter([section((0, 65535, 2, 2))]), 10)
