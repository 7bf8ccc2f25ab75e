"""Readers that go away, full disks, Ctrl-C at any moment: what is safe stays safe, and the next run works."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]
posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
FILES, FILE_SIZE = 48, 4 << 20
MOMENTS = ["started", "dataset", "progress", "committed"]


@posix
@pytest.mark.parametrize(
    "arguments", [("ls", "documents"), ("cat", "documents", "big"), ("ls", "documents", "--json")]
)
def test_a_reader_that_has_seen_enough(place: Any, call: Call, start: Call, arguments: tuple[str, ...]) -> None:
    (place.shop / "documents" / "big").write_bytes(bytes(4 << 20))
    for number in range(3000):
        (place.shop / "documents" / f"a-rather-long-name-{number:060}").touch()
    assert call("backup", *place.sources()).code == 0
    with start(*arguments) as process:
        assert process.stdout.read(10)
        process.stdout.close()
        complaints = process.stderr.read()
        assert process.wait() == 74 and complaints == b""


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_stdout(backed_up: Any, spawn: Call) -> None:
    for arguments in (("ls", "documents"), ("snapshots", "--json"), ("backup", *backed_up.sources()), ("--help",)):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [sys.executable, "-m", "pharmabackup", *arguments], stdout=full, stderr=subprocess.PIPE, text=True
            )
        assert done.returncode == 74 and "Traceback" not in done.stderr, arguments
        assert "cannot be written" in done.stderr.splitlines()[-1]


@posix
def test_nobody_hears_the_messages(place: Any) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "pharmabackup", "backup", *place.sources()], stdout=subprocess.PIPE, stderr=writing
    )
    os.close(writing)
    assert done.returncode == 0 and b"Backed up" in done.stdout


# ------------------------------------------------------------ Ctrl-C


@pytest.fixture
def large(place: Any) -> Any:
    """Data that takes some seconds to back up."""
    folder = place.shop / "scans"
    folder.mkdir()
    numbers = random.Random(1)
    for number in range(FILES):
        (folder / f"scan-{number:03}").write_bytes(numbers.randbytes(FILE_SIZE))
    return place


def lines_until(process: subprocess.Popen[bytes], kind: str) -> None:
    """Read events until the first of that kind."""
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("kind") == kind:
            return
    pytest.fail(f"the run ended before {kind}")


def last_line(process: subprocess.Popen[bytes]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.read().splitlines()[-1])


@pytest.fixture
def running(start: Call) -> Iterator[Call]:
    started: list[subprocess.Popen[bytes]] = []

    def do(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
        started.append(start(*arguments, "--events", **options))
        return started[-1]

    yield do
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@posix
@pytest.mark.slow
def test_ctrl_c_during_backup(large: Any, running: Call, call: Call) -> None:
    arguments = ("backup", *large.sources(), "--files", large.shop / "scans", "--tier", "scans=5")
    for moment in MOMENTS:
        process = running(*arguments)
        lines_until(process, moment)
        process.send_signal(signal.SIGINT)
        error = last_line(process)["error"]
        assert process.wait() == 130 and error["class"] == "Cancelled" and error["kind"] == "cancelled", moment
        assert b"Traceback" not in process.stderr.read()
        assert call("check", "--read-data", "100%").code == 0, moment
    assert call(*arguments).code == 0
    assert call("check", "--read-data", "100%").code == 0


@posix
@pytest.mark.slow
def test_ctrl_c_during_restore(large: Any, running: Call, call: Call) -> None:
    assert call("backup", "--files", large.shop / "scans").code == 0
    target = large.root / "restored"
    for moment in MOMENTS[:3]:
        process = running("restore", target)
        lines_until(process, moment)
        process.send_signal(signal.SIGINT)
        error = last_line(process)["error"]
        assert process.wait() == 130 and error["class"] == "Cancelled", moment
        assert call("check").code == 0
    assert call("restore", target).code == 0
    for path in (large.shop / "scans").iterdir():
        assert (target / "scans" / path.name).read_bytes() == path.read_bytes()


@posix
@pytest.mark.slow
@pytest.mark.parametrize("way", ["twice", "SIGTERM", "stdin"])
def test_other_ways_to_stop(large: Any, running: Call, call: Call, way: str) -> None:
    process = running("backup", "--files", large.shop / "scans", stdin=subprocess.PIPE)
    lines_until(process, "progress")
    if way == "stdin":
        process.stdin.close()
        process.stdin = None
    elif way == "twice":
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
    else:
        process.send_signal(signal.SIGTERM)
    assert last_line(process)["error"]["class"] == "Cancelled" and process.wait() == 130
    assert call("check").code == 0


@posix
def test_ctrl_c_in_text_is_two_sentences(large: Any, start: Call) -> None:
    with start("backup", "--files", large.shop / "scans") as process:
        assert b"Backing up" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        complaints = process.stderr.read().decode()
        assert process.wait() == 130 and process.stdout.read() == b""
    assert "Ctrl-C again" in complaints and "Traceback" not in complaints
    assert complaints.splitlines()[-1].startswith("pharmabackup: ")


def test_a_stdin_that_is_not_a_pipe_stops_nothing(place: Any, spawn: Call) -> None:
    answer = spawn("backup", *place.sources(), "--events")
    assert answer.code == 0 and json.loads(answer.out.splitlines()[-1])["result"]["state"] in ("ok", "critical")


def test_output_survives_a_poor_terminal(backed_up: Any, spawn: Call) -> None:
    for encoding in ("ascii", "latin-1"):
        for arguments in (("ls", "documents"), ("snapshots",), ("table", "pmr", "patient")):
            answer = spawn(*arguments, PYTHONIOENCODING=encoding, LC_ALL="C", PYTHONUTF8="0")
            assert answer.code == 0 and answer.out


def test_heavy_libraries_wait_until_they_are_needed(backed_up: Any) -> None:
    program = (
        "import sys; from pharmabackup.cli import main; sys.argv = ['pharmabackup', 'snapshots']; code = main();"
        "print([name for name in ('rich', 'fsspec', 'keyring', 'asyncio') if name in sys.modules], file=sys.stderr);"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n")
