"""Every command: what it does, what it shows people, and what it tells programs."""

from __future__ import annotations

import base64
import csv
import io
import json
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb

Call = Callable[..., Any]
linux = pytest.mark.skipif(sys.platform != "linux", reason="file names that are not UTF-8 exist on Linux alone")


def documents(entries: list[dict[str, Any]]) -> list[str]:
    return [entry["path"] for entry in entries]


def test_init_creates_a_repository(place: Any, call: Call) -> None:
    answer = call("init", "-r", place.root / "new")
    assert answer.code == 0
    assert "Created the repository" in answer.out and "passphrase" in answer.out
    assert call("snapshots", "-r", place.root / "new").code == 0


def test_init_tells_a_program_what_it_made(place: Any, call: Call) -> None:
    facts = call("init", "-r", place.root / "new", "--json").json
    assert facts["role"] == "owner" and len(facts["id"]) == 64 and "exclusive-create" in facts["capabilities"]


def test_backup_shows_a_table_and_where_it_is(place: Any, call: Call) -> None:
    answer = call("backup", *place.sources())
    assert answer.code == 0
    assert "pmr" in answer.out and "documents" in answer.out and "Backed up:" in answer.out
    assert "pmr is safe" in answer.err and "is safe:" not in answer.out


def test_backup_json_is_the_report(place: Any, call: Call) -> None:
    report = call("backup", *place.sources(), "--tier", "pmr=0", "--json").json
    assert report["verb"] == "backup" and set(report["datasets"]) == {"pmr", "documents"}
    assert report["datasets"]["pmr"]["tier"] == 0 and report["datasets"]["documents"]["tier"] == 3


def test_backup_takes_names_from_paths(place: Any, call: Call) -> None:
    report = call("backup", "--files", place.shop / "documents", "--json").json
    assert list(report["datasets"]) == ["documents"]


def test_backup_excludes(place: Any, call: Call) -> None:
    assert call("backup", *place.sources(), "--exclude", "*.pdf", "--exclude", "empty").code == 0
    found = documents(call("ls", "documents", "--json").json["entries"])
    assert "letter.txt" in found and "sops" in found
    assert "sops/cold-chain.pdf" not in found and "empty" not in found


def test_events_are_lines_that_end_with_the_result(place: Any, call: Call) -> None:
    lines = [json.loads(line) for line in call("backup", *place.sources(), "--events").out.splitlines()]
    kinds = [line.get("kind") for line in lines]
    assert kinds[0] == "started" and kinds[-2] == "finished" and kinds.count("committed") == 2
    assert lines[-1]["result"]["verb"] == "backup"


def test_quiet_says_nothing_when_all_is_well(place: Any, call: Call) -> None:
    answer = call("-q", "backup", "--files", place.shop / "documents", "-r", place.repository)
    assert (answer.code, answer.out) == (0, "")
    assert [
        line for line in answer.err.splitlines() if "same disk" not in line and "lies on the disk" not in line
    ] == []


@pytest.mark.parametrize("before", [True, False])
def test_common_options_stand_before_or_after_the_command(backed_up: Any, call: Call, before: bool) -> None:
    options = ["-r", str(backed_up.repository), "--json", "-q", "--state", str(backed_up.root / "elsewhere")]
    answer = call(*options, "snapshots") if before else call("snapshots", *options)
    assert len(answer.json["snapshots"]) == 2


def test_an_option_after_the_command_wins(backed_up: Any, call: Call) -> None:
    assert call("-r", backed_up.root / "nowhere", "snapshots", "-r", backed_up.repository).code == 0


def test_snapshots_newest_first(backed_up: Any, call: Call) -> None:
    answer = call("snapshots")
    assert answer.code == 0 and answer.out.splitlines()[0].split()[:3] == ["Id", "Time", "Dataset"]
    assert "before 9.2" in answer.out
    found = call("snapshots", "pmr", "--json").json["snapshots"]
    assert [(item["dataset"], item["tier"], item["reason"]) for item in found] == [("pmr", 1, "before 9.2")]


