"""repair."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.engine.index import Index
from pharmabackup.engine.reading import BlockReader, SnapshotReader
from tests.cli.conftest import SECRET

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


def test_what_the_sources_have_is_put_back(call: Call, backed_up: Any) -> None:
    """A damaged block of the database, made anew."""
    with pb.Repository.open(backed_up.repository, pb.Passphrase(SECRET), state_dir=backed_up.root / "other") as repo:
        snapshot = repo.snapshot("pmr")
        index = Index(repo._unlocked, chunks=False)
        index.load()
        reader = SnapshotReader(BlockReader(repo._unlocked, index), snapshot._committed.snapshot)
        number = index.blocks.find(reader.recipe()[1][0], snapshot._committed.snapshot.domain)
        assert number is not None
        pack, at = index.blocks.packs[index.blocks.pack[number]], index.blocks.offset[number]
    path = backed_up.repository / ids.pack_name(pack)
    data = bytearray(path.read_bytes())
    data[at + 50] ^= 1
    path.write_bytes(data)
    assert call("check", "--read-data", "100%").code == 2
    done = call("repair", *backed_up.sources(), "--yes")
    assert done.code == 0 and "1 block is made anew from the sources." in done.out and "Whole again: " in done.out
    assert call("check", "--read-data", "100%").code == 0
    assert call("restore", backed_up.root / "out").code == 0


def test_the_look_is_shown(call: Call, damaged: Path) -> None:
    """To a program as events, before what would be done."""
    lines = [json.loads(line) for line in call("repair", "--events").out.splitlines()]
    kinds = [line.get("kind") for line in lines]
    assert kinds[0] == "started" and "finished" in kinds
    assert max(line["bytes_done"] for line in lines if line.get("kind")) > 0


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_the_look_can_be_stopped(call: Call, damaged: Path, backed_up: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ctrl-C, in good order; nothing was changed."""
    propose = pb.Repository.propose_repair

    def stopped(self: pb.Repository, **given: Any) -> pb.Proposal:
        os.kill(os.getpid(), signal.SIGINT)
        return propose(self, **given)

    def there() -> list[Path]:
        return sorted(path for path in backed_up.repository.rglob("*") if "audit" not in path.parts)

    before = there()
    with monkeypatch.context() as patch:
        patch.setattr(pb.Repository, "propose_repair", stopped)
        answer = call("repair", "--from", damaged, "--yes")
    assert answer.code == 130 and "stopped" in answer.err
    assert there() == before


def test_programs(call: Call, damaged: Path) -> None:
    proposal = call("repair", "--from", damaged, "--json").json
    assert len(proposal["snapshots"]) == 2 and not proposal["findings"]
    assert call("repair", "--from", damaged, "--yes", "--json").json["state"] == "ok"


def test_what_is_no_replica(call: Call, backed_up: Any) -> None:
    answer = call("repair", "--from", backed_up.root / "nowhere", "--json")
    assert answer.code in (66, 74, 75)
    assert call("repair", "--from", "sftp://user:secret@host/x", "--json").code == 64
