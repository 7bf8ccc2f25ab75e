"""Rows in a dump: counted as it passes by, when they are of its own moment, and joined when it is loaded.

In a dump made with --skip-extended-insert each row is a line, INSERT INTO `table` …; in values a line's end is
written \\n. They stand between two lines that switch the keys of their table off and on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from pharmabackup.sources.mysql_server import quoted

LONGEST = 1 << 10  # bytes of what is looked for: a name has 64 characters
NAME = rb"`(?:[^`\n]|``)+`"
HEAD = re.compile(rb"INSERT INTO %b(?: \((?:(?:%b|\w+)(?:, )?)+\))? VALUES \(" % (NAME, NAME))
KEYS, INSERT = b"\n/*!40000 ALTER TABLE ", b"\nINSERT INTO "


class RowCount:
    """`found`: rows by table, of these tables."""

    def __init__(self, tables: Sequence[str]) -> None:
        self.found = dict.fromkeys(tables, 0)
        self._begins = {KEYS + quoted(name).encode() + b" DISABLE KEYS": name for name in tables}
        self._held = b""  # where something that is looked for may begin
        self._seen: set[str] = set()
        self._table: str | None = None
        self._inside = False

    @property
    def unseen(self) -> list[str]:
        """Tables that did not come by."""
        return sorted(set(self.found) - self._seen)

    def through(self, read_into: Callable[[memoryview], int]) -> Callable[[memoryview], int]:
        """Reads the same, and counts."""
        if not self.found:
            return read_into

        def counted(view: memoryview) -> int:
            size = read_into(view)
            self._feed(bytes(view[:size]), last=size == 0)
            return size

        return counted

    def _feed(self, piece: bytes, *, last: bool) -> None:
        data = self._held + piece
        end = len(data) if last else max(0, len(data) - LONGEST)  # what is found begins before it
        at = 0
        while at < end:
            found = data.find(KEYS, at, min(end + len(KEYS) - 1, len(data)))
            until = end if found < 0 else found
            if self._inside and self._table is not None:
                row = INSERT + quoted(self._table).encode() + b" "
                self.found[self._table] += data.count(row, at, min(until + len(row) - 1, len(data)))
            if found >= 0:
                self._inside = data[found + 1 : data.find(b"\n", found + 1)].endswith(b" DISABLE KEYS */;")
                here = (name for line, name in self._begins.items() if data.startswith(line, found))
                self._table = next(here, None) if self._inside else None
                self._seen.update([self._table] if self._table is not None else [])
                until += 1
            at = until
        self._held = data[end:]


def only_of(pieces: Iterable[bytes | memoryview], tables: Iterable[str]) -> Iterator[bytes]:
    """A dump of tables without the rows of all others."""
    wanted = tuple(INSERT[1:] + quoted(name).encode() + b" " for name in tables)
    held, keeps = b"", None  # `keeps`: whether it keeps the line that the last piece has begun
    for piece in pieces:
        data, at, kept = held + bytes(piece), 0, []
        while at < len(data):
            end = data.find(b"\n", at) + 1
            if keeps is None:
                if not end and len(data) - at < LONGEST:
                    break  # whose row it is may come with the next piece
                keeps = data.startswith(wanted, at) or not data.startswith(INSERT[1:], at)
            if keeps:
                kept.append(data[at : end or None])
            at, keeps = end or len(data), None if end else keeps
        held = data[at:]
        yield b"".join(kept)
    yield held


def joined(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """A dump of tables with a statement for many rows: a server takes them twice as fast.

    Rows follow one another only in one table. Where a piece ends a statement ends, so none is larger than a piece.
    """
    for piece in pieces:
        data, at = bytes(piece), 0
        while (at := data.find(INSERT, at)) >= 0:
            if head := HEAD.match(data, at + 1):
                start = head.end()
                data = data[:start] + data[start:].replace(b");\n" + head[0], b"),\n(")
            at += 1
        yield data
