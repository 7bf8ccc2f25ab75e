"""Microsoft SQL Server: one database, by its own BACKUP and RESTORE, through a folder of its machine.

Written to Microsoft's documentation of Transact-SQL, and not run against a server (docs/sources.md).
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pharmabackup.errors import Conflict, InvalidInput, SourceFailed, Unsupported
from pharmabackup.sources.base import Content, Served, Sink, Source, StrPath, View
from pharmabackup.sources.flat import put_bytes, put_files
from pharmabackup.sources.sqlserver_server import NAME_MAX, SYSTEM, Server, quoted, text
from pharmabackup.sources.trouble import reason

if TYPE_CHECKING:
    from pharmabackup.sources.sqlserver_server import Session

BACKUP = b"database.bak"
PIECE = 1 << 20
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
LISTENS = "SELECT local_tcp_port FROM sys.dm_exec_connections WHERE session_id = @@SPID"
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
        self._staging = Path(os.path.abspath(staging))
        self._count = tuple(count)

    # ------------------------------------------------------------ backup

    def view(self, *, scratch: Path) -> AbstractContextManager[View]:  # noqa: ARG002
        return self._view()

    @contextmanager
    def _view(self) -> Iterator[View]:
        if not self._staging.is_dir():
            raise self._no_staging("is not there")
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
            self._sweep()
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
        if not self._staging.is_dir():
            raise self._no_staging("is not there")
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
        stage = self.stage()
        with self._server.connected(self.name) as session, self._alone(session):
            self._sweep()
            self._drop_leftovers(session)
            try:
                self._write(stage, content)
                return self._restore(session, stage, content, overwrite=overwrite)
            finally:
                self.unstage(stage)

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
            self._server.waited_for(self.name, check, content.check)
            rows = self.counted(session, beside)
            self._compare(rows, content.facts.get("rows"))
            with suppress(Exception):
                session.run(f"EXEC {quoted(beside)}.sys.sp_dropextendedproperty {text(MARK)}")
            replaced = self._switch(session, beside, overwrite=overwrite)
        except BaseException:
            with suppress(Exception):
                session.run(f"DROP DATABASE IF EXISTS {quoted(beside)}")
            raise
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

    def _compare(self, rows: Mapping[str, int], expected: object) -> None:
        """With those that were counted: exact only where nobody wrote meanwhile."""
        for table, numbers in (expected if isinstance(expected, dict) else {}).items():
            before, after = numbers
            if before == after and table in rows and rows[table] != before:
                raise SourceFailed(
                    f"{table} of {self.name} has {rows[table]:,} rows, and had {before:,}.",
                    kind="damaged",
                    remedy="Restore an earlier snapshot.",
                    dataset=self.name,
                )

    def _switch(self, session: Session, beside: str, *, overwrite: bool) -> str | None:
        """Give it its name; what had that before."""
        kept = None
        if session.one("SELECT DB_ID(%s)", self._database) is not None:
            if not overwrite:
                raise Conflict(
                    f"The database {self._database} was made meanwhile, and was not touched.",
                    kind="target-not-empty",
                    remedy="Restore under another name, or pass overwrite=True: then it is kept, renamed.",
                )
            kept = self._named(f"before_{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
            self._rename(session, self._database, kept)
        try:
            self._rename(session, beside, self._database)
        except BaseException:
            if kept is not None:
                self._rename(session, kept, self._database)
            raise
        return kept

    def _rename(self, session: Session, old: str, new: str) -> None:
        """Of a database that nobody has open: else it is refused."""
        session.run(f"ALTER DATABASE {quoted(old)} SET SINGLE_USER WITH NO_WAIT")
        try:
            session.run(f"ALTER DATABASE {quoted(old)} MODIFY NAME = {quoted(new)}")
        except BaseException:
            session.run(f"ALTER DATABASE {quoted(old)} SET MULTI_USER")
            raise
        session.run(f"ALTER DATABASE {quoted(new)} SET MULTI_USER")

    def _drop_leftovers(self, session: Session) -> None:
        """What a restore that was killed has left: it is still being restored, or marked."""
        pattern = re.compile(re.escape(self._named("restoring_")) + "[0-9a-f]{8}")
        for name, state in session.run("SELECT name, state_desc FROM sys.databases"):
            if pattern.fullmatch(str(name)):
                marks = MARKS.format(quoted(str(name)))
                if state == "RESTORING" or (state == ONLINE and session.one(marks, MARK)):
                    session.run(f"DROP DATABASE {quoted(str(name))}")

    def _named(self, end: str) -> str:
        return f"{self._database[: NAME_MAX - 32]}_{end}"

    # ------------------------------------------------------------ the staging folder

    @property
    def _prefix(self) -> str:
        own = f"{self._server.host}\0{self._database}".lower()
        return f"pharmabackup-{hashlib.sha256(own.encode()).hexdigest()[:16]}-"

    def stage(self) -> Path:
        """A file's name there that nobody has."""
        return self._staging / f"{self._prefix}{secrets.token_hex(8)}.bak"

    def unstage(self, stage: Path) -> None:
        """It is patients' data: it goes when it was read. SourceFailed."""
        try:
            stage.unlink(missing_ok=True)
        except OSError as error:
            raise self._no_staging(f"keeps the backup, which cannot be deleted ({reason(error)})") from None

    def _sweep(self) -> None:
        """What we left when we were killed; nobody else is at it now."""
        with suppress(OSError):
            for path in self._staging.glob(f"{self._prefix}*.bak"):
                self.unstage(path)

    def _write(self, stage: Path, content: Content) -> None:
        try:
            with open(stage, "xb") as file:
                for piece in content.read(BACKUP):
                    file.write(piece)
        except OSError as error:
            raise self._no_staging(f"cannot be written to ({reason(error)})") from None

    def _no_staging(self, what: str) -> SourceFailed:
        return SourceFailed(
            f"The staging folder {self._staging} {what}.",
            kind="permission",
            remedy="Name a folder of the server's machine, with room for the database, that the account of the SQL "
            "Server service and this one may write to.",
            dataset=self.name,
        )

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

    def counted(self, session: Session, database: str) -> dict[str, int]:
        """Rows by table."""
        found = {}
        for table in self._count:
            schema, _, name = table.rpartition(".")
            whole = f"{quoted(database)}.{quoted(schema or 'dbo')}.{quoted(name)}"
            found[table] = int(session.one(f"SELECT count_big(*) FROM {whole}"))  # noqa: S608
        return found

    def back_up(self, session: Session, sink: Sink) -> Mapping[str, object]:
        """What `View.dump` does. SourceFailed."""
        version, edition, _, _ = session.run(FACTS)[0]
        stage = self.stage()
        disk = f"DISK = {text(str(stage))}"
        options = "COPY_ONLY, CHECKSUM, INIT, FORMAT, NO_COMPRESSION, NAME = N'pharmabackup'"
        try:
            before = self.counted(session, self._database)
            statement = f"BACKUP DATABASE {quoted(self._database)} TO {disk} WITH {options}"
            self._server.waited_for(self.name, statement, sink.check)
            after = self.counted(session, self._database)
            self._server.waited_for(self.name, f"RESTORE VERIFYONLY FROM {disk} WITH CHECKSUM", sink.check)
            chunks, stored = self._read(stage, sink)
        finally:
            self.unstage(stage)
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

    def _read(self, stage: Path, sink: Sink) -> tuple[int, int]:
        try:
            file = open(stage, "rb", buffering=0)  # noqa: SIM115  (closed below)
        except OSError as error:
            raise self._no_staging(f"has the backup, which cannot be read ({reason(error)})") from None
        failed: list[OSError] = []

        def read_into(view: memoryview) -> int:
            try:
                return file.readinto(view) or 0
            except OSError as error:  # what was stored cannot be taken back: it ends early, and is refused
                failed.append(error)
                return 0

        with file:
            size = os.fstat(file.fileno()).st_size
            chunks, stored = sink.stream(read_into, fine=True)
        if failed or stored != size:
            raise self._no_staging("has the backup, of which a part could not be read")
        return chunks, stored


def _numbers(version: str) -> list[int]:
    """Of "16.0.4085.2": its first two, which say what can be restored where."""
    return [int(part) for part in re.findall(r"\d+", version)[:2]]


class _Database(View):
    def __init__(self, source: SQLServer, session: Session) -> None:
        self._source = source
        self._session = session

    def dump(self, sink: Sink) -> Mapping[str, object]:
        return self._source.back_up(self._session, sink)
