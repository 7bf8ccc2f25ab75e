"""Every evening: the PMR's database and the documents, into a repository that is made the first time.

python examples/01_backup.py FOLDER      FOLDER holds a pharmacy (pmr.db, documents); the backup goes beside it
"""

import os
import sys
from pathlib import Path

import pharmabackup as pb


def nightly(shop: Path) -> pb.Report:
    where = shop.with_name(f"{shop.name}-backup")  # in real life: another disk, away from this one
    who = pb.Passphrase(os.environ.get("PHARMABACKUP_PASSPHRASE", "four random words here"))
    try:
        repo = pb.Repository.open(where, who)
    except (pb.NotFound, pb.StorageFailed):
        repo = pb.Repository.create(where, who)
    with repo:
        return repo.backup(
            [
                pb.SQLite(shop / "pmr.db", tier=1),  # while it is in use; first in, first out
                pb.Files(shop / "documents", exclude=["~$*", "*.tmp"]),
            ],
            reason="nightly",
            progress=print,
        )


if __name__ == "__main__":
    try:
        print(nightly(Path(sys.argv[1]).resolve()))
    except pb.Incomplete as error:  # part is safe, part is not: which, and why
        print(error, *error.findings, sep="\n")
        sys.exit(1)
    except pb.Error as error:  # every message ends with what to do
        sys.exit(str(error))
