"""A snapshot as a read-only fsspec file system."""

from __future__ import annotations

from typing import Any

from fsspec.spec import AbstractFileSystem

from pharmabackup.engine.reading import SnapshotReader
from pharmabackup.errors import NotFound, Unsupported
from pharmabackup.format.manifest import Entry, EntryKind
from pharmabackup.verbs.browse import SHOWN, open_file, raw_path, shown


def _facts(entry: Entry) -> dict[str, object]:
    facts = shown(entry)
    kind = "directory" if entry.kind == EntryKind.FOLDER else SHOWN.get(entry.kind, "other")
    return {"name": facts.path, "size": facts.size, "type": kind, "mtime": facts.modified}


class SnapshotFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """What fsspec, pandas and friends need to read a snapshot's files in place."""

    protocol = "snapshot"
    cachable = False
    root_marker = ""

    def __init__(self, reader: SnapshotReader, **options: Any) -> None:
        super().__init__(**options)
        self._reader = reader

    def _facts(self, path: str) -> dict[str, object] | None:
        raw = raw_path(self._strip_protocol(path))
        if not raw:
            return {"name": "", "size": 0, "type": "directory"}
        entry = self._reader.find(raw)
        return None if entry is None else _facts(entry)

    def info(self, path: str, **_: Any) -> dict[str, object]:
        facts = self._facts(path)
        if facts is None:
            raise FileNotFoundError(path)
        return facts

    def modified(self, path: str) -> object:
        return self.info(path).get("mtime")

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        here = self.info(path)
        if here["type"] != "directory":
            return [here] if detail else [here["name"]]
        found = [_facts(entry) for entry in self._reader.folder(raw_path(self._strip_protocol(path)))]
        return found if detail else [item["name"] for item in found]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        if mode != "rb":
            raise Unsupported("A snapshot cannot be written to.", remedy="Open the file for reading.")
        try:
            return open_file(self._reader, self._strip_protocol(path))
        except NotFound as error:
            raise FileNotFoundError(path) from error
