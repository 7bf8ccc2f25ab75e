"""python -m tests.benchmarks.far [MILLISECONDS]   requests and seconds where each takes that long (default 50)

The storage is this process's memory behind `DistantStorage`: no line has a limit on bytes, so that what is seen is
how many requests wait for one another. Lanes: how many may be under way.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from unittest import mock

import pharmabackup as pb
from pharmabackup.engine import opening
from pharmabackup.storage.memory import MemoryStorage
from tests.benchmarks.distant import DistantStorage

PASSPHRASE = pb.Passphrase("correct horse battery staple")
FILES, FILE_SIZE, ROWS, ROW_SIZE = 2000, 100_000, 3000, 3000  # 209 MB that do not compress
LANES = 8


def main(milliseconds: float) -> None:
    print(f"| {milliseconds:g} ms | 1 lane: requests | seconds | {LANES} lanes: requests | seconds |")
    print("|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        sources = _pharmacy(Path(folder))
        columns = [_run(Path(folder), sources, milliseconds / 1000, lanes) for lanes in (1, LANES)]
    for name in columns[0]:
        figures = " | ".join(f"{count} | {seconds:.1f}" for count, seconds in (column[name] for column in columns))
        print(f"| {name} | {figures} |")


def _pharmacy(root: Path) -> list[pb.Source]:
    (root / "documents").mkdir()
    for number in range(FILES):
        (root / "documents" / str(number)).write_bytes(os.urandom(FILE_SIZE))
    with closing(sqlite3.connect(root / "shop.db")) as database, database:
        database.execute("CREATE TABLE sales (what BLOB)")
        database.executemany("INSERT INTO sales VALUES (randomblob(?))", [(ROW_SIZE,)] * ROWS)
    return [pb.SQLite(root / "shop.db"), pb.Files(root / "documents")]


def _run(root: Path, sources: list[pb.Source], seconds: float, lanes: int) -> dict[str, tuple[int, float]]:
    storage, found = DistantStorage(MemoryStorage(str(lanes)), seconds=seconds, lanes=lanes), {}
    state = root / f"state-{lanes}"

    def step(name: str, what: Callable[[], object]) -> None:
        storage.requests.clear()
        began = time.monotonic()
        what()
        found[name] = len(storage.requests), time.monotonic() - began

    with mock.patch.object(opening, "connect", lambda *_, **__: storage):
        repo = pb.Repository.create("memory://far", PASSPHRASE, state_dir=state)
        step("first backup", lambda: repo.backup(sources))
        repo.backup(sources)
        step("nothing changed", lambda: repo.backup(sources))
        storage.answers = True
        step("the same, of writes the storage answers the checksum", lambda: repo.backup(sources))
        repo.close()
        opened: list[pb.Repository] = []
        step("open", lambda: opened.append(pb.Repository.open("memory://far", PASSPHRASE, state_dir=state)))
        step("restore of all", lambda: opened[0].restore(root / f"out-{lanes}"))
        step("check of all data", lambda: opened[0].check(read_data=1.0))
        opened[0].close()
    return found


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 50)
