"""Firebird by its own gbak, as a program: a real server's databases, backed up and restored."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.testing.source import SourceConformance
from tests.servers.firebird import PASSWORD, USER, FirebirdServer, firebird

pytest.importorskip("firebird.driver")
LOGIN = {"ISC_USER": USER, "ISC_PASSWORD": PASSWORD}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FirebirdServer]:
    with firebird(tmp_path_factory.mktemp("firebird")) as running:
        yield running


def source(name: str) -> pb.Command:
    return pb.Command(
        ["gbak", "-b", "-g", name, "stdout"], name="pmr", restore=["gbak", "-c", "stdin", name], env=LOGIN
    )


class TestFirebird(SourceConformance):
    replaces_whole = False  # gbak -c refuses a database that is there

    @pytest.fixture(autouse=True)
    def place(self, server: FirebirdServer) -> Iterator[None]:
        self.server = server
        server.create("pmr")
        with closing(server.connect("pmr")) as connection:
            connection.execute_immediate("CREATE TABLE item (number int NOT NULL PRIMARY KEY, filler varchar(10000))")
            connection.execute_immediate("CREATE TABLE balance (amount bigint NOT NULL)")
            connection.commit()
            connection.execute_immediate("INSERT INTO balance VALUES (0)")
            connection.commit()
        self.connection = None
        yield
        if self.connection is not None:
            self.connection.close()
        for path in server.folder.glob("pmr*.fdb"):
            path.unlink()

    def source(self) -> pb.Source:
        return source(self.server.name("pmr"))

    def target(self) -> pb.Source:
        return source(self.server.name("pmr_restored"))

    def write(self, number: int) -> None:
        if self.connection is None:
            self.connection = self.server.connect("pmr")
        with closing(self.connection.cursor()) as cursor:
            cursor.execute("INSERT INTO item VALUES (?, ?)", (number, os.urandom(4000).hex()))
            cursor.execute("UPDATE balance SET amount = amount + ?", (number,))
        self.connection.commit()

    def read(self, source: pb.Source) -> list[int]:
        database = Path(source._restore[-1]).stem  # type: ignore[attr-defined]
        with closing(self.server.connect(database)) as connection, closing(connection.cursor()) as cursor:
            numbers = [n for (n,) in cursor.execute("SELECT number FROM item ORDER BY 1").fetchall()]
            ((balance,),) = cursor.execute("SELECT amount FROM balance").fetchall()
        assert balance == sum(numbers)
        return numbers

    def test_it_is_of_the_moment_when_its_view_was_taken(self, repo: pb.Repository) -> None:
        pytest.skip("a program reads when it does")

    def test_what_is_there_is_not_replaced_by_gbak(self, repo: pb.Repository) -> None:
        numbers = self.filled()
        repo.backup([self.source()])
        self.write(self.writes)
        with pytest.raises(pb.Incomplete):
            repo.restore(into={"pmr": self.source()}, overwrite=True)
        assert self.read(self.source()) == [*numbers, self.writes]

    def test_gbak_knows_a_cut_backup(self, repo: pb.Repository) -> None:
        """Its input ends early where we are killed: it must not call that a database."""
        self.filled()
        command = source(self.server.name("pmr"))._dump
        whole = subprocess.run(command, check=True, capture_output=True, env=os.environ | LOGIN).stdout
        for share in (0.1, 0.5, 0.999):
            cut = subprocess.run(
                ["gbak", "-c", "stdin", self.server.name("pmr_restored")],
                input=whole[: int(len(whole) * share)],
                env=os.environ | LOGIN,
                capture_output=True,
                check=False,
            )
            assert cut.returncode != 0
            (self.server.folder / "pmr_restored.fdb").unlink(missing_ok=True)
