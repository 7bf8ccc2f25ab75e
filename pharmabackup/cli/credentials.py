"""Who you are, on a command line: from the environment, a file, a vault or a prompt, never from an argument.

Every user of a machine can read the arguments of every program that runs on it.
"""

from __future__ import annotations

import getpass
import os
import stat
import sys
from collections.abc import Callable

import pharmabackup as pb

FILE_MAX = 1 << 16
ATTEMPTS = 3
WAYS = "ask, env:NAME, file:PATH, keyfile:PATH, vault:SERVICE/NAME or shares"
REFERENCE = "PHARMABACKUP_CREDENTIAL"
PASSPHRASE = "PHARMABACKUP_PASSPHRASE"  # noqa: S105  (a variable's name)


def credential(
    reference: str | None, warn: Callable[[str], None], *, new: bool = False, option: str = "--credential"
) -> pb.Passphrase | pb.KeyFile | pb.Vault | pb.Shares:
    """What `option` or the environment names. `new`: a prompt asks twice. WrongCredential, InvalidInput."""
    chosen = reference or os.environ.get(REFERENCE) or None
    if chosen is None:
        secret = os.environ.get(PASSPHRASE)
        if secret:
            return pb.Passphrase(secret)
        chosen = "ask"
    way, _, rest = chosen.partition(":")
    if way == "ask" and not rest:
        return pb.Passphrase(_ask_new(option) if new else _ask("Passphrase: ", option))
    if way == "env" and rest:
        return pb.Passphrase(_environment(rest))
    if way == "file" and rest:
        return pb.Passphrase(_file(rest, warn))
    if way == "keyfile" and rest:
        _look_at(rest, warn)
        return pb.KeyFile(rest)
    if way == "vault" and "/" in rest:
        service, _, name = rest.partition("/")
        return pb.Vault(service, name)
    if way == "shares" and not rest:
        return shares()
    # What was given is not repeated: it may be the passphrase itself.
    raise pb.InvalidInput(f"{option} names a place, and this is none.", remedy=f"Give {WAYS}.")


def _missing(message: str, remedy: str) -> pb.WrongCredential:
    return pb.WrongCredential(message, kind="no-credential", remedy=remedy)


def _ask(prompt: str, option: str) -> str:
    if not sys.stdin.isatty():
        raise _missing(
            "There is no passphrase, and nobody at a terminal to ask.",
            f"Give {option} ({WAYS})" + (f" or set {REFERENCE}." if option == "--credential" else "."),
        )
    try:
        return getpass.getpass(prompt)
    except EOFError:
        raise _missing("No passphrase was typed.", "Run it again and type it.") from None


def _ask_new(option: str) -> str:
    """Twice, since nobody sees what is typed and a slip would lock everything away for good."""
    for _ in range(ATTEMPTS):
        secret = _ask("New passphrase, 12 characters or more: ", option)
        if _ask("Again: ", option) == secret:
            return secret
        print("They differ. Type it twice, the same.", file=sys.stderr)  # noqa: T201  (it belongs to the prompt)
    raise pb.InvalidInput("The passphrase was never the same twice.", remedy="Run it again.")


def _environment(name: str) -> str:
    secret = os.environ.get(name)
    if not secret:
        raise _missing(f"The environment has no variable {name}.", "Set it, or name another place.")
    return secret


def _file(path: str, warn: Callable[[str], None]) -> str:
    """A file's content without its last line end. Refused when every user of the machine can read it."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(FILE_MAX + 1)
    except OSError as error:
        raise _missing(f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions.") from None
    if os.name == "posix" and stat.S_ISREG(mode):
        if mode & stat.S_IROTH:
            raise pb.WrongCredential(
                f"Every user of this machine can read {path}.",
                kind="unsafe-file",
                remedy=f"Change the passphrase if others used this machine; then: chmod 600 {path}.",
            )
        if mode & stat.S_IRGRP:
            warn(f"Warning: the group of {path} can read it. Better: chmod 600 {path}.")
    try:
        secret = data.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise _missing(f"{path} holds no text.", "Write the passphrase into it, as UTF-8.") from None
    if not secret or len(data) > FILE_MAX:
        raise _missing(f"{path} holds no passphrase.", "Write the passphrase into it, and nothing else.")
    return secret


def _look_at(path: str, warn: Callable[[str], None]) -> None:
    """A key may lie on a stick that keeps no permissions, and is needed after a fire: this is said, not refused."""
    try:
        readable = os.name == "posix" and os.stat(path).st_mode & (stat.S_IRGRP | stat.S_IROTH)
    except OSError:
        return  # opening says what is wrong
    if readable:
        warn(f"Warning: others on this machine can read {path}. Better: chmod 600 {path}.")


def shares() -> pb.Shares:
    """One after another, as many as there are: typed unseen, or a line each. InvalidInput, WrongCredential."""
    if not sys.stdin.isatty():
        return pb.Shares(*(line for line in sys.stdin if line.strip()))
    given: list[str] = []
    while share := getpass.getpass(f"Share {len(given) + 1}, all its words; none when there are no more: "):
        given.append(share)
    return pb.Shares(*given)


def one_share() -> str:
    """Typed unseen, or the first line. WrongCredential."""
    share = getpass.getpass("Share, all its words: ") if sys.stdin.isatty() else sys.stdin.readline()
    if not share.strip():
        raise _missing("No share was given.", "Run it again and type it.")
    return share
