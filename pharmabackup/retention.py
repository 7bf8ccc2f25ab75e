"""What is kept: which snapshots a rule is for, and what it keeps, by the moments that the first storage's clock gave.

Each device is judged by itself, so that one whose clock is wrong, or which was stolen, pushes out nobody else's
snapshots. Nor its own of before: what came late is judged apart. A snapshot in which something is missing never takes
the place of a whole one of the same period.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from itertools import pairwise

from pharmabackup.clock import from_ns, spelled
from pharmabackup.errors import InvalidInput


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


LATE_NS = 3600 * 10**9  # what came so long after one of a later time is not believed to be of its own time
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

    `came`: when it came to where it is judged, by the clock of the storage there, and the `way` in which it did;
    None: that does not matter.
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
    came: int | None = None
    way: str = ""  # nothing: as an object of its own


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


def kept(
    snapshots: Iterable[Dated], keeps: Sequence[Keep], where: tzinfo, now: int, apart: set[bytes] | None = None
) -> dict[bytes, str]:
    """Why each snapshot that stays does: of one dataset and one device. What is not in it may go.

    "held" is the reason of those that nothing else would keep. `now` is any clock's: what lies beyond it is kept and
    takes nobody's place, so that a clock that is behind only lets less go.

    Whoever has a device's key gives a snapshot any time, but does not say when it came to the storage. So what came
    `late` takes no place of what was in time, and the other way round; and a time that was to come then is none.
    """
    newest = sorted(snapshots, key=lambda item: (item.time, item.sequence, item.id), reverse=True)
    apart = late(newest) if apart is None else apart
    lots: dict[tuple[str, bool], list[Dated]] = {}
    for item in newest:
        lots.setdefault((item.way, item.id in apart), []).append(item)
    return {who: why for lot in lots.values() for who, why in _kept(lot, keeps, where, now).items()}


def late(newest: Sequence[Dated]) -> set[bytes]:
    """Those of them, newest first, that came when one of a later time had been there for an hour.

    Of what was brought: that came after one, since it is brought in the order in which it came to where it was.
    """
    found, firsts = set[bytes](), dict[str, int]()
    for item in newest:
        if item.came is None:
            continue
        first = firsts.get(item.way, item.came)
        if item.came > first + (0 if item.way else LATE_NS):
            found.add(item.id)
        if item.time <= item.came + (AHEAD_NS if item.way else LATE_NS):  # what was to come then makes nothing late
            firsts[item.way] = min(first, item.came)
    return found


def _to_come(item: Dated) -> bool:
    """Where it was made: another place's clock may be behind."""
    return item.came is not None and not item.way and item.time > item.came + LATE_NS


def _kept(newest: Sequence[Dated], keeps: Sequence[Keep], where: tzinfo, now: int) -> dict[bytes, str]:
    dated = [item for item in newest if item.time <= now + AHEAD_NS and not _to_come(item)]
    reasons: dict[bytes, str] = {}
    for items in (newest, dated):
        for first, reason in (
            (items, "newest"),
            *((whole, "newest whole") for whole in _whole(items)),
            ([item for item in items if item.verified], "last verified"),
            ([item for item in items if item.verified and not item.damaged], "last verified"),
        ):
            for item in first[:1]:
                reasons.setdefault(item.id, reason)
    for later, item in pairwise(newest):
        if later.time == item.time:  # a clock went back, and they were given the time of the one before
            reasons.setdefault(later.id, "undated")
            reasons.setdefault(item.id, "undated")
    there = {item.id for item in dated}
    for item in newest:
        if item.id not in there:
            reasons.setdefault(item.id, "undated")
    for number, keep in enumerate(keeps):
        for item, reason in _kept_by([item for item in dated if item.rule == number], keep, where):
            reasons.setdefault(item.id, reason)
    for item in newest:
        if item.rule is None:
            reasons.setdefault(item.id, "no rule")
        if item.held:
            reasons.setdefault(item.id, "held")
    return reasons


def _kept_by(newest: Sequence[Dated], keep: Keep, where: tzinfo) -> Iterator[tuple[Dated, str]]:
    """What one rule keeps of those that it is for, the newest first."""
    wholes = _whole(newest)
    for items in (newest, *wholes):
        for item in items[: keep.last]:
            yield item, "last"
    if keep.within and newest:
        since = newest[0].time - keep.within // timedelta(microseconds=1) * 1000
        for item in newest:
            if item.time >= since:
                yield item, "within"
    for name, period in PERIODS:
        if count := getattr(keep, name):
            for whole in wholes:
                for item in _newest_of_each(newest, whole, period, where, count):
                    yield item, name


def _whole(items: Sequence[Dated]) -> tuple[list[Dated], ...]:
    """Those in which nothing was missing; and of these, if any is known to be damaged, those that are not."""
    whole = [item for item in items if item.complete]
    sound = [item for item in whole if not item.damaged]
    return (whole,) if len(sound) == len(whole) else (whole, sound)


def _newest_of_each(
    newest: Sequence[Dated],
    whole: Sequence[Dated],
    period: Callable[[datetime], Hashable],
    where: tzinfo,
    count: int,
) -> Iterator[Dated]:
    """Of each of the last `count` periods with a whole snapshot the newest of these.

    Beside that, of each of the last `count` periods at all the newest, where there is no whole one.
    """
    there = {period(from_ns(item.time).astimezone(where)) for item in whole}
    for snapshots, taken in ((whole, set[Hashable]()), (newest, set[Hashable]())):
        for item in snapshots:
            key = period(from_ns(item.time).astimezone(where))
            if key in taken:
                continue
            if len(taken) == count:
                break
            taken.add(key)
            if snapshots is whole or key not in there:
                yield item
