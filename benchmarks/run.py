"""Compare pharmabackup with restic and Borg over the same data: what `make bench` runs.

Takes hours and 30 GB of disk the first time: two simulated years are backed up by all tools, and kept for the next
time. --quick only proves that everything works.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import install
import killed
import report
import years
from data import Pharmacy, SmallFiles, require_generator
from measure import GIVEN, Failed, own_peak
from ours import Ours
from scenarios import SCENARIOS, Lab
from tools import Tool

HERE = Path(__file__).parent
ALONE = (
    "startup",
    "index",
    "memory",
    "profile_backup",
    "beside",
    "aged",
    "records",
    "audit",
    "slots",
    "planted",
    "names",
    "databases",
    "databases_mariadb",
    "databases_sqlite",
    "databases_beyond_memory",
    "databases_files",
    "followed",
)
MEASUREMENTS = {name: [f"{name}.py"] for name in ALONE} | {
    f"far-{place}": ["far.py", place] for place in ("s3", "sftp", "azure")
}
LONG = ("prune", "check-years", "resume")
NEEDS_PHARMACY = {"first-pharmacy", "day", "restore-pharmacy", "check", *LONG}


def main() -> int:
    options = arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    wanted = options.only or [*SCENARIOS, *LONG, *MEASUREMENTS]
    failures: list[str] = []
    kinds = tools(options, failures)
    if not kinds:
        print("There is no tool to measure.", file=sys.stderr)
        return 1
    small, days = (3_000, 3) if options.quick else (64_000, options.days)
    profile = "XS" if options.quick else "B"
    lab = Lab(
        options.work,
        kinds,
        Pharmacy(options.work, profile=profile, given=options.pharmacy),
        SmallFiles(options.work, count=small),
        rounds=1 if options.quick else options.rounds,
        days=days,
        pause=0.1 if options.quick else 1.0,
    )
    two_years = years.Years(options.work / ("years-quick" if options.quick else "years"), quick=options.quick)
    scenarios: dict[str, Callable[[Lab], None]] = {
        **SCENARIOS,
        "prune": lambda lab: years.prune(lab, two_years),
        "check-years": lambda lab: years.check_many(lab, two_years),
        "resume": killed.resume,
    }
    lab.clear()
    try:
        lab.rehearse()
        if NEEDS_PHARMACY & set(wanted):
            try:
                require_generator()
            except Failed as error:
                failures.append(str(error))
                wanted = [name for name in wanted if name not in NEEDS_PHARMACY]
        for name in wanted:
            if name in scenarios:
                print(f"\n{name}", flush=True)
                try:
                    scenarios[name](lab)
                except Failed as error:
                    failures.append(f"{name}: {error}")
    finally:
        if not options.keep:
            lab.clear()
    results = report.dated(
        {
            "tools": {kind.name: {"version": kind.version(), "settings": kind.settings} for kind in kinds},
            "data": lab.facts,
            "conditions": [*conditions(lab), years.condition(two_years)],
            "figures": lab.figures,
            "measurements": measurements(options, kinds, wanted, failures),
        }
    )
    (options.work / "results.json").write_text(json.dumps(results, indent=1))
    report.show(
        [report.comparison(results["figures"]), report.own_limits(results), report.memory(results["figures"])]
    )
    if options.publish or not (options.quick or options.only or failures or options.tools):
        report.publish(report.merge(report.load(), results) if options.only else results)
        print(f"written: {report.PAGE.relative_to(report.ROOT)}")
    if options.quick:
        print("This was quick: it shows that everything runs. The figures say nothing about the goals.")
    for failure in failures:
        lines = failure.strip().splitlines()
        print("left out:", *dict.fromkeys((lines[0], lines[-1])), sep="\n  ", file=sys.stderr)
    return 1 if failures else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    work = os.environ.get("PHARMABACKUP_BENCH") or Path(tempfile.gettempdir()) / "pharmabackup-bench"
    parser.add_argument("--quick", action="store_true", help="little data, one round, nothing published")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each scenario (3)")
    parser.add_argument("--days", type=int, default=30, help="trading days (30)")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=[*SCENARIOS, *LONG, *MEASUREMENTS], help="only these"
    )
    parser.add_argument("--tools", nargs="+", metavar="TOOL", help="only these tools")
    parser.add_argument("--pharmacy", type=Path, metavar="DIR", help="an existing sample pharmacy; it is copied")
    parser.add_argument("--work", type=Path, default=Path(work), help="folder for data and repositories")
    parser.add_argument("--keep", action="store_true", help="leave the repositories in the work folder")
    parser.add_argument("--publish", action="store_true", help="write docs/performance.md also after --only")
    return parser.parse_args()


def tools(options: argparse.Namespace, failures: list[str]) -> list[type[Tool]]:
    """Ours and the peers, as far as they run here."""
    asked = {name.lower() for name in options.tools or [Ours.name, *(peer.name for peer in install.PEERS)]}
    found: list[type[Tool]] = []
    prepared: dict[type[Tool], Callable[[Path], None]] = {Ours: install.ours, **install.PEERS}
    for kind, prepare in prepared.items():
        if kind.name.lower() not in asked:
            continue
        try:
            prepare(options.work)
            print(f"{kind.name} {kind.version()}", flush=True)
            found.append(kind)
        except (Failed, OSError) as error:
            failures.append(f"{kind.name}: {str(error).splitlines()[-1]}")
    return found


def conditions(lab: Lab) -> list[str]:
    """What a reader has to know to believe the figures."""
    rounds = "one round" if lab.rounds == 1 else f"{lab.rounds} rounds"
    return [
        f"Every run is a whole process, its start included; {rounds}, the tools in turn; the {lab.days} "
        "trading days are one backup a day for each tool. A rehearsal is discarded. Our modules are compiled "
        "before, as those of an installed package are. Between runs all is synced.",
        "Before a backup with a warm cache every source file is read once, because Borg takes what it has read out "
        "of the cache; else the tool after it would read from the disk.",
        "All tools encrypt and compress, write to the same local disk and keep their caches on it. A cold cache is "
        "one that the system was told to empty, the programs themselves included.",
        f"The host of a virtual machine takes back memory that is free; {GIVEN >> 30} GiB at most are used and freed "
        "before each run, so that none pays for that.",
        f"Restores go into {lab.targets.kind}. Restores and checks find the repository in the page cache: it is read "
        "once before. After a restore every byte is compared with the source, except the counters that SQLite raises "
        "in the header of a database it copies. A repository's size is the sum of its files' sizes.",
        f"No process can be seen to use less memory than the harness that starts it: {own_peak() / 1e6:.0f} MB.",
    ]


def measurements(
    options: argparse.Namespace, kinds: list[type[Tool]], wanted: list[str], failures: list[str]
) -> dict[str, object]:
    """The measurements of pharmabackup alone, each in a process of its own."""
    found: dict[str, object] = {}
    for name in MEASUREMENTS:
        if name not in wanted or Ours not in kinds:
            continue
        print(f"\n{name}", flush=True)
        answer = options.work / f"{name}.json"
        answer.unlink(missing_ok=True)
        script, *which = MEASUREMENTS[name]
        command = [sys.executable, HERE / script, *which, "--json", answer, "--work", options.work / name]
        done = subprocess.run([*map(str, command), *(["--quick"] if options.quick else [])], check=False)
        if done.returncode == 0 and answer.exists():
            found[name] = json.loads(answer.read_text())
        else:
            failures.append(f"{name} ended with status {done.returncode}")
    return found


if __name__ == "__main__":
    sys.exit(main())
