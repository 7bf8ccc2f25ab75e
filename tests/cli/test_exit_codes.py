"""Every exit code that today's commands can reach, and the JSON that comes with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup.cli import codes

Call = Callable[..., Any]


@pytest.mark.parametrize(
    ("error", "code", "judged"),
    [
        (pb.InvalidInput("x"), 64, 64),
        (pb.InvalidInput("x", kind="plan"), 78, 78),
        (pb.NotFound("x"), 66, 66),
        (pb.Conflict("x"), 73, 3),
        (pb.WrongCredential("x"), 77, 77),
        (pb.NotPermitted("x"), 77, 77),
        (pb.Unsupported("x"), 69, 3),
        (pb.StorageFailed("x", retryable=True), 75, 3),
        (pb.StorageFailed("x"), 74, 3),
        (pb.SourceFailed("x"), 74, 74),
        (pb.Damaged("x"), 65, 2),
        (pb.Cancelled("x"), 130, 130),
        (pb.Error("x"), 70, 70),
    ],
)
def test_the_table(error: pb.Error, code: int, judged: int) -> None:
    assert (codes.exit_code(error), codes.exit_code(error, judging=True)) == (code, judged)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("backup",),
        ("backup", "--files"),
        ("backup", "--files", "=x"),
        ("backup", "--files", "a=/x", "--tier", "b=1"),
        ("backup", "--files", "a=/x", "--tier", "a=9"),
        ("backup", "--files", "a=/x", "--tier", "a=first"),
        ("restore",),
        ("restore", ""),
        ("snapshots", "-r", ""),
        ("restore", "x", "--before", "yesterday"),
        ("restore", "x", "--into", "pmr"),
        ("check", "--read-data", "5"),
        ("check", "--read-data", "101%"),
        ("cat", "documents"),
        ("snapshots", "--passphrase", "x"),
        ("snapshots", "--storage-option", "novalue"),
        ("snapshots", "--upload-limit", "2"),
        ("snapshots", "--upload-limit", "7.999kbit/s"),
    ],
)
def test_usage(place: Any, call: Call, arguments: tuple[str, ...]) -> None:
    answer = call(*arguments)
    assert answer.code == 64 and answer.err and answer.out == ""


@pytest.mark.parametrize("arguments", [("nonsense",), ("check", "--read-data", "5"), ("cat", "a")])
def test_usage_as_json(place: Any, call: Call, arguments: tuple[str, ...]) -> None:
    answer = call(*arguments, "--json")
    assert answer.code == 64 and answer.err == ""
    assert answer.error["class"] == "InvalidInput" and answer.error["kind"] == "usage"
    assert set(answer.error) == {"class", "kind", "message", "remedy"}


def test_one_document_or_many_lines(place: Any, call: Call) -> None:
    answer = call("snapshots", "--json", "--events")
    assert answer.code == 64 and "choose one" in answer.error["message"]


def test_no_repository_named(place: Any, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PHARMABACKUP_REPOSITORY")
    answer = call("snapshots")
    assert answer.code == 64 and "-r URL" in answer.err


def test_every_error_is_one_line(place: Any, spawn: Call) -> None:
    answer = spawn("ls", "nothing")
    assert answer.code == 66 and len(answer.err.splitlines()) == 1 and answer.err.startswith("pharmabackup: ")


def test_wrong_passphrase(place: Any, spawn: Call) -> None:
    answer = spawn("snapshots", "--json", PHARMABACKUP_PASSPHRASE="another one altogether")
    assert answer.code == 77 and answer.error["class"] == "WrongCredential" and answer.error["kind"] == "no-slot"
    assert spawn("check", PHARMABACKUP_PASSPHRASE="another one altogether").code == 77


def test_a_folder_that_is_no_repository(place: Any, call: Call) -> None:
    (place.root / "empty").mkdir()
    answer = call("snapshots", "-r", place.root / "empty", "--json")
    assert answer.code == 66 and answer.error["kind"] == "repository"
    assert list((place.root / "empty").iterdir()) == []


def test_a_folder_that_is_not_there(place: Any, call: Call) -> None:
    answer = call("snapshots", "-r", place.root / "nowhere")
    assert answer.code in (66, 74) and not (place.root / "nowhere").exists()
    assert call("check", "-r", place.root / "nowhere").code in (3, 66)


def test_a_file_where_a_folder_should_be(place: Any, call: Call) -> None:
    file = place.root / "file"
    file.write_text("mine")
    for arguments in (("snapshots", "-r", file), ("init", "-r", file)):
        assert call(*arguments).code in (64, 73, 74), arguments
    assert call("backup", *place.sources()).code == 0
    assert call("restore", file).code == 73
    assert file.read_text() == "mine"


def test_init_where_something_is(place: Any, call: Call) -> None:
    answer = call("init", "--json")
    assert answer.code == 73 and answer.error["kind"] == "repository-exists"
    assert call("init", "-r", place.shop).code == 73


def test_init_with_a_short_passphrase(place: Any, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHARMABACKUP_PASSPHRASE", "short")
    answer = call("init", "-r", place.root / "new")
    assert answer.code == 64 and "short" not in answer.err.replace("shorter", "")
    assert not (place.root / "new").exists() or not list((place.root / "new").iterdir())


def change_record(repository: Path, **facts: object) -> None:
    record = repository / "repository"
    content = json.loads(record.read_text())
    record.chmod(0o600)
    record.write_text(json.dumps({**content, **facts}))


def test_a_newer_format(place: Any, call: Call) -> None:
    change_record(place.repository, pharmabackup=2)
    answer = call("snapshots", "--json")
    assert answer.code == 69 and answer.error["class"] == "Unsupported" and answer.error["kind"] == "format-newer"
    assert call("check").code == 3


def test_a_damaged_repository(place: Any, call: Call) -> None:
    record = place.repository / "repository"
    record.chmod(0o600)
    record.write_bytes(b"\x00garbage")
    assert call("snapshots").code == 65
    assert call("check", "--json").code == 2


def test_a_storage_that_this_version_does_not_know(place: Any, call: Call) -> None:
    assert call("snapshots", "-r", "nosuch://bucket/x").code == 69
    assert call("check", "-r", "nosuch://bucket/x").code == 3


def test_incomplete(place: Any, call: Call) -> None:
    answer = call("backup", *place.sources(), "--files", f"scans={place.root / 'gone'}")
    assert answer.code == 1 and "scans" in answer.err and "NOT COMPLETE" in answer.out
    as_json = call("backup", *place.sources(), "--files", f"scans={place.root / 'gone'}", "--json")
    assert as_json.code == 1 and as_json.error["class"] == "Incomplete" and as_json.error["kind"] == "backup"
    result = as_json.json["result"]
    assert result["datasets"]["pmr"]["complete"] and not result["datasets"]["scans"]["complete"]
    assert any(finding["code"] == "dataset-failed" for finding in result["findings"])


def test_incomplete_events_end_with_the_error(place: Any, call: Call) -> None:
    lines = call("backup", "--files", f"scans={place.root / 'gone'}", "--events").out.splitlines()
    assert json.loads(lines[-1])["error"]["class"] == "Incomplete"


def test_the_repository_inside_the_source(place: Any, call: Call) -> None:
    before = _but_the_log(place.repository)
    assert call("backup", "--files", place.root).code == 64
    assert _but_the_log(place.repository) == before


def _but_the_log(repository: Path) -> list[Path]:
    return sorted(path for path in repository.rglob("*") if "audit" not in path.parts)


def test_what_is_not_there(backed_up: Any, call: Call) -> None:
    assert call("cat", "documents", "nothing.pdf").code == 66
    assert call("table", "pmr", "nobody").code == 66
    assert call("table", "documents", "x").code == 69
    assert call("cat", "documents", "sops").code == 64
    assert call("restore", backed_up.root / "x", "--only", "nothing").code == 66
    assert call("restore", "--into", f"nothing={backed_up.root / 'x'}").code == 66


def test_an_error_in_the_middle_of_a_document_ends_it_well(
    backed_up: Any, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_self: object, _pattern: str) -> Any:
        yield pb.results.Entry(path="a", size=1, modified=pb.clock.from_ns(0), kind="file")
        raise pb.Damaged("It broke.", remedy="Mend it.")

    monkeypatch.setattr(pb.Snapshot, "glob", broken)
    answer = call("ls", "documents", "--json")
    assert answer.code == 65 and len(answer.json["entries"]) == 1 and answer.error["kind"] == "block"
    events = call("ls", "documents", "--events").json
    assert len(events["result"]["entries"]) == 1 and events["error"]["class"] == "Damaged"


def test_a_fault_of_ours(place: Any, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(pb.Repository, "open", broken)
    answer = call("snapshots")
    assert answer.code == 70 and "report it" in answer.err and "Traceback" not in answer.err
    assert "Traceback" in call("snapshots", "-v").err
    as_json = call("snapshots", "--json")
    assert as_json.code == 70 and as_json.error["kind"] == "fault"


def test_a_busy_storage_is_worth_another_try(place: Any, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object, **__: object) -> Any:
        raise pb.StorageFailed("It is busy.", kind="timeout", retryable=True)

    monkeypatch.setattr(pb.Repository, "open", busy)
    assert call("snapshots").code == 75
    assert call("check").code == 3


def test_without_the_extra(place: Any) -> None:
    hidden = (
        "import sys, importlib.util as u; f = u.find_spec;"
        "u.find_spec = lambda name, *a: None if name == 'rich' else f(name, *a);"
        "sys.argv = ['pharmabackup', *sys.argv[1:]];"
        "from pharmabackup.__main__ import main; sys.exit(main())"
    )
    for more in ([], ["--json"]):
        done = subprocess.run([sys.executable, "-c", hidden, "snapshots", *more], capture_output=True, text=True)
        assert done.returncode == 69 and 'pip install "pharmabackup[cli]"' in (done.stdout + done.stderr).replace(
            "\\", ""
        )
        assert len((done.stdout + done.stderr).splitlines()) == 1
