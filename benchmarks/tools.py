"""What every backup tool in the benchmark can do, and the two peers: restic and Borg."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import Run, output_of, run, usage_of

PASSPHRASE = "benchmark passphrase, no secret"


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
        home.mkdir(parents=True)

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
    def backup(self, source: Source) -> Run: ...

    @abstractmethod
    def restore(self, target: Path) -> Run:
        """The newest of everything into the empty folder `target`."""

    @abstractmethod
    def check_all_data(self) -> Run: ...

    def restored(self, target: Path, item: str) -> Path:
        """Where `restore` put an item of the source."""
        return target / item

    def size(self) -> int:
        """Bytes in the repository; the tools' local caches do not count."""
        return usage_of([self.repository])[1]

    def run(self, command: Sequence[str | Path], *, cwd: Path | None = None) -> Run:
        return run(command, env={**os.environ, **self.environment()}, cwd=cwd, log=self.home / "log")


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

    def backup(self, source: Source) -> Run:
        return self.run(["restic", "backup", "--quiet", *source.items], cwd=source.folder)

    def restore(self, target: Path) -> Run:
        return self.run(["restic", "restore", "--quiet", "latest", "--target", target])

    def check_all_data(self) -> Run:
        return self.run(["restic", "check", "--quiet", "--read-data"])


class Borg(Tool):
    name = "Borg"
    settings = "--encryption repokey-blake2, its default compression (lz4)"
    program: Path = Path("borg")
    """Set by `install.borg` to the one it built."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.archives = 0

    @classmethod
    def version(cls) -> str:
        return output_of([cls.program, "--version"]).split()[1]

    def environment(self) -> dict[str, str]:
        return {
            "BORG_PASSPHRASE": PASSPHRASE,
            "BORG_REPO": str(self.repository),
            "BORG_BASE_DIR": str(self.home / "cache"),
        }

    def init(self) -> Run:
        return self.run([self.program, "init", "--encryption", "repokey-blake2"])

    def backup(self, source: Source) -> Run:
        self.archives += 1
        return self.run([self.program, "create", f"::{self.archives}", *source.items], cwd=source.folder)

    def restore(self, target: Path) -> Run:
        return self.run([self.program, "extract", f"::{self.archives}"], cwd=target)

    def check_all_data(self) -> Run:
        return self.run([self.program, "check", "--verify-data"])
