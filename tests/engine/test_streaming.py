"""Content that comes in its order, whatever the order of its blocks."""

from __future__ import annotations

import os
import random
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pharmabackup as pb
from pharmabackup.engine import streaming
from pharmabackup.engine.reading import BlockReader
from pharmabackup.engine.streaming import plan

PASSPHRASE = pb.Passphrase("a passphrase of tests")
TAKE = "import sys; open(sys.argv[1], 'wb').write(sys.stdin.buffer.read())"
GIVE = "import sys; sys.stdout.buffer.write(open(sys.argv[1], 'rb').read())"


@given(st.lists(st.integers(0, 12)), st.integers(1, 6))
def test_what_is_wanted_is_held(wanted: list[int], room: int) -> None:
    held: set[int] = set()
    for slot, move in zip(wanted, plan(wanted, room), strict=True):
        if move is None:
            assert slot in held
        else:
            assert slot not in held
            held.discard(move)
            held.add(slot)
        assert len(held) <= room


@given(st.lists(st.integers(0, 9)), st.integers(1, 5))
def test_less_is_fetched_than_if_the_longest_unused_went(wanted: list[int], room: int) -> None:
    held: OrderedDict[int, None] = OrderedDict()
    misses = 0
    for slot in wanted:
        if slot not in held:
            misses += 1
            if len(held) == room:
                held.popitem(last=False)
        held[slot] = None
        held.move_to_end(slot)
    assert sum(move is not None for move in plan(wanted, room)) <= misses


@pytest.fixture(params=["near", "far"])
def repo(tmp_path: Path, cheap_kdf: None, request: pytest.FixtureRequest) -> Iterator[pb.Repository]:
    with pb.Repository.create(tmp_path / "repository", PASSPHRASE) as made:
        if request.param == "far":
            made._unlocked.storage.lanes = 8  # type: ignore[misc]
        yield made


def test_an_aged_dump_comes_back_and_each_block_is_fetched_about_once(
    tmp_path: Path, repo: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve days change rows all over it, so that its content lies in turns in the blocks of all."""
    path, out = tmp_path / "dump", tmp_path / "out"
    rows = [os.urandom(100) for _ in range(100_000)]
    source = pb.Command(
        [sys.executable, "-c", GIVE, str(path)], name="till", restore=[sys.executable, "-c", TAKE, str(out)]
    )
    draw = random.Random(7)
    for _ in range(12):
        for number in draw.sample(range(len(rows)), 60):
            rows[number] = draw.randbytes(100)
        path.write_bytes(b"".join(rows))
        repo.backup([source])
    fetched: list[bytes] = []
    real = BlockReader.fetch

    def fetch(self: BlockReader, wanted: bytes, *arguments: object, **more: object) -> bytes:
        fetched.append(wanted)
        return real(self, wanted, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(BlockReader, "fetch", fetch)
    repo.restore(into={"till": source})
    assert out.read_bytes() == path.read_bytes()
    assert len(fetched) == len(set(fetched)) > 20
    whole = len(fetched)
    fetched.clear()
    monkeypatch.setattr(streaming, "BLOCKS", 4)
    repo.restore(into={"till": source})
    assert out.read_bytes() == path.read_bytes()
    assert len(fetched) > whole


@pytest.mark.parametrize(("start", "size"), [(0, 0), (0, 1), (1, 70_000), (69_999, 2), (123_456, 1_000_000)])
def test_any_part_of_it(tmp_path: Path, repo: pb.Repository, start: int, size: int) -> None:
    data = os.urandom(2_000_000)
    (tmp_path / "dump").write_bytes(data)
    repo.backup([pb.Command([sys.executable, "-c", GIVE, str(tmp_path / "dump")], name="till")])
    reader = repo.snapshot("till")._reader()
    assert b"".join(streaming.stream(reader, start, size)) == data[start : start + size]


def test_more_than_there_is_is_damage(tmp_path: Path, repo: pb.Repository) -> None:
    (tmp_path / "dump").write_bytes(b"1234")
    repo.backup([pb.Command([sys.executable, "-c", GIVE, str(tmp_path / "dump")], name="till")])
    with pytest.raises(pb.Damaged):
        list(streaming.stream(repo.snapshot("till")._reader(), 0, 5))
