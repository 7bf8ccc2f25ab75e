"""Files of which a part is lost: what there is of them is put beside where they would be, and told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pharmabackup.engine.target import SALVAGED, Target
from pharmabackup.engine.target_files import Identity
from pharmabackup.engine.target_metadata import printable
from pharmabackup.errors import StorageFailed
from pharmabackup.events import Finding
from pharmabackup.format.manifest import Entry, EntryKind
from pharmabackup.verbs.findings import Ranges, in_file, told_ranges
from pharmabackup.verbs.reporter import Reporter

REMEDY = "Restore it from an earlier snapshot or another location."


class Salvager:
    """What one restore saves of files; what earlier ones saved gives way to it, unless somebody changed that."""

    def __init__(self, target: Target, reporter: Reporter, earlier: Mapping[bytes, Identity], where: Path) -> None:
        self.made = dict(earlier)  # by the files' paths: what is beside them
        self._target = target
        self._reporter = reporter
        self._where = where
        self._earlier: dict[bytes, Entry] = {}  # files beside which there may be something from before

    def meet(self, entry: Entry, *, wanted: bool) -> None:
        """Each of the snapshot's names, while anything was saved before: what it names itself is its own."""
        if entry.path.endswith(SALVAGED):
            self.made.pop(entry.path.removesuffix(SALVAGED), None)
        if wanted and entry.kind == EntryKind.FILE and entry.path in self.made:
            self._earlier[entry.path] = entry

    def lost(self, entry: Entry, holes: Ranges) -> None:
        """Save what came of that file, and tell what is lost."""
        path, why = printable(entry.path), "a stored block that it needs is damaged or missing"
        code, remedy, message = "file-lost", REMEDY, f"{path} did not come back: {why}."
        try:
            found = self._target.salvage(entry, over=self.made.get(entry.path))
        except StorageFailed as error:  # a full disk: all else that is lost has to be told, too
            found, message = None, f"{message} What there is of it was not saved: {error.message}"
        if found is not None:
            where, name = told_ranges(in_file(entry, holes)), printable(found.name)
            if found.identity is None:
                message += f" What there is of it was not saved: {name} is there already, and was not touched."
                remedy = f"Move {name} away and restore again, or restore the file from an earlier snapshot."
            else:
                code = "file-salvaged"
                message = f"{path} did not come back whole: what there is of it is in {name}, with zeros for {where}."
                self.made[entry.path] = found.identity
                self._earlier.pop(entry.path, None)
        self._reporter.find(Finding(code=code, severity="critical", subject=path, message=message, remedy=remedy))

    def tell_earlier(self) -> None:
        """What an earlier restore saved of files that came back now stays: it may be of another snapshot."""
        for path, entry in sorted(self._earlier.items()):
            if path not in self.made or self._target.salvaged(entry) != self.made[path]:
                continue
            name = printable(path + SALVAGED)
            self._reporter.find(
                Finding(
                    code="salvaged-stays",
                    severity="info",
                    subject=name,
                    message=f"{name} is what an earlier restore saved of a file that was not whole. It was left.",
                    remedy="Delete it, if nothing in it is needed any more.",
                    location=str(self._where),
                )
            )
