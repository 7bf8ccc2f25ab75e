"""The one door to the system's vault, and to the library that opens it (https://pypi.org/project/keyring)."""

from __future__ import annotations

from typing import Any

from pharmabackup.errors import StorageFailed, Unsupported

REMEDY = "Use a key file where there is no vault."


def read(service: str, name: str) -> str | None:
    """An entry's text; None: there is none. StorageFailed, Unsupported."""
    keyring = _library()
    try:
        found: str | None = keyring.get_password(service, name)
    except Exception as error:  # noqa: BLE001  (back ends raise what they like)
        raise _failed(keyring, error) from None
    return found


def write(service: str, name: str, text: str) -> None:
    """Make an entry, and read it back. StorageFailed, Unsupported."""
    keyring = _library()
    try:
        keyring.set_password(service, name, text)
        if keyring.get_password(service, name) != text:
            raise keyring.errors.PasswordSetError
    except Exception as error:  # noqa: BLE001
        raise _failed(keyring, error) from None


def _library() -> Any:
    try:
        import keyring
        import keyring.errors
    except ImportError:
        raise Unsupported(
            "Reading the system's vault needs more than the library.",
            kind="extra-missing",
            remedy='pip install "pharmabackup[vault]".',
        ) from None
    return keyring


def _failed(keyring: Any, error: Exception) -> StorageFailed | Unsupported:
    """In words of our own: what the library says may name what it was asked for."""
    if isinstance(error, keyring.errors.NoKeyringError):
        return Unsupported("This computer has no vault that can be used.", kind="vault", remedy=REMEDY)
    if isinstance(error, keyring.errors.KeyringLocked):
        return StorageFailed(
            "The vault is locked.", kind="vault-locked", retryable=True, remedy="Log in, and try again."
        )
    return StorageFailed(f"The vault failed: {type(error).__name__}.", kind="vault", remedy=REMEDY)
