"""Memory per chunk and time per lookup of the index, at ten million chunks."""

import os
import random
import resource
import shutil
import statistics
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

from answer import Answer, parser

GROUPS = 1 << 15
CHUNKS_PER_BLOCK = 256
LOOKUPS = 100_000
PASSES = 5


class Candidate(Protocol):
    """An index: filled once with the chunks number 0 to `count`, then asked for their names."""

    def build(self, count: int) -> None: ...

    def lookup(self, name: bytes) -> object | None: ...


class OurIndex:
    """pharmabackup's own, filled like one that loads its repository's segments: chunk by chunk, with its merges."""

    def __init__(self, folder: Path) -> None:
        from pharmabackup.engine.index import Index

        # Nothing but its folder is asked of the repository while chunks are put in and looked up.
        self.index = Index(SimpleNamespace(state=folder))  # type: ignore[arg-type]

    def build(self, count: int) -> None:
        put, reserve = self.index.put, self.index.blocks.reserve
        for number in range(count):
            block, ordinal = divmod(number, CHUNKS_PER_BLOCK)
            if ordinal == 0:
                reserve()
            put(name_of(number), block, ordinal)
        self.lookup = self.index.find  # type: ignore[method-assign]

    def lookup(self, name: bytes) -> object | None:
        return self.index.find(name)


class RowFile:
    """One sorted row file, as the index has after merging all."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "rows")

    def build(self, count: int) -> None:
        from pharmabackup.engine.rowfile import write_run

        groups = ([name_of(n) + n.to_bytes(8, "big") for n in range(group, count, GROUPS)] for group in range(GROUPS))
        self.run = write_run(self.path, groups, 15, count)
        self.lookup = self.run.get  # type: ignore[method-assign, assignment]

    def lookup(self, name: bytes) -> object | None:
        return self.run.get(name)


class Dictionary:
    """The plain answer, for comparison."""

    def __init__(self, _folder: Path) -> None:
        self.rows: dict[bytes, int] = {}

    def build(self, count: int) -> None:
        self.rows = {name_of(number): number for number in range(count)}

    def lookup(self, name: bytes) -> object | None:
        return self.rows.get(name)


CANDIDATES: dict[str, Callable[[Path], Candidate]] = {
    "index": OurIndex,
    "row file": RowFile,
    "dictionary": Dictionary,
}


def name_of(number: int) -> bytes:
    """A chunk's name: as good as random, but for its first 15 bits, which are the number's last."""
    digest = sha256(number.to_bytes(8, "big")).digest()
    return (number % GROUPS << 1 | digest[1] & 1).to_bytes(2, "big") + digest[2:]


def measure(candidate: Candidate, count: int) -> dict[str, float]:
    before = resident()
    started = time.perf_counter()
    candidate.build(count)
    built = time.perf_counter() - started
    some = random.Random(1)
    asked = [some.randrange(count) for _ in range(LOOKUPS)]
    present = [name_of(n) for n in asked]
    absent = [some.randbytes(32) for _ in range(LOOKUPS)]
    hit, miss = timed(candidate, present), timed(candidate, absent)
    if any(candidate.lookup(name) is None for name in present) or any(map(candidate.lookup, absent)):
        raise SystemExit("The index gives wrong answers.")
    del asked, present, absent
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "bytes_per_chunk": (resident() - before) / count,
        "peak_bytes_per_chunk": (peak - before) / count,
        "hit_us": hit,
        "miss_us": miss,
        "lookup_us": max(hit, miss),
        "build_s": built,
    }


def timed(candidate: Candidate, names: list[bytes]) -> float:
    """Microseconds a lookup: the median of some passes, the loop included."""
    passes = []
    for _ in range(PASSES):
        started = time.perf_counter()
        for name in names:
            candidate.lookup(name)
        passes.append(time.perf_counter() - started)
    return statistics.median(passes) / len(names) * 1e6


def resident() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--count", type=int, help="chunks (10 million; --quick: 1 million)")
    options.add_argument("--candidate", choices=list(CANDIDATES), default="index")
    chosen = options.parse_args()
    count = chosen.count or (1_000_000 if chosen.quick else 10_000_000)
    shutil.rmtree(chosen.work, ignore_errors=True)
    chosen.work.mkdir(parents=True)
    found = measure(CANDIDATES[chosen.candidate](chosen.work), count)
    table = [
        ["", "chunks", "bytes a chunk", "at most while building", "hit, µs", "miss, µs", "build, s"],
        [
            chosen.candidate,
            f"{count:,}",
            f"{found['bytes_per_chunk']:.2f}",
            f"{found['peak_bytes_per_chunk']:.2f}",
            f"{found['hit_us']:.2f}",
            f"{found['miss_us']:.2f}",
            f"{found['build_s']:.1f}",
        ],
    ]
    remark = (
        f"Memory is what the process has resident more than before; a lookup is one of {LOOKUPS:,} random ones, the "
        "row file in the page cache. Building includes making the names."
    )
    Answer("Index", found, table, remark).give(chosen)
    shutil.rmtree(chosen.work)


if __name__ == "__main__":
    main()
