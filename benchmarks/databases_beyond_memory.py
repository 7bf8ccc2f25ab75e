"""The sample pharmacy in each database, with less memory than it has bytes: server, backup and cache share 512 MB.

The limit is a control group of Linux, which counts the cache of files too; whoever runs this has to be root.
"""

import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from answer import Answer, parser
from data import Pharmacy
from database_servers import MariaDB, Postgres, SQLite
from databases import ADDED_GOAL, TIME_GOAL, Found, Jobs, _met, trading
from far import RESTIC
from measure import Failed

MEMORY = 512 << 20
OLD, NEW = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
DAYS = 1


def main() -> None:
    options = parser(__doc__).parse_args()
    profile = "XS" if options.quick else "B"
    options.work.mkdir(parents=True, exist_ok=True)
    figures: dict[str, float] = {}
    table = [["", "pharmabackup", "restic", "dump alone", "ratio", "goal", "met"]]
    for system in (SQLite, Postgres, MariaDB):
        pharmacy = Pharmacy(options.work.parent, profile=profile, given=None)
        pharmacy.make()
        with (
            tempfile.TemporaryDirectory(prefix="pharmabackup-databases-") as scratch,
            limited(MEMORY),
            system.running(Path(scratch), MEMORY) as server,
        ):
            server.load(pharmacy.site / "pmr.db")
            found = trading(Jobs(server, options.work, Path(scratch)), pharmacy, server, DAYS, memory_is_limited=True)
        figures |= figured(system.product.lower(), found, table, server.version)
    remark = (
        f"The sample pharmacy of profile {profile}; server, backup, dump and the cache of files share "
        f"{MEMORY >> 20} MB. One trading day, whole processes in turn: the dump program into nothing, ours, restic "
        f"{RESTIC.rpartition('@v')[2]} fed by it."
    )
    Answer("Databases that exceed memory", figures, table, remark).give(options)


def figured(name: str, found: Found, table: list[list[str]], version: str) -> dict[str, float]:
    seconds = {job: statistics.median(cost.seconds for cost in runs) for job, runs in found.runs.items()}
    added = {job: statistics.median(sizes) for job, sizes in found.added.items()}
    longer, share = seconds["ours"] / seconds["dump"], added["ours"] / added["restic"]
    peak = max(cost.rss for cost in found.runs["ours"]) / 1e6
    tools = ("ours", "restic", "dump")
    table += [
        [f"{version}, a dump of {found.dumped / 1e6:,.0f} MB", *[""] * 6],
        ["first backup", *(f"{seconds[f'first {tool}']:.1f} s" for tool in tools),
         f"{seconds['first restic'] / seconds['first ours']:.2f}", "–", "–"],
        ["a day later", *(f"{seconds[tool]:.1f} s" for tool in tools), f"{longer:.2f} times the dump",
         f"at most {TIME_GOAL}", _met(longer <= TIME_GOAL)],
        ["added by that day", *(f"{added[tool] / 1e6:.2f} MB" for tool in tools[:2]), "–", f"1/{1 / share:.1f}",
         "at most a tenth", _met(share <= ADDED_GOAL)],
        ["memory of the backup", f"{peak:.0f} MB", *["–"] * 5],
    ]  # fmt: skip
    return {f"{name}_day_ratio": longer, f"{name}_added_share": share, f"{name}_mb": peak}


@contextmanager
def limited(size: int) -> Iterator[None]:
    """This process and what it starts from now on have so much memory, with their files' cache. Failed."""
    home = OLD if OLD.is_dir() else NEW
    group = home / f"pharmabackup-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if home == OLD else "memory.max")).write_text(str(size))
        (group / "cgroup.procs").write_text(str(os.getpid()))
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("1")  # what is cached already would be free of charge
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        raise Failed(f"Memory cannot be limited here: {error}") from error
    try:
        yield
    finally:
        (home / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


if __name__ == "__main__":
    main()
