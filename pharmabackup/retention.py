"""What is kept: which snapshots a rule is for, and what it keeps, by the moments that the first storage's clock gave.

Each device is judged by itself, so that one whose clock is wrong, or which was stolen, pushes out nobody else's
snapshots. A snapshot in which something is missing never takes the place of a whole one of the same period.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from itertools import pairwise

from pharmabackup.clock import from_ns, spelled
from pharmabackup.errors import InvalidInput
from pharmabackup.lines import END, next_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """How much is kept. The newest, the newest whole, the last verified and held snapshots are always kept.

    `last`: so many of the newest. `within`: all that are no older than that, seen from the newest, so that nothing
    goes only because backups have stopped. The others: the newest of each of the last so many hours, days ... in
    which there is one. Days begin at midnight, weeks on Monday, in the time zone that is given with the rules.
    """

    last: int = 0
    within: timedelta = timedelta(0)
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.within, timedelta) or self.within < timedelta(0):
            raise _no_rule("within", self.within, "a duration")
        for name in ("last", *(name for name, _ in PERIODS)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise _no_rule(name, value, "a whole number")

    def __str__(self) -> str:
        counts = [f"{count} {name}" for name, count in self.to_dict().items() if name != "within"]
        parts = [f"within {spelled(self.within)}"] if self.within else []
        return ", ".join([*parts, *counts]) or "only what is always kept"

    def to_dict(self) -> dict[str, float]:
        """What is not nothing; `within` in seconds."""
        counts = {name: getattr(self, name) for name in ("last", *(name for name, _ in PERIODS))}
        return {name: value for name, value in {"within": self.within.total_seconds(), **counts}.items() if value}


def _no_rule(name: str, value: object, wanted: str) -> InvalidInput:
    return InvalidInput(f"{name}={value!r} is not how much can be kept.", remedy=f"Give {wanted}, 0 or more.")


MICROSECOND = timedelta(microseconds=1)
AHEAD_NS = 24 * 3600 * 10**9  # a time that lies further in the future comes of a clock that was wrong
PERIODS: tuple[tuple[str, Callable[[datetime], Hashable]], ...] = (
    ("hourly", lambda moment: (moment.date(), moment.hour, moment.utcoffset())),
    ("daily", lambda moment: moment.date()),
    ("weekly", lambda moment: moment.isocalendar()[:2]),
    ("monthly", lambda moment: (moment.year, moment.month)),
    ("yearly", lambda moment: moment.year),
)


@dataclass(frozen=True, slots=True)
class Dated:
    """A snapshot as far as rules care. `time`: nanoseconds since 1970, by the first storage's clock.

    `rule`: the number of the rule that is for it; None: all such are kept. `damaged`: it is known that it cannot be
    restored whole any more: it never takes the place of one of which that is not known.
    """

    id: bytes
    time: int
    sequence: int
    complete: bool
    verified: bool
    held: bool
    rule: int | None = 0
    damaged: bool = False


class Class:
    """The snapshots that one rule is for: `[device/]dataset[:label]`, each part a name or a pattern.

    A label is the reason that was given with the backup, in capital letters or not; without one in the rule, every
    snapshot's will do. Neither a dataset's name nor what people call their devices has a colon or a slash.
    """

    def __init__(self, pattern: str) -> None:
        """InvalidInput."""
        names, colon, label = pattern.partition(":")
        device, slash, dataset = names.rpartition("/")
        if not dataset or (slash and not device) or (colon and not label):
            raise InvalidInput(
                f"{pattern!r} says of no snapshots that they are to be kept.",
                remedy='Name a dataset ("doc*"), one of a device ("till-1/pmr"), or a label ("*:before update*").',
            )
        self._dataset, self._device = _compiled(dataset), _compiled(device or "*")
        self._label = _compiled(label, re.IGNORECASE) if colon else None

    def fits(self, dataset: str, device: str, label: str | None) -> bool:
        return (
            self._dataset.match(dataset) is not None
            and self._device.match(device) is not None
            and (self._label is None or self._label.match(label or "") is not None)
        )


def _compiled(pattern: str, flags: int = 0) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern), flags)


def zone(name: str) -> tzinfo:
    """The time zone of that IANA name. InvalidInput."""
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # takes milliseconds, and most callers need no rules

    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidInput(f"There is no time zone {name!r}.", remedy='Give one like "Europe/London".') from None


@dataclass(frozen=True, slots=True)
class _Lines:
    """Snapshots, newest first, and of each those of them that follow it next, or END.

    A history has one line, unless it has branches: whoever stole a device could sign some beside what was there, with
    any time in the past. So each line is judged by itself, and what one of them keeps is kept.
    """

    items: tuple[Dated, ...]
    next: Mapping[bytes, tuple[bytes, ...]]

    def only(self, wanted: Callable[[Dated], bool]) -> _Lines:
        left = tuple(item for item in self.items if wanted(item))
        if len(left) == len(self.items):
            return self
        return _Lines(left, next_of((item.id for item in self.items), self.next, {item.id for item in left}))

    def ends(self) -> list[Dated]:
        """The last of each line."""
        return [item for item in self.items if END in self.next[item.id]]

    def count(self, limit: int, step: Callable[[Dated, Dated], int] = lambda *_: 1) -> dict[bytes, int]:
        """How many come after each on the line with the fewest, as far as there are fewer than `limit`.

        `step`: what the next one after another counts.
        """
        there = {item.id: item for item in self.items}
        found: dict[bytes, int] = {}
        for item in self.items:
            counts = [
                0 if each == END else found[each] + step(item, there[each])
                for each in self.next[item.id]
                if each == END or each in found
            ]
            if counts and min(counts) < limit:
                found[item.id] = min(counts)
        return found


def kept(
    snapshots: Iterable[Dated],
    keeps: Sequence[Keep],
    where: tzinfo,
    now: int,
    following: Mapping[bytes, tuple[bytes, ...]] | None = None,
) -> dict[bytes, str]:
    """Why each snapshot that stays does: of one dataset and one device. What is not in it may go.

    "held" is the reason of those that nothing else would keep. `now` is any clock's: what lies beyond it is kept and
    takes nobody's place, so that a clock that is behind only lets less go. `following`: of each those that follow it
    next, by what was signed, and are newer by time and sequence, or END; without it, they follow each other by these.
    """
    newest = _newest_first(snapshots)
    lines = _Lines(tuple(newest), by_time(newest) if following is None else following)
    dated = lines.only(lambda item: item.time <= now + AHEAD_NS)
    reasons: dict[bytes, str] = {}
    for part in (lines,) if dated is lines else (lines, dated):
        for some, reason in (
            (part, "newest"),
            *((whole, "newest whole") for whole in _whole(part)),
            (part.only(lambda item: item.verified), "last verified"),
            (part.only(lambda item: item.verified and not item.damaged), "last verified"),
        ):
            for item in some.ends():
                reasons.setdefault(item.id, reason)
    for later, item in pairwise(newest):
        if later.time == item.time:  # a clock went back, and they were given the time of the one before
            reasons.setdefault(later.id, "undated")
            reasons.setdefault(item.id, "undated")
    for item in newest[: len(newest) - len(dated.items)]:
        reasons.setdefault(item.id, "undated")

    def under(number: int) -> _Lines:
        return dated.only(lambda item: item.rule == number)

    for number, keep in enumerate(keeps):
        for item, reason in _kept_by(under(number), keep, where):
            reasons.setdefault(item.id, reason)
    for item in newest:
        if item.rule is None:
            reasons.setdefault(item.id, "no rule")
        if item.held:
            reasons.setdefault(item.id, "held")
    return reasons


def by_time(snapshots: Iterable[Dated]) -> dict[bytes, tuple[bytes, ...]]:
    """One line of them all."""
    newest = _newest_first(snapshots)
    return {item.id: (later,) for later, item in zip((END, *(item.id for item in newest)), newest, strict=False)}


def _newest_first(snapshots: Iterable[Dated]) -> list[Dated]:
    return sorted(snapshots, key=lambda item: (item.time, item.sequence, item.id), reverse=True)


def _kept_by(lines: _Lines, keep: Keep, where: tzinfo) -> Iterator[tuple[Dated, str]]:
    """What one rule keeps of those that it is for."""
    wholes = _whole(lines)
    if keep.last:
        for some in (lines, *wholes):
            later = some.count(keep.last)
            for item in some.items:
                if item.id in later:
                    yield item, "last"
    if keep.within:
        within, ends = keep.within // MICROSECOND * 1000, dict[bytes, int]()
        for item in lines.items:
            ends[item.id] = min(item.time if each == END else ends[each] for each in lines.next[item.id])
            if item.time >= ends[item.id] - within:
                yield item, "within"
    for name, period in PERIODS:
        if count := getattr(keep, name):
            periods = _Periods(period, where)
            for whole in wholes:
                for item in _newest_of_each(lines, whole, periods, count):
                    yield item, name


class _Periods:
    """Which period each snapshot lies in: looked up once, and of those alone that are asked for."""

    def __init__(self, period: Callable[[datetime], Hashable], where: tzinfo) -> None:
        self._period, self._where = period, where
        self._known: dict[int, Hashable] = {}

    def differ(self, one: Dated, other: Dated) -> bool:
        return self._of(one.time) != self._of(other.time)

    def _of(self, time: int) -> Hashable:
        if time not in self._known:
            self._known[time] = self._period(from_ns(time).astimezone(self._where))
        return self._known[time]


def _whole(lines: _Lines) -> tuple[_Lines, ...]:
    """Those in which nothing was missing; and of these, if any is known to be damaged, those that are not."""
    whole = lines.only(lambda item: item.complete)
    sound = whole.only(lambda item: not item.damaged)
    return (whole,) if len(sound.items) == len(whole.items) else (whole, sound)


def _newest_of_each(lines: _Lines, whole: _Lines, periods: _Periods, count: int) -> Iterator[Dated]:
    """Of each of the last `count` periods with a whole snapshot the newest of these.

    Beside that, of each of the last `count` periods at all the newest, where there is no whole one before it.
    """
    for some in (whole, lines):
        later = some.count(count, periods.differ)  # periods after that of each
        there = {item.id: item for item in some.items if item.id in later}
        lacking = set(there) if some is whole else _without_whole(there, lines, whole, periods)
        for item in there.values():
            newest = any(
                each == END or (later.get(each, count) + 1 < count and periods.differ(item, there[each]))
                for each in some.next[item.id]
            )
            if newest and item.id in lacking:
                yield item


def _without_whole(there: dict[bytes, Dated], lines: _Lines, whole: _Lines, periods: _Periods) -> set[bytes]:
    """Those of `there` which are not whole, and before which none on some line is, in the same period."""
    wholes = {item.id for item in whole.items}
    before: dict[bytes, list[bytes]] = {item: [] for item in there}
    found = set[bytes]()
    for item in reversed(there.values()):
        for later in lines.next[item.id]:
            if later in there:
                before[later].append(item.id)
        earlier = before[item.id]
        if item.id not in wholes and (
            not earlier or any(each in found or periods.differ(there[each], item) for each in earlier)
        ):
            found.add(item.id)
    return found
