"""A copy of a MariaDB server's files on its way to being a data folder: unpacked, brought to one moment, verified."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path

from pharmabackup.errors import SourceFailed, Unsupported
from pharmabackup.sources.base import Content
from pharmabackup.sources.data_folder import DataFolder
from pharmabackup.sources.mbstream import SETTINGS, Strange, Stream, data_files
from pharmabackup.sources.mysql_server import Version
from pharmabackup.sources.mysql_tools import Tools
from pharmabackup.sources.program import LOOK_EVERY_S, PIECE, Look, Program, Trouble
from pharmabackup.sources.tools import trouble

BACKUP = ("mariadb-backup", "mariabackup")
SECONDS = 24 * 3600
MEMORY = "512M"  # for pages that its log changes
LOCKED = ("ibdata1", "aria_log_control")  # by a server that runs
SIGNS = (
    (b"rrcode: 28", "full", "the disk is full", "Free some space there."),
    (b"No space left", "full", "the disk is full", "Free some space there."),
    (b"encryption key", "missing", "the server's encryption keys are not here",
     "Put the key file where the server had it, and restore again."),
)  # fmt: skip
PLUGINS = ("../lib/mysql/plugin", "../lib64/mysql/plugin", "../lib/plugin")  # from where the programs are
VERIFIERS = 2  # files at once
KEY_FILES = ("file_key_management_filename", "file_key_management_filekey")


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
    return prepare, tools.helper("mbstream", prepare, dataset), tools.helper("innochecksum", prepare, dataset)


def runs(data: Path) -> bool:
    """Whether a server does: it holds some of its files. OSError where that cannot be seen."""
    for name in LOCKED:
        try:
            descriptor = os.open(data / name, os.O_RDWR)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError:
            if sys.platform == "win32":  # it is open
                return True
            raise
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
    stream = Stream()
    with target.fresh(content.check, overwrite=overwrite) as fresh:
        with _run([extract, "-x", "-C", str(fresh)], dataset, _unpacked, feed=True) as program:
            try:
                program.feed(stream.through(content.read(name)), content.check)
            except Strange as error:
                raise _strange(error, dataset) from None
            program.finish(content.check)
        for line in stream.settings:
            option, _, file = line.partition("=")
            file = file.removeprefix("FILE:") if option == "file_key_management_filekey" else file
            if option in KEY_FILES and os.path.exists(file) and not os.path.isfile(file):
                raise _strange(Strange("a key file that is none"), dataset)
        (fresh / SETTINGS).write_text("\n".join([*stream.settings, ""]), encoding="utf-8", errors="surrogateescape")
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
            lambda code, errors: trouble(SIGNS, "mariadb-backup", code, errors) or DAMAGED,
        )
        (fresh / SETTINGS).unlink()  # a key's password may be in it
        pages = [fresh / file for file in data_files(stream.settings)]
        pages += [*sorted(fresh.glob("undo[0-9]*")), *sorted(fresh.glob("*/*.ibd"))]
        _verify(verify, pages, dataset, content.check)
    facts = {"data": str(target.path), "files": len(pages), "verified": "innochecksum"}
    return facts | ({"replaced": target.replaced.name} if target.replaced is not None else {})


def _plugins(program: str) -> list[str]:
    """Where its plugins are, such as the one that has the keys."""
    home = Path(os.path.realpath(program)).parent
    found = [str((home / place).resolve()) for place in PLUGINS if (home / place).is_dir()]
    return [f"--plugin-dir={found[0]}"] if found else []


def _verify(program: str, files: Sequence[Path], dataset: str, look: Look) -> None:
    """Each page against its checksum. A program for each file: it would take the next to be of the same format."""
    stop = threading.Event()

    def stopped() -> None:
        if stop.is_set():
            raise SourceFailed("It was stopped.", dataset=dataset)

    with ThreadPoolExecutor(VERIFIERS, thread_name_prefix="pharmabackup-verifying") as threads:
        under_way: set[Future[None]] = set()
        next_ones = iter(files)
        try:
            while True:
                for file in islice(next_ones, 2 * VERIFIERS - len(under_way)):
                    under_way.add(threads.submit(_all_of, [program, str(file)], dataset, stopped, _summed))
                if not under_way:
                    break
                done, under_way = wait(under_way, LOOK_EVERY_S, FIRST_COMPLETED)
                look()
                for each in done:
                    each.result()
        except BaseException:
            stop.set()
            raise


DAMAGED = "damaged", "The files are not as the server had them.", "Restore an earlier backup, and look for why."


def _unpacked(code: int, errors: bytes) -> tuple[str, str, str] | None:
    known = trouble(SIGNS, "mbstream", code, errors)
    return known or (DAMAGED if b"checksum" in errors or b"chunk" in errors else None)


def _summed(code: int, _errors: bytes) -> tuple[str, str, str] | None:
    return DAMAGED if code == 1 else None  # else it did not come to an end


def _run(command: Sequence[str], dataset: str, trouble: Trouble, *, feed: bool = False) -> Program:
    return Program(command, dataset=dataset, seconds=SECONDS, feed=feed, env={"LC_ALL": "C"}, trouble=trouble)


def _all_of(command: Sequence[str], dataset: str, look: Look, trouble: Trouble) -> None:
    """Run it to its end; its output is not of interest."""
    with _run(command, dataset, trouble) as program:
        output, buffer = program.output(look), memoryview(bytearray(PIECE))
        while output(buffer):
            pass
        program.finish(look)


def _strange(error: Strange, dataset: str) -> SourceFailed:
    return SourceFailed(
        f"The backup is none that a server's folder is made of: it has {error}.",
        kind="damaged",
        remedy="Restore it to a folder, and look into base.mbstream with mbstream, in a place of its own.",
        dataset=dataset,
    )
