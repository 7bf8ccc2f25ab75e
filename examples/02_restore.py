"""The disk failed: the records come first, and the PMR starts while scans are still coming.

python examples/02_restore.py FOLDER     after 01_backup.py FOLDER; restores into FOLDER-restored
"""

import os
import sys
import threading
from pathlib import Path

import pharmabackup as pb

cancel = threading.Event()  # a window's Stop button calls cancel.set()


def show(event: pb.Event) -> None:
    if event.kind == "usable" and event.dataset == "pmr":
        print("Patient records are ready: start dispensing. The rest follows.")
    elif event.kind == "progress":
        print(f"{event.bytes_done:,} of {event.bytes_total or 0:,} bytes")


def restore(shop: Path) -> pb.Report:
    who = pb.Passphrase(os.environ.get("PHARMABACKUP_PASSPHRASE", "four random words here"))
    with pb.Repository.open(shop.with_name(f"{shop.name}-backup"), who) as repo:
        # A second run goes on where the first was stopped; files that are right already are not written again.
        return repo.restore(shop.with_name(f"{shop.name}-restored"), overwrite=True, progress=show, cancel=cancel)


if __name__ == "__main__":
    try:
        print(restore(Path(sys.argv[1]).resolve()))
    except pb.Error as error:  # Cancelled and Incomplete too: each says what is there and what to do
        sys.exit(str(error))
