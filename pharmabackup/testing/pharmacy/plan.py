"""What happens on a trading day, in which order: decided by the seed and the day's number alone."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from .profiles import Profile
from .state import date_of

OPENS = 8 * 3600 + 1800
LASTS = 10 * 3600
CLAIM_LAGS = (1, 2, 4)
"""Trading days after which a claim is submitted, accepted and paid."""
CLAIM_BATCH = 10
PURGE_BATCHES = 4


class Step(NamedTuple):
    """One transaction of the day."""

    number: int
    at: str
    kind: str
    arg: int
    audits: int


@dataclass(frozen=True)
class Plan:
    """A day's steps, and which of its prescriptions (numbered from 0) have what."""

    steps: list[Step]
    items: list[int]
    """Items of each prescription."""
    controlled: frozenset[int]
    scanned: frozenset[int]
    signed: frozenset[int]
    owing: frozenset[int]
    visits: frozenset[int]
    """Prescriptions at whose dispensing the patient's record is changed."""


def plan(profile: Profile, seed: int, day: int) -> Plan:
    """The plan of this trading day."""
    rates = profile.rates
    rng = random.Random(f"{seed}/plan/{day}")
    count = rates.prescriptions
    items = [1] * count
    for _ in range(rates.items - count):
        items[rng.randrange(count)] += 1

    def some(number: int) -> frozenset[int]:
        return frozenset(rng.sample(range(count), min(count, number)))

    timed: list[tuple[float, str, int]] = []
    for number, at in enumerate(sorted(rng.uniform(0.02, 0.78) for _ in range(count))):
        dispensed = at + rng.uniform(0.01, 0.1)
        claimed = dispensed + rng.uniform(0.01, 0.08)
        timed += [(at, "receive", number), (dispensed, "dispense", number), (claimed, "claim", number)]

    def spread(kind: str, number: int) -> None:
        timed.extend((rng.uniform(0.02, 0.97), kind, i) for i in range(number))

    spread("newcomer", rates.new_patients)
    spread("delivery", rates.deliveries)
    spread("adjust", rates.adjustments)
    spread("service", rates.services)
    spread("settle", rates.owings)
    spread("private", rates.pom_entries)
    for lag in range(len(CLAIM_LAGS)):
        batches = -(-count // CLAIM_BATCH)
        timed.extend((0.05 + 0.02 * lag + i / 10_000, "progress", lag << 16 | i) for i in range(batches))
    timed.extend((0.99 + i / 10_000, "purge", i) for i in range(PURGE_BATCHES))
    timed.extend(((i + 0.5) / rates.fridge_readings * 0.98, "fridge", i) for i in range(rates.fridge_readings))
    timed.extend(((i + 0.7) / rates.log_chunks * 0.98, "log", i) for i in range(rates.log_chunks))
    timed.extend((i / rates.rp_entries * 0.98, "pharmacist", i) for i in range(rates.rp_entries))
    if day % 13 == 5:
        timed.append((0.3, "procedure", rng.randrange(profile.sops)))
    if day % 6 == 0:
        timed.append((0.985, "release", day // 6))
    timed.sort()
    timed = [(0.0, "open", 0), *timed, (1.0, "close", 0)]
    today = date_of(day).isoformat()
    last = len(timed)
    steps = []
    for number, (at, kind, arg) in enumerate(timed):
        clock = str(timedelta(seconds=OPENS + int(at * LASTS))).zfill(8)
        audits = rates.audits * (number + 1) // last - rates.audits * number // last
        steps.append(Step(number, f"{today}T{clock}", kind, arg, audits))
    return Plan(
        steps,
        items,
        some(rates.cd_supplies),
        some(rates.scans),
        some(rates.signatures),
        some(rates.owings),
        some(rates.patient_updates),
    )
