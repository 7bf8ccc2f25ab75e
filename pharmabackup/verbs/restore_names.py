"""A snapshot's names as far as they can be read, and what of those asked for may lie where they cannot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pharmabackup.engine.reading import SnapshotReader
from pharmabackup.engine.target_metadata import printable
from pharmabackup.errors import Damaged
from pharmabackup.events import Finding
from pharmabackup.format.manifest import Entry, EntryKind, entries, read_folders
from pharmabackup.verbs.restore_choice import Wanted

FOLDERS_TOLD = 10


@dataclass(slots=True)
class Names:
    """Every folder's entries, up to where names are lost: what comes after them cannot be told apart."""

    reader: SnapshotReader
    last: bytes = b""  # the path that was read last
    error: Damaged | None = None  # why no more can be read
    _folder: bytes = b""  # whose record was read last, and the last name in that
    _name: bytes = b""
    _unread: set[bytes] = field(default_factory=set)  # folders that were named, and no record of theirs was read

    def folders(self) -> Iterator[list[Entry]]:
        """Damaged when not even the first names can be read."""
        begun = False
        try:
            for folder, frame, start in read_folders(self.reader.frames()):
                found = entries(folder, frame, start)
                self._unread.discard(folder.path)
                self._unread.update([item.path for item in found if item.kind == EntryKind.FOLDER and item.path])
                self._folder, self._name = folder.path, folder.names.rpartition(b"\0")[2]
                self.last = found[-1].path if found else self.last
                yield found
                begun = True
        except Damaged as error:
            if not begun:
                raise
            self.error = error

    def finding(self, wanted: Wanted | None) -> Finding | None:
        """What is lost of that; None if all names could be read."""
        if self.error is None:
            return None
        last = printable(self.last)
        damaged = f"The list of names is damaged after {last}"
        places = self._places(wanted)
        if not places:
            return Finding(
                code="names-damaged",
                severity="warning",
                subject=last,
                message=f"{damaged}, where nothing lies that was asked for. {self.error.message}",
                remedy="Run check, and repair: more of this snapshot cannot be restored.",
            )
        lost = "what was asked for" if wanted is not None else "what lies"
        *rest, final = places
        where = f"{', '.join(rest)}, or {final}" if rest else final
        return Finding(
            code="names-lost",
            severity="critical",
            subject=last,
            message=f"{damaged}: nothing came back of {lost} {where}. {self.error.message}",
            remedy="Restore it from an earlier snapshot or another location.",
        )

    def _places(self, wanted: Wanted | None) -> list[str]:
        """Where something may lie that is wanted: in folders without names, and after those of the last one."""
        unread = sorted(path for path in self._unread if wanted is None or wanted.below(path))
        places = [f"in {printable(path)}" for path in unread[:FOLDERS_TOLD]]
        if len(unread) > FOLDERS_TOLD:
            places.append(f"in {len(unread) - FOLDERS_TOLD:,} more folders")
        if wanted is None or wanted.after(self._folder, self._name):
            places.append(f"after that name in {printable(self._folder) or 'the top folder'}")
        return places
