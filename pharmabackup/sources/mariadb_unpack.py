"""A copy of a MariaDB server's files on its way to being a data folder: unpacked, brought to one moment, verified."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from pharmabackup.errors import SourceFailed, Unsupported
from pharmabackup.sources.base import Content
from pharmabackup.sources.data_folder import DataFolder
from pharmabackup.sources.mysql_server import Version
from pharmabackup.sources.mysql_tools import Tools
from pharmabackup.sources.program import PIECE, Look, Program, Trouble
from pharmabackup.sources.tools import trouble

BACKUP = ("mariadb-backup", "mariabackup")
SECONDS = 24 * 3600
MEMORY = "512M"  # for pages that its log changes
AT_ONCE = 100  # files on a command line
LOCKED = ("ibdata1", "aria_log_control")  # by a server that runs
MAGIC = b"XBSTCK01"
PATH_MAX = 4096
LINK = ".isl"  # a file that says where a table's file is; a server with such is not backed up
PREPARE_SIGNS = (
    (b"rrcode: 28", "full", "the disk is full", "Free some space there."),
    (b"No space left", "full", "the disk is full", "Free some space there."),
    (b"encryption key", "missing", "the server's encryption keys are not here",
     "Put the key file where the server had it, and restore again."),
)  # fmt: skip
SETTINGS = "backup-my.cnf"  # which mariadb-backup reads when it prepares a backup
PLUGINS = ("../lib/mysql/plugin", "../lib64/mysql/plugin", "../lib/plugin")  # from where the programs are
_NUMBER, _WORD, _FILES = r"\d+", r"\w+", r"\w[\w.]*:\w+(:\w+)*(;\w[\w.]*:\w+(:\w+)*)*"
MAY_SAY = {
    "innodb_checksum_algorithm": _WORD,
    "innodb_data_file_path": _FILES,
    "innodb_log_file_size": _NUMBER,
    "innodb_page_size": _NUMBER,
    "innodb_undo_directory": r"\./?",
    "innodb_undo_tablespaces": _NUMBER,
    "innodb_compression_level": _NUMBER,
    "innodb_encrypt_log": _WORD,
    "innodb_encrypt_tables": _WORD,
    "plugin_load": r"file_key_management=file_key_management",
    "file_key_management_encryption_algorithm": _WORD,
    "file_key_management_filename": r".*",
    "file_key_management_filekey": r".*",
}


def refuse(facts: Mapping[str, object], tools: Tools, dataset: str) -> None:
    """Whether the programs are here that can make a data folder of it. Unsupported, SourceFailed."""
    _programs(facts, tools, dataset)


def _programs(facts: Mapping[str, object], tools: Tools, dataset: str) -> tuple[str, str, str]:
    wanted = Version(True, int(str(facts.get("major", 0))), int(str(facts.get("minor", 0))))
    if facts.get("product") != "MariaDB" or not wanted.major:
        raise Unsupported("That is no backup of a whole MariaDB server.", remedy="Restore it to a folder.")
    prepare, found = tools.program(BACKUP, wanted, dataset)
    if found != wanted:
        raise Unsupported(
            f"{dataset} is of MariaDB {wanted}, and only that version can start it; here is version {found}.",
            remedy=f"Install MariaDB {wanted}, or name its programs' folder as `tools`.",
        )
    return prepare, tools.helper("mbstream", dataset), tools.helper("innochecksum", dataset)


def runs(data: Path) -> bool:
    """Whether a server does: it holds some of its files."""
    for name in LOCKED:
        try:
            descriptor = os.open(data / name, os.O_RDWR)
        except FileNotFoundError:
            continue
        except PermissionError:  # on Windows, since it is open
            return True
        try:
            if _held(descriptor):
                return True
        finally:
            os.close(descriptor)
    return False


if sys.platform == "win32":

    def _held(_descriptor: int) -> bool:
        return False  # it could not have been opened

else:

    def _held(descriptor: int) -> bool:
        import fcntl

        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        return False  # closing it lets go


def unpack(
    target: DataFolder, content: Content, name: bytes, tools: Tools, dataset: str, *, overwrite: bool
) -> Mapping[str, object]:
    """Make the data folder; facts. SourceFailed."""
    prepare, extract, verify = _programs(content.facts, tools, dataset)
    with target.fresh(content.check, overwrite=overwrite) as fresh:
        with _run([extract, "-x", "-C", str(fresh)], dataset, _damaged, feed=True) as program:
            program.feed(_checked(content.read(name), dataset), content.check)
            program.finish(content.check)
        _look_into(fresh / SETTINGS, dataset)
        _all_of(
            [
                prepare,
                f"--defaults-file={fresh / SETTINGS}",
                "--prepare",
                *_plugins(prepare),
                f"--use-memory={MEMORY}",
                f"--target-dir={fresh}",
            ],
            dataset,
            content.check,
            lambda code, errors: trouble(PREPARE_SIGNS, "mariadb-backup", code, errors) or _damaged(code, errors),
        )
        (fresh / SETTINGS).unlink()  # a key's password may be in it
        pages = _tablespaces(fresh, content.facts)
        for begin in range(0, len(pages), AT_ONCE):
            _all_of([verify, *pages[begin : begin + AT_ONCE]], dataset, content.check, _damaged)
    facts = {"data": str(target.path), "files": len(pages), "verified": "innochecksum"}
    return facts | ({"replaced": target.replaced.name} if target.replaced is not None else {})


def _look_into(path: Path, dataset: str) -> None:
    """Whether these settings name nothing outside: a program would load it, or write there. SourceFailed.

    Where plugins are is taken out: this machine knows that.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except FileNotFoundError:
        raise _strange(dataset) from None
    kept = ["[mysqld]"]
    for line in map(str.strip, lines):
        if line and not line.startswith(("#", "plugin_dir=")) and line != "[mysqld]":
            name, _, value = line.partition("=")
            if name not in MAY_SAY or not re.fullmatch(MAY_SAY[name], value):
                raise _strange(dataset)
            kept.append(line)
    path.write_text("\n".join([*kept, ""]), encoding="utf-8", errors="surrogateescape")


