"""What the project set out to reach, and whether it does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

OURS = "pharmabackup"
MB = 1_000_000

Medians = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]
"""Scenario, tool, quantity: median, min, max."""


@dataclass(frozen=True)
class Goal:
    """One line of the table. A speed is `factor` times the better peer's; a size `factor` of the better peer's.

    Of what is `freed`, more is better.
    """

    key: str
    text: str
    goal: str
    quantity: Literal["seconds", "bytes", "freed", "share"]
    factor: float

    def verdict(self, medians: Medians) -> tuple[float, bool] | None:
        """Ratio against the better peer and whether the goal is met; None when one side is missing."""
        found = medians.get(self.key, {})
        peers = [tool[self.quantity]["median"] for name, tool in found.items() if name != OURS]
        if OURS not in found or not peers:
            return None
        own = found[OURS][self.quantity]["median"]
        if self.quantity == "seconds":
            ratio = min(peers) / own
            return ratio, ratio >= self.factor
        if self.quantity in ("freed", "share"):
            ratio = own / max(peers)
            return ratio, ratio >= self.factor
        ratio = own / min(peers)
        return ratio, ratio <= self.factor


GOALS = (
    Goal("first-pharmacy", "first backup, pharmacy", "at least 2.5 times as fast", "seconds", 2.5),
    Goal("first-tree", "first backup, small files, warm cache", "at least 2.2 times as fast", "seconds", 2.2),
    Goal("first-tree-cold", "first backup, small files, cold cache", "at least 2.8 times as fast", "seconds", 2.8),
    Goal("nothing-changed", "next backup, nothing changed, small files", "at least 5 times as fast", "seconds", 5),
    Goal("day", "one trading day later, whole site", "at least 3.5 times as fast", "seconds", 3.5),
    Goal("added", "bytes added by one trading day", "at most a twelfth", "bytes", 1 / 12),
    Goal("size-first", "repository after the first backup", "no larger", "bytes", 1),
    Goal("size-after", "repository after all trading days", "at most a fifth", "bytes", 1 / 5),
    Goal("restore-pharmacy", "restore, pharmacy after all days", "at least 2 times as fast", "seconds", 2),
    Goal("restore-tree", "restore, small files", "at least 2.5 times as fast", "seconds", 2.5),
    Goal("check", "check of all data, pharmacy after all days", "at least as fast", "seconds", 1),
    Goal("add-key", "one more passphrase", "at least as fast", "seconds", 1),
    Goal("prune", "forget and prune, two years of daily backups", "at least 2 times as fast", "seconds", 2),
    Goal("prune-freed", "bytes freed by that", "as much or more", "freed", 1),
    Goal("prune-share", "their share of the repository", "as much or more", "share", 1),
    Goal("prune-left", "repository after that", "no larger", "bytes", 1),
    Goal("check-years", "check of structure, two years of daily backups", "at least as fast", "seconds", 1),
    Goal("resume", "backup again after a kill at half, pharmacy", "at least as fast", "seconds", 1),
    Goal("resumed", "bytes uploaded by that", "no more", "bytes", 1),
)


@dataclass(frozen=True)
class Limit:
    """A goal of our own, without a peer: a figure that one of the separate measurements gives."""

    measurement: str
    figure: str
    text: str
    limit: float
    unit: str

    def __str__(self) -> str:
        return f"at most {self.limit:g} {self.unit}"


LIMITS = (
    Limit("memory", "peak_mb_files_1gb", "peak memory, 1 GB of files", 150, "MB"),
    Limit("memory", "peak_mb_files_20gb", "peak memory, 20 GB of files", 150, "MB"),
    Limit("memory", "peak_mb_million_chunks", "peak memory, a million chunks", 150, "MB"),
    Limit("memory", "peak_mb_many_snapshots", "peak memory, a million chunks and 1,000 snapshots", 200, "MB"),
    Limit("beside", "beside", "time of a writer beside a collection, against alone", 1.25, "times"),
    Limit("beside", "beside_nice", "the same, the collection at low priority", 1.25, "times"),
    Limit(
        "aged",
        "site_30",
        "restore after 30 days of churn, against one of the same site from a new repository",
        1.5,
        "times",
    ),
    Limit("aged", "site_90", "the same, after 90 days", 1.5, "times"),
    Limit("aged", "site_365", "the same, after 365 days", 1.5, "times"),
    Limit("aged", "database_365", "the same, its database alone", 1.5, "times"),
    Limit("index", "bytes_per_chunk", "index, memory a chunk, 10 million chunks", 8, "bytes"),
    Limit("index", "lookup_us", "index, a lookup, 10 million chunks", 3, "µs"),
    Limit("startup", "import_ms", "`import pharmabackup`", 150, "ms"),
    Limit("startup", "snapshots_ms", "`pharmabackup snapshots`, small repository", 500, "ms"),
)
PEAK_MB = 150
