"""Marks: when a snapshot is forgotten or held, by whose word and whose clock."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import pytest

from pharmabackup.clock import now_ns
from pharmabackup.engine.history import History, Said
from pharmabackup.format.keys import Role, Slot
from pharmabackup.format.transaction import Mark
from pharmabackup.verbs.standing import NOTHING, standings
from tests.format import samples as s

DAY = 86400 * 10**9
ONE, TWO = b"\1" * 16, b"\2" * 16  # snapshots
FIRST, SECOND, THIRD, FOURTH = b"a" * 16, b"b" * 16, b"c" * 16, b"d" * 16  # marks
Kind = Literal["forget", "undo", "hold", "release", "verified"]


def _said(
    mark_id: bytes,
    kind: Kind,
    transactions: bytes = ONE,
    *,
    days: float = 15,
    slot: int = 1,
    about: bytes | None = None,
    until: int | None = None,
    role: Role = "owner",
) -> Said:
    """A mark that is so many days old by the storage's clock; the device's own clock says something else."""
    who = Slot(bytes([slot]) * 16, "x", role, None, "recipient", s.KEY, s.PUBLIC, 0, None, None)
    return Said(mark_id, Mark(kind, transactions, slot, None, until, about), who, int(now_ns() - days * DAY))


def _history(said: Iterable[Said], quorum: int = 1) -> History:
    return History(said=sorted(said, key=lambda item: item.time), quorum=quorum, delay=14 * DAY)


CASES: dict[str, tuple[int, list[Said], set[bytes]]] = {
    "nothing": (1, [], set()),
    "long ago": (1, [_said(FIRST, "forget", ONE + TWO)], {ONE, TWO}),
    "not long ago": (1, [_said(FIRST, "forget", days=13)], set()),
    "undone too late": (1, [_said(FIRST, "forget", days=30), _said(SECOND, "undo", days=15, about=FIRST)], {ONE}),
    "undone in time": (1, [_said(FIRST, "forget", days=30), _said(SECOND, "undo", days=17, about=FIRST)], set()),
    "held in time": (1, [_said(FIRST, "forget", days=30), _said(SECOND, "hold", days=17)], set()),
    "held too late": (1, [_said(FIRST, "forget", days=30), _said(SECOND, "hold", days=15)], {ONE}),
    "held in time, and again while it was held": (
        1,
        [
            _said(FIRST, "forget", days=30),
            _said(SECOND, "hold", days=17, until=now_ns() - 10 * DAY),
            _said(THIRD, "hold", days=12),
        ],
        set(),
    ),
    "held in time, and again when that had ended": (
        1,
        [
            _said(FIRST, "forget", days=30),
            _said(SECOND, "hold", days=17, until=now_ns() - 14 * DAY),
            _said(THIRD, "hold", days=12),
        ],
        {ONE},
    ),
    "held in time and released": (
        1,
        [
            _said(FIRST, "forget", days=30),
            _said(SECOND, "hold", days=17),
            _said(THIRD, "release", days=5, about=SECOND),
        ],
        {ONE},
    ),
    "of two, one is undone after it counted": (
        2,
        [
            _said(FIRST, "forget", days=30),
            _said(SECOND, "forget", slot=2, days=29, about=FIRST),
            _said(THIRD, "undo", days=5, about=SECOND),
        ],
        {ONE},
    ),
    "of two, one is undone before": (
        2,
        [
            _said(FIRST, "forget", days=30),
            _said(SECOND, "forget", slot=2, days=29, about=FIRST),
            _said(THIRD, "undo", days=20, about=SECOND),
        ],
        set(),
    ),
    "undone": (1, [_said(FIRST, "forget"), _said(SECOND, "undo", about=FIRST)], set()),
    "undone before it was said, as clocks have it": (
        1, [_said(FIRST, "forget", days=16), _said(SECOND, "undo", days=17, about=FIRST)], set(),
    ),
    "the second undone before it was said, as clocks have it": (
        2,
        [
            _said(FIRST, "forget", days=30),
            _said(SECOND, "forget", slot=2, days=16, about=FIRST),
            _said(THIRD, "undo", days=17, about=SECOND),
        ],
        set(),
    ),
    "another undone": (1, [_said(FIRST, "forget"), _said(SECOND, "undo", about=THIRD)], {ONE}),
    "one of two": (2, [_said(FIRST, "forget")], set()),
    "two": (2, [_said(FIRST, "forget"), _said(SECOND, "forget", slot=2, about=FIRST)], {ONE}),
    "two, and one of them twice": (
        2, [_said(FIRST, "forget", days=30), _said(SECOND, "forget", days=20, about=FIRST)], set(),
    ),
    "the second not long ago": (
        2, [_said(FIRST, "forget", days=30), _said(SECOND, "forget", slot=2, days=1, about=FIRST)], set(),
    ),
    "a third not long ago": (
        2,
        [
            _said(FIRST, "forget"),
            _said(SECOND, "forget", slot=2, about=FIRST),
            _said(THIRD, "forget", slot=3, days=1, about=FIRST),
        ],
        {ONE},
    ),
    "the second undone": (
        2,
        [
            _said(FIRST, "forget"),
            _said(SECOND, "forget", slot=2, about=FIRST),
            _said(THIRD, "undo", about=SECOND),
        ],
        set(),
    ),
    "two that do not know of each other": (2, [_said(FIRST, "forget"), _said(SECOND, "forget", slot=2)], set()),
    "a second for one of two": (
        2, [_said(FIRST, "forget", ONE + TWO), _said(SECOND, "forget", TWO, slot=2, about=FIRST)], {TWO},
    ),
    "a second for what the first does not name": (
        1, [_said(FIRST, "forget", ONE), _said(SECOND, "forget", TWO, slot=2, about=FIRST)], {ONE},
    ),
    "a second of what is not here": (1, [_said(SECOND, "forget", about=FIRST)], set()),
    "a second of a second": (
        1,
        [
            _said(FIRST, "forget"),
            _said(FOURTH, "undo", about=FIRST),
            _said(SECOND, "forget", slot=2, about=FIRST),
            _said(THIRD, "forget", slot=3, about=SECOND),
        ],
        set(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_forgotten(case: str) -> None:
    quorum, said, forgotten = CASES[case]
    assert _history(said, quorum).forgotten() == forgotten


HOLDS: dict[str, tuple[list[Said], bool]] = {
    "held": ([_said(FIRST, "hold")], True),
    "held for ever so long": ([_said(FIRST, "hold", until=now_ns() + DAY)], True),
    "no longer": ([_said(FIRST, "hold", until=now_ns() - 1)], False),
    "released": ([_said(FIRST, "hold"), _said(SECOND, "release", about=FIRST, days=1)], False),
    "one of two released": (
        [_said(FIRST, "hold"), _said(SECOND, "hold"), _said(THIRD, "release", about=FIRST)], True,
    ),
    "another": ([_said(FIRST, "hold", TWO)], False),
}  # fmt: skip


@pytest.mark.parametrize("case", HOLDS)
def test_what_is_held(case: str) -> None:
    said, held = HOLDS[case]
    assert (standings(_history(said)).get(ONE, NOTHING).held is not None) == held
