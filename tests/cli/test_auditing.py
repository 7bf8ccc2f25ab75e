"""audit, audit verify, audit export, audit anchor; --actor and --reason."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb

Call = Callable[..., Any]


def _folder(place: Any) -> Path:
    (folder,) = (path for path in (place.repository / "audit").iterdir() if len(path.name) == 32)
    return Path(folder)


def test_the_log_is_listed(backed_up: Any, call: Call) -> None:
    out = backed_up.root / "out"
    done = call("restore", out, "--actor", "Sam Okafor", "--reason", "disk failed")
    assert done.code == 0
    lines = call("audit").out.splitlines()
    assert len(lines) == 4  # create, backup, and a restore that began and ended
    assert "backup: done  (before 9.2)" in lines[1]
    assert "owner, Sam Okafor" in lines[3] and "restore: done  (disk failed)" in lines[3]
    told = call("audit", "--json").json["records"]
    assert [(record["event"], record["outcome"]) for record in told][-2:] == [("restore", "done"), ("open", "done")]
    assert f"Recorded as audit {told[3]['id']}." in done.out


def test_who_and_why_before_the_commands_name_too(backed_up: Any, call: Call) -> None:
    assert call("--actor", "Sam", "--reason", "to look", "cat", "documents", "letter.txt").code == 0
    assert call("--actor", "Sam", "backup", *backed_up.sources(), "--reason", "evening").code == 0
    told = call("audit", "--json").json["records"]
    assert [(r["event"], r["actor"], r["reason"]) for r in told][-3:] == [
        ("read", "Sam", "to look"),
        ("read", "Sam", "to look"),
        ("backup", "Sam", "evening"),
    ]
    assert call("snapshots", "--json").json["snapshots"][0]["reason"] == "evening"


def test_init_says_who(place: Any, call: Call) -> None:
    assert call("-r", place.root / "new", "--actor", "Jaya", "init").code == 0
    (record,) = call("-r", place.root / "new", "audit", "--json").json["records"]
    assert (record["event"], record["actor"]) == ("create", "Jaya")


def test_since(backed_up: Any, call: Call) -> None:
    assert call("audit", "--since", "2999-01-01T00:00Z").out == ""
    assert len(call("audit", "--since", "2001-01-01").out.splitlines()) == 3
    assert call("audit", "export", "--since", "2999-01-01T00:00Z").out == ""
    assert call("audit", "--since", "2001-01-01", "verify").code == 64
    assert call("audit", "--since", "yesterday").code == 64


def test_a_log_that_is_whole(backed_up: Any, call: Call) -> None:
    done = call("audit", "verify")
    assert (done.code, done.err) == (0, "") and "OK: the log is whole" in done.out
    assert call("audit", "verify", "--json").json["state"] == "ok"


def test_a_log_that_is_not(backed_up: Any, call: Call) -> None:
    (_folder(backed_up) / "0").unlink()
    done = call("audit", "verify")
    assert done.code == 2 and "CRITICAL: 1 finding" in done.out and "/0" in done.err and "missing" in done.err
    told = call("audit", "verify", "--json")
    assert told.code == 2 and [finding["code"] for finding in told.json["findings"]] == ["audit-damaged"]
    assert call("check").code == 1


def test_anchors(backed_up: Any, call: Call) -> None:
    file = backed_up.root / "anchor.json"
    assert "Anchored: 1 chain" in call("audit", "anchor", file).out
    assert call("audit", "anchor", "--json").json["heads"][0]["slot"] == "owner"
    (backed_up.repository / "audit" / "ab").mkdir()  # what is no chain is nobody's
    shown = call("audit", "anchor")
    assert json.loads(shown.out)["heads"][0]["number"] == json.loads(file.read_text())["heads"][0]["number"] + 2
    assert call("audit", "verify", "--anchor", file).code == 0
    head = json.loads(file.read_text())["heads"][0]["number"]
    for path in _folder(backed_up).iterdir():
        if int(path.name) >= head:
            path.unlink()
    judged = call("audit", "verify", "--anchor", file, "--state", backed_up.root / "another")
    assert judged.code == 2 and f"has seen record {head} of owner" in judged.err
    file.write_text("{}")
    assert call("audit", "verify", "--anchor", file).code == 64
    file.write_bytes(b"\xff")
    assert call("audit", "verify", "--anchor", file).code == 64
    assert call("audit", "verify", "--anchor", backed_up.root / "none").code == 66
    assert call("audit", "anchor", backed_up.root / "no" / "such").code == 74


def test_a_replica(backed_up: Any, call: Call) -> None:
    assert call("copy", backed_up.root / "replica", "--create", "--actor", "Sam").code == 0
    assert call("audit", "verify", "--replica", backed_up.root / "replica").code == 0
    there = call("-r", backed_up.root / "replica", "audit", "--json").json["records"]
    assert [(r["event"], r["actor"]) for r in there[:2]] == [("create", "Sam"), ("copy", "Sam")]


def test_json_lines(backed_up: Any, call: Call) -> None:
    lines = call("audit", "export").out.splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["create", "backup"]
    file = backed_up.root / "log.jsonl"
    assert call("audit", "export", file, "--json").json == {"file": str(file), "records": 3}
    assert [json.loads(line)["event"] for line in file.read_text().splitlines()] == ["create", "backup", "open"]
    assert call("audit", "export", backed_up.root / "no" / "such").code == 74
    assert call("audit", "export", "--json").code == 64


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with a name")
def test_a_pipe_is_written_to_as_it_is(backed_up: Any, call: Call) -> None:
    pipe = backed_up.root / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as reader:
        read = reader.submit(pipe.read_text)
        assert call("audit", "export", pipe).code == 0
        assert [json.loads(line)["event"] for line in read.result(60).splitlines()] == ["create", "backup"]
    assert stat.S_ISFIFO(os.stat(pipe).st_mode)


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r"])
def test_csv_that_no_spreadsheet_takes_for_a_formula(backed_up: Any, call: Call, sign: str) -> None:
    formula = f'{sign}cmd|"/c calc",A1\nnext'
    assert call("snapshots", "--actor", formula, "--reason", formula).code == 0
    with pb.Repository.open(backed_up.repository, pb.Passphrase("a passphrase of the tests")) as repo:
        repo.enrol("owner", pb.Passphrase("another passphrase of the tests"), name=f"x{formula}"[1:].strip())
    exported = call("audit", "export", "--csv").out
    rows = list(csv.DictReader(io.StringIO(exported, newline="")))
    opened = next(row for row in rows if row["actor"])
    assert (opened["actor"], opened["reason"]) == (f"'{formula}", f"'{formula}")
    assert all(not cell.startswith(("=", "+", "-", "@", "\t", "\r")) for row in rows for cell in row.values())
    backup = next(row for row in rows if row["event"] == "backup")
    assert json.loads(backup["facts"])["datasets"] == 2 and backup["actor"] == ""


def test_nothing_steers_the_terminal(backed_up: Any, call: Call) -> None:
    assert call("snapshots", "--actor", "\x1b[2Jme").code == 0
    assert "\x1b" not in call("audit").out and "\\x1b[2Jme" in call("audit").out


def test_a_reason_is_required(backed_up: Any, call: Call) -> None:
    assert "has to say why" in call("configure", "--reason-required").out
    assert "Who restores has to say why." in call("configure").out
    assert call("configure", "--json").json["reason_required"] is True
    out = backed_up.root / "out"
    refused = call("restore", out)
    assert refused.code == 77 and "Add --reason TEXT" in refused.err and not out.exists()
    assert call("cat", "documents", "letter.txt").code == 77
    assert call("restore", out, "--reason", "disk failed").code == 0
    assert "nobody has to say why" in call("configure", "--no-reason-required").out
    assert call("cat", "documents", "letter.txt").code == 0


def test_each_command_has_its_reason_once(call: Call) -> None:
    for command in ("backup", "hold", "rotate", "restore", "audit"):
        assert call(command, "--help").out.count("--reason ") == 1


def test_an_export_is_whole_or_what_was_there_stays(
    backed_up: Any, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The storage fails amid the records."""
    target = backed_up.root / "log.csv"
    target.write_text("the older one")
    genuine = pb.Repository.audit

    def fails(self: pb.Repository, **more: Any) -> Iterator[Any]:
        yield next(iter(genuine(self, **more)))
        raise pb.StorageFailed("The line is cut.", kind="storage-unreachable")

    files = sorted(path.name for path in backed_up.root.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(pb.Repository, "audit", fails)
        assert call("audit", "export", str(target)).code != 0
    assert target.read_text() == "the older one"
    assert sorted(path.name for path in backed_up.root.iterdir()) == files
    assert call("audit", "export", str(target)).code == 0 and target.read_text() != "the older one"


def test_an_anchor_takes_no_older_ones_place(backed_up: Any, call: Call) -> None:
    target = backed_up.root / "anchor.json"
    assert call("audit", "anchor", str(target)).code == 0
    before = target.read_text()
    assert call("audit", "anchor", str(target)).code == 73 and target.read_text() == before
