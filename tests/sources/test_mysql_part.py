"""Some tables of a MariaDB database; and databases whose triggers say whose they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pharmabackup as pb
from pharmabackup.sources.mysql_rows import only_of
from tests.servers.mariadb import PASSWORD, MariaServer, mariadb

pytest.importorskip("pymysql")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaServer]:
    with mariadb(tmp_path_factory.mktemp("mariadb"), "--event-scheduler=ON") as made:
        do(
            made,
            "CREATE DATABASE pmr",
            "CREATE TABLE pmr.patient (id int PRIMARY KEY, name varchar(60))",
            "CREATE TABLE pmr.`claim``s` (id int PRIMARY KEY, patient int NOT NULL REFERENCES pmr.patient (id))",
            "CREATE TABLE pmr.note (id int PRIMARY KEY, text longtext)",
            "INSERT INTO pmr.patient VALUES (1, 'A'), (2, 'B')",
            "INSERT INTO pmr.`claim``s` VALUES (10, 1), (11, 2), (12, 2)",
            "INSERT INTO pmr.note VALUES (1, 'a line\nINSERT INTO `patient` VALUES (3)'), (2, repeat('x', 3000000))",
            "CREATE VIEW pmr.open_claims AS SELECT * FROM pmr.`claim``s`",
            "USE pmr",
            "CREATE TRIGGER t AFTER INSERT ON patient FOR EACH ROW INSERT INTO note VALUES (99, 'triggered')",
            "CREATE EVENT nightly ON SCHEDULE EVERY 1 SECOND DISABLE DO DELETE FROM note",
        )
        yield made


@pytest.fixture(autouse=True)
def backed_up(repo: pb.Repository, server: MariaServer) -> None:
    repo.backup([source(server, count=["patient", "note"])])


@pytest.fixture(autouse=True)
def fresh(server: MariaServer) -> Iterator[None]:
    yield
    for name in server.databases():
        if name != "pmr":
            do(server, f"DROP DATABASE `{name}`")


def do(server: MariaServer, *statements: str) -> list[tuple]:
    with server.connect() as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return list(cursor.fetchall())


def source(server: MariaServer, database: str = "pmr", **more: object) -> pb.MySQL:
    return pb.MySQL(server.url(database), **{"name": "pmr", "password": PASSWORD, **more})


def messages(error: pb.Error) -> str:
    return " ".join(finding.message for finding in error.findings)


@pytest.mark.parametrize(
    ("only", "rows"),
    [(["patient"], (2, 0, 0)), (["claim`s"], (0, 3, 0)), (["note", "patient"], (2, 0, 2)), (["note"], (0, 0, 2))],
)
def test_only_those_tables_have_rows(server, repo, only, rows):
    report = repo.restore(into={"pmr": source(server, "part", only=only)})
    counts = [do(server, f"SELECT count(*) FROM part.{table}") for table in ("patient", "`claim``s`", "note")]
    assert tuple(count for [(count,)] in counts) == rows
    assert report.datasets["pmr"].facts["rows"] == {
        table: count for table, count in (("patient", 2), ("note", 2)) if table in only
    }
    if "note" in only:
        assert do(server, "SELECT id, length(text) FROM part.note ORDER BY id")[1] == (2, 3_000_000)
    views = "SELECT table_name FROM information_schema.views WHERE table_schema = 'part'"
    assert do(server, views) == [("open_claims",)]
    assert do(server, "SELECT event_name FROM information_schema.events WHERE event_schema = 'part'") == []


def test_a_part_takes_no_other_database_s_place(server, repo):
    for overwrite in (False, True):
        with pytest.raises(pb.Conflict, match="was not touched") as caught:
            repo.restore(into={"pmr": source(server, only=["patient"])}, overwrite=overwrite)
        assert "overwrite" not in caught.value.remedy
    assert do(server, "SELECT count(*) FROM pmr.`claim``s`") == [(3,)]


def test_a_table_that_is_not_in_it_is_told_and_leaves_nothing(server, repo):
    with pytest.raises(pb.Incomplete) as caught:
        repo.restore(into={"pmr": source(server, "part", only=["patient", "none"])})
    assert "There is no table none in the backup of pmr" in messages(caught.value)
    assert server.databases() == ["pmr"]


def test_a_part_is_for_restores_alone(server, repo):
    with pytest.raises(pb.InvalidInput, match="backed up whole"):
        repo.backup([source(server, only=["patient"])])
    with pytest.raises(pb.InvalidInput, match="not one text"):
        source(server, only="patient")


@pytest.mark.parametrize(
    "made",
    [
        "CREATE TRIGGER odd.g AFTER INSERT ON odd.t FOR EACH ROW SET @x = 'ON odd.t'",
        "CREATE TRIGGER IF NOT EXISTS `odd` . `g` before\n update\ton odd.`t` FOR EACH ROW SET @x = 1",
        "CREATE TRIGGER g AFTER DELETE ON odd.t FOR EACH ROW SET @x = 1",
        "CREATE TRIGGER g AFTER DELETE ON t FOR EACH ROW BEGIN /* why; */ SET @x = 1; -- so\n SET @y = 2; END",
        "CREATE OR REPLACE TRIGGER odd.g AFTER DELETE ON t FOR EACH ROW SET @x = 1",
        'CREATE TRIGGER "odd"."g" AFTER DELETE ON "odd"."t" FOR EACH ROW SET @x = 1',
        "CREATE TRIGGER /* of odd */ odd.g AFTER DELETE ON /* its */ odd.t FOR EACH ROW SET @x = 1",
    ],
)
def test_a_trigger_that_was_made_with_its_database_s_name_comes_back(server, repo, made):
    quotes = "SET SESSION sql_mode = 'ANSI_QUOTES'" if '"' in made else "DO 0"
    do(server, "CREATE DATABASE odd", "USE odd", "CREATE TABLE t (a int PRIMARY KEY)", quotes, made)
    repo.backup([source(server, "odd", name="odd")])
    repo.restore(only=["odd"], into={"odd": source(server, "even", name="odd")})
    repo.restore(only=["odd"], into={"odd": source(server, "odd", name="odd")}, overwrite=True)
    query = "SELECT event_object_table, action_statement FROM information_schema.triggers WHERE trigger_schema = '{}'"
    assert do(server, query.format("even")) == do(server, query.format("odd"))
    assert [table for table, _ in do(server, query.format("even"))] == ["t"]


def test_comments_in_programs_come_back(server, repo):
    do(server, "CREATE DATABASE odd", "USE odd", "CREATE TABLE t (a int)")
    do(server, "CREATE PROCEDURE odd.p() BEGIN /* why; */ SELECT 1; -- so\n SELECT 2; END")
    do(server, "CREATE FUNCTION odd.f() RETURNS int DETERMINISTIC RETURN /* it is */ 1")
    do(server, "CREATE EVENT odd.e ON SCHEDULE EVERY 1 DAY DISABLE DO BEGIN /* nightly */ DELETE FROM t; END")
    repo.backup([source(server, "odd", name="odd")])
    repo.restore(only=["odd"], into={"odd": source(server, "even", name="odd")})
    routines = "SELECT routine_name, routine_definition FROM information_schema.routines WHERE routine_schema = '{}'"
    events = "SELECT event_name, event_definition FROM information_schema.events WHERE event_schema = '{}'"
    for query in (routines, events):
        found = do(server, query.format("even"))
        assert found == do(server, query.format("odd")) and all("/*" in text for _, text in found) and found


def test_a_name_that_is_not_ascii_is_a_name(server, repo):
    do(server, "CREATE DATABASE größe", "CREATE TABLE größe.t (a int PRIMARY KEY)")
    do(server, "CREATE TRIGGER größe.g AFTER INSERT ON größe.t FOR EACH ROW SET @x = 1")
    repo.backup([source(server, quote("größe"), name="odd")])
    repo.restore(only=["odd"], into={"odd": source(server, "even", name="odd")})


def test_a_trigger_that_is_written_in_another_way_is_told(server, repo):
    do(server, "CREATE DATABASE odd", "CREATE TABLE odd.t (a int PRIMARY KEY)")
    do(server, "CREATE TRIGGER /* over\ntwo lines */ odd.g AFTER INSERT ON odd.t FOR EACH ROW SET @x = 1")
    report = repo.backup([source(server, "odd", name="odd")])
    assert "trigger-unknown" in [finding.code for finding in report.findings]
    again = repo.backup([source(server)])
    assert "trigger-unknown" not in [finding.code for finding in again.findings]


# ---------------------------------------------------------------- the rows in a dump

HEADS = [b"-- a comment", b"CREATE TABLE `a` (", b"INSERT INTO `a` VALUES (1);", b"INSERT INTO `ab` VALUES (1);",
         b"INSERT INTO `b` VALUES ('x');", b"INSERT INTO `a` (`id`) VALUES (2);", b""]  # fmt: skip


LINES = st.lists(st.tuples(st.sampled_from(HEADS), st.integers(0, 3000)), max_size=12)


@given(LINES, st.integers(1, 4000), st.booleans())
def test_of_a_dump_however_it_is_cut_only_such_rows_are_left(lines, size, ends):
    whole = [head + b"y" * more for head, more in lines]
    dump = b"\n".join(whole) + b"\n" * (ends and bool(whole))
    pieces = [dump[at : at + size] for at in range(0, len(dump), size)]
    kept = [line for line in whole if not re.match(rb"INSERT INTO `(ab|b)` ", line)]
    found = b"".join(only_of(pieces, ["a"]))
    if ends or not whole:
        assert found == b"".join(line + b"\n" for line in kept)
    else:  # a dump that breaks off: what its last line begins is passed on, or it is another's
        assert found.startswith(b"".join(line + b"\n" for line in whole[:-1] if line in kept))
