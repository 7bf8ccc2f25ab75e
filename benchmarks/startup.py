"""How long `import pharmabackup` and `pharmabackup snapshots` take: the median of many fresh processes."""

import importlib.util
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from answer import Answer, parser
from measure import run
from ours import DRIVER, Ours
from tools import Source


def main() -> None:
    options = parser(__doc__).parse_args()
    repeats = 7 if options.quick else 31
    shutil.rmtree(options.work, ignore_errors=True)
    tool = Ours(options.work)
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder, "sample")
        sample.mkdir()
        for number in range(50):
            (sample / f"{number}.txt").write_text(f"label {number}\n" * 500)
        tool.init()
        for _ in range(5):
            tool.backup(Source(Path(folder), ("sample",)))
    if importlib.util.find_spec("pharmabackup.__main__"):
        snapshots: list[str | Path] = [sys.executable, "-m", "pharmabackup", "-r", tool.repository, "snapshots"]
    else:
        snapshots = [sys.executable, DRIVER, "snapshots", tool.repository]
    commands: dict[str, list[str | Path]] = {
        "bare": [sys.executable, "-c", "pass"],
        "import": [sys.executable, "-c", "import pharmabackup"],
        "snapshots": snapshots,
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(repeats + 1):
        for name, command in commands.items():
            cost = tool.run(command)
            if turn:  # the first turn only fills the caches
                seconds[name].append(cost.seconds)
    middle = {name: statistics.median(found) * 1e3 for name, found in seconds.items()}
    table = [["milliseconds", "median", "least", "greatest"]]
    for name, found in seconds.items():
        table.append([name, *(f"{value * 1e3:.0f}" for value in (statistics.median(found), min(found), max(found)))])
    peak = run(commands["import"], log=options.work / "log").rss
    figures = {
        "import_ms": middle["import"] - middle["bare"],
        "snapshots_ms": middle["snapshots"],
        "import_rss_mb": peak / 1e6,
    }
    remark = (
        f"Median of {repeats} fresh processes in turn. The import counts without bare Python; `snapshots` is a whole "
        "process with the interpreter's start, the key derivation and five snapshots to read. A process that only "
        f"imports pharmabackup takes {peak / 1e6:.0f} MB."
    )
    Answer("Start", figures, table, remark).give(options)
    shutil.rmtree(options.work)


if __name__ == "__main__":
    main()
