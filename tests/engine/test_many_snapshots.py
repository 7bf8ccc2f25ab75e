"""Many snapshots: what was verified is not verified again, and nothing takes the square of their number."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

import pharmabackup as pb
from pharmabackup import ids
from pharmabackup.engine import history, historycache, index
from pharmabackup.engine.history import History, Said
from pharmabackup.engine.historyreader import load_history, sound_history
from pharmabackup.engine.reading import SnapshotReader, relied_by
from pharmabackup.engine.segments import read_segment
from pharmabackup.engine.unlocked import Unlocked
from pharmabackup.errors import Damaged
from pharmabackup.format.recipe import UNUSED
from pharmabackup.format.transaction import Mark
from pharmabackup.format.wire import Kind, Signed
from pharmabackup.storage.base import ObjectInfo
from tests.conftest import PASSPHRASE
from tests.format import samples

MakeRepo = Callable[[], pb.Repository]


def _back_up(repo: pb.Repository, folder: Path, times: int) -> None:
    """Each time one file is new, and the one before it is gone; every fifth time twenty are new at once."""
    folder.mkdir(exist_ok=True)
    for number in range(times):
        for old in folder.iterdir():
            old.unlink()
        for name in range(20 if number % 5 == 0 else 1):
            (folder / f"{name}").write_bytes(os.urandom(5000))
        repo.backup([pb.Files(folder)])


@pytest.fixture
def repo(make_repo: MakeRepo, tmp_path: Path) -> pb.Repository:
    made = make_repo()
    _back_up(made, tmp_path / "documents", 3)
    return made


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Kind]]:
    """Of which kinds signatures were verified, one after the other."""
    found: list[Kind] = []
    real = Unlocked._trusted

    def trusted(self: Unlocked, kind: Kind, name: str, signed: Signed) -> object:
        found.append(kind)
        return real(self, kind, name, signed)

    monkeypatch.setattr(Unlocked, "_trusted", trusted)
    yield found


def test_a_fate_is_verified_once(repo: pb.Repository, tmp_path: Path, verified: list[Kind]) -> None:
    first = load_history(repo._unlocked)
    verified.clear()
    repo._unlocked.looked = None  # as in the next process
    again = load_history(repo._unlocked)
    assert verified == []
    assert again == first
    assert len(again.committed) == 3
    _back_up(repo, tmp_path / "documents", 1)
    verified.clear()
    assert len(load_history(repo._unlocked).committed) == 4
    assert verified == [Kind.FATE]


def test_a_record_is_decoded_once_by_a_process(repo: pb.Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_history(repo._unlocked)
    monkeypatch.setattr(Unlocked, "statement", None)
    repo._unlocked.looked = None  # as if storage listed something else
    again = load_history(repo._unlocked)
    assert again == first
    assert all(again.committed[who].snapshot is item.snapshot for who, item in first.committed.items())


def test_where_storage_lists_the_same_nothing_is_read_again(
    repo: pb.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlocked, reads = repo._unlocked, list[bool]()
    real = historycache.load
    monkeypatch.setattr(historycache, "load", lambda one: reads.append(True) or real(one))

    def history() -> tuple[History, int]:
        reads.clear()
        return load_history(unlocked), len(reads)

    load_history(unlocked)  # which remembers what it has read
    first, _ = history()
    again, read = history()
    assert (again, read) == (first, 0)
    again.committed.clear()  # a writer's own: it adds to what it has
    assert history() == (first, 0)
    assert load_history(unlocked, anew=True) == first
    assert reads == [True]
    _back_up(repo, tmp_path / "documents", 1)
    later, read = history()
    assert (len(later.committed), read) == (4, 1)
    other = pb.Repository.open(repo.url, pb.Passphrase(PASSPHRASE), state_dir=unlocked.state.parent)
    with other:
        _back_up(other, tmp_path / "documents", 1)
        name = max(unlocked.storage.list("snapshots"), key=lambda info: info.modified).name
        load_history(other._unlocked)
    unlocked.storage.delete([name])  # what storage lists is what it was, but another process has seen more
    found, read = history()
    assert (found.vanished, read) == ([name], 1)


def test_what_another_process_saw_meanwhile_is_missed_when_it_is_gone(
    repo: pb.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It remembers a record between this one's look at what is remembered and the end of that."""
    unlocked, real, names = repo._unlocked, historycache.load, list[str]()
    before = {info.name for info in unlocked.storage.list("snapshots")}

    def load(one: Unlocked) -> dict[str, historycache.Remembered]:
        found = real(one)
        if one is unlocked and not names:
            with pb.Repository.open(repo.url, pb.Passphrase(PASSPHRASE), state_dir=unlocked.state.parent) as other:
                _back_up(other, tmp_path / "documents", 1)
                load_history(other._unlocked)
            names.extend({info.name for info in unlocked.storage.list("snapshots")} - before)
        return found

    load_history(unlocked)
    unlocked.looked = None
    monkeypatch.setattr(historycache, "load", load)
    load_history(unlocked)
    unlocked.storage.delete(names)
    assert load_history(unlocked).vanished == names


