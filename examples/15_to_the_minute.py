"""What was dispensed a moment ago is in the backup: the PMR's database is followed while it is written to.

python examples/15_to_the_minute.py FOLDER     FOLDER holds a pharmacy; the backup goes beside it
"""

import os
import sqlite3
import sys
import threading
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pharmabackup as pb


def main(shop: Path) -> None:
    where = shop.with_name(f"{shop.name}-followed")
    who = pb.Passphrase(os.environ.get("PHARMABACKUP_PASSPHRASE", "four random words here"))
    repo = pb.Repository.open(where, who) if where.exists() else pb.Repository.create(where, who)
    stop = threading.Event()
    with repo:
        follower = threading.Thread(
            target=repo.follow,
            args=([pb.SQLite(shop / "pmr.db", name="pmr", tier=1)],),
            kwargs={"every": timedelta(seconds=0.5), "cancel": stop},
        )
        follower.start()
        try:
            with closing(sqlite3.connect(shop / "pmr.db")) as pmr:
                pmr.execute("CREATE TABLE IF NOT EXISTS handed_out (what TEXT)")
                pmr.execute("INSERT INTO handed_out VALUES ('a moment ago')")
                pmr.commit()
                written = time.monotonic()
                while not is_safe(repo):
                    time.sleep(0.1)
                    if time.monotonic() - written > 60:
                        sys.exit("It was not safe within a minute.")
                print(f"It was safe {time.monotonic() - written:.1f} s later.")
        finally:
            stop.set()
            follower.join()


def is_safe(repo: pb.Repository) -> bool:
    """Whether the newest snapshot has it."""
    try:
        return any(True for _ in repo.snapshot("pmr").table("handed_out"))
    except pb.NotFound:
        return False  # there is no snapshot yet, or it is of before


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]).resolve())
    except pb.Error as error:
        sys.exit(str(error))
