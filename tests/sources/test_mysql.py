"""MariaDB: a real server's databases, backed up and restored."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pharmabackup as pb
from pharmabackup.sources.mysql_rows import RowCount, joined
from pharmabackup.sources.mysql_server import Version, quoted
from pharmabackup.sources.mysql_tools import _version
from pharmabackup.testing.source import SourceConformance, children
from tests.servers.mariadb import PASSWORD, MariaServer, mariadb
from tests.servers.webdav import certificate

pymysql = pytest.importorskip("pymysql")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaServer]:
    folder = tmp_path_factory.mktemp("mariadb")
    with mariadb(folder, "--innodb-flush-log-at-trx-commit=0", "--net-write-timeout=2") as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(server: MariaServer) -> Iterator[None]:
    for name in server.databases():
        execute(server, f"DROP DATABASE {quoted(name)}", database=None)
    execute(server, "CREATE DATABASE pmr CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci", database=None)
    yield
    for (user,) in execute(server, "SELECT user FROM mysql.user WHERE host = '%'", database=None):
        execute(server, f"DROP USER '{user}'@'%'", database=None)


@pytest.fixture(autouse=True)
def no_strays(server: MariaServer) -> Iterator[None]:
    """No test leaves a program running."""
    before = children()
    yield
    assert [name for process, name in children().items() if process not in before] == []


@pytest.fixture
def repo(tmp_path: Path, cheap_kdf: None) -> Iterator[pb.Repository]:
    with pb.Repository.create(tmp_path / "repository", pb.Passphrase("a passphrase of tests")) as made:
        yield made


def source(server: MariaServer, database: str = "pmr", **more: object) -> pb.MySQL:
    more = {"name": "pmr", "password": PASSWORD} | more
    return pb.MySQL(server.url(database), **more)  # type: ignore[arg-type]


def execute(server: MariaServer, *statements: str, database: str | None = "pmr") -> list[tuple]:
    with closing(server.connect(database)) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return list(cursor.fetchall())


class TestMySQL(SourceConformance):
    stays_connected = True

    @pytest.fixture(autouse=True)
    def place(self, server: MariaServer, fresh: None) -> Iterator[None]:
        self.server = server
        execute(
            server,
            "CREATE TABLE item (number int PRIMARY KEY, filler text NOT NULL)",
            "CREATE TABLE ledger (number int REFERENCES item (number), amount int NOT NULL)",
            "CREATE TABLE balance (id int PRIMARY KEY, amount bigint NOT NULL)",
            "INSERT INTO balance VALUES (1, 0)",
        )
        self.local = threading.local()
        self.open: list = []
        yield
        for connection in self.open:
            connection.close()

    def source(self) -> pb.Source:
        return source(self.server, count=["balance", "item"])

    def target(self) -> pb.Source:
        return source(self.server, "pmr_restored")

    def write(self, number: int) -> None:
        if not hasattr(self.local, "connection"):
            self.local.connection = self.server.connect("pmr")
            self.open.append(self.local.connection)
        with self.local.connection.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute("INSERT INTO item VALUES (%s, %s)", (number, os.urandom(5000).hex()))
            cursor.execute("UPDATE balance SET amount = amount + %s", (number,))
            cursor.execute("INSERT INTO ledger VALUES (%s, %s)", (number, number))
            cursor.execute("COMMIT")
        if not self.stays_connected:
            self.open.remove(self.local.connection)
            self.local.connection.close()
            del self.local.connection

    def read(self, source: pb.Source) -> list[int]:
        database = source._server.database  # type: ignore[attr-defined]
        numbers = [n for (n,) in execute(self.server, "SELECT number FROM item ORDER BY 1", database=database)]
        ((balance,),) = execute(self.server, "SELECT amount FROM balance", database=database)
        ledger = [n for (n,) in execute(self.server, "SELECT amount FROM ledger ORDER BY 1", database=database)]
        assert ledger == numbers
        assert balance == sum(numbers)
        return numbers

    def test_what_is_there_is_not_replaced(self, repo: pb.Repository) -> None:
        """Nobody is connected."""
        self.stays_connected, self.writes = False, 20
        super().test_what_is_there_is_not_replaced(repo)
        assert [name for name in self.server.databases() if name.startswith("pmr_before_")]

    def test_a_restore_that_is_cancelled_at_any_look_leaves_what_was_there(
        self, repo: pb.Repository, strays: Callable[[], list[str]]
    ) -> None:
        self.stays_connected, self.writes = False, 20
        super().test_a_restore_that_is_cancelled_at_any_look_leaves_what_was_there(repo, strays)
        assert not [name for name in self.server.databases() if "restoring" in name]


# ---------------------------------------------------------------- what is in it

KINDS = (
    "CREATE TABLE a (id int AUTO_INCREMENT PRIMARY KEY, t text, b blob, d decimal(10,3),"
    " w datetime(6), j json,"
    " CHECK (d < 1000), g int AS (d + 1) STORED, KEY (d)) COMMENT 'with ; and \\n'",
    "CREATE TABLE child (id int PRIMARY KEY, a int, CONSTRAINT of FOREIGN KEY (a) REFERENCES a (id))",
    "CREATE SEQUENCE numbers START WITH 5",
    "CREATE TABLE past (n int) WITH SYSTEM VERSIONING",
    "CREATE VIEW seen AS SELECT id, d FROM a WHERE d > 1",
    "CREATE VIEW above AS SELECT id FROM seen",
    "CREATE FUNCTION twice(n int) RETURNS int DETERMINISTIC RETURN 2 * n",
    "CREATE PROCEDURE fill() BEGIN\n INSERT INTO `a` VALUES (NULL);\n END",
    "CREATE TRIGGER checked BEFORE INSERT ON child FOR EACH ROW SET NEW.a = 1",
    "CREATE EVENT nightly ON SCHEDULE EVERY 1 DAY DO DELETE FROM child",
    "CREATE TABLE `odd ``name; é` (`a b` int PRIMARY KEY)",
    "INSERT INTO a (t, b, d, w, j) VALUES ('it''s \\\\ \\n\\nINSERT INTO `a` VALUES (1)\\0 é 😀', x'00ff0a27',"
    " 12.345, '2026-03-29 02:30:00.123456', '{\"a\": 1}'), (NULL, NULL, NULL, NULL, NULL)",
    "INSERT INTO child VALUES (1, 1)",
    "INSERT INTO past VALUES (1)",
    "UPDATE past SET n = 2",
    "INSERT INTO `odd ``name; é` VALUES (1), (2)",
)
ALL_OF_IT = (
    "SELECT id, t, hex(b), d, w, j, g FROM a ORDER BY id",
    "SELECT * FROM child",
    "SELECT n, row_start < row_end FROM past FOR SYSTEM_TIME ALL ORDER BY n",
    "SELECT * FROM above",
    "SELECT twice(4), nextval(numbers) > 4",
    "SELECT trigger_name, action_statement FROM information_schema.triggers WHERE trigger_schema = database()",
    "SELECT event_name, status FROM information_schema.events WHERE event_schema = database()",
    "SELECT routine_name, routine_definition FROM information_schema.routines WHERE routine_schema = database()"
    " ORDER BY 1",
    "SELECT default_character_set_name, default_collation_name FROM information_schema.schemata"
    " WHERE schema_name = database()",
    "SELECT constraint_name, table_name, referenced_table_name, unique_constraint_schema = database()"
    " FROM information_schema.referential_constraints WHERE constraint_schema = database()",
    "SELECT count(*) FROM `odd ``name; é`",
)


def all_of_it(server: MariaServer, database: str) -> list[list[tuple]]:
    return [execute(server, query, database=database) for query in ALL_OF_IT]


def test_all_kinds_of_things_come_back(server: MariaServer, repo: pb.Repository) -> None:
    execute(server, *KINDS)
    counted = ["a", "odd `name; é", "child"]
    report = repo.backup([source(server, count=counted)])
    assert report.findings == ()
    repo.restore(into={"pmr": source(server, "again")})
    assert repo.snapshot("pmr").facts["rows"] == {"a": 2, "odd `name; é": 2, "child": 1}
    assert all_of_it(server, "again") == all_of_it(server, "pmr")
    assert sorted(server.databases()) == ["again", "pmr"]
    with pytest.raises(pymysql.MySQLError):  # the foreign key holds
        execute(server, "DELETE FROM a WHERE id = 1", database="again")


def test_what_is_replaced_is_kept_with_all_that_belongs_to_it(server: MariaServer, repo: pb.Repository) -> None:
    execute(server, *KINDS)
    repo.backup([source(server)])
    execute(server, "INSERT INTO a (t) VALUES ('later')", "CREATE TABLE more (n int)", "DROP VIEW above")
    execute(server, "CREATE VIEW above AS SELECT 7 AS id")
    before = all_of_it(server, "pmr")
    repo.restore(into={"pmr": source(server)}, overwrite=True)
    (kept,) = [name for name in server.databases() if name.startswith("pmr_before_")]
    assert execute(server, "SELECT count(*) FROM a") == [(2,)]
    assert execute(server, "SHOW TABLES LIKE 'more'") == []
    assert execute(server, "SELECT * FROM above") == [(1,)]
    assert execute(server, "SELECT count(*) FROM a", database=kept) == [(3,)]
    assert execute(server, "SELECT * FROM above", database=kept) == [(7,)]
    events = next(index for index, query in enumerate(ALL_OF_IT) if "events" in query)
    for index, (was, found) in enumerate(zip(before, all_of_it(server, kept), strict=True)):
        if index == events:  # it would act twice
            assert found == [("nightly", "DISABLED")]
        elif "schemata" not in ALL_OF_IT[index]:
            assert found == was, ALL_OF_IT[index]
    assert sorted(server.databases()) == sorted([kept, "pmr"])


def test_what_a_dump_does_not_hold_as_it_is_is_told(server: MariaServer, repo: pb.Repository) -> None:
    execute(
        server,
        "CREATE TABLE old (n int) ENGINE=MyISAM",
        "CREATE TABLE weight (kg float)",
        "CREATE TABLE gone (n int)",
        "CREATE VIEW broken AS SELECT * FROM gone",
        "CREATE VIEW whole AS SELECT * FROM old",
        "INSERT INTO old VALUES (1)",
        "DROP TABLE gone",
    )
    with pytest.raises(pb.Incomplete) as caught:
        repo.backup([source(server)])
    codes = {finding.code: finding for finding in caught.value.findings}
    assert set(codes) == {"no-transactions", "rounded", "view-broken"}
    assert "old" in codes["no-transactions"].message
    assert "broken" in codes["view-broken"].message
    assert codes["rounded"].severity == "info"
    repo.restore(into={"pmr": source(server, "again")})
    assert execute(server, "SELECT * FROM whole", database="again") == [(1,)]


def test_restored_to_a_folder_it_is_what_the_client_reads(
    server: MariaServer, repo: pb.Repository, tmp_path: Path
) -> None:
    execute(server, *KINDS)
    repo.backup([source(server)])
    repo.restore(tmp_path / "out")
    execute(server, "CREATE DATABASE again CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci", database=None)
    for name in ("database.sql", "programs.sql", "events.sql"):
        with open(tmp_path / "out" / "pmr" / name) as text:
            subprocess.run(
                ["mariadb", "--host=127.0.0.1", f"--port={server.port}", f"--user={server.user}", "again"],
                check=True,
                stdin=text,
                env=os.environ | {"MYSQL_PWD": PASSWORD},
            )
    assert all_of_it(server, "again") == all_of_it(server, "pmr")


def filled(server: MariaServer, megabytes: int = 12) -> None:
    execute(
        server,
        "CREATE TABLE aaa (n int PRIMARY KEY, filler text)",
        "CREATE TABLE zzz (n int PRIMARY KEY)",
        "INSERT INTO zzz VALUES (1), (2), (3)",
        f"INSERT INTO aaa SELECT seq, repeat(sha2(seq, 512), 8) FROM seq_1_to_{megabytes * 1000}",
    )


# ---------------------------------------------------------------- how it is reached


def test_a_server_is_reached_by_its_socket(server: MariaServer, repo: pb.Repository) -> None:
    execute(server, *KINDS)
    url = f"mariadb://{server.user}@localhost/{{}}?socket={server.socket}"
    repo.backup([pb.MySQL(url.format("pmr"), password=PASSWORD)])
    repo.restore(into={"pmr": pb.MySQL(url.format("again"), password=PASSWORD)})
    assert all_of_it(server, "again") == all_of_it(server, "pmr")


def test_the_servers_name_is_checked_by_its_tools_too() -> None:
    reached = pb.MySQL("mariadb://u@h/pmr?ssl-ca=/ca.pem")._server
    assert {"--ssl-ca=/ca.pem", "--ssl", "--ssl-verify-server-cert"} <= set(reached.arguments(mariadb=True))
    assert {"--ssl-ca=/ca.pem", "--ssl-mode=VERIFY_IDENTITY"} <= set(reached.arguments(mariadb=False))


def test_the_line_is_encrypted_and_the_servers_name_is_checked(tmp_path: Path, cheap_kdf: None) -> None:
    """The user may not come without encryption."""
    (tmp_path / "server").mkdir()
    (tmp_path / "other").mkdir()
    certificate_, key = certificate(tmp_path / "server")
    stranger, _ = certificate(tmp_path / "other")
    for path in (certificate_, key):
        path.chmod(0o644)
    (tmp_path / "server").chmod(0o755)
    folder = tmp_path / "data"
    folder.mkdir()
    with mariadb(folder, f"--ssl-cert={certificate_}", f"--ssl-key={key}") as server:
        execute(server, "CREATE DATABASE pmr", "ALTER USER pharmacy@'127.0.0.1' REQUIRE SSL", database=None)
        with pb.Repository.create(tmp_path / "repository", pb.Passphrase("a passphrase of tests")) as repo:
            url = server.url("pmr") + "?ssl-ca="
            repo.backup([pb.MySQL(url + str(certificate_), password=PASSWORD)])
            repo.restore(into={"pmr": pb.MySQL(server.url("again") + f"?ssl-ca={certificate_}", password=PASSWORD)})
            finding = failure(lambda: repo.backup([pb.MySQL(url + str(stranger), password=PASSWORD)]))
            assert "cannot be reached" in finding.message


# ---------------------------------------------------------------- what goes wrong


def test_it_waits_longer_than_the_server_does(server: MariaServer, repo: pb.Repository) -> None:
    """The server breaks a connection that does not take what it writes for two seconds; another dataset takes six."""
    filled(server)
    slow = pb.Command(["sh", "-c", "sleep 6; echo done"], name="slow", tier=0)
    report = repo.backup([slow, source(server, count=["aaa", "zzz"])])
    assert report.datasets["pmr"].complete
    assert repo.snapshot("pmr").facts["rows"] == {"aaa": 12_000, "zzz": 3}
    assert execute(server, "SELECT @@global.net_write_timeout") == [(2,)]


def test_a_user_who_may_not_let_it_wait_is_told_what_to_set(server: MariaServer, repo: pb.Repository) -> None:
    filled(server)
    reader(server, "SELECT, SHOW VIEW, TRIGGER, EVENT ON pmr.*")
    slow = pb.Command(["sh", "-c", "sleep 6; echo done"], name="slow", tier=0)
    finding = failure(lambda: repo.backup([slow, pb.MySQL(server.url("pmr", "reader"), password="r")]))
    assert "net_write_timeout" in finding.remedy
    assert repo.snapshots("pmr") == []


def reader(server: MariaServer, *grants: str) -> None:
    execute(server, "CREATE USER reader@'%' IDENTIFIED BY 'r'", *(f"GRANT {grant} TO reader@'%'" for grant in grants))


@pytest.mark.parametrize(
    ("grants", "missing"),
    [
        (["SELECT, SHOW VIEW, TRIGGER, EVENT ON `pm_`.*", "SELECT ON mysql.proc"], None),
        (["SELECT ON *.*", "SHOW VIEW, EVENT, TRIGGER ON pmr.*"], None),
        (["ALL ON pmr.*"], None),
        (["SELECT, SHOW VIEW, TRIGGER, EVENT ON pmr.*"], "SHOW CREATE ROUTINE"),
        (["SELECT, SHOW VIEW, EVENT ON pmr.*", "TRIGGER ON other.*", "SELECT ON mysql.*"], "TRIGGER"),
        (["SELECT ON pmr.aaa", "SHOW VIEW, EVENT, TRIGGER ON pmr.*", "SELECT ON mysql.*"], "SELECT"),
    ],
)
def test_what_a_user_may_not_see_is_told(
    server: MariaServer, repo: pb.Repository, grants: list[str], missing: str | None
) -> None:
    filled(server, 1)
    reader(server, *grants)
    mine = pb.MySQL(server.url("pmr", "reader"), password="r")
    if missing is None:
        repo.backup([mine])
    else:
        finding = failure(lambda: repo.backup([mine]))
        assert finding.code == "unseen"
        assert f"lack {missing} on" in finding.message


def test_a_user_who_may_not_list_events_gets_one_sentence(server: MariaServer, repo: pb.Repository) -> None:
    filled(server, 1)
    reader(server, "SELECT, SHOW VIEW, TRIGGER ON pmr.*")
    finding = failure(lambda: repo.backup([pb.MySQL(server.url("pmr", "reader"), password="r")]))
    assert "EVENT" in finding.remedy


def test_what_is_committed_after_the_view_is_not_in_it(server: MariaServer, repo: pb.Repository) -> None:
    """Also where it is read much later."""
    filled(server)

    def later() -> None:
        execute(server, "INSERT INTO zzz VALUES (4)", "UPDATE aaa SET filler = 'later' WHERE n = 12000")

    repo.backup([source(server, count=["zzz"])], freeze=after(later))
    assert repo.snapshot("pmr").facts["rows"] == {"zzz": 3}
    repo.restore(into={"pmr": source(server, "again")})
    query = "SELECT count(*), (SELECT count(*) FROM aaa WHERE filler = 'later') FROM zzz"
    assert execute(server, query, database="again") == [(3, 0)]


def test_a_table_that_is_emptied_meanwhile_fails_it(server: MariaServer, repo: pb.Repository) -> None:
    filled(server)
    empty = after(lambda: execute(server, "TRUNCATE TABLE zzz"))
    finding = failure(lambda: repo.backup([source(server)], freeze=empty))
    assert "emptied" in finding.message
    assert repo.snapshots() == []
    repo.backup([source(server)])


def failure(what: Callable[[], object]) -> pb.Finding:
    """Why that is not whole: one finding."""
    with pytest.raises(pb.Incomplete) as caught:
        what()
    (finding,) = [found for found in caught.value.findings if found.severity != "info"]
    return finding


@contextmanager
def after(what: Callable[[], object]) -> Iterator[None]:
    """Once all views are taken."""
    yield
    what()


def kill_dump() -> None:
    killed = [os.kill(process, 9) for process, name in children().items() if name.startswith("mariadb-dump")]
    assert killed


def end_connections(server: MariaServer) -> None:
    query = (
        "SELECT id FROM information_schema.processlist WHERE info LIKE '%SQL_NO_CACHE%aaa%' AND id <> connection_id()"
    )
    ended = [execute(server, f"KILL {number}") for (number,) in execute(server, query)]
    assert ended


@pytest.mark.parametrize("how", ["program", "connection"])
def test_a_dump_that_is_killed_leaves_no_snapshot(server: MariaServer, repo: pb.Repository, how: str) -> None:
    filled(server)
    kill = kill_dump if how == "program" else lambda: end_connections(server)
    assert failure(lambda: repo.backup([source(server)], freeze=after(kill))).code == "dataset-failed"
    assert repo.snapshots() == []


def test_other_rows_than_were_backed_up_are_not_restored(
    server: MariaServer, repo: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(server, 1)
    with monkeypatch.context() as patched:
        patched.setattr("pharmabackup.sources.mysql_rows.INSERT", b"\nINSERT INTO \0")
        repo.backup([source(server, count=["zzz"])])
    assert repo.snapshot("pmr").facts["rows"] == {"zzz": 0}
    finding = failure(lambda: repo.restore(into={"pmr": source(server, "again")}))
    assert "zzz has 3 rows in the restored pmr, and had 0" in finding.message
    assert server.databases() == ["pmr"]


def test_a_table_that_does_not_pass_the_servers_check_is_not_restored(
    server: MariaServer, repo: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """unique_checks is off while a dump is loaded: the check finds what that let in."""
    from pharmabackup.sources import mysql_load

    filled(server, 1)
    repo.backup([source(server)])
    real = mysql_load.run

    def damaged(connection, statement, *values):
        if statement.startswith("CHECK TABLE"):
            return [("again.zzz", "check", "error", "Corrupt")]
        return real(connection, statement, *values)

    monkeypatch.setattr(mysql_load, "run", damaged)
    finding = failure(lambda: repo.restore(into={"pmr": source(server, "again")}))
    assert "aaa does not pass the server's own check" in finding.message
    assert server.databases() == ["pmr"]


def test_a_view_that_cannot_be_made_replaces_nothing(server: MariaServer, repo: pb.Repository) -> None:
    """It names another database, which is there no more."""
    filled(server, 1)
    execute(server, "CREATE DATABASE other", database=None)
    execute(server, "CREATE TABLE other.t (n int)", "CREATE VIEW far AS SELECT * FROM other.t")
    repo.backup([source(server)])
    execute(server, "DROP DATABASE other", "DROP VIEW far", "INSERT INTO zzz VALUES (9)")
    assert failure(lambda: repo.restore(into={"pmr": source(server)}, overwrite=True)).code == "load-failed"
    assert execute(server, "SELECT count(*) FROM zzz") == [(4,)]
    assert server.databases() == ["pmr"]


def test_tables_that_cannot_move_leave_all_as_it_was(
    server: MariaServer, repo: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pharmabackup.sources import mysql_load

    execute(server, *KINDS)
    repo.backup([source(server)])
    before = all_of_it(server, "pmr")
    real = mysql_load.run

    def refused(connection, statement, *values):
        if statement.startswith("RENAME"):
            raise pymysql.OperationalError(1205, "Lock wait timeout exceeded")
        return real(connection, statement, *values)

    monkeypatch.setattr(mysql_load, "run", refused)
    finding = failure(lambda: repo.restore(into={"pmr": source(server)}, overwrite=True))
    assert "locked by another program" in finding.message
    assert all_of_it(server, "pmr") == before
    assert server.databases() == ["pmr"]


def test_a_database_that_is_in_use_is_not_replaced(server: MariaServer, repo: pb.Repository) -> None:
    filled(server, 1)
    repo.backup([source(server)])
    with closing(server.connect("pmr")), pytest.raises(pb.Conflict) as caught:
        repo.restore(into={"pmr": source(server)}, overwrite=True)
    assert caught.value.kind == "in-use"


def test_what_a_killed_restore_left_is_dropped_by_the_next(server: MariaServer, repo: pb.Repository) -> None:
    filled(server, 1)
    repo.backup([source(server)])
    names = ("pmr_restoring_0badcafe", "pmr_restoring_mine", "pmr_restoring_0000beef", "other_restoring_0badcafe")
    for name in names:
        execute(server, f"CREATE DATABASE {name}", database=None)
    for name in (names[0], names[3]):
        execute(server, "CREATE TABLE `pharmabackup is restoring` (a int)", database=name)
    repo.restore(into={"pmr": source(server)}, overwrite=True)
    assert [name for name in server.databases() if "restoring" in name] == [
        "other_restoring_0badcafe",
        "pmr_restoring_0000beef",
        "pmr_restoring_mine",
    ]


def test_two_restores_at_once_are_one(server: MariaServer, repo: pb.Repository) -> None:
    from pharmabackup.sources.mysql_load import Loading

    filled(server, 1)
    repo.backup([source(server)])
    first = Loading(source(server)._server, "", True, None, "pmr", SimpleNamespace(check=None), ())  # type: ignore[arg-type]
    with first._alone():
        finding = failure(lambda: repo.restore(into={"pmr": source(server)}, overwrite=True))
    assert "under way" in finding.message


@pytest.mark.parametrize(
    ("product", "server_is", "allowed"),
    [("MySQL", (8, 0), False), ("MariaDB", (99, 0), False), ("MariaDB", (10, 5), True)],
)
def test_a_server_of_another_make_or_an_older_one_is_refused(
    server: MariaServer, product: str, server_is: tuple[int, int], allowed: bool
) -> None:
    facts = {"product": product, "major": server_is[0], "minor": server_is[1]}
    if allowed:
        source(server, "again").prepare(facts, overwrite=False)
    else:
        with pytest.raises(pb.Unsupported, match=f"{product} {server_is[0]}"):
            source(server, "again").prepare(facts, overwrite=False)


@pytest.mark.parametrize(
    ("url", "more", "said"),
    [
        ("mariadb://nobody@127.0.0.1:{port}/pmr", {}, "does not let this user in"),
        ("mariadb://pharmacy@127.0.0.1:{port}/none", {}, "does not exist"),
        ("mariadb://pharmacy@127.0.0.1:1/pmr", {}, "cannot be reached"),
        ("mariadb://pharmacy@127.0.0.1:{port}/pmr", {"count": ["none"]}, "none cannot be counted"),
        ("mariadb://pharmacy@127.0.0.1:{port}/pmr", {"tools": "/"}, "mariadb-dump or mysqldump is not installed"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    server: MariaServer, repo: pb.Repository, url: str, more: dict, said: str
) -> None:
    finding = failure(lambda: repo.backup([pb.MySQL(url.format(port=server.port), password=PASSWORD, **more)]))
    assert said in finding.message
    assert PASSWORD not in f"{finding.message} {finding.remedy}"


@pytest.mark.parametrize(
    "url",
    ["mariadb://u:secret@h/pmr", "mysql://u@h/pmr?password=secret", "postgresql://h/pmr", "mysql://h/", "u@pmr",
     "mysql://h:x/pmr", "mysql://h/pmr?sslmode=x"],
)  # fmt: skip
def test_an_address_that_cannot_be_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(pb.InvalidInput) as caught:
        pb.MySQL(url)
    assert "secret" not in str(caught.value)


def test_no_password_is_on_a_command_line(
    server: MariaServer, repo: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The programs would hide one that was there, a moment later."""
    started: list[str] = []
    real = subprocess.Popen

    def popen(command, *arguments, **more):
        started.extend(command)
        return real(command, *arguments, **more)

    monkeypatch.setattr(subprocess, "Popen", popen)
    filled(server, 1)
    repo.backup([source(server)])
    repo.restore(into={"pmr": source(server, "again")})
    assert {"mariadb-dump", "mariadb"} <= {os.path.basename(word) for word in started}
    assert not any(PASSWORD in word or "password" in word for word in started)


