"""Who you are: what a person or a machine opens a repository with."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import re
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import NoReturn

from pharmabackup.errors import Conflict, InvalidInput, NotFound, StorageFailed

PASSPHRASE_MIN = 12
SEED_SIZE = 32  # bytes of a key file's secret: X-Wing's seed
PUBLIC_SIZE = 1216
KEY_TITLE = "pharmabackup key 1"
RECIPIENT_TITLE = "pharmabackup recipient 1"
FINGERPRINT_BYTES = 10
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32: nothing that is read for something else
LINE = 76
FILE_MAX = 1 << 16

StrPath = str | os.PathLike[str]


class Credential:
    """The base of all credentials."""

    __slots__ = ()


class Passphrase(Credential):
    """A passphrase, stretched with Argon2id. Under 12 characters is refused when enrolled, never when opening."""

    __slots__ = ("_secret",)

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def reveal(self) -> str:
        """The passphrase itself: for key derivation alone."""
        return self._secret

    def check_enrollable(self) -> None:
        """InvalidInput when it is too short to protect a repository."""
        if len(self._secret) < PASSPHRASE_MIN:
            raise InvalidInput(
                f"This passphrase is shorter than {PASSPHRASE_MIN} characters.",
                remedy="Choose a longer one: four or five random words are good.",
            )

    def __repr__(self) -> str:
        return "Passphrase(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("A passphrase is not pickled: pass it on by other means.")


class Recipient:
    """A public key, by which somebody is enrolled without a secret travelling. Compare its fingerprint by phone.

    `text`: its title, its fingerprint, and 1,216 bytes in base 64. The fingerprint is the first 80 bits of the
    SHA-256 of the key in Crockford's base 32, in groups of four.
    """

    __slots__ = ("_raw",)

    def __init__(self, text: str) -> None:
        """InvalidInput when a character of it was lost or changed."""
        fingerprint, raw = _parsed(text, RECIPIENT_TITLE, "a recipient's public key", "Ask for the file once more.")
        if len(raw) != PUBLIC_SIZE or fingerprint != fingerprint_of(raw):
            raise InvalidInput(
                "This recipient's public key is not whole.",
                kind="recipient",
                remedy="Ask for the file once more, and compare its fingerprint by phone.",
            )
        self._raw = raw

    @property
    def raw(self) -> bytes:
        """ML-KEM-768 encapsulation key (1,184 bytes) | X25519 public key (32 bytes)."""
        return self._raw

    @property
    def fingerprint(self) -> str:
        """For people to compare: "K7QF-2M9X-8D3P-VW41"."""
        return fingerprint_of(self._raw)

    @classmethod
    def of(cls, raw: bytes) -> Recipient:
        """That of a public key of 1,216 bytes."""
        made = cls.__new__(cls)
        made._raw = raw
        return made

    def __str__(self) -> str:
        return _written(RECIPIENT_TITLE, self.fingerprint, self._raw)

    def __repr__(self) -> str:
        return f"<Recipient {self.fingerprint}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipient) and self._raw == other._raw

    def __hash__(self) -> int:
        return hash(self._raw)


class Secret(Credential, ABC):
    """A credential that is a key: it has a public half, to which others seal."""

    __slots__ = ()

    @abstractmethod
    def reveal(self) -> bytes:
        """The 32 bytes of the secret: for key derivation alone. NotFound, InvalidInput, StorageFailed."""

    @property
    def recipient(self) -> Recipient:
        """Its public half. NotFound, InvalidInput, StorageFailed."""
        from pharmabackup.crypto.recipients import PrivateKey

        return Recipient.of(PrivateKey.from_seed(self.reveal()).public.raw)


class KeyFile(Secret):
    """A key in a file that only its Windows account, or Unix user, can read."""

    __slots__ = ("_path",)

    def __init__(self, path: StrPath) -> None:
        self._path = Path(path)

    @classmethod
    def create(cls, path: StrPath) -> KeyFile:
        """A new key in a new file, and its public half in `path` with .pub after it. Conflict, StorageFailed."""
        made = cls(path)
        seed = os.urandom(SEED_SIZE)
        public = made._path.with_name(made._path.name + ".pub")
        try:
            if public.exists():
                raise FileExistsError
            _write_private(made._path, _written(KEY_TITLE, _checksum(seed), seed))
            try:
                with public.open("x", encoding="ascii") as file:
                    file.write(str(made.recipient))
            except OSError:
                made._path.unlink(missing_ok=True)
                raise
        except FileExistsError:
            raise Conflict(
                f"There is a key in {made._path} or beside it already.",
                kind="key-exists",
                remedy="Use it, or choose another name for a new one.",
            ) from None
        except OSError as error:
            raise _unusable(made._path, error) from None
        return made

    def reveal(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                text = file.read(FILE_MAX).decode("ascii", "replace")
        except FileNotFoundError:
            raise NotFound(
                f"There is no key file {self._path}.",
                kind="key-file",
                remedy="Give the path of one, or plug in what it is on.",
            ) from None
        except OSError as error:
            raise _unusable(self._path, error) from None
        return _seed(text, f"The file {self._path}")

    def __repr__(self) -> str:
        return f"KeyFile({str(self._path)!r})"


class Vault(Secret):
    """An entry of the system's vault: Windows Credential Manager, Keychain, Secret Service. Extra: vault.

    The entry is a key that `create` has made there, or a passphrase that somebody has typed in.
    """

    __slots__ = ("_name", "_service")

    def __init__(self, service: str, name: str) -> None:
        self._service = service
        self._name = name

    @classmethod
    def create(cls, service: str, name: str) -> Vault:
        """A new key, which never leaves this machine's vault. Conflict, StorageFailed, Unsupported."""
        made = cls(service, name)
        if made._read() is not None:
            raise Conflict(
                f"The vault has an entry {name!r} of {service!r} already.",
                kind="key-exists",
                remedy="Use it, or choose another name for a new one.",
            )
        seed = os.urandom(SEED_SIZE)
        written = " ".join((KEY_TITLE, _checksum(seed), base64.b64encode(seed).decode()))
        from pharmabackup.crypto.vault import write

        write(service, name, written)
        return made

    def _read(self) -> str | None:
        from pharmabackup.crypto.vault import read

        return read(self._service, self._name)

    def found(self) -> Passphrase | bytes:
        """What the entry holds: a passphrase, or the seed of a key. NotFound, InvalidInput, StorageFailed."""
        text = self._read()
        if text is None:
            raise NotFound(
                f"The vault has no entry {self._name!r} of {self._service!r}.",
                kind="vault-entry",
                remedy="Look for it as the Windows account, or user, that it was made by, or create one.",
            )
        if not text.startswith(KEY_TITLE):
            return Passphrase(text)
        return _seed(text, f"The vault's entry {self._name!r}")

    def reveal(self) -> bytes:
        found = self.found()
        if isinstance(found, Passphrase):
            raise InvalidInput(
                f"The vault's entry {self._name!r} is a passphrase, and has no public half.",
                kind="vault-entry",
                remedy="Create a key with Vault.create, or enrol the passphrase itself.",
            )
        return found

    def __repr__(self) -> str:
        return f"Vault({self._service!r}, {self._name!r})"


