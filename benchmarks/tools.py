"""What every backup tool in the benchmark can do, and the two peers: restic and Borg."""

import json
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from measure import Run, output_of, run, usage_of

PASSPHRASE = "benchmark passphrase, no secret"


RULES = {"daily": 14, "weekly": 8, "monthly": 12, "yearly": 2}
"""What all tools keep when they prune: the newest backup of each of the last so many days, weeks, months, years."""

FIRST_DAY = datetime(2023, 1, 2, 12)
"""Day 1 where backups of many simulated days are dated: a Monday, so that 730 days end on the last day of 2024."""


def date_of(day: int) -> datetime:
    return FIRST_DAY + timedelta(days=day - 1)


def day_of(moment: datetime) -> int:
    return (moment.date() - FIRST_DAY.date()).days + 1


@dataclass(frozen=True)
class Source:
    """What is backed up: some files and folders, named relative to one folder."""

    folder: Path
    items: tuple[str, ...]

    @property
    def paths(self) -> list[Path]:
        return [self.folder / item for item in self.items]


class Tool(ABC):
    """One tool with one repository. Everything it keeps (repository, caches) lies in `home`."""

    name: str
    settings: str

    def __init__(self, home: Path) -> None:
        self.home = home
        self.repository = home / "repository"
        home.mkdir(parents=True, exist_ok=True)

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """The version that is installed; `Failed` when it is not."""

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """Passphrase and cache folders."""

    @abstractmethod
    def init(self) -> Run: ...

    @abstractmethod
    def backup_command(self, source: Source, day: int | None = None) -> list[str | Path]:
        """What backs it up, run in the source's folder. `day`: it is dated so, where the tool can do that."""

    def backup(self, source: Source, day: int | None = None) -> Run:
        return self.run(self.backup_command(source, day), cwd=source.folder)

    @abstractmethod
    def restore(self, target: Path, day: int | None = None) -> Run:
        """The newest of everything, or what was dated so, into the empty folder `target`."""

    @abstractmethod
    def check_all_data(self) -> Run: ...

    @abstractmethod
    def check_structure(self) -> Run:
        """What is nearest to looking at everything but the data itself."""

    @abstractmethod
    def prune(self, keep: Mapping[int, str]) -> Run:
        """Let all days go but these, each with the first rule that keeps it, and free what only they needed."""

    @abstractmethod
    def days(self) -> set[int]:
        """The days of which there are backups."""

    adds_keys = True
    """Whether a repository can be opened with one more passphrase, besides the one that it has."""

    def add_key(self, number: int) -> Run:
        """Let one more passphrase in."""
        raise NotImplementedError

    def restored(self, target: Path, item: str) -> Path:
        """Where `restore` put an item of the source."""
        return target / item

    def size(self) -> int:
        """Bytes in the repository; the tools' local caches do not count."""
        return usage_of([self.repository])[1]

    def run(
        self, command: Sequence[str | Path], *, cwd: Path | None = None, more: Mapping[str, str] | None = None
    ) -> Run:
        """`more`: variables of its environment."""
        return run(command, env={**os.environ, **self.environment(), **(more or {})}, cwd=cwd, log=self.home / "log")


class Restic(Tool):
    name = "restic"
    settings = "repository format 2, --compression auto (zstd, its default level)"

    @classmethod
    def version(cls) -> str:
        return output_of(["restic", "version"]).split()[1]

    def environment(self) -> dict[str, str]:
        return {
            "RESTIC_PASSWORD": PASSPHRASE,
            "RESTIC_REPOSITORY": str(self.repository),
            "RESTIC_CACHE_DIR": str(self.home / "cache"),
        }

    def init(self) -> Run:
        return self.run(["restic", "init", "--quiet", "--repository-version", "2"])

    def backup_command(self, source: Source, day: int | None = None) -> list[str | Path]:
        dated = ["--time", f"{date_of(day):%Y-%m-%d %H:%M:%S}"] if day else []
        return ["restic", "backup", "--quiet", *dated, *source.items]

    def restore(self, target: Path, day: int | None = None) -> Run:
        snapshot = self._snapshots()[day] if day else "latest"
        return self.run(["restic", "restore", "--quiet", snapshot, "--target", target])

    def check_all_data(self) -> Run:
        return self.run(["restic", "check", "--quiet", "--read-data"])

    def check_structure(self) -> Run:
        return self.run(["restic", "check", "--quiet"])

    def prune(self, keep: Mapping[int, str]) -> Run:  # noqa: ARG002  (its own rules say the same)
        rules = [f"--keep-{rule}={number}" for rule, number in RULES.items()]
        return self.run(["restic", "forget", "--quiet", "--prune", "--group-by", "", *rules])

    def days(self) -> set[int]:
        return set(self._snapshots())

    def add_key(self, number: int) -> Run:
        new = self.home / f"key-{number}"
        new.write_text(f"passphrase {number}, no secret\n")
        return self.run(["restic", "key", "add", "--quiet", "--new-password-file", new])

    def _snapshots(self) -> dict[int, str]:
        listed = output_of(["restic", "snapshots", "--json"], env={**os.environ, **self.environment()})
        return {day_of(datetime.fromisoformat(item["time"][:19])): item["id"] for item in json.loads(listed)}


class Borg(Tool):
    name = "Borg"
    settings = "--encryption repokey-blake2, its default compression (lz4)"
    adds_keys = False
    program: Path = Path("borg")
    """Set by `install.borg` to the one it built."""

    @classmethod
    def version(cls) -> str:
        return output_of([cls.program, "--version"]).split()[1]

    def environment(self) -> dict[str, str]:
        return {
            "BORG_PASSPHRASE": PASSPHRASE,
            "BORG_REPO": str(self.repository),
            "BORG_BASE_DIR": str(self.home / "cache"),
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",  # repositories are copied, to be used several times
        }

    def init(self) -> Run:
        return self.run([self.program, "init", "--encryption", "repokey-blake2"])

    def backup_command(self, source: Source, day: int | None = None) -> list[str | Path]:
        dated = ["--timestamp", f"{date_of(day):%Y-%m-%dT%H:%M:%S}"] if day else []
        return [
            self.program,
            "create",
            *dated,
            f"::day-{day}" if day else "::{now:%Y-%m-%dT%H:%M:%S.%f}",
            *source.items,
        ]

    def restore(self, target: Path, day: int | None = None) -> Run:
        archive = f"day-{day}" if day else self._archives()[-1]
        return self.run([self.program, "extract", f"::{archive}"], cwd=target)

    def check_all_data(self) -> Run:
        return self.run([self.program, "check", "--verify-data"])

    def check_structure(self) -> Run:
        return self.run([self.program, "check", "--archives-only"])

    def prune(self, keep: Mapping[int, str]) -> Run:
        """Its rules take turns: what one keeps, the next does not count. So each is given what is left for it."""
        counts = Counter(keep.values())
        rules = [f"--keep-{rule}={counts[rule]}" for rule in RULES]
        pruned = self.run([self.program, "prune", *rules])
        return pruned + self.run([self.program, "compact"])

    def days(self) -> set[int]:
        return {int(name.removeprefix("day-")) for name in self._archives()}

    def _archives(self) -> list[str]:
        listed = output_of([self.program, "list", "--json"], env={**os.environ, **self.environment()})
        return [item["name"] for item in json.loads(listed)["archives"]]
