"""How much of the simulation is run: minutes with every change, an hour at night."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic

from hypothesis import HealthCheck, Phase, settings

# Every run tells the seed of the first machine; a failure tells its own.
FIRST_SEED = int(os.environ.get("PHARMABACKUP_SEED", "0"))


@dataclass(frozen=True, slots=True)
class Profile:
    """`examples` of a machine, with so many `steps` each; `seeds` of each test of the scheduler.

    Machines follow one another for so many `seconds`. Without, there is one, so that each run is the same.
    """

    examples: int
    steps: int
    seeds: int
    seconds: int = 0

    def machines(self) -> Iterator[int]:
        """The seeds of machines, as long as there is time."""
        seed, end = FIRST_SEED, monotonic() + self.seconds
        yield seed
        while monotonic() < end:
            seed += 1
            yield seed


CI = Profile(examples=60, steps=30, seeds=24)
NIGHTLY = Profile(examples=50, steps=60, seeds=200, seconds=3300)  # the scheduler takes the rest
profile = NIGHTLY if os.environ.get("PHARMABACKUP_PROFILE") == "nightly" else CI


def machine_settings() -> settings:
    """Nothing depends on the time that it takes, on luck, or on what failed before: the seed decides."""
    return settings(
        max_examples=profile.examples,
        stateful_step_count=profile.steps,
        derandomize=False,  # the seed is given
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
    )
