"""Restore after days of churn, against the first day's: one pharmacy, a backup after each trading day.

A site grows, so that seconds for each gigabyte are compared.
"""

import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from answer import Answer, parser
from data import Pharmacy
from measure import Run, give_memory, run, settle, usage_of, warm
from ours import Ours
from scenarios import COMPARE
from targets import Targets

GB = 1e9


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=3, help="restores on each of those days (3)")
    chosen = options.parse_args()
    days = (0, 1, 2, 4) if chosen.quick else (0, 30, 90, 365)
    rounds = 1 if chosen.quick else chosen.rounds
    shutil.rmtree(chosen.work, ignore_errors=True)
    pharmacy = Pharmacy(chosen.work, profile="XS" if chosen.quick else "S", given=None)
    pharmacy.make()
    tool, targets = Ours(chosen.work / "ours"), Targets(chosen.work)
    tool.init()
    costs: dict[int, tuple[float, float]] = {}
    table = [["", "site, MB", "seconds", "seconds a GB", "database, MB", "seconds", "seconds a GB"]]
    for day in range(days[-1] + 1):
        if day:
            pharmacy.trade()
        tool.backup(pharmacy.source)
        if day not in days:
            continue
        whole = restore(tool, targets, pharmacy, tool.restore, rounds, pharmacy.source.items)
        alone = restore(tool, targets, pharmacy, tool.restore_database, rounds, pharmacy.source.items[:1])
        site = usage_of(pharmacy.source.paths)[1]
        database = usage_of(pharmacy.source.paths[:1])[1]
        costs[day] = whole / site, alone / database
        row = [f"day {day}" if day else "the first day"]
        for size, cost in ((site, whole), (database, alone)):
            row += [f"{size / 1e6:.0f}", f"{cost:.2f}", f"{cost / size * GB:.2f}"]
        table.append(row)
        print(*table[-1], flush=True)
    figures = {
        f"{what}_{day}": costs[day][which] / costs[0][which]
        for day in days[1:]
        for which, what in enumerate(("site", "database"))
    }
    remark = (
        "Restores of the newest backup, medians; the whole site, and its database alone. Every byte is compared with "
        "the source. Seconds include the start of the process."
    )
    Answer("Restore after days of churn", figures, table, remark).give(chosen)
    shutil.rmtree(chosen.work)


def restore(
    tool: Ours, targets: Targets, pharmacy: Pharmacy, job: Callable[[Path], Run], rounds: int, items: tuple[str, ...]
) -> float:
    """The median of some restores, each into a fresh place and compared."""
    seconds = []
    for _ in range(rounds):
        warm([tool.repository])
        with targets.fresh(usage_of(pharmacy.source.paths)[0]) as target:
            settle(0.5)
            give_memory()
            seconds.append(job(target).seconds)
            pairs = [path for item in items for path in (pharmacy.source.folder / item, tool.restored(target, item))]
            run([sys.executable, COMPARE, *pairs], log=tool.home / "compare.log")
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
