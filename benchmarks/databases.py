"""The sample pharmacy in PostgreSQL: a trading day's backup, beside restic fed by the same dump, and writers.

The server is the tests' own, with fsync on. Rows are those of the sample's SQLite database, and each trading day is
applied as the inserts, updates and deletes that it is. restic runs the same dump program (`--stdin-from-command`).
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from answer import Answer, parser
from data import Pharmacy
from database_servers import Once, Postgres, Served, ServerOf
from far import RESTIC, built
from measure import Run, give_memory, run, settle, usage_of
from tools import PASSPHRASE

DRIVER = Path(__file__).with_name("driver.py")
DAYS = 3
ADDED_GOAL, TIME_GOAL, LATENCY_GOAL = 1 / 10, 1.3, 1.1
WRITES_A_SECOND = 200
WRITERS_S = 60  # that writers are watched for, without a backup and beside backups one after the other


def main(system: ServerOf = Postgres) -> None:
    options = parser(__doc__).parse_args()
    profile, days, watched = ("XS", 1, 5) if options.quick else ("B", DAYS, WRITERS_S)
    options.work.mkdir(parents=True, exist_ok=True)
    pharmacy = Pharmacy(options.work.parent, profile=profile, given=None)
    pharmacy.make()
    with (
        tempfile.TemporaryDirectory(prefix="pharmabackup-databases-") as scratch,
        system.running(Path(scratch)) as server,
    ):
        server.load(pharmacy.site / "pmr.db")
        jobs = Jobs(server, options.work, Path(scratch))
        found = trading(jobs, pharmacy, server, days)
        latency = writers(jobs, server, watched)
    figures, table = figured(found, latency, server.dump[0])
    remark = (
        f"{server.version}, the sample pharmacy of profile {profile}: a dump of "
        f"{found.dumped / 1e6:,.0f} MB. Medians of {days} trading days, whole processes in "
        f"turn: {server.dump[0]} into nothing, ours, restic {RESTIC.rpartition('@v')[2]}. Writers: one connection, "
        f"{WRITES_A_SECOND} transactions a second for {watched} s, without a backup and beside backups one after the "
        "other; server, writer and backup share two processors."
    )
    Answer(f"Databases: {system.product}", figures, table, remark).give(options)


class Jobs:
    """What is run: the dump alone, ours, and restic."""

    def __init__(self, server: Served, work: Path, scratch: Path) -> None:
        self.ours, self.restic = scratch / "ours", scratch / "restic"
        self.log = work / "log"
        self.plain = {**os.environ, **server.environment}
        self.mine = self.plain | {
            "PHARMABACKUP_PASSPHRASE": PASSPHRASE,
            "PHARMABACKUP_STATE": str(scratch / "state"),
        }
        self.theirs = self.plain | {
            "RESTIC_PASSWORD": PASSPHRASE,
            "RESTIC_REPOSITORY": str(self.restic),
            "RESTIC_CACHE_DIR": str(scratch / "cache"),
        }
        self._tool = str(built(work, RESTIC))
        self._url, self._dump, self._into_nothing = server.url, server.dump, server.into_nothing
        self._driver = [sys.executable, str(DRIVER)]
        run([*self._driver, "create", str(self.ours)], env=self.mine, log=self.log)
        run([self._tool, "--quiet", "init", "--repository-version", "2"], env=self.theirs, log=self.log)

    def dumped(self) -> int:
        """The size of a dump."""
        with subprocess.Popen(self._dump, env=self.plain, stdout=subprocess.PIPE) as dump:
            assert dump.stdout is not None
            return sum(len(piece) for piece in iter(partial(dump.stdout.read, 1 << 20), b""))

    def dump(self) -> Run:
        return run(self._into_nothing, env=self.plain, log=self.log)

    def back_up(self) -> Run:
        return run([*self._driver, "backup", str(self.ours), self._url], env=self.mine, log=self.log)

    def peer(self) -> Run:
        command = [
            self._tool,
            "--quiet",
            "backup",
            "--stdin-filename",
            "pmr.dump",
            "--stdin-from-command",
            "--",
            *self._dump,
        ]
        return run(command, env=self.theirs, log=self.log)


@dataclass
class Found:
    """Runs by what was run, and bytes that each added."""

    dumped: int = 0
    memory_is_limited: bool = False
    runs: dict[str, list[Run]] = field(default_factory=dict)
    added: dict[str, list[int]] = field(default_factory=dict)

    def measure(self, name: str, job: Callable[[], Run], place: Path | None) -> None:
        settle(0.5)
        if not self.memory_is_limited:
            give_memory()
        before = 0 if place is None else usage_of([place])[1]
        cost = job()
        added = 0 if place is None else usage_of([place])[1] - before
        self.runs.setdefault(name, []).append(cost)
        self.added.setdefault(name, []).append(added)
        print(f"{name}: {cost.seconds:.2f} s, {added / 1e6:.2f} MB, {cost.rss / 1e6:.0f} MB of memory", flush=True)


def trading(jobs: Jobs, pharmacy: Pharmacy, server: Served, days: int, *, memory_is_limited: bool = False) -> Found:
    """A first backup, and one after each of the days."""
    found = Found(jobs.dumped(), memory_is_limited)
    found.measure("first dump", jobs.dump, None)
    found.measure("first ours", jobs.back_up, jobs.ours)
    found.measure("first restic", jobs.peer, jobs.restic)
    before = pharmacy.site.with_name("before.db")
    for _ in range(days):
        shutil.copy(pharmacy.site / "pmr.db", before)
        pharmacy.trade()
        server.apply_day(before, pharmacy.site / "pmr.db")
        found.measure("dump", jobs.dump, None)
        found.measure("ours", jobs.back_up, jobs.ours)
        found.measure("restic", jobs.peer, jobs.restic)
    before.unlink()
    return found


# ---------------------------------------------------------------- writers


def writers(jobs: Jobs, server: Served, seconds: int) -> dict[str, list[float]]:
    """How long transactions took, in seconds, without a backup and beside backups one after the other."""
    server.prepare_writer()
    found = {"alone": watched(server.writer, lambda: time.sleep(seconds))}
    end = time.monotonic() + seconds

    def backups() -> None:
        while time.monotonic() < end:
            jobs.back_up()

    found["beside"] = watched(server.writer, backups)
    end = time.monotonic() + seconds

    def dumps() -> None:
        while time.monotonic() < end:
            jobs.dump()

    found["dump"] = watched(server.writer, dumps)
    return found


def watched(
    writer_of: Callable[[], AbstractContextManager[Once]],
    job: Callable[[], None],
    *,
    a_second: int = WRITES_A_SECOND,
) -> list[float]:
    """Seconds that each transaction took, while the job ran."""
    taken: list[float] = []
    stop = threading.Event()

    def write() -> None:
        with writer_of() as once:
            due = time.monotonic()
            number = 0
            while not stop.is_set():
                due += 1 / a_second
                time.sleep(max(0.0, due - time.monotonic()))
                began = time.monotonic()
                once(number)
                number += 1
                taken.append(time.monotonic() - began)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        job()
    finally:
        stop.set()
        writer.join()
    return taken


def figured(found: Found, latency: dict[str, list[float]], dump: str) -> tuple[dict[str, float], list[list[str]]]:
    seconds = {name: statistics.median(cost.seconds for cost in runs) for name, runs in found.runs.items()}
    added = {name: statistics.median(sizes) for name, sizes in found.added.items()}
    late = {name: statistics.quantiles(taken, n=100)[98] * 1000 for name, taken in latency.items()}
    share, longer, later = (
        added["ours"] / added["restic"],
        seconds["ours"] / seconds["dump"],
        late["beside"] / late["alone"],
    )
    figures = {
        "added_share": share,
        "added_mb": added["ours"] / 1e6,
        "day_ratio": longer,
        "first_ratio": seconds["first ours"] / seconds["first dump"],
        "p99_ratio": later,
        "day_mb": max(cost.rss for cost in found.runs["ours"]) / 1e6,
    }
    table = [
        ["", "pharmabackup", "restic", f"{dump} alone", "ratio", "goal", "met"],
        ["first backup", *(f"{seconds[f'first {tool}']:.2f} s" for tool in ("ours", "restic", "dump")),
         f"{seconds['first restic'] / seconds['first ours']:.2f}", "–", "–"],
        ["stored by it", *(f"{added[f'first {tool}'] / 1e6:.1f} MB" for tool in ("ours", "restic")), "–",
         f"{added['first ours'] / added['first restic']:.2f}", "–", "–"],
        ["a day later", *(f"{seconds[tool]:.2f} s" for tool in ("ours", "restic", "dump")),
         f"{longer:.2f} times the dump", f"at most {TIME_GOAL}", _met(longer <= TIME_GOAL)],
        ["added by that day", *(f"{added[tool] / 1e6:.2f} MB" for tool in ("ours", "restic")), "–",
         f"1/{1 / share:.1f}", "at most a tenth", _met(share <= ADDED_GOAL)],
        ["writers' 99th percentile", f"{late['beside']:.2f} ms", "–", f"{late['dump']:.2f} ms",
         f"{later:.2f} times {late['alone']:.2f} ms", f"at most {LATENCY_GOAL}", _met(later <= LATENCY_GOAL)],
    ]  # fmt: skip
    return figures, table


def _met(yes: bool) -> str:
    return "yes" if yes else "**no**"


if __name__ == "__main__":
    main()
