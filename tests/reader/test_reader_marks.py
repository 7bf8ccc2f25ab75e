"""What marks make of a snapshot: the independent reader and the library say the same, whatever was said when."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pharmabackup.engine import history
from pharmabackup.format.keys import Policy, Slot
from pharmabackup.format.transaction import Mark
from tests.reader import marks

DELAY = 5
NAMES = [bytes([number]) * 16 for number in range(8)]
WHO = b"w" * 16
OTHER = b"o" * 16
KINDS = ["forget", "forget", "forget", "hold", "hold", "release", "undo"]


def _slot(number: int) -> Slot:
    return Slot(bytes([number]) * 16, "x", "owner", None, "recipient", bytes(32), bytes(1216), 0, None, None)


@st.composite
def _said(draw: st.DrawFn) -> list[history.Said]:
    """Up to eight marks about two snapshots, each at a time of its own, in any order."""
    times = draw(st.lists(st.integers(0, 15), max_size=len(NAMES), unique=True))
    found = []
    for name, time in zip(NAMES, times, strict=False):
        kind = draw(st.sampled_from(KINDS)) if found else "forget"
        about = draw(st.sampled_from(NAMES[: len(times)])) if kind in ("undo", "release") else None
        if kind == "forget":
            about = draw(st.sampled_from([None, NAMES[0], NAMES[0], *NAMES[: len(times)]])) if found else None
        until = draw(st.none() | st.integers(1, 20)) if kind == "hold" else None
        mark = Mark(
            kind,
            draw(st.sampled_from([WHO, WHO, OTHER, WHO + OTHER])),
            0,
            None,
            None if until is None else until * 10**9,
            about,
        )  # type: ignore[arg-type]
        found.append(history.Said(name, mark, _slot(draw(st.integers(1, 3))), time * 10**9))
    return found


@pytest.mark.parametrize("quorum", [1, 2])
@settings(max_examples=600)
@given(said=_said(), now=st.integers(0, 30))
def test_both_say_the_same(quorum: int, said: list[history.Said], now: int) -> None:
    theirs = history.History(quorum=quorum, delay=DELAY * 10**9, said=sorted(said, key=lambda one: one.time))
    mine = {one.id: marks.Said(one.mark, one.slot.id, one.time) for one in said}
    policy = Policy((), DELAY, quorum, 0, False)
    assert marks.gone(mine, policy, now * 10**9) == theirs.gone(now * 10**9)
