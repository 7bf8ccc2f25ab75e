"""Run one program as a whole process and say what it cost.

The kernel hands a child the peak memory of the process that started it, so the harness itself must stay small:
heavy work (comparing trees, making data) runs in processes of its own.
"""

import contextlib
import os
import resource
import stat
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

GIVEN = 3 << 30
"""Bytes of memory that are at hand for a run: more than any needs, what the system caches for it included."""

USE_MEMORY = """
import mmap, sys
memory = mmap.mmap(-1, int(sys.argv[1]))
if hasattr(mmap, "MADV_HUGEPAGE"):
    memory.madvise(mmap.MADV_HUGEPAGE)
for place in range(0, len(memory), mmap.PAGESIZE):
    memory[place] = 1
"""


@dataclass(frozen=True)
class Run:
    """What one process cost: seconds by the wall, seconds of CPU with its children, peak memory in bytes."""

    seconds: float
    cpu: float
    rss: int

    def __add__(self, then: "Run") -> "Run":
        """One after the other."""
        return Run(self.seconds + then.seconds, self.cpu + then.cpu, max(self.rss, then.rss))

    def to_dict(self) -> dict[str, float | int]:
        return {k: round(v, 4) for k, v in asdict(self).items()}


class Failed(Exception):
    """A program that the benchmark ran did not do its work."""


class TooSlow(Failed):
    """A program was ended, since it took longer than it was given."""


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: Path,
    limit_s: float | None = None,
) -> Run:
    """Run `command` to its end, or until TooSlow. Its output goes to `log`, so that no pipe slows it down."""
    arguments = [str(part) for part in command]
    with log.open("wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            arguments, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        ended = None if limit_s is None else threading.Timer(limit_s, process.kill)
        try:
            if ended is not None:
                ended.start()
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            if ended is not None:
                ended.cancel()
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if limit_s is not None and seconds >= limit_s:
        raise TooSlow(f"{arguments[0]} took longer than {limit_s:.0f} s")
    if process.returncode != 0:
        tail = log.read_text(errors="replace")[-2000:]
        raise Failed(f"{' '.join(arguments)}\nended with status {process.returncode}:\n{tail}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def output_of(command: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> str:
    """The text that a short program prints; `Failed` when it is missing or fails."""
    try:
        done = subprocess.run([str(c) for c in command], env=env, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise Failed(f"{command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        raise Failed(f"{' '.join(map(str, command))}\n{error.stdout}{error.stderr}"[-2000:]) from error
    return done.stdout.strip()


def own_peak() -> int:
    """The harness's own peak memory: no child can be seen to use less than this."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def settle(seconds: float) -> None:
    """Let what earlier runs wrote reach the disk, so that the next run does not pay for it."""
    os.sync()
    time.sleep(seconds)


def give_memory() -> None:
    """Use free memory once and let it go again, so that the next run finds it at hand.

    The host of a virtual machine may take back what is free (a balloon that reports free pages): who uses it next
    waits 0.2 to 0.3 s for 100 MB, which says nothing about the tool whose turn it is.
    """
    room = min(GIVEN, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") // 2)
    subprocess.run([sys.executable, "-c", USE_MEMORY, str(room)], check=True)


def drop_caches() -> bool:
    """Empty the page cache (Linux, root). False when this machine does not allow it."""
    os.sync()
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
        return True
    return False


def warm(paths: Sequence[Path]) -> None:
    """Read every file once, so that all tools find the data in memory."""
    buffer = bytearray(1 << 20)
    for top in paths:
        for path in walk(top):
            with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def walk(top: Path) -> Iterator[str]:
    """Every regular file at or under `top`, in a stable order and without holding the whole list."""
    if top.is_file() and not top.is_symlink():
        yield str(top)
    for folder, folders, names in os.walk(top):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError):  # a tool is at work, and has taken it away
                if stat.S_ISREG(os.lstat(path).st_mode):
                    yield path


def usage_of(paths: Sequence[Path]) -> tuple[int, int]:
    """Number of regular files and their bytes, also while a tool is at work on them."""
    count = size = 0
    for top in paths:
        for path in walk(top):
            with contextlib.suppress(FileNotFoundError):
                count, size = count + 1, size + os.path.getsize(path)
    return count, size


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest of some figures."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
