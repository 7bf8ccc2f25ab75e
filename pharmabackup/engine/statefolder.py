"""This machine's own folder: where it is, and which repository was found where.

Whoever may write to a storage can put a repository of his own making there: everybody's public keys are in the list
of keys, so that it opens with everybody's credentials. Its id is another one. So a place is remembered with its
repository's id, and whoever comes to it for the first time can say which id he expects.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from pharmabackup.errors import Damaged, InvalidInput, StorageFailed, Unsupported

StrPath = str | os.PathLike[str]
PLACE = re.compile(r"(?P<repository>[0-9a-f]{16})-(?P<slot>[0-9a-f]{8})-(?P<place>[0-9a-f]{8})-")
AUDIT_QUEUE = "audit-queue"  # in it, a folder each: whoever looks for what was where does not find them
OWN = "~u"  # before an account's number: the name of its own folder where another one is not its alone
KEEPS_NOTHING = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR})
SYSTEM = Path("/var/lib/pharmabackup")
EXPECTED_MIN = 16  # hexadecimal digits: fewer could be met by trying


def state_folder(state_dir: StrPath | None) -> Path:
    """Where this account keeps its caches: as given, from the environment, or the system's place for it.

    Unsupported and StorageFailed, both of the kind "state-folder".
    """
    given = state_dir or os.environ.get("PHARMABACKUP_STATE")
    if given:
        return _own(Path(given))
    if sys.platform == "win32":
        return Path(os.environ.get("PROGRAMDATA", r"C:\ProgramData")) / "pharmabackup"
    if os.access(SYSTEM if SYSTEM.exists() else SYSTEM.parent, os.W_OK):
        return _own(SYSTEM)
    with suppress(RuntimeError):  # an account without a home
        home = Path.home()
        state = Path(os.environ.get("XDG_STATE_HOME") or home / ".local" / "state")
        if state.exists() or os.access(home, os.W_OK):
            return _own(state / "pharmabackup")
    return _own(Path(tempfile.gettempdir()) / "pharmabackup")


def _own(folder: Path) -> Path:
    """The folder, if it is this account's alone, made if it is not there; else one of its own in it.

    In another account's folder, or in one that others may write to, anybody could put what is not this account's
    where it looks for its own, or make it write elsewhere by a link. Unsupported("state-folder") where somebody has;
    StorageFailed("state-folder").
    """
    if sys.platform == "win32":
        return folder
    own, made = folder / f"{OWN}{os.geteuid()}", False
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700, parents=True)
        if folder.lstat().st_uid not in (os.geteuid(), 0) and folder.is_symlink():
            raise _not_own(folder, "is another account's link")
        if _is_own(folder.stat()):
            return folder
        if not os.path.lexists(own):
            if any(PLACE.match(name) and _is_own((folder / name).lstat()) for name in os.listdir(folder)):
                raise _not_own(folder, "was this account's alone, and is not any more")
            with suppress(FileExistsError):  # another process was faster
                own.mkdir(mode=0o700)
                made = True
        if _is_own(own.lstat()):
            return own
    except OSError as error:
        if error.errno not in KEEPS_NOTHING:
            raise unreadable(folder, error) from None
        return own  # nothing can be kept there, which stops nobody
    if made:
        own.rmdir()
        raise _not_own(folder, "is on a file system that does not keep whose files are")
    raise _not_own(own, "was put there by another account")


def _is_own(found: os.stat_result) -> bool:
    """A folder that this account alone writes to."""
    mode = found.st_mode
    return stat.S_ISDIR(mode) and found.st_uid == os.geteuid() and not mode & (stat.S_IWOTH | stat.S_IWGRP)


def _not_own(folder: Path, why: str) -> Unsupported:
    return Unsupported(
        f"{folder} {why}, so that what this machine remembers is not safe there.",
        kind="state-folder",
        remedy="Find out why, and put it right (chown, chmod go-w); or give another folder (state_dir=, "
        "PHARMABACKUP_STATE).",
    )


def unreadable(state: Path, error: OSError) -> StorageFailed:
    """Whoever goes on would take a place for one where this machine never was."""
    return StorageFailed(
        f"The state folder {state} cannot be read: {error.strerror}. It says which repository was where.",
        kind="state-folder",
        remedy="Try again. If its disk is broken, give another one (state_dir=, PHARMABACKUP_STATE) and the id "
        "from the recovery kit (repository=, --id).",
        location=str(state),
    )


def state_name(location: str, slot: bytes, repository: bytes) -> str:
    """One folder a repository and location: replicas of one repository do not hold the same objects."""
    place = re.sub(r"[^A-Za-z0-9]+", "-", location)[-40:].strip("-")
    return f"{repository.hex()[:16]}-{slot.hex()[:8]}-{_place(location)}-{place}"


def check_identity(location: str, repository: str, state: Path, expected: str | None, *, forgets: bool) -> None:
    """Damaged("another-repository") when it is not the expected one; without that, not the one that was there before.

    `repository`: the id, 64 hexadecimal digits. `forgets`: where one is expected, what is known of others there is of
    no use any more. InvalidInput when too little is expected; StorageFailed("state-folder") when what was there
    before cannot be looked up.
    """
    if expected is not None:
        wanted = expected.strip().lower()
        if not re.fullmatch(r"[0-9a-f]{16,64}", wanted):
            raise InvalidInput(
                f"A repository's id has 64 hexadecimal digits; at least the first {EXPECTED_MIN} are needed.",
                remedy="Read it off the recovery kit, or off Repository.id on a machine that knows it.",
            )
        if not repository.startswith(wanted):
            raise _another(location, wanted)
        if forgets:
            forget_place(location, state, but=repository)
        return
    try:
        others = {found["repository"] for found in _known(location, state)} - {repository[:16]}
    except OSError as error:
        raise unreadable(state, error) from None
    if others:
        raise _another(location, min(others))


def forget_place(location: str, state: Path, *, but: str = "") -> None:
    """What this machine knew of another repository there is of no use any more: a person has said so.

    But for audit records that wait: they are of use when that one is there again.
    """
    with suppress(OSError):  # a person says so again, then
        for found in _known(location, state):
            if found["repository"] != but[:16]:
                shutil.rmtree(state / found.string, ignore_errors=True)


def _another(location: str, known: str) -> Damaged:
    return Damaged(
        f"In {location} there is another repository than the one whose id begins with {known[:EXPECTED_MIN]}.",
        kind="another-repository",
        remedy="Somebody may have put it there: compare its id with the recovery kit before anything else. "
        "If it is the right one, open it with repository= and its id.",
    )


def _known(location: str, state: Path) -> list[re.Match[str]]:
    """OSError."""
    try:
        names = os.listdir(state)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError:
        if os.path.lexists(state):
            raise
        return []  # it lies in what is closed to this account, and so does all that it could remember
    place = _place(location)
    return [found for name in names if (found := PLACE.match(name)) is not None and found["place"] == place]


def _place(location: str) -> str:
    return hashlib.sha256(location.encode()).hexdigest()[:8]
