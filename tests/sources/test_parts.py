"""Where large folders are divided: by names alone, so that a change stays where it is."""

from __future__ import annotations

import random
import tracemalloc
from bisect import bisect
from itertools import pairwise

from pharmabackup.sources.listing import Listed
from pharmabackup.sources.parts import PART_MAX, PART_MIN, part_end


def ends(names: list[bytes]) -> list[int]:
    found = [0]
    while found[-1] < len(names):
        found.append(part_end(names, found[-1]))
    return found[1:]


def last_names(names: list[bytes]) -> list[bytes]:
    return [names[end - 1] for end in ends(names)]


def make(count: int) -> list[bytes]:
    chance = random.Random(5)
    return sorted(chance.randbytes(8).hex().encode() for _ in range(count))


def test_a_folder_that_is_not_large_is_one_part() -> None:
    for count in (1, 2, PART_MIN):
        assert ends(make(count)) == [count]


def test_parts_have_their_sizes() -> None:
    names = make(200_000)
    sizes = [end - start for start, end in zip([0, *ends(names)], ends(names), strict=False)]
    assert sum(sizes) == len(names)
    assert all(PART_MIN <= size <= PART_MAX for size in sizes[:-1])
    assert PART_MIN < len(names) / len(sizes) < PART_MAX / 2


def test_names_that_never_say_so_end_at_the_maximum() -> None:
    names = [name for name in make(60_000) if part_end([name] * (PART_MIN + 1), 0) != PART_MIN]
    assert ends(names)[:3] == [PART_MAX, 2 * PART_MAX, 3 * PART_MAX]


def test_one_change_moves_the_ends_beside_it_alone() -> None:
    names = make(30_000)
    before = last_names(names)
    chance = random.Random(6)
    changes = [([*names, chance.randbytes(8).hex().encode()], None) for _ in range(30)]
    changes += [([name for name in names if name != gone], gone) for gone in chance.sample(names, 30) + before]
    for changed, _gone in changes:
        after = last_names(sorted(changed))
        assert len(set(before) ^ set(after)) <= 4
        assert after[-1] == max(changed)


def test_an_end_that_is_gone_joins_two_parts() -> None:
    names = make(30_000)
    before = last_names(names)
    gone = before[3]
    after = last_names([name for name in names if name != gone])
    assert gone not in after
    assert after[:3] == before[:3]
    assert after[bisect(after, before[5]) :] == before[6:]


def test_names_that_wait_are_joined_and_freed() -> None:
    """Each name is in memory once, but for those of the part that is being joined."""
    names = [b"%040d" % number for number in range(50_000)]
    expected = [names[start:end] for start, end in pairwise([0, *ends(names)])]
    listed = Listed("/", b"")
    tracemalloc.start()
    try:
        held = [bytes(bytearray(name)) for name in names]
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        listed.divide(held)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < before * 1.1
    assert after < before * 0.6
    found = [listed.names]
    while listed.rest:
        listed = listed.next_part()
        found.append(listed.names)
    assert found == expected
