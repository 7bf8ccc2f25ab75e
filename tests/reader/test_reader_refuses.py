"""What the independent reader refuses although every hash is right: what a faulty writer could have written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest
from msgspec.structs import replace

import pharmabackup as pb
from pharmabackup import compression, ids
from pharmabackup.engine import enrolment
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.format.keys import Argon2id, Domain, Roster
from pharmabackup.format.transaction import Mark
from pharmabackup.format.wire import Kind
from tests.reader.reader import Reader
from tests.reader.wire import Refused

PASSPHRASE = "correct horse battery staple"
DAY = 86400
MakeRepo = Callable[[], pb.Repository]


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    root = tmp_path / "documents"
    root.mkdir()
    for number in range(3):
        (root / f"{number}").write_bytes(b"%d" % number * 3000)
    return root


def _folder(repo: pb.Repository) -> Path:
    return Path(repo._unlocked.storage.local_root() or "")


def _read(repo: pb.Repository) -> int:
    reader = Reader(_folder(repo), PASSPHRASE)
    return sum(len(reader.restore(transaction)) for transaction in reader.snapshots())


WRONG: dict[str, Callable[[bytes], bytes]] = {
    "swapped": lambda names: names[32:64] + names[:32] + names[64:],
    "one changed": lambda names: names[:-1] + bytes([names[-1] ^ 1]),
    "one too many": lambda names: names + bytes(32),
    "one too few": lambda names: names[:-32],
}


@pytest.mark.parametrize("case", [*WRONG, "of another kind", "as it should be"])
def test_a_list_of_names(make_repo: MakeRepo, documents: Path, case: str) -> None:
    repo, real = make_repo(), Unlocked.seal_body

    def seal(self: Unlocked, kind: Kind, body: bytes) -> bytes:
        if kind == Kind.NAMES and case in WRONG:
            body = WRONG[case](body)
        return real(self, Kind.DONE if kind == Kind.NAMES and case == "of another kind" else kind, body)

    with mock.patch.object(Unlocked, "seal_body", seal):
        repo.backup([pb.Files(documents)])
    if case == "as it should be":
        assert _read(repo) == 4
    else:
        with pytest.raises(Refused):
            _read(repo)


@pytest.mark.parametrize("checksum", [True, False])
def test_a_blocks_checksum(make_repo: MakeRepo, documents: Path, checksum: bool) -> None:
    repo, real = make_repo(), compression.compress

    def compress(data: bytes, level: int, **asked: bool) -> bytes:
        return real(data, level, checksum=checksum and bool(asked))

    with mock.patch.object(compression, "compress", compress):
        repo.backup([pb.Files(documents)])
    if checksum:
        assert _read(repo) == 4
    else:
        with pytest.raises(Refused, match="checksum"):
            _read(repo)


# ---------------------------------------------------------------- rosters that change what never changes

CHANGES: dict[str, Callable[[Roster], Roster]] = {
    "as it was": lambda old: old,
    "names": lambda old: replace(old, slots=tuple(replace(slot, name="another") for slot in old.slots)),
    "a domain more": lambda old: replace(old, domains=(*old.domains, Domain(b"x" * 16, "x"))),
    "a domain before": lambda old: replace(old, domains=(Domain(b"x" * 16, "x"), *old.domains)),
    "no domain": lambda old: replace(old, domains=()),
    "another role": lambda old: replace(old, slots=tuple(replace(slot, role="device") for slot in old.slots)),
    "a slot twice": lambda old: replace(old, slots=old.slots * 2),
    "a key that is stretched": lambda old: _one_more(old, credential="recipient"),
    "a passphrase that is not": lambda old: _one_more(old, argon2id=None),
    "a way to stretch that there is not": lambda old: _one_more(old, argon2id=Argon2id(bytes(16), 8, 1, 2)),
}


def _one_more(old: Roster, **facts: object) -> Roster:
    return replace(old, slots=(*old.slots, replace(old.slots[0], id=b"x" * 16, **facts)))


@pytest.mark.parametrize("case", CHANGES)
def test_what_changes_in_a_roster(make_repo: MakeRepo, documents: Path, case: str) -> None:
    repo = make_repo()
    repo.backup([pb.Files(documents)])
    if case in ("as it was", "names", "a domain more"):
        enrolment.change_roster(repo._unlocked, CHANGES[case])
        assert _read(repo) == 4
    else:
        with suppress(pb.Damaged), mock.patch.object(enrolment, "_check_whole"):  # which refuses some before
            enrolment.change_roster(repo._unlocked, CHANGES[case])
        assert (_folder(repo) / "roster" / "1").exists()
        with pytest.raises(Refused, match="roster/1"):
            _read(repo)


# ---------------------------------------------------------------- what counts, and when


def _mark(repo: pb.Repository, kind: str, transaction: str, days: float, about: bytes | None = None) -> bytes:
    """A mark that the storage says is so many days old; its id."""
    mark_id = ids.new_id()
    mark = Mark(kind, bytes.fromhex(transaction), 1, None, None, about)  # type: ignore[arg-type]
    repo._unlocked.put(Kind.MARK, ids.mark_name(mark_id), mark)
    then = time.time() - days * DAY
    os.utime(_folder(repo) / ids.mark_name(mark_id), (then, then))
    return mark_id


def _left(repo: pb.Repository) -> int:
    return len(Reader(_folder(repo), PASSPHRASE).snapshots())


def test_what_is_forgotten(make_repo: MakeRepo, documents: Path) -> None:
    """One slot is enough here, after 14 days by the storage's clock."""
    repo = make_repo()
    snapshot = repo.backup([pb.Files(documents)]).datasets["documents"].snapshot
    assert snapshot is not None
    _mark(repo, "forget", snapshot.id, 13)
    assert _left(repo) == 1
    _mark(repo, "forget", snapshot.id, 15, about=ids.new_id())  # seconds what is not here
    assert _left(repo) == 1
    first = _mark(repo, "forget", snapshot.id, 15)
    assert _left(repo) == 0
    _mark(repo, "undo", snapshot.id, 0.9, about=first)  # a day ago it began to count: this came too late
    assert _left(repo) == 0
    _mark(repo, "undo", snapshot.id, 1.1, about=first)
    assert _left(repo) == 1
    other = _mark(repo, "forget", "11" * 16, 15)
    _mark(repo, "forget", snapshot.id, 15, about=other)  # the first one does not list it
    assert _left(repo) == 1


def test_what_is_held(make_repo: MakeRepo, documents: Path) -> None:
    """A hold that comes when the forget counts already is too late, unless another goes on."""
    repo = make_repo()
    snapshot = repo.backup([pb.Files(documents)]).datasets["documents"].snapshot
    assert snapshot is not None
    _mark(repo, "forget", snapshot.id, 20)  # counts since six days
    _mark(repo, "hold", snapshot.id, 5.9)
    assert _left(repo) == 0
    first = _mark(repo, "hold", snapshot.id, 6.1)
    assert _left(repo) == 1
    _mark(repo, "release", snapshot.id, 3, about=first)
    assert _left(repo) == 1  # the other hold counts now, since it came while this one went on
    _mark(repo, "undo", snapshot.id, 3.5, about=first)  # of a hold: says nothing
    second = _mark(repo, "hold", snapshot.id, 2.9)
    assert _left(repo) == 1
    for mark in Reader(_folder(repo), PASSPHRASE).stored:
        if mark.startswith("marks/") and bytes.fromhex(mark[6:]) != second:
            _mark(repo, "release", snapshot.id, 3.2, about=bytes.fromhex(mark[6:]))
    assert _left(repo) == 0
