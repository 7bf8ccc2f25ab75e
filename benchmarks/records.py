"""What its audit record adds to each verb: the same verb with its records and without, in turn, in one process."""

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from answer import Answer, parser
from measure import settle
from tools import PASSPHRASE

FILES, FILE_BYTES = 20, 20_000


def main() -> None:
    options = parser(__doc__).parse_args()
    rounds = 3 if options.quick else 31
    shutil.rmtree(options.work, ignore_errors=True)
    folder = options.work / "sample"
    folder.mkdir(parents=True)
    for number in range(FILES):
        (folder / f"{number}.txt").write_text(f"label {number}\n" * (FILE_BYTES // 10))
    found = measure(options.work, folder, rounds)
    figures: dict[str, float] = {}
    table = [["milliseconds", "with", "without", "difference", "records"]]
    for verb, (records, with_them, without) in found.items():
        middle, bare = statistics.median(with_them) * 1e3, statistics.median(without) * 1e3
        figures[f"{verb}_ms"] = middle - bare
        shown = f"{bare:.1f}" if bare else "–"
        table.append([verb, f"{middle:.1f}", shown, f"{middle - bare:.1f}", str(records)])
    remark = (
        f"Medians of {rounds} of each in turn, on an opened repository with {FILES} small files that do not change. "
        "Without: nothing is recorded. Each record is a file that is made durable and read back. Peers keep no log."
    )
    Answer("Audit records, a verb", figures, table, remark).give(options)
    shutil.rmtree(options.work)


def measure(work: Path, folder: Path, rounds: int) -> dict[str, tuple[int, list[float], list[float]]]:
    """For each verb how many records it leaves, and its seconds with and without them."""
    import pharmabackup as pb
    from pharmabackup.engine.audit import Written

    nothing = Written(0, kept=True, waiting=0, why="")
    unrecorded = mock.patch("pharmabackup.verbs.journal.write", lambda *_, **__: nothing)
    found: dict[str, tuple[int, list[float], list[float]]] = {}
    with pb.Repository.create(work / "repository", pb.Passphrase(PASSPHRASE), state_dir=work / "state") as repo:

        def restore() -> None:
            shutil.rmtree(work / "out", ignore_errors=True)
            repo.restore(work / "out")

        verbs: dict[str, Callable[[], object]] = {
            "record": lambda: repo.record("trial", {"rows": 1}),
            "backup": lambda: repo.backup([pb.Files(folder)]),
            "restore": restore,
            "check": repo.check,
            "hold": lambda: repo.hold(repo.snapshot(), reason="a dispute"),
        }
        for name, verb in verbs.items():
            before = _records(work)
            verb()
            records, with_them, without = _records(work) - before, list[float](), list[float]()
            settle(0.2)
            for _ in range(rounds):
                with_them.append(_seconds(verb))
                if name != "record":
                    with unrecorded:
                        without.append(_seconds(verb))
            found[name] = records, with_them, without or [0.0]
    return found


def _records(work: Path) -> int:
    return sum(1 for path in (work / "repository" / "audit").rglob("*") if path.is_file())


def _seconds(verb: Callable[[], object]) -> float:
    began = time.perf_counter()
    verb()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
