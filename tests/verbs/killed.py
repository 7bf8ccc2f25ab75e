"""A process that backs up, forgets, prunes, copies, damages, repairs and changes keys until it is killed.

python -m tests.verbs.killed FOLDER SEED    FOLDER has `documents`, `repository`, `replica` and `state`

It prints a line each: `committed ID` when a backup has returned, `spoils NAME` before it damages a pack of the
repository that the replica has, `mended NAME` after it has repaired that.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import pharmabackup as pb
from pharmabackup import clock
from pharmabackup.engine import collection

PASSPHRASE = pb.Passphrase("correct horse battery staple")
SIZE = 60_000
VERBS = ("backup", "backup", "backup", "forget", "prune", "copy", "repair", "reseal", "replica")
MONTH_NS = 30 * 86400 * 10**9


def content(name: str, day: int) -> bytes:
    return random.Random(f"{name} {day}").randbytes(SIZE)


def expected(day: int) -> dict[str, bytes]:
    """What the folder holds on a day: three files that change in turn, and that day's and the day before's own."""
    found = {f"day-{number}": content("day", number) for number in (day - 1, day) if number >= 0}
    for place, name in enumerate("abc"):
        changed = max((number for number in range(day + 1) if number % 3 == place), default=0)
        found[name] = content(name, changed)
    return found


def fill(folder: Path, day: int) -> None:
    wanted = expected(day)
    for path in folder.iterdir():
        if path.name not in wanted:
            path.unlink()
    for name, data in wanted.items():
        path = folder / name
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)


def spoil(repository: Path, chance: random.Random) -> str:
    """One pack is lost, or a byte of it is another one."""
    path = chance.choice(sorted(path for path in (repository / "packs").rglob("*") if path.is_file()))
    print(f"spoils {path.name}", flush=True)
    if chance.random() < 0.5:
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[chance.randrange(len(data))] ^= 1
        path.chmod(0o600)
        path.write_bytes(data)
    return path.name


def work(root: Path, seed: int) -> None:
    """Never ends by itself."""
    chance = random.Random(seed)
    state = root / "state"
    with (
        pb.Repository.open(root / "repository", PASSPHRASE, state_dir=state) as repo,
        pb.Repository.open(root / "replica", PASSPHRASE, state_dir=state) as replica,
    ):
        day = max((int(snapshot.reason or 0) for snapshot in repo.snapshots()), default=0)
        print("ready", flush=True)
        while True:
            verb = chance.choice(VERBS)
            if verb == "backup":
                day += 1
                fill(root / "documents", day)
                snapshot = repo.backup([pb.Files(root / "documents")], reason=str(day)).datasets["documents"].snapshot
                assert snapshot is not None
                print(f"committed {snapshot.id}", flush=True)
            elif verb == "forget":
                repo.apply(repo.propose_forget({"*": pb.Keep(last=3)}))
            elif verb == "prune":
                repo.apply(repo.propose_prune())
            elif verb == "copy":
                repo.copy(replica)
            elif verb == "repair":
                repo.apply(repo.propose_prune())  # what is forgotten is gone: the replica need not have it
                repo.copy(replica)
                name = spoil(root / "repository", chance)
                repo.apply(repo.propose_repair(replicas=[replica]))
                print(f"mended {name}", flush=True)
            elif verb == "reseal":
                if len(repo._unlocked.roster.generations) < 5:
                    repo.rotate(reason="to see what happens")
                repo.apply(repo.propose_reseal())
            else:
                replica.apply(replica.propose_prune())


@contextmanager
def a_month_ahead() -> Iterator[None]:
    """What is forgotten may go at once."""
    real_now, real_storage = clock.now_ns, collection.storage_now
    with ExitStack() as patches:
        for module in ("verbs.prune", "verbs.reseal", "verbs.repair"):
            later = mock.patch(f"pharmabackup.{module}.storage_now", lambda of: real_storage(of) + MONTH_NS)
            patches.enter_context(later)
        for module in ("engine.history", "verbs.standing"):
            patches.enter_context(mock.patch(f"pharmabackup.{module}.now_ns", lambda: real_now() + MONTH_NS))
        yield


if __name__ == "__main__":
    with a_month_ahead():
        work(Path(sys.argv[1]), int(sys.argv[2]))
