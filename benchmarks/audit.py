"""What an audit log of a year costs who reads it: 35,000 records, on a machine that has verified them and on another.

Peers keep no such log, so that there is nothing to compare with.
"""

import hashlib
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from answer import Answer, parser
from measure import Run, give_memory, settle, warm
from ours import Ours
from tools import PASSPHRASE

RECORDS, RECORDS_QUICK = 35_000, 400  # of a device that backs up every 15 minutes, in a year
LINE_S = 0.01  # how long each request takes on a simulated line


def fill(repository: Path, state: Path, count: int) -> None:
    """Give a repository's owner so many records, as if that many backups had been made."""
    import pharmabackup as pb
    from pharmabackup.engine import auditlocal
    from pharmabackup.format.transaction import Audit
    from pharmabackup.format.wire import Kind

    with pb.Repository.open(repository, pb.Passphrase(PASSPHRASE), state_dir=state) as repo:
        repo.record("first", {})
        unlocked = repo._unlocked
        slot = unlocked.keyring.slot.hex()
        folder = repository / "audit" / slot
        first = max(int(path.name) for path in folder.iterdir())
        previous = hashlib.sha256((folder / str(first)).read_bytes()).digest()
        for number in range(first + 1, count):
            facts = {"state": "ok", "seconds": 12, "bytes": 1 << 30, "files": 4711, "datasets": 2, "complete": 2}
            named = {"snapshots": [os.urandom(16).hex(), os.urandom(16).hex()]}
            record = Audit(
                number, previous, time.time_ns(), "Sam Okafor", "backup", "done", "", None, {**facts, **named}
            )
            data = unlocked.seal(Kind.AUDIT, f"audit/{slot}/{number}", record)
            (folder / str(number)).write_bytes(data)
            previous = hashlib.sha256(data).digest()
        auditlocal.remember(unlocked, slot, auditlocal.Pin(count - 1, previous), ())


def check_over_a_line(repository: Path, state: Path) -> None:
    """A check of structure where each request for an object takes `LINE_S`; listings take what they take."""
    import pharmabackup as pb
    from pharmabackup.storage.local import LocalStorage

    for name in ("get", "get_range", "info"):
        setattr(LocalStorage, name, _late(getattr(LocalStorage, name)))
    with pb.Repository.open(repository, pb.Passphrase(PASSPHRASE), state_dir=state) as repo:
        began = time.perf_counter()
        assert repo.check().state == "ok"
        print(time.perf_counter() - began)


def _late(real: Callable[..., object]) -> Callable[..., object]:
    def late(*given: object, **named: object) -> object:
        time.sleep(LINE_S)
        return real(*given, **named)

    return late


def main() -> None:
    options = parser(__doc__).parse_args()
    count, rounds = (RECORDS_QUICK, 1) if options.quick else (RECORDS, 5)
    shutil.rmtree(options.work, ignore_errors=True)
    tool = Ours(options.work)
    tool.init()
    state = tool.home / "state"
    tool.run([sys.executable, __file__, "fill", tool.repository, state, str(count)])

    def forget() -> None:
        shutil.rmtree(state)
        state.mkdir()

    def line() -> Run:
        cost = tool.run([sys.executable, __file__, "line", tool.repository, state])
        return Run(float((tool.home / "log").read_text()), cost.cpu, cost.rss)

    cases: dict[str, tuple[Callable[[], None], Callable[[], Run], int]] = {
        "check of structure, without memory": (forget, tool.check_structure, rounds),
        "check of structure, with memory": (lambda: None, tool.check_structure, rounds),
        "`audit verify`": (lambda: None, tool.audit_verify, rounds),
        "`audit`, all records": (lambda: None, tool.audit, rounds),
        "check, without memory, 10 ms a request": (forget, line, 1),
        "check, with memory, 10 ms a request": (lambda: None, line, rounds),
    }
    figures: dict[str, float] = {"records": count}
    table = [["", "seconds", "least", "greatest", "peak memory, MB"]]
    for name, (prepare, job, times) in cases.items():
        runs: list[Run] = []
        for _ in range(times):
            prepare()
            warm([tool.repository])
            settle(0.5)
            give_memory()
            runs.append(job())
        seconds = [cost.seconds for cost in runs]
        middle = statistics.median(seconds)
        figures[name.replace("`", "")] = middle
        spread = (f"{value:.2f}" for value in (middle, min(seconds), max(seconds)))
        table.append([name, *spread, f"{max(cost.rss for cost in runs) / 1e6:.0f}"])
        print(f"{name}: {middle:.2f} s", flush=True)
    remark = (
        f"{count:,} records of one slot, as a device writes in a year that backs up every 15 minutes. Each run is a "
        "whole process, the repository in the page cache; over a simulated line the check alone counts, and listings "
        "cost nothing. Memory: what this machine has verified, in its state folder. Peers keep no such log."
    )
    Answer("Audit log of a year", figures, table, remark).give(options)
    shutil.rmtree(options.work)


if __name__ == "__main__":
    if sys.argv[1:2] == ["fill"]:  # in processes of their own, so that the one that measures stays small
        fill(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    elif sys.argv[1:2] == ["line"]:
        check_over_a_line(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
