"""MariaDB: a real server's databases, backed up and restored."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pharmabackup as pb
from pharmabackup.sources.mysql_rows import RowCount, joined
from pharmabackup.sources.mysql_server import quoted
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
        execute(server, f"DROP DATABASE `{name}`", database=None)
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
        (["SELECT, SHOW VIEW, TRIGGER, EVENT ON `pm_`.*"], None),
        (["SELECT ON *.*", "SHOW VIEW, EVENT, TRIGGER ON pmr.*"], None),
        (["ALL ON pmr.*"], None),
        (["SELECT, SHOW VIEW, EVENT ON pmr.*", "TRIGGER ON other.*"], "TRIGGER"),
        (["SELECT ON pmr.aaa", "SHOW VIEW, EVENT, TRIGGER ON pmr.*"], "SELECT"),
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
    for name in ("pmr_restoring_0badcafe", "pmr_restoring_mine", "pmr_restoring_0000beef"):
        execute(server, f"CREATE DATABASE {name}", database=None)
    execute(server, "CREATE TABLE `pharmabackup is restoring` (a int)", database="pmr_restoring_0badcafe")
    repo.restore(into={"pmr": source(server)}, overwrite=True)
    assert [name for name in server.databases() if "restoring" in name] == [
        "pmr_restoring_0000beef",
        "pmr_restoring_mine",
    ]


def test_two_restores_at_once_are_one(server: MariaServer, repo: pb.Repository) -> None:
    from pharmabackup.sources.mysql_load import Loading

    filled(server, 1)
    repo.backup([source(server)])
    first = Loading(source(server)._server, "", True, None, "pmr", SimpleNamespace(check=None))  # type: ignore[arg-type]
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


def test_no_password_is_on_a_command_line(server: MariaServer, repo: pb.Repository) -> None:
    filled(server)
    seen: list[bytes] = []

    def look() -> None:
        seen.extend(Path(f"/proc/{process}/cmdline").read_bytes() for process in children())

    repo.backup([source(server)], freeze=after(look))
    assert any(b"mariadb-dump" in line for line in seen)
    assert not any(b"pass of" in line for line in seen)


# ---------------------------------------------------------------- counting


@given(st.data())
def test_rows_are_counted_wherever_a_dump_is_cut(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(["a", "b", "a`; WRITE;b", "é"]), unique=True, min_size=1))
    rows = {name: data.draw(st.integers(0, 40)) for name in names}
    text = "-- head\n"
    for name, count in rows.items():
        mine = quoted(name)
        text += f"LOCK TABLES {mine} WRITE;\n" + f"INSERT INTO {mine} VALUES (1,'\\n{mine}');\n" * count
        text += f"UNLOCK TABLES;\nCOMMIT;\nCREATE TRIGGER t BEGIN\nINSERT INTO {mine} VALUES (1);\nEND;\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text.encode())), max_size=4)))
    parts = [text.encode()[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
    found = b"".join(joined(parts))
    for name, count in rows.items():
        section = found.split(f"\nLOCK TABLES {quoted(name)} WRITE;".encode())[1].split(b"\nUNLOCK TABLES;")[0]
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
