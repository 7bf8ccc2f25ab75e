"""What PostgreSQL calls the files of its log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharmabackup.sources import wal_names

SIZES = st.sampled_from([1 << n for n in range(20, 31)])  # initdb --wal-segsize: 1 MB to 1 GB


def name(line: int, number: int, size: int) -> str:
    """By what the documentation says: timeline, then the number divided by how many there are in 4 GiB."""
    return f"{line:08X}{number // ((4 << 30) // size):08X}{number % ((4 << 30) // size):08X}"


@given(st.integers(1, 0xFFFFFFFF), st.integers(0, 1 << 40), SIZES)
def test_a_name_says_which_segment_it_is(line, number, size):
    text = name(line, number, size)
    assert wal_names.is_segment(text) == (len(text) == 24)
    assert (wal_names.timeline(text), wal_names.number(text, size)) == (line, number)
    assert wal_names.after(text, size) == name(line, number + 1, size)


@given(st.integers(0, 1 << 40), st.integers(0, 1000), st.integers(1, 9), SIZES)
def test_what_is_missing_between_two_is_counted(number, missing, line, size):
    first, second = name(1, number, size), name(line, number + 1 + missing, size)
    assert wal_names.misses(first, second, size) == missing
    assert wal_names.misses(second, first, size) == 0  # a new timeline begins in a segment that there was


def test_the_last_one_of_4_gib_is_followed_by_the_first_of_the_next():
    assert wal_names.after("0000000100000000000000FF", 16 << 20) == "000000010000000100000000"


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("000000010000000000000001", True),
        ("000000010000000000000001.partial", True),
        ("000000010000000000000001.00000028.backup", True),
        ("00000002.history", True),
        ("00000001000000000000000g", False),
        ("000000010000000000000001.json", False),
        ("../000000010000000000000001", False),
        ("RECOVERYXLOG", False),
        ("", False),
    ],
)
def test_only_files_of_the_log_are_taken(text, good):
    assert (wal_names.FILE.fullmatch(text) is not None) == good


def head(line: int, number: int, size: int) -> bytes:
    return wal_names.HEADER.pack(0xD110, 2, line, number * size)


def test_a_segment_is_what_its_name_says():
    size, text = 16 << 20, "000000030000000000000007"
    assert wal_names.is_what_it_says(text, head(3, 7, size), size)
    assert wal_names.is_what_it_says(text, head(2, 7, size), size)  # copied when the timeline began
    assert not wal_names.is_what_it_says(text, head(3, 8, size), size)
    assert not wal_names.is_what_it_says(text, head(4, 7, size), size)
    assert not wal_names.is_what_it_says(text, bytes(24), size)
    assert not wal_names.is_what_it_says(text, b"", size)
