"""Every night to the disk beside it and to a second place: the source is read once. A till's own key does, too.

python examples/13_several_places.py FOLDER     after 08_copy.py FOLDER
"""

import os
import sys
from contextlib import ExitStack
from pathlib import Path

import pharmabackup as pb


def nightly(shop: Path) -> None:
    who = pb.Passphrase(os.environ.get("PHARMABACKUP_PASSPHRASE", "four random words here"))
    others = [shop.with_name(f"{shop.name}-usb"), shop.with_name(f"{shop.name}-not-plugged-in")]
    with ExitStack() as stack:
        first = stack.enter_context(pb.Repository.open(shop.with_name(f"{shop.name}-backup"), who))
        replicas = []
        for place in others:
            try:
                replicas.append(stack.enter_context(pb.Repository.open(place, who)))
            except pb.Error as away:  # unplugged, damaged, or still with the passphrase of before
                print(away)  # it gets everything on the first night on which it opens again
        print(first.backup([pb.Files(shop / "documents")], replicas=replicas, reason="nightly"))
        for replica in replicas:
            print(first.compare(replica))


if __name__ == "__main__":
    try:
        nightly(Path(sys.argv[1]).resolve())
    except pb.Incomplete as error:
        sys.exit(f"{error}")  # what was read is safe in all places that answered
    except pb.Error as error:
        sys.exit(f"{error}")
