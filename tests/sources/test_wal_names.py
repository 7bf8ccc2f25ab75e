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


@given(st.sets(st.tuples(st.integers(1, 3), st.integers(0, 40))), SIZES)
def test_runs_are_all_segments_and_none_that_is_missing(segments, size):
    names = [name(line, number, size) for line, number in segments]
    runs = wal_names.runs(names, size)
    inside = set()
    for first, last in runs:
        for _ in range(wal_names.length((first, last), size)):
            inside.add(first)
            first = wal_names.after(first, size)
    assert inside == set(names)
    assert wal_names.joined(runs, size) == runs
    assert wal_names.covers(runs, wal_names.runs(names, size), size)


@given(st.lists(st.tuples(st.integers(1, 2), st.integers(0, 20), st.integers(0, 5))), SIZES)
def test_runs_that_touch_are_one(parts, size):
    runs = [(name(line, first, size), name(line, first + more, size)) for line, first, more in parts]
    each = {name(line, first + i, size) for line, first, more in parts for i in range(more + 1)}
    assert wal_names.joined(runs, size) == wal_names.runs(each, size)
    assert wal_names.covers(runs, wal_names.runs(each, size), size)
    assert not wal_names.covers(runs, [(name(3, 1, size), name(3, 1, size))], size)


FIRST, SECOND = "1\t0/8000028\tno recovery target specified\n", "\n2\t1/9000000\tbefore 2027-03-09 10:00:00+00\n"


def test_a_history_says_where_a_timeline_begins():
    assert wal_names.forks(FIRST + SECOND, 16 << 20) == [(1, 8), (2, 256 + 9)]
    assert wal_names.forks("# made by hand\n" + FIRST, 16 << 20) == [(1, 8)]
    assert wal_names.forks("", 16 << 20) == wal_names.forks("nonsense", 16 << 20) == []


def segments(*parts: tuple[int, int, int]) -> list[tuple[str, str]]:
    return [(name(line, first, 16 << 20), name(line, last, 16 << 20)) for line, first, last in parts]


@pytest.mark.parametrize(
    ("there", "histories", "missing"),
    [
        ([(1, 1, 9)], {}, []),
        ([(1, 1, 4), (1, 7, 9)], {}, [(1, 5, 6)]),
        ([(1, 1, 9), (2, 8, 12)], {2: FIRST}, []),  # the other went on for a while
        ([(1, 1, 8), (2, 8, 12)], {2: FIRST}, []),
        ([(1, 1, 7), (2, 8, 12)], {2: FIRST}, []),  # the last one of the other was never full
        ([(1, 1, 5), (2, 8, 12)], {2: FIRST}, [(1, 6, 7)]),
        ([(1, 1, 9), (2, 10, 12)], {2: FIRST}, [(2, 8, 9)]),
        ([(2, 8, 12)], {2: FIRST}, []),  # archiving began there
        ([(1, 1, 9), (2, 2, 3), (3, 9, 11)], {2: "1\t0/2000028\tx", 3: "1\t0/9000028\tx"}, []),  # of the first again
        ([(1, 1, 9), (2, 12, 13)], {}, [(2, 10, 11)]),  # as far as one can tell
        ([(1, 1, 9), (2, 5, 13)], {}, []),
        ([(1, 1, 5), (1, 9, 12), (2, 8, 12)], {2: FIRST}, [(1, 6, 8)]),
        ([(1, 9, 12), (2, 8, 12)], {2: FIRST}, []),
        ([(1, 1, 5), (3, 8, 12)], {3: "1\t0/8000028\tx\n2\t0/8000028\tx"}, [(1, 6, 7)]),  # the second had no file
        ([(1, 1, 7), (3, 9, 12)], {3: "1\t0/8000028\tx\n2\t0/9000028\tx"}, [(2, 8, 8)]),
        ([], {}, []),
    ],
)
def test_what_is_missing_in_the_log_is_found(there, histories, missing):
    assert wal_names.gaps(segments(*there), histories, 16 << 20) == segments(*missing)


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
