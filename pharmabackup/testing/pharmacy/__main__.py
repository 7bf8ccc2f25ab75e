"""The command line: python -m pharmabackup.testing.pharmacy make|day|live|check TARGET."""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path

from . import PROFILES, inspect, live, make, trade


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; 1 if a check failed, 2 if the command cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m pharmabackup.testing.pharmacy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="make a pharmacy")
    making.add_argument("--profile", choices=sorted(PROFILES), default="XS")
    making.add_argument("--seed", type=int, default=1)
    passing = commands.add_parser("day", help="let trading days pass")
    passing.add_argument("--days", type=int, default=1)
    busy = commands.add_parser("live", help="trade without a break for some time")
    busy.add_argument("--seconds", type=float, default=10.0)
    busy.add_argument("--pause", type=float, default=0.0, help="seconds to wait after each transaction")
    checking = commands.add_parser("check", help="check a pharmacy's invariants")
    for command in (making, passing, busy, checking):
        command.add_argument("target", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.command == "make":
            make(options.target, profile=options.profile, seed=options.seed)
        elif options.command == "day":
            trade(options.target, options.days)
        elif options.command == "live":
            print(f"{_live(options.target, options.seconds, options.pause)} transactions")
        else:
            report = inspect(options.target)
            print("\n".join(report.lines))
            return 1 if report.problems else 0
    except (FileExistsError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _live(target: Path, seconds: float, pause: float) -> int:
    stop = threading.Event()
    timer = threading.Timer(seconds, stop.set)
    timer.start()
    try:
        return live(target, stop, pause=pause)
    finally:
        timer.cancel()


if __name__ == "__main__":
    sys.exit(main())
