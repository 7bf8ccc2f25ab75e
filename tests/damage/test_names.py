"""Lists of chunks' names in packs: who needs them, and what becomes of a pack whose list is not what it has to be."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import msgspec
import pytest

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.engine import index, packs
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.format.pack import Directory
from pharmabackup.format.transaction import Intent
from pharmabackup.format.wire import Kind
from tests.trees import describe

PASSPHRASE = pb.Passphrase("correct horse battery staple")
SIZE = 40 * 50_000


@dataclass
class Place:
    """A repository with one snapshot of `documents`, this machine's caches, and the only pack."""

    path: Path
    documents: Path
    state: Path

    def open(self) -> pb.Repository:
        return pb.Repository.open(self.path, PASSPHRASE, state_dir=self.state)

    def pack(self) -> Path:
        (found,) = (path for path in (self.path / "packs").rglob("*") if path.is_file())
        return found

    def directory(self) -> Directory:
        digest = bytes.fromhex(self.pack().name)
        with self.open() as repo:
            return packs.read_directory(repo._unlocked, digest, self.pack().stat().st_size)[1]

    def flip(self, at: int) -> None:
        """One bit in the list of names."""
        data, start = bytearray(self.pack().read_bytes()), self.directory().region_size
        data[start + at] ^= 1
        self.pack().write_bytes(data)

    def back_up(self) -> pb.Report:
        with self.open() as repo:
            return repo.backup([pb.Files(self.documents)])


