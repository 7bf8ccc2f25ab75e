"""The last snapshot's folders, asked for in the order of a dump and read in step with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pharmabackup.engine.filecache import RememberedFolder
from pharmabackup.sources.base import Kept, PreviousFolder


class PreviousFolders:
    """A large folder has several records there, and they need not end where its parts end today."""

    def __init__(self, records: Iterator[RememberedFolder]) -> None:
        self._records = records
        self._next = next(records, None)

    def find(self, path: bytes, names: Sequence[bytes]) -> PreviousFolder | None:
        """What was remembered of these entries: a record that holds all of them, or what several hold together."""
        record, last = self._next, names[-1] if names else b""
        if record is None or (record.path == path and record.last == last):  # as a rule
            return record
        record = self._skip(path, names[0] if names else b"")
        if record is None or record.path != path:
            return None
        if record.last >= last:  # it may hold entries of the next part too, so it stays
            return record
        wanted, found = set(names), dict[bytes, Kept]()
        while record is not None and record.path == path:
            found.update((name, kept) for name, kept in record.entries().items() if name in wanted)
            if record.last >= last:
                break
            record = self._next = next(self._records, None)
        return _Several(found)

    def _skip(self, path: bytes, first: bytes) -> RememberedFolder | None:
        """Go on to the first record that may hold that entry or one that comes after it."""
        wanted = path.split(b"/") if path else []
        while (record := self._next) is not None:
            have = record.path.split(b"/") if record.path else []
            if have > wanted or (have == wanted and record.last >= first):
                break
            self._next = next(self._records, None)
        return record


class _Several(PreviousFolder):
    """What several records hold of some entries. As a whole it is never as it was."""

    rows = b""

    def __init__(self, found: Mapping[bytes, Kept]) -> None:
        self._found = found

    def entries(self) -> Mapping[bytes, Kept]:
        return self._found
