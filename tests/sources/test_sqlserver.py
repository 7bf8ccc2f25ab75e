"""Microsoft SQL Server: what we ask of it, against a stand-in. No SQL Server runs where these tests do.

The stand-in knows the statements of Microsoft's documentation that we use, as text, and refuses any other.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.sources.base import Served
from pharmabackup.testing.source import CancelledLater

PASSWORD = "a password that nobody is told"
PAD = 200_000  # bytes of a backup


class Refused(Exception):
    """pymssql.Error: its first argument is the number and the text."""


@dataclass
class Database:
    tables: dict[str, int] = field(default_factory=dict)
    state: str = "ONLINE"
    marked: bool = False
    encrypted: bool = False
    open_by: int = 0  # others
    single: int = 0  # the session that has it for itself
    kinds: tuple[str, ...] = ("D", "L")


@dataclass
class Standin:
    """One server."""

    databases: dict[str, Database] = field(default_factory=dict)
    version: str = "16.0.4085.2"
    sees: bool = True  # the staging folder
    done: list[str] = field(default_factory=list)
    fails: dict[str, int] = field(default_factory=dict)  # a statement's first words: the number that it fails with
    fails_once: bool = False
    slow: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    locks: set[str] = field(default_factory=set)
    killed: set[int] = field(default_factory=set)
    spids: int = 50
    uses: dict[int, str] = field(default_factory=dict)  # by session

    def connect(self, server: str, **given: object) -> Connection:
        assert given["database"] == "master" and given["autocommit"] is True
        if given.get("password") == "wrong":
            raise Refused((18456, b"Login failed for user 'sa'"))
        self.spids += 1
        return Connection(self, self.spids)

    def answer(self, spid: int, statement: str, values: tuple[str, ...]) -> list[tuple] | None:
        self.done.append(statement)
        for begin, number in self.fails.items():
            if statement.startswith(begin):
                if self.fails_once:
                    self.fails = {}
                raise Refused((number, b"a text that quotes a patient, Jane Doe"))
        if self.slow and statement.startswith(self.slow):
            while spid not in self.killed:
                time.sleep(0.01)
            raise Refused((20004, b"killed"))
        for pattern, what in STATEMENTS:
            if found := re.fullmatch(pattern, statement, re.DOTALL):
                return what(self, spid, found, values)
        raise AssertionError(f"no documented statement: {statement}")

    def at(self, name: str) -> Database:
        if plain(name) not in self.databases:
            raise Refused((911, b"does not exist"))
        return self.databases[plain(name)]

    # ------------------------------------------------------------ what it knows

    def facts(self, *_: object) -> list[tuple]:
        return [(self.version, "Express Edition", "/var/opt/mssql/data/", "/var/opt/mssql/log/")]

    def spid(self, spid: int, *_: object) -> list[tuple]:
        return [(spid,)]

    def state(self, _spid: int, _found: re.Match, values: tuple) -> list[tuple]:
        return [(self.databases[values[0]].state,)] if values[0] in self.databases else []

    def identity(self, _spid: int, _found: re.Match, values: tuple) -> list[tuple]:
        return [(7 if values[0] in self.databases else None,)]

    def applock(self, spid: int, _found: re.Match, values: tuple) -> list[tuple]:
        if values[0] in self.locks:
            return [(-1,)]
        self.locks.add(values[0])
        return [(0,)]

    def all_of_them(self, *_: object) -> list[tuple]:
        return [(name,) for name in sorted(self.databases)]

    def states(self, *_: object) -> list[tuple]:
        return [(name, database.state) for name, database in self.databases.items()]

    def is_encrypted(self, _spid: int, _found: re.Match, values: tuple) -> list[tuple]:
        return [(int(self.databases[values[0]].encrypted),)]

    def count(self, _spid: int, found: re.Match, _values: tuple) -> list[tuple]:
        name = f"{plain(found[2])}.{plain(found[3])}"
        tables = self.at(found[1]).tables
        if name not in tables:
            raise Refused((208, b"Invalid object name"))
        return [(tables[name],)]

    def back_up(self, _spid: int, found: re.Match, _values: tuple) -> None:
        database = self.at(found[1])
        head = json.dumps({"tables": database.tables, "kinds": database.kinds}).encode()
        Path(unquoted(found[2])).write_bytes(head.ljust(PAD, b"\0"))

    def verify(self, _spid: int, found: re.Match, _values: tuple) -> None:
        if Path(unquoted(found[1])).stat().st_size != PAD:
            raise Refused((3241, b"incorrectly formed"))

    def files(self, _spid: int, found: re.Match, _values: tuple) -> list[tuple]:
        kept = json.loads(Path(unquoted(found[1])).read_bytes().rstrip(b"\0"))
        return [(f"it's {number}", "C:\\x", kind) for number, kind in enumerate(kept["kinds"])]

    def restore(self, _spid: int, found: re.Match, _values: tuple) -> None:
        assert plain(found[1]) not in self.databases
        kept = json.loads(Path(unquoted(found[2])).read_bytes().rstrip(b"\0"))
        plainly = re.sub(r"[^a-z0-9_-]", "_", plain(found[1]))
        assert re.findall(r"TO N'([^']*)'", found[3]) == [
            f"/var/opt/mssql/{'data' if kind == 'D' else 'log'}/{plainly}_{number}."
            f"{'ldf' if kind == 'L' else 'ndf' if number else 'mdf'}"
            for number, kind in enumerate(kept["kinds"])
        ]
        assert "MOVE N'it''s 0' TO" in found[3]
        self.databases[plain(found[1])] = Database(kept["tables"])

    def mark(self, _spid: int, found: re.Match, _values: tuple) -> None:
        self.at(found[1]).marked = found[2] == "add"

    def marks(self, _spid: int, found: re.Match, _values: tuple) -> list[tuple]:
        return [(int(self.at(found[1]).marked),)]

    def check(self, _spid: int, found: re.Match, _values: tuple) -> None:
        assert unquoted(found[1]) in self.databases

    def use(self, spid: int, found: re.Match, _values: tuple) -> None:
        if found[1] != "master":
            self.at(found[1])
        self.uses[spid] = plain(found[1]) if found[1] != "master" else "master"

    def single(self, spid: int, found: re.Match, _values: tuple) -> None:
        assert self.uses[spid] == plain(found[1]), "somebody else may become its one user"
        if self.at(found[1]).open_by:
            raise Refused((5070, b"in use"))
        self.at(found[1]).single = spid

    def multi(self, spid: int, found: re.Match, _values: tuple) -> None:
        assert self.at(found[1]).single in (0, spid) or self.at(found[1]).single not in self.uses
        self.at(found[1]).single = 0

    def rename(self, spid: int, found: re.Match, _values: tuple) -> None:
        assert plain(found[2]) not in self.databases and self.at(found[1]).single == spid
        self.databases[plain(found[2])] = self.databases.pop(plain(found[1]))
        self.uses[spid] = plain(found[2])

    def label(self, _spid: int, found: re.Match, _values: tuple) -> None:
        if not self.sees or not Path(unquoted(found[1])).exists():
            raise Refused((3201, b"Cannot open backup device"))
        raise Refused((3254, b"The volume is empty"))

    def drop(self, _spid: int, found: re.Match, _values: tuple) -> None:
        assert unquoted(found[1]) == plain(found[2])
        self.databases.pop(plain(found[2]), None)

    def kill(self, _spid: int, found: re.Match, _values: tuple) -> None:
        self.killed.add(int(found[1]))


NAME, TEXT = r"(\[(?:[^\]]|\]\])*\])", r"(N'(?:[^']|'')*')"
STATEMENTS = [
    (r"SELECT CAST\(SERVERPROPERTY\('ProductVersion'\).*", Standin.facts),
    (r"SELECT @@SPID", Standin.spid),
    (r"SELECT state_desc FROM sys.databases WHERE name = %s", Standin.state),
    (r"SELECT DB_ID\(%s\)", Standin.identity),
    (r"DECLARE @got int; EXEC @got = sp_getapplock @Resource = %s, .*; SELECT @got", Standin.applock),
    (r"SELECT name FROM sys.databases WHERE database_id > 4 .*", Standin.all_of_them),
    (r"SELECT name, state_desc FROM sys.databases", Standin.states),
    (r"SELECT CAST\(CONNECTIONPROPERTY\('local_tcp_port'\) AS int\)", lambda *_: [(1433,)]),
    (r"SELECT CAST\(@@SERVERNAME AS nvarchar\(256\)\)", lambda *_: [("HOST",)]),
    (rf"USE (?:{NAME})", Standin.use),
    (r"USE (master)", Standin.use),
    (rf"RESTORE LABELONLY FROM DISK = {TEXT}", Standin.label),
    (r"SELECT count\(\*\) FROM sys.databases WHERE name = %s AND is_encrypted = 1", Standin.is_encrypted),
    (rf"SELECT count_big\(\*\) FROM {NAME}\.{NAME}\.{NAME}", Standin.count),
    (
        rf"BACKUP DATABASE {NAME} TO DISK = {TEXT} WITH COPY_ONLY, CHECKSUM, INIT, FORMAT, NO_COMPRESSION, NAME = .*",
        Standin.back_up,
    ),
    (rf"RESTORE VERIFYONLY FROM DISK = {TEXT} WITH CHECKSUM", Standin.verify),
    (rf"RESTORE FILELISTONLY FROM DISK = {TEXT}", Standin.files),
    (rf"RESTORE DATABASE {NAME} FROM DISK = {TEXT} WITH (MOVE .*), CHECKSUM, RECOVERY", Standin.restore),
    (rf"EXEC {NAME}\.sys\.sp_(add|drop)extendedproperty N'pharmabackup is restoring'(?:, N'')?", Standin.mark),
    (rf"SELECT count\(\*\) FROM {NAME}\.sys\.extended_properties WHERE class = 0 AND name = %s", Standin.marks),
    (rf"DBCC CHECKDB \({TEXT}\) WITH NO_INFOMSGS", Standin.check),
    (rf"ALTER DATABASE {NAME} SET SINGLE_USER WITH NO_WAIT", Standin.single),
    (rf"ALTER DATABASE {NAME} SET MULTI_USER", Standin.multi),
    (rf"ALTER DATABASE {NAME} MODIFY NAME = {NAME}", Standin.rename),
    (rf"IF DB_ID\({TEXT}\) IS NOT NULL DROP DATABASE {NAME}", Standin.drop),
    (r"KILL (\d+)", Standin.kill),
]


def plain(name: str) -> str:
    return name[1:-1].replace("]]", "]")


def unquoted(text: str) -> str:
    return text[2:-1].replace("''", "'")


class Connection:
    def __init__(self, server: Standin, spid: int) -> None:
        self._server, self._spid = server, spid
        self._locks: set[str] = set()
        self._rows: list[tuple] | None = None

    def cursor(self) -> Connection:
        return self

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self, statement: str, values: tuple[str, ...] | None) -> None:
        before = set(self._server.locks)
        self._rows = self._server.answer(self._spid, statement, values or ())
        self._locks |= self._server.locks - before

    @property
    def description(self) -> object:
        return None if self._rows is None else ()

    def fetchall(self) -> list[tuple]:
        return self._rows or []

    def nextset(self) -> None:
        return None

    def close(self) -> None:
        self._server.locks -= self._locks
        self._server.uses.pop(self._spid, None)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    made = Standin({"pmr": Database({"dbo.entry": 5, "sales.claim": 7})})
    module = types.ModuleType("pymssql")
    module.Error = Refused  # type: ignore[attr-defined]
    module.connect = made.connect  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pymssql", module)
    yield made
    assert not any(database.single for database in made.databases.values()), "one is left to a single user"


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    folder = tmp_path / "it's staged"
    folder.mkdir()
    return folder


def source(staging: Path, database: str = "pmr", **more: object) -> pb.SQLServer:
    given = {"user": "backup", "password": PASSWORD, "count": ["entry", "sales.claim"], **more}
    return pb.SQLServer(database, staging=staging, **given)


def told(error: pb.Error) -> str:
    return " ".join(finding.message + finding.remedy for finding in error.findings)


def test_a_database_comes_back_beside_what_is_there(server, staging, repo):
    report = repo.backup([source(staging)])
    snapshot = repo.snapshot("pmr")
    assert report.datasets["pmr"].complete and snapshot.facts["rows"] == {"entry": [5, 5], "sales.claim": [7, 7]}
    assert snapshot.open("database.bak").read().startswith(b'{"tables"') and list(staging.iterdir()) == []
    server.databases["pmr"].tables["dbo.entry"] = 99
    result = repo.restore(into={"pmr": source(staging, "pmr_back")})
    assert result.datasets["pmr"].facts["verified"] == "DBCC CHECKDB"
    assert server.databases["pmr_back"].tables["dbo.entry"] == 5 and server.databases["pmr"].tables["dbo.entry"] == 99
    assert set(server.databases) == {"pmr", "pmr_back"} and list(staging.iterdir()) == []
    assert not server.databases["pmr_back"].marked


def test_what_is_there_is_not_replaced_or_is_kept(server, staging, repo):
    repo.backup([source(staging)])
    server.databases["pmr"].tables["dbo.entry"] = 99
    with pytest.raises(pb.Conflict, match="was not touched"):
        repo.restore(into={"pmr": source(staging)})
    facts = repo.restore(into={"pmr": source(staging)}, overwrite=True).datasets["pmr"].facts
    assert server.databases["pmr"].tables["dbo.entry"] == 5
    assert server.databases[facts["replaced"]].tables["dbo.entry"] == 99


def test_names_with_brackets_and_quotes_are_only_names(server, staging, repo):
    odd = "a]b'; drop database x --"
    server.databases[odd] = Database({"dbo.entry": 1, "sales.claim": 2})
    repo.backup([source(staging, odd, name="odd")])
    repo.restore(into={"odd": source(staging, odd + "2", name="odd")})
    assert server.databases[odd + "2"].tables == server.databases[odd].tables and "pmr" in server.databases


def test_a_database_in_use_is_not_replaced(server, staging, repo):
    repo.backup([source(staging)])
    server.databases["pmr"].open_by = 1
    with pytest.raises(pb.Incomplete) as caught:
        repo.restore(into={"pmr": source(staging)}, overwrite=True)
    assert "is in use" in told(caught.value) and set(server.databases) == {"pmr"} and list(staging.iterdir()) == []


@pytest.mark.parametrize(
    "begins",
    [
        "ALTER DATABASE [pmr_restoring_",  # its first rename
        "ALTER DATABASE [pmr] MODIFY",
        "ALTER DATABASE [pmr_before_",  # open again under its new name, once
        "USE [pmr_restoring_",
    ],
)
def test_a_rename_that_fails_is_taken_back(server, staging, repo, begins):
    repo.backup([source(staging)])
    server.databases["pmr"].tables["dbo.entry"] = 99
    server.fails[begins] = 1105
    server.fails_once = begins.startswith("ALTER DATABASE [pmr_before_")
    with pytest.raises(pb.Incomplete):
        repo.restore(into={"pmr": source(staging)}, overwrite=True)
    assert {name: database.tables["dbo.entry"] for name, database in server.databases.items()} == {"pmr": 99}


@pytest.mark.parametrize(
    "statement", ["RESTORE DATABASE", "DBCC CHECKDB", "RESTORE FILELISTONLY", "SELECT count_big", "ALTER DATABASE"]
)
def test_what_is_damaged(server, staging, repo, statement):
    repo.backup([source(staging)])
    server.fails[statement] = 8976 if statement == "DBCC CHECKDB" else 824
    with pytest.raises(pb.Incomplete) as caught:
        repo.restore(into={"pmr": source(staging, "new")})
    assert "damaged" in told(caught.value)


@pytest.mark.parametrize(
    "statement", ["RESTORE DATABASE", "DBCC CHECKDB", "RESTORE FILELISTONLY", "SELECT count_big", "ALTER DATABASE"]
)
def test_a_restore_that_fails_anywhere_leaves_nothing(server, staging, repo, statement):
    repo.backup([source(staging)])
    server.fails[statement] = 824
    with pytest.raises(pb.Incomplete) as caught:
        repo.restore(into={"pmr": source(staging, "new")})
    assert "damaged" in told(caught.value) and "Jane Doe" not in told(caught.value)
    assert set(server.databases) == {"pmr"} and list(staging.iterdir()) == []


@pytest.mark.parametrize("statement", ["BACKUP DATABASE", "RESTORE VERIFYONLY", "SELECT count_big"])
def test_a_backup_that_fails_anywhere_is_none_and_leaves_nothing(server, staging, repo, statement):
    server.fails[statement] = 3203
    with pytest.raises(pb.Incomplete) as caught:
        repo.backup([source(staging)])
    assert "Jane Doe" not in told(caught.value) and repo.snapshots() == [] and list(staging.iterdir()) == []


def test_rows_that_differ_are_told(server, staging, repo, monkeypatch):
    repo.backup([source(staging)])
    real = Standin.restore

    def loses(self, spid, found, values):
        real(self, spid, found, values)
        self.at(found[1]).tables["dbo.entry"] = 4

    monkeypatch.setattr(
        "tests.sources.test_sqlserver.STATEMENTS",
        [(pattern, loses if what is real else what) for pattern, what in STATEMENTS],
    )
    report = repo.restore(into={"pmr": source(staging, "new")})
    [finding] = [finding for finding in report.findings if finding.code == "rows-differ"]
    assert "has 4 rows; it had 5 before it was backed up, and 5 after that" in finding.message
    assert report.datasets["pmr"].complete and "new" in server.databases


def test_rows_that_were_written_meanwhile_are_not_compared(server, staging, repo, monkeypatch):
    real = Standin.back_up

    def writes(self, spid, found, values):
        real(self, spid, found, values)
        self.at(found[1]).tables["dbo.entry"] += 1

    monkeypatch.setattr(
        "tests.sources.test_sqlserver.STATEMENTS",
        [(pattern, writes if what is real else what) for pattern, what in STATEMENTS],
    )
    repo.backup([source(staging)])
    assert repo.snapshot("pmr").facts["rows"]["entry"] == [5, 6]
    repo.restore(into={"pmr": source(staging, "new")})


def test_a_cancelled_backup_stops_the_server_and_leaves_nothing(server, staging, repo):
    server.slow = "BACKUP DATABASE"
    with pytest.raises(pb.Cancelled):
        repo.backup([source(staging)], cancel=CancelledLater(6))
    assert server.killed and repo.snapshots() == [] and list(staging.iterdir()) == [] and not server.locks


def test_a_cancelled_restore_stops_the_server_and_leaves_nothing(server, staging, repo):
    repo.backup([source(staging)])
    server.slow = "RESTORE DATABASE"
    with pytest.raises(pb.Cancelled):
        repo.restore(into={"pmr": source(staging, "new")}, cancel=CancelledLater(9))
    assert server.killed and set(server.databases) == {"pmr"} and list(staging.iterdir()) == []


def test_what_a_kill_has_left_is_removed_by_the_next_and_nothing_else(server, staging, repo):
    repo.backup([source(staging)])
    own = source(staging)
    stage(own).write_bytes(b"patients")
    stage(source(staging, "other")).write_bytes(b"of another database")
    (staging / "mine.bak").write_bytes(b"x")
    repo.backup([own])
    assert len(list(staging.iterdir())) == 2 and (staging / "mine.bak").exists()
    server.databases |= {
        "pmr_restoring_01234567": Database(state="RESTORING"),
        "pmr_restoring_89abcdef": Database(marked=True),
        "pmr_restoring_11111111": Database({"dbo.x": 1}),  # somebody's own
        "pmr_restoring_old": Database(state="RESTORING"),
    }
    repo.restore(into={"pmr": own}, overwrite=True)
    left = {name for name in server.databases if "_restoring_" in name}
    assert left == {"pmr_restoring_11111111", "pmr_restoring_old"}


def stage(one: pb.SQLServer) -> Path:
    with one._server.connected("pmr") as session:
        return one._staging.file(session)


def test_two_at_once_are_refused(server, staging, repo):
    server.locks.add("pharmabackup pmr")
    with pytest.raises(pb.Incomplete) as caught:
        repo.backup([source(staging)])
    assert "Another backup or restore of pmr is under way" in told(caught.value)


def test_an_encrypted_database_is_told(server, staging, repo):
    server.databases["pmr"].encrypted = True
    report = repo.backup([source(staging)])
    assert [finding.code for finding in report.findings if finding.code != "same-device"] == ["encrypted-source"]
    assert report.datasets["pmr"].complete


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"database": "none"}, "does not exist on its server"),
        ({"state": "RECOVERY_PENDING"}, "is not online (RECOVERY_PENDING)"),
        ({"password": "wrong"}, "is not open to this user (18456)"),
        ({"count": ["none"]}, "lacks a table that is to be counted (208)"),
        ({"staging": "nowhere"}, "The staging folder"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(server, staging, repo, change, said):
    server.databases["pmr"].state = change.pop("state", "ONLINE")
    folder = staging / change.pop("staging", "")
    with pytest.raises(pb.Incomplete) as caught:
        repo.backup([source(folder, change.pop("database", "pmr"), **change)])
    assert said in told(caught.value) and PASSWORD not in told(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {"database": ""}, {"database": "x" * 129}, {"server": ""}, {"server": "h;Trusted=1"}, {"count": "entry"},
        {"count": ["a.b.c"]}, {"count": ["a]b"]}, {"user": None},
    ],
)  # fmt: skip
def test_arguments_that_make_no_sense_are_refused(server, staging, given):
    with pytest.raises(pb.InvalidInput):
        source(staging, given.pop("database", "pmr"), **given)


def test_an_older_server_and_files_of_other_kinds_are_refused(server, staging, repo):
    repo.backup([source(staging)])
    server.version = "15.0.2000.5"
    with pytest.raises(pb.Unsupported, match=r"SQL Server 16.0.4085.2, and this one is 15.0.2000.5"):
        repo.restore(into={"pmr": source(staging, "new")})
    server.version = "16.0.1000.6"
    server.databases["pmr"].kinds = ("D", "S", "L")
    repo.backup([source(staging)])
    with pytest.raises(pb.Incomplete) as caught:
        repo.restore(into={"pmr": source(staging, "new")})
    assert "FILESTREAM" in told(caught.value)
    with pytest.raises(pb.Unsupported, match="needs its database master"):
        repo.restore(into={"pmr": source(staging, "master")})


def test_a_backup_that_is_cut_short_on_disk_is_none(server, staging, repo, monkeypatch):
    import pharmabackup.sources.sqlserver_staging as module

    real = module.os.fstat

    class Longer:
        def __init__(self, descriptor):
            self.st_size = real(descriptor).st_size + 1

    class System:
        def __getattr__(self, name):
            return Longer if name == "fstat" else getattr(module_os, name)

    module_os = module.os
    monkeypatch.setattr(module, "os", System())
    with pytest.raises(pb.Incomplete) as caught:
        repo.backup([source(staging)])
    assert "of which a part could not be read" in told(caught.value) and list(staging.iterdir()) == []


def test_its_databases_are_known_to_discovery(server, staging):
    server.databases["claims"] = Database()
    found = source(staging, server=".").served()
    assert found == Served(
        product="sqlserver", host="localhost", port=1433, databases=("claims", "pmr"), database="pmr"
    )
    assert source(staging, server=".\\SQLEXPRESS").served().host == "localhost"


def test_the_real_library_says_that_nothing_answers(staging, repo):
    """pymssql itself, to a port where nobody listens: the number that it reports is known."""
    pytest.importorskip("pymssql")
    with pytest.raises(pb.Incomplete) as caught:
        repo.backup([source(staging, server="127.0.0.1,1")])
    assert "cannot be reached" in told(caught.value)


def test_without_its_library_it_is_said_what_to_install(staging, repo, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymssql", None)
    with pytest.raises(pb.Unsupported, match=r"pharmabackup\[sqlserver\]"):
        repo.backup([source(staging)])


def test_a_url_of_the_command_line_names_it(staging):
    from pharmabackup.cli.sources import sources_of

    urls = (
        "mssql://backup@db.local:1444/pmr?staging=/srv/x",
        "till=mssql://./a%20b?staging=/srv/x",
        "i=mssql://HOST%5CSQLEXPRESS/c?staging=/srv/x",
        "v=mssql://[::1]:1433/c?staging=/srv/a+b#c&d%20e",
    )
    found = sources_of({"sqlserver": urls}, {"till": 1})
    named = [(one.name, one.tier, one._database) for one in found]
    assert named == [("pmr", 3, "pmr"), ("till", 1, "a b"), ("i", 3, "c"), ("v", 3, "c")]
    reached = [(one._server.host, one._server._port, one._server._user) for one in found]
    assert reached == [
        ("db.local", "1444", "backup"),
        ("localhost", "", None),
        ("HOST\\SQLEXPRESS", "", None),
        ("::1", "1433", None),
    ]
    assert str(found[3]._staging.folder) == "/srv/a+b#c&d e"


def test_a_folder_that_the_server_does_not_see_is_told_before_anything_is_written_there(server, staging, repo):
    server.sees = False
    with pytest.raises(pb.Incomplete) as caught:
        repo.backup([source(staging)])
    assert "staging folder" in told(caught.value) and "BACKUP" not in " ".join(server.done)
    assert list(staging.iterdir()) == []


def test_renames_that_cannot_be_taken_back_are_told_by_name(server, staging, repo, monkeypatch):
    repo.backup([source(staging)])
    server.fails["ALTER DATABASE [pmr_restoring_"] = 1105
    monkeypatch.setattr(pb.SQLServer, "_is_there", lambda _self, _session, name: name in ("pmr", "none"))
    server.fails["ALTER DATABASE [pmr] SET MULTI_USER"] = 5064
    with pytest.raises(pb.Incomplete) as caught:
        repo.restore(into={"pmr": source(staging)}, overwrite=True)
    assert "what was there is called pmr or pmr_before_" in told(caught.value)
    assert "SET MULTI_USER" in told(caught.value)


def test_what_lies_in_the_folder_is_for_the_server_and_us(server, staging, repo, monkeypatch):
    modes = []
    real = Standin.files

    def looks(self, spid, found, values):
        modes.append(Path(unquoted(found[1])).stat().st_mode & 0o007)
        return real(self, spid, found, values)

    monkeypatch.setattr(
        "tests.sources.test_sqlserver.STATEMENTS",
        [(pattern, looks if what is real else what) for pattern, what in STATEMENTS],
    )
    repo.backup([source(staging)])
    repo.restore(into={"pmr": source(staging, "new")})
    assert modes == [0]
