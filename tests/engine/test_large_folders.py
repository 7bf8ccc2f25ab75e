"""Folders so large that they are remembered part by part: every change is seen, and nothing else is read."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from zlib import crc32

import pytest

import pharmabackup as pb
from pharmabackup.engine.dataset import RECORD_WEIGHT_MAX, _record_ends
from pharmabackup.engine.filecache import FolderRecord, RememberedFolder
from pharmabackup.engine.pieces import PIECE_CUT, PIECE_MIN, ManifestWriter
from pharmabackup.engine.previous import PreviousFolders
from pharmabackup.format.manifest import Folder, FrameType, decode_folder
from pharmabackup.sources import listing, parts
from pharmabackup.sources.base import Kept
from tests.sources.trees import opened, posix
from tests.trees import describe

MakeRepo = Callable[[], pb.Repository]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_MIN", 4)
    monkeypatch.setattr(parts, "PART_MAX", 24)
    monkeypatch.setattr(parts, "PART_CUT", 8)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backups happen ten seconds later, when nothing has just changed."""
    monkeypatch.setattr(listing, "time_ns", lambda: time.time_ns() + 10**10)


def records(repo: pb.Repository, dataset: str) -> list[Folder]:
    """The manifest's records of folders, as they are stored."""
    frames = repo.snapshot(dataset)._reader().frames()
    return [decode_folder(frame) for frame in frames if frame.kind == FrameType.FOLDER]


@posix
@pytest.mark.parametrize("seed", range(4))
def test_days_of_changes(
    tmp_path: Path, make_repo: MakeRepo, later: None, small_parts: None, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    repo, root = make_repo(), tmp_path / "flat"
    root.mkdir()
    for number in range(0, 300, 30):
        (root / f"{number:03}.d").mkdir()
        (root / f"{number:03}.d/within").write_text("within")
    there: set[str] = set()
    names = opened(monkeypatch)
    for day in range(14):
        names.clear()
        read = {"within"} if day == 0 else set()
        low = chance.randrange(250)
        for number in chance.sample(range(300), chance.choice([0, 1, 3, 40, 300])):
            name = f"{number:03}"
            if name in there and (chance.random() < 0.6 or low < number < low + 50):  # whole parts, at times
                (root / name).unlink()
                there.discard(name)
            else:
                (root / name).write_text(f"{name} of day {day}")
                there.add(name)
                read.add(name)
        names.clear()
        repo.backup([pb.Files(root)])
        assert {name for name in names if name.isdigit() or name == "within"} == read
        found = records(repo, "flat")
        assert [record.path for record in found] == sorted(record.path for record in found)
        flat = [record.names.split(b"\0") for record in found if not record.path]
        assert list(chain(*flat)) == sorted(
            map(os.fsencode, [".", *there, *(f"{n:03}.d" for n in range(0, 300, 30))])
        )
        assert all(4 <= len(part) <= 24 for part in flat[:-1])
        repo.restore(tmp_path / f"day {day}")
        assert describe(tmp_path / f"day {day}" / "flat") == describe(root)
    assert repo.check(read_data=1.0).state == "ok"


@posix
def test_a_split_part_changes_the_manifest_there_alone(tmp_path: Path, make_repo: MakeRepo, later: None) -> None:
    """Else one file more in a large folder would store all names after it again."""
    chance = random.Random(1)
    root = tmp_path / "site" / "scans"
    root.mkdir(parents=True)
    for _ in range(12_000):
        os.close(os.open(root / chance.randbytes(32).hex(), os.O_CREAT | os.O_WRONLY))
    repo = make_repo()
    first = repo.backup([pb.Files(root.parent)]).datasets["site"].added
    before = len(records(repo, "site"))
    names = sorted(os.listdir(root))
    splits = next(
        name for name in (names[parts.PART_MIN] + f"-{n}" for n in range(1 << 20)) if not crc32(name.encode()) % 1024
    )
    (root / splits).touch()
    again = repo.backup([pb.Files(root.parent)]).datasets["site"].added
    assert len(records(repo, "site")) == before + 1
    assert 0 < again < first / 3


def test_each_record_of_a_large_folder_ends_a_piece() -> None:
    put: list[bytes] = []
    writer = ManifestWriter(put.append)
    path = next(b"%d" % number for number in range(100) if crc32(b"%d" % number) % PIECE_CUT)
    frames = [bytes([number]) * (PIECE_MIN + number) for number in range(9)]
    for data in frames[:4]:
        writer.add(data, path)
    assert put == [frames[0] + frames[1], *frames[2:4]], "the first one says nothing yet of whether more follow"


def test_records_end_early_where_additional_fields_are_large() -> None:
    names = [b"%02d" % number for number in range(10)]
    assert list(_record_ends(names, {})) == [10]
    assert list(_record_ends(names, dict.fromkeys(range(10), RECORD_WEIGHT_MAX // 3 + 1))) == [3, 6, 9, 10]
    assert list(_record_ends(names, {4: RECORD_WEIGHT_MAX, 9: RECORD_WEIGHT_MAX})) == [5, 10]
    assert list(_record_ends([], {})) == []


class Record(RememberedFolder):
    def __init__(self, path: bytes, *names: bytes) -> None:
        super().__init__(FolderRecord(path, names[-1] if names else b"", b"rows", b"", 0, 0, 0, 0), 0, 0, 0)
        self.names = names

    def entries(self) -> dict[bytes, Kept]:
        return {name: Kept(b"", 0, 0, 0, 0, 0, ()) for name in self.names}


def test_what_was_remembered_of_a_part() -> None:
    first, second, third = Record(b"a", b"b", b"d"), Record(b"a", b"f", b"h"), Record(b"a", b"j", b"l")
    other = Record(b"a/b", b"c")

    def find(*asked: tuple[bytes, list[bytes]]) -> list[object]:
        previous = PreviousFolders(iter([Record(b""), first, second, third, other]))
        return [previous.find(path, names) for path, names in asked]

    as_it_was = [(b"", []), (b"a", [b"b", b"d"]), (b"a", [b"f", b"h"]), (b"a", [b"j", b"l"]), (b"a/b", [b"c"])]
    assert find(*as_it_was)[1:] == [first, second, third, other]
    assert find(as_it_was[3], as_it_was[4]) == [third, other], "some are not asked for"
    assert find((b"a", [b"c", b"d"])) == [first], "its first entries are gone"
    assert find((b"a", [b"b", b"c"]), (b"a", [b"cc", b"d"])) == [first, first], "it was split"
    assert find((b"a", [b"m", b"n"]), (b"a/b", [b"c"])) == [None, other]
    assert find((b"A", [b"m"]), (b"a", [b"b", b"d"])) == [None, first]
    assert find((b"a-", [b"c"])) == [None]


def test_what_several_records_hold_is_joined_without_the_rest() -> None:
    held = [Record(b"a", b"b", b"d"), Record(b"a", b"f", b"h"), Record(b"a", b"j", b"l"), Record(b"b", b"c")]
    previous = PreviousFolders(iter(held))
    joined = previous.find(b"a", [b"a", b"d", b"f", b"i"])
    assert joined is not None
    assert set(joined.entries()) == {b"d", b"f"}
    assert not joined.rows, "it is never as it was"
    assert previous.find(b"a", [b"j", b"l"]) is held[2], "it was looked into, and is still there"
    assert previous.find(b"a", [b"m"]) is None
    assert previous.find(b"b", [b"c"]) is held[3]
