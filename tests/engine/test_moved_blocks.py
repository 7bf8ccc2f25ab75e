"""A collection moves blocks while they are read: numbers change, content does not."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.engine.garbage import look_for_garbage
from pharmabackup.engine.index import Index
from pharmabackup.engine.moving import move
from pharmabackup.engine.packs import read_directory
from pharmabackup.engine.segments import read_segment, write_segment
from pharmabackup.errors import NotFound
from pharmabackup.format.wire import Kind
from pharmabackup.storage.local import LocalStorage

MakeRepo = Callable[[], pb.Repository]


@pytest.fixture
def repo(tmp_path: Path, make_repo: MakeRepo) -> pb.Repository:
    """Several packs with one block of data each, all of the same shape."""
    made = make_repo()
    for number in range(4):
        root = tmp_path / f"scans-{number}"
        root.mkdir()
        for name in "abc":
            (root / name).write_bytes(os.urandom(150_000))
        made.backup([pb.Files(root)])
    return made


def _renumber(repo: pb.Repository) -> None:
    """What a collection does to segments: one with the same entries in another order takes their place."""
    unlocked = repo._unlocked
    names = [info.name for info in unlocked.storage.list("index")]
    entries = [
        entry for name in sorted(names) for entry in read_segment(unlocked, ids.hex_tail(name) or b"").record.packs
    ]
    write_segment(unlocked, entries[::-1])
    assert not any(unlocked.storage.delete(names).values())


@pytest.mark.parametrize("window", [1, 2, 1 << 15])
@pytest.mark.parametrize("after", range(4))
def test_a_restore_goes_on_when_blocks_get_other_numbers(
    tmp_path: Path, repo: pb.Repository, monkeypatch: pytest.MonkeyPatch, window: int, after: int
) -> None:
    """Whichever file of whichever window is being fetched then."""
    monkeypatch.setattr("pharmabackup.verbs.restore_content.WINDOW_FILES", window)
    real, moved, left, lock = LocalStorage.get_range, threading.Event(), [after], threading.Lock()

    def get_range(self: LocalStorage, name: str, offset: int, length: int) -> bytes:
        with lock:
            now = name.startswith("packs/") and length > 100_000 and not moved.is_set() and left[0] == 0
            if now:
                moved.set()
            elif length > 100_000:
                left[0] -= 1
        if now:
            _renumber(repo)
            raise NotFound("It is not there any more.", kind="object", remedy="Look again.")
        return real(self, name, offset, length)

    monkeypatch.setattr(LocalStorage, "get_range", get_range)
    repo.restore(tmp_path / "out")
    assert moved.is_set()
    for number in range(4):
        for name in "abc":
            was = (tmp_path / f"scans-{number}" / name).read_bytes()
            assert (tmp_path / "out" / f"scans-{number}" / name).read_bytes() == was


def test_however_many_blocks_are_lost_the_index_is_read_again_once(
    tmp_path: Path, repo: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "large"
    root.mkdir()
    for number in range(8):
        (root / f"{number}").write_bytes(os.urandom(1_500_000))
    storage = repo._unlocked.storage
    before = {info.name for info in storage.list("packs")}
    monkeypatch.setattr("pharmabackup.engine.packs.PACK_TARGET", 1 << 20)
    repo.backup([pb.Files(root)])
    lost = []
    for info in storage.list("packs"):
        _, directory = read_directory(repo._unlocked, ids.hex_tail(info.name) or b"", info.size)
        if info.name not in before and {block.kind for block in directory.blocks} == {Kind.DATA_BLOCK}:
            lost.append(info.name)
    assert len(lost) > 3
    loads, real = [], Index.load
    monkeypatch.setattr(Index, "load", lambda self, **how: (loads.append(self), real(self, **how))[1])

    def lose(event: pb.Event) -> None:
        if event.kind == "dataset":
            storage.delete(lost)

    with pytest.raises(pb.Incomplete) as caught:
        repo.restore(tmp_path / "out", snapshots=[repo.snapshot("large")], progress=lose)
    assert {finding.code for finding in caught.value.findings} <= {"file-lost", "file-salvaged"}  # as files were cut
    assert len(loads) <= 2


def test_a_block_that_was_moved_is_found_though_another_copy_is_damaged(tmp_path: Path, repo: pb.Repository) -> None:
    reader, unlocked = repo._block_reader(), repo._unlocked
    table = reader.index.blocks
    number = next(number for number in range(len(table)) if table.length[number] > 100_000)
    wanted, domain = table.ids[number], unlocked.domain
    content = reader.fetch(wanted, domain)
    old = ids.pack_name(table.packs[table.pack[number]])
    found = look_for_garbage(unlocked, 0, lambda: None)
    packs = [found.index.blocks.packs[place] for place in {*found.index.blocks.pack}]
    for _ in range(2):  # two copies: one is damaged, the other moves on
        found.sparse = {
            pack: [i for i, place in enumerate(found.index.blocks.pack) if found.index.blocks.packs[place] == pack]
            for pack in packs
        }
        names = {info.name for info in unlocked.storage.list("packs")}
        move(unlocked, found, packs, lambda: None)
        if not _:
            reader.refresh()
            (copy,) = {info.name for info in unlocked.storage.list("packs")} - names
    path = Path(unlocked.storage.local_root() or "") / copy
    path.write_bytes(bytes(path.stat().st_size - 1000) + path.read_bytes()[-1000:])
    assert not any(unlocked.storage.delete([old]).values())
    assert reader.fetch(wanted, domain) == content


def test_two_readers_that_miss_a_block_look_again_once(
    tmp_path: Path, repo: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = repo._block_reader()
    seen, loads = reader.index, []
    real = Index.load
    monkeypatch.setattr(Index, "load", lambda self, **how: (loads.append(self), real(self, **how))[1])
    threads = [threading.Thread(target=lambda: reader.refresh(seen=seen)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert reader.index is loads[0]


def test_a_cache_is_kept_although_one_pack_cannot_be_looked_into(tmp_path: Path, repo: pb.Repository) -> None:
    """And the names in that pack are found once it is whole again."""
    unlocked = repo._unlocked
    index = Index(unlocked)
    index.load()
    pack = index.blocks.packs[0]
    path = Path(unlocked.storage.local_root() or "") / ids.pack_name(pack)
    whole = path.read_bytes()
    for digest in list(index.segments):
        for entry in read_segment(unlocked, digest).record.packs:
            if entry.pack == pack:
                path.write_bytes(whole[:1] + bytes(len(whole) - 1001) + whole[-1000:])
    fresh = _saved(repo)
    assert list(fresh.damaged) == [pack]
    index.close()
    again = Index(unlocked)
    again.load()
    again.close()
    assert again.segments == fresh.segments
    path.write_bytes(whole)
    mended = _saved(repo)
    assert not mended.damaged
    assert mended._nameless == set()


def _saved(repo: pb.Repository) -> Index:
    index = Index(repo._unlocked)
    index.load()
    listed = {ids.hex_tail(info.name) or b"": info.size for info in repo._unlocked.storage.list("packs")}
    index.blocks.restrict(listed, frozenset())
    index.find(bytes(32))
    for number in range(5000):  # enough to be worth keeping
        index.put(number.to_bytes(32, "big"), index.blocks.reserve(), 0)
    index.save()
    index.close()
    return index


def test_a_line_that_drops_after_the_commit_costs_nothing_but_time(
    tmp_path: Path, repo: pb.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drop(*_: object) -> bytes:
        raise pb.StorageFailed("The line dropped.", kind="unreachable", remedy="Try again.", location="there")

    monkeypatch.setattr(repo._unlocked.storage, "get_range", drop)
    monkeypatch.setattr("pharmabackup.engine.index.CACHE_AFTER_ROWS", 1)
    index = Index(repo._unlocked)
    index.load()
    assert index._pending
    index.save()
    index.close()
    assert index._pending