@pytest.mark.parametrize("looked", [False, True], ids=["first look", "later look"])
def test_what_another_process_commits_after_the_listing_is_not_gone(
    repo: pb.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looked: bool
) -> None:
    """It remembers what it committed, where this one looks for what has vanished. `looked`: it has looked before."""
    unlocked = repo._unlocked
    for _ in range(2):
        load_history(unlocked)
    if looked:  # and another machine has committed since
        with pb.Repository.open(repo.url, pb.Passphrase(PASSPHRASE), state_dir=tmp_path / "elsewhere") as machine:
            _back_up(machine, tmp_path / "documents", 1)
    else:
        unlocked.looked = None
    real, committed = unlocked.storage.list, list[str]()

    def then_another_commits(folder: str) -> list[ObjectInfo]:
        found = list(real(folder))
        if folder == "marks" and not committed:
            committed.append(folder)
            with pb.Repository.open(repo.url, pb.Passphrase(PASSPHRASE), state_dir=unlocked.state.parent) as other:
                _back_up(other, tmp_path / "documents", 1)
                load_history(other._unlocked)
        return found

    monkeypatch.setattr(unlocked.storage, "list", then_another_commits)
    history = load_history(unlocked)
    assert committed
    assert history.vanished == []
    assert load_history(unlocked).vanished == []
    assert len(load_history(unlocked).committed) == len(list(real("snapshots")))


def test_a_segment_and_what_it_names_are_verified_once_by_a_process(
    repo: pb.Repository, verified: list[Kind]
) -> None:
    unlocked = repo._unlocked
    unlocked._verified.clear()
    verified.clear()
    segments = len([*unlocked.storage.list("index")])
    for _ in range(2):
        found = index.Index(unlocked, chunks=False)
        found.forget()
        for info in unlocked.storage.list("index"):
            digest = ids.hex_tail(info.name) or b""
            found.add_segment(digest, read_segment(unlocked, digest))
    assert sorted(verified) == sorted([Kind.INDEX] * segments + [Kind.DIRECTORY] * len(found.blocks.packs))


def test_under_a_renewed_roster_nothing_is_recalled(repo: pb.Repository) -> None:
    load_history(repo._unlocked)
    assert repo._unlocked.recalled
    repo._unlocked.renew()
    assert not repo._unlocked.recalled


def test_a_check_verifies_all_of_them(repo: pb.Repository, verified: list[Kind]) -> None:
    load_history(repo._unlocked)
    verified.clear()
    repo.check()
    assert verified.count(Kind.FATE) == 3


def test_under_another_roster_all_are_verified_again(repo: pb.Repository, verified: list[Kind]) -> None:
    before = load_history(repo._unlocked)
    repo._unlocked.roster_hash = bytes(32)
    verified.clear()
    assert load_history(repo._unlocked) == before
    assert verified == [Kind.FATE] * 3
    verified.clear()
    assert load_history(repo._unlocked) == before
    assert verified == []


def test_under_another_roster_what_is_gone_is_still_missed(repo: pb.Repository) -> None:
    load_history(repo._unlocked)
    repo._unlocked.roster_hash = bytes(32)
    name = next(iter(repo._unlocked.storage.list("snapshots"))).name
    repo._unlocked.storage.delete([name])
    for _ in range(2):
        with pytest.raises(Damaged) as caught:
            sound_history(repo._unlocked)
        assert caught.value.kind == "history-forked"


def test_under_another_roster_what_cannot_be_read_is_not_believed(repo: pb.Repository, tmp_path: Path) -> None:
    load_history(repo._unlocked)
    repo._unlocked.roster_hash = bytes(32)
    name = next(iter(repo._unlocked.storage.list("snapshots"))).name
    path = Path(repo.url) / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for _ in range(2):  # what the first time remembers of it must not pass for verified the second time
        assert set(load_history(repo._unlocked).damaged) == {name}
    path.write_bytes(whole)
    assert not load_history(repo._unlocked).damaged


