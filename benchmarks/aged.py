"""Restore after days of churn: one pharmacy, a backup after each trading day, and a new repository beside it.

The site grows, so that a restore is compared with one of the same site from a repository that holds nothing else, as
on a first day; and seconds for each gigabyte with the first day's.
"""

import shutil
import statistics
import sys

from answer import Answer, parser
from data import Pharmacy
from measure import Run, give_memory, run, settle, usage_of, warm
from ours import Ours
from scenarios import COMPARE
from targets import Targets
from tools import Source

GB = 1e9
WHOLE, DATABASE = "site", "database"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=3, help="restores on each of those days (3)")
    chosen = options.parse_args()
    days = (0, 1, 2, 4) if chosen.quick else (0, 30, 90, 365)
    rounds = 1 if chosen.quick else chosen.rounds
    shutil.rmtree(chosen.work, ignore_errors=True)
    pharmacy = Pharmacy(chosen.work, profile="XS" if chosen.quick else "S", given=None)
    pharmacy.make()
    aged, targets = Ours(chosen.work / "ours"), Targets(chosen.work)
    aged.init()
    figures: dict[str, float] = {}
    first: dict[str, float] = {}
    table = [["", "", "MB", "seconds", "of a new repository", "ratio", "seconds a GB"]]
    for day in range(days[-1] + 1):
        if day:
            pharmacy.trade()
        aged.backup(pharmacy.source)
        if day not in days:
            continue
        new = Ours(chosen.work / "new")
        if day:
            new.init()
            new.backup(pharmacy.source)
        for what, items in (WHOLE, pharmacy.source.items), (DATABASE, pharmacy.source.items[:1]):
            part = Source(pharmacy.source.folder, items)
            size = usage_of(part.paths)[1]
            costs = restores([aged, new] if day else [aged], targets, part, rounds, alone=what == DATABASE)
            row = [f"day {day}" if day else "the first day", what, f"{size / 1e6:.0f}", f"{costs[0]:.2f}"]
            if day:
                figures[f"{what}_{day}"] = costs[0] / costs[1]
                figures[f"{what}_{day}_per_gb"] = costs[0] / size / first[what]
                row += [f"{costs[1]:.2f}", f"{costs[0] / costs[1]:.2f}"]
            else:
                first[what] = costs[0] / size
                row += ["", ""]
            table.append([*row, f"{costs[0] / size * GB:.2f}"])
            print(*table[-1], flush=True)
        shutil.rmtree(new.home, ignore_errors=True)
    remark = (
        "Restores of the newest backup, medians; the whole site, and its database alone. The new repository holds "
        "one backup of the same site. Every byte is compared with the source. Seconds include the process's start."
    )
    Answer("Restore after days of churn", figures, table, remark).give(chosen)
    shutil.rmtree(chosen.work)


def restores(tools: list[Ours], targets: Targets, source: Source, rounds: int, *, alone: bool) -> list[float]:
    """Each tool's median of some restores, in turn, each into a fresh place and compared."""
    seconds: list[list[float]] = [[] for _ in tools]
    for _ in range(rounds):
        for tool, found in zip(tools, seconds, strict=True):
            found.append(restore(tool, targets, source, alone=alone).seconds)
    return [statistics.median(found) for found in seconds]


def restore(tool: Ours, targets: Targets, source: Source, *, alone: bool) -> Run:
    warm([tool.repository])
    with targets.fresh(usage_of(source.paths)[0]) as target:
        settle(0.5)
        give_memory()
        found = tool.restore_database(target) if alone else tool.restore(target)
        pairs = [path for item in source.items for path in (source.folder / item, tool.restored(target, item))]
        run([sys.executable, COMPARE, *pairs], log=tool.home / "compare.log")
    return found


if __name__ == "__main__":
    main()
