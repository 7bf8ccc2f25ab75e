"""What our own Python costs in the main thread: for each page of a database, and for each small file."""

import os
import shutil
import sqlite3
from pathlib import Path

from answer import Answer, parser
from data import SmallFiles
from measure import usage_of, warm
from sampler import Sampler
from tools import PASSPHRASE

import pharmabackup as pb

SHOWN = 12


def backup(work: Path, source: pb.Source, *, again: bool = False) -> Sampler:
    """A first backup of one source into a new repository, or the one after it, sampled."""
    who, url, state = pb.Passphrase(PASSPHRASE), work / "repository", work / "state"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    pb.Repository.create(str(url), who).close()
    for _ in range(2 if again else 1):
        with pb.Repository.open(str(url), who, state_dir=state) as repository, Sampler() as sampler:
            repository.backup([source])
    shutil.rmtree(work)
    return sampler


def lines(sampler: Sampler, what: str, count: int) -> list[list[str]]:
    """The head line and the functions that take most, in microseconds a page or file."""
    each = 1e6 / count
    share = sampler.seconds or 1.0
    total = [
        f"**{what}**: {count:,}",
        f"{sampler.seconds * each:.2f}",
        "100 %",
        f"all threads: {sampler.processor * each:.2f}",
    ]
    found = [
        [f"`{name}`", f"{own * each:.2f}", f"{own / share:.0%}", f"{sampler.within[name] * each:.2f}"]
        for name, own in sorted(sampler.own.items(), key=lambda item: -item[1])[:SHOWN]
    ]
    return [total, *found]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--database", type=Path, help="profile this database in place of a made one")
    options.add_argument("--tree", type=Path, help="profile this tree in place of a copy of small files")
    chosen = options.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    # The environment variable keeps every cache of this process in the work folder.
    os.environ["PHARMABACKUP_STATE"] = str(chosen.work / "state")
    database = chosen.database or made_database(chosen.work / "data", 20_000 if chosen.quick else 120_000)
    small = SmallFiles(chosen.work, count=2_000 if chosen.quick else 30_000)
    if not chosen.tree:
        small.make()
    tree = chosen.tree or small.source.paths[0]
    warm([database, tree])
    with sqlite3.connect(database) as opened:
        pages = opened.execute("PRAGMA page_count").fetchone()[0]
    opened.close()
    files = usage_of([tree])[0]
    runs = [
        ("pages of a database, first backup", "page_us", pages, pb.SQLite(str(database)), False),
        ("small files, first backup", "file_us", files, pb.Files(str(tree)), False),
        ("small files, nothing changed", "unchanged_us", files, pb.Files(str(tree)), True),
    ]
    figures: dict[str, float] = {}
    table = [["main thread, processor time", "µs each", "share", "µs with what it calls"]]
    for what, figure, count, source, again in runs:
        sampler = backup(chosen.work / "run", source, again=again)
        figures[figure] = sampler.seconds / count * 1e6
        table += lines(sampler, what, count)
    remark = (
        "Sampled every millisecond. A function's time includes the C code and the libraries that it calls; time "
        "in other threads (compression, encryption, writing) is in the figure for all threads only."
    )
    Answer("Cost of our own Python", figures, table, remark).give(chosen)
    shutil.rmtree(chosen.work)


def made_database(folder: Path, pages: int) -> Path:
    from memory import make_database

    shutil.rmtree(folder, ignore_errors=True)
    make_database(folder, pages)
    return folder / "million.db"


if __name__ == "__main__":
    main()