@pytest.fixture
def place(tmp_path: Path, cheap_kdf: None) -> Place:
    made = Place(tmp_path / "repository", tmp_path / "documents", tmp_path / "state")
    noise = random.Random(1)
    made.documents.mkdir()
    for number in range(40):
        (made.documents / f"{number}").write_bytes(noise.randbytes(SIZE // 40))
    pb.Repository.create(made.path, PASSPHRASE, state_dir=made.state).close()
    return made


def _added(report: pb.Report) -> int:
    return report.datasets["documents"].added


def _codes(report: pb.Report) -> list[tuple[str, str]]:
    """Without what is said of every repository on the disk that it backs up, and of who signs no audit records."""
    said = ("same-device", "audit-queued")
    return [(found.code, found.severity) for found in report.findings if found.code not in said]


# ---------------------------------------------------------------- writers


@contextmanager
def _names_read() -> Iterator[Callable[[], int]]:
    """How many packs' names were read to look chunks up."""
    with mock.patch.object(index, "names_in_lanes", wraps=index.names_in_lanes) as read:
        yield lambda: sum(len(call.args[1]) for call in read.call_args_list)


def test_a_machine_without_caches_finds_everything_by_the_names_in_packs(place: Place) -> None:
    assert _added(place.back_up()) > SIZE
    shutil.rmtree(place.state)
    with _names_read() as read:
        report = place.back_up()
    assert read() == 1
    assert _codes(report) == []
    assert _added(report) < 16_384


def test_names_are_read_when_one_is_looked_up_and_not_before(place: Place, tmp_path: Path) -> None:
    place.back_up()
    (place.documents / "0").touch()
    with _names_read() as read:
        with place.open() as repo:
            repo.restore(tmp_path / "out")
            repo.check()
        assert read() == 0
        assert _codes(place.back_up()) == []
        assert read() == 1


@pytest.mark.parametrize("at", [0, 6, 20, 50, 100, -1], ids=lambda at: f"byte {at}")
def test_a_backup_does_not_rely_on_a_pack_whose_names_are_damaged(place: Place, tmp_path: Path, at: int) -> None:
    place.back_up()
    damaged = place.pack()
    place.flip(at % place.directory().names_size)
    shutil.rmtree(place.state)
    report = place.back_up()
    assert _codes(report) == [("pack-damaged", "warning")]
    assert _added(report) > SIZE
    snapshot = report.datasets["documents"].snapshot
    assert snapshot is not None and snapshot.complete
    with place.open() as repo:
        name = ids.intent_name(bytes.fromhex(snapshot.id), 0)
        pinned = repo._unlocked.get(Kind.INTENT, name, Intent).record.packs
        assert bytes.fromhex(damaged.name) not in {pinned[i : i + 32] for i in range(0, len(pinned), 32)}
    damaged.unlink()
    with place.open() as repo:
        repo.restore(tmp_path / "out", snapshots=[repo.snapshot(id=snapshot.id)])
    assert describe(tmp_path / "out" / "documents") == describe(place.documents)


@pytest.mark.parametrize("honest", [True, False])
def test_a_signed_directory_proves_nothing_about_blocks_before_it(place: Place, honest: bool) -> None:
    """A pack that no segment names: its own name is right, its directory is signed, but for other blocks."""
    place.back_up()
    pack, directory = place.pack(), place.directory()
    data = bytearray(pack.read_bytes())
    if not honest:
        data[5000] ^= 1
        assert directory.region_size > 5000
    pack.unlink()
    digest = hashlib.sha256(data).digest()
    (place.path / ids.pack_name(digest)).parent.mkdir(exist_ok=True)
    (place.path / ids.pack_name(digest)).write_bytes(data)
    for segment in (place.path / "index").iterdir():
        segment.unlink()
    shutil.rmtree(place.state)
    report = place.back_up()
    assert _codes(report) == ([] if honest else [("pack-damaged", "warning")])
    assert (_added(report) < 16_384) == honest


# ---------------------------------------------------------------- lists that a writer made wrong

WRONG: dict[str, Callable[[bytes], bytes]] = {
    "swapped": lambda names: names[32:64] + names[:32] + names[64:],
    "one changed": lambda names: bytes([names[0] ^ 1]) + names[1:],
    "one too many": lambda names: names + bytes(32),
    "one too few": lambda names: names[:-32],
    "none": lambda names: b"",
}


def _with_names(place: Place, change: Callable[[bytes], bytes], kind: Kind = Kind.NAMES) -> pb.Report:
    """Back up, and write another list of names than the blocks have: the pack's own hash is right."""
    real = Unlocked.seal_body

    def seal(self: Unlocked, sealed_as: Kind, body: bytes) -> bytes:
        return real(self, kind, change(body)) if sealed_as == Kind.NAMES else real(self, sealed_as, body)

    with mock.patch.object(Unlocked, "seal_body", seal):
        return place.back_up()


def _as_auditor(unlocked: Unlocked) -> None:
    """Whoever holds no key that opens data."""
    unlocked.keyring = msgspec.structs.replace(unlocked.keyring, readers=(), signing=None)


@pytest.mark.parametrize("auditor", [False, True], ids=["with a reader's key", "without"])
@pytest.mark.parametrize("wrong", [*WRONG, "of another kind"])
def test_check_finds_a_wrong_list(place: Place, tmp_path: Path, wrong: str, auditor: bool) -> None:
    if wrong == "of another kind":
        _with_names(place, bytes, Kind.DONE)
    else:
        _with_names(place, WRONG[wrong])
    with place.open() as repo:
        if auditor:
            _as_auditor(repo._unlocked)
        report = repo.check(read_data=1.0)
    (finding,) = [found for found in report.findings if found.code != "audit-queued"]
    assert (finding.code, finding.severity) == ("pack-damaged", "critical")
    assert finding.subject.endswith(place.pack().name)
    shutil.rmtree(place.state)
    with place.open() as repo:  # who reads needs no names
        repo.restore(tmp_path / "out")
    assert describe(tmp_path / "out" / "documents") == describe(place.documents)
    assert _codes(place.back_up()) == [("pack-damaged", "warning")]


@pytest.mark.parametrize("auditor", [False, True], ids=["with a reader's key", "without"])
def test_check_finds_a_flipped_list(place: Place, auditor: bool) -> None:
    place.back_up()
    place.flip(70)
    with place.open() as repo:
        if auditor:
            _as_auditor(repo._unlocked)
        assert _codes(repo.check()) == []  # which does not read data
        assert _codes(repo.check(read_data=1.0)) == [("pack-damaged", "critical")]


def test_a_sound_pack_has_no_findings_for_anybody(place: Place) -> None:
    place.back_up()
    with place.open() as repo:
        assert _codes(repo.check(read_data=1.0)) == []
        _as_auditor(repo._unlocked)
        assert _codes(repo.check(read_data=1.0)) == []


def test_packs_end_where_blocks_and_names_reach_their_size(place: Place) -> None:
    """Many tiny files: names are a large part of a pack, and may not outgrow it."""
    shutil.rmtree(place.documents)
    place.documents.mkdir()
    noise = random.Random(2)
    for number in range(3000):
        (place.documents / f"{number}").write_bytes(noise.randbytes(40))
    target = 1 << 16
    with (
        mock.patch.object(packs, "PACK_TARGET", target),
        mock.patch.object(packs, "PACK_SLACK", 0),
        mock.patch("pharmabackup.engine.contents.BLOCK_CHUNKS", 100),
    ):
        place.back_up()
    sizes = sorted(path.stat().st_size for path in (place.path / "packs").rglob("*") if os.path.isfile(path))
    one_block = 100 * (40 + 4 + 32) + 4096
    assert len(sizes) > 3
    assert sizes[-1] < (target + one_block) * 1.12


def test_packs_end_where_names_alone_are_many(place: Place) -> None:
    """They are held and sealed in one go: a pack of tiny files must not need more memory than one of large ones."""
    noise = random.Random(2)
    for number in range(1000):
        (place.documents / f"{number}").write_bytes(noise.randbytes(40))
    with (
        mock.patch.object(packs, "NAMES_TARGET", 200 * 32),
        mock.patch("pharmabackup.engine.contents.BLOCK_CHUNKS", 100),
    ):
        place.back_up()
    with place.open() as repo:
        assert _codes(repo.check(read_data=1.0)) == []
        found = {path.name: path.stat().st_size for path in (place.path / "packs").rglob("*") if path.is_file()}
        directories = [
            packs.read_directory(repo._unlocked, bytes.fromhex(name), size)[1] for name, size in found.items()
        ]
    chunks = [sum(block.count for block in directory.blocks) for directory in directories]
    assert sum(chunks) > 1000
    assert max(chunks) < 300