def _plugins(program: str) -> list[str]:
    """Where its plugins are, such as the one that has the keys."""
    home = Path(os.path.realpath(program)).parent
    found = [str((home / place).resolve()) for place in PLUGINS if (home / place).is_dir()]
    return [f"--plugin-dir={found[0]}"] if found else []


def _damaged(_code: int, _errors: bytes) -> tuple[str, str, str]:
    return "damaged", "The files are not as the server had them.", "Restore an earlier backup, and look for why."


def _run(command: Sequence[str], dataset: str, trouble: Trouble, *, feed: bool = False) -> Program:
    return Program(command, dataset=dataset, seconds=SECONDS, feed=feed, env={"LC_ALL": "C"}, trouble=trouble)


def _all_of(command: Sequence[str], dataset: str, look: Look, trouble: Trouble) -> None:
    """Run it to its end; its output is not of interest."""
    with _run(command, dataset, trouble) as program:
        output, buffer = program.output(look), memoryview(bytearray(PIECE))
        while output(buffer):
            pass
        program.finish(look)


def _tablespaces(fresh: Path, facts: Mapping[str, object]) -> list[str]:
    """InnoDB's files, whose pages carry checksums."""
    settings = facts.get("settings")
    shared = str(settings.get("innodb_data_file_path", "")) if isinstance(settings, dict) else ""
    names = [part.split(":")[0] for part in shared.split(";") if part] or ["ibdata1"]
    found = [fresh / name for name in names] + sorted(fresh.glob("undo[0-9]*")) + sorted(fresh.glob("*/*.ibd"))
    return [str(path) for path in found]


def _checked(pieces: Iterable[bytes | memoryview], dataset: str) -> Iterator[bytes]:
    """The same, with the names in it looked at: whoever can back up must not write elsewhere when it is restored.

    A stream is one chunk after the other: MAGIC, flags (1 byte), type (1), the length of a path (4, as all numbers
    little-endian), the path; of type P also the length of what follows (8), where it goes (8), a CRC (4), content.
    SourceFailed.
    """
    held, skip = bytearray(), 0
    for piece in pieces:
        data = memoryview(piece)
        yield bytes(data)
        passed = min(skip, len(data))
        skip -= passed
        held += data[passed:]
        while not skip and (header := _header(held, dataset)):
            length, content = header
            del held[:length]
            skip = max(0, content - len(held))
            del held[:content]
    if held or skip:
        raise _strange(dataset)


def _header(held: bytearray, dataset: str) -> tuple[int, int] | None:
    """Of the chunk that begins here: its own length, and that of its content. None: more is needed."""
    if len(held) < 14:
        return None
    path_length = int.from_bytes(held[10:14], "little")
    if not held.startswith(MAGIC) or path_length > PATH_MAX or chr(held[9]) not in "PE":
        raise _strange(dataset)
    end = 14 + path_length
    whole = end + (20 if chr(held[9]) == "P" else 0)
    if len(held) < whole:
        return None
    text = held[14:end].decode("utf-8", "surrogateescape")
    path = PurePosixPath(text)
    if (
        path.is_absolute()
        or ".." in path.parts
        or not path.parts
        or set(text) & {"\\", ":", "\0"}
        or path.suffix.lower() == LINK
    ):
        raise _strange(dataset)
    return whole, int.from_bytes(held[end : end + 8], "little") if whole > end else 0


def _strange(dataset: str) -> SourceFailed:
    return SourceFailed(
        "The backup holds something that no server's folder has.",
        kind="damaged",
        remedy="Restore it to a folder, and look into base.mbstream with mbstream, in a place of its own.",
        dataset=dataset,
    )
