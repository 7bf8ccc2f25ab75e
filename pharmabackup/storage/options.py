"""The storage_options of an adapter: what it takes, and a clear word about anything else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pharmabackup.clock import to_ns
from pharmabackup.errors import InvalidInput

PERIOD = re.compile(r"(\d{1,6})(s|min|h|d)")
PERIOD_MAX = timedelta(days=3650)  # what is locked for too long cannot be undone
UNITS = {"s": "seconds", "min": "minutes", "h": "hours", "d": "days"}
SWITCH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True, slots=True)
class Given:
    """Checked options. Its `repr` shows no values: some are secrets."""

    text: Mapping[str, str]
    switches: Mapping[str, bool]
    periods: Mapping[str, int]  # ns
    moments: Mapping[str, int]  # ns since 1970 UTC

    def __repr__(self) -> str:
        return f"Given({sorted({*self.text, *self.switches, *self.periods, *self.moments})})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Names of options that are texts, of those that are true or false, and of those that are a period or a moment.

    All can be written as words, since they come from command lines and files, too.
    """

    text: tuple[str, ...] = ()
    switches: tuple[str, ...] = ()
    periods: tuple[str, ...] = ()  # timedelta, or "35d"
    moments: tuple[str, ...] = ()  # aware datetime, or ISO 8601 with its offset

    def checked(self, scheme: str, given: Mapping[str, object]) -> Given:
        """InvalidInput for an option that this adapter has not, or whose value is not of its kind."""
        known = (*self.text, *self.switches, *self.periods, *self.moments)
        if unknown := sorted(set(given) - set(known)):
            raise InvalidInput(
                f"A {scheme} storage has no option {', '.join(unknown)}.",
                remedy=f"It takes {', '.join(sorted(known))}.",
            )
        text: dict[str, str] = {}
        switches: dict[str, bool] = {}
        periods: dict[str, int] = {}
        moments: dict[str, int] = {}
        for name, value in given.items():
            if name in self.text:
                if not isinstance(value, str):
                    raise InvalidInput(f"The storage option {name} is no text.", remedy="Give it as a string.")
                text[name] = value
            elif name in self.periods:
                periods[name] = _period(name, value)
            elif name in self.moments:
                moments[name] = _moment(name, value)
            elif (switch := SWITCH.get(str(value).lower())) is None:
                raise InvalidInput(f"The storage option {name} is a switch.", remedy="Give it as true or false.")
            else:
                switches[name] = switch
        return Given(text, switches, periods, moments)


def _period(name: str, value: object) -> int:
    if isinstance(value, str) and (found := PERIOD.fullmatch(value.strip())):
        value = timedelta(**{UNITS[found[2]]: int(found[1])})
    if not isinstance(value, timedelta) or not timedelta(0) < value <= PERIOD_MAX:
        raise InvalidInput(
            f"The storage option {name} is no period of at most {PERIOD_MAX.days} days.",
            remedy="Write it like 35d, 12h or 90min.",
        )
    return value // timedelta(microseconds=1) * 1000


def _moment(name: str, value: object) -> int:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            value = None
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise InvalidInput(
            f"The storage option {name} is no moment.", remedy="Write it like 2026-11-20T08:00:00+00:00, or with a Z."
        )
    try:
        return to_ns(value.astimezone(UTC))
    except OverflowError:
        raise InvalidInput(f"The storage option {name} is no moment.", remedy="Give one of this century.") from None
