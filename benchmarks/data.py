"""The data: a sample pharmacy with its trading days, and a tree of real small files. Both are made once."""

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from measure import Failed, output_of, usage_of
from tools import Source

SMALL = 1 << 20
"""Larger files are left out of the tree of small files."""

GENERATOR = [sys.executable, "-m", "pharmabackup.testing.pharmacy"]


class Pharmacy:
    """The sample pharmacy: a pristine copy, made once, and a working copy that trades day by day."""

    def __init__(self, work: Path, *, profile: str, given: Path | None) -> None:
        self.profile = profile
        self.pristine = given or work / "data" / f"pharmacy-{profile}"
        self.site = work / "site"
        self.days = 0

    def make(self) -> None:
        """Make the pristine copy, if there is none yet, and begin again from day 0."""
        if not self.pristine.exists():
            print(f"making the sample pharmacy, profile {self.profile}", flush=True)
            half = self.pristine.with_name(self.pristine.name + ".part")
            shutil.rmtree(half, ignore_errors=True)
            half.parent.mkdir(parents=True, exist_ok=True)
            output_of([*GENERATOR, "make", half, "--profile", self.profile])
            half.rename(self.pristine)
        shutil.rmtree(self.site, ignore_errors=True)
        subprocess.run(["cp", "--archive", "--reflink=auto", self.pristine, self.site], check=True)
        self.days = 0
        self._settle_database()

    def trade(self) -> None:
        """Let one trading day pass."""
        output_of([*GENERATOR, "day", self.site])
        self.days += 1
        self._settle_database()

    @property
    def source(self) -> Source:
        folders = sorted(entry.name for entry in os.scandir(self.site) if entry.is_dir())
        return Source(self.site, ("pmr.db", *folders))

    def facts(self) -> dict[str, object]:
        source = self.source
        files, size = usage_of(source.paths)
        facts: dict[str, object] = {"files": files, "bytes": size, "day": self.days}
        facts["database"] = (self.site / "pmr.db").stat().st_size
        with contextlib.closing(sqlite3.connect(self.site / "pmr.db")) as database:
            facts["profile"], facts["seed"] = database.execute("SELECT profile, seed FROM site").fetchone()
        return facts

    def _settle_database(self) -> None:
        """Move what lies in the write-ahead log into the database: the peers copy the file alone."""
        with contextlib.closing(sqlite3.connect(self.site / "pmr.db")) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


class SmallFiles:
    """A copy of what is on every developer's machine: Python, documentation, shared data, headers."""

    def __init__(self, work: Path, *, count: int) -> None:
        self.count = count
        self.folder = work / "data" / f"small-{count}"
        self.source = Source(self.folder, ("tree",))

    def make(self) -> None:
        if (self.folder / "facts.json").exists():
            return
        print(f"copying {self.count:,} small files", flush=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        taken: dict[str, int] = {}
        left = self.count
        for number, root in enumerate(origins()):
            copied = copy_small(root, self.folder / "tree" / f"{number}-{root.name}", left, done=set(taken))
            taken[str(root)] = copied
            left -= copied
            if left <= 0:
                break
        files, size = usage_of(self.source.paths)
        facts = {"files": files, "bytes": size, "from": taken}
        (self.folder / "facts.json").write_text(json.dumps(facts, indent=2))
        if left > 0:
            print(f"this machine has {files:,} small files only, {left:,} fewer than wanted", flush=True)

    def facts(self) -> dict[str, object]:
        found: dict[str, object] = json.loads((self.folder / "facts.json").read_text())
        return found


def origins() -> Iterator[Path]:
    """Folders full of real small files, none inside another that came before it."""
    python = Path(sys.base_prefix) / "lib"
    shared = [Path("/usr/share/doc"), Path("/usr/lib/python3"), Path("/usr/share"), Path("/usr/include")]
    others = sorted(p / "lib" for p in Path(sys.base_prefix).parent.glob("[0-9]*.*"))
    more = [Path("/usr/lib/node_modules"), Path("/usr/local/lib"), Path("/usr/lib")]
    seen: list[Path] = []
    for root in [python, *shared, *others, *more]:
        if root.is_dir() and not any(root.is_relative_to(before) for before in seen):
            seen.append(root)
            yield root


def copy_small(root: Path, target: Path, limit: int, *, done: set[str]) -> int:
    """Copy about `limit` small regular files and the links beside them, except from folders that are `done`."""
    copied = 0
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if os.path.join(folder, name) not in done)
        if copied >= limit:
            break
        place = target / os.path.relpath(folder, root)
        place.mkdir(parents=True, exist_ok=True)
        for name in sorted(names):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):  # a file that went, or that is not ours to read
                if os.path.islink(path):
                    os.symlink(os.readlink(path), place / name)
                elif os.path.isfile(path) and os.path.getsize(path) <= SMALL:
                    shutil.copy2(path, place / name)
                    copied += 1
    return copied


def require_generator() -> None:
    """`Failed` when the sample pharmacy cannot be made on this machine."""
    try:
        output_of([*GENERATOR, "--help"])
    except Failed as error:
        raise Failed(f"the sample pharmacy's generator does not run: {error}") from error
