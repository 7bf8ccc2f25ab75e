"""This machine's own folder: where it is, and which repository was found where.

Whoever may write to a storage can put a repository of his own making there: everybody's public keys are in the list
of keys, so that it opens with everybody's credentials. Its id is another one. So a place is remembered with its
repository's id, and whoever comes to it for the first time can say which id he expects.
"""

from __future__ import annotations

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
SYSTEM = Path("/var/lib/pharmabackup")
EXPECTED_MIN = 16  # hexadecimal digits: fewer could be met by trying


def state_folder(state_dir: StrPath | None) -> Path:
    """Where this account keeps its caches: as given, from the environment, or the system's place for it.

    Unsupported("state-folder").
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
    """The folder, if it is this account's alone; else one of its own in it.

    In another account's folder, or in one that all may write to, anybody could put what is not this account's where
    it looks for its own, or make it write elsewhere by a link. Unsupported("state-folder") where somebody has.
    """
    if sys.platform == "win32":
        return folder
    own = folder / f"{OWN}{os.geteuid()}"
    try:
        found = folder.stat()
        if found.st_uid == os.geteuid() and not found.st_mode & stat.S_IWOTH:
            return folder
        with suppress(FileExistsError):
            own.mkdir(mode=0o700)
        made = own.lstat()
    except FileNotFoundError:
        return folder  # to be made
    except OSError:
        return own  # nothing can be kept there, which stops nobody
    if stat.S_ISDIR(made.st_mode) and made.st_uid == os.geteuid():
        return own
    raise Unsupported(
        f"{own} is not this account's, though it has its number: another account has put it there.",
        kind="state-folder",
        remedy="Find out which, and take it away; or give another folder with state_dir=.",
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
        raise StorageFailed(
            f"Which repository this machine knows in {location} cannot be looked up in its state folder: "
            f"{error.strerror}.",
            kind="state-folder",
            remedy="Try again. If its disk is broken, open with another state_dir=, and with repository= and the id "
            "from the recovery kit.",
            location=str(state),
        ) from None
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
