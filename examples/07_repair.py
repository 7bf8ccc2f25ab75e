"""A disk with a bad spot: what is damaged, what a second copy and the pharmacy itself still have, and mending it.

python examples/07_repair.py FOLDER     after 01_backup.py FOLDER
"""

import os
import shutil
import sys
from pathlib import Path

import pharmabackup as pb


def damaged_copy(good: Path) -> Path:
    """Another copy of the backup, with one wrong byte in its largest pack: never damage the one you have."""
    copy = good.with_name(f"{good.name}-second")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(good, copy)
    pack = max((copy / "packs").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    data = bytearray(pack.read_bytes())
    data[1000] ^= 1
    pack.write_bytes(data)
    return copy


def repair(shop: Path) -> str:
    who = pb.Passphrase(os.environ.get("PHARMABACKUP_PASSPHRASE", "four random words here"))
    good = shop.with_name(f"{shop.name}-backup")
    with pb.Repository.open(good, who) as other, pb.Repository.open(damaged_copy(good), who) as repo:
        for finding in repo.check(read_data=1.0).findings:
            print(finding)
        # What another copy has is taken from there; what nobody has any more is read from the source again.
        sources = [pb.SQLite(shop / "pmr.db"), pb.Files(shop / "documents", exclude=["~$*", "*.tmp"])]
        proposal = repo.propose_repair(replicas=[other], sources=sources)
        print(proposal)  # what would be done, which snapshots that makes whole, and what stays lost
        repo.apply(proposal)
        return f"After that: {repo.check(read_data=1.0).state}"


if __name__ == "__main__":
    try:
        print(repair(Path(sys.argv[1]).resolve()))
    except pb.Error as error:
        sys.exit(f"{error}")
