"""What a signature, a key or a number proves, and what it does not: beyond damage, what another role could write."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import msgspec
import pytest
from blake3 import blake3
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup import compression, ids
from pharmabackup.crypto import signatures
from pharmabackup.engine import keyrings, roster
from pharmabackup.engine.blocks import open_block
from pharmabackup.engine.grants import READERS
from pharmabackup.engine.index import Index
from pharmabackup.engine.segments import read_segment
from pharmabackup.engine.transaction import Transaction
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.format import keys, wire
from pharmabackup.format import pack as layout
from pharmabackup.format.transaction import Fate, Mark
from pharmabackup.format.wire import Kind
from pharmabackup.storage.base import ObjectInfo

MakeRepo = Callable[[], pb.Repository]


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Two files, and then copies of the first."""
    root, noise = tmp_path / "documents", random.Random(1)
    root.mkdir()
    (root / "a").write_bytes(noise.randbytes(9000))
    (root / "b").write_bytes(noise.randbytes(9000))
    for name in "cdefgh":
        (root / name).write_bytes((root / "a").read_bytes())
    return root


def _back_up(repo: pb.Repository, root: Path) -> pb.Snapshot:
    snapshot = repo.backup([pb.Files(root)]).datasets["documents"].snapshot
    assert snapshot is not None
    return snapshot


def _codes(report: pb.Report) -> set[str]:
    return {found.code for found in report.findings} - {"same-device"}


def _folder(repo: pb.Repository) -> Path:
    return Path(repo._unlocked.storage.local_root() or "")


# ---------------------------------------------------------------- recipes


def _back_up_loosely(repo: pb.Repository, root: Path) -> None:
    """So that another recipe has room where this one lies."""
    with mock.patch("pharmabackup.engine.pieces.FILES_LEVEL", -100):
        _back_up(repo, root)


def _replace_recipe(repo: pb.Repository, change: Callable[[bytes], bytes]) -> None:
    """What any holder of the catalogue's key could do who may write to the storage: another recipe, the same id."""
    unlocked = repo._unlocked
    index = Index(unlocked, chunks=False)
    index.load()
    table = index.blocks
    (number,) = (number for number, kind in enumerate(table.kind) if kind == Kind.RECIPE_BLOCK)
    key, key_id, block_id = unlocked.catalogue_key, unlocked.catalogue_id, table.ids[number]
    path = _folder(repo) / ids.pack_name(table.packs[table.pack[number]])
    data, start, length = bytearray(path.read_bytes()), table.offset[number], table.length[number]
    sealed = bytes(data[start : start + length])
    content = open_block(unlocked, sealed, kind=Kind.RECIPE_BLOCK, block_id=block_id, key=key, key_id=key_id)
    frame = compression.compress(change(content), 19, checksum=True).ljust(length - 40, b"\0")
    context = wire.block_context(unlocked.repository, Kind.RECIPE_BLOCK, key_id, block_id)
    data[start : start + length] = key.seal(frame, context)
    assert len(data) == path.stat().st_size
    path.write_bytes(data)
    index.close()


def test_a_recipe_that_another_role_wrote_is_refused(make_repo: MakeRepo, documents: Path, tmp_path: Path) -> None:
    repo = make_repo()
    _back_up_loosely(repo, documents)
    runs = (7).to_bytes(4, "little") + bytes(4 * 7) + bytes(4 * 7)  # n, blocks, first ordinals
    _replace_recipe(repo, lambda content: content.replace(runs, runs[:-4] + b"\1\0\0\0"))  # h becomes what b is
    with pytest.raises(pb.Damaged, match="its chunks are not those"):
        repo.restore(tmp_path / "out")
    assert _codes(repo.check()) == {"snapshot-damaged"}


def test_a_recipe_that_was_sealed_again_as_it_was_is_good(
    make_repo: MakeRepo, documents: Path, tmp_path: Path
) -> None:
    repo = make_repo()
    _back_up_loosely(repo, documents)
    _replace_recipe(repo, lambda content: content)
    repo.restore(tmp_path / "out")
    assert (tmp_path / "out" / "documents" / "h").read_bytes() == (documents / "a").read_bytes()


# ---------------------------------------------------------------- segments


@pytest.mark.parametrize("whose", ["own", "another's", "an owner's"])
def test_a_device_cannot_say_where_others_blocks_lie(make_repo: MakeRepo, documents: Path, whose: str) -> None:
    repo = make_repo()
    _back_up(repo, documents)
    unlocked = repo._unlocked
    (info,) = unlocked.storage.list("index")
    digest = ids.hex_tail(info.name) or b""
    found = read_segment(unlocked, digest)
    domains = {"own": unlocked.domain, "another's": ids.new_id(), "an owner's": None}
    role = "owner" if whose == "an owner's" else "device"
    slot = replace(found.slot, role=role, domain=domains[whose])
    index = Index(unlocked)
    index.add_segment(digest, dataclasses.replace(found, slot=slot))
    assert len(index.blocks.packs) == (0 if whose == "another's" else 1)


# ---------------------------------------------------------------- history


def test_a_head_with_another_hash_is_a_forked_history(make_repo: MakeRepo, documents: Path) -> None:
    repo = make_repo()
    first = _back_up(repo, documents)
    _back_up(repo, documents)
    assert _codes(repo.check()) == set()
    unlocked, name = repo._unlocked, ids.fate_name(bytes.fromhex(first.id))
    fate = unlocked.get(Kind.FATE, name, Fate).record
    assert fate.snapshot is not None
    (_folder(repo) / name).unlink()
    unlocked.put(Kind.FATE, name, replace(fate, snapshot=replace(fate.snapshot, reason="another")))
    report = repo.check()
    assert [(found.code, found.subject) for found in report.findings] == [("history-forked", name)]


