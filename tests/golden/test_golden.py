"""Repositories that every version opens, and damaged ones with exactly the findings that a check must report."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup.engine.index import Index
from tests.golden.make_golden import listing

HERE = Path(__file__).parent
V1: dict[str, Any] = json.loads((HERE / "v1.json").read_text("utf-8"))
REPLICA: dict[str, Any] = json.loads((HERE / "v1-replica.json").read_text("utf-8"))
ROLES: dict[str, Any] = json.loads((HERE / "v1-roles.json").read_text("utf-8"))
DAMAGED: dict[str, Any] = json.loads((HERE / "damaged" / "expected.json").read_text("utf-8"))
PASSPHRASE = pb.Passphrase(V1["passphrase"])

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="its names and attributes are those of Linux")


def _unpacked(name: str, tmp_path: Path) -> Path:
    with tarfile.open(HERE / f"{name}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / name


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return _unpacked("v1", tmp_path)


@pytest.fixture
def replica(tmp_path: Path) -> Path:
    return _unpacked("v1-replica", tmp_path)


def _all_are_listed(repo: pb.Repository, snapshots: list[dict[str, Any]]) -> None:
    have = {snapshot.id: snapshot.to_dict() for snapshot in repo.snapshots()}
    for snapshot in snapshots:
        facts = have.pop(snapshot["id"])
        assert {name: facts[name] for name in snapshot if name != "content"} == {
            name: value for name, value in snapshot.items() if name != "content"
        }
    assert have == {}


def _restores(repo: pb.Repository, expected: dict[str, Any], out: Path) -> None:
    snapshot = repo.snapshot(id=expected["id"])
    repo.restore(out, snapshots=[snapshot])
    for path, facts in expected["content"].items():
        if facts["kind"] == "file" and "\\x" not in path:
            with snapshot.open(path) as file:
                assert hashlib.sha256(file.read()).hexdigest() == facts["sha256"]
    found = listing(out / expected["dataset"])
    assert found.keys() == expected["content"].keys()
    for path, facts in expected["content"].items():
        assert found[path] == facts, path


def test_every_snapshot_is_listed(golden: Path) -> None:
    with pb.Repository.open(golden, PASSPHRASE) as repo:
        _all_are_listed(repo, V1["snapshots"])


@pytest.mark.parametrize("number", range(len(V1["snapshots"])))
def test_every_snapshot_restores(golden: Path, tmp_path: Path, number: int) -> None:
    with pb.Repository.open(golden, PASSPHRASE) as repo:
        _restores(repo, V1["snapshots"][number], tmp_path / "out")


def test_it_is_sound(golden: Path) -> None:
    with pb.Repository.open(golden, PASSPHRASE) as repo:
        assert repo.check(read_data=1.0).findings == ()


# ---------------------------------------------------------------- a replica, its keys changed, collected


@pytest.mark.parametrize("passphrase", REPLICA["passphrases"])
def test_the_replica(replica: Path, tmp_path: Path, passphrase: str) -> None:
    with pb.Repository.open(replica, pb.Passphrase(passphrase)) as repo:
        _all_are_listed(repo, REPLICA["snapshots"])
        for expected in REPLICA["snapshots"]:
            if expected["content"] is not None:
                _restores(repo, expected, tmp_path / expected["id"])
        assert repo.check(read_data=1.0).findings == ()


def test_the_replicas_old_passphrase(replica: Path) -> None:
    with pytest.raises(pb.WrongCredential):
        pb.Repository.open(replica, pb.Passphrase(REPLICA["old passphrase"]))


# ---------------------------------------------------------------- a credential of every role


@pytest.fixture
def roles(tmp_path: Path) -> Path:
    return _unpacked("v1-roles", tmp_path)


def _key(slot: str, tmp_path: Path) -> pb.KeyFile:
    (tmp_path / "key").write_text(ROLES["keys"][slot], "ascii")
    return pb.KeyFile(tmp_path / "key")


def _credential(slot: str, tmp_path: Path) -> pb.Credential:
    if slot == "owner":
        return pb.Passphrase(ROLES["passphrase"])
    return pb.Shares(*ROLES["shares"][1:]) if slot == "recovery 2" else _key(slot, tmp_path)


PRESENT = [(name, role) for name, role, _, revoked in ROLES["slots"] if not revoked]


@pytest.mark.parametrize(("slot", "role"), PRESENT)
def test_each_roles_credential(roles: Path, tmp_path: Path, slot: str, role: str) -> None:
    with pb.Repository.open(roles, _credential(slot, tmp_path)) as repo:
        assert (repo.slot, repo.role) == (slot, role)
        assert [[one.name, one.role, one.kind, one.revoked is not None] for one in repo.slots()] == ROLES["slots"]
        _all_are_listed(repo, ROLES["snapshots"])
        assert ROLES["does not count"] not in {snapshot.id for snapshot in repo.snapshots()}
        found = repo.check(read_data=1.0).findings
        assert [(finding.code, finding.subject) for finding in found] == [
            ("snapshot-revoked", f"snapshots/{ROLES['does not count']}")
        ]
        for expected in ROLES["snapshots"]:
            if expected["content"] is None:
                continue
            if role in ("owner", "restorer"):
                _restores(repo, expected, tmp_path / expected["id"])
            else:
                with pytest.raises(pb.NotPermitted):
                    repo.restore(tmp_path / "out", snapshots=[repo.snapshot(id=expected["id"])])


def test_the_roles_repository_holds_what_it_is_for(roles: Path) -> None:
    """Blocks that a maintainer moved, and keys of a domain that a slot was given later."""
    with pb.Repository.open(roles, pb.Shares(*ROLES["shares"][:2])) as repo:
        unlocked = repo._unlocked
        assert [domain.name for domain in unlocked.roster.domains] == ["main", "branch"]
        assert [len(keys) for keys in (unlocked.keyring.naming, unlocked.keyring.catalogue)] == [2, 3]
        assert len(unlocked.keyring.readers) == 3
        index = Index(unlocked, chunks=False)
        index.load()
        by_name = {slot.id: slot.name for slot in unlocked.roster.slots}
        assert {by_name[signer] for signer in index.blocks.signers} >= {"the supplier", "till-1", "till-2"}


def test_who_was_revoked_opens_nothing(roles: Path, tmp_path: Path) -> None:
    for credential in (_key("till-2", tmp_path), pb.Shares(*ROLES["old shares"][2:])):
        with pytest.raises(pb.WrongCredential) as caught:
            pb.Repository.open(roles, credential)
        assert caught.value.kind == "revoked"


def test_the_texts_of_the_keys(tmp_path: Path) -> None:
    for slot, text in ROLES["recipients"].items():
        assert pb.Recipient(text) == _key(slot, tmp_path).recipient
        assert str(pb.Recipient(text)) == text


# ---------------------------------------------------------------- damaged

SNAPSHOTS = {f"{item['dataset']} {item['reason'] or 'first day'}": item["id"] for item in V1["snapshots"]}


def _object(folder: str, start: str) -> Callable[[Path], Path]:
    def find(root: Path) -> Path:
        (found,) = [path for path in (root / folder).rglob(f"{start}*") if path.is_file()]
        return found

    return find


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def _record(root: Path, **members: object) -> None:
    path = root / "repository"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | members), "utf-8")


PACK = _object("packs", DAMAGED["objects"]["pack"])  # of the first day's documents
NAMES = DAMAGED["objects"]["names"]  # where they begin in it
INDEX = _object("index", DAMAGED["objects"]["index"])
EDITS: dict[str, Callable[[Path], object]] = {
    "missing pack": lambda root: PACK(root).unlink(),
    "flipped byte in a block": lambda root: _flip(PACK(root), 5000),
    "flipped byte in the names": lambda root: _flip(PACK(root), NAMES + 70),
    "truncated pack": lambda root: os.truncate(PACK(root), 5000),
    "missing index segment": lambda root: INDEX(root).unlink(),
    "flipped index segment": lambda root: _flip(INDEX(root), 100),
    "damaged snapshot record": lambda root: _flip(root / "snapshots" / SNAPSHOTS["documents first day"], 100),
    "snapshot's blocks missing": lambda root: (PACK(root).unlink(), INDEX(root).unlink()),
    "foreign file in packs": lambda root: (root / "packs" / "thumbs.db").write_bytes(b"x"),
    "foreign file in index": lambda root: (root / "index" / "thumbs.db").write_bytes(b"x"),
    "foreign file in keys": lambda root: (root / "keys" / "thumbs.db").write_bytes(b"x"),
    "padded number in keys": lambda root: _object("keys", "0")(root).rename(_object("keys", "0")(root).parent / "00"),
    "file of no object's name": lambda root: (root / "keys" / "Thumbs.db").write_bytes(b"x"),
    "unknown required feature": lambda root: _record(root, required_features=["erasure-code"]),
    "newer format": lambda root: _record(root, pharmabackup=2),
    "missing roster": lambda root: (root / "roster" / "0").unlink(),
    "missing keyring": lambda root: _object("keys", "0")(root).unlink(),
}


def findings(root: Path) -> list[list[str]]:
    """What opening and checking say: [code, severity, subject]; an error is [class, kind, the message]."""
    try:
        with pb.Repository.open(root, PASSPHRASE) as repo:
            report = repo.check(read_data=1.0)
    except pb.Error as error:
        assert error.remedy
        return [[type(error).__name__, error.kind, error.message.replace(str(root), "<repository>")]]
    return sorted([finding.code, finding.severity, finding.subject] for finding in report.findings)


def test_every_damage_has_its_findings() -> None:
    assert EDITS.keys() == DAMAGED["findings"].keys()


@pytest.mark.parametrize("edit", EDITS)
def test_damaged(golden: Path, edit: str) -> None:
    EDITS[edit](golden)
    assert findings(golden) == DAMAGED["findings"][edit]