def test_a_mark_is_taken_apart_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many snapshots it names."""
    calls = [0]
    real = history.split

    def split(column: bytes, size: int, what: str) -> list[bytes]:
        calls[0] += 1
        return real(column, size, what)

    monkeypatch.setattr(history, "split", split)
    names = [number.to_bytes(16, "big") for number in range(1000)]
    mark = Mark("forget", b"".join(names), 1, None, None, None)
    slot = samples.ROSTER.slots[0]
    found = History(said=[Said(b"m" * 16, mark, slot, 0)])
    assert found.gone(1) == set(names)
    assert calls[0] < 10


def test_what_a_snapshot_relies_on_is_in_its_table(repo: pb.Repository, tmp_path: Path) -> None:
    """The recipe is not read for it, and a place that no run names is not in the table."""
    _back_up(repo, tmp_path / "documents", 6)
    blocks = repo._block_reader()
    blocks.refresh()
    unused = 0
    for item in load_history(repo._unlocked).committed.values():
        record, reader = item.snapshot, SnapshotReader(blocks, item.snapshot)
        relied = reader.relied()
        assert reader._runs is None
        runs, table = reader.recipe()
        refs = {ref.block for refs in (record.table, record.recipe, record.manifest) for ref in refs}
        assert relied == reader.relied() == refs | {table[slot] for slot in set(runs.block)}
        unused += table.count(UNUSED)
    assert unused  # else this shows little


def test_a_run_that_names_an_unused_place_is_damage(repo: pb.Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    real = SnapshotReader.table
    monkeypatch.setattr(SnapshotReader, "table", lambda self: [UNUSED] * len(real(self)))
    reader = SnapshotReader(repo._block_reader(), load_history(repo._unlocked).newest()[0].snapshot)
    with pytest.raises(Damaged):
        reader.recipe()
    assert "snapshot-damaged" in {finding.code for finding in repo.check().findings}


def test_segments_of_small_backups_are_remembered(
    repo: pb.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each brings too few names to be worth keeping; together they are."""
    read: list[bytes] = []
    real = index.read_segments

    def read_segments(unlocked: Unlocked, sizes: Mapping[bytes, int]) -> object:
        read.extend(sizes)
        return real(unlocked, sizes)

    monkeypatch.setattr(index, "read_segments", read_segments)
    monkeypatch.setattr(index, "CACHE_AFTER_SEGMENTS", 3)
    for _ in range(10):
        read.clear()
        _back_up(repo, tmp_path / "documents", 1)
        assert len(read) <= 3
    (tmp_path / "documents" / "more").write_bytes((tmp_path / "documents" / "0").read_bytes())
    added = repo.backup([pb.Files(tmp_path / "documents")]).datasets["documents"].snapshot
    assert added is not None
    assert added.added < 5000  # the chunk was found, by the name that the cache has


def test_a_list_of_blocks_that_snapshots_share_is_read_once(
    repo: pb.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        repo.backup([pb.Files(tmp_path / "documents")])
    items = [item.snapshot for item in load_history(repo._unlocked).newest()]
    blocks, expected, reads = repo._block_reader(), set[bytes](), list[object]()
    for item in items:
        expected |= SnapshotReader(blocks, item).relied()
    real = SnapshotReader.relied
    monkeypatch.setattr(SnapshotReader, "relied", lambda self: (reads.append(self), real(self))[1])
    assert relied_by(blocks, items) == {repo._unlocked.domain: expected}
    assert len(reads) == len(items) - 3


def test_snapshots_that_share_their_lists_are_told_each(
    repo: pb.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are looked through once, and both are hurt by what is damaged."""
    repo.backup([pb.Files(tmp_path / "documents")])
    looked: list[object] = []
    real = SnapshotReader.recipe
    monkeypatch.setattr(SnapshotReader, "recipe", lambda self: (looked.append(self), real(self))[1])
    assert "pack-damaged" not in {item.code for item in repo.check(read_data=1.0).findings}
    assert len(looked) == len(repo.snapshots()) - 1
    blocks, unlocked = repo._block_reader(), repo._unlocked
    table = blocks.index.blocks
    for block in SnapshotReader(blocks, load_history(unlocked).newest()[0].snapshot).relied():
        number = table.find(block, unlocked.domain)
        assert number is not None
        path = Path(repo.url) / ids.pack_name(table.packs[table.pack[number]])
        path.write_bytes(path.read_bytes()[:-9] + bytes(9))
    (told,) = [item.message for item in repo.check(read_data=1.0).findings if item.code == "pack-damaged"]
    assert "2 snapshots of documents need it" in told
