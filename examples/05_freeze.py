"""The database and the files of one instant: the PMR's queue is paused while the views are taken, not longer.

python examples/05_freeze.py FOLDER     FOLDER holds a pharmacy; the backup goes beside it
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pharmabackup as pb


@contextmanager
def paused() -> Iterator[None]:
    """Your own switch: stop taking new work, let what is under way end, and go on afterwards."""
    began = time.monotonic()
    try:
        yield
    finally:
        print(f"The queue was paused for {time.monotonic() - began:.2f} s.")


def backup(shop: Path) -> pb.Report:
    where = shop.with_name(f"{shop.name}-frozen")
    who = pb.Passphrase(os.environ.get("PHARMABACKUP_PASSPHRASE", "four random words here"))
    repo = pb.Repository.open(where, who) if where.exists() else pb.Repository.create(where, who)
    with repo:
        return repo.backup(
            [pb.SQLite(shop / "pmr.db", tier=1), pb.Files(shop / "scans", tier=2)],
            freeze=paused(),
        )


if __name__ == "__main__":
    try:
        print(backup(Path(sys.argv[1]).resolve()))
    except pb.Error as error:
        sys.exit(str(error))
