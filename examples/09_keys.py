"""Keys: a second owner's passphrase, another passphrase, and new keys after a laptop was lost.

python examples/09_keys.py FOLDER     after 01_backup.py FOLDER
"""

import os
import sys
from pathlib import Path

import pharmabackup as pb


def change_keys(shop: Path) -> None:
    who = pb.Passphrase(os.environ.get("PHARMABACKUP_PASSPHRASE", "four random words here"))
    second = pb.Passphrase(os.environ.get("SECOND_PASSPHRASE", "three other long words"))
    place = shop.with_name(f"{shop.name}-backup")
    with pb.Repository.open(place, who) as repo:
        if len(repo.slots()) == 1:
            repo.enrol("owner", second, name="Jaya Patel")
        repo.rotate(reason="The laptop with the passphrase in its vault was lost.")
    with pb.Repository.open(place, second) as repo:  # who may well change it
        repo.change_passphrase(second)
        for slot in repo.slots():
            print(f"{slot.name}: {slot.role}, since {slot.created:%d %B %Y}")


if __name__ == "__main__":
    try:
        change_keys(Path(sys.argv[1]).resolve())
    except pb.Error as error:
        sys.exit(f"{error}")
