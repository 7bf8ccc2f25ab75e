"""pharmabackup as one of the tools. It runs as a whole process, like its peers."""

import sys
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

    def backup(self, source: Source) -> Run:
        return self._verb("backup", *source.paths)

    def restore(self, target: Path) -> Run:
        return self._verb("restore", target)

    def check_all_data(self) -> Run:
        return self._verb("check")

    def restored(self, target: Path, item: str) -> Path:
        """A dataset is restored under its own name; a database is a file in it."""
        if not item.endswith(".db"):
            return target / item
        return next(target.glob(f"*/{item}"), target / item)

    def _verb(self, verb: str, *paths: Path) -> Run:
        return self.run([sys.executable, DRIVER, verb, self.repository, *paths])