class Shares(Credential):
    """Shares of a recovery key: as many as it takes open as an owner. Each is 33 words (SLIP-39)."""

    __slots__ = ("_shares",)

    def __init__(self, *shares: str) -> None:
        """InvalidInput when one was mistyped, is there twice, or is another key's. WrongCredential: too few."""
        from pharmabackup.crypto.shares import check

        self._shares = tuple(" ".join(share.lower().split()) for share in shares)
        check(self._shares)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Which of those that were printed these are: 1 is the first."""
        from pharmabackup.crypto.shares import facts_of

        return tuple(facts_of(share).number for share in self._shares)

    @property
    def threshold(self) -> int:
        """So many of them open."""
        from pharmabackup.crypto.shares import facts_of

        return facts_of(self._shares[0]).threshold

    def odd(self) -> tuple[int, ...]:
        """The numbers of those that do not belong to the others though they look so. InvalidInput: none fit."""
        from pharmabackup.crypto.shares import join

        return join(self._shares).odd

    def reveal(self) -> bytes:
        """The seed of the recovery key: for key derivation alone. InvalidInput when they do not fit together."""
        from pharmabackup.crypto.shares import join

        return join(self._shares).secret

    def __repr__(self) -> str:
        return f"<{len(self._shares)} shares>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("Shares are not pickled: pass them on by other means.")


def fingerprint_of(raw: bytes) -> str:
    """80 bits of a public key's SHA-256, for people."""
    number = int.from_bytes(hashlib.sha256(raw).digest()[:FINGERPRINT_BYTES])
    letters = "".join(ALPHABET[number >> shift & 31] for shift in range(8 * FINGERPRINT_BYTES - 5, -1, -5))
    return "-".join(letters[i : i + 4] for i in range(0, len(letters), 4))


