"""Rules: what is kept of one dataset of one device, whatever the moments are."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pharmabackup as pb
from pharmabackup import retention
from pharmabackup.clock import to_ns
from pharmabackup.retention import Class, Dated, zone

BASE = datetime(2027, 3, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
LONDON = zone("Europe/London")


def _dated(number: int, moment: datetime, **facts: bool) -> Dated:
    what: dict[str, bool] = {"complete": True, "verified": False, "held": False, **facts}
    return Dated(number.to_bytes(16, "big"), to_ns(moment), number, **what)


def kept(snapshots: list[Dated], keep: pb.Keep, where: tzinfo, now: datetime = BASE + 5000 * DAY) -> dict[bytes, str]:
    return retention.kept(snapshots, [keep], where, to_ns(now))


def _numbers(reasons: dict[bytes, str]) -> list[int]:
    return sorted(int.from_bytes(item, "big") for item in reasons)


def _days(*offsets: float, **facts: bool) -> list[Dated]:
    return [_dated(number, BASE + timedelta(days=offset), **facts) for number, offset in enumerate(offsets)]


CASES: dict[str, tuple[list[Dated], pb.Keep, list[int]]] = {
    "the newest stays without any rule": (_days(0, 1, 2), pb.Keep(), [2]),
    "the last three": (_days(0, 1, 2, 3, 4), pb.Keep(last=3), [2, 3, 4]),
    "within counts from the newest, not from now": (_days(0, 1, 2, 3), pb.Keep(within=timedelta(days=2)), [1, 2, 3]),
    "the newest of each day": (_days(0, 0.1, 1, 1.1, 1.2), pb.Keep(daily=5), [1, 4]),
    "days without one do not count": (_days(0, 10, 20, 30), pb.Keep(daily=3), [1, 2, 3]),
    "weeks begin on Monday": (_days(-1, 0, 6, 7), pb.Keep(weekly=9), [0, 2, 3]),  # 1 March 2027 is one
    "months": (_days(-60, -30, -1, 0, 1), pb.Keep(monthly=3), [1, 2, 4]),  # December, January, February, March
    "years": (_days(-800, -400, -300, 0), pb.Keep(yearly=2), [2, 3]),
    "hours": ([_dated(i, BASE + timedelta(minutes=20 * i)) for i in range(7)], pb.Keep(hourly=2), [5, 6]),
    "rules add up": (_days(-40, -1, 0, 1), pb.Keep(last=1, monthly=3), [0, 1, 3]),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_kept(case: str) -> None:
    snapshots, keep, expected = CASES[case]
    assert _numbers(kept(snapshots, keep, UTC)) == expected


def test_days_begin_where_the_pharmacy_is() -> None:
    summer = datetime(2027, 7, 1, 22, 30, tzinfo=UTC)  # 23:30 in London; an hour later it is 2 July there
    snapshots = [_dated(0, summer), _dated(1, summer + timedelta(hours=1))]
    assert _numbers(kept(snapshots, pb.Keep(daily=5), UTC)) == [1]
    assert _numbers(kept(snapshots, pb.Keep(daily=5), LONDON)) == [0, 1]


def test_the_hour_that_autumn_repeats_is_two() -> None:
    first = datetime(2027, 10, 31, 0, 30, tzinfo=UTC)  # 01:30 in London, and an hour later 01:30 again
    snapshots = [_dated(0, first), _dated(1, first + timedelta(hours=1))]
    assert _numbers(kept(snapshots, pb.Keep(hourly=5), LONDON)) == [0, 1]


def test_one_that_lacks_something_takes_no_whole_ones_place() -> None:
    snapshots = [*_days(0, 1, 1.1, 2), _dated(9, BASE + timedelta(days=2.2), complete=False)]
    reasons = kept(snapshots, pb.Keep(daily=9), UTC)
    assert _numbers(reasons) == [0, 2, 3, 9]
    assert reasons[(9).to_bytes(16, "big")] == "newest"
    assert reasons[(3).to_bytes(16, "big")] == "newest whole"


def test_incomplete_ones_do_not_push_out_whole_ones() -> None:
    snapshots = _days(*range(10)) + [
        _dated(100 + day, BASE + timedelta(days=day), complete=False) for day in range(10, 20)
    ]
    for keep in (pb.Keep(last=5), pb.Keep(daily=5)):
        assert [number for number in _numbers(kept(snapshots, keep, UTC)) if number < 100] == [5, 6, 7, 8, 9]


def test_those_whose_time_is_that_of_the_one_before_stay() -> None:
    """A clock was once wrong: until it has caught up, their times say nothing."""
    wrong = BASE + timedelta(days=4000)
    snapshots = _days(*range(30)) + [_dated(30 + i, wrong) for i in range(20)]
    reasons = kept(snapshots, pb.Keep(daily=5), UTC)
    assert {number for number in _numbers(reasons) if number >= 30} == set(range(30, 50))


@pytest.mark.parametrize("keep", [pb.Keep(within=10 * DAY), pb.Keep(daily=5), pb.Keep(last=5), pb.Keep()])
@pytest.mark.parametrize("ahead", [1, 20])
def test_what_lies_in_the_future_takes_nobodys_place(keep: pb.Keep, ahead: int) -> None:
    """The storage's clock was once wrong by years, or a stolen device says what it likes."""
    good = _days(*range(30))
    wrong = [_dated(30 + i, BASE + (4000 + i) * DAY) for i in range(ahead)]
    now = BASE + 29 * DAY
    assert _numbers(kept(good + wrong, keep, UTC, now)) == [
        *_numbers(kept(good, keep, UTC, now)), *(30 + i for i in range(ahead)),
    ]  # fmt: skip


