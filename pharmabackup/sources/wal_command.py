"""What PostgreSQL calls for each file of its write-ahead log: a script of its own.

It is started for every segment, so it imports next to nothing, and nothing of this package. PostgreSQL keeps a file
until its `archive_command` has ended with 0, and calls it again
(https://www.postgresql.org/docs/current/continuous-archiving.html). What `restore_command` makes of our codes is in
`wal_settings`.
"""

from __future__ import annotations

import os
import sys
import time

WAIT_S = 5.0  # for what archives to have stored a file; PostgreSQL asks again, and waits for us when it is stopped
LOOK_EVERY_S = 0.005
PIECE = 1 << 20
AGAIN, OTHER, NO_SUCH_FILE, STOP = 1, 2, 44, 45
ABSENT = 4  # how `pharmabackup wal-get` ends where there is no such file; 1 may be anything


def say(text: str) -> None:
    """Into the server's log."""
    sys.stderr.write(f"pharmabackup: {text}.\n")


def system(data: str) -> str:
    """The cluster's identifier: the first eight bytes of its control file."""
    with open(os.path.join(data, "global", "pg_control"), "rb") as file:
        return str(int.from_bytes(file.read(8), sys.byteorder))


def digest(path: str) -> str:
    import hashlib  # as a rule it is not needed

    with open(path, "rb") as file:
        found = hashlib.sha256()
        while piece := file.read(PIECE):
            found.update(piece)
        return found.hexdigest()


def mark(digest_of_it: str, status: os.stat_result) -> str:
    """What is noted of a file that is safe: its SHA-256, and by what it is known as the very file that was read."""
    return f"{digest_of_it} {status.st_size} {status.st_mtime_ns} {status.st_ino}\n"


def archived(spool: str, path: str, wait: float = WAIT_S) -> int:
    """Wait until exactly this file is in the repository; the exit code."""
    noted = os.path.join(spool, system("."), os.path.basename(path))
    until = time.monotonic() + wait
    while True:
        try:
            with open(noted, encoding="utf-8") as file:
                stored = file.readline()
            break
        except FileNotFoundError:
            if time.monotonic() > until:
                say("not archived yet. Check that `pharmabackup follow` runs")
                return AGAIN
            time.sleep(LOOK_EVERY_S)
    known, _, _ = stored.partition(" ")
    if stored == mark(known, os.stat(path)) or known == digest(path):
        return 0
    say("what is archived under this name is something else")
    return OTHER


def fetched(ahead: str, name: str, path: str, command: list[str]) -> int:
    """Take what was fetched ahead, or have it fetched; the exit code."""
    there = os.path.join(ahead, name)
    if os.path.exists(there):
        try:
            os.replace(there, path)
        except OSError:  # pg_wal may lie on another disk
            with open(there, "rb") as source, open(path, "wb") as target:
                while piece := source.read(PIECE):
                    target.write(piece)
            os.unlink(there)
        return 0
    import subprocess  # it takes a third of the time that is needed without it

    code = subprocess.call(command)
    return 0 if code == 0 else NO_SUCH_FILE if code == ABSENT else STOP


def main(arguments: list[str]) -> int:
    what, folder, *rest = arguments
    if what == "end":
        if os.path.isdir(folder):
            for name in os.listdir(folder):
                os.unlink(os.path.join(folder, name))
            os.rmdir(folder)
        return 0
    if what == "archive":
        return archived(folder, rest[0])
    return fetched(folder, rest[0], rest[1], rest[2:])


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except OSError as error:
        say(f"{error.strerror}: {error.filename}")
        sys.exit(STOP)
