"""What can be backed up. Public: vendors write sources of their own, after `Source`, `View` and `Sink`."""

from pharmabackup.sources.base import FolderColumns, Kept, PreviousFolder, Sink, Source, View
from pharmabackup.sources.files import Files
from pharmabackup.sources.sqlite import SQLite

__all__ = ["Files", "FolderColumns", "Kept", "PreviousFolder", "SQLite", "Sink", "Source", "View"]
