"""What stands in a storage's objects and names for anybody to read, and in its log for the least of roles: as
docs/security.md says, and no more."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup.engine.historyreader import load_history
from pharmabackup.engine.index import Index
from pharmabackup.format import wire
from pharmabackup.format.keys import SealedKeyring
from pharmabackup.format.wire import Kind
from tests.verbs.site import PASSPHRASE, Site
from tests.verbs.staff import Staff

MakeRepo = Callable[[], pb.Repository]
HEADER, KEY_ID, NONCE, TAG, ENCAPSULATED = 8, 32, 24, 16, 1088 + 32
CLEAR = {
    "the till by the door": "roster",
    "the branch": "roster",
    "scans of prescriptions": "roster",  # a pattern of a rule
    "left in a taxi": "roster",  # why it was revoked
    "device": "roster",
}
SEALED = ("documents", "an allergy", "a letter", "before the audit", "a dispute", "not needed")


def test_what_stands_in_clear(make_repo: MakeRepo, site: Site, tmp_path: Path) -> None:
    repo = make_repo()
    key = pb.KeyFile.create(tmp_path / "k")
    repo.enrol("device", key.recipient, name="the till by the door", domain="the branch")
    repo.configure(keep={"scans of prescriptions": pb.Keep(last=3)})
    site.change()
    (site.root / "a letter").write_text("an allergy " * 5000)
    for _ in range(2):
        site.change()
        repo.backup([pb.Files(site.root)], reason="before the audit")
    repo.hold(repo.snapshots()[0], reason="a dispute")
    repo.apply(repo.propose_forget(snapshots=[repo.snapshots()[1]]))
    repo.revoke("the till by the door", reason="left in a taxi")
    root = Path(repo.url)
    objects = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    def where(word: str) -> set[str]:
        return {name.partition("/")[0] for name, data in objects.items() if word.encode() in data or word in name}

    assert {word: where(word) for word in CLEAR} == {word: {folder} for word, folder in CLEAR.items()}
    assert {word: where(word) for word in SEALED} == {word: set() for word in SEALED}
    count = sum(name.startswith("snapshots/") for name in objects)
    assert count == len(load_history(repo._unlocked).decided)  # anybody can count them


def test_what_a_device_of_another_domain_reads_of_the_log_and_how_long_it_holds(
    staff: Staff, site: Site, tmp_path: Path
) -> None:
    """Who, and what he typed as his reason; and it may hold what it cannot read, without an end."""
    till = staff.enrol("device", "till", domain="branch")
    with pb.Repository.open(
        staff.repo.url, PASSPHRASE, actor="Sam Okafor", reason="a letter to Mrs Smith", state_dir=tmp_path / "his"
    ) as his:
        his.restore(tmp_path / "out")
        his.hold(his.snapshot(), reason="Mrs Smith's claim")
    read = {(record.event, record.slot, record.actor, record.reason) for record in till.audit()}
    assert read >= {
        ("restore", "owner", "Sam Okafor", "a letter to Mrs Smith"),
        ("hold", "owner", "Sam Okafor", "Mrs Smith's claim"),
    }
    assert {record.id for record in till.audit()} == {record.id for record in staff.repo.audit()}
    staff.repo.release(staff.repo.snapshot(), reason="settled")
    site.change()
    site.back_up(staff.repo)
    older = staff.repo.snapshots()[1]
    assert [it.id for it in staff.repo.propose_forget({"*": pb.Keep(last=1)}).snapshots] == [older.id]
    till.hold(till.snapshots()[1], reason="for ever")
    with pytest.raises(pb.NotPermitted):
        till.snapshots()[1].open("a")
    assert staff.repo.propose_forget({"*": pb.Keep(last=1)}).snapshots == ()


def test_what_a_backup_writes_in_which_nothing_changed(make_repo: MakeRepo, site: Site, tmp_path: Path) -> None:
    """No pack. Where a time alone is another one, a pack with names and times, and nothing of what is in the file."""
    repo, known = make_repo(), set[Path]()
    site.change()
    with closing(sqlite3.connect(tmp_path / "pmr.db")) as db, db:
        db.execute("CREATE TABLE patient (id)")

    def written() -> dict[str, list[int]]:
        repo.backup([pb.Files(site.root), pb.SQLite(tmp_path / "pmr.db")])
        found = {
            path for path in Path(repo.url).rglob("*") if path.is_file() and ".uploads" not in path.parts
        } - known
        known.update(found)
        folders: dict[str, list[int]] = {}
        for path in found:
            folders.setdefault(path.relative_to(repo.url).parts[0], []).append(path.stat().st_size)
        return folders

    written()
    for _ in range(3):
        new = written()
        assert {name: len(sizes) for name, sizes in new.items()} == {"snapshots": 2, "intents": 2, "audit": 1}
        assert 2000 < sum(map(sum, new.values())) < 2300
    os.utime(site.root / "a", (1, 1))
    before = _kinds(repo)
    new = written()
    assert (len(new["packs"]), len(new["index"])) == (1, 1) and sum(map(sum, new.values())) < 7000
    assert _kinds(repo) - before == {Kind.MANIFEST_BLOCK: 1}


def _kinds(repo: pb.Repository) -> Counter[Kind]:
    index = Index(repo._unlocked, chunks=False)
    index.load()
    try:
        return Counter(map(Kind, index.blocks.kind))
    finally:
        index.close()


@pytest.mark.parametrize("extra", [1, 900, 20_000])
def test_sizes_are_padded(make_repo: MakeRepo, tmp_path: Path, extra: int) -> None:
    """Packs, records and keyrings: a length has no more digits that matter than Padmé leaves."""
    repo = make_repo()
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a").write_bytes(os.urandom(300_000 + extra))
    repo.backup([pb.Files(tmp_path / "documents")], reason="x" * (extra % 777))
    repo.hold(repo.snapshot(), reason="y" * (extra % 555))
    repo.enrol("device", pb.KeyFile.create(tmp_path / "key").recipient, name="till")
    repo.rotate(reason="somebody left")
    padded: dict[str, list[int]] = {}
    for path in Path(repo.url).rglob("*"):
        folder = path.relative_to(repo.url).parts[0]
        if path.is_file() and folder not in ("roster", "repository", ".uploads"):  # in clear, and the adapter's own
            padded.setdefault(folder, []).append(_padded(folder, path.read_bytes()))
    assert padded.keys() >= {"packs", "keys", "snapshots", "index", "intents", "marks", "audit"}
    assert len(set(padded["keys"])) > 1
    for size in (size for sizes in padded.values() for size in sizes):
        # Nikitin et al., Reducing Metadata Leakage from Encrypted Files (2019), algorithm 1
        exponent = size.bit_length() - 1
        assert size % (1 << exponent - exponent.bit_length()) == 0


def _padded(folder: str, data: bytes) -> int:
    """How much of an object was padded before it was sealed: of a pack all."""
    if folder == "packs":
        return len(data)
    if folder == "keys":
        return len(wire.decode(data[HEADER:], SealedKeyring).sealed) - ENCAPSULATED - TAG
    return len(data) - HEADER - KEY_ID - NONCE - TAG