@given(st.integers(-100, 40), st.sampled_from(["within", "daily", "weekly", "last"]))
def test_a_clock_that_is_behind_only_lets_less_go(now: int, rule: str) -> None:
    snapshots = _days(*range(0, 60, 2))
    keep = pb.Keep(**{rule: 10 * DAY if rule == "within" else 4})  # type: ignore[arg-type]
    assert set(kept(snapshots, keep, UTC)) <= set(kept(snapshots, keep, UTC, BASE + now * DAY))


FITS: dict[str, list[tuple[str, str, str | None]]] = {
    "pmr": [("pmr", "till-1", None), ("pmr", "office", "Before update 7")],
    "doc*": [("documents", "office", None)],
    "till-?/pmr": [("pmr", "till-1", None)],
    "office/*": [("pmr", "office", "Before update 7"), ("documents", "office", None)],
    "*:before update*": [("pmr", "office", "Before update 7")],
    "office/pmr:*7": [("pmr", "office", "Before update 7")],
    "*:x": [],
}


@pytest.mark.parametrize("pattern", FITS)
def test_which_snapshots_a_rule_is_for(pattern: str) -> None:
    all_of_them = [("pmr", "till-1", None), ("pmr", "office", "Before update 7"), ("documents", "office", None)]
    assert [facts for facts in all_of_them if Class(pattern).fits(*facts)] == FITS[pattern]


@pytest.mark.parametrize("pattern", ["", "/pmr", "office/", "pmr:", ":x", "a/:x"])
def test_what_is_no_pattern_of_a_rule(pattern: str) -> None:
    with pytest.raises(pb.InvalidInput, match="says of no snapshots"):
        Class(pattern)


def test_each_rule_judges_its_own() -> None:
    """Those with a label take no place of the others, and what no rule is for is kept."""
    labels: list[int | None] = [0, 1, 0, None, 1, 0, 0]
    snapshots = [replace(item, rule=rule) for item, rule in zip(_days(*range(7)), labels, strict=True)]
    reasons = retention.kept(snapshots, [pb.Keep(last=2), pb.Keep(yearly=1)], UTC, to_ns(BASE + 9 * DAY))
    assert _numbers(reasons) == [3, 4, 5, 6]
    assert _numbers(retention.kept(snapshots, [pb.Keep(), pb.Keep()], UTC, to_ns(BASE + 9 * DAY))) == [3, 6]


