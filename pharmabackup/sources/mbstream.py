"""The stream that mariadb-backup writes: read in passing, so that nothing in it reaches outside of a data folder.

A stream is one chunk after the other: MAGIC, flags (1 byte), type (1), the length of a path (4, as all numbers
little-endian), the path; of type P also the length of what follows (8), where it goes (8), a CRC (4), content.

What is refused when it is restored is refused when it is backed up, too: a backup that is there can come back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

MAGIC = b"XBSTCK01"
HEAD = 14  # bytes before a path
PATH_MAX = 4096
SMALL = 64 << 10  # bytes of what is looked into
SETTINGS = "backup-my.cnf"  # which mariadb-backup reads when it prepares a backup
LINK = ".isl"  # a file that says where a table's file is
RENAMED = ".ren"  # a file that says what a table was called later: mariadb-backup renames it
LINE_MAX = 400  # bytes; mariadb-backup takes what is longer for several lines
_PATH = r"""[^"'#]*"""  # which would be taken for something else than they are
_NUMBER, _WORD, _FILE = r"\d+", r"[\w-]+", r"\w[\w.-]*:\w+(?::\w+)*"
_PLUGIN = "|".join(
    rf"{name}={name}(?:\.so|\.dll)?"
    for name in ("file_key_management", *(f"provider_{kind}" for kind in ("bzip2", "lz4", "lzma", "lzo", "snappy")))
)
# Settings that are known, and what they may say. All name nothing outside but a key file, which is read.
MAY_SAY = {
    "innodb_checksum_algorithm": _WORD,
    "innodb_compression_level": _NUMBER,
    "innodb_data_file_path": rf"{_FILE}(?:;{_FILE})*",
    "innodb_encrypt_log": _WORD,
    "innodb_encrypt_tables": _WORD,
    "innodb_log_file_size": _NUMBER,
    "innodb_page_size": _NUMBER,
    "innodb_undo_tablespaces": _NUMBER,
    "plugin_load": rf"(?:{_PLUGIN})(?:;(?:{_PLUGIN}))*;?",
    "file_key_management_digest": _WORD,
    "file_key_management_encryption_algorithm": _WORD,
    "file_key_management_filekey": _PATH,
    "file_key_management_filename": _PATH,
    "file_key_management_use_pbkdf2": _WORD,
}
# What this machine knows better: where plugins are, and that undo logs are in the folder itself.
OURS = ("plugin_dir", "innodb_undo_directory")


class Strange(Exception):
    """What no backup of a server that can be restored has; in words that go on from "it has "."""


class Stream:
    """One stream, as it passes by. `settings`: the lines that are for the program that prepares it, when it ends."""

    def __init__(self) -> None:
        self.settings: list[str] = []
        self._held = bytearray()
        self._skip = 0
        self._small: dict[str, bytearray] = {}
        self._into: bytearray | None = None  # where the content that comes is kept
        self._spelled: dict[str, str] = {}  # by what a file's path means: how it was written

    def through(self, pieces: Iterable[bytes | memoryview]) -> Iterator[bytes]:
        """The same pieces. Strange; nothing of what is strange is passed on."""
        for piece in pieces:
            data = bytes(piece)
            self.feed(data)
            yield data
        self.end()

    def feed(self, piece: bytes | memoryview) -> None:
        data = memoryview(piece)
        while data or self._held:
            passed = min(self._skip, len(data))
            self._keep(data[:passed])
            self._skip -= passed
            data = data[passed:]
            if self._skip:
                return
            taken = min(len(data), HEAD + PATH_MAX + 20)
            self._held += data[:taken]
            length = self._header()
            if length is None:
                data = data[taken:]
                if not data:
                    return
                continue
            over = len(self._held) - length  # of what was just taken: content comes after the header
            data = data[taken - over :]
            self._held.clear()

    def end(self) -> None:
        if self._held or self._skip:
            raise Strange("no end")
        for path, content in self._small.items():
            if path != SETTINGS:
                name = content.decode("utf-8", "surrogateescape")
                if not re.fullmatch(r"[^/\\:\0]+/[^/\\:\0]+", name) or ".." in name.split("/"):
                    raise Strange("a table that is renamed to another place")
        if SETTINGS not in self._small:
            raise Strange("no settings")
        self.settings = checked_settings(bytes(self._small[SETTINGS]))

    def _keep(self, content: memoryview) -> None:
        if self._into is not None:
            self._into += content
            if len(self._into) > SMALL:
                raise Strange("a small file that is large")

    def _header(self) -> int | None:
        """How long the header is that begins here, once all of it is there."""
        held = self._held
        if not MAGIC.startswith(bytes(held[: len(MAGIC)])):
            raise Strange("something that is no stream")
        if len(held) < HEAD:
            return None
        end = HEAD + int.from_bytes(held[10:HEAD], "little")
        if chr(held[9]) not in "PE" or end > HEAD + PATH_MAX:
            raise Strange("a chunk of another kind")
        has_content = chr(held[9]) == "P"
        if len(held) < end + 20 * has_content:
            return None
        path = held[HEAD:end].decode("utf-8", "surrogateescape")
        self._look_at(path)
        small = path == SETTINGS or path.lower().endswith(RENAMED)
        self._into = self._small.setdefault(path, bytearray()) if small else None
        self._skip = int.from_bytes(held[end : end + 8], "little") if has_content else 0
        return end + 20 * has_content

    def _look_at(self, path: str) -> None:
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts or set(path) & {"\\", ":", "\0"}:
            raise Strange("a file outside of the folder")
        if self._spelled.setdefault(str(pure), path) != path:
            raise Strange("one file under two names")
        if pure.suffix.lower() == LINK:
            raise Strange("tables whose files are outside of the data folder")


def checked_settings(content: bytes) -> list[str]:
    """The lines of `backup-my.cnf`, without those that this machine knows better. Strange."""
    kept = ["[mysqld]"]
    for raw in content.splitlines():
        line = raw.strip().decode("utf-8", "surrogateescape")
        if not line or line.startswith("#") or line == "[mysqld]":
            continue
        name, _, value = line.partition("=")
        if name in OURS:
            continue
        if len(raw) > LINE_MAX or not line.isprintable() or not re.fullmatch(MAY_SAY.get(name, r"(?!)"), value):
            raise Strange(f"a setting that is not known ({name[:40]!a})")
        kept.append(line)
    return [*kept, "innodb_undo_directory=./"]


def data_files(settings: Iterable[str]) -> list[str]:
    """The names of the system tablespace's files."""
    path = "innodb_data_file_path="
    found = next((line.removeprefix(path) for line in settings if line.startswith(path)), "ibdata1:12M")
    return [part.split(":")[0] for part in found.split(";")]
