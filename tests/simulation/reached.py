"""What the simulation has come to: counted, so that a run that reaches nothing fails instead of passing.

A step that had nothing to do, or a fault that hit nothing, does not count.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

from pharmabackup.format.transaction import Condemn, Execute
from pharmabackup.format.wire import Kind
from pharmabackup.repository import Repository

steps: Counter[str] = Counter()  # what was done in all worlds of this process
reached: Counter[str] = Counter()  # what came of it
calls = hashlib.sha256()  # of all calls in turns: the same seed gives the same


def count_collections(repo: Repository, where: str) -> None:
    """What the collections of a repository have let go, and what survived them."""
    unlocked = repo._unlocked
    names = {info.name for info in unlocked.storage.list("collections")}
    for name in sorted(names):
        if not name.endswith("/execute"):
            continue
        condemned_name = f"{name.removesuffix('/execute')}/condemn"
        condemned = unlocked.get(Kind.CONDEMN, condemned_name, Condemn).record
        executed = unlocked.get(Kind.EXECUTE, name, Execute).record
        reached[f"{where}: collections"] += 1
        reached[f"{where}: snapshots let go"] += len(condemned.snapshots) // 16
        reached[f"{where}: packs deleted"] += len(executed.packs) // 32
        reached[f"{where}: packs that survived"] += (len(condemned.packs) - len(executed.packs)) // 32


def missing(minima: Mapping[str, int], before: Counter[str]) -> dict[str, str]:
    """What was not reached often enough since then."""
    since = steps + reached - before
    return {name: f"{since[name]} of {least}" for name, least in minima.items() if since[name] < least}
