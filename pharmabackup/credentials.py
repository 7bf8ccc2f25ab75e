"""Who you are: what a person or a machine opens a repository with."""

from __future__ import annotations

from typing import NoReturn

from pharmabackup.errors import InvalidInput

PASSPHRASE_MIN = 12


class Credential:
    """The base of all credentials."""


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