# ---------------------------------------------------------------- what real servers have


def test_option_files_decide_nothing(
    server: MariaServer, repo: pb.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".my.cnf").write_text(
        "[client]\npassword=wrong\nsocket=/nowhere\n[mysqldump]\nwhere=1=0\ndatabases\nevents\n[mysql]\nforce\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    filled(server, 1)
    repo.backup([source(server, count=["zzz"])])
    repo.restore(into={"pmr": source(server, "again")})
    assert execute(server, "SELECT count(*) FROM zzz", database="again") == [(3,)]


def test_an_error_after_the_move_drops_nothing(
    server: MariaServer, repo: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one of a log that cannot be written."""
    from pharmabackup.sources import mysql_load

    execute(server, *KINDS)
    repo.backup([source(server)])
    execute(server, "INSERT INTO a (t) VALUES ('later')")
    real = mysql_load.run

    def late(connection, statement, *values):
        found = real(connection, statement, *values)
        if statement.startswith("RENAME"):
            raise pymysql.OperationalError(1598, "Binary logging not possible")
        return found

    monkeypatch.setattr(mysql_load, "run", late)
    finding = failure(lambda: repo.restore(into={"pmr": source(server)}, overwrite=True))
    (kept,) = [name for name in server.databases() if name.startswith("pmr_before_")]
    assert kept in finding.remedy
    assert execute(server, "SELECT count(*) FROM a", database=kept) == [(3,)]
    texts = b"".join(text for (text,) in execute(server, "SELECT text FROM `pharmabackup programs`", database=kept))
    assert b"TRIGGER checked" in texts and b"EVENT `nightly`" in texts


def test_a_rename_that_goes_on_after_its_connection_is_lost_is_ended_first(
    server: MariaServer, repo: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else tables would come into what is dropped as empty."""
    from pharmabackup.sources import mysql_load

    filled(server, 1)
    repo.backup([source(server)])
    execute(server, "INSERT INTO zzz VALUES (9)")
    real = mysql_load.run
    threads: list[threading.Thread] = []

    def lost(connection, statement, *values):
        if not statement.startswith("RENAME"):
            return real(connection, statement, *values)
        reader = server.connect()
        reader.cursor().execute("LOCK TABLES pmr.zzz READ")
        release = threading.Timer(2, reader.close)

        def go_on() -> None:
            with suppress(pymysql.MySQLError):
                real(connection, statement, *values)

        threads.extend([release, threading.Thread(target=go_on)])
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        raise pymysql.OperationalError(2013, "Lost connection")

    monkeypatch.setattr(mysql_load, "run", lost)
    assert failure(lambda: repo.restore(into={"pmr": source(server)}, overwrite=True)).code == "load-failed"
    for thread in threads:
        thread.join()
    assert execute(server, "SELECT count(*) FROM zzz") == [(4,)]
    assert server.databases() == ["pmr"]


def test_what_was_replaced_and_cannot_be_made_again_is_told(
    server: MariaServer, repo: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pharmabackup.sources.mysql_load import Loading

    execute(server, *KINDS)
    repo.backup([source(server)])
    monkeypatch.setattr(Loading, "_texts", lambda *_: b"CREATE VIEW bad AS SELECT * FROM nowhere;")
    report = repo.restore(into={"pmr": source(server)}, overwrite=True)
    (finding,) = [found for found in report.findings if found.code == "not-restored"]
    (kept,) = [name for name in server.databases() if name.startswith("pmr_before_")]
    assert kept in finding.message
    assert execute(server, "SHOW EVENTS")[0][1] == "nightly"
    assert execute(server, "SELECT count(*) FROM `pharmabackup programs`", database=kept)[0][0] == 1


def test_tables_that_came_while_it_was_loaded_are_not_replaced(
    server: MariaServer, repo: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pharmabackup.sources.mysql_load import Loading

    filled(server, 1)
    repo.backup([source(server)])
    real = Loading._verified

    def verified(self, database: str) -> dict[str, int]:
        execute(server, "CREATE DATABASE again", "CREATE TABLE again.mine (n int)", database=None)
        return real(self, database)

    monkeypatch.setattr(Loading, "_verified", verified)
    with pytest.raises((pb.Conflict, pb.Incomplete)):
        repo.restore(into={"pmr": source(server, "again")})
    assert execute(server, "SHOW TABLES", database="again") == [("mine",)]
    assert sorted(server.databases()) == ["again", "pmr"]


def test_a_dump_of_another_form_is_not_counted_as_empty(
    server: MariaServer, repo: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(server, 1)
    monkeypatch.setattr("pharmabackup.sources.mysql_rows.KEYS", b"\nALTER ")
    finding = failure(lambda: repo.backup([source(server, count=["zzz"])]))
    assert "zzz in pmr could not be counted" in finding.message


def test_a_database_whose_name_has_signs_is_replaced(server: MariaServer, repo: pb.Repository) -> None:
    name = "a%s b`é"
    execute(server, f"CREATE DATABASE {quoted(name)}", database=None)
    execute(server, "CREATE TABLE t (n int)", "CREATE VIEW v AS SELECT n FROM t", database=name)
    url = f"mariadb://{server.user}@127.0.0.1:{server.port}/{quote(name)}"
    for _ in range(2):
        repo.backup([pb.MySQL(url, name="odd", password=PASSWORD)])
        repo.restore(into={"odd": pb.MySQL(url, name="odd", password=PASSWORD)}, overwrite=True)
        time.sleep(1.1)
    kept = [found for found in server.databases() if found.startswith(f"{name}_before_")]
    assert len(kept) == 2
    assert execute(server, "SHOW FULL TABLES WHERE table_type = 'VIEW'", database=kept[0]) == [("v", "VIEW")]


def test_a_database_of_events_alone_is_not_empty(server: MariaServer, repo: pb.Repository) -> None:
    filled(server, 1)
    repo.backup([source(server)])
    execute(server, "CREATE DATABASE jobs", database=None)
    execute(server, "CREATE EVENT nightly ON SCHEDULE EVERY 1 DAY DO SELECT 1", database="jobs")
    with pytest.raises(pb.Conflict):
        repo.restore(into={"pmr": source(server, "jobs")})
    repo.restore(into={"pmr": source(server, "jobs")}, overwrite=True)
    (kept,) = [name for name in server.databases() if name.startswith("jobs_before_")]
    assert execute(server, "SHOW EVENTS", database=kept)[0][1] == "nightly"


def test_a_broken_view_of_what_is_replaced_is_kept_as_a_text(server: MariaServer, repo: pb.Repository) -> None:
    filled(server, 1)
    repo.backup([source(server)])
    execute(server, "CREATE TABLE gone (n int)", "CREATE VIEW broken AS SELECT n FROM gone", "DROP TABLE gone")
    repo.restore(into={"pmr": source(server)}, overwrite=True)
    (kept,) = [name for name in server.databases() if name.startswith("pmr_before_")]
    query = "SELECT text FROM `pharmabackup programs` WHERE number < 0"
    assert b"VIEW `pmr`.`broken`" in execute(server, query, database=kept)[0][0]
    repo.backup([source(server, kept, name="kept")])  # what was kept can be replaced as well
    repo.restore(into={"pmr": source(server, kept)}, only=["pmr"], overwrite=True)


def test_a_view_that_is_made_meanwhile_fails_it(server: MariaServer, repo: pb.Repository) -> None:
    filled(server)
    make = after(lambda: execute(server, "CREATE VIEW late AS SELECT 1"))
    assert "was made or dropped" in failure(lambda: repo.backup([source(server)], freeze=make)).message
    assert repo.snapshots() == []


def test_another_databases_collation_is_left_alone(server: MariaServer, repo: pb.Repository) -> None:
    """A dump of routines from before their database was converted names that database."""
    execute(
        server,
        "CREATE PROCEDURE old() SELECT 1",
        "CREATE EVENT old ON SCHEDULE EVERY 1 DAY DO SELECT 1",
        "ALTER DATABASE pmr CHARACTER SET latin1 COLLATE latin1_swedish_ci",
    )
    repo.backup([source(server)])
    execute(server, "ALTER DATABASE pmr CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")
    repo.restore(into={"pmr": source(server, "again")})
    query = "SELECT default_collation_name FROM information_schema.schemata WHERE schema_name = database()"
    assert execute(server, query) == [("utf8mb4_bin",)]
    assert execute(server, query, database="again") == [("latin1_swedish_ci",)]
    execute(server, "DROP DATABASE pmr", database=None)
    repo.restore(into={"pmr": source(server, "once_more")})


def test_what_refers_to_it_from_elsewhere_is_told_beforehand(server: MariaServer, repo: pb.Repository) -> None:
    filled(server, 1)
    repo.backup([source(server)])
    execute(server, "CREATE DATABASE other", database=None)
    execute(server, "CREATE TABLE other.c (n int, FOREIGN KEY (n) REFERENCES pmr.zzz (n))")
    with pytest.raises(pb.Conflict, match="other refer to pmr"):
        repo.restore(into={"pmr": source(server)}, overwrite=True)
    execute(server, "DROP TABLE other.c")


def test_packages_sequences_and_large_rows_come_back(server: MariaServer, repo: pb.Repository) -> None:
    """A row is twice as long in a dump: the server would not take back what it holds."""
    execute(
        server,
        "SET sql_mode = 'ORACLE'",
        "CREATE PACKAGE tools AS FUNCTION one RETURN int; END",
        "CREATE PACKAGE BODY tools AS FUNCTION one RETURN int AS BEGIN RETURN 1; END; END",
        "SET sql_mode = ''",
        "CREATE SEQUENCE numbers",
        "CREATE TABLE t (n int PRIMARY KEY DEFAULT nextval(numbers), b longblob)",
        "INSERT INTO t (b) VALUES (repeat(x'fe', 9000000))",
        "CREATE TABLE flt (a float, b float, c float)",
    )
    report = repo.backup([source(server)])
    assert "columns of flt keep" in next(found.message for found in report.findings if found.code == "rounded")
    for _ in range(2):
        repo.restore(into={"pmr": source(server, "again")}, overwrite=True)
    assert execute(server, "SELECT n, length(b), md5(b) FROM t", database="again") == execute(
        server, "SELECT n, length(b), md5(b) FROM t"
    )
    one = execute(server, "SET sql_mode = 'ORACLE'", "SELECT tools.one() FROM dual", database="again")
    assert one == [(1,)]
    assert execute(server, "SELECT @@global.max_allowed_packet") == [(16777216,)]


def test_a_user_who_is_not_there_is_named(server: MariaServer, repo: pb.Repository) -> None:
    execute(
        server,
        "CREATE USER owner@'%'",
        "GRANT ALL ON *.* TO owner@'%'",
        "CREATE TABLE t (n int)",
        "CREATE DEFINER = owner@'%' VIEW one AS SELECT n FROM t",
        "CREATE DEFINER = owner@'%' VIEW two AS SELECT n FROM one",
    )
    repo.backup([source(server)])
    assert repo.snapshot("pmr").facts["definers"] == ["`owner`@`%`"]
    execute(server, "DROP USER owner@'%'")
    finding = failure(lambda: repo.restore(into={"pmr": source(server, "again")}))
    assert "definers" in finding.remedy
    execute(server, "CREATE USER owner@'%'", "GRANT ALL ON *.* TO owner@'%'")
    repo.restore(into={"pmr": source(server, "again")})


def test_rows_that_are_versioned_by_transaction_are_told(server: MariaServer, repo: pb.Repository) -> None:
    execute(
        server,
        "CREATE TABLE t (n int, b bigint unsigned GENERATED ALWAYS AS ROW START, e bigint unsigned"
        " GENERATED ALWAYS AS ROW END, PERIOD FOR SYSTEM_TIME (b, e)) WITH SYSTEM VERSIONING",
        "INSERT INTO t (n) VALUES (1)",
    )
    assert failure(lambda: repo.backup([source(server)])).code == "history-left-out"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"mariadb-dump  Ver 10.19 Distrib 10.11.19-MariaDB, for debian-linux-gnu (x86_64)", Version(True, 10, 11)),
        (b"mariadb-dump from 11.4.2-MariaDB, client 10.19 for Linux (x86_64)", Version(True, 11, 4)),
        (b"mysqldump  Ver 10.13 Distrib 5.7.44, for Linux (x86_64)", Version(False, 5, 7)),
        (b"mysqldump  Ver 8.0.39 for Linux on x86_64 (MySQL Community Server - GPL)", Version(False, 8, 0)),
        (b"mysql  Ver 14.14 Distrib 5.7.44, for Linux (x86_64) using  EditLine wrapper", Version(False, 5, 7)),
        (b"", None),
    ],
)
def test_programs_say_their_versions(said: bytes, expected: Version | None) -> None:
    assert _version(said) == expected


@pytest.mark.parametrize("tail", ["?ssl-ca=/nowhere.pem"])
def test_what_keeps_it_from_connecting_is_one_sentence(server: MariaServer, repo: pb.Repository, tail: str) -> None:
    finding = failure(lambda: repo.backup([pb.MySQL(server.url("pmr") + tail, password=PASSWORD)]))
    assert "certificate cannot be read" in finding.message


# ---------------------------------------------------------------- counting


@given(st.data())
def test_rows_are_counted_wherever_a_dump_is_cut(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(["a", "b", "a` DISABLE KEYS b", "é"]), unique=True, min_size=1))
    rows = {name: data.draw(st.integers(0, 40)) for name in names}
    text = "-- head\n"
    for name, count in rows.items():
        mine = quoted(name)
        text += f"/*!40000 ALTER TABLE {mine} DISABLE KEYS */;\n"
        text += f"INSERT INTO {mine} VALUES (1,'\\n{mine}');\n" * count
        text += f"/*!40000 ALTER TABLE {mine} ENABLE KEYS */;\nCOMMIT;\n"
        text += f"CREATE TRIGGER t BEGIN\nINSERT INTO {mine} VALUES (1);\nEND;\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text.encode())), max_size=4)))
    parts = [text.encode()[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
    found = b"".join(joined(parts))
    for name, count in rows.items():
        begin = f"\n/*!40000 ALTER TABLE {quoted(name)} DISABLE KEYS */;".encode()
        section = found.split(begin)[1].split(b"\n/*!40000")[0]
        row = f"(1,'\\n{quoted(name)}')".encode()
        assert section.count(row) == count
        lines = re.escape(row) + rb"(?:,\n" + re.escape(row) + rb")*;"
        head = re.escape(b"\nINSERT INTO " + quoted(name).encode() + b" VALUES ")
        assert re.fullmatch(b"(?:" + head + lines + b")*", section)
        assert section.count(b"INSERT INTO") <= 2 * len(cuts) + 1
    left = text.encode()
    counted = RowCount(names[: data.draw(st.integers(1, len(names)))])

    def read_into(view: memoryview) -> int:
        nonlocal left
        piece, left = left[: len(view)], left[len(view) :]
        view[: len(piece)] = piece
        return len(piece)

    read = counted.through(read_into)
    while read(memoryview(bytearray(data.draw(st.sampled_from([1, 7, 100, 1500, 5000]))))):
        pass
    assert counted.found == {name: rows[name] for name in counted.found}
