"""A small pharmacy in a repository, and two ways to call the command line on it."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb

SECRET = "a passphrase of the tests"
TIMEOUT_S = 120


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        return self.json["error"]


@dataclass
class Place:
    """What a test works with: folders, and the environment that commands see."""

    root: Path
    shop: Path
    repository: Path
    environment: dict[str, str]

    def sources(self) -> list[str]:
        return ["--sqlite", f"pmr={self.shop / 'pmr.db'}", "--files", f"documents={self.shop / 'documents'}"]


def fill(shop: Path) -> None:
    documents = shop / "documents"
    (documents / "sops").mkdir(parents=True)
    (documents / "sops" / "cold-chain.pdf").write_bytes(b"%PDF " + bytes(range(256)) * 400)
    (documents / "letter.txt").write_text("Dear all,\nkeep it cold.\n")
    (documents / "empty").touch()
    if sys.platform == "linux":
        (documents / "steer\x1b[2Jme\x07.txt").write_text("escape")
        Path(os.fsdecode(os.fsencode(documents) + b"/caf\xe9.txt")).write_text("latin")
    with closing(sqlite3.connect(shop / "pmr.db")) as database:
        database.execute("CREATE TABLE patient (id INTEGER PRIMARY KEY, name TEXT, photo BLOB, height REAL)")
        rows = [(1, 'Ann, "the" É', b"\x00\xff", 1.5), (2, None, None, None)]
        database.executemany("INSERT INTO patient VALUES (?, ?, ?, ?)", rows)
        database.execute("CREATE TABLE vacant (id)")
        database.commit()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cheap_kdf: None) -> Place:
    """An empty repository, and a pharmacy that is not backed up yet."""
    for name in list(os.environ):
        if name.startswith("PHARMABACKUP_"):
            monkeypatch.delenv(name)
    repository = tmp_path / "repository"
    pb.Repository.create(repository, pb.Passphrase(SECRET)).close()
    fill(tmp_path / "shop")
    environment = {
        "PHARMABACKUP_REPOSITORY": str(repository),
        "PHARMABACKUP_PASSPHRASE": SECRET,
        "PHARMABACKUP_STATE": str(tmp_path / "state"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Place(tmp_path, tmp_path / "shop", repository, environment)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """The command line in this process: fast."""
    from pharmabackup.cli.app import run

    def do(*arguments: object) -> Answer:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return Answer(code, shown.out, shown.err)

    return do


@pytest.fixture
def backed_up(place: Place, call: Callable[..., Answer]) -> Place:
    """The pharmacy in the repository."""
    answer = call("backup", *place.sources(), "--tier", "pmr=1", "--reason", "before 9.2")
    assert answer.code == 0, answer.err
    return place


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "pharmabackup", *map(str, arguments)]


@pytest.fixture
def spawn() -> Callable[..., Answer]:
    """The command line as a program of its own."""

    def do(*arguments: object, stdin: str | None = None, **environment: str) -> Answer:
        done = subprocess.run(
            command(*arguments),
            input=stdin.encode() if stdin is not None else None,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=TIMEOUT_S,
            env={**os.environ, **environment},
        )
        return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())

    return do


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[bytes]]:
    """The command line as a program that goes on while the test does something to it."""

    def do(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **{"stdin": subprocess.DEVNULL, **options},
        )

    return do
