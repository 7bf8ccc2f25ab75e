"""What the library writes, read by a reader that was written from docs/format.md alone."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import os
import random
import sqlite3
import stat
import sys
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from tests.reader import wire
from tests.reader.manifest import Entry
from tests.reader.reader import Reader

GOLDEN = Path(__file__).parent.parent / "golden"
V1: dict[str, Any] = json.loads((GOLDEN / "v1.json").read_text("utf-8"))
REPLICA: dict[str, Any] = json.loads((GOLDEN / "v1-replica.json").read_text("utf-8"))
PASSPHRASE = "vier Wörter, die niemand rät"


def test_it_shares_nothing_with_the_library() -> None:
    allowed = {"blake3", "cryptography", "zstandard", "tests", *sys.stdlib_module_names}
    for path in Path(__file__).parent.glob("*.py"):
        if path.name.startswith("test_"):
            continue
        source = path.read_text("utf-8")
        assert "pharmabackup" not in source
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, ast.Import) or {name.name.split(".")[0] for name in node.names} <= allowed
            assert not isinstance(node, ast.ImportFrom) or str(node.module).split(".")[0] in allowed
            assert not isinstance(node, ast.ImportFrom) or node.module != "tests" or path.stem == "wire"


def test_published_vectors() -> None:
    nonce = b"ABCDEFGHIJKLMNOPQRSTUVWX"
    first = nonce + bytes.fromhex("ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271")
    second = nonce + bytes.fromhex("986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d")
    assert wire.unseal(b"\1" * 32, first, b"") == b"XAES-256-GCM"
    assert wire.unseal(b"\3" * 32, second, b"c2sp.org/XAES-256-GCM") == b"XAES-256-GCM"


def test_the_key_pair_of_a_passphrase() -> None:
    text = (GOLDEN.parents[1] / "docs" / "format.md").read_text("utf-8").partition("## 27")[2]
    pair = wire.derive(" recipient", bytes(range(32)), 96)
    for value in (pair, wire.key_id(wire.ReaderKey(pair).public)):
        assert value.hex() in "".join(text.split())


# ---------------------------------------------------------------- golden


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    with tarfile.open(GOLDEN / "v1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "v1"


def expected_form(content: dict[bytes, Entry]) -> dict[str, dict[str, object]]:
    """As tests/golden describes what a restore brings back."""
    further = {entry.same_file for entry in content.values() if entry.same_file}
    found: dict[str, dict[str, object]] = {}
    for path, entry in content.items():
        facts: dict[str, object] = {"mtime": entry.mtime, "mode": oct(entry.mode)}
        if path == b"." or entry.kind == wire.UNREAD:
            continue
        if entry.kind == wire.LINK:
            facts = {"kind": "link", "target": (entry.target or b"").decode()}
        elif entry.kind == wire.FOLDER:
            facts["kind"] = "folder"
        else:
            facts |= {"kind": "file", "size": entry.size, "sparse": entry.extents is not None}
            facts["sha256"] = hashlib.sha256(entry.data()).hexdigest()
            attributes = {name.decode(): base64.b64encode(value).decode() for name, value in entry.attributes.items()}
            facts["attributes"] = attributes
            if entry.same_file or path in further:
                facts["same file as"] = (entry.same_file or path).decode()
        found[path.decode("utf-8", "backslashreplace")] = facts
    return found


def test_golden(golden: Path) -> None:
    reader = Reader(golden, V1["passphrase"])
    snapshots = reader.snapshots()
    assert snapshots.keys() == {expected["id"] for expected in V1["snapshots"]}
    for expected in V1["snapshots"]:
        snapshot = snapshots[expected["id"]]
        for name in ("dataset", "tier", "reason", "files", "size", "added", "facts", "complete"):
            assert getattr(snapshot, name) == expected[name]
        assert (snapshot.run.hex(), snapshot.source) == (expected["run"], expected["kind"])
        assert f"{datetime.fromtimestamp(snapshot.time // 10**9, UTC):%Y-%m-%dT%H:%M:%SZ}" == expected["time"]
        said = [(finding["code"], finding["severity"]) for finding in expected["findings"]]
        assert [(finding.code, finding.severity) for finding in snapshot.findings] == said
        assert expected_form(reader.restore(expected["id"])) == expected["content"]
        findings: list[Any] = []
        list(reader.entries_of(expected["id"], findings))
        assert [(finding.code, finding.severity) for finding in findings] == said
    assert reader.ignored == []


def test_golden_replica(tmp_path: Path) -> None:
    with tarfile.open(GOLDEN / "v1-replica.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    replica = tmp_path / "v1-replica"
    first, second, third, _, fifth, last = (expected["id"] for expected in REPLICA["snapshots"])
    for passphrase in REPLICA["passphrases"]:
        reader = Reader(replica, passphrase)
        assert len(reader.readers) == len(reader.catalogue) == 3
        assert (reader.absent, reader.collected) == ({f"snapshots/{first}"}, {bytes.fromhex(fifth)})
        assert reader.gone == {first, fifth}
        assert {expected["id"] for expected in REPLICA["snapshots"] if expected["forgotten"]} == reader.gone
        fates = {name.partition("/")[2]: one.record for name, one in reader.stored.items() if "snapshots/" in name}
        aborted = {name for name, fate in fates.items() if getattr(fate, "outcome", None) == "abort"}  # what was read
        own = {path.name for path in (replica / "snapshots").iterdir()} - aborted
        assert len(own & {fifth, last}) == 2
        assert len(own) == 3  # the third is the carry
        said = {name: one.record for name, one in reader.stored.items() if name.startswith("marks/")}
        carried = sorted(one.kind for name, one in said.items() if not (replica / name).exists())
        assert carried == ["forget", "forget", "hold", "undo"]
        assert {one.transactions.hex() for one in said.values() if one.kind == "hold"} == {second}
        assert {one.transactions.hex() for one in said.values() if one.kind == "forget"} == {first, third, fifth}
        for expected in REPLICA["snapshots"]:
            if expected["id"] not in reader.gone:
                assert expected_form(reader.restore(expected["id"])) == expected["content"]
        assert (reader.ignored, reader.spoilt, reader.replaced) == ([], [], [])
    with pytest.raises(wire.Refused, match="no slot"):
        Reader(replica, REPLICA["old passphrase"])


# ---------------------------------------------------------------- fresh


def documents(root: Path) -> Path:
    noise = random.Random(1)
    (root / "a" / "b" / "c").mkdir(parents=True)
    (root / "a-folder").mkdir()
    (root / "empty").mkdir()
    (root / "a" / "large").write_bytes(noise.randbytes(5_000_000))
    (root / "a" / "b" / "text").write_bytes(b"Take one tablet daily.\n" * 40_000)
    (root / "a" / "b" / "c" / "ä – ü").write_bytes(b"")
    (root / "a-folder" / "large again").write_bytes((root / "a" / "large").read_bytes()[1_000_000:])
    for number in range(300):
        (root / "a-folder" / f"{number}").write_bytes(noise.randbytes(noise.randrange(3000)))
    (root / "link").symlink_to("a/large")
    os.link(root / "a" / "b" / "text", root / "z further name")
    with (root / "sparse").open("wb") as file:
        for offset in (0, 2**20, 3 * 2**20):
            file.seek(offset)
            file.write(noise.randbytes(8192))
        file.truncate(2**23)
    (root / "a-folder").chmod(0o711)
    os.utime(root / "a", ns=(1, -1_000_000_001))
    return root


def compare(root: Path, content: dict[bytes, Entry]) -> None:
    below = [os.fsencode(path.relative_to(root)) for path in root.rglob("*")]
    assert content.keys() - {b"."} == set(below)
    for path, entry in content.items():
        file = os.path.join(os.fsencode(root), path)
        status = os.lstat(file)
        have = (entry.mode, entry.mtime, entry.uid, entry.gid)
        assert have == (stat.S_IMODE(status.st_mode), status.st_mtime_ns, status.st_uid, status.st_gid), path
        if stat.S_ISREG(status.st_mode):
            assert entry.kind == wire.FILE
            assert entry.data() == Path(os.fsdecode(file)).read_bytes(), path
            if entry.same_file:
                assert os.path.samefile(file, os.path.join(os.fsencode(root), entry.same_file))
        elif stat.S_ISLNK(status.st_mode):
            assert (entry.kind, entry.target) == (wire.LINK, os.readlink(file))
        else:
            assert entry.kind == wire.FOLDER


@pytest.mark.skipif(sys.platform != "linux", reason="its names and holes are those of Linux")
def test_fresh(tmp_path: Path, cheap_kdf: None) -> None:
    root, database = documents(tmp_path / "documents"), tmp_path / "till.db"
    with sqlite3.connect(database) as connection:
        connection.execute("create table sales (id integer primary key, what text)")
        connection.executemany("insert into sales (what) values (?)", [(f"item {n}",) for n in range(5000)])
    connection.close()
    sources = [pb.Files(root), pb.SQLite(database)]
    with pb.Repository.create(tmp_path / "repository", pb.Passphrase(PASSPHRASE)) as repo:
        first = [result.snapshot for result in repo.backup(sources).datasets.values()]
        before = expected_form(Reader(tmp_path / "repository", PASSPHRASE).restore(first[0].id))
        (root / "a" / "large").write_bytes(b"changed" + (root / "a" / "large").read_bytes())
        (root / "a-folder" / "7").unlink()
        second = [result.snapshot for result in repo.backup(sources, reason="a day later").datasets.values()]
    reader = Reader(tmp_path / "repository", PASSPHRASE)
    assert set(reader.snapshots()) == {snapshot.id for snapshot in first + second}
    compare(root, reader.restore(second[0].id))
    assert expected_form(reader.restore(first[0].id)) == before
    (copy,) = reader.restore(second[1].id).values()
    (tmp_path / "restored.db").write_bytes(copy.data())
    with sqlite3.connect(tmp_path / "restored.db") as connection:
        assert connection.execute("select count(*), max(what) from sales").fetchone() == (5000, "item 999")
    connection.close()
    with pytest.raises(wire.Refused, match="no slot is of this credential"):
        Reader(tmp_path / "repository", PASSPHRASE + " ")
    for segment in (tmp_path / "repository" / "index").iterdir():  # whatever it says, packs say too
        segment.unlink()
    compare(root, Reader(tmp_path / "repository", PASSPHRASE).restore(second[0].id))


# ---------------------------------------------------------------- damaged


def read_all(root: Path) -> int:
    reader = Reader(root, V1["passphrase"])
    return sum(len(reader.restore(transaction)) for transaction in reader.snapshots())


@pytest.mark.parametrize("folder", ["packs", "index", "snapshots", "intents", "keys", "roster"])
def test_a_flipped_byte_is_refused(golden: Path, folder: str) -> None:
    assert read_all(golden) == 33
    choose = random.Random(folder)
    for path in sorted(path for path in (golden / folder).rglob("*") if path.is_file()):
        sound = path.read_bytes()
        for at in (0, 9, 40, 80, len(sound) - 1, *(choose.randrange(len(sound)) for _ in range(10))):
            damaged = bytearray(sound)
            damaged[at] ^= 1 << choose.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(wire.Refused):
                read_all(golden)
        path.write_bytes(sound[:-1])
        with pytest.raises(wire.Refused):
            read_all(golden)
        path.write_bytes(sound)
    assert read_all(golden) == 33


def _first(root: Path, folder: str) -> Path:
    return min(path for path in (root / folder).rglob("*") if path.is_file())


@pytest.mark.parametrize("folder", ["snapshots", "marks", "collections", "audit"])
def test_a_flipped_byte_in_a_replica_is_refused(tmp_path: Path, folder: str) -> None:
    with tarfile.open(GOLDEN / "v1-replica.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    choose = random.Random(folder)
    for path in sorted(path for path in (tmp_path / "v1-replica" / folder).rglob("*") if path.is_file()):
        sound = path.read_bytes()
        for at in (0, 5, 9, len(sound) - 1, *(choose.randrange(len(sound)) for _ in range(4))):
            path.write_bytes(sound[:at] + bytes([sound[at] ^ 1 << choose.randrange(8)]) + sound[at + 1 :])
            with pytest.raises(wire.Refused):
                Reader(tmp_path / "v1-replica", REPLICA["passphrases"][0])
        path.write_bytes(sound)


EDITS: dict[str, Callable[[Path], object]] = {
    "a missing pack": lambda root: _first(root, "packs").unlink(),
    "a missing keyring": lambda root: _first(root, "keys").unlink(),
    "a missing roster": lambda root: _first(root, "roster").unlink(),
    "a gap in the rosters": lambda root: _first(root, "roster").rename(root / "roster" / "1"),
    "a foreign file in roster": lambda root: (root / "roster" / "01").write_bytes(b"x"),
    "a fate of another name": lambda root: _first(root, "snapshots").rename(root / "snapshots" / ("0" * 32)),
    "a snapshot turned back": lambda root: (root / "snapshots" / V1["snapshots"][1]["id"]).unlink(),
    "a newer version": lambda root: (root / "repository").write_text('{"pharmabackup": 2}'),
    "another id": lambda root: (root / "repository").write_text(json.dumps({"pharmabackup": 1, "id": "0" * 64})),
}


@pytest.mark.parametrize("edit", EDITS)
def test_damage_is_refused(golden: Path, edit: str) -> None:
    EDITS[edit](golden)
    with pytest.raises(wire.Newer if edit == "a newer version" else wire.Refused):
        read_all(golden)


def test_foreign_files_are_ignored(golden: Path) -> None:
    (golden / "packs" / "thumbs.db").write_bytes(b"x")
    (golden / "intents" / "thumbs.db").write_bytes(b"x")
    (golden / "keys" / "thumbs.db").write_bytes(b"x")
    (golden / "roster" / "Thumbs.db").write_bytes(b"x")  # no object at all: names have no capitals
    (golden / ".uploads").mkdir(exist_ok=True)
    (golden / ".uploads" / "roster").write_bytes(b"x")
    reader = Reader(golden, V1["passphrase"])
    assert reader.ignored == ["intents/thumbs.db", "packs/thumbs.db"]  # those of keys were noted before, and cleared
    assert read_all(golden) == 33