def test_what_stays_whatever_the_rules_say() -> None:
    snapshots = [
        *_days(0, 1),
        _dated(2, BASE + timedelta(days=2), verified=True),
        _dated(3, BASE + timedelta(days=3), held=True),
        _dated(4, BASE + timedelta(days=4)),
        _dated(5, BASE + timedelta(days=5), complete=False),
    ]
    reasons = kept(snapshots, pb.Keep(), UTC)
    assert [reasons.get(item.id) for item in snapshots] == [
        None, None, "last verified", "held", "newest whole", "newest",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "rule", [{"daily": -1}, {"within": timedelta(days=-1)}, {"within": 3}, {"weekly": 1.5}, {"last": True}]
)
def test_what_is_no_rule(rule: dict[str, Any]) -> None:
    with pytest.raises(pb.InvalidInput, match=r"is not how much can be kept\. Give a"):
        pb.Keep(**rule)


@pytest.mark.parametrize("name", ["Atlantis", "", "../etc/passwd", "a\0b"])
def test_what_is_no_time_zone(name: str) -> None:
    with pytest.raises(pb.InvalidInput, match="There is no time zone"):
        zone(name)


counts = st.integers(0, 4)
keeps = st.builds(
    pb.Keep,
    last=counts,
    within=st.integers(0, 50).map(lambda days: timedelta(days=days)),
    hourly=counts,
    daily=counts,
    weekly=counts,
    monthly=counts,
    yearly=counts,
)
histories = st.lists(
    st.tuples(st.integers(0, 24 * 800), st.booleans(), st.booleans(), st.booleans()), max_size=30
).map(
    lambda rows: [
        _dated(number, BASE + timedelta(hours=hours), complete=complete, verified=verified, held=held)
        for number, (hours, complete, verified, held) in enumerate(rows)
    ]
)


@given(histories, keeps)
def test_what_was_kept_once_is_kept_again(history: list[Dated], keep: pb.Keep) -> None:
    reasons = kept(history, keep, LONDON)
    left = [item for item in history if item.id in reasons]
    assert set(kept(left, keep, LONDON)) == set(reasons)


@given(histories, keeps)
def test_four_always_stay(history: list[Dated], keep: pb.Keep) -> None:
    reasons = kept(history, keep, LONDON)
    ordered = sorted(history, key=lambda item: (item.time, item.sequence))
    for wanted in (
        ordered[-1:],
        [item for item in ordered if item.complete][-1:],
        [item for item in ordered if item.verified][-1:],
        [item for item in ordered if item.held],
    ):
        assert {item.id for item in wanted} <= set(reasons)


@given(histories, keeps, st.sampled_from(["last", "hourly", "daily", "weekly", "monthly", "yearly"]))
def test_a_larger_number_keeps_no_less(history: list[Dated], keep: pb.Keep, name: str) -> None:
    facts = {field: getattr(keep, field) for field in keep.__slots__}
    more = pb.Keep(**{**facts, name: facts[name] + 1})
    assert set(kept(history, keep, LONDON)) <= set(kept(history, more, LONDON))


# ------------------------------------------------------------ what came late

