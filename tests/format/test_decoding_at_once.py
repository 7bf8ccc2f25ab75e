"""Threads that decode records of one type for the first time at once: msgspec alone crashes the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROCESSES = 4  # without a lock about half of them crash
PROGRAM = """
import sys, threading
from pharmabackup.format import wire
from tests.format import samples

sys.setswitchinterval(1e-6)
for record in sorted(samples.TOP, key=lambda record: type(record).__name__):
    encoded, together, right = wire.encode(record), threading.Barrier(4), []

    def decode():
        together.wait()
        right.append(all(wire.decode(encoded, type(record)) == record for _ in range(3)))

    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 4
"""


def test_threads_decode_for_the_first_time_at_once() -> None:
    command = [sys.executable, "-c", PROGRAM]
    started = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(PROCESSES)]
    ended = [(process.communicate(timeout=60)[1].decode(), process.returncode) for process in started]
    assert ended == [("", 0)] * PROCESSES


def test_decoders_are_made_in_one_place() -> None:
    """All but those that a module makes while it is imported, which is one thread's."""
    for path in (ROOT / "pharmabackup").rglob("*.py"):
        for line in path.read_text("utf-8").splitlines():
            assert ".decode(" not in line or "type=" not in line or "type=dict[str, object]" in line, (path, line)
