"""What keyrings that somebody has put there cost whose slot they name: each is read and tried at every opening.

Whoever may write to the storage can seal any number to a slot's public key, which the list of keys shows
(docs/security.md).
"""

import os
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from answer import Answer, parser
from measure import settle

MANY, MANY_QUICK, LARGE = 1000, 10, 10
GENERATIONS = 1000  # of which a keyring can have a key each


@dataclass(frozen=True)
class Opened:
    seconds: float  # the median
    requests: int
    size: int  # bytes of one that was planted


def main() -> None:
    options = parser(__doc__).parse_args()
    rounds, many = (3, MANY_QUICK) if options.quick else (15, MANY)
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    cases = {"none": (0, 0), "small": (many, 1), "with as many keys as it can hold": (LARGE, GENERATIONS)}
    found = {name: measure(options.work / name, *case, rounds) for name, case in cases.items()}
    bare = found["none"]
    figures: dict[str, float] = {}
    table = [["planted", "keyrings", "kB each", "opening, ms", "ms each", "requests"]]
    for name, (count, _) in cases.items():
        one = found[name]
        figures[f"{name}, open"], figures[f"{name}, requests"] = one.seconds, one.requests
        each = (one.seconds - bare.seconds) / count if count else 0.0
        figures[f"{name}, each"] = each
        shown = (f"{one.size / 1e3:.1f}", f"{each * 1e3:.2f}") if count else ("–", "–")
        table.append([name, str(count), shown[0], f"{one.seconds * 1e3:.0f}", shown[1], str(one.requests)])
    remark = (
        f"Medians of {rounds} openings by a key file, whose slot they name, in one process and on a local disk: "
        "what is planted is sealed to that slot's public key and opens. Each: what an opening takes longer, by their "
        "number. Requests: objects that are read."
    )
    Answer("Planted keyrings", figures, table, remark).give(options)
    shutil.rmtree(options.work)


def measure(work: Path, count: int, keys: int, rounds: int) -> Opened:
    import pharmabackup as pb

    work.mkdir()
    key = pb.KeyFile.create(work / "key")
    with pb.Repository.create(work / "repository", key, state_dir=work / "state"):
        pass
    size = plant(work, key, count, keys)
    seconds = list[float]()
    for _ in range(rounds):
        settle(0.1)
        began = time.perf_counter()
        with pb.Repository.open(work / "repository", key, state_dir=work / "state"):
            seconds.append(time.perf_counter() - began)
    with counted() as requests, pb.Repository.open(work / "repository", key, state_dir=work / "state"):
        opened = len(requests)
    return Opened(statistics.median(seconds), opened, size)


def plant(work: Path, key: object, count: int, keys: int) -> int:
    """Keyrings of made-up keys, sealed to the slot: the bytes of one."""
    import pharmabackup as pb
    from pharmabackup import ids
    from pharmabackup.engine.keyrings import seal_keyring
    from pharmabackup.format.keys import SLOTS_MAX, CatalogueKey, Keyring, NamingKey, ReaderKey

    assert isinstance(key, pb.KeyFile)
    with pb.Repository.open(work / "repository", key, state_dir=work / "state") as repo:
        unlocked, own = repo._unlocked, repo._unlocked.keyring
    catalogue = tuple(CatalogueKey(number, os.urandom(32)) for number in range(keys))
    readers = tuple(ReaderKey(number, os.urandom(96)) for number in range(keys if keys > 1 else 0))
    naming = tuple(NamingKey(os.urandom(16), os.urandom(32)) for _ in range(SLOTS_MAX if keys > 1 else 0))
    made = Keyring(own.repository, own.slot, own.role, None, naming, catalogue, own.block_names, readers)
    size = 0
    for number in range(1, count + 1):
        data = seal_keyring(made, number, unlocked.slot.recipient)
        (work / "repository" / ids.keyring_name(own.slot, number)).write_bytes(data)
        size = len(data)
    return size


@contextmanager
def counted() -> Iterator[list[str]]:
    """The objects that are asked for meanwhile."""
    from pharmabackup.storage.local import LocalStorage

    asked, real = list[str](), LocalStorage.get

    def get(self: LocalStorage, name: str, *, limit: int) -> bytes:
        asked.append(name)
        return real(self, name, limit=limit)

    with mock.patch.object(LocalStorage, "get", get):
        yield asked


if __name__ == "__main__":
    main()
