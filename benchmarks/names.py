"""A restore that computes all chunks' names again, since not the owner alone has written, beside one that need not.

Where a device writes in the owner's domain a stolen one could have given a block another's name, so that whoever
restores proves the names too (docs/security.md).
"""

import os
import shutil
import statistics
import sys
from pathlib import Path

from answer import Answer, parser
from measure import Run, settle, warm
from memory import GB, PAGE, make_database, make_files
from ours import DRIVER, Ours
from tools import Source


class Till(Ours):
    """A device that the owner of a repository has enrolled in his own domain."""

    def environment(self) -> dict[str, str]:
        return {
            "PHARMABACKUP_PASSPHRASE": "another passphrase, no secret",
            "PHARMABACKUP_STATE": str(self.home / "till"),
        }


def main() -> None:
    options = parser(__doc__).parse_args()
    size, rounds = (GB // 50, 1) if options.quick else (GB, 5)
    shutil.rmtree(options.work, ignore_errors=True)
    source = Source(options.work / "source", ("scans", "million.db"))
    make_files(source.folder / "scans", size // 2)
    shutil.move(_database(options.work / "made", size // 2), source.folder / "million.db")
    figures: dict[str, float] = {}
    table = [["restore of what was written by", "seconds", "least", "greatest", "processor, s"]]
    for who, kind in (("the owner", Ours), ("a device in his domain", Till)):
        runs = measure(options.work / kind.__name__, kind, source, rounds)
        seconds = [cost.seconds for cost in runs]
        middle = statistics.median(seconds)
        figures[who] = middle
        spread = (f"{value:.2f}" for value in (middle, min(seconds), max(seconds)))
        table.append([who, *spread, f"{statistics.median(cost.cpu for cost in runs):.2f}"])
    remark = (
        f"{size / 1e6:,.0f} MB, one half files of up to 1 GB, the other a database with a chunk a page. The first "
        "restore proves signatures and seals, the second also every chunk's name."
    )
    Answer("Restore that proves names", figures, table, remark).give(options)
    shutil.rmtree(options.work)


def _database(folder: Path, size: int) -> Path:
    make_database(folder, size // PAGE)
    return folder / "million.db"


def measure(home: Path, writer: type[Ours], source: Source, rounds: int) -> list[Run]:
    """The owner restores what the writer has backed up."""
    owner = Ours(home)
    owner.init()
    by = writer(home)
    if writer is not Ours:
        new = {"PHARMABACKUP_NEW": by.environment()["PHARMABACKUP_PASSPHRASE"]}
        owner.run([sys.executable, DRIVER, "enrol", owner.repository, "device", "till"], more=new)
    by.backup(source)
    runs: list[Run] = []
    for _ in range(rounds):
        warm([owner.repository])
        settle(0.5)
        target = home / "restored"
        target.mkdir()
        runs.append(owner.restore(target))
        for item in source.items:
            assert os.path.exists(owner.restored(target, item))
        shutil.rmtree(target)
    return runs


if __name__ == "__main__":
    main()
