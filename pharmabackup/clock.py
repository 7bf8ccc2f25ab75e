"""Time: the machine's two clocks, and one way to write moments down.

No device's clock decides what is safe or what is kept; it is shown to people and measures durations.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

EPOCH = datetime.fromtimestamp(0, UTC)


def now_ns() -> int:
    """The wall clock, nanoseconds since 1970 UTC."""
    return time.time_ns()


def steady_ns() -> int:
    """A clock that never goes back and that nobody sets; only differences mean anything."""
    return time.monotonic_ns()


def from_ns(moment: int) -> datetime:
    """Nanoseconds since 1970 as an aware UTC datetime; what is below a microsecond is cut off."""
    return EPOCH + timedelta(microseconds=moment // 1000)


def to_ns(moment: datetime) -> int:
    """An aware datetime as nanoseconds since 1970. A naive one is the caller's fault: ValueError."""
    if moment.tzinfo is None:
        raise ValueError("a time without a time zone")
    return (moment - EPOCH) // timedelta(microseconds=1) * 1000


def iso(moment: datetime) -> str:
    """ISO 8601 in UTC with a Z, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def spelled(duration: timedelta) -> str:
    """A duration for a person: 1 day, 30 days; 2 days, 3:00:00."""
    days, rest = divmod(duration, timedelta(days=1))
    return str(duration) if rest or days == 0 else f"{days} day{'s' if days > 1 else ''}"