HOUR = timedelta(hours=1)
genuine = st.lists(
    st.tuples(st.integers(2, 60), st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=12
)  # hours since the one before, whether it is whole, verified, held
planted = st.lists(
    st.tuples(st.integers(0, 24 * 40), st.integers(0, 40), st.booleans(), st.booleans()), max_size=12
)  # its time in hours, its sequence, whether it is whole, verified


def _came(item: Dated, moment: datetime) -> Dated:
    return replace(item, came=to_ns(moment))


def _line(rows: list[tuple[int, bool, bool, bool]]) -> list[Dated]:
    """Each came when it was made."""
    hours, line = 0, list[Dated]()
    for number, (later, complete, verified, held) in enumerate(rows):
        hours += later
        moment = BASE + hours * HOUR
        line.append(_came(_dated(number, moment, complete=complete, verified=verified, held=held), moment))
    return line


@given(genuine, keeps)
def test_what_came_in_time_is_judged_by_its_time(rows: list[tuple[int, bool, bool, bool]], keep: pb.Keep) -> None:
    line = _line(rows)
    assert kept(line, keep, LONDON) == kept([replace(item, came=None) for item in line], keep, LONDON)


@given(genuine, planted, keeps, st.integers(2, 100))
def test_what_is_signed_later_takes_no_place_in_the_past(
    rows: list[tuple[int, bool, bool, bool]], others: list[tuple[Any, ...]], keep: pb.Keep, later: int
) -> None:
    """Whatever time and number it claims, before the newest's: it came when that had been there for hours."""
    line = _line(rows)
    end = (line[-1].time - to_ns(BASE)) // to_ns(datetime(1970, 1, 1, 1, tzinfo=UTC))
    came = BASE + (end + later) * HOUR
    items = list(line)
    for number, (hours, sequence, complete, verified) in enumerate(others, 100):
        moment = BASE + min(hours, end) * HOUR - timedelta(seconds=1)
        item = _dated(number, moment, complete=complete, verified=verified)
        items.append(_came(replace(item, sequence=sequence), came))
    assert kept(line, keep, LONDON).items() <= kept(items, keep, LONDON).items()


@pytest.mark.parametrize("ahead", [2, 12, 48])
def test_what_had_its_time_to_come_when_it_came_takes_nobodys_place(ahead: int) -> None:
    """Also when that time has passed: else sixty that are signed at once took a place a day."""
    line = [_came(item, BASE + number * HOUR) for number, item in enumerate(_days(*(n / 24 for n in range(5))))]
    flood = [_came(_dated(100 + n, BASE + (4 + ahead + n) * HOUR), BASE + 4 * HOUR) for n in range(20)]
    for now in (BASE + 5 * HOUR, BASE + 90 * DAY):
        reasons = kept([*line, *flood], pb.Keep(hourly=5), UTC, now)
        assert {item.id for item in line} <= reasons.keys()
        assert {reasons[item.id] for item in flood[:-1]} == {"undated"}


def test_what_came_with_a_disk_that_was_away_is_judged_by_the_same_rules() -> None:
    """A week's at a time; there are no more of them than there may be of the others."""
    at_home = [_came(_dated(n, BASE + n * DAY), BASE + n * DAY) for n in range(50)]
    away = [_came(_dated(100 + n, BASE + n * DAY + 5 * HOUR), BASE + (n // 7 * 7 + 8) * DAY) for n in range(50)]
    reasons = kept([*at_home, *away], pb.Keep(daily=7), UTC)
    assert {item.id for item in (*at_home[-7:-1], away[-1])} <= reasons.keys() and len(reasons) <= 15


def test_what_was_copied_in_any_order_within_an_hour_is_one_history() -> None:
    """Such as a folder's files, whose times a copy of it does not keep."""
    days = _days(*range(30))
    order = (BASE + 40 * DAY + (number * 7 % 30) * timedelta(minutes=2) for number in range(30))
    copied = [_came(item, moment) for item, moment in zip(days, order, strict=True)]
    assert kept(copied, pb.Keep(daily=5), UTC) == kept(days, pb.Keep(daily=5), UTC)


@given(genuine, planted, keeps, st.booleans())
def test_what_a_copy_brings_is_judged_by_the_order_in_which_it_came(
    rows: list[tuple[int, bool, bool, bool]], others: list[tuple[Any, ...]], keep: pb.Keep, ahead: bool
) -> None:
    """All in one hour; a copy brings first what came first. What the device has brought itself is judged apart, and
    what is dated far `ahead` makes nothing late that comes after it."""
    copied = to_ns(BASE + 50 * DAY)
    line = [replace(item, came=copied + number, way="copy") for number, item in enumerate(_line(rows), 1)]
    end = (line[-1].time - to_ns(BASE)) // to_ns(datetime(1970, 1, 1, 1, tzinfo=UTC))
    items = [*line, replace(_dated(99, BASE + 400 * DAY), came=copied, way="copy")] if ahead else list(line)
    for number, (hours, sequence, complete, verified) in enumerate(others, 100):
        moment = BASE + min(hours, end) * HOUR - timedelta(seconds=1)
        item = replace(_dated(number, moment, complete=complete, verified=verified), sequence=sequence)
        items.append(replace(item, came=copied + number, way="copy" if number % 3 else "device"))
    now = BASE + 60 * DAY
    assert kept(line, keep, LONDON, now).keys() <= kept(items, keep, LONDON, now).keys()
