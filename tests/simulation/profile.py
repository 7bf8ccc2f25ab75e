"""How much of the simulation is run: minutes with every change, an hour at night."""

from __future__ import annotations

import os
from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, settings

NIGHTLY_S = 3600


@dataclass(frozen=True, slots=True)
class Profile:
    """`examples` of the machine with so many `steps` each, and `seeds` of each test of the scheduler."""

    examples: int
    steps: int
    seeds: int


CI = Profile(examples=80, steps=30, seeds=12)
NIGHTLY = Profile(examples=1_000_000, steps=60, seeds=2000)
is_nightly = os.environ.get("PHARMABACKUP_PROFILE") == "nightly"
profile = NIGHTLY if is_nightly else CI


def machine_settings() -> settings:
    """In CI the same examples each time: nothing there depends on luck, or on a database of earlier failures."""
    return settings(
        max_examples=profile.examples,
        stateful_step_count=profile.steps,
        derandomize=not is_nightly,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        print_blob=True,
    )
