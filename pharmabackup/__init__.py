"""Back up and restore a pharmacy's systems: encrypted, deduplicated, checked.

    import pharmabackup as pb

    with pb.Repository.create("/mnt/usb/backup", pb.Passphrase("four random words here")) as repo:
        print(repo.backup([pb.SQLite("/srv/pmr/pmr.db", tier=1), pb.Files("/srv/pmr/documents")]))

What you construct, call, catch or write in an annotation is here. What you are only handed is in
`pharmabackup.results`; what you implement is in `pharmabackup.sources` and `pharmabackup.storage`, with
conformance suites in `pharmabackup.testing`. Nothing else is public.
"""

from pharmabackup.credentials import Credential, Passphrase
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
from pharmabackup.repository import Repository, Snapshot
from pharmabackup.results import Report
from pharmabackup.sources import Files, Source, SQLite

__version__ = "0.1.0"
__all__ = [
    "Cancelled",
    "Conflict",
    "Credential",
    "Damaged",
    "Error",
    "Event",
    "Files",
    "Finding",
    "Incomplete",
    "InvalidInput",
    "NotFound",
    "NotPermitted",
    "Passphrase",
    "Report",
    "Repository",
    "SQLite",
    "Snapshot",
    "Source",
    "SourceFailed",
    "StorageFailed",
    "Unsupported",
    "WrongCredential",
]
