"""Microsoft SQL Server: one database, by its own BACKUP and RESTORE, through a folder of its machine.

Written to Microsoft's documentation of Transact-SQL, and not run against a server (docs/sources.md).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pharmabackup.errors import Conflict, InvalidInput, SourceFailed, Unsupported
from pharmabackup.sources.base import Content, Served, Sink, Source, StrPath, View
from pharmabackup.sources.flat import put_bytes, put_files
from pharmabackup.sources.sqlserver_server import DAMAGED_AT_ALL, NAME_MAX, SYSTEM, Server, failed, quoted, text
from pharmabackup.sources.sqlserver_staging import Staging

if TYPE_CHECKING:
    from pharmabackup.sources.sqlserver_server import Session

BACKUP = b"database.bak"
PORT = 1433
ONLINE = "ONLINE"
MARK = "pharmabackup is restoring"  # a property of a database that is being restored, until it is whole
MARKS = "SELECT count(*) FROM {}.sys.extended_properties WHERE class = 0 AND name = %s"
DATA, LOG = "D", "L"  # what kinds of files RESTORE FILELISTONLY names
TABLE = re.compile(r"[^.\[\]\0]{1,128}(\.[^.\[\]\0]{1,128})?")
FACTS = (
    "SELECT CAST(SERVERPROPERTY('ProductVersion') AS nvarchar(128)),"
    " CAST(SERVERPROPERTY('Edition') AS nvarchar(128)),"
    " CAST(SERVERPROPERTY('InstanceDefaultDataPath') AS nvarchar(512)),"
    " CAST(SERVERPROPERTY('InstanceDefaultLogPath') AS nvarchar(512))"
)
ENCRYPTED = "SELECT count(*) FROM sys.databases WHERE name = %s AND is_encrypted = 1"
DATABASES = "SELECT name FROM sys.databases WHERE database_id > 4 AND source_database_id IS NULL ORDER BY name"
LISTENS = "SELECT CAST(CONNECTIONPROPERTY('local_tcp_port') AS int)"
DROP = "IF DB_ID({}) IS NOT NULL DROP DATABASE {}"
LOCK = (
    "DECLARE @got int; EXEC @got = sp_getapplock @Resource = %s, @LockMode = 'Exclusive', @LockOwner = 'Session',"
    " @LockTimeout = 0; SELECT @got"
)


class SQLServer(Source):
    """One database of a Microsoft SQL Server, by its own BACKUP, as of that backup's end.

    `server`: ".", "HOST", "HOST\\INSTANCE" or "HOST,PORT". `staging`: a folder of the server's machine, which its
    service and this account may write to; the backup lies there while it is read. `user` and `password` of a login of
    the server's own; without them the Windows account that this runs as. `count`: tables ("schema.table") whose rows
    are counted, and again after a restore.

    Restored into a server (`into=`), it is restored beside what is there, checked by DBCC CHECKDB, and then takes its
    name: with `overwrite` a database of that name is kept, renamed. Restored to a folder it is `database.bak`.
    """

    kind = "sqlserver"

    def __init__(
        self,
        database: str,
        *,
        server: str = ".",
        staging: StrPath,
        name: str | None = None,
        tier: int = 3,
        user: str | None = None,
        password: str | None = None,
        count: Sequence[str] = (),
    ) -> None:
        if not database or len(database) > NAME_MAX or "\0" in database:
            raise InvalidInput("That is no database's name.", remedy='Write "pmr".')
        super().__init__(database if name is None else name, tier)
        if isinstance(count, str):
            raise InvalidInput("The tables to count are a list, not one text.", remedy=f"Write [{count!r}].")
        if wrong := [table for table in count if not TABLE.fullmatch(table)]:
            raise InvalidInput(f"{wrong[0]!r} is no table's name.", remedy='Write "table" or "schema.table".')
        self._database = database
        self._server = Server(server, user, password)
        self._staging = Staging(staging, database, self.name)
        self._count = tuple(count)

    # ------------------------------------------------------------ backup

    def view(self, *, scratch: Path) -> AbstractContextManager[View]:  # noqa: ARG002
        return self._view()

    @contextmanager
    def _view(self) -> Iterator[View]:
        self._staging.look()
        with self._server.connected(self.name) as session, self._alone(session):
            state = session.one("SELECT state_desc FROM sys.databases WHERE name = %s", self._database)
            if state != ONLINE:
                raise SourceFailed(
                    f"The database {self._database} "
                    + ("does not exist on its server." if state is None else f"is not online ({state})."),
                    kind="missing" if state is None else "in-use",
                    remedy="Check its name." if state is None else "Bring it online.",
                    dataset=self.name,
                )
            yield _Database(self, session)

    def served(self) -> Served:
        with self._server.connected(self.name) as session:
            port = session.one(LISTENS)
            names = [str(name) for (name,) in session.run(DATABASES)]
        return Served(
            product="sqlserver",
            host=self._server.host.partition("\\")[0],
            port=PORT if port is None else int(port),
            databases=tuple(names),
            database=self._database,
        )

    # ------------------------------------------------------------ restore

    def prepare(self, facts: Mapping[str, object], *, overwrite: bool) -> None:
        if self._database.lower() in SYSTEM:
            raise Unsupported(f"A server needs its database {self._database}.", remedy="Restore under another name.")
        self._staging.look()
        with self._server.connected(self.name) as session:
            version = str(session.run(FACTS)[0][0])
            there = session.one("SELECT DB_ID(%s)", self._database) is not None
        if _numbers(version) < _numbers(str(facts.get("server", ""))):
            raise Unsupported(
                f"{self.name} is of SQL Server {facts.get('server')}, and this one is {version}.",
                remedy="Restore into that version or a newer one.",
            )
        if there and not overwrite:
            raise Conflict(
                f"The database {self._database} is there, and was not touched.",
                kind="target-not-empty",
                remedy="Restore under another name, or pass overwrite=True: then it is kept, renamed.",
            )

    def load(self, content: Content, *, overwrite: bool) -> Mapping[str, object]:
        with self._server.connected(self.name) as session, self._alone(session):
            stage = self._staging.file(session)
            self._drop_leftovers(session)
            try:
                self._staging.write(stage, content.read(BACKUP))
                return self._restore(session, stage, content, overwrite=overwrite)
            finally:
                self._staging.remove(stage)

    def _restore(self, session: Session, stage: Path, content: Content, *, overwrite: bool) -> Mapping[str, object]:
        beside = self._named(f"restoring_{secrets.token_hex(4)}")
        source = f"FROM DISK = {text(str(stage))}"
        moves = self._moves(session, source, beside)
        try:
            self._server.waited_for(
                self.name,
                f"RESTORE DATABASE {quoted(beside)} {source} WITH {', '.join(moves)}, CHECKSUM, RECOVERY",
                content.check,
            )
            with suppress(Exception):  # a database that was read-only when it was backed up takes none
                session.run(f"EXEC {quoted(beside)}.sys.sp_addextendedproperty {text(MARK)}, N''")
            check = f"DBCC CHECKDB ({text(beside)}) WITH NO_INFOMSGS"
            try:
                self._server.waited_for(self.name, check, content.check)
            except SourceFailed as error:
                raise failed(DAMAGED_AT_ALL, self.name) if error.kind == "tool-failed" else error from None
            rows = self.counted(beside, content.check)
            self._compare(rows, content)
            replaced = self._switch(session, beside, overwrite=overwrite)
        except BaseException:
            with suppress(Exception):
                session.run(DROP.format(text(beside), quoted(beside)))
            raise
        with suppress(Exception):
            session.run(f"EXEC {quoted(self._database)}.sys.sp_dropextendedproperty {text(MARK)}")
        facts: dict[str, object] = {"database": self._database, "rows": rows, "verified": "DBCC CHECKDB"}
        return facts | ({"replaced": replaced} if replaced else {})

    def _moves(self, session: Session, source: str, beside: str) -> list[str]:
        """Where each of its files goes: beside the server's own, under names that are not there."""
        _, _, data, log = session.run(FACTS)[0]
        files, moves = re.sub(r"[^\w-]", "_", beside), []
        for number, row in enumerate(session.run(f"RESTORE FILELISTONLY {source}")):
            logical, kind = str(row[0]), str(row[2])
            if kind not in (DATA, LOG):
                raise SourceFailed(
                    f"{self.name} has files of a kind ({kind}) that no server is given here, such as FILESTREAM.",
                    kind="operation",
                    remedy="Restore it to a folder, and then by hand with RESTORE DATABASE.",
                    dataset=self.name,
                )
            folder, ending = (log, "ldf") if kind == LOG else (data, "mdf" if number == 0 else "ndf")
            separator = "/" if "/" in str(folder) else "\\"
            file = f"{str(folder).rstrip(separator)}{separator}{files}_{number}.{ending}"
            moves.append(f"MOVE {text(logical)} TO {text(file)}")
        return moves

    def _compare(self, rows: Mapping[str, int], content: Content) -> None:
        """With those that were counted around the backup: somebody may have written meanwhile, and so it is told."""
        expected = content.facts.get("rows")
        for table, (before, after) in (expected if isinstance(expected, dict) else {}).items():
            if table in rows and not min(before, after) <= rows[table] <= max(before, after):
                content.finding(
                    "rows-differ",
                    f"{table} of {self.name} has {rows[table]:,} rows; it had {before:,} before it was backed up, "
                    f"and {after:,} after that.",
                    "If nobody deleted rows there just then, compare with an earlier snapshot.",
                )

    def _switch(self, session: Session, beside: str, *, overwrite: bool) -> str | None:
        """Give it its name; what had that before. What goes wrong is taken back."""
        kept = None
        if self._is_there(session, self._database):
            if not overwrite:
                raise Conflict(
                    f"The database {self._database} was made meanwhile, and was not touched.",
                    kind="target-not-empty",
                    remedy="Restore under another name, or pass overwrite=True: then it is kept, renamed.",
                )
            kept = self._named(f"before_{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
        try:
            if kept is not None:
                self._rename(session, self._database, kept)
            self._rename(session, beside, self._database)
        except BaseException as error:
            self._take_back(beside, kept, error)
            raise
        return kept

    def _take_back(self, beside: str, kept: str | None, why: BaseException) -> None:
        """All have the names that they had, and are open to everybody. SourceFailed says what to do by hand."""
        try:
            with self._server.connected(self.name) as session:  # the other one may be lost
                if self._is_there(session, self._database) and not self._is_there(session, beside):
                    self._rename(session, self._database, beside)
                if kept is not None and self._is_there(session, kept):
                    self._rename(session, kept, self._database)
                elif kept is not None:
                    session.run(f"ALTER DATABASE {quoted(self._database)} SET MULTI_USER")
        except SourceFailed:
            names = self._database if kept is None else f"{self._database} or {kept}"
            raise SourceFailed(
                f"The restore of {self.name} broke off while databases were renamed ({why}), and that could not be "
                f"taken back: what was there is called {names}, and may be open to one user only.",
                kind="tool-failed",
                remedy="Rename it (ALTER DATABASE … MODIFY NAME), and run ALTER DATABASE … SET MULTI_USER.",
                dataset=self.name,
            ) from None

    def _is_there(self, session: Session, name: str) -> bool:
        return session.one("SELECT DB_ID(%s)", name) is not None

    def _rename(self, session: Session, old: str, new: str) -> None:
        """Of a database that nobody has open: else it is refused. Its one user is this session meanwhile."""
        session.run(f"USE {quoted(old)}")
        try:
            session.run(f"ALTER DATABASE {quoted(old)} SET SINGLE_USER WITH NO_WAIT")
            try:
                session.run(f"ALTER DATABASE {quoted(old)} MODIFY NAME = {quoted(new)}")
            except SourceFailed:
                session.run(f"ALTER DATABASE {quoted(old)} SET MULTI_USER")
                raise
            session.run(f"ALTER DATABASE {quoted(new)} SET MULTI_USER")
        finally:
            with suppress(SourceFailed):
                session.run("USE master")

    def _drop_leftovers(self, session: Session) -> None:
        """What a restore that was killed has left: it is still being restored, or marked."""
        pattern = re.compile(re.escape(self._named("restoring_")) + "[0-9a-f]{8}")
        for name, state in session.run("SELECT name, state_desc FROM sys.databases"):
            if pattern.fullmatch(str(name)):
                marks = MARKS.format(quoted(str(name)))
                if state == "RESTORING" or (state == ONLINE and session.one(marks, MARK)):
                    session.run(DROP.format(text(str(name)), quoted(str(name))))

    def _named(self, end: str) -> str:
        return f"{self._database[: NAME_MAX - 32]}_{end}"

    # ------------------------------------------------------------ both

    @contextmanager
    def _alone(self, session: Session) -> Iterator[None]:
        """One backup or restore of a database at a time: the next removes what one that was killed has left."""
        if int(session.one(LOCK, f"pharmabackup {self._database.lower()}")) < 0:
            raise SourceFailed(
                f"Another backup or restore of {self._database} is under way.",
                kind="in-use",
                remedy="Wait until it has ended.",
                dataset=self.name,
            )
        yield  # the lock is the session's

    def counted(self, database: str, look: Callable[[], None]) -> dict[str, int]:
        """Rows by table."""
        found = {}
        for table in self._count:
            schema, _, name = table.rpartition(".")
            whole = f"{quoted(database)}.{quoted(schema or 'dbo')}.{quoted(name)}"
            [(count,)] = self._server.waited_for(self.name, f"SELECT count_big(*) FROM {whole}", look)  # noqa: S608
            found[table] = int(count)
        return found

    def back_up(self, session: Session, sink: Sink) -> Mapping[str, object]:
        """What `View.dump` does. SourceFailed."""
        version, edition, _, _ = session.run(FACTS)[0]
        stage = self._staging.file(session)
        disk = f"DISK = {text(str(stage))}"
        options = "COPY_ONLY, CHECKSUM, INIT, FORMAT, NO_COMPRESSION, NAME = N'pharmabackup'"
        try:
            before = self.counted(self._database, sink.check)
            statement = f"BACKUP DATABASE {quoted(self._database)} TO {disk} WITH {options}"
            self._server.waited_for(self.name, statement, sink.check)
            after = self.counted(self._database, sink.check)
            self._server.waited_for(self.name, f"RESTORE VERIFYONLY FROM {disk} WITH CHECKSUM", sink.check)
            chunks, stored = self._staging.read(stage, sink)
        finally:
            self._staging.remove(stage)
        if session.one(ENCRYPTED, self._database):
            sink.finding(
                "encrypted-source",
                BACKUP,
                f"{self.name} is encrypted by its server (TDE): all of it is stored each time, for its certificate.",
                "Back up the certificate and its key, and keep them elsewhere (BACKUP CERTIFICATE).",
                harms=False,
            )
        facts = {
            "server": str(version),
            "edition": str(edition),
            "rows": {table: [before[table], after[table]] for table in before},
        }
        about = "\n".join(f"{name}: {value}" for name, value in facts.items()).encode()
        put_files(sink, [(BACKUP, chunks, stored), (b"server.txt", *put_bytes(sink, about))])
        return facts


def _numbers(version: str) -> list[int]:
    """Of "16.0.4085.2": its first two, which say what can be restored where."""
    return [int(part) for part in re.findall(r"\d+", version)[:2]]


class _Database(View):
    def __init__(self, source: SQLServer, session: Session) -> None:
        self._source = source
        self._session = session

    def dump(self, sink: Sink) -> Mapping[str, object]:
        return self._source.back_up(self._session, sink)
