"""Back up and restore a pharmacy's systems: encrypted, deduplicated, checked.

    import pharmabackup as pb

    with pb.Repository.create("/mnt/usb/backup", pb.Passphrase("four random words here")) as repo:
        print(repo.backup([pb.SQLite("/srv/pmr/pmr.db", tier=1), pb.Files("/srv/pmr/documents")]))

What you construct, call, catch or write in an annotation is here. What you are only handed is in
`pharmabackup.results`; what you implement is in `pharmabackup.sources` and `pharmabackup.storage`, with
conformance suites in `pharmabackup.testing`; pages for people are in `pharmabackup.report`. Nothing else is public.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from pharmabackup.credentials import Credential, KeyFile, Passphrase, Recipient, Shares, Vault
from pharmabackup.errors import (
    Cancelled,
    Conflict,
    Damaged,
    Error,
    Incomplete,
    InvalidInput,
    NotFound,
    NotPermitted,
    SourceFailed,
    StorageFailed,
    Unsupported,
    WrongCredential,
)
from pharmabackup.events import Event, Finding
from pharmabackup.repository import Repository
from pharmabackup.results import Proposal, Report
from pharmabackup.retention import Keep
from pharmabackup.snapshot import Snapshot

if TYPE_CHECKING:
    from pharmabackup.sources import (
        Command,
        Files,
        MariaDBInstance,
        MySQL,
        PostgreSQL,
        PostgreSQLCluster,
        PostgreSQLWAL,
        Source,
        SQLite,
        SQLServer,
    )

__version__ = "0.1.0"
__all__ = [
    "Cancelled",
    "Command",
    "Conflict",
    "Credential",
    "Damaged",
    "Error",
    "Event",
    "Files",
    "Finding",
    "Incomplete",
    "InvalidInput",
    "Keep",
    "KeyFile",
    "MariaDBInstance",
    "MySQL",
    "NotFound",
    "NotPermitted",
    "Passphrase",
    "PostgreSQL",
    "PostgreSQLCluster",
    "PostgreSQLWAL",
    "Proposal",
    "Recipient",
    "Report",
    "Repository",
    "SQLServer",
    "SQLite",
    "Shares",
    "Snapshot",
    "Source",
    "SourceFailed",
    "StorageFailed",
    "Unsupported",
    "Vault",
    "WrongCredential",
]

SOURCES = (
    "Command",
    "Files",
    "MariaDBInstance",
    "MySQL",
    "PostgreSQL",
    "PostgreSQLCluster",
    "PostgreSQLWAL",
    "SQLServer",
    "SQLite",
    "Source",
)


def __getattr__(name: str) -> object:
    """Sources are imported when they are first named: opening a repository, or looking into it, does not wait."""
    if name not in SOURCES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    thing = globals()[name] = getattr(import_module("pharmabackup.sources"), name)
    return thing


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
