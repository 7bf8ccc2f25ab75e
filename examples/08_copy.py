"""A second place: a replica on another disk, which restores alone, and what each of the two lacks.

python examples/08_copy.py FOLDER     after 01_backup.py FOLDER
"""

import os
import sys
from pathlib import Path

import pharmabackup as pb


def copy(shop: Path) -> None:
    who = pb.Passphrase(os.environ.get("PHARMABACKUP_PASSPHRASE", "four random words here"))
    usb = shop.with_name(f"{shop.name}-usb")
    with pb.Repository.open(shop.with_name(f"{shop.name}-backup"), who) as repo:
        if not usb.exists():
            pb.Repository.create(usb, who, replica_of=repo).close()
        with pb.Repository.open(usb, who) as replica:
            print(repo.compare(replica))
            report = repo.copy(replica)  # stopped half-way, the next one goes on
            print(f"sent {report.bytes:,} bytes")
            replica.restore(shop.with_name(f"{shop.name}-from-usb"), overwrite=True)
            print(replica.check(read_data=1.0))


if __name__ == "__main__":
    try:
        copy(Path(sys.argv[1]).resolve())
    except pb.Error as error:
        sys.exit(f"{error}")
