"""A first backup that is killed at half, and run again: how long that takes, and what it uploads once more."""

import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

from measure import Failed, usage_of, walk, warm
from scenarios import Lab
from tools import Restic, Source, Tool

LOOK_S = 0.01
PATIENCE_S = 600


def resume(lab: Lab) -> None:
    """Whole first backups of the pharmacy, and others that are killed when half of that is in the repository."""
    pharmacy = lab.pharmacy
    pharmacy.make()
    source = pharmacy.source
    lab.facts["pharmacy"] = pharmacy.facts()
    for number in range(lab.rounds):
        for kind in lab.tools:
            whole = lab.open(kind)
            whole.init()
            empty = whole.size()
            warm(source.paths)
            whole.backup(source)
            tool = lab.open(kind)
            tool.init()
            warm(source.paths)
            if not was_killed_at(tool, source, (whole.size() - empty) // 2):
                print(f"{tool.name} ended before it could be killed: there is too little data")
                continue
            before = dict(objects(tool.repository))
            warm(source.paths)
            lab.measure("resume", tool, partial(tool.backup, source))
            uploaded = sum(
                size for path, (size, when) in objects(tool.repository) if before.get(path) != (size, when)
            )
            lab.note("resumed", tool.name, "bytes", uploaded)
            if number == 0:
                if isinstance(tool, Restic):  # the killed process's lock stands in the way of a check
                    tool.run(["restic", "unlock", "--quiet"])
                tool.check_all_data()
                lab.restore_and_compare("", tool, source)


def was_killed_at(tool: Tool, source: Source, size: int) -> bool:
    """Start a backup and kill it, so that it can do nothing about it, once the repository has grown by so much."""
    before = tool.size()
    with (tool.home / "killed.log").open("wb") as log:
        process = subprocess.Popen(
            list(map(str, tool.backup_command(source))),
            env={**os.environ, **tool.environment()},
            cwd=source.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + PATIENCE_S
        while process.poll() is None and usage_of([tool.repository])[1] - before < size:
            if time.monotonic() > deadline:
                process.kill()
                raise Failed(f"{tool.name} has not come to half of its backup")
            time.sleep(LOOK_S)
        process.send_signal(signal.SIGKILL)
        return process.wait() == -signal.SIGKILL


def objects(repository: Path) -> list[tuple[str, tuple[int, int]]]:
    """Every file's size, and when it was written."""
    found = []
    for path in walk(repository):
        state = os.lstat(path)
        found.append((path, (state.st_size, state.st_mtime_ns)))
    return found