def test_no_snapshots_is_no_error(place: Any, call: Call) -> None:
    answer = call("snapshots")
    assert (answer.code, answer.out) == (0, "") and "no snapshot" in answer.err
    assert call("snapshots", "--json").json == {"snapshots": []}


def test_ls_lists_what_matches(backed_up: Any, call: Call) -> None:
    answer = call("ls", "documents", "sops/*")
    assert answer.code == 0 and len(answer.out.splitlines()) == 1
    assert "102,405" in answer.out and answer.out.endswith("sops/cold-chain.pdf\n")


def test_what_is_a_dataset_a_time_or_an_id(backed_up: Any, call: Call) -> None:
    listed = call("snapshots", "documents", "--json").json["snapshots"][0]
    later = (datetime.now().astimezone() + timedelta(hours=1)).isoformat()
    naive = (datetime.now() + timedelta(hours=1)).isoformat()
    for what in ("documents", listed["id"], listed["id"][:8], f"documents@{later}", f"documents@{naive}"):
        assert call("ls", what, "--json").json["snapshot"] == listed["id"], what
    assert call("ls", "documents@2001-01-01").code == 66
    assert call("ls", "nothing").code == 66


def test_a_dataset_that_looks_like_an_id_is_a_dataset(place: Any, call: Call) -> None:
    report = call("backup", "--files", f"cafe={place.shop / 'documents'}", "--json").json
    assert call("ls", "cafe", "--json").json["snapshot"] == report["datasets"]["cafe"]["snapshot"]


@linux
def test_names_cannot_steer_the_terminal_and_never_crash_it(backed_up: Any, call: Call) -> None:
    text = call("ls", "documents")
    assert text.code == 0 and "\x1b" not in text.out and "\x07" not in text.out
    assert r"steer\x1b[2Jme\x07.txt" in text.out and r"caf\xe9.txt" in text.out
    entries = {entry["path"]: entry for entry in call("ls", "documents", "--json").json["entries"]}
    assert base64.b64decode(entries[r"caf\xe9.txt"]["path_base64"]) == b"caf\xe9.txt"
    assert "path_base64" not in entries["letter.txt"] and "steer\x1b[2Jme\x07.txt" in entries


@linux
def test_cat_takes_names_that_are_not_utf8(backed_up: Any, spawn: Call) -> None:
    answer = spawn("cat", "documents", b"caf\xe9.txt".decode("utf-8", "surrogateescape"))
    assert (answer.code, answer.out) == (0, "latin")
    missing = spawn("cat", "documents", b"no\xe9\x1b".decode("utf-8", "surrogateescape"))
    assert missing.code == 66 and r"no\xe9\x1b" in missing.err


def test_cat_writes_the_very_bytes(backed_up: Any, start: Call) -> None:
    with start("cat", "documents", "sops/cold-chain.pdf") as process:
        out, _ = process.communicate()
    assert process.returncode == 0 and out == (backed_up.shop / "documents/sops/cold-chain.pdf").read_bytes()


def test_cat_json_holds_the_content(backed_up: Any, call: Call) -> None:
    facts = call("cat", "documents", "sops/cold-chain.pdf", "--json").json
    assert base64.b64decode(facts["content"]) == (backed_up.shop / "documents/sops/cold-chain.pdf").read_bytes()
    assert call("cat", "documents", "empty", "--json").json["content"] == ""


def test_table_is_csv(backed_up: Any, call: Call) -> None:
    rows = list(csv.reader(io.StringIO(call("table", "pmr", "patient").out)))
    assert rows == [["id", "name", "photo", "height"], ["1", 'Ann, "the" É', "00ff", "1.5"], ["2", "", "", ""]]


def test_table_json(backed_up: Any, call: Call) -> None:
    rows = call("table", "pmr", "patient", "--json").json["rows"]
    assert rows[0] == {"id": 1, "name": 'Ann, "the" É', "photo": "00ff", "height": 1.5}
    assert rows[1] == {"id": 2, "name": None, "photo": None, "height": None}
    assert call("table", "pmr", "vacant", "--json").json["rows"] == []


