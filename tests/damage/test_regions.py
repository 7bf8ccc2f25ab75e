"""Each kind of object, damaged in each region of its bytes: the same comes back, or an error says what to do."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.engine.packs import directory_range, read_directory
from pharmabackup.format.wire import Kind
from tests.trees import describe

PASSPHRASE = pb.Passphrase("correct horse battery staple")
Tree = dict[bytes, tuple[object, ...]]
LOST_FILES = ("file-lost", "file-salvaged")


@dataclass
class Built:
    """A repository, what its snapshots hold, and one object of each kind with the offsets of its regions."""

    path: Path
    content: dict[str, Tree] = field(default_factory=dict)  # by snapshot
    objects: dict[str, str] = field(default_factory=dict)  # by kind
    regions: dict[str, dict[str, int]] = field(default_factory=dict)


SIGNED = {
    "magic": 0, "version": 4, "kind": 5, "reserved": 7, "key id begin": 8, "key id end": 39, "nonce begin": 40,
    "nonce end": 63, "ciphertext begin": 64, "ciphertext end": -17, "tag begin": -16, "tag end": -1,
}  # fmt: skip


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    base = tmp_path_factory.mktemp("regions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pharmabackup.crypto.passphrases.MEMORY_KIB", 64)
        patch.setattr("pharmabackup.crypto.passphrases.ITERATIONS", 1)
        patch.setattr("pharmabackup.engine.blocks.SEALERS", 1)  # so that blocks lie in one order: data come first
        yield _build(base)


def _build(base: Path) -> Built:
    made = Built(base / "repository")
    documents, database = base / "documents", base / "pmr.db"
    (documents / "folder").mkdir(parents=True)
    (documents / "folder" / "large").write_bytes(os.urandom(1_500_000))  # two blocks
    (documents / "text").write_bytes(b"line after line\n" * 2000)
    os.symlink("text", documents / "link")
    with closing(sqlite3.connect(database)) as db, db:
        db.execute("CREATE TABLE patient (id INTEGER PRIMARY KEY, name TEXT)")
        db.executemany("INSERT INTO patient (name) VALUES (?)", [(f"Test {i}" * 9,) for i in range(400)])
    with pb.Repository.create(made.path, PASSPHRASE, state_dir=base / "state") as repo:
        known = _names(made.path)
        made.objects["repository"] = "repository"
        made.objects["roster"] = "roster/0"
        (made.objects["keyring"],) = (name for name in known if name.startswith("keys/"))
        for turn in ("first", "second"):
            if turn == "second":
                (documents / "new").write_bytes(os.urandom(5000))
                with closing(sqlite3.connect(database)) as db, db:
                    db.execute("UPDATE patient SET name = 'changed' WHERE id = 7")
            for source in (pb.SQLite(database, tier=1), pb.Files(documents)):
                snapshot = repo.backup([source]).datasets[source.name].snapshot
                assert snapshot is not None
                made.content[snapshot.id] = describe(documents) if source.name == "documents" else _database(database)
                fresh, known = _names(made.path) - known, _names(made.path)
                if source.name == "documents":
                    for name in fresh:
                        made.objects[f"{KINDS[name.partition('/')[0]]} {turn}"] = name
        repo.check(read_data=1.0)
        (made.objects["mark"],) = _names(made.path) - known
        _find_regions(made, repo)
    return made


KINDS = {"packs": "pack", "index": "index", "intents": "intent", "snapshots": "snapshot"}


@pytest.fixture(scope="session")
def replica(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """What it was copied to: first the first snapshots, then the others."""
    base = tmp_path_factory.mktemp("replica")
    made = Built(base / "replica", dict(built.content))
    with (
        pb.Repository.open(built.path, PASSPHRASE, state_dir=base / "state") as one,
        pb.Repository.create(made.path, PASSPHRASE, state_dir=base / "state-2", replica_of=one) as two,
    ):
        oldest_first = one.snapshots()[::-1]
        for turn, chosen in (("first", oldest_first[:2]), ("second", oldest_first[2:])):
            known = _names(made.path)
            one.copy(two, snapshots=chosen)
            kind = f"carry {turn}"
            (made.objects[kind],) = (name for name in _names(made.path) - known if name.startswith("snapshots/"))
            middle = os.stat(_object(made, kind)).st_size // 2
            made.regions[kind] = dict(SIGNED) | {"ciphertext middle": middle}
    return made


def _find_regions(made: Built, repo: pb.Repository) -> None:
    for kind in made.objects:
        made.regions[kind] = dict(SIGNED) | {"ciphertext middle": os.stat(_object(made, kind)).st_size // 2}
    raw = _object(made, "repository").read_bytes()
    digit = next(at for at in range(raw.index(b'"id"') + 7, len(raw)) if raw[at : at + 1].isdigit())
    made.regions["repository"] = {
        "brace": 0, "version": raw.index(b": 1") + 2, "id": digit, "features": raw.index(b"[") + 1,
        "about": raw.index(b"sealed"), "member": raw.index(b'"id"') + 1,
    }  # fmt: skip
    raw = _object(made, "roster").read_bytes()
    made.regions["roster"] = {"magic": 0, "version": 4, "kind": 5, "reserved": 7, "record": 8, "length": 10,
        "content": 40, "slot": -85, "signature begin": -64, "signature end": -1}  # fmt: skip
    # header 8, array 1, bin 2, slot 16, number 1, bin 2, key id 32, bin 3, sealed
    made.regions["keyring"] = {"magic": 0, "version": 4, "kind": 5, "reserved": 7, "record": 8, "slot": 12,
        "key id": 40, "sealed length": 64, "encapsulated": 80, "ciphertext": 1300, "tag": -1}  # fmt: skip
    digest = bytes.fromhex(made.objects["pack first"].rpartition("/")[2])
    size = os.stat(_object(made, "pack first")).st_size
    directory = read_directory(repo._unlocked, digest, size)[1]
    start, length = directory_range(partial(repo._unlocked.storage.get_range, made.objects["pack first"]), size)
    names, filler = directory.region_size, directory.region_size + directory.names_size
    assert filler < start
    regions = {"filler begin": filler, "filler end": start - 1, "trailer length": size - 8,
        "trailer length high": size - 5, "trailer magic": size - 1}  # fmt: skip
    regions |= {f"names {name}": (names if at >= 0 else filler) + at for name, at in SIGNED.items()}
    regions |= {f"directory {name}": start + at if at >= 0 else start + length + at for name, at in SIGNED.items()}
    for block in reversed(directory.blocks):  # of several data blocks, the first
        name = Kind(block.kind).name.lower().replace("_", " ")
        regions |= {f"{name} nonce": block.offset, f"{name} begin": block.offset + 24,
            f"{name} middle": block.offset + block.length // 2,
            f"{name} tag": block.offset + block.length - 1}  # fmt: skip
    made.regions["pack first"] = regions


def _database(path: Path) -> Tree:
    """A database's bytes, without SQLite's own counters of its changes: copying it counts as one."""
    data = bytearray(path.read_bytes())
    data[24:28] = data[92:96] = bytes(4)
    return {os.fsencode(path.name): (bytes(data),)}


def _object(made: Built, kind: str) -> Path:
    return made.path / made.objects[kind]


def _names(path: Path) -> set[str]:
    """All but the audit log, which grows whatever is done."""
    names = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    return {name for name in names if not name.startswith("audit/")}


WHOLE: dict[str, Callable[[bytes], bytes | None]] = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "minus 1": lambda data: data[:-1],
    "plus 1": lambda data: data + b"x",
    "missing": lambda data: None,
}


def _damage(made: Built, kind: str, region: str, copy: Path) -> None:
    shutil.copytree(made.path, copy, dirs_exist_ok=True)
    path = copy / made.objects[kind]
    data = path.read_bytes()
    if region in WHOLE:
        changed = WHOLE[region](data)
    else:
        at = made.regions[kind][region] % len(data)
        changed = data[:at] + bytes((data[at] ^ 0x01,)) + data[at + 1 :]
    path.unlink()
    if changed is not None:
        path.write_bytes(changed)


def _state(path: Path) -> dict[str, tuple[bytes, int]]:
    return {name: ((path / name).read_bytes(), os.stat(path / name).st_mtime_ns) for name in _names(path)}


def _restored(made: Built, repo: pb.Repository, out: Path) -> str:
    """What came back, in one word. Asserts that it is what was backed up."""
    newest = {snapshot.dataset: snapshot.id for snapshot in reversed(repo.snapshots())}
    word, lost, gone = "same", set[bytes](), set[str]()
    try:
        report = repo.restore(out)
    except pb.Incomplete as error:
        report, word = error.result, "incomplete"
        lost = {os.fsencode(finding.subject) for finding in error.findings if finding.code in LOST_FILES}
        gone = {finding.subject for finding in error.findings if finding.code == "dataset-lost"}
        assert lost or gone
        assert error.remedy and all(finding.remedy for finding in error.findings)
        if gone:
            word = "others"
    for name, result in report.datasets.items():
        assert result.snapshot is not None and result.snapshot.id == newest[name]
        assert result.complete != (name in gone or (word == "incomplete" and name == "documents"))
        if name in gone:
            continue
        folder = out / name
        have = describe(folder) if name == "documents" else _database(folder / "pmr.db")
        want = made.content[result.snapshot.id]
        for path in want.keys() - lost:
            assert have[path] == want[path]
        have = {path: entry for path, entry in have.items() if not path.endswith(b".salvaged")}
        assert have.keys() <= want.keys() and (word == "incomplete" or have.keys() == want.keys())
    if word == "same" and set(newest.values()) != set(list(made.content)[-2:]):
        word = "older"
    return word


def _judge(made: Built, kind: str, region: str, tmp_path: Path, *, seen: bool) -> tuple[str, list[str]]:
    """(what a restore did, what a check found), both in the words of the tables below."""
    copy, state = tmp_path / "copy", tmp_path / "state"
    if seen:  # this machine has read the repository before it was damaged
        shutil.copytree(made.path, copy)
        with pb.Repository.open(copy, PASSPHRASE, state_dir=state) as repo:
            repo.snapshots()
    _damage(made, kind, region, copy)
    before = _state(copy)
    try:
        with pb.Repository.open(copy, PASSPHRASE, state_dir=state) as repo:
            word = _restored(made, repo, tmp_path / "out")
    except pb.Error as error:
        assert type(error) is not pb.Error and error.kind and error.message.endswith(".") and error.remedy
        word = f"{type(error).__name__} {error.kind}"
    after = _state(copy)
    assert before.items() <= after.items()
    assert {name.partition("/")[0] for name in after.keys() - before.keys()} <= {"intents", "snapshots"}  # its hold
    try:
        with pb.Repository.open(copy, PASSPHRASE, state_dir=state) as repo:
            report = repo.check(read_data=1.0)
    except pb.Error as error:
        return word, [f"{type(error).__name__} {error.kind}"]
    name = made.objects[kind]
    ours = {name: "it", name.rpartition("/")[2]: "it"}
    assert all(finding.message and finding.remedy for finding in report.findings)
    found = {(finding.code, finding.severity, finding.subject) for finding in report.findings}
    return word, sorted(
        f"{code} {severity} {ours.get(subject, _kind(made, subject))}" for code, severity, subject in found
    )


def _kind(made: Built, subject: str) -> str:
    """What a finding is about: an object of ours, or a snapshot of a dataset."""
    for kind, name in made.objects.items():
        if subject in (name, name.rpartition("/")[2]):
            return kind
    if subject.startswith("snapshots/") and subject.rpartition("/")[2] in made.content:
        return "what it brought"
    return "snapshot of pmr" if subject in made.content else subject


# What is expected of each: what a restore did, and what a check found ("it" is the damaged object).
PACK_BLOCKS = [
    f"{kind} block {part}" for kind in ("manifest", "recipe") for part in ("nonce", "begin", "middle", "tag")
]
DATA_BLOCK = [f"data block {part}" for part in ("nonce", "begin", "middle", "tag")]
OUTSIDE_BLOCKS = ["filler begin", "filler end", "trailer length", "trailer length high", "trailer magic"]
SEALED = [*SIGNED, "ciphertext middle"]
CHANGED = ["empty", "half", "minus 1", "plus 1"]
FIRST, SECOND = "snapshot-damaged critical snapshot first", "snapshot-damaged critical snapshot second"
HURT = "pack-damaged critical it"
REFUSED, LOST, IT = ["Damaged format"], ["pack-missing critical it"], ["snapshot-damaged critical it"]
FORKED = ["history-forked critical it"]

Row = tuple[str, list[str], str, list[str]]
TABLE: list[Row] = [
    ("repository", ["brace", "version", "id", "features", "member", "empty", "half", "plus 1"], REFUSED[0], REFUSED),
    ("repository", ["about", "minus 1"], "same", []),  # a sentence for people, and the last line's end
    ("repository", ["missing"], "Damaged repository-record-missing", ["Damaged repository-record-missing"]),
    ("roster", ["magic", "version", "kind", "reserved", "record", "length", "content", "slot", "signature begin",
        "signature end", *CHANGED], REFUSED[0], REFUSED),
    ("roster", ["missing"], "Damaged roster-missing", ["Damaged roster-missing"]),
    ("keyring", ["magic", "version", "kind", "reserved", "record", "slot", "sealed length", "encapsulated",
        "ciphertext", "tag", *CHANGED], REFUSED[0], REFUSED),
    ("keyring", ["key id", "missing"], "Damaged keys-missing", ["Damaged keys-missing"]),  # no wrong passphrase
    ("pack first", OUTSIDE_BLOCKS + [f"{part} {name}" for part in ("names", "directory") for name in SIGNED],
        "same", [HURT]),
    ("pack first", PACK_BLOCKS, "same", [HURT, FIRST]),  # the second snapshot has its own
    ("pack first", DATA_BLOCK, "incomplete", [HURT]),
    ("pack first", ["empty", "half"], "incomplete", [HURT, FIRST, SECOND]),
    ("pack first", ["minus 1", "plus 1"], "same", [HURT, FIRST, SECOND]),
    ("pack first", ["missing"], "incomplete", [*LOST, FIRST, SECOND]),
    ("pack second", ["empty", "half"], "others", [HURT, SECOND]),
    ("pack second", ["minus 1", "plus 1"], "same", [HURT, SECOND]),
    ("pack second", ["missing"], "others", [*LOST, SECOND]),
    ("index first", SEALED + CHANGED, "same",  # what it said stands in the packs
        ["index-damaged critical it", "index-missing warning index", "pack-unindexed info pack first"]),
    ("intent first", [*SEALED, *CHANGED], "same", ["intent-damaged warning it"]),
    ("intent first", ["missing"], "same", []),  # its transaction is decided
    ("snapshot first", SEALED + CHANGED, "same", IT),
    ("snapshot second", SEALED + CHANGED, "older", IT),
    ("snapshot second", ["missing"], "older", []),  # nothing that is left names the newest
    ("mark", SEALED + CHANGED, "same", ["mark-damaged critical it"]),
    ("mark", ["missing"], "same", []),
]  # fmt: skip
BROUGHT = "history-forked critical what it brought"
CARRIED: list[Row] = [
    ("carry first", SEALED + CHANGED, "same", IT),  # what the other brought names it: damaged, not missing
    ("carry first", ["missing"], "Damaged history-forked", [BROUGHT]),
    ("carry second", SEALED + CHANGED, "older", IT),
    ("carry second", ["missing"], "older", []),
]
CARRIED_SEEN: list[Row] = [
    ("carry first", ["missing"], "Damaged history-forked", FORKED),
    ("carry second", ["missing"], "Damaged history-forked", FORKED),
]
SEEN: list[Row] = [
    ("snapshot first", ["missing"], "Damaged history-forked", FORKED),
    ("snapshot second", ["missing"], "Damaged history-forked", FORKED),
    ("mark", ["missing"], "Damaged history-forked", FORKED),
    ("pack first", ["missing"], "incomplete", [*LOST, FIRST, SECOND]),
    ("keyring", ["missing"], "Damaged keys-missing", ["Damaged keys-missing"]),
]


def _cases(table: list[Row]) -> list[object]:
    return [
        pytest.param(kind, region, word, found, id=f"{kind}, {region}")
        for kind, regions, word, found in table
        for region in regions
    ]


@pytest.mark.parametrize(("kind", "region", "word", "found"), _cases(TABLE))
def test_damage(built: Built, tmp_path: Path, kind: str, region: str, word: str, found: list[str]) -> None:
    assert _judge(built, kind, region, tmp_path, seen=False) == (word, found)


@pytest.mark.parametrize(("kind", "region", "word", "found"), _cases(SEEN))
def test_damage_after_this_machine_has_seen_it(
    built: Built, tmp_path: Path, kind: str, region: str, word: str, found: list[str]
) -> None:
    assert _judge(built, kind, region, tmp_path, seen=True) == (word, found)


@pytest.mark.parametrize(("kind", "region", "word", "found"), _cases(CARRIED))
def test_damage_of_what_a_copy_brought(
    replica: Built, tmp_path: Path, kind: str, region: str, word: str, found: list[str]
) -> None:
    assert _judge(replica, kind, region, tmp_path, seen=False) == (word, found)


@pytest.mark.parametrize(("kind", "region", "word", "found"), _cases(CARRIED_SEEN))
def test_damage_of_what_a_copy_brought_after_this_machine_has_seen_it(
    replica: Built, tmp_path: Path, kind: str, region: str, word: str, found: list[str]
) -> None:
    assert _judge(replica, kind, region, tmp_path, seen=True) == (word, found)


@pytest.mark.parametrize("region", ["ciphertext middle", "half"])
@pytest.mark.parametrize("kind", ["snapshot first", "snapshot second", "mark"])
def test_a_check_reads_what_storage_holds_now(built: Built, tmp_path: Path, kind: str, region: str) -> None:
    assert _judge(built, kind, region, tmp_path, seen=True)[1] == [f"{kind.split()[0]}-damaged critical it"]


def test_a_missing_snapshot_that_another_names(built: Built, tmp_path: Path) -> None:
    _, found = _judge(built, "snapshot first", "missing", tmp_path, seen=False)
    assert [finding for finding in found if finding.startswith("history-forked critical")]


def test_a_missing_index_segment_is_not_harmless(built: Built, tmp_path: Path) -> None:
    word, found = _judge(built, "index first", "missing", tmp_path, seen=False)
    assert word == "same" or [finding for finding in found if " critical " in finding]
