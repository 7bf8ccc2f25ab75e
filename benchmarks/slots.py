"""What it takes to enrol somebody, to make new keys for all, and to revoke somebody, with 2 slots and with 20."""

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from answer import Answer, parser
from measure import settle
from tools import PASSPHRASE

MANY, MANY_QUICK = 20, 5


def main() -> None:
    options = parser(__doc__).parse_args()
    many, rounds = (MANY_QUICK, 1) if options.quick else (MANY, 7)
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    found = {slots: measure(options.work / str(slots), slots, rounds) for slots in (2, many)}
    figures = {f"{deed}_{slots}": middle for slots, deeds in found.items() for deed, middle in deeds.items()}
    table = [["milliseconds", *(f"{slots} slots" for slots in found)]]
    for deed in ("enrol", "rotate", "revoke"):
        table.append([deed, *(f"{deeds[deed] * 1e3:.0f}" for deeds in found.values())])
    remark = (
        f"Medians of {rounds}, on a repository that is open; slots have key files but the owner's. By a rotation, "
        "with which a revocation ends, everybody gets a keyring. Objects are made durable and read back. Peers have "
        "one key for all: one more passphrase for restic is in the first table, and it has nothing like the rest."
    )
    Answer("Slots", figures, table, remark).give(options)
    shutil.rmtree(options.work)


def measure(work: Path, slots: int, rounds: int) -> dict[str, float]:
    """Seconds for each deed."""
    import pharmabackup as pb

    work.mkdir()
    seconds: dict[str, list[float]] = {}

    def timed(name: str, deed: Callable[[], object]) -> None:
        settle(0.1)
        began = time.perf_counter()
        deed()
        seconds.setdefault(name, []).append(time.perf_counter() - began)

    with pb.Repository.create(work / "repository", pb.Passphrase(PASSPHRASE), state_dir=work / "state") as repo:

        def enrol(name: str) -> None:
            recipient = pb.KeyFile.create(work / name).recipient
            timed("enrol", lambda: repo.enrol("device", recipient, name=name))

        for number in range(slots - 1):
            enrol(f"till-{number}")
        seconds.clear()
        for number in range(rounds):
            enrol(f"new-{number}")
            timed("revoke", lambda name=f"new-{number}": repo.revoke(name, reason="measured"))  # type: ignore[misc]
            timed("rotate", lambda: repo.rotate(reason="measured"))
    return {name: statistics.median(found) for name, found in seconds.items()}


if __name__ == "__main__":
    main()
