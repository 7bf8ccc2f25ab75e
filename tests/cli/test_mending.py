"""repair."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]


@pytest.fixture
def damaged(backed_up: Any) -> Path:
    """The repository is damaged, and this is a copy from before; the largest pack has the documents."""
    copy = backed_up.root / "copy"
    shutil.copytree(backed_up.repository, copy)
    packs = [path for path in (backed_up.repository / "packs").rglob("*") if path.is_file()]
    for pack in packs:
        data = bytearray(pack.read_bytes())
        data[100] ^= 1
        pack.write_bytes(data)
    return copy


def test_nothing_to_repair(call: Call, backed_up: Any) -> None:
    answer = call("repair")
    assert answer.code == 0 and "There is nothing to repair." in answer.err


def test_it_says_what_is_lost(call: Call, damaged: Path) -> None:
    answer = call("repair")
    assert answer.code == 1
    assert "cannot be restored" in answer.err and "damaged pack" in answer.out
    assert "Nothing was done. Add --yes to do it." in answer.err


def test_it_mends_from_a_copy(call: Call, damaged: Path) -> None:
    shown = call("repair", "--from", damaged)
    assert shown.code == 0 and "taken from" in shown.out and "Whole again" in shown.out
    assert "Nothing was done." in shown.err
    assert call("check", "--read-data", "100%").code == 2
    done = call("repair", "--from", damaged, "--yes")
    assert done.code == 0 and "Repaired: " in done.out
    assert call("check", "--read-data", "100%").code == 0


def test_it_mends_from_the_sources(call: Call, damaged: Path, backed_up: Any) -> None:
    """What is not in them, such as where their files' content lay, stays lost."""
    answer = call("repair", *backed_up.sources(), "--json")
    assert answer.json["verb"] == "repair" and answer.json["steps"]
    assert any("made anew" in text for text in answer.json["steps"])


def test_programs(call: Call, damaged: Path) -> None:
    proposal = call("repair", "--from", damaged, "--json").json
    assert len(proposal["snapshots"]) == 2 and not proposal["findings"]
    assert call("repair", "--from", damaged, "--yes", "--json").json["state"] == "ok"


def test_what_is_no_replica(call: Call, backed_up: Any) -> None:
    answer = call("repair", "--from", backed_up.root / "nowhere", "--json")
    assert answer.code in (66, 74, 75)
    assert call("repair", "--from", "sftp://user:secret@host/x", "--json").code == 64
