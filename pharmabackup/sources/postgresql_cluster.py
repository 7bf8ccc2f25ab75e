"""A whole PostgreSQL server, as its files: what `pg_basebackup` gives, and with archived WAL any moment after it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pharmabackup.errors import Conflict, InvalidInput, SourceFailed
from pharmabackup.sources.base import Content, Sink, StrPath, View
from pharmabackup.sources.flat import put_bytes, put_files
from pharmabackup.sources.postgresql_server import Server, major, one, told
from pharmabackup.sources.postgresql_tools import SIGNS, Tools
from pharmabackup.sources.program import Program
from pharmabackup.sources.server_files import ServerFiles
from pharmabackup.sources.tools import trouble
from pharmabackup.sources.wal_settings import Recovery, recovery_settings

if TYPE_CHECKING:
    from pharmabackup.sources.postgresql_server import Connection

BASE, ABOUT = b"base.tar", b"server.json"
HAS_MANIFEST = 13  # from there on a base backup tells the hash of each file
SECONDS = 24 * 3600
REPLICATION = "it may not copy the server"
CLUSTER_SIGNS = (
    (b"must be superuser or replication", "permission", REPLICATION, "Give its user the attribute REPLICATION."),
    (b"replication connection", "permission", REPLICATION, 'Add a line with "replication" to pg_hba.conf.'),
    (b"max_wal_senders", "busy", "the server has no place for it left", "Raise max_wal_senders."),
    (b"has already been removed", "changed", "the server threw away what was needed", "Raise wal_keep_size."),
    (b"checksum", "damaged", "the server's files are damaged", "Restore an earlier backup, and check its disk."),
    *SIGNS,
)


class PostgreSQLCluster(ServerFiles):
    """All databases of a server, as its files. Restored, it is the same server again, of the same version.

    `url`: any database of it, such as "postgresql://backup@host/postgres", of a user with REPLICATION. A snapshot is
    as of the end of its dump. `tools`: the folder of pg_basebackup, as new as the server.

    To restore into, give `data` in place of `url`: the folder that becomes the server's, which is not there or empty;
    with `overwrite`, what is there is kept. All is unpacked beside it, compared with the server's own hashes by
    pg_verifybackup, and renamed. Started, the server is as of the end of the backup; or, with a `recovery`, goes on
    with its archived log (`pharmabackup.wal.recovery`). Either way it begins a timeline of its own.
    """

    kind = "postgresql-cluster"
    stop = "Stop it; if there is none, it ended without cleaning up: remove postmaster.pid there."

    def __init__(
        self,
        url: str | None = None,
        *,
        name: str,
        tier: int = 3,
        password: str | None = None,
        tools: StrPath | None = None,
        data: StrPath | None = None,
        recovery: Recovery | None = None,
    ) -> None:
        self._server = None if url is None else Server(url, password)
        super().__init__(name, tier, server=self._server, data=data)
        self._tools = Tools(tools)
        self._recovery = recovery

    @property
    def runs(self) -> Callable[[Path], bool]:
        from pharmabackup.sources.postgresql_unpack import runs

        return runs

    def view(self, *, scratch: Path) -> AbstractContextManager[View]:  # noqa: ARG002
        return self._view()

    @contextmanager
    def _view(self) -> Iterator[View]:
        if self._server is None:
            raise InvalidInput("A server is backed up by its url.", remedy="Give it.")
        with self._server.connected(self.name) as connection:
            about = self._about(connection)
        program, version = self._tools.program("pg_basebackup", int(str(about["major"])), self.name)
        yield _Cluster(self.name, self._server, program, {**about, "pg_basebackup": version})

    def _about(self, connection: Connection) -> dict[str, object]:
        with told(self.name):
            server = major(connection)
            version, spaces = one(
                connection,
                "SELECT current_setting('server_version'),"
                " (SELECT count(*) FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global'))",
            )
            sums, system, standby = one(
                connection,
                "SELECT current_setting('data_checksums'), system_identifier, pg_is_in_recovery()"
                " FROM pg_control_system()",
            )
            start = None if standby else one(connection, "SELECT pg_walfile_name(pg_current_wal_lsn())")[0]
        if server < HAS_MANIFEST:
            raise self._refused(
                f"PostgreSQL {server} says of its files' copies no hashes.",
                f"Back up its databases one by one, or use version {HAS_MANIFEST} or newer.",
            )
        if spaces:
            raise self._refused(
                "A server with tablespaces of its own cannot be copied in one stream.",
                "Back up its databases one by one.",
            )
        facts = {"server": str(version), "major": server, "system": str(system), "checksums": sums == "on"}
        return facts | ({} if start is None else {"start": str(start)})  # its log is needed from there on

    def _refused(self, what: str, remedy: str) -> SourceFailed:
        return SourceFailed(what, kind="operation", remedy=remedy, dataset=self.name)

    def prepare(self, facts: Mapping[str, object], *, overwrite: bool) -> None:
        from pharmabackup.sources.postgresql_unpack import refuse

        refuse(facts, self._tools, self.name)
        self.target().refuse(overwrite=overwrite)
        if self._recovery is not None and facts["system"] not in self._recovery.timelines:
            raise Conflict(
                "That archived log is of another server than these files.",
                kind="other-server",
                remedy="Name the dataset that this server's log was archived in.",
            )

    def load(self, content: Content, *, overwrite: bool) -> Mapping[str, object]:
        from pharmabackup.sources.postgresql_unpack import unpack

        settings = recovery_settings(self._recovery, str(content.facts["system"]))
        return unpack(self.target(), content, BASE, self._tools, self.name, settings=settings, overwrite=overwrite)


class _Cluster(View):
    def __init__(self, dataset: str, server: Server, program: str, about: Mapping[str, object]) -> None:
        self._dataset = dataset
        self._server = server
        self._program = program
        self._about = about

    def dump(self, sink: Sink) -> Mapping[str, object]:
        command = [
            self._program,
            "--no-password",
            "--pgdata=-",
            "--format=tar",
            "--wal-method=fetch",  # what was written meanwhile is in it: it can be started without any archive
            "--checkpoint=fast",
            "--label=pharmabackup",
            self._server.named(),
        ]
        with Program(
            command,
            dataset=self._dataset,
            seconds=SECONDS,
            env=self._server.environment(),
            trouble=lambda code, errors: trouble(CLUSTER_SIGNS, "pg_basebackup", code, errors),
        ) as program:
            chunks, stored = sink.stream(program.output(sink.check), fine=True)
            program.finish(sink.check)
        about = json.dumps(dict(self._about), indent=1).encode()
        put_files(sink, [(BASE, chunks, stored), (ABOUT, *put_bytes(sink, about))])
        return self._about
