"""Names that a check looks through: what it finds does not depend on which pieces it has met before."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pharmabackup.errors import Damaged
from pharmabackup.format.manifest import (
    Entry,
    EntryKind,
    Extra,
    ExtraField,
    Folder,
    FrameType,
    entries,
    frame,
    read_folders,
    read_frames,
)
from pharmabackup.format.transaction import Ref
from pharmabackup.verbs import check_names
from pharmabackup.verbs.check_names import NamesCheck

DOMAIN = b"d" * 16
FOLDER, FILE = EntryKind.FOLDER, EntryKind.FILE


def record(path: bytes, *names: tuple[bytes, EntryKind, int], first: bytes = b"") -> bytes:
    """One folder's record; `first`: its last entry is a further name of that file."""
    n = len(names)
    sizes = [size for _, _, size in names]
    stored = sum(sizes[:-1] if first else sizes)
    body = Folder(
        path=path,
        names=b"\0".join(name for name, _, _ in names),
        kinds=bytes(kind for _, kind, _ in names),
        modes=struct.pack(f"<{n}I", *[0o644] * n),
        uids=bytes(4 * n),
        gids=bytes(4 * n),
        mtimes=bytes(8 * n),
        sizes=struct.pack(f"<{n}Q", *sizes),
        chunks=bytes(4 * n),
        extras=(ExtraField(n - 1, Extra.SAME_FILE, first),) if first else (),
    )
    return frame(FrameType.FOLDER, body, size=stored)


ROOT = record(b"", (b".", FOLDER, 0), (b"a", FOLDER, 0), (b"b", FOLDER, 0), (b"z", FILE, 7))
A = record(b"a", (b"1", FILE, 10), (b"2", FILE, 20), (b"deep", FOLDER, 0))
A_MORE = record(b"a", (b"e", FILE, 5), (b"f", FILE, 6))
DEEP = record(b"a/deep", (b"3", FILE, 1))
B = record(b"b", (b"4", FILE, 100))
LINK = record(b"b", (b"5", FILE, 20), first=b"a/2")
FINDING = frame(FrameType.FINDING, Folder(b"", b"", b"", b"", b"", b"", b"", b"", b"", ()))


class Blocks:
    """Chunks, one a block, and how often each was asked for."""

    def __init__(self) -> None:
        self.content: list[bytes] = []
        self.asked: list[int] = []

    def snapshot(self, chunks: list[bytes]) -> Any:
        """What a check needs of a snapshot's reader. A chunk that is there already is not stored again."""
        for chunk in chunks:
            if chunk not in self.content:
                self.content.append(chunk)
        refs = tuple(Ref(self.content.index(chunk).to_bytes(32, "big"), 0, 1) for chunk in chunks)
        data = b"".join(chunks)

        def listed() -> Iterator[list[Entry]]:
            for folder, item, start in read_folders(read_frames([data])):
                yield entries(folder, item, start)

        return SimpleNamespace(snapshot=SimpleNamespace(domain=DOMAIN, manifest=refs), entries=listed)

    def chunks(self, refs: tuple[Ref, ...], domain: bytes) -> Iterator[memoryview]:
        assert domain == DOMAIN
        for ref in refs:
            number = int.from_bytes(ref.block, "big")
            self.asked.append(number)
            yield memoryview(self.content[number])


@pytest.fixture
def blocks() -> Blocks:
    return Blocks()


@pytest.fixture
def check(blocks: Blocks) -> NamesCheck:
    return NamesCheck(blocks, lambda: None)  # type: ignore[arg-type]


GOOD = [ROOT, A, A_MORE, DEEP, B, LINK, FINDING]
TOTALS = (149, 8, 169)


def _cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("kept", [0, 30, 100_000])
def test_totals_are_the_same_however_it_is_cut_and_whatever_is_remembered(
    blocks: Blocks, check: NamesCheck, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr(check_names, "KEPT_PATHS", kept)
    data = b"".join(GOOD)
    ways = [GOOD, [ROOT + A, *GOOD[2:]], [data], *(_cut(data, size) for size in (1, 7, 64, 100, 1000))]
    for chunks in [*ways, *reversed(ways)]:
        assert check.totals(blocks.snapshot(chunks)) == TOTALS


def test_a_piece_is_read_once(blocks: Blocks, check: NamesCheck) -> None:
    data = b"".join(GOOD)
    for chunks in (GOOD, [data[:100], data[100:]]):
        check.totals(blocks.snapshot(chunks))
        blocks.asked.clear()
        check.totals(blocks.snapshot(chunks))
        assert blocks.asked == []
    changed = record(b"a", (b"1", FILE, 11), (b"2", FILE, 20), (b"deep", FOLDER, 0))
    stored, files, size = check.totals(blocks.snapshot([ROOT, changed, *GOOD[2:]]))
    assert (stored - 1, files, size - 1) == TOTALS
    assert blocks.asked == [blocks.content.index(changed)]


BAD = {
    "folders in the wrong order": [ROOT, B, A],
    "a folder twice": [ROOT, A, DEEP, A],
    "names in the wrong order": [ROOT, A_MORE, A],
    "names twice": [ROOT, A_MORE, A_MORE],
    "names twice in one piece after another path": [ROOT, A, DEEP + B, B],
    "a folder that nobody names": [ROOT, A_MORE, DEEP],
    "a further name of nothing": [ROOT, B, LINK],
    "cut off": [ROOT, A[:-1]],
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_between_pieces_is_found_though_each_is_known(
    blocks: Blocks, check: NamesCheck, case: str
) -> None:
    whole = blocks.snapshot(BAD[case])
    for _ in range(2):
        with pytest.raises(Damaged):
            check.totals(whole)
        check.totals(blocks.snapshot(GOOD))
        check.totals(blocks.snapshot([ROOT, A_MORE]))
        check.totals(blocks.snapshot([ROOT, B]))
        check.totals(blocks.snapshot([ROOT, A, DEEP + B]))


def test_what_begins_alike_and_goes_on_otherwise_is_another_piece(blocks: Blocks, check: NamesCheck) -> None:
    data = b"".join(GOOD)
    other = b"".join([ROOT, A, A_MORE, DEEP, record(b"b", (b"4", FILE, 101)), LINK])
    assert data[:100] == other[:100]
    for _ in range(2):
        assert check.totals(blocks.snapshot([data[:100], data[100:]])) == TOTALS
        assert check.totals(blocks.snapshot([other[:100], other[100:]])) == (150, 8, 170)
