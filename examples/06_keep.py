"""What is kept: rules, a proposal that a person reads, and a hold that overrides every rule.

python examples/06_keep.py FOLDER     after 01_backup.py FOLDER
"""

import os
import sys
from datetime import timedelta
from pathlib import Path

import pharmabackup as pb

RULES = {
    "pmr": pb.Keep(within=timedelta(days=30), daily=60, monthly=24),
    "*": pb.Keep(last=1),
}


def keep(shop: Path) -> None:
    who = pb.Passphrase(os.environ.get("PHARMABACKUP_PASSPHRASE", "four random words here"))
    with pb.Repository.open(shop.with_name(f"{shop.name}-backup"), who) as repo:
        oldest = repo.snapshots("pmr")[-1]
        repo.hold(oldest, reason="The inspector asked for it.")
        repo.configure(keep=RULES, forget_delay=timedelta(days=7))  # an owner's, signed; once will do
        proposal = repo.propose_forget(time_zone="Europe/London")
        print(proposal)
        repo.apply(proposal)
        for going in repo.snapshots():
            if going.forget_at:
                print(f"{going.dataset} of {going.time:%d %B} can be called back until {going.forget_at:%d %B}")


if __name__ == "__main__":
    try:
        keep(Path(sys.argv[1]).resolve())
    except pb.Error as error:
        sys.exit(f"{error}")
