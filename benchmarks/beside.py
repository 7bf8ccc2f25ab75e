"""The throughput of a writer while a collection runs in another process, against that of the same writer alone.

The collection moves gigabytes: half of every pack is dead. It begins before the writer and ends after it, or the
figure does not count. Peers lock the repository; what their writers say is told.
"""

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import install
from answer import Answer, parser
from data import SmallFiles
from measure import Failed, Run, give_memory, run, settle, usage_of, warm
from ours import DRIVER, Ours
from tools import Borg, Restic, Source, Tool

FILE_BYTES = 8_000_000  # several blocks: only blocks of which nothing is needed go
LOOK_S = 0.01
PATIENCE_S = 120
NICE = ["nice", "-n", "19"]


def make_garbage(folder: Path, tool: Tool, megabytes: int) -> None:
    """Back up files, take every second one away, back up again: of each pack half is needed by the second alone."""
    source = Source(folder, ("collected",))
    source.paths[0].mkdir(parents=True)
    for number in range(megabytes * 1_000_000 // FILE_BYTES):
        (source.paths[0] / f"{number:05}").write_bytes(os.urandom(FILE_BYTES))
    tool.backup(source, 1)
    for path in sorted(source.paths[0].iterdir())[::2]:
        path.unlink()
    tool.backup(source, 2)
    shutil.rmtree(folder)


@contextlib.contextmanager
def collecting(tool: Ours, *, nice: bool) -> Iterator[subprocess.Popen[bytes]]:
    """A collection in a process of its own that has begun to move blocks; it ends well before this does."""
    command = [*(NICE if nice else []), sys.executable, DRIVER, "prune", tool.repository, "2"]
    packs = usage_of([tool.repository / "packs"])[0]
    with (tool.home / "collection.log").open("wb") as log:
        process = subprocess.Popen(
            list(map(str, command)), env={**os.environ, **tool.environment()}, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            deadline = time.monotonic() + PATIENCE_S
            while usage_of([tool.repository / "packs"])[0] <= packs:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Failed(f"no collection: {(tool.home / 'collection.log').read_text()}")
                time.sleep(LOOK_S)
            yield process
        finally:
            if process.wait() != 0:
                raise Failed(f"the collection failed: {(tool.home / 'collection.log').read_text()}")


def write(tool: Ours, source: Source, way: str) -> Run:
    """One first backup of the writer's files: alone, or beside a collection."""
    warm(source.paths)
    warm([tool.repository])
    settle(0.5)
    give_memory()
    if way == "alone":
        return tool.backup(source)
    with collecting(tool, nice=way == "beside one at low priority") as collection:
        cost = tool.backup(source)
        if collection.poll() is not None:
            raise Failed("the collection ended before the writer: give it more to move")
    return cost


WAYS = ("alone", "beside", "beside one at low priority")


def measure(chosen: Path, small: SmallFiles, megabytes: int, rounds: int) -> dict[str, list[Run]]:
    made = Ours(chosen / "made")
    made.init()
    make_garbage(chosen / "source", made, megabytes)
    runs: dict[str, list[Run]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in WAYS:
            home = chosen / "copy"
            subprocess.run(["cp", "--archive", "--reflink=auto", made.home, home], check=True)
            tool = Ours(home)
            runs[way].append(write(tool, small.source, way))
            print(f"{way}: {runs[way][-1]}", flush=True)
            if number == 0:
                tool.check_all_data()
            shutil.rmtree(home)
    return runs


def refusal(kind: type[Tool], work: Path, small: SmallFiles, megabytes: int) -> str:
    """What becomes of a peer's backup while its prune runs."""
    tool = kind(work / kind.name)
    tool.init()
    make_garbage(work / "source", tool, megabytes)
    prepare_prune(tool)
    with ThreadPoolExecutor(1) as pool:
        pruning = pool.submit(tool.run, prune_command(tool))
        while not pruning.done() and not any(tool.repository.glob(LOCKS[kind.name])):
            time.sleep(LOOK_S)
        command, environment = tool.backup_command(small.source), {**os.environ, **tool.environment()}
        try:
            run(command, env=environment, cwd=small.source.folder, log=tool.home / "writer.log")
            said = "made, the prune having ended" if pruning.done() else "made"
        except Failed as error:
            said = "refused, the repository is locked" if "lock" in str(error) else "failed"
        pruning.result()
    return f"{kind.name} {kind.version()}: {said}"


LOCKS = {Restic.name: "locks/*", Borg.name: "lock.exclusive"}


def prepare_prune(tool: Tool) -> None:
    if isinstance(tool, Restic):
        tool.run(["restic", "forget", "--quiet", "--keep-last", "1"])
    elif isinstance(tool, Borg):
        tool.run([tool.program, "prune", "--keep-last", "1"])


def prune_command(tool: Tool) -> list[str | Path]:
    return [tool.program, "compact"] if isinstance(tool, Borg) else ["restic", "prune", "--quiet"]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    shutil.rmtree(chosen.work, ignore_errors=True)
    small = SmallFiles(chosen.work.parent, count=3_000 if chosen.quick else 64_000)
    small.make()
    megabytes, rounds = (2_000, 1) if chosen.quick else (5_000, chosen.rounds)
    runs = measure(chosen.work, small, megabytes, rounds)
    size = usage_of(small.source.paths)[1]
    seconds = {way: statistics.median(cost.seconds for cost in found) for way, found in runs.items()}
    table = [["", "seconds", "MB/s", "of alone", "processor seconds of the writer"]]
    for way, found in runs.items():
        share, cpu = seconds["alone"] / seconds[way], statistics.median(cost.cpu for cost in found)
        table.append([way, f"{seconds[way]:.2f}", f"{size / seconds[way] / 1e6:.0f}", f"{share:.0%}", f"{cpu:.2f}"])
    said = []
    for kind, prepare in install.PEERS.items():
        with contextlib.suppress(Failed):
            prepare(chosen.work.parent)
            said.append(refusal(kind, chosen.work, small, megabytes))
    files = small.facts()["files"]
    remark = (
        f"A first backup of {files:,} small files into a repository of {megabytes / 1000:g} GB, half "
        "of which a collection moves that began before it and ended after it. Where there are two processors, the "
        "two share them. A peer's backup while its prune runs: " + "; ".join(said) + "."
    )
    figures = {"beside": seconds["beside"] / seconds["alone"], "beside_nice": seconds[WAYS[2]] / seconds["alone"]}
    Answer("A writer beside a collection", figures, table, remark).give(chosen)
    shutil.rmtree(chosen.work)


if __name__ == "__main__":
    main()
