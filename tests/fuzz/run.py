"""Fuzz the parsers of the storage format, guided by coverage: python -m tests.fuzz.run [TARGET ...] [--seconds N].

One process a target, one after the other. What was learnt is kept in build/fuzz, so that the next run goes on there.
Exits with 1 when something was found: the input is saved, and printed as hexadecimal.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INPUT_MAX = 4096
MEMORY_MAX = 64 << 20  # more than this for one input of 4 KiB is a finding
CPU_MAX_S = 2.0  # so is this
PROCESS_MIB_MAX = 1024  # what libFuzzer stops at
HANGS_S = 180  # of wall-clock time, so that a machine that sleeps for a while is no finding
QUIET = ("#", "INFO:", "WARNING:")  # lines of the fuzzer's that say nothing about a finding
NOT_INSTALLED = (
    "The package atheris is not installed. `make fuzz` installs it where it has a wheel: "
    "Linux on x86-64 with Python 3.11 to 3.13."
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=str(__doc__).splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="which; all when none is named")
    parser.add_argument("--seconds", type=int, default=20, help="for each target (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "fuzz", help="for what is learnt and found")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if importlib.util.find_spec("atheris") is None:
        print(NOT_INSTALLED, file=sys.stderr)
        return 2
    if given.inside:
        fuzz(given.targets[0], given.seconds, given.folder)
    from tests.fuzz.targets import TARGETS

    unknown = set(given.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}. There are: {', '.join(TARGETS)}")
    found = [name for name in given.targets or TARGETS if not run(name, TARGETS[name].seeds, given)]
    print(f"{len(found)} of {len(given.targets or TARGETS)} targets found something: {', '.join(found) or 'none'}")
    return 1 if found else 0


def run(name: str, seeds: tuple[bytes, ...], given: argparse.Namespace) -> bool:
    """Fuzz one target in a process of its own; whether nothing was found."""
    corpus, findings = given.folder.resolve() / name, given.folder.resolve() / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (corpus / hashlib.sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
    before, began = set(findings.iterdir()), time.monotonic()
    command = [sys.executable, "-m", "tests.fuzz.run", name, "--inside", f"--seconds={given.seconds}"]
    command.append(f"--folder={given.folder.resolve()}")
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
    output = process.stdout + process.stderr
    executed = re.findall(r"stat::number_of_executed_units:\s*(\d+)", output) or ["?"]
    verdict = "nothing found" if process.returncode == 0 else "FOUND"
    print(f"{name:15} {executed[-1]:>10} inputs in {time.monotonic() - began:5.1f} s: {verdict}", flush=True)
    if process.returncode == 0:
        return True
    print("\n".join(line for line in output.splitlines() if not line.startswith(QUIET))[-6000:])
    for path in sorted(set(findings.iterdir()) - before):
        print(f"The input is in {path}:\n{path.read_bytes().hex()}", flush=True)
    return False


def fuzz(name: str, seconds: int, folder: Path) -> None:
    """Fuzz one target in this process, and end it."""
    import atheris

    with atheris.instrument_imports(include=["pharmabackup"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]

    def mutate(data: bytes) -> bytes:
        return atheris.Mutate(data, INPUT_MAX)

    def change(data: bytes, size_max: int, seed: int) -> bytes:
        return target.change(data, random.Random(seed), mutate)[:size_max]

    options = [
        f"-max_total_time={seconds}",
        f"-max_len={INPUT_MAX}",
        f"-timeout={HANGS_S}",
        f"-rss_limit_mb={PROCESS_MIB_MAX}",
        f"-artifact_prefix={folder / 'findings'}/{name}-",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(folder / name)], bounded(target), custom_mutator=change)
    atheris.Fuzz()


def bounded(target: Callable[[bytes], object]) -> Callable[[bytes], None]:
    """The target, which may take so much memory and time for one input and no more."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024

    def checked(data: bytes) -> None:
        peak, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
        target(data)
        took = time.thread_time() - began
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * unit
        assert took <= CPU_MAX_S, f"this input took {took:.1f} s"
        assert grown <= MEMORY_MAX, f"this input took {grown >> 20} MiB of memory"

    return checked


if __name__ == "__main__":
    sys.exit(main())
