"""What rules may not let go of an archived log."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pharmabackup.sources.wal_names import named
from pharmabackup.verbs.log_kept import needed

SIZE = 16 << 20


def log(number: int, *runs: tuple[int, int], line: int = 1, histories: tuple[str, ...] = (), system: str = "7"):
    facts = {
        "system": system,
        "segment_size": SIZE,
        "runs": [[named(line, first, SIZE), named(line, last, SIZE)] for first, last in runs],
        "histories": {name: ["", 0] for name in histories},
    }
    record = SimpleNamespace(source="postgresql-wal", dataset="w", facts=facts, time=number)
    return SimpleNamespace(transaction=bytes([number]), snapshot=record)


def base(number: int, start: int | None, system: str = "7"):
    facts = {"system": system} | ({} if start is None else {"start": named(1, start, SIZE)})
    record = SimpleNamespace(source="postgresql-cluster", dataset="server", facts=facts, time=number, age=1)
    return SimpleNamespace(transaction=bytes([number]), snapshot=record)


def kept(items, going, damaged=()):
    """Numbers of what has to stay."""
    found = needed(items, {bytes([number]) for number in going}, {bytes([number]) for number in damaged})
    return {one[0] for one in found}


def test_what_the_last_of_an_hour_holds_may_go():
    hours = [log(5, (7, 9)), log(4, (5, 8)), log(3, (5, 7)), log(2, (3, 6)), log(1, (3, 5))]
    assert kept(hours, {4, 3, 1}) == set()


def test_what_holds_a_file_that_no_other_does_stays():
    hours = [log(4, (8, 9)), log(3, (6, 7)), log(2, (4, 5)), log(1, (1, 3))]
    assert kept(hours, {2, 3}) == {2, 3}
    assert kept(hours, {1, 2, 3}) == set()  # older than all that is kept
    assert kept(hours, {1, 3}) == {3}


def test_what_stays_holds_files_for_others():
    assert kept([log(4, (8, 9)), log(3, (5, 7)), log(2, (5, 6)), log(1, (4, 4))], {2, 3}) == {3}


def test_a_file_that_is_older_than_all_of_the_log_that_is_kept_keeps_nothing():
    assert kept([log(3, (5, 9)), log(2, (4, 6)), log(1, (1, 5))], {1, 2}) == set()


def test_a_kept_backup_of_the_server_keeps_its_log():
    items = [log(5, (8, 9)), log(4, (6, 7)), base(3, 4), log(2, (4, 5)), log(1, (1, 3))]
    assert kept(items, {1, 2, 4}) == {2, 4}
    assert kept(items, {1, 2, 3, 4}) == set()  # it goes too
    other = [*items[:2], base(3, 4, system="8"), *items[3:]]
    assert kept(other, {1, 2, 4}) == set()


def test_a_kept_backup_of_a_standby_keeps_the_log_since_it_began():
    """It does not say where that was: so it is from where the log was then."""
    items = [log(5, (8, 9)), log(4, (6, 7)), base(3, None), log(2, (4, 5)), log(1, (1, 3))]
    assert kept(items, {1, 2, 4}) == {2, 4}


def test_damaged_ones_hold_nothing_for_others():
    items = [log(3, (5, 9)), log(2, (3, 9)), log(1, (1, 4))]
    assert kept([log(4, (8, 9)), *items], {3}) == set()
    assert kept([log(4, (8, 9)), *items], {3}, damaged={2}) == {3}


def test_where_a_timeline_began_stays():
    assert kept([log(3, (5, 9)), log(2, (5, 6), histories=("00000002.history",)), log(1, (4, 5))], {2}) == {2}


@pytest.mark.parametrize("line", [1, 2])
def test_the_same_number_on_another_timeline_is_another_file(line):
    items = [log(3, (5, 9)), log(2, (5, 6), line=line), log(1, (4, 5))]
    assert kept(items, {2}) == (set() if line == 1 else {2})
