"""Where a passphrase may come from, and that it never shows anywhere."""

from __future__ import annotations

import os
import re
import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.processes import shown_of

Call = Callable[..., Any]
SECRET = "a passphrase of the tests"  # what the fixtures create repositories with
PATIENCE_S = 60
posix = pytest.mark.skipif(os.name != "posix", reason="modes and terminals of POSIX")
CONTROLLED = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "os.execv(sys.executable, [sys.executable, '-m', 'pharmabackup', *sys.argv[1:]])"
)


@pytest.fixture
def bare(place: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """No passphrase in the environment."""
    monkeypatch.delenv("PHARMABACKUP_PASSPHRASE")
    return place


def private(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def test_without_any_and_without_a_terminal(bare: Any, spawn: Call) -> None:
    for arguments in (("snapshots",), ("snapshots", "--credential", "ask"), ("init", "-r", bare.root / "new")):
        answer = spawn(*arguments)
        assert answer.code == 77 and "--credential" in answer.err and len(answer.err.splitlines()) == 1


def test_from_an_environment_variable(bare: Any, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", SECRET)
    assert call("snapshots", "--credential", "env:MINE").code == 0
    monkeypatch.setenv("PHARMABACKUP_CREDENTIAL", "env:MINE")
    monkeypatch.setenv("PHARMABACKUP_PASSPHRASE", "not asked for this one")
    assert call("snapshots").code == 0
    assert call("snapshots", "--credential", "env:NOT_THERE").code == 77


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_from_a_file(bare: Any, call: Call, end: str) -> None:
    path = private(bare.root / "secret", SECRET + end)
    answer = call("snapshots", "--credential", f"file:{path}")
    assert answer.code == 0 and "Warning" not in answer.err


def test_a_file_that_cannot_be(bare: Any, call: Call) -> None:
    for content in ("", "\n", "x" * 70_000):
        assert call("snapshots", "--credential", f"file:{private(bare.root / 'secret', content)}").code == 77
    (bare.root / "secret").write_bytes(b"\xff\xfe\x00")
    assert call("snapshots", "--credential", f"file:{bare.root / 'secret'}").code == 77
    assert call("snapshots", "--credential", f"file:{bare.root}").code == 77
    assert call("snapshots", "--credential", f"file:{bare.root / 'gone'}").code == 77


@posix
def test_a_file_that_others_can_read(bare: Any, call: Call) -> None:
    path = private(bare.root / "secret", SECRET)
    path.chmod(0o644)
    answer = call("snapshots", "--credential", f"file:{path}")
    assert answer.code == 77 and "chmod 600" in answer.err
    path.chmod(0o640)
    answer = call("snapshots", "--credential", f"file:{path}")
    assert answer.code == 0 and "Warning" in answer.err


def test_a_vault_needs_its_library(bare: Any, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    answer = call("snapshots", "--credential", "vault:pharmabackup/owner")
    assert answer.code == 69 and 'pip install "pharmabackup[vault]"' in answer.err


def test_a_passphrase_given_by_mistake_is_not_repeated(bare: Any, call: Call) -> None:
    for wrong in (SECRET, "vault:hunter2", "hunter2:hunter2"):
        answer = call("snapshots", "--credential", wrong)
        assert answer.code == 64 and wrong not in answer.err + answer.out
    answer = call("snapshots", "--storage-option", "secret=hunter2")
    assert answer.code == 64 and "hunter2" not in answer.err
    answer = call("snapshots", "-r", "s3://user:hunter2@host/bucket")
    assert answer.code == 64 and "hunter2" not in answer.err


def test_nothing_shows_it(backed_up: Any, spawn: Call) -> None:
    commands: tuple[tuple[object, ...], ...] = (
        ("-v", "backup", *backed_up.sources()),
        ("-v", "snapshots", "--json"),
        ("-v", "restore", backed_up.root / "restored", "--events"),
        ("-v", "check", "--read-data", "100%"),
    )
    for arguments in commands:
        answer = spawn(*arguments)
        assert answer.code == 0 and SECRET not in answer.out + answer.err
    wrong = spawn("-v", "snapshots", PHARMABACKUP_PASSPHRASE="quite another secret")
    assert wrong.code == 77 and "quite another secret" not in wrong.out + wrong.err
    for path in backed_up.root.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def at_a_terminal(start: Call, arguments: list[object], answers: list[tuple[bytes, str]]) -> tuple[int, str]:
    """Run with a terminal of its own; type each answer when its question is there. Code, what the terminal showed."""
    ours, theirs = os.openpty()
    process = start(
        executable=sys.executable,
        args=[sys.executable, "-c", CONTROLLED, *map(str, arguments)],
        terminal=theirs,
    )
    os.close(theirs)
    shown, asked = b"", 0
    while True:
        if not select.select([ours], [], [], PATIENCE_S)[0]:
            process.kill()
            pytest.fail(f"it asked something else: {shown.decode()}")
        try:
            piece = os.read(ours, 4096)
        except OSError:  # Linux says so when the other end is closed
            break
        if not piece:
            break
        shown += piece
        if asked < len(answers) and shown.count(answers[asked][0]) > sum(
            a[0] == answers[asked][0] for a in answers[:asked]
        ):
            os.write(ours, answers[asked][1].encode() + b"\n")
            asked += 1
    os.close(ours)
    return process.wait(timeout=60), shown.decode()


@pytest.fixture
def terminal() -> Call:
    import subprocess

    def start(*, executable: str, args: list[str], terminal: int) -> Any:
        return subprocess.Popen(
            args, executable=executable, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
        )

    return start


@posix
def test_a_person_is_asked(bare: Any, terminal: Call) -> None:
    code, shown = at_a_terminal(terminal, ["snapshots"], [(b"Passphrase: ", SECRET)])
    assert code == 0 and SECRET not in shown and "no snapshot" in shown
    code, shown = at_a_terminal(terminal, ["snapshots"], [(b"Passphrase: ", "wrong one")])
    assert code == 77 and "wrong one" not in shown


@posix
def test_a_new_passphrase_is_asked_twice(
    bare: Any, terminal: Call, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, first, again = "another good passphrase", b"New passphrase", b"Again: "
    answers = [(first, new), (again, "with a slip"), (first, new), (again, new)]
    code, shown = at_a_terminal(terminal, ["init", "-r", bare.root / "new"], answers)
    assert code == 0 and new not in shown and "They differ" in shown
    monkeypatch.setenv("PHARMABACKUP_PASSPHRASE", new)
    assert call("snapshots", "-r", bare.root / "new").code == 0


@posix
def test_a_terminal_gets_bars_and_tables(place: Any, terminal: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    code, shown = at_a_terminal(terminal, ["backup", *place.sources()], [])
    assert code == 0 and "pmr is safe" in shown and "\x1b[" in shown and "Snapshot" in shown
    monkeypatch.setenv("NO_COLOR", "1")
    code, shown = at_a_terminal(terminal, ["snapshots"], [])
    assert code == 0 and "─" in shown and not re.search(r"\x1b\[[0-9;]*3[0-9]", shown)
    code, shown = at_a_terminal(terminal, ["ls", "documents"], [])
    assert code == 0 and "\x1b" not in shown


@posix
def test_no_colour_without_a_terminal(backed_up: Any, spawn: Call) -> None:
    for arguments in (("snapshots",), ("check",), ("backup", *backed_up.sources()), ("--help",)):
        answer = spawn(*arguments, TERM="xterm-256color")
        assert "\x1b" not in answer.out + answer.err


def _shown(process: Any) -> tuple[bytes, int]:
    found = shown_of(process)
    process.communicate()
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("verb", ["backup", "restore", "snapshots", "passphrase", "enrol", "drill", "check-share"])
def test_lists_of_processes_do_not_show_it(bare: Any, call: Call, start: Call, verb: str) -> None:
    path, new = private(bare.root / "secret", SECRET), private(bare.root / "new", "another passphrase of the tests")
    given = ["--credential", f"file:{path}"]
    assert call("backup", *given, *bare.sources()).code == 0
    shares = call("split-recovery", *given, "--json").json["shares"]
    arguments = {
        "backup": bare.sources(),
        "restore": [bare.root / "out"],
        "snapshots": [],
        "passphrase": ["--new", f"file:{new}"],
        "enrol": ["owner", "Jaya Patel", "--new", f"file:{new}"],
        "drill": ["recovery-key"],
        "check-share": [],
    }
    typed = private(bare.root / "typed", "\n".join(shares[:1] if verb == "check-share" else shares))
    with typed.open() as stdin:
        process = start(*given, verb, *arguments[verb], stdin=stdin)
    shown, looks = _shown(process)
    assert process.returncode == 0 and looks > 3 and str(path).encode() in shown
    assert SECRET.encode() not in shown and b"another passphrase" not in shown
    assert not any(" ".join(share.split()[4:7]).encode() in shown for share in shares)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_the_environment_of_a_process_is_shown_to_its_user(place: Any, start: Call) -> None:
    """Which is why a file is better; and that looking finds it."""
    assert SECRET.encode() in _shown(start("snapshots"))[0]
