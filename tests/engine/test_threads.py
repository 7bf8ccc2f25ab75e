"""Threads that seal and read: what goes wrong on one reaches the caller, and nobody waits for ever."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pharmabackup as pb
from pharmabackup import compression
from pharmabackup.engine import blocks, moving, readahead
from pharmabackup.engine.blocks import BlockWriter
from pharmabackup.engine.transaction import Transaction, survey
from tests.threads import threads_left

MakeRepo = Callable[[], pb.Repository]
PATIENCE_S = 30


def _in_time(work: Callable[[], object]) -> BaseException | None:
    """What `work` raised. It fails the test when it does not end."""
    raised: list[BaseException | None] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  (the test looks at it)
            raised.append(error)
        else:
            raised.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert raised, "it waits for ever"
    return raised[0]


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    root = tmp_path / "documents"
    root.mkdir()
    for number in range(12):
        (root / str(number)).write_bytes(os.urandom(500_000))
    return root


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_sealing_thread_that_fails_ends_the_backup(
    documents: Path, make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    real, calls = compression.compress, [0]

    def compress(data: compression.Buffer, level: int, *, checksum: bool = False) -> bytes:
        if checksum:  # a block
            calls[0] += 1
            if calls[0] > after:
                raise MemoryError("no room")
        return real(data, level, checksum=checksum)

    monkeypatch.setattr("pharmabackup.compression.compress", compress)
    repo = make_repo()
    assert isinstance(_in_time(lambda: repo.backup([pb.Files(documents)])), MemoryError)
    monkeypatch.undo()
    assert repo.snapshots() == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux sets a thread's priority")
def test_a_priority_that_may_not_be_set_does_not_matter(
    documents: Path, make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.setpriority", refuse)
    repo = make_repo()
    assert _in_time(lambda: repo.backup([pb.Files(documents)])) is None
    assert repo.snapshot().complete


@pytest.mark.parametrize("where", ["close", "finish_block", "begin"])
def test_an_interrupt_while_waiting_leaves_nobody_waiting(
    documents: Path, make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    real = getattr(BlockWriter, where)
    calls = [0]

    def interrupted(self: BlockWriter, *arguments: object) -> object:
        calls[0] += 1
        if calls[0] == 2 or where == "close":
            monkeypatch.setattr(BlockWriter, where, real)
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(BlockWriter, where, interrupted)
    repo = make_repo()
    assert isinstance(_in_time(lambda: repo.backup([pb.Files(documents)])), KeyboardInterrupt)
    assert _in_time(lambda: repo.backup([pb.Files(documents)])) is None
    assert repo.snapshot().files == 12


def test_who_ends_lets_go_of_buffers_that_are_free(make_repo: MakeRepo) -> None:
    unlocked = make_repo()._unlocked
    from pharmabackup.engine.index import Index

    writer = Transaction(unlocked, survey(unlocked, Index(unlocked))).blocks
    writer.finish_block(writer.begin(blocks.Kind.DATA_BLOCK, 1))  # empty
    assert not writer._free.empty()
    writer.end()
    assert writer._free.empty()
    with pytest.raises(AssertionError):
        writer.begin(blocks.Kind.DATA_BLOCK, 1)
    writer.close()


def test_a_second_interrupt_still_ends_the_threads(make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch) -> None:
    unlocked = make_repo()._unlocked
    from pharmabackup.engine.index import Index

    index = Index(unlocked)
    transaction = Transaction(unlocked, survey(unlocked, index))
    buffer = transaction.blocks.begin(blocks.Kind.DATA_BLOCK, 1)
    buffer.content[:4] = b"data"
    buffer.fill = 4
    buffer.names.append(bytes(32))
    buffer.lengths.append(4)
    transaction.blocks.finish_block(buffer)

    def again(self: Transaction) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Transaction, "publish", again)
    with pytest.raises(KeyboardInterrupt):
        transaction.abandon()
    assert not threads_left("pharmabackup-")


# ---------------------------------------------------------------- reading ahead


def _numbered(size: int, wrong_at: int = -1) -> Callable[[int, memoryview], int]:
    def read_at(offset: int, view: memoryview) -> int:
        if offset == wrong_at:
            raise OSError(5, "Input/output error")
        end = min(size, offset + len(view))
        for at in range(offset, end, 1 << 19):
            piece = view[at - offset : at - offset + 8]
            piece[:] = at.to_bytes(8, "little")[: len(piece)]
        time.sleep(0.001 * (offset >> 20) % 3)
        return max(0, end - offset)

    return read_at


@pytest.mark.parametrize("size", [1, 5000, readahead.PART, readahead.PART + 1, 9 * readahead.PART + 700_000])
def test_parts_come_in_order_and_once(size: int) -> None:
    for read in (readahead.read_parts, readahead.read_parts_ahead):
        found = [(offset, len(part), hashes) for offset, part, hashes in read(_numbered(size), size, _start)]
        expected = [
            (offset, min(readahead.PART, size - offset), offset.to_bytes(8, "little")[: size - offset])
            for offset in range(0, size, readahead.PART)
        ]
        assert found == expected


def _start(part: memoryview) -> bytes:
    return bytes(part[:8])


def test_an_error_on_the_way_reaches_the_reader_and_ends_the_threads() -> None:
    size = 9 * readahead.PART
    for read in (readahead.read_parts, readahead.read_parts_ahead):
        found = []
        with pytest.raises(OSError, match="Input/output"):
            for offset, _, _ in read(_numbered(size, wrong_at=5 * readahead.PART), size, _start):
                found.append(offset)
        assert found == [number * readahead.PART for number in range(5)]
    assert not threads_left("pharmabackup-read")


def test_whoever_has_enough_can_leave() -> None:
    parts = readahead.read_parts_ahead(_numbered(50 * readahead.PART), 50 * readahead.PART, _start)
    next(parts)
    parts.close()
    assert not threads_left("pharmabackup-read")


def test_what_a_file_lacks_is_zero() -> None:
    view = memoryview(bytearray(b"x" * 100))
    readahead.read_exactly(lambda offset, part: 0 if offset >= 40 else min(10, len(part)), 0, view)
    assert bytes(view[40:]) == bytes(60)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a priority is the whole process's")
def test_threads_that_seal_give_way_and_no_other_does(
    documents: Path, make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, found = compression.compress, set[int]()
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def compress(data: compression.Buffer, level: int, *, checksum: bool = False) -> bytes:
        if checksum:  # a block
            found.add(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return real(data, level, checksum=checksum)

    monkeypatch.setattr(compression, "compress", compress)
    make_repo().backup([pb.Files(documents)])
    assert found == {min(19, own + 5)}
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a priority is the whole process's")
def test_what_a_collection_moves_gives_way_to_writers(
    documents: Path, make_repo: MakeRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, found = moving.transplant, set[int]()
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def transplant(*arguments: Any, **named: Any) -> None:
        found.add(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        real(*arguments, **named)

    monkeypatch.setattr(moving, "transplant", transplant)
    repo = make_repo()
    repo.backup([pb.Files(documents)])
    repo.rotate(reason="so that there is something to move")
    repo.apply(repo.propose_reseal())
    assert found == {19}
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own
    assert not threads_left("pharmabackup-background")
