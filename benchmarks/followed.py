"""The sample pharmacy's SQLite database, followed while it is written to: how much could be lost, and who waits.

What could be lost at any moment is what was written since the state that the newest snapshot is of. So the most is
from the state of one snapshot to when the next one was safe.
"""

import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

from answer import Answer, parser
from data import Pharmacy
from database_servers import Once
from databases import _met, watched
from measure import settle

import pharmabackup as pb

EVERY_S = 5
WRITES_A_SECOND = 100
WATCHED_S = 90
LOST_GOAL_S, LATENCY_GOAL = 60, 1.1


def main() -> None:
    options = parser(__doc__).parse_args()
    profile, seconds = ("XS", 10) if options.quick else ("B", WATCHED_S)
    options.work.mkdir(parents=True, exist_ok=True)
    pharmacy = Pharmacy(options.work.parent, profile=profile, given=None)
    pharmacy.make()
    with tempfile.TemporaryDirectory(prefix="pharmabackup-followed-") as folder:
        place = Path(folder)
        shutil.copy(pharmacy.site / "pmr.db", place / "pmr.db")
        size = (place / "pmr.db").stat().st_size
        pb.KeyFile.create(place / "key")
        pb.Repository.create(place / "ours", pb.KeyFile(place / "key"), state_dir=place / "state").close()
        with closing(sqlite3.connect(place / "pmr.db")) as database:
            database.execute("PRAGMA journal_mode = wal")
            database.execute("CREATE TABLE written (note TEXT)")
            settle(1)
            writes = partial(writer, place / "pmr.db")
            alone = watched(writes, lambda: time.sleep(seconds), a_second=WRITES_A_SECOND)
            beside = watched(writes, lambda: follow(place, seconds), a_second=WRITES_A_SECOND)
        with pb.Repository.open(place / "ours", pb.KeyFile(place / "key"), state_dir=place / "state") as repository:
            snapshots = repository.snapshots()[::-1]
    lost = [(after.time - before.data_until).total_seconds() for before, after in pairwise(snapshots)]
    late = [1000 * statistics.quantiles(taken, n=100)[98] for taken in (alone, beside)]
    added = statistics.median(one.added for one in snapshots[1:])
    figures = {"most_lost_s": max(lost), "p99_ratio": late[1] / late[0], "added_mb": added / 1e6}
    table = [
        ["", "measured", "goal", "met"],
        ["what could be lost, at most", f"{max(lost):.1f} s", f"{LOST_GOAL_S} s", _met(max(lost) <= LOST_GOAL_S)],
        ["and in the median", f"{statistics.median(lost):.1f} s", "–", "–"],
        ["writers' 99th percentile, alone", f"{late[0]:.2f} ms", "–", "–"],
        ["beside it", f"{late[1]:.2f} ms", f"{LATENCY_GOAL} times that", _met(late[1] <= LATENCY_GOAL * late[0])],
        ["added by a snapshot, in the median", f"{added / 1e6:.2f} MB", "–", "–"],
    ]
    how = f"one connection, {WRITES_A_SECOND} transactions a second, {seconds} s; followed every {EVERY_S} s"
    remark = f"A database of {size / 1e6:,.0f} MB in WAL mode; {how}; {len(snapshots)} snapshots."
    Answer("A SQLite database that is followed", figures, table, remark).give(options)


def follow(place: Path, seconds: float) -> None:
    command = [
        sys.executable,
        "-m",
        "pharmabackup",
        "-q",
        "follow",
        "-r",
        str(place / "ours"),
        "--every",
        str(EVERY_S),
    ]
    command += ["--state", str(place / "state"), "--credential", f"keyfile:{place / 'key'}"]
    command += ["--sqlite", f"pmr={place / 'pmr.db'}"]
    with subprocess.Popen(command) as process:
        time.sleep(seconds)
        process.terminate()


@contextmanager
def writer(path: Path) -> Iterator[Once]:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as database:

        def once(_: int) -> None:
            database.execute("INSERT INTO written VALUES (?)", (os.urandom(40).hex(),))

        yield once


if __name__ == "__main__":
    main()