def test_time_does_not_go_back_when_a_clock_does(make_repo: MakeRepo, documents: Path) -> None:
    repo = make_repo()
    first = _back_up(repo, documents)
    real = Transaction.pin

    def pin(self: Transaction, *args: object) -> tuple[ObjectInfo, bytes]:
        info, digest = real(self, *args)  # type: ignore[arg-type]
        return dataclasses.replace(info, modified=info.modified - 3600 * 10**9), digest

    with mock.patch.object(Transaction, "pin", pin):
        second = _back_up(repo, documents)
    assert second.time == first.time
    assert repo.snapshot().id == second.id


@pytest.mark.parametrize("role", ["device", "restorer", "auditor", "maintainer", "owner"])
def test_who_verified_a_snapshot(make_repo: MakeRepo, documents: Path, role: str) -> None:
    repo = make_repo()
    snapshot = _back_up(repo, documents)
    mark = Mark("verified", bytes.fromhex(snapshot.id), 1, None, None, None)
    repo._unlocked.put(Kind.MARK, ids.mark_name(ids.new_id()), mark)
    real = Unlocked._signer

    def signer(self: Unlocked, kind: Kind, signed: wire.Signed) -> keys.Slot:
        slot = real(self, kind, signed)
        return replace(slot, role=role) if kind == Kind.MARK else slot

    with mock.patch.object(Unlocked, "_signer", signer):
        assert _codes(repo.check()) == set()
        assert (repo.snapshot().verified is not None) == (role in READERS)


# ---------------------------------------------------------------- rosters


def _add_roster(repo: pb.Repository, *, features: list[str], more: list[object]) -> None:
    """The next roster as its owner would sign it, with fields that this version may not know."""
    unlocked = repo._unlocked
    assert unlocked.keyring.signing is not None
    fields = msgspec.msgpack.decode(wire.encode(unlocked.roster))
    content = msgspec.msgpack.encode([1, unlocked.roster_hash, fields[2], features, *fields[4:], *more])
    message = roster.roster_message(unlocked.repository, 1, unlocked.keyring.slot, unlocked.roster_hash, content)
    signature = signatures.SigningKey(unlocked.keyring.signing).sign(message)
    stored = wire.encode(keys.SignedRoster(content, unlocked.keyring.slot, signature))
    unlocked.storage.put_new("roster/1", wire.header(Kind.ROSTER) + stored)


@pytest.mark.parametrize("more", [[], ["of a later version"]], ids=["known fields", "one more field"])
def test_a_roster_with_an_unknown_feature_is_newer_and_not_damaged(make_repo: MakeRepo, more: list[object]) -> None:
    repo = make_repo()
    _add_roster(repo, features=["erasure-code"], more=more)
    with pytest.raises(pb.Unsupported) as caught:
        roster.read_rosters(repo._unlocked.storage, repo._unlocked.repository)
    assert caught.value.kind == "format-newer"


def test_a_roster_with_one_more_field_and_no_feature_is_damaged(make_repo: MakeRepo) -> None:
    repo = make_repo()
    _add_roster(repo, features=[], more=["of a later version"])
    with pytest.raises(pb.Damaged):
        roster.read_rosters(repo._unlocked.storage, repo._unlocked.repository)


def test_a_roster_that_follows_is_taken(make_repo: MakeRepo) -> None:
    repo = make_repo()
    _add_roster(repo, features=[], more=[])
    assert roster.read_rosters(repo._unlocked.storage, repo._unlocked.repository).newest.number == 1


@pytest.mark.parametrize("name", ["roster/01", "roster/00", "roster/1x", "roster/1000000000000000000"])
def test_a_number_has_one_spelling(name: str) -> None:
    assert [keyrings.numbered(f"roster/{number}") for number in ("0", "7", "10", "9" * 18)] == [0, 7, 10, 10**18 - 1]
    with pytest.raises(pb.Damaged):
        keyrings.numbered(name)


# ---------------------------------------------------------------- blocks' ids


def test_a_blocks_id_is_that_of_its_names(make_repo: MakeRepo, documents: Path) -> None:
    """Written out as docs/format.md has it: what a collector verifies before it takes names over."""
    repo = make_repo()
    _back_up(repo, documents)
    unlocked = repo._unlocked
    (pack,) = (path for path in (_folder(repo) / "packs").rglob("*") if path.is_file())
    data = pack.read_bytes()
    assert hashlib.sha256(data).hexdigest() == pack.name
    (info,) = unlocked.storage.list("index")
    (entry,) = read_segment(unlocked, ids.hex_tail(info.name) or b"").record.packs
    directory = wire.decode(wire.decode(entry.directory, wire.Signed).content, layout.Directory)
    section = data[directory.region_size :][: directory.names_size]
    assert section[:8] == b"PHBK\1\x0a\0\0"
    context = b"pharmabackup/1" + unlocked.repository + b"\x0a" + section[8:40]
    names = unlocked.catalogue_key.open(section[40:], context)
    for block in directory.blocks:
        own, names = names[: 32 * block.count], names[32 * block.count :]
        assert blake3(bytes([block.kind]) + own, key=unlocked.keyring.block_names).digest() == block.id
    assert names == b""
