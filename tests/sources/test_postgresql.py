"""PostgreSQL: a real server's databases, backed up and restored."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.sources.postgresql_server import failed
from pharmabackup.testing.source import SourceConformance, children
from tests.servers.postgresql import PASSWORD, PostgresServer, postgres

psycopg = pytest.importorskip("psycopg")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with postgres(tmp_path_factory.mktemp("postgresql")) as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(server: PostgresServer) -> Iterator[None]:
    with server.connect() as connection:
        connection.execute("CREATE DATABASE pmr")
    yield
    with server.connect() as connection:
        for name in server.databases():
            if name != "postgres":
                connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        roles = "SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' AND rolname <> 'pharmacy'"
        for (role,) in connection.execute(roles).fetchall():
            connection.execute(f'DROP ROLE "{role}"')


@pytest.fixture(autouse=True)
def no_strays(server: PostgresServer) -> Iterator[None]:
    """No test leaves a program running."""
    before = children()
    yield
    assert [name for process, name in children().items() if process not in before] == []


@pytest.fixture
def repo(tmp_path: Path, cheap_kdf: None) -> Iterator[pb.Repository]:
    with pb.Repository.create(tmp_path / "repository", pb.Passphrase("a passphrase of tests")) as made:
        yield made


def source(server: PostgresServer, database: str = "pmr", **more: object) -> pb.PostgreSQL:
    more = {"name": "pmr", "password": PASSWORD, "tools": server.bin} | more
    return pb.PostgreSQL(server.url(database), **more)  # type: ignore[arg-type]


def execute(server: PostgresServer, *statements: str, database: str = "pmr") -> list[tuple]:
    with server.connect(database) as connection:
        for statement in statements:
            cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


class TestPostgreSQL(SourceConformance):
    stays_connected = True

    @pytest.fixture(autouse=True)
    def place(self, server: PostgresServer, fresh: None) -> Iterator[None]:
        self.server = server
        execute(
            server,
            "CREATE TABLE item (number int PRIMARY KEY, filler text NOT NULL)",
            "CREATE TABLE ledger (number int REFERENCES item, amount int NOT NULL)",
            "CREATE TABLE balance (amount bigint NOT NULL)",
            "INSERT INTO balance VALUES (0)",
        )
        self.local = threading.local()
        self.open: list = []
        yield
        for connection in self.open:
            connection.close()

    def source(self) -> pb.Source:
        return source(self.server, count=["balance"])

    def target(self) -> pb.Source:
        return source(self.server, "pmr_restored")

    def write(self, number: int) -> None:
        if not hasattr(self.local, "connection"):
            self.local.connection = self.server.connect("pmr")
            self.open.append(self.local.connection)
        with self.local.connection.transaction():
            self.local.connection.execute("INSERT INTO item VALUES (%s, %s)", (number, os.urandom(5000).hex()))
            self.local.connection.execute("UPDATE balance SET amount = amount + %s", (number,))
            self.local.connection.execute("INSERT INTO ledger VALUES (%s, %s)", (number, number))
        if not self.stays_connected:  # a database that somebody has open cannot be renamed
            self.local.connection.close()
            del self.local.connection

    def read(self, source: pb.Source) -> list[int]:
        database = source._server.database  # type: ignore[attr-defined]
        with self.server.connect(database) as connection:
            numbers = [row[0] for row in connection.execute("SELECT number FROM item ORDER BY 1")]
            (balance,), *more = connection.execute("SELECT amount FROM balance").fetchall()
            ledger = [row[0] for row in connection.execute("SELECT amount FROM ledger ORDER BY 1")]
        assert not more
        assert ledger == numbers
        assert balance == sum(numbers)
        return numbers

    def test_what_is_there_is_not_replaced(self, repo: pb.Repository) -> None:
        """Nobody is connected, or it could not be renamed."""
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


def test_all_kinds_of_things_come_back(server: PostgresServer, repo: pb.Repository) -> None:
    """As pg_dump itself sees both, but for names and times."""
    execute(
        server,
        "CREATE SCHEMA register",
        "CREATE TYPE register.class AS ENUM ('CD2', 'CD3')",
        "CREATE SEQUENCE register.page START 17",
        "CREATE TABLE register.entry (id bigint PRIMARY KEY DEFAULT nextval('register.page'), class register.class,"
        " note text CHECK (length(note) < 1000), at timestamptz DEFAULT '2026-11-28 09:00+00', raw bytea)",
        "CREATE INDEX ON register.entry (class) WHERE class = 'CD2'",
        "CREATE FUNCTION register.refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'a register is never changed'; END $$",
        "CREATE TRIGGER fixed BEFORE UPDATE OR DELETE ON register.entry EXECUTE FUNCTION register.refuse()",
        "CREATE VIEW register.recent AS SELECT * FROM register.entry WHERE at > '2026-01-01'",
        "INSERT INTO register.entry (class, note, raw) SELECT 'CD2', 'naïve €' || n, decode(md5(n::text), 'hex')"
        " FROM generate_series(1, 5000) n",
        "SELECT lo_from_bytea(4711, 'a large object'::bytea)",
        "CREATE MATERIALIZED VIEW register.counted AS SELECT class, count(*) FROM register.entry GROUP BY 1",
    )
    repo.backup([source(server, count=["register.entry"])])
    report = repo.restore(into={"pmr": source(server, "copy")})
    assert report.datasets["pmr"].facts["rows"] == {"register.entry": 5000}
    assert _plain_dump(server, "copy") == _plain_dump(server, "pmr")


def _plain_dump(server: PostgresServer, database: str) -> bytes:
    done = subprocess.run(
        [server.bin / "pg_dump", "--restrict-key=x", server.url(database)],
        env={**os.environ, "PGPASSWORD": PASSWORD}, capture_output=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_facts_say_what_it_was(server: PostgresServer, repo: pb.Repository) -> None:
    execute(server, "CREATE TABLE t AS SELECT generate_series(1, 123) n")
    repo.backup([source(server, count=["t", "public.t"])])
    facts = repo.snapshot("pmr").facts
    assert facts["rows"] == {"public.t": 123}
    assert facts["major"] == int(server.bin.parent.name)
    assert facts["encoding"] == "UTF8"
    assert int(str(facts["size"])) > 1_000_000


@pytest.mark.parametrize("name", ["with space", 'quo"te', "it's", "a=b", "back\\slash", "naïve"])
def test_names_are_no_trouble(server: PostgresServer, repo: pb.Repository, name: str) -> None:
    from urllib.parse import quote

    from psycopg import sql

    with server.connect() as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    with server.connect(quote(name)) as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS n")
    repo.backup([source(server, quote(name))])
    repo.restore(into={"pmr": source(server, quote(name + " again"))})
    with server.connect(quote(name + " again")) as connection:
        assert connection.execute("SELECT n FROM t").fetchall() == [(1,)]
    with server.connect() as connection:
        for made in (name, name + " again"):
            connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(made)))


def test_its_sorting_comes_back(server: PostgresServer, repo: pb.Repository) -> None:
    execute(
        server,
        "CREATE DATABASE sorted TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C' ENCODING 'LATIN1'",
        database="postgres",
    )
    repo.backup([source(server, "sorted")])
    repo.restore(into={"pmr": source(server, "copy")})
    query = "SELECT pg_encoding_to_char(encoding), datcollate, datctype FROM pg_database WHERE datname = 'copy'"
    assert execute(server, query) == [("LATIN1", "C", "C")]


def test_a_small_change_adds_little(server: PostgresServer, repo: pb.Repository) -> None:
    execute(
        server,
        "CREATE TABLE t AS SELECT n, md5(n::text) || md5((n * 7)::text) AS filler FROM generate_series(1, 100000) n",
        "CREATE INDEX ON t (n)",
    )
    repo.backup([source(server)])
    execute(server, "UPDATE t SET filler = 'changed' WHERE n % 5000 = 0")
    report = repo.backup([source(server)])
    assert report.datasets["pmr"].added < 40 * 8_000 + 50_000


# ---------------------------------------------------------------- roles


def test_roles_come_with_it_and_those_that_are_there_stay(server: PostgresServer, repo: pb.Repository) -> None:
    execute(
        server,
        "CREATE ROLE dispensers NOLOGIN",
        "CREATE ROLE \"Anne O'Hara\" LOGIN PASSWORD 'first' IN ROLE dispensers",
        "CREATE TABLE t (n int)",
        "ALTER TABLE t OWNER TO dispensers",
        'GRANT SELECT ON t TO "Anne O\'Hara"',
    )
    repo.backup([source(server)])
    execute(server, "REASSIGN OWNED BY dispensers TO pharmacy", 'DROP OWNED BY dispensers, "Anne O\'Hara"')
    execute(server, 'DROP ROLE "Anne O\'Hara"', "ALTER ROLE dispensers CONNECTION LIMIT 3")
    repo.restore(into={"pmr": source(server, "copy")})
    query = (
        "SELECT tableowner, has_table_privilege('Anne O''Hara', 't', 'SELECT') FROM pg_tables WHERE tablename = 't'"
    )
    assert execute(server, query, database="copy") == [("dispensers", True)]
    query = "SELECT rolname, rolconnlimit, rolcanlogin FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1"
    assert execute(server, query)[:2] == [("Anne O'Hara", -1, True), ("dispensers", 3, False)]
    membership = "SELECT pg_has_role('Anne O''Hara', 'dispensers', 'member')"
    assert execute(server, membership) == [(True,)]


def test_without_roles_it_is_one_file(server: PostgresServer, repo: pb.Repository) -> None:
    repo.backup([source(server, roles=False)])
    assert [entry.path for entry in repo.snapshot("pmr").glob()] == ["database.dump", "database.json"]
    repo.restore(into={"pmr": source(server, "copy")})
    assert "copy" in server.databases()


def test_without_roles_all_belongs_to_whoever_restores(server: PostgresServer, repo: pb.Repository) -> None:
    execute(server, "CREATE ROLE till", "CREATE TABLE t (n int)", "ALTER TABLE t OWNER TO till")
    repo.backup([source(server)])
    execute(server, "ALTER TABLE t OWNER TO pharmacy", "DROP OWNED BY till", "DROP ROLE till")
    repo.restore(into={"pmr": source(server, "copy", roles=False)})
    query = "SELECT tableowner FROM pg_tables WHERE tablename = 't'"
    assert execute(server, query, database="copy") == [("pharmacy",)]


def test_who_sees_no_passwords_backs_up_without_them(server: PostgresServer, repo: pb.Repository) -> None:
    execute(server, "CREATE ROLE backup LOGIN PASSWORD 'p'")
    mine = pb.PostgreSQL(server.url("pmr", "backup"), password="p", tools=server.bin)
    repo.backup([mine])
    roles = json.loads(repo.snapshot("pmr").open("roles.json").read())["roles"]
    assert [role["password"] for role in roles if role["name"] == "backup"] == [None]
    repo.backup([source(server)])
    roles = json.loads(repo.snapshot("pmr").open("roles.json").read())["roles"]
    assert [role["password"][:5] for role in roles if role["name"] == "backup"] == ["SCRAM"]


def test_what_a_user_writes_into_his_settings_is_never_run(server: PostgresServer, repo: pb.Repository) -> None:
    evil = "E'x\\nCREATE ROLE evil SUPERUSER LOGIN;\\nGRANT pharmacy TO evil;\\n'"
    execute(server, "CREATE ROLE clerk", f"ALTER ROLE clerk SET application_name TO {evil}")
    execute(server, f"COMMENT ON ROLE clerk IS {evil}", f"COMMENT ON DATABASE pmr IS {evil}")
    repo.backup([source(server)])
    repo.restore(into={"pmr": source(server, "copy")})
    assert execute(server, "SELECT count(*) FROM pg_roles WHERE rolname = 'evil'") == [(0,)]


def test_masters_of_a_server_are_not_made(server: PostgresServer, repo: pb.Repository) -> None:
    execute(
        server, "CREATE ROLE boss SUPERUSER REPLICATION BYPASSRLS LOGIN CONNECTION LIMIT 5 VALID UNTIL '2030-01-01'"
    )
    repo.backup([source(server)])
    execute(server, "DROP ROLE boss")
    repo.restore(into={"pmr": source(server, "copy")})
    query = (
        "SELECT rolsuper, rolreplication, rolbypassrls, rolcanlogin, rolconnlimit, rolvaliduntil::date::text"
        " FROM pg_roles WHERE rolname = 'boss'"
    )
    assert execute(server, query) == [(False, False, False, True, 5, "2030-01-01")]


def test_its_owner_and_settings_and_who_may_connect_come_back(server: PostgresServer, repo: pb.Repository) -> None:
    execute(
        server,
        "CREATE ROLE till LOGIN",
        "ALTER DATABASE pmr OWNER TO till",
        'ALTER DATABASE pmr SET search_path = register, "$user", public',
        "ALTER DATABASE pmr SET my.branch = 'it''s 7'",
        "ALTER DATABASE pmr CONNECTION LIMIT 40",
        "REVOKE ALL ON DATABASE pmr FROM PUBLIC",
        "GRANT CONNECT ON DATABASE pmr TO pg_monitor WITH GRANT OPTION",
        "COMMENT ON DATABASE pmr IS 'the pharmacy''s'",
    )
    repo.backup([source(server)])
    repo.restore(into={"pmr": source(server, "copy")})

    def like(name: str) -> list[tuple]:
        return execute(
            server,
            "SELECT pg_get_userbyid(datdba), datconnlimit, shobj_description(d.oid, 'pg_database'), setconfig,"
            " (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(datacl) a)"
            f" FROM pg_database d JOIN pg_db_role_setting ON setdatabase = d.oid WHERE datname = '{name}'",
            database="postgres",
        )

    assert like("copy") == like("pmr")
    assert like("copy")[0][0] == "till"


def test_a_setting_that_cannot_be_is_told_and_all_else_comes(server: PostgresServer, repo: pb.Repository) -> None:
    execute(
        server,
        "CREATE TABLE t AS SELECT generate_series(1, 1500000) AS n",  # to count them takes longer than it may
        "CREATE TEXT SEARCH CONFIGURATION drugs (COPY = simple)",
        "ALTER DATABASE pmr SET default_text_search_config = 'public.drugs'",
        "ALTER DATABASE pmr SET role = pharmacy",
        "ALTER DATABASE pmr SET statement_timeout = '20ms'",
    )
    repo.backup([source(server, count=["t"])])
    snapshot = repo.snapshot("pmr")
    report = repo.restore(into={"pmr": source(server, "copy")}, snapshots=[snapshot])
    assert report.datasets["pmr"].complete
    query = "SELECT setconfig FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase WHERE datname = '{}'"
    with server.connect() as connection:
        connection.execute("RESET role")
        same = [connection.execute(query.format(name)).fetchall() for name in ("pmr", "copy")]
    assert same[0] == same[1] != []


def test_a_membership_makes_nobody_a_master(server: PostgresServer, repo: pb.Repository) -> None:
    execute(server, "CREATE ROLE clerk IN ROLE pharmacy, pg_read_all_data", "CREATE ROLE odd")
    execute(server, "GRANT pg_execute_server_program TO odd")
    repo.backup([source(server)])
    execute(server, "DROP ROLE clerk", "DROP ROLE odd")
    repo.restore(into={"pmr": source(server, "copy")})
    query = (
        "SELECT m.rolname, r.rolname FROM pg_auth_members a JOIN pg_roles r ON r.oid = roleid"
        " JOIN pg_roles m ON m.oid = member WHERE m.rolname IN ('clerk', 'odd')"
    )
    assert execute(server, query) == [("clerk", "pg_read_all_data")]


def test_only_tables_can_be_counted(server: PostgresServer, repo: pb.Repository) -> None:
    execute(server, "CREATE MATERIALIZED VIEW counted AS SELECT 1 AS n")
    with pytest.raises(pb.Incomplete) as incomplete:
        repo.backup([source(server, count=["counted"])])
    assert "counted cannot be counted" in incomplete.value.findings[0].message


def test_a_dump_without_roles_belongs_to_whoever_restores(server: PostgresServer, repo: pb.Repository) -> None:
    execute(server, "CREATE ROLE till", "CREATE TABLE t (n int)", "ALTER TABLE t OWNER TO till")
    repo.backup([source(server, roles=False)])
    execute(server, "ALTER TABLE t OWNER TO pharmacy", "DROP ROLE till")
    repo.restore(into={"pmr": source(server, "copy")})


def test_a_table_that_goes_before_it_is_locked(
    server: PostgresServer, repo: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pharmabackup.sources import postgresql as module

    execute(server, "CREATE TABLE stays AS SELECT 1 n")
    real = module.USERS_TABLES
    monkeypatch.setattr(module, "USERS_TABLES", f"({real}) UNION SELECT 'public', 'gone' WHERE random() < 0.5")
    monkeypatch.setattr(module, "LOOKS", 50)
    for _ in range(5):
        repo.backup([source(server)])
    assert repo.snapshot("pmr").complete


def test_who_owns_a_database_alone_backs_up_and_restores(server: PostgresServer, repo: pb.Repository) -> None:
    execute(server, "CREATE ROLE till LOGIN CREATEDB PASSWORD 'p'", "ALTER DATABASE pmr OWNER TO till")
    mine = pb.PostgreSQL(server.url("pmr", "till"), password="p", tools=server.bin, roles=False)
    with psycopg.connect(server.url("pmr", "till"), password="p", autocommit=True) as connection:
        connection.execute("CREATE TABLE t AS SELECT 17 AS n")
    repo.backup([mine])
    copy = pb.PostgreSQL(server.url("copy", "till"), password="p", tools=server.bin, roles=False)
    repo.restore(into={"pmr": copy})
    assert execute(server, "SELECT n FROM t", database="copy") == [(17,)]


def test_who_may_not_into_the_servers_own_database_restores_beside_another(
    server: PostgresServer, repo: pb.Repository
) -> None:
    execute(server, "CREATE ROLE till LOGIN CREATEDB PASSWORD 'p'", "ALTER DATABASE pmr OWNER TO till")
    execute(server, "REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")
    try:
        repo.backup([pb.PostgreSQL(server.url("pmr", "till"), password="p", tools=server.bin, roles=False)])
        copy = pb.PostgreSQL(server.url("copy", "till"), password="p", tools=server.bin, roles=False)
        repo.restore(into={"pmr": copy})
        assert copy._server._beside == "template1"
    finally:
        execute(server, "GRANT CONNECT ON DATABASE postgres TO PUBLIC")
    assert "copy" in server.databases()


def test_one_without_an_encoding(server: PostgresServer, repo: pb.Repository) -> None:
    execute(
        server,
        "CREATE DATABASE old TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'",
        database="postgres",
    )
    execute(server, "CREATE TABLE t AS SELECT 17 AS n", database="old")
    repo.backup([source(server, "old", count=["t"])])
    repo.restore(into={"pmr": source(server, "copy")})
    assert execute(server, "SELECT n FROM t", database="copy") == [(17,)]


def test_a_path_of_its_own_does_not_matter_to_what_is_counted(server: PostgresServer, repo: pb.Repository) -> None:
    execute(
        server,
        "CREATE SCHEMA register",
        "CREATE TABLE register.entry AS SELECT 1 AS n",
        "ALTER DATABASE pmr SET search_path = register",
    )
    repo.backup([source(server, count=["entry"])])
    report = repo.restore(into={"pmr": source(server, "copy", roles=False)})
    assert report.datasets["pmr"].facts["rows"] == {"register.entry": 1}


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"password": "wrong"}, "login"),
        ({"count": ["no_such_table"]}, "table-missing"),
        ({"tools": "/no/such/folder"}, "tool-missing"),
    ],
)
def test_what_is_wrong_is_said(server: PostgresServer, repo: pb.Repository, more: dict, kind: str) -> None:
    with pytest.raises(pb.SourceFailed) as error, source(server, **more).view(scratch=Path()) as view:
        from tests.sources.recording import Recorder

        view.dump(Recorder())
    assert error.value.kind == kind
    assert PASSWORD not in str(error.value)


def test_a_database_or_server_that_is_not_there(server: PostgresServer) -> None:
    with pytest.raises(pb.SourceFailed) as error, source(server, "nothing").view(scratch=Path()):
        pass
    assert error.value.kind == "missing"
    with pytest.raises(pb.SourceFailed) as error, source(replace(server, port=1)).view(scratch=Path()):
        pass
    assert error.value.kind == "unreachable"


def test_who_may_not_read_all_backs_up_nothing(server: PostgresServer, repo: pb.Repository) -> None:
    execute(server, "CREATE TABLE t (n int)", "CREATE ROLE poor LOGIN PASSWORD 'p'")
    with pytest.raises(pb.Incomplete) as incomplete:
        repo.backup([pb.PostgreSQL(server.url("pmr", "poor"), password="p", tools=server.bin)])
    assert "may not be read" in incomplete.value.findings[0].message
    assert repo.snapshots() == []


def test_who_may_read_all_backs_up_all(server: PostgresServer, repo: pb.Repository) -> None:
    execute(
        server, "CREATE TABLE t AS SELECT 17 AS n", "CREATE ROLE backup LOGIN PASSWORD 'p' IN ROLE pg_read_all_data"
    )
    repo.backup([pb.PostgreSQL(server.url("pmr", "backup"), password="p", tools=server.bin, count=["t"])])
    assert repo.snapshot("pmr").facts["rows"] == {"public.t": 1}


def test_a_table_that_is_being_changed_is_waited_for_and_then_told(
    server: PostgresServer, repo: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pharmabackup.sources.postgresql.LOCK_WAIT_S", 1)
    execute(server, "CREATE TABLE t (n int)")
    with server.connect("pmr") as other, other.transaction():
        other.execute("ALTER TABLE t ADD COLUMN m int")
        with pytest.raises(pb.Incomplete) as incomplete:
            repo.backup([source(server)])
    assert "is locked by another program (55P03)" in incomplete.value.findings[0].message


def test_nobody_empties_a_table_before_it_is_dumped(server: PostgresServer, repo: pb.Repository) -> None:
    """Else it would be empty in the snapshot, too, and in the backup."""
    execute(server, "CREATE TABLE t AS SELECT generate_series(1, 50) n", 'CREATE TABLE "T t" AS SELECT 1 n')

    @contextmanager
    def freeze() -> Iterator[None]:
        yield
        with server.connect("pmr") as other:
            other.execute("SET lock_timeout = '300ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                other.execute("TRUNCATE t")
            other.execute("INSERT INTO t VALUES (51)")

    repo.backup([source(server, count=["t"])], freeze=freeze())
    assert repo.snapshot("pmr").facts["rows"] == {"public.t": 50}
    execute(server, "TRUNCATE t")


def test_a_table_that_comes_while_others_are_locked_is_locked_too(
    server: PostgresServer, repo: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pharmabackup.sources import postgresql as module

    execute(server, "CREATE TABLE first AS SELECT 1 n")
    real, made = module.one, []

    def one(connection, query, *values):
        if "pg_export_snapshot" in str(query) and not made:
            made.append(execute(server, "CREATE TABLE second AS SELECT 2 n"))
        return real(connection, query, *values)

    monkeypatch.setattr(module, "one", one)
    with source(server).view(scratch=Path()):
        held = (
            "SELECT relname FROM pg_locks l JOIN pg_class c ON c.oid = relation WHERE relname IN ('first', 'second')"
        )
        assert sorted(execute(server, held)) == [("first",), ("second",)]
    assert made


def test_a_server_that_dies_meanwhile_leaves_nothing(
    tmp_path_factory: pytest.TempPathFactory, repo: pb.Repository
) -> None:
    from tests.servers import process

    with postgres(tmp_path_factory.mktemp("dying")) as server:
        execute(server, "CREATE DATABASE pmr", database="postgres")
        execute(server, "CREATE TABLE t AS SELECT repeat(md5(n::text), 100) AS f FROM generate_series(1, 20000) n")

        killed: list[int] = []

        def progress(event: pb.Event) -> None:
            if event.bytes_done > 5_000_000 and not killed:
                killed.append(server.port)
                process.kill(server.port)

        with pytest.raises(pb.Incomplete) as incomplete:
            repo.backup([source(server)], progress=progress)
    assert incomplete.value.findings[0].code == "dataset-failed"
    assert repo.snapshots() == []


def test_a_restore_that_fails_leaves_nothing(server: PostgresServer, repo: pb.Repository) -> None:
    """Rows are missing: more are said to have been there."""
    execute(server, "CREATE TABLE t AS SELECT generate_series(1, 10) n")
    repo.backup([source(server, count=["t"])])
    snapshot = repo.snapshot("pmr")
    snapshot._committed.snapshot.facts["rows"]["public.t"] = 11
    with pytest.raises(pb.Incomplete, match="pmr") as incomplete:
        repo.restore(into={"pmr": source(server, "copy")}, snapshots=[snapshot])
    assert "public.t has 10 rows in the restored pmr, and had 11" in incomplete.value.findings[0].message
    assert server.databases() == ["pmr", "postgres"]


@pytest.mark.parametrize("roles", [True, False])
def test_a_restore_that_is_stopped_in_the_middle_leaves_nothing(
    server: PostgresServer, repo: pb.Repository, roles: bool
) -> None:
    """Of data that was loaded, with pg_restore still at it."""
    execute(
        server,
        "CREATE TABLE t AS SELECT n, repeat(md5(n::text), 20) AS filler FROM generate_series(1, 60000) n",
        "CREATE INDEX ON t (filler)",
    )
    repo.backup([source(server)])
    cancel, seen = threading.Event(), []

    def progress(event: pb.Event) -> None:
        if event.bytes_done > 20_000_000 and not cancel.is_set():
            seen.extend(server.databases())
            cancel.set()

    with pytest.raises(pb.Cancelled):
        repo.restore(into={"pmr": source(server, "copy", roles=roles)}, progress=progress, cancel=cancel)
    assert any(name.startswith("copy_restoring_") for name in seen)
    assert server.databases() == ["pmr", "postgres"]


def test_one_restore_at_a_time(server: PostgresServer, repo: pb.Repository) -> None:
    execute(server, "CREATE TABLE t (n int)")
    repo.backup([source(server)])

    with server.connect() as other:
        other.execute("SELECT pg_advisory_lock(hashtextextended('pharmabackup restore copy', 0))")
        with pytest.raises(pb.Incomplete) as incomplete:
            repo.restore(into={"pmr": source(server, "copy")})
    assert "Another restore into copy is under way" in incomplete.value.findings[0].message
    repo.restore(into={"pmr": source(server, "copy")})


def test_what_a_killed_restore_left_is_dropped_by_the_next(server: PostgresServer, repo: pb.Repository) -> None:
    execute(server, "CREATE TABLE t (n int)")
    repo.backup([source(server)])
    left, others = "copy_restoring_0123abcd", "copy_restoring_by_hand"
    execute(server, f"CREATE DATABASE {left}", f"CREATE DATABASE {others}", database="postgres")
    execute(server, f"COMMENT ON DATABASE {left} IS 'pharmabackup: being restored as copy'", database="postgres")
    repo.restore(into={"pmr": source(server, "copy")})
    assert server.databases() == ["copy", others, "pmr", "postgres"]


def test_a_database_in_use_is_not_replaced(server: PostgresServer, repo: pb.Repository) -> None:
    execute(server, "CREATE TABLE t (n int)")
    repo.backup([source(server)])
    with (
        server.connect("pmr"),
        pytest.raises(pb.Conflict, match=r"in use and cannot be replaced \(connections: 1\)") as conflict,
    ):
        repo.restore(into={"pmr": source(server)}, overwrite=True)
    assert conflict.value.kind == "in-use"


def test_one_that_comes_into_use_meanwhile_stays_and_the_restored_one_too(
    server: PostgresServer, repo: pb.Repository
) -> None:
    execute(server, "CREATE TABLE t AS SELECT 1 AS n")
    repo.backup([source(server)])
    open_now: list = []

    def progress(event: pb.Event) -> None:
        if not open_now and event.kind == "dataset":
            open_now.append(server.connect("pmr"))

    with pytest.raises(pb.Incomplete) as incomplete:
        repo.restore(into={"pmr": source(server)}, overwrite=True, progress=progress)
    open_now[0].close()
    (finding,) = incomplete.value.findings
    beside = re.search(r"restored as (pmr_restoring_\w+), which could not be renamed", finding.message)
    assert beside
    assert execute(server, "SELECT n FROM t", database=beside.group(1)) == [(1,)]
    assert server.databases() == ["pmr", beside.group(1), "postgres"]


def test_an_older_server_is_refused(server: PostgresServer, repo: pb.Repository) -> None:
    repo.backup([source(server)])
    snapshot = repo.snapshot("pmr")
    snapshot._committed.snapshot.facts["major"] = 99
    with pytest.raises(pb.Unsupported, match="is of PostgreSQL 99"):
        repo.restore(into={"pmr": source(server, "copy")}, snapshots=[snapshot])
    snapshot._committed.snapshot.facts["major"] = 9
    snapshot._committed.snapshot.facts["pg_dump"] = 99
    with pytest.raises(pb.SourceFailed, match="pg_restore is older than PostgreSQL 99"):
        repo.restore(into={"pmr": source(server, "copy")}, snapshots=[snapshot])


def test_a_server_that_ends_idle_transactions_is_read_all_the_same(
    server: PostgresServer, repo: pb.Repository
) -> None:
    execute(server, "CREATE TABLE t AS SELECT 1 AS n")
    execute(server, "ALTER DATABASE pmr SET idle_in_transaction_session_timeout = '100ms'")

    class Freeze:
        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            time.sleep(0.5)

    assert repo.backup([source(server)], freeze=Freeze()).datasets["pmr"].complete


# ---------------------------------------------------------------- without a server


@pytest.mark.parametrize(
    "url",
    [
        "", "mysql://host/pmr", "postgresql://host", "postgresql://host/", "postgresql://host:port/pmr",
        "postgresql://host/pmr?options=-csearch_path%3Dx", "postgresql://host/a/b",
        "host=db dbname=pmr password=hunter2", "anne:hunter2@db",
    ],
)  # fmt: skip
def test_an_address_has_to_be_one(url: str) -> None:
    with pytest.raises(pb.InvalidInput, match="no address of a PostgreSQL database") as error:
        pb.PostgreSQL(url)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("url", ["postgresql://user:hunter2@host/pmr", "postgresql://host/pmr?password=hunter2"])
def test_a_password_does_not_belong_into_it(url: str) -> None:
    with pytest.raises(pb.InvalidInput, match="must not hold its password") as error:
        pb.PostgreSQL(url)
    assert "hunter2" not in str(error.value)


def test_what_tools_are_told() -> None:
    made = pb.PostgreSQL(
        "postgresql://anne%40shop@db.local:5433/pmr?sslmode=verify-full&sslrootcert=/ca", password="secret"
    )
    told = made._server.environment()
    assert told.items() >= {
        "PGHOST": "db.local", "PGPORT": "5433", "PGUSER": "anne@shop",
        "PGSSLMODE": "verify-full", "PGSSLROOTCERT": "/ca",
        "PGPASSWORD": "secret", "LC_ALL": "C",
    }.items()  # fmt: skip
    assert made.name == "pmr"
    assert "PGHOST" not in pb.PostgreSQL("pmr")._server.environment()
    assert "secret" not in repr(made)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('FATAL:  database "x" does not exist', "missing"), ('FATAL:  role "x" does not exist', "login"),
        ("FATAL:  sorry, too many clients already", "busy"),
        ("FATAL:  the database system is starting up", "unreachable"),
        ("FATAL:  Passwort-Authentifizierung für Benutzer x fehlgeschlagen", "login"),
        ("Connection refused", "unreachable"),
    ],
)  # fmt: skip
def test_who_is_not_let_in_learns_why(text: str, kind: str) -> None:
    assert failed(None, "pmr", text).kind == kind


@pytest.mark.parametrize(
    ("versions", "major", "chosen"),
    [([14, 15, 16], 15, 15), ([14, 16, 17], 15, 16), ([16], 12, 16), ([12, 14], 15, None), ([], 15, None)],
)
def test_the_program_of_the_servers_own_version_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, versions: list[int], major: int, chosen: int | None
) -> None:
    from pharmabackup.sources import postgresql_tools as tools

    for version in versions:
        (tmp_path / str(version)).mkdir()
        program = tmp_path / str(version) / "pg_dump"
        program.write_text(f"#!/bin/sh\necho 'pg_dump (PostgreSQL) {version}.4 (Debian {version}.4-1)'\n")
        program.chmod(0o755)
    monkeypatch.setattr(tools, "WELL_KNOWN", (str(tmp_path / "*"),))
    monkeypatch.setenv("PATH", "/nowhere:/bin")
    found = tools.Tools(None)
    if chosen is None:
        with pytest.raises(pb.SourceFailed) as error:
            found.program("pg_dump", major, "pmr")
        assert error.value.kind == ("tool-too-old" if versions else "tool-missing")
    else:
        assert found.program("pg_dump", major, "pmr") == (str(tmp_path / str(chosen) / "pg_dump"), chosen)


@pytest.mark.parametrize(
    ("state", "kind"),
    [(None, "unreachable"), ("28P01", "login"), ("53300", "busy"), ("53100", "full"), ("99999", "tool-failed")],
)
def test_states_have_remedies(state: str | None, kind: str) -> None:
    error = failed(state, "pmr")
    assert error.kind == kind
    assert error.remedy.endswith(".")
    assert state is None or state in error.message


def test_from_the_terminal(server: PostgresServer, tmp_path: Path) -> None:
    execute(server, "CREATE TABLE t AS SELECT 17 AS n")
    environment = {
        **os.environ, "PGPASSWORD": PASSWORD, "PHARMABACKUP_PASSPHRASE": "a passphrase of tests",
        "PHARMABACKUP_STATE": str(tmp_path / "state"), "PHARMABACKUP_REPOSITORY": str(tmp_path / "repository"),
    }  # fmt: skip
    for arguments in (
        ["init"],
        ["backup", "--postgresql", f"till={server.url('pmr')}", "--tier", "till=1"],
        ["restore", "--into", f"till={server.url('copy')}"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "pharmabackup", *arguments], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert execute(server, "SELECT n FROM t", database="copy") == [(17,)]


# ---------------------------------------------------------------- a part of it


@pytest.fixture
def parts(server: PostgresServer, repo: pb.Repository) -> pb.Repository:
    """A backup with tables in two schemas, a type, a partitioned table, and a view."""
    execute(
        server,
        "CREATE TYPE class AS ENUM ('CD', 'POM')",
        "CREATE TABLE item (number serial PRIMARY KEY, class class NOT NULL, filler text)",
        "CREATE TABLE ledger (number int REFERENCES item, amount int NOT NULL)",
        "CREATE VIEW cds AS SELECT * FROM item WHERE class = 'CD'",
        "CREATE SCHEMA sales",
        'CREATE TABLE sales."Item" (number int, class public.class)',
        "CREATE TABLE sales.till (number int)",
        "CREATE TABLE entry (day date, note text) PARTITION BY RANGE (day)",
        "CREATE TABLE sales.entry_old PARTITION OF entry FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')",
        "CREATE TABLE entry_new PARTITION OF entry FOR VALUES FROM ('2027-01-01') TO ('2028-01-01')",
        "INSERT INTO item (class, filler) SELECT 'CD', repeat(md5(i::text), 100) FROM generate_series(1, 2000) i",
        "INSERT INTO ledger SELECT number, 1 FROM item",
        "INSERT INTO sales.\"Item\" VALUES (1, 'POM'), (2, 'CD')",
        "INSERT INTO sales.till VALUES (7)",
        "INSERT INTO entry VALUES ('2026-05-01', 'old'), ('2027-05-01', 'new')",
    )
    repo.backup([source(server, count=["item", "ledger"])])
    return repo


def rows(server: PostgresServer, table: str, database: str = "pmr_part") -> int:
    return execute(server, f"SELECT count(*) FROM {table}", database=database)[0][0]


@pytest.mark.parametrize(
    ("only", "full"),
    [
        (["item"], {"item": 2000, "cds": 2000}),
        (["ledger"], {"ledger": 2000}),  # what it refers to need not be there
        (["sales.Item"], {'sales."Item"': 2}),
        (["sales.*"], {'sales."Item"': 2, "sales.till": 1, "entry": 1}),
        (["public.*"], {"item": 2000, "cds": 2000, "ledger": 2000, "entry": 2}),
        (["entry"], {"entry": 2}),  # its rows lie in partitions, of which one is in another schema
        (["item", "sales.till"], {"item": 2000, "cds": 2000, "sales.till": 1}),
    ],
)
def test_some_tables_come_back_with_their_rows_and_no_others(
    server: PostgresServer, parts: pb.Repository, only: list[str], full: dict[str, int]
) -> None:
    report = parts.restore(into={"pmr": source(server, "pmr_part", only=only)})
    everything = ("item", "ledger", "cds", 'sales."Item"', "sales.till", "entry")
    assert {table: rows(server, table) for table in everything} == dict.fromkeys(everything, 0) | full
    counted = {f"public.{name}": 2000 for name in ("item", "ledger") if name in full}
    assert report.datasets["pmr"].facts["rows"] == counted


def test_a_part_takes_no_other_database_s_place(server: PostgresServer, parts: pb.Repository) -> None:
    with pytest.raises(pb.Conflict, match="not touched") as caught:
        parts.restore(into={"pmr": source(server, only=["item"])}, overwrite=True)
    assert "takes no other's place" in caught.value.remedy
    assert rows(server, "ledger", "pmr") == 2000


def test_a_table_that_is_not_in_it_is_told_and_leaves_nothing(server: PostgresServer, parts: pb.Repository) -> None:
    for missing in ("items", "nowhere.*", "sales.item"):
        with pytest.raises(pb.Incomplete) as caught:
            parts.restore(into={"pmr": source(server, "pmr_part", only=["item", missing])})
        assert any("There is no table" in finding.message for finding in caught.value.findings)
        assert server.databases() == ["pmr", "postgres"]


def test_a_part_is_for_restores_alone(server: PostgresServer, repo: pb.Repository) -> None:
    with pytest.raises(pb.InvalidInput, match="backed up whole"):
        repo.backup([source(server, only=["item"])])
    with pytest.raises(pb.InvalidInput, match="a list"):
        source(server, only="item")
    for text in ("", ".x", "*", "x."):
        with pytest.raises(pb.InvalidInput, match="no table and no schema"):
            source(server, only=[text])


@pytest.mark.parametrize("share", [0.2, 0.6, 0.9])
def test_a_part_of_a_dump_that_breaks_off_is_told(
    server: PostgresServer, parts: pb.Repository, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """The program may end before it was given all: that must not hide what is missing."""
    from pharmabackup.verbs import restore_into

    real = restore_into._Content.read

    def cut(content, path):  # type: ignore[no-untyped-def]
        data = b"".join(real(content, path))
        yield data[: int(len(data) * share)] if path == b"database.dump" else data

    monkeypatch.setattr(restore_into._Content, "read", cut)
    with pytest.raises(pb.Incomplete):
        parts.restore(into={"pmr": source(server, "pmr_part", only=["item", "ledger", "sales.*"])})
    assert server.databases() == ["pmr", "postgres"]


def test_a_part_has_no_rights_of_others(server: PostgresServer, parts: pb.Repository) -> None:
    """Rows that a policy hides would be there for whoever may read the table: policies are not."""
    execute(server, "CREATE ROLE clerk", "GRANT SELECT ON item TO clerk", "GRANT CONNECT ON DATABASE pmr TO clerk")
    execute(server, "ALTER TABLE item ENABLE ROW LEVEL SECURITY")
    parts.backup([source(server)])
    parts.restore(into={"pmr": source(server, "pmr_part", only=["item"])})
    [(may,)] = execute(server, "SELECT has_table_privilege('clerk', 'item', 'SELECT')", database="pmr_part")
    assert not may


def test_a_part_never_replaces_what_came_meanwhile(
    server: PostgresServer, parts: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pharmabackup.sources.postgresql_load import Loading

    real = Loading._load

    def meanwhile(loading, *rest):  # type: ignore[no-untyped-def]
        real(loading, *rest)
        execute(server, "CREATE DATABASE pmr_part", database="postgres")

    monkeypatch.setattr(Loading, "_load", meanwhile)
    with pytest.raises(pb.Incomplete):
        parts.restore(into={"pmr": source(server, "pmr_part", only=["item"])}, overwrite=True)
    assert [name for name in server.databases() if "before" in name] == []
