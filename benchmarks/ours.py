"""pharmabackup as one of the tools. It runs as a whole process, like its peers."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from measure import Run, output_of
from tools import PASSPHRASE, Source, Tool

DRIVER = Path(__file__).with_name("driver.py")


class Ours(Tool):
    name = "pharmabackup"
    settings = "all defaults; the database as pb.SQLite, folders as pb.Files"

    @classmethod
    def version(cls) -> str:
        program = (
            "import pharmabackup as pb, importlib.metadata as m; "
            "pb.Repository, pb.SQLite, pb.Files; print(m.version('pharmabackup'))"
        )
        return output_of([sys.executable, "-c", program])

    def environment(self) -> dict[str, str]:
        return {"PHARMABACKUP_PASSPHRASE": PASSPHRASE, "PHARMABACKUP_STATE": str(self.home / "state")}

    def init(self) -> Run:
        (self.home / "state").mkdir()
        return self._verb("create")

    def backup_command(self, source: Source, day: int | None = None) -> list[str | Path]:  # noqa: ARG002
        """No day can be given: the storage says when it was. Which day a backup was of is told by their order."""
        return self._command("backup", *source.paths)

    def restore(self, target: Path, day: int | None = None) -> Run:
        return self._verb("restore", target, *([day] if day else []))

    def restore_database(self, target: Path) -> Run:
        """The newest of the pharmacy's database alone."""
        return self._verb("restore-dataset", target, "pmr")

    def many_backups(self, folder: Path, count: int) -> Run:
        return self._verb("many", folder, count)

    def snapshots(self) -> Run:
        return self._verb("snapshots")

    def check_all_data(self) -> Run:
        return self._verb("check", 1.0)

    def check_structure(self) -> Run:
        return self._verb("check", 0.0)

    def audit_verify(self) -> Run:
        return self._verb("audit-verify")

    def audit(self) -> Run:
        return self._verb("audit")

    def add_key(self, number: int) -> Run:
        new = {"PHARMABACKUP_NEW": f"passphrase {number}, no secret"}
        return self.run(self._command("enrol", "owner", f"owner {number}"), more=new)

    def prune(self, keep: Mapping[int, str]) -> Run:
        return self._verb("prune", *sorted(keep))

    def days(self) -> set[int]:
        environment = {**os.environ, **self.environment()}
        return set(map(int, output_of(self._command("days"), env=environment).split()))

    def restored(self, target: Path, item: str) -> Path:
        """A dataset is restored under its own name; a database is a file in it."""
        if not item.endswith(".db"):
            return target / item
        return next(target.glob(f"*/{item}"), target / item)

    def _verb(self, verb: str, *arguments: object) -> Run:
        return self.run(self._command(verb, *arguments))

    def _command(self, verb: str, *arguments: object) -> list[str | Path]:
        return [sys.executable, DRIVER, verb, self.repository, *map(str, arguments)]
