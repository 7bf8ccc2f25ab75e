"""What can be backed up. Public: vendors write sources of their own, after `Source`, `View` and `Sink`."""

from pharmabackup.sources.base import Content, FolderColumns, Kept, PreviousFolder, Served, Sink, Source, View
from pharmabackup.sources.command import Command
from pharmabackup.sources.files import Files
from pharmabackup.sources.mariadb_instance import MariaDBInstance
from pharmabackup.sources.mysql import MySQL
from pharmabackup.sources.postgresql import PostgreSQL
from pharmabackup.sources.postgresql_cluster import PostgreSQLCluster
from pharmabackup.sources.postgresql_wal import PostgreSQLWAL
from pharmabackup.sources.sqlite import SQLite
from pharmabackup.sources.sqlserver import SQLServer

__all__ = [
    "Command",
    "Content",
    "Files",
    "FolderColumns",
    "Kept",
    "MariaDBInstance",
    "MySQL",
    "PostgreSQL",
    "PostgreSQLCluster",
    "PostgreSQLWAL",
    "PreviousFolder",
    "SQLServer",
    "SQLite",
    "Served",
    "Sink",
    "Source",
    "View",
]
