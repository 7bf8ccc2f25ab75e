"""The recovery key before it is needed: each share alone, all together, and the page to print.

python examples/12_recovery.py FOLDER     after 01_backup.py FOLDER
"""

import os
import sys
from pathlib import Path

import pharmabackup as pb
from pharmabackup.report import Place, recovery_kit


def prepare(shop: Path) -> None:
    who = pb.Passphrase(os.environ.get("PHARMABACKUP_PASSPHRASE", "four random words here"))
    place = shop.with_name(f"{shop.name}-backup")
    holders = ["Jaya Patel", "Sam Okafor", "Lena Hughes"]
    with pb.Repository.open(place, who) as repo:
        shares = repo.split_recovery(threshold=2, shares=3)  # for three people; shown once
        page = recovery_kit(
            shop.with_name(f"{shop.name}-kit.html"),
            repo,
            holders=holders,
            threshold=2,
            places=[Place(url=place, note="the NAS in the office")],
            name="Harbour Street Pharmacy",
        )
        print("Print this:", page.name)
    for share in shares:  # each holder alone, without a passphrase
        print(pb.Repository.check_share(place, share))
    two = pb.Shares(shares[2], shares[0])  # two of them, with nothing else
    with pb.Repository.open(place, two, actor="Jaya Patel and Lena Hughes", reason="the yearly drill") as repo:
        print(repo.drill_recovery_key(two))
        print(list(repo.audit())[-1])


if __name__ == "__main__":
    try:
        prepare(Path(sys.argv[1]).resolve())
    except pb.Error as error:
        sys.exit(f"{error}")
