"""How much of the simulation is run: minutes with every change, an hour at night."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from time import monotonic
from unittest import mock

from hypothesis import HealthCheck, Phase, settings
from hypothesis.internal.conjecture import providers
from hypothesis.internal.conjecture.engine import ConjectureRunner

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
    least: Mapping[str, int] = field(default_factory=dict)  # what has to be reached, and how often

    def machines(self) -> Iterator[int]:
        """The seeds of machines, as long as there is time."""
        seed, end = FIRST_SEED, monotonic() + self.seconds
        yield seed
        while monotonic() < end:
            seed += 1
            yield seed


# About half of what the first machine comes to, so that it fails when a rule or a fault comes to nothing.
LEAST = {
    "quiet": 60,
    "forget and let go": 50,
    "change one's mind": 80,
    "together": 60,
    "crash": 40,
    "crash beside others": 40,
    "fault": 40,
    "mend": 50,
    "damage": 60,
    "here: snapshots let go": 120,
    "here: packs deleted": 150,
    "here: packs that survived": 1,
    "replica: snapshots let go": 20,
    "replica: packs deleted": 30,
    "copies that brought something": 30,
    "repairs with a step": 50,
    "reseals with a step": 4,
    "keys replaced": 10,
    "holds": 80,
    "releases": 80,
    "recalls": 80,
    "snapshots restored": 400,
    **{f"simulated: {fault}": 1 for fault in ("after", "again", "torn", "lost", "twice", "late")},
    "simulated: before": 5,
    "simulated: full": 5,
    "replica: before": 1,
    "replica: full": 1,
    **{f"{verb}: crashes": 5 for verb in ("backup", "prune", "prune replica", "copy", "repair")},
}
CI = Profile(examples=60, steps=30, seeds=24, least=LEAST)
SHORT = Profile(examples=6, steps=20, seeds=1)  # to see that two processes do the same
NIGHTLY = Profile(examples=50, steps=60, seeds=200, seconds=2400)  # all else of `make nightly` takes 20 minutes
profile = {"nightly": NIGHTLY, "short": SHORT}.get(os.environ.get("PHARMABACKUP_PROFILE", ""), CI)


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


@contextmanager
def plain_draws() -> Iterator[None]:
    """A seed is one machine, and each example is drawn anew. Hypothesis has no settings for the two:

    - it draws constants out of each local module that is loaded, whichever these are;
    - after each example come five in which parts of it are repeated, which here only do the same again and again.

    A version that does not do it, or does it elsewhere, is left alone.
    """
    with ExitStack() as patches:
        if all(hasattr(providers, name) for name in ("_get_local_constants", "Constants", "CONSTANTS_CACHE")):
            nothing = providers.Constants()
            patches.enter_context(mock.patch.object(providers, "_get_local_constants", lambda: nothing))
            patches.enter_context(mock.patch.object(providers, "CONSTANTS_CACHE", {}))
        if hasattr(ConjectureRunner, "generate_mutations_from"):
            patches.enter_context(mock.patch.object(ConjectureRunner, "generate_mutations_from", lambda *_: None))
        yield
