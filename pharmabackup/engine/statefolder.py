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
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from pharmabackup.errors import Damaged, InvalidInput, StorageFailed

StrPath = str | os.PathLike[str]
PLACE = re.compile(r"(?P<repository>[0-9a-f]{16})-(?P<slot>[0-9a-f]{8})-(?P<place>[0-9a-f]{8})-")
AUDIT_QUEUE = "audit-queue"  # in it, a folder each: whoever looks for what was where does not find them
OWN = "~u"  # before an account's number, at the end of the name of a folder of its own; no place has that sign
EXPECTED_MIN = 16  # hexadecimal digits: fewer could be met by trying


def state_folder(state_dir: StrPath | None) -> Path:
    """Where this machine keeps its caches: as given, from the environment, or the system's place for it."""
    given = state_dir or os.environ.get("PHARMABACKUP_STATE")
    if given:
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("PROGRAMDATA", r"C:\ProgramData")) / "pharmabackup"
    shared = Path("/var/lib/pharmabackup")
    if os.access(shared if shared.exists() else shared.parent, os.W_OK):
        return shared
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return home / "pharmabackup" if home.parent.exists() else Path(tempfile.gettempdir()) / "pharmabackup"


def state_name(location: str, slot: bytes, repository: bytes) -> str:
    """One folder a repository and location: replicas of one repository do not hold the same objects."""
    place = re.sub(r"[^A-Za-z0-9]+", "-", location)[-40:].strip("-")
    return f"{repository.hex()[:16]}-{slot.hex()[:8]}-{_place(location)}-{place}"


def own_folder(folder: Path) -> Path:
    """A folder of this account's own, where another account has made the one of that name and keeps it to itself.

    Whoever once had one of his own keeps it, whatever becomes of the other.
    """
    if sys.platform == "win32":
        return folder
    own = folder.with_name(f"{folder.name}{OWN}{os.getuid()}")
    with suppress(OSError):
        if not os.path.lexists(own) and (not os.path.lexists(folder) or _may_change(folder)):
            return folder  # also one that has become read-only: what is remembered in it counts
    return own


def _may_change(folder: Path) -> bool:
    """Whether it is this account's, or one that it may write to. OSError."""
    if sys.platform == "win32":
        return True
    return folder.stat().st_uid == os.getuid() or os.access(folder, os.W_OK | os.X_OK)


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
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    place, known = _place(location), list[re.Match[str]]()
    for name in names:
        found = PLACE.match(name)
        if found is None or found["place"] != place:
            continue
        with suppress(FileNotFoundError, PermissionError):
            # What another account remembers is its own matter: this one could not forget it either.
            if _may_change(state / name):
                known.append(found)
    return known


def _place(location: str) -> str:
    return hashlib.sha256(location.encode()).hexdigest()[:8]
