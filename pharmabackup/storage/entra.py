"""Who asks Microsoft's services: tokens of Entra ID through azure-identity, by whichever way it finds.

`tenant_id`, `client_id` and `client_secret` of an application, or what azure-identity's DefaultAzureCredential takes:
environment variables, a managed identity, the Azure CLI's login.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pharmabackup.errors import Error, InvalidInput
from pharmabackup.mutex import Mutex
from pharmabackup.storage import failures, remote

OPTIONS = ("tenant_id", "client_id", "client_secret")
REMEDY = "Give tenant_id, client_id and client_secret in storage_options, or log in with the Azure CLI."


class Tokens:
    """Tokens for `scope`. azure-identity keeps one until shortly before it expires."""

    def __init__(self, location: str, scope: str, text: Mapping[str, str]) -> None:
        given = [name for name in OPTIONS if text.get(name)]
        if given and len(given) < len(OPTIONS):
            raise InvalidInput(
                f"Of {', '.join(OPTIONS)} some are missing.", remedy="Give all three in storage_options, or none."
            )
        self._location, self._scope = location, scope
        self._secret = tuple(text[name] for name in OPTIONS) if given else None
        self._lock = Mutex()
        self._credential: Any = None

    def after_fork(self) -> None:
        """In a child: as a storage's `_after_fork`. It has connections, too."""
        remote.inherited.append(self._credential)
        self._credential = None

    def current(self) -> str:
        """StorageFailed("storage-denied")."""
        from azure.core.exceptions import AzureError, ClientAuthenticationError
        from azure.identity import ClientSecretCredential, CredentialUnavailableError, DefaultAzureCredential

        with self._lock.own:
            if self._credential is None:
                self._credential = ClientSecretCredential(*self._secret) if self._secret else DefaultAzureCredential()
        try:
            token: str = self._credential.get_token(self._scope).token
        except CredentialUnavailableError:
            raise failures.no_credentials(self._location, REMEDY) from None
        except ClientAuthenticationError:
            # DefaultAzureCredential says so too when none of its ways leads anywhere.
            raise (
                failures.denied(self._location) if self._secret else failures.no_credentials(self._location, REMEDY)
            ) from None
        except AzureError as error:
            raise self._of_the_line(error) from None
        return token

    def _of_the_line(self, error: Exception) -> Error:
        return failures.from_line(error, self._location) or failures.unreachable(
            self._location, "Entra ID gave no token"
        )
