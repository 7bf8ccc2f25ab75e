"""What the lists of processes show of one that runs, to anybody who looks: Linux's /proc."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

PAUSE_S = 0.002  # some processes live for a few milliseconds


def shown_of(process: subprocess.Popen[bytes]) -> tuple[bytes, int]:
    """Command lines and environments of it and its children until it ends, and how often that was looked at."""
    found, looks = set[bytes](), 0
    while process.poll() is None:
        pids, looks = [process.pid], looks + 1
        for pid in pids:
            for what in ("cmdline", "environ"):
                with suppress(OSError):
                    found.add(Path(f"/proc/{pid}/{what}").read_bytes())
            pids += _children(pid)
        time.sleep(PAUSE_S)
    return b"\n".join(sorted(found)), looks


def _children(pid: int) -> list[int]:
    """Of all its threads."""
    found = list[int]()
    with suppress(OSError):  # it has ended
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found
