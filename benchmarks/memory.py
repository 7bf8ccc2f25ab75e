"""Peak memory of every verb, whatever the size: 1 GB and 20 GB of files, a million chunks, a thousand snapshots."""

import argparse
import os
import random
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

from answer import Answer, parser
from measure import Run, own_peak, run
from ours import Ours
from tools import Source

GB = 1_000_000_000
MIB = 1 << 20
PAGE = 4096
TEXT = b"Dispensed: one box of 28 tablets, take ONE daily. "
MANY, MANY_QUICK = 1_000, 30
MANY_FILES, MANY_FILE_BYTES = 200, 300_000
COMPARE = Path(__file__).with_name("compare.py")


def block(number: int) -> bytes:
    """A mebibyte that no other block repeats and that compresses to about half, like a database's pages."""
    noise = random.Random(number).randbytes(MIB // 2)
    half = PAGE // 2
    text = (TEXT * (half // len(TEXT) + 1))[:half]
    return b"".join(noise[at : at + half] + text for at in range(0, len(noise), half))


def make_files(folder: Path, size: int) -> None:
    """Files of at most a gigabyte each."""
    folder.mkdir(parents=True)
    number = 0
    for part in range(-(-size // GB)):
        with (folder / f"scans-{part:03}").open("wb") as file:
            for _ in range(min(GB, size - part * GB) // MIB):
                file.write(block(number))
                number += 1


def make_database(folder: Path, pages: int) -> None:
    """A database of about so many pages: one chunk each."""
    folder.mkdir(parents=True)
    database = sqlite3.connect(folder / "million.db")
    database.executescript(f"PRAGMA page_size={PAGE}; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;")
    database.execute("CREATE TABLE message (id INTEGER PRIMARY KEY, body BLOB)")
    in_block = MIB // PAGE
    for number in range(-(-pages // in_block)):
        data = block(number)
        rows = [(data[at : at + PAGE - 60],) for at in range(0, MIB, PAGE)]
        database.executemany("INSERT INTO message (body) VALUES (?)", rows)
    database.commit()
    database.close()


def many(tool: Ours, folder: Path, count: int) -> dict[str, Run]:
    """So many snapshots more, of scans of which half change in turn; then nine in ten are forgotten and pruned."""
    folder.mkdir()
    for number in range(MANY_FILES):
        (folder / f"{number:03}").write_bytes(os.urandom(MANY_FILE_BYTES))
    runs = {"backups": tool.many_backups(folder, count)}
    runs["list"] = tool.snapshots()
    runs["check of structure"] = tool.check_structure()
    keep = [1, 2, *range(count // 2, count + 3, 10)]
    runs["forget and prune"] = tool.prune(dict.fromkeys(keep, "kept"))
    runs["check of all data"] = tool.check_all_data()
    return runs


def measure(
    work: Path, make: Callable[[Path], None], items: tuple[str, ...], snapshots: int
) -> tuple[dict[str, Run], dict[str, Run]]:
    """One case: make the data, back it up, again, check, restore, compare; then `many`. Remove all."""
    shutil.rmtree(work, ignore_errors=True)
    try:
        make(work / "source")
        source = Source(work / "source", items)
        tool = Ours(work / "ours")
        tool.init()
        runs = {"backup": tool.backup(source), "again": tool.backup(source), "check": tool.check_all_data()}
        target = work / "restored"
        target.mkdir()
        runs["restore"] = tool.restore(target)
        pairs = [path for item in items for path in (source.folder / item, tool.restored(target, item))]
        run([sys.executable, COMPARE, *pairs], log=work / "compare.log")
        return runs, many(tool, work / "scans", snapshots) if snapshots else {}
    finally:
        shutil.rmtree(work, ignore_errors=True)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--skip-20gb", action="store_true", help="only 1 GB and a million chunks")
    chosen = options.parse_args()
    shutil.rmtree(chosen.work, ignore_errors=True)
    chosen.work.mkdir(parents=True)
    figures: dict[str, float] = {}
    told = ""
    table = [["peak memory, MB", "backup", "nothing changed", "check of all data", "restore", "seconds, backup"]]
    for name, text, size, make, item in cases(chosen):
        if shutil.disk_usage(chosen.work).free < size * 2.8:
            print(f"{text} is left out: it takes {size * 2.8 / GB:.0f} GB of disk")
            continue
        print(f"{text}: making data, backup, check, restore", flush=True)
        count = 0 if "chunks" not in name else MANY_QUICK if chosen.quick else MANY
        runs, more = measure(chosen.work / name, make, (item,), count)
        figures[f"peak_mb_{name}"] = max(cost.rss for cost in runs.values()) / 1e6
        peaks = [f"{runs[verb].rss / 1e6:.0f}" for verb in ("backup", "again", "check", "restore")]
        table.append([text, *peaks, f"{runs['backup'].seconds:.1f}"])
        if more:
            figures["peak_mb_many_snapshots"] = max(cost.rss for cost in more.values()) / 1e6
            told = ", ".join(f"{verb} {cost.rss / 1e6:.0f}" for verb, cost in more.items())
            told = f"With {count:,} snapshots more beside the many chunks, MB: {told}. "
    remark = told + f"The harness, below which nothing can be seen, has {own_peak() / 1e6:.0f} MB itself."
    Answer("Memory, whatever the size", figures, table, remark).give(chosen)
    shutil.rmtree(chosen.work)


def cases(chosen: argparse.Namespace) -> list[tuple[str, str, int, Callable[[Path], None], str]]:
    """Name, text, bytes, how to make it, and the item of the source."""
    if chosen.quick:
        return [
            ("files_100mb", "100 MB of files", GB // 10, lambda p: make_files(p / "scans", GB // 10), "scans"),
            ("few_chunks", "20,000 chunks", 20_000 * PAGE, lambda p: make_database(p, 20_000), "million.db"),
        ]
    found = [
        ("files_1gb", "1 GB of files", GB, lambda p: make_files(p / "scans", GB), "scans"),
        (
            "million_chunks",
            "a million chunks: a database of 4.1 GB",
            1_000_000 * PAGE,
            lambda p: make_database(p, 1_000_000),
            "million.db",
        ),
        ("files_20gb", "20 GB of files", 20 * GB, lambda p: make_files(p / "scans", 20 * GB), "scans"),
    ]
    return found[:2] if chosen.skip_20gb else found


if __name__ == "__main__":
    main()
