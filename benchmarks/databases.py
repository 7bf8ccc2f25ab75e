"""The sample pharmacy in a database server: a trading day's backup, beside restic fed by the same dump, and writers.

The server is the tests' own, with fsync on. Rows are those of the sample's SQLite database, and each trading day is
applied as the inserts, updates and deletes that it is. restic runs the same pg_dump (`--stdin-from-command`).
"""

import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from answer import Answer, parser
from data import Pharmacy
from far import RESTIC, built
from measure import Run, give_memory, run, settle, usage_of
from tools import PASSPHRASE

sys.path.append(str(Path(__file__).resolve().parent.parent))
from tests.servers.postgresql import PASSWORD, PostgresServer, postgres

DRIVER = Path(__file__).with_name("driver.py")
DAYS = 3
TYPES = {"INTEGER": "bigint", "TEXT": "text", "REAL": "double precision", "BLOB": "bytea"}
ADDED_GOAL, TIME_GOAL, LATENCY_GOAL = 1 / 10, 1.3, 1.1
WRITES_A_SECOND = 200
WRITERS_S = 60  # that writers are watched for, without a backup and beside backups one after the other


def main() -> None:
    options = parser(__doc__).parse_args()
    profile, days, watched = ("XS", 1, 5) if options.quick else ("B", DAYS, WRITERS_S)
    options.work.mkdir(parents=True, exist_ok=True)
    pharmacy = Pharmacy(options.work.parent, profile=profile, given=None)
    pharmacy.make()
    with (
        tempfile.TemporaryDirectory(prefix="pharmabackup-databases-") as scratch,
        postgres(Path(scratch), "-c", "fsync=on", "-c", "max_wal_size=4GB") as server,
    ):
        load(pharmacy, server)
        jobs = Jobs(server, options.work, Path(scratch))
        found = trading(jobs, pharmacy, server, days)
        latency = writers(jobs, server, watched)
    figures, table = figured(found, latency)
    remark = (
        f"PostgreSQL {server.bin.parent.name}, the sample pharmacy of profile {profile}: a dump of "
        f"{found.dumped / 1e6:,.0f} MB. Medians of {days} trading days, whole processes in "
        f"turn: pg_dump into nothing, ours, restic {RESTIC.rpartition('@v')[2]}. Writers: one connection that makes "
        f"{WRITES_A_SECOND} transactions a second for {watched} s, without a backup and beside backups one after the "
        "other; server, writer and backup share two processors."
    )
    Answer("Databases: PostgreSQL", figures, table, remark).give(options)