def _checksum(seed: bytes) -> str:
    """Of a secret: it must not say anything about it, so it is that of its hash's hash."""
    return fingerprint_of(hashlib.sha256(b"pharmabackup key file checksum" + seed).digest())


def _write_private(path: Path, text: str) -> None:
    """A new file that nobody else can read, before there is anything in it. FileExistsError, OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if sys.platform == "win32":
                _keep_for_this_account(path)
            elif os.fstat(descriptor).st_mode & 0o077:
                raise PermissionError(errno.EPERM, "this file system keeps no permissions", str(path))
            file.write(text.encode("ascii"))
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _keep_for_this_account(path: Path) -> None:
    """Take everybody else off a file's list of who may do what, on Windows. OSError."""
    import subprocess  # takes milliseconds, and most callers make no key

    quiet = getattr(subprocess, "CREATE_NO_WINDOW", 0)
    system = Path(os.environ.get("SYSTEMROOT", r"C:\Windows")) / "System32"
    whoami = [str(system / "whoami.exe"), "/user", "/fo", "csv", "/nh"]
    account = re.search(rb"S-1-[0-9-]+", subprocess.run(whoami, capture_output=True, creationflags=quiet).stdout)
    if account is None:
        raise PermissionError(errno.EPERM, "this account's number is not known", str(path))
    icacls = [str(system / "icacls.exe"), str(path), "/inheritance:r", "/grant:r", f"*{account[0].decode()}:F"]
    if subprocess.run(icacls, capture_output=True, creationflags=quiet).returncode:
        raise PermissionError(errno.EPERM, "its permissions cannot be set", str(path))


def _unusable(path: Path, error: OSError) -> StorageFailed:
    return StorageFailed(
        f"The key file {path} cannot be used: {error.strerror or type(error).__name__}.",
        kind="key-file",
        remedy="Put it on a disk of this computer that keeps permissions, where this account may read and write.",
    )


def _written(title: str, mark: str, data: bytes) -> str:
    encoded = base64.b64encode(data).decode()
    lines = [encoded[i : i + LINE] for i in range(0, len(encoded), LINE)]
    return "\n".join([title, mark, *lines, ""])


def _parsed(text: str, title: str, what: str, remedy: str) -> tuple[str, bytes]:
    """What stands on the second line, and the bytes after it. InvalidInput."""
    if text.strip().startswith(title):
        words = text.strip().removeprefix(title).split()
        encoded = "".join(words[1:])
        try:
            data = base64.b64decode(encoded, validate=True)
            if base64.b64encode(data).decode() == encoded:  # the last letter says less than it could
                return words[0], data
        except (IndexError, ValueError):
            pass
    raise InvalidInput(f"This is not {what}.", kind="key-text", remedy=remedy)


def _seed(text: str, where: str) -> bytes:
    mark, seed = _parsed(text, KEY_TITLE, "a key", "Give what create has written.")
    if len(seed) != SEED_SIZE or mark != _checksum(seed):
        raise InvalidInput(
            f"{where} is not whole.", kind="key-text", remedy="Use a copy of it, or another credential."
        )
    return seed