def test_events_of_a_command_that_looks_are_its_result(backed_up: Any, call: Call) -> None:
    for arguments in (("snapshots",), ("ls", "documents", "letter.txt"), ("table", "pmr", "vacant")):
        lines = call(*arguments, "--events").out.splitlines()
        assert list(json.loads("".join(lines))) == ["result"]


def same(one: Path, other: Path) -> bool:
    names = sorted(path.relative_to(one) for path in one.rglob("*"))
    return names == sorted(path.relative_to(other) for path in other.rglob("*")) and all(
        (one / name).is_dir() or (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


def test_restore_brings_everything_back(backed_up: Any, call: Call) -> None:
    target = backed_up.root / "restored"
    answer = call("restore", target)
    assert answer.code == 0 and "Restored:" in answer.out and "pmr is restored" in answer.err
    assert same(backed_up.shop / "documents", target / "documents")
    with closing(sqlite3.connect(target / "pmr" / "pmr.db")) as database:
        assert database.execute("SELECT count(*) FROM patient").fetchone() == (2,)


def test_restore_only_some(backed_up: Any, call: Call) -> None:
    target = backed_up.root / "restored"
    report = call("restore", target, "--only", "documents/sops/**", "--json").json
    assert report["verb"] == "restore" and list(report["datasets"]) == ["documents"]
    assert [path.name for path in target.rglob("*") if path.is_file()] == ["cold-chain.pdf"]


def test_restore_into_places_of_their_own(backed_up: Any, call: Call) -> None:
    database, folder = backed_up.root / "new" / "pmr.db", backed_up.root / "docs"
    database.parent.mkdir()
    answer = call("restore", "--into", f"pmr={database}", "--into", f"documents={folder}")
    assert answer.code == 0, answer.err
    assert database.is_file() and same(backed_up.shop / "documents", folder)


def test_restore_overwrites_only_when_told(backed_up: Any, call: Call) -> None:
    target = backed_up.root / "restored"
    assert call("restore", target).code == 0
    (target / "documents" / "letter.txt").write_text("changed")
    refused = call("restore", target)
    assert refused.code == 73 and "--overwrite" in refused.err
    assert (target / "documents" / "letter.txt").read_text() == "changed"
    assert call("restore", target, "--overwrite").code == 0
    assert same(backed_up.shop / "documents", target / "documents")


def test_restore_before_a_time(backed_up: Any, call: Call) -> None:
    assert call("restore", backed_up.root / "restored", "--before", "2001-01-01").code == 66
    assert call("restore", backed_up.root / "restored", "--before", "2999-01-01T00:00:00Z").code == 0


def test_check_judges(backed_up: Any, call: Call) -> None:
    answer = call("check", "--read-data", "100%")
    assert answer.code == 0 and answer.out.startswith("OK:")
    assert call("check", "--read-data", "2.5%", "--json").json["state"] == "ok"


def test_check_calls_damage_critical(backed_up: Any, call: Call) -> None:
    pack = max((backed_up.repository / "packs").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    pack.chmod(0o600)
    pack.write_bytes(pack.read_bytes()[:-1])
    answer = call("check")
    assert answer.code == 2 and answer.out.startswith("CRITICAL:") and "critical:" in answer.err
    assert call("check", "--json").json["state"] == "critical"


def test_version_and_help(call: Call) -> None:
    assert call("--version").out.strip().endswith(pb.__version__)
    for name in ("init", "backup", "snapshots", "ls", "cat", "table", "restore", "check"):
        answer = call(name, "--help")
        assert answer.code == 0 and "--credential" in answer.out and name in call("--help").out


def test_commands_whose_verbs_do_not_exist_are_not_there(call: Call) -> None:
    for name in ("run", "status", "forget", "prune", "copy", "enrol", "document"):
        assert call(name).code == 64