class Jobs:
    """What is run: the dump alone, ours, and restic."""

    def __init__(self, server: PostgresServer, work: Path, scratch: Path) -> None:
        self.ours, self.restic = scratch / "ours", scratch / "restic"
        self.log = work / "log"
        reach = {
            "PGHOST": "127.0.0.1", "PGPORT": str(server.port), "PGUSER": server.user, "PGPASSWORD": PASSWORD,
            "PATH": f"{server.bin}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        self.plain = {**os.environ, **reach}
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
        self._url = server.url("pmr")
        self._driver = [sys.executable, str(DRIVER)]
        run([*self._driver, "create", str(self.ours)], env=self.mine, log=self.log)
        run([self._tool, "--quiet", "init", "--repository-version", "2"], env=self.theirs, log=self.log)

    def dumped(self) -> int:
        """The size of a dump."""
        with subprocess.Popen(["pg_dump", "-Fc", "-Z0", "-d", "pmr"], env=self.plain, stdout=subprocess.PIPE) as dump:
            assert dump.stdout is not None
            return sum(len(piece) for piece in iter(partial(dump.stdout.read, 1 << 20), b""))

    def dump(self) -> Run:
        return run(
            ["pg_dump", "-Fc", "-Z0", "-d", "pmr", "--no-sync", "-f", os.devnull], env=self.plain, log=self.log
        )

    def back_up(self) -> Run:
        return run([*self._driver, "backup", str(self.ours), self._url], env=self.mine, log=self.log)

    def peer(self) -> Run:
        dump = ["pg_dump", "-Fc", "-Z0", "-d", "pmr"]
        command = [
            self._tool,
            "--quiet",
            "backup",
            "--stdin-filename",
            "pmr.dump",
            "--stdin-from-command",
            "--",
            *dump,
        ]
        return run(command, env=self.theirs, log=self.log)


@dataclass
class Found:
    """Runs by what was run, and bytes that each added."""

    dumped: int = 0
    runs: dict[str, list[Run]] = field(default_factory=dict)
    added: dict[str, list[int]] = field(default_factory=dict)

    def measure(self, name: str, job: Callable[[], Run], place: Path | None) -> None:
        settle(0.5)
        give_memory()
        before = 0 if place is None else usage_of([place])[1]
        cost = job()
        added = 0 if place is None else usage_of([place])[1] - before
        self.runs.setdefault(name, []).append(cost)
        self.added.setdefault(name, []).append(added)
        print(f"{name}: {cost.seconds:.2f} s, {added / 1e6:.2f} MB, {cost.rss / 1e6:.0f} MB of memory", flush=True)


def trading(jobs: Jobs, pharmacy: Pharmacy, server: PostgresServer, days: int) -> Found:
    """A first backup, and one after each of the days."""
    found = Found(jobs.dumped())
    found.measure("first dump", jobs.dump, None)
    found.measure("first ours", jobs.back_up, jobs.ours)
    found.measure("first restic", jobs.peer, jobs.restic)
    before = pharmacy.site.with_name("before.db")
    for _ in range(days):
        shutil.copy(pharmacy.site / "pmr.db", before)
        pharmacy.trade()
        apply_day(before, pharmacy.site / "pmr.db", server)
        found.measure("dump", jobs.dump, None)
        found.measure("ours", jobs.back_up, jobs.ours)
        found.measure("restic", jobs.peer, jobs.restic)
    before.unlink()
    return found


# ---------------------------------------------------------------- rows


def tables(database: sqlite3.Connection) -> Iterator[tuple[str, list[tuple[str, str]], list[str]]]:
    """Name, columns with their types there, and the primary key."""
    names = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY rowid"
    for (name,) in database.execute(names).fetchall():
        columns = database.execute(f"PRAGMA table_info({name})").fetchall()
        keys = [column[1] for column in sorted(columns, key=lambda column: column[5]) if column[5]]
        yield name, [(column[1], TYPES.get(column[2].upper(), "text")) for column in columns], keys


def load(pharmacy: Pharmacy, server: PostgresServer) -> None:
    """All tables, their keys, and the indexes that the sample has."""
    with server.connect() as postgres_:
        postgres_.execute("CREATE DATABASE pmr")
    with closing(sqlite3.connect(pharmacy.site / "pmr.db")) as database, server.connect("pmr") as to:
        for name, columns, keys in tables(database):
            listed = ", ".join(f'"{column}" {kind}' for column, kind in columns)
            to.execute(f'CREATE TABLE "{name}" ({listed}, PRIMARY KEY ({", ".join(keys)}))')
            with to.cursor().copy(f'COPY "{name}" FROM STDIN') as copy:
                for row in database.execute(f'SELECT * FROM "{name}"'):
                    copy.write_row(row)
        for (statement,) in database.execute("SELECT sql FROM sqlite_master WHERE type = 'index' AND sql NOT NULL"):
            to.execute(statement)
        to.execute("VACUUM ANALYZE")


def apply_day(before: Path, after: Path, server: PostgresServer) -> None:
    """What changed between two states of the sample, in one transaction a table."""
    with closing(sqlite3.connect(after)) as database, server.connect("pmr") as to:
        database.execute("ATTACH ? AS before", (str(before),))
        for name, columns, keys in tables(database):
            key = ", ".join(keys)
            gone = database.execute(
                f"SELECT {key} FROM before.{name} EXCEPT SELECT {key} FROM main.{name}"
            ).fetchall()
            new = database.execute(f"SELECT * FROM main.{name} EXCEPT SELECT * FROM before.{name}").fetchall()
            others = [column for column, _ in columns if column not in keys]
            change = ", ".join(f'"{column}" = excluded."{column}"' for column in others)
            marks = ", ".join(["%s"] * len(columns))
            insert = f'INSERT INTO "{name}" VALUES ({marks}) ON CONFLICT ({key}) DO UPDATE SET {change}'
            with to.transaction(), to.cursor() as cursor:
                if gone:
                    where = " AND ".join(f'"{column}" = %s' for column in keys)
                    cursor.executemany(f'DELETE FROM "{name}" WHERE {where}', gone)
                if new:
                    cursor.executemany(insert, new)


# ---------------------------------------------------------------- writers


def writers(jobs: Jobs, server: PostgresServer, seconds: int) -> dict[str, list[float]]:
    """How long transactions took, in seconds, without a backup and beside backups one after the other."""
    with server.connect("pmr") as connection:
        connection.execute("CREATE TABLE written (id bigserial PRIMARY KEY, note text)")
    found = {"alone": watched(server, lambda: time.sleep(seconds))}
    end = time.monotonic() + seconds

    def backups() -> None:
        while time.monotonic() < end:
            jobs.back_up()

    found["beside"] = watched(server, backups)
    end = time.monotonic() + seconds

    def dumps() -> None:
        while time.monotonic() < end:
            jobs.dump()

    found["dump"] = watched(server, dumps)
    return found


def watched(server: PostgresServer, job: Callable[[], None]) -> list[float]:
    taken: list[float] = []
    stop = threading.Event()

    def write() -> None:
        with server.connect("pmr") as connection:
            due = time.monotonic()
            number = 0
            while not stop.is_set():
                due += 1 / WRITES_A_SECOND
                time.sleep(max(0.0, due - time.monotonic()))
                began = time.monotonic()
                with connection.transaction():
                    connection.execute("INSERT INTO written (note) VALUES (%s)", (os.urandom(40).hex(),))
                    connection.execute(
                        "UPDATE stock SET on_hand = on_hand + 1 WHERE product_code ="
                        " (SELECT product_code FROM stock ORDER BY 1 LIMIT 1 OFFSET %s)",
                        (number % 100,),
                    )
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


def figured(found: Found, latency: dict[str, list[float]]) -> tuple[dict[str, float], list[list[str]]]:
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
        ["", "pharmabackup", "restic", "pg_dump alone", "ratio", "goal", "met"],
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
