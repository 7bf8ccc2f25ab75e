"""How a restore cuts blocks into the parts of files: each wanted byte once, whatever lies where."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

import pharmabackup as pb
from pharmabackup.engine.filecache import cumulative
from pharmabackup.format import block as layout
from pharmabackup.format.manifest import Entry
from pharmabackup.format.recipe import Runs
from pharmabackup.format.wire import little
from pharmabackup.verbs.restore_content import ContentRestorer, _Window
from tests.engine.entries import entry
from tests.engine.test_threads import _in_time

MakeRepo = Callable[[], pb.Repository]


class Stored(NamedTuple):
    blocks: list[bytes]
    runs: Runs
    stream: bytes  # the content as the recipe has it
    window: list[Entry]  # the files of it that are wanted


@st.composite
def stored(draw: st.DrawFn) -> Stored:
    """Runs that go to and fro between blocks, files that end where they like, and some of them wanted."""
    lengths = draw(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=6), min_size=1, max_size=4))
    numbers = iter(range(1 << 10))
    chunks = [[bytes([next(numbers) % 251] * length) for length in block] for block in lengths]
    runs, stream = Runs(), b""
    for _ in range(draw(st.integers(1, 10))):
        slot = draw(st.integers(0, len(chunks) - 1))
        first = draw(st.integers(0, len(chunks[slot]) - 1))
        content = chunks[slot][first : first + draw(st.integers(1, 3))]
        runs.add(slot, first, len(content), sum(map(len, content)))
        stream += b"".join(content)
    ends = draw(st.sets(st.integers(0, len(stream)), max_size=6)) | {0, len(stream)}
    starts = sorted(ends)
    files = [_file(begin, end) for begin, end in pairwise(starts) if draw(st.booleans())]
    trailers = [layout.trailer(little(array("I", block)).tobytes()) for block in lengths]
    blocks = [b"".join(content) + end for content, end in zip(chunks, trailers, strict=True)]
    return Stored(blocks, runs, stream, files)


def _file(begin: int, end: int) -> Entry:
    return structs.replace(entry(b"%d" % begin, size=end - begin), start=begin)


class Written:
    """Stands where the target does, and notes each byte that comes."""

    def __init__(self) -> None:
        self.content: dict[bytes, dict[int, int]] = {}
        self.finished: list[bytes] = []

    def whole(self, item: Entry, data: memoryview) -> None:
        self.parts(item, [(0, data)])
        self.finish(item)

    def parts(self, item: Entry, pieces: list[tuple[int, memoryview]]) -> None:
        assert item.path not in self.finished
        have = self.content.setdefault(item.path, {})
        for offset, data in pieces:
            for at, byte in enumerate(data, offset):
                assert at not in have, "twice"
                have[at] = byte

    def finish(self, item: Entry) -> None:
        self.finished.append(item.path)


def _restorer(made: Stored, target: Written) -> ContentRestorer:
    table = [b"%032d" % slot for slot in range(len(made.blocks))]
    index = SimpleNamespace(
        find=lambda block, _: table.index(block), pack=[0] * len(table), offset=list(range(len(table)))
    )
    reader: Any = SimpleNamespace(
        recipe=lambda: (made.runs, table),
        run_starts=cumulative(made.runs.sizes),
        snapshot=SimpleNamespace(domain=b""),
        blocks=SimpleNamespace(
            ahead=lambda: None,
            index=SimpleNamespace(blocks=index),
            fetch=lambda block, _, **__: made.blocks[table.index(block)],
        ),
    )
    to: Any = target
    nobody: Any = None  # of those that whoever waits for workers needs
    return ContentRestorer(reader, to, nobody, nobody)


@given(stored().filter(lambda made: made.window))
def test_jobs_have_each_wanted_byte_once_and_no_other(made: Stored) -> None:
    restorer = _restorer(made, Written())
    jobs = restorer._jobs_of(_Window(made.window))
    found: Counter[tuple[int, int]] = Counter()
    for job in jobs:
        content = made.blocks[int(job.block)]
        pieces = restorer._pieces(job, memoryview(content), layout.chunk_ends(content))
        assert [begin for begin, _ in pieces] == sorted(begin for begin, _ in pieces)
        found.update((at, byte) for begin, data in pieces for at, byte in enumerate(data, begin))
        spans = job.spans(cumulative(made.runs.sizes))
        assert sorted((begin, begin + len(data)) for begin, data in pieces) == sorted(spans)
    wanted = [at for file in made.window for at in range(file.start, file.start + file.stored)]
    assert found == Counter((at, made.stream[at]) for at in wanted)
    assert len(jobs) == len({job.block for job in jobs}), "a block is fetched once"


@given(stored().filter(lambda made: made.window), st.randoms(use_true_random=False))
def test_each_byte_of_each_file_is_written_once(made: Stored, chance: Any) -> None:
    """In whichever order blocks come."""
    target = Written()
    restorer, window = _restorer(made, target), _Window(made.window)
    jobs = restorer._jobs_of(window)
    chance.shuffle(jobs)
    done = [restorer._restore(job, {}) for job in jobs]
    for file in made.window:
        got = target.content[file.path]
        assert bytes(got[at] for at in sorted(got)) == made.stream[file.start : file.start + file.stored]
        assert set(got) == set(range(file.stored))
    assert set(target.finished) == {file.path for file in made.window}
    assert [sum(column) for column in zip(*done, strict=True)] == [
        sum(file.stored for file in made.window),
        len(made.window),
    ]


class Piece(bytes):
    """Bytes that are not cut for ever."""

    cuts = 0

    def __getitem__(self, where: Any) -> Any:
        self.cuts += 1
        if self.cuts > 100:
            pytest.fail("it does not get shorter")
        made = Piece(super().__getitem__(where))
        made.cuts = self.cuts
        return made


@pytest.mark.parametrize("wrong", ["no block has it", "it belongs to no file", "a byte of it never comes"])
def test_a_fault_in_the_cutting_ends_a_restore(
    tmp_path: Path, make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    """Nobody waits for what does not come, cuts what does not get shorter, or calls whole what lacks something."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "a").write_bytes(b"content")
    (tmp_path / "site" / "b").write_bytes(b"more of it")
    repo = make_repo()
    repo.backup([pb.Files(tmp_path / "site")])
    if wrong == "no block has it":
        monkeypatch.setattr(ContentRestorer, "_jobs_of", lambda *_: [])
    elif wrong == "a byte of it never comes":
        pieces_of = ContentRestorer._pieces

        def pieces(*arguments: Any) -> list[tuple[int, memoryview]]:
            *rest, (position, last) = pieces_of(*arguments)
            return [*rest, (position, last[:-1])]

        monkeypatch.setattr(ContentRestorer, "_pieces", pieces)
    else:
        real = ContentRestorer._write

        def write(self: ContentRestorer, window: _Window, pieces: list[tuple[int, memoryview]]) -> int:
            beyond: Any = (window.starts[-1] + window.entries[-1].stored, Piece(b"x"))
            return real(self, window, [*pieces, beyond])

        monkeypatch.setattr(ContentRestorer, "_write", write)
    expected = pb.Damaged if wrong == "a byte of it never comes" else AssertionError
    assert isinstance(_in_time(lambda: repo.restore(tmp_path / "out")), expected)
