"""Memory does not grow with the data."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pharmabackup as pb

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in kB on Linux only"),
]

SECRET = "correct horse battery staple"
SIZE = 300 << 20  # bytes
PEAK = 150 << 20  # bytes
FLAT_FILES = 60_000
FLAT_PEAK = 90 << 20  # bytes
RUN = """
import sys
import pharmabackup as pb
secret, url, state, source, target = sys.argv[1:]
with pb.Repository.open(url, pb.Passphrase(secret), state_dir=state) as repo:
    if target:
        repo.restore(target)
    else:
        repo.backup([pb.Files(source, name="stream")])
"""
SPAWN = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-c", *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


def test_a_large_stream_needs_little_memory(tmp_path: Path, cheap_kdf: None) -> None:
    source, where = tmp_path / "source", tmp_path / "repository"
    source.mkdir()
    _generate(source / "stream")
    pb.Repository.create(where, pb.Passphrase(SECRET)).close()
    assert _peak(where, tmp_path, source, "") < PEAK
    assert _peak(where, tmp_path, source, tmp_path / "out") < PEAK
    with open(source / "stream", "rb") as one, open(tmp_path / "out" / "stream" / "stream", "rb") as other:
        while piece := one.read(1 << 20):
            assert other.read(1 << 20) == piece
        assert not other.read(1)


def test_one_folder_with_very_many_files_needs_little_memory(tmp_path: Path, cheap_kdf: None) -> None:
    source, where = tmp_path / "source", tmp_path / "repository"
    source.mkdir()
    for number in range(FLAT_FILES):
        os.close(os.open(source / f"document {number:06} of a patient.txt", os.O_CREAT | os.O_WRONLY))
    (source / "document 000000 of a patient.txt").write_text("changed")
    pb.Repository.create(where, pb.Passphrase(SECRET)).close()
    assert _peak(where, tmp_path, source, "") < FLAT_PEAK, "the first backup"
    time.sleep(2.1)  # else all files have just changed
    assert _peak(where, tmp_path, source, "") < FLAT_PEAK, "everything is read again"
    for number in range(0, FLAT_FILES, FLAT_FILES // 5):
        (source / f"document {number:06} of a patient.txt").write_text("changed")
        (source / f"document {number + 1:06} of a patient.txt").unlink()
        (source / f"document {number + 1:06} is new.txt").touch()
    assert _peak(where, tmp_path, source, "") < FLAT_PEAK, "some files have changed"
    assert _peak(where, tmp_path, source, "") < FLAT_PEAK, "nothing has changed"


def _generate(path: Path) -> None:
    """Content that is not twice the same and compresses by half, a MiB at a time."""
    chance = random.Random(3)
    with open(path, "wb") as file:
        for _ in range(SIZE >> 20):
            file.write(chance.randbytes(1 << 19))
            file.write(chance.randbytes(16) * (1 << 15))


def _peak(where: Path, base: Path, source: Path, target: Path | str) -> int:
    """The most memory that a process of its own had. It is not this one's fork: that would count as its own."""
    command = [sys.executable, "-c", SPAWN, RUN, SECRET, where, base / "state", source, target]
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout)
