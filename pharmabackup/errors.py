"""What can go wrong, grouped by what a handler would do about it.

Error
├── InvalidInput      the caller asked for something that cannot be: change the call
├── NotFound          what was named is not there: name something else, plug something in
├── Conflict          what was asked contradicts what is there now: look again, choose another target
├── WrongCredential   this credential does not open this repository
├── NotPermitted      it opens it, but its role may not do this
├── Unsupported       this version, platform or storage cannot do it
├── StorageFailed     the repository's storage failed; `retryable` says whether trying again can help
├── SourceFailed      a source could not be read or written
├── Damaged           stored data is not what was written
├── Incomplete        part was done and is safe, part was not; `result` says which
└── Cancelled         the caller asked to stop

`str(error)` is what happened and what to do, in two sentences. `kind` is a stable code: codes are only
ever added. Messages never hold secrets; file names appear only where the caller named the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pharmabackup.events import Finding
    from pharmabackup.results import Report


class Error(Exception):
    """The base of all errors of this library.

    `kind` is a stable code, `remedy` a sentence that says what to do, `findings` the detail.
    """

    default_kind = "error"

    def __init__(self, message: str, *, kind: str = "", remedy: str = "", findings: tuple[Finding, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind or self.default_kind
        self.remedy = remedy
        self.findings = findings

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, dict(self.__dict__)))


def _rebuild(cls: type[Error], message: str, state: dict[str, object]) -> Error:
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


class InvalidInput(Error, ValueError):
    default_kind = "argument"


class NotFound(Error, LookupError):
    default_kind = "path"


class Conflict(Error):
    default_kind = "target-not-empty"


class WrongCredential(Error):
    default_kind = "no-slot"


class NotPermitted(Error):
    default_kind = "role"


class Unsupported(Error):
    default_kind = "operation"


class StorageFailed(Error):
    """The repository's storage failed. `retryable`: trying again may help. `location`: which storage."""

    default_kind = "unreachable"

    def __init__(
        self,
        message: str,
        *,
        kind: str = "",
        remedy: str = "",
        findings: tuple[Finding, ...] = (),
        retryable: bool = False,
        location: str = "",
    ) -> None:
        super().__init__(message, kind=kind, remedy=remedy, findings=findings)
        self.retryable = retryable
        self.location = location


class SourceFailed(Error):
    """A source could not be read or written. `dataset`: which."""

    default_kind = "tool-failed"

    def __init__(
        self,
        message: str,
        *,
        kind: str = "",
        remedy: str = "",
        findings: tuple[Finding, ...] = (),
        dataset: str = "",
    ) -> None:
        super().__init__(message, kind=kind, remedy=remedy, findings=findings)
        self.dataset = dataset


class Damaged(Error):
    default_kind = "block"


class Incomplete(Error):
    """Part was done and is safe, part was not. `result` is the report of both."""

    default_kind = "backup"

    def __init__(
        self,
        message: str,
        *,
        result: Report,
        kind: str = "",
        remedy: str = "",
        findings: tuple[Finding, ...] = (),
    ) -> None:
        super().__init__(message, kind=kind, remedy=remedy, findings=findings)
        self.result = result


class Cancelled(Error):
    default_kind = "cancelled"
