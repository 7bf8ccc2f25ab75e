"""Memory per chunk and time per lookup of the index, at ten million chunks."""

import hashlib
import os
import random
import resource
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from answer import Answer, parser

GROUPS = 1 << 15
LOOKUPS = 100_000
PASSES = 5


class Candidate(Protocol):
    """An index: filled once from rows that come in order of their first 15 bits, then asked."""

    def build(self, groups: Iterator[list[tuple[bytes, bytes]]], count: int) -> None: ...

    def lookup(self, name: bytes) -> object | None: ...


class Dictionary:
    """The plain answer, for comparison."""

    def __init__(self, _folder: Path) -> None:
        self.rows: dict[bytes, bytes] = {}

    def build(self, groups: Iterator[list[tuple[bytes, bytes]]], count: int) -> None:  # noqa: ARG002
        for rows in groups:
            self.rows.update(rows)

    def lookup(self, name: bytes) -> object | None:
        return self.rows.get(name)


class RowFile:
    """pharmabackup's own: one sorted row file, as the local index has after loading and merging."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "rows")

    def build(self, groups: Iterator[list[tuple[bytes, bytes]]], count: int) -> None:
        from pharmabackup.engine.rowfile import write_run

        self.run, _ = write_run(self.path, ([name + place for name, place in rows] for rows in groups), count)
        self.lookup = self.run.get  # type: ignore[method-assign, assignment]

    def lookup(self, name: bytes) -> object | None:
        return self.run.get(name)


CANDIDATES: dict[str, Callable[[Path], Candidate]] = {"row file": RowFile, "dictionary": Dictionary}


def name_of(number: int, *, group: int) -> bytes:
    """A chunk's name: as good as random, but for its first 15 bits."""
    digest = hashlib.sha256(number.to_bytes(8, "big")).digest()
    return (group << 1 | digest[1] & 1).to_bytes(2, "big") + digest[2:]


def groups_of(count: int) -> Iterator[list[tuple[bytes, bytes]]]:
    """The rows, group by group: number n is in group n modulo 2^15."""
    for group in range(GROUPS):
        numbers = range(group, count, GROUPS)
        yield [(name_of(n, group=group), n.to_bytes(8, "big")) for n in numbers]


def measure(candidate: Candidate, count: int) -> dict[str, float]:
    before = resident()
    started = time.perf_counter()
    candidate.build(groups_of(count), count)
    built = time.perf_counter() - started
    some = random.Random(1)
    asked = [some.randrange(count) for _ in range(LOOKUPS)]
    present = [name_of(n, group=n % GROUPS) for n in asked]
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
    options.add_argument("--candidate", choices=list(CANDIDATES), default="row file")
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
